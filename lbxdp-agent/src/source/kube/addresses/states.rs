//! What the status of pools and advertisements says: counters as MetalLB has them, and a condition.
//!
//! The definitions of MetalLB itself have no room for the condition, and the API leaves out what it has
//! no room for. So what was written is remembered, and not written again because it does not show.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use serde_json::{Value, json};

use super::inputs::Inputs;
use crate::model::{Problem, Severity};
use crate::source::{Kind, ObjectId};
use crate::vip::Decided;
use crate::vip::resources::IpAddressPoolStatus;

/// Type of the condition.
const ACCEPTED: &str = "lbxdp.io/Accepted";

/// What was written.
#[derive(Debug, Default)]
pub(super) struct States(BTreeMap<ObjectId, Value>);

impl States {
    /// What is to be written, as merge patches of the status.
    pub(super) fn due(
        &self,
        decided: &Decided,
        inputs: &Inputs,
        now: &Time,
    ) -> Vec<(ObjectId, Value)> {
        let mut patches = Vec::new();
        for (id, uid, status) in inputs.resources() {
            let about = id.to_string();
            let problems = decided.problems.iter().filter(|problem| problem.object == about);
            let condition = condition(&problems.collect::<Vec<_>>(), status, now);
            let mut wanted = json!({ "conditions": [condition] });
            if id.kind == Kind::IpAddressPool {
                let key = (id.namespace.to_string(), id.name.to_string());
                let Some(counts) = decided.outcome.pools.get(&key) else { continue };
                let counters = serde_json::to_value(IpAddressPoolStatus::from(*counts));
                let counters = counters.unwrap_or_default();
                for (name, count) in counters.as_object().into_iter().flatten() {
                    wanted[name] = count.clone();
                }
            }
            // Of another object of the name, this is refused.
            let patch = json!({ "metadata": { "uid": uid }, "status": wanted });
            if !shows(status, &wanted) && !self.has_written(id, &patch, status) {
                patches.push((id.clone(), patch));
            }
        }
        patches
    }

    /// This was.
    pub(super) fn written(&mut self, id: ObjectId, patch: Value) {
        self.0.insert(id, patch);
    }

    /// Whether this was written and everything of it shows but the condition.
    fn has_written(&self, id: &ObjectId, patch: &Value, status: &Value) -> bool {
        let without_times = |patch: &Value| {
            let mut patch = patch.clone();
            if let Some(condition) = patch.pointer_mut("/status/conditions/0") {
                condition["lastTransitionTime"] = Value::Null;
            }
            patch
        };
        let mut counters = patch["status"].clone();
        counters.as_object_mut().map(|counters| counters.remove("conditions"));
        let is_the_same =
            self.0.get(id).is_some_and(|old| without_times(old) == without_times(patch));
        is_the_same && shows(status, &counters)
    }
}

/// Whether a status has everything that is wanted.
fn shows(status: &Value, wanted: &Value) -> bool {
    wanted.as_object().into_iter().flatten().all(|(name, value)| status.get(name) == Some(value))
}

/// Whether an object is used as it is written, and why not.
fn condition(problems: &[&Problem], status: &Value, now: &Time) -> Condition {
    let is_refused = problems.iter().any(|problem| problem.severity == Severity::Error);
    let messages: Vec<_> = problems.iter().map(|problem| said(problem)).collect();
    let (status_of, reason) = match (is_refused, problems.is_empty()) {
        (true, _) => ("False", "Refused"),
        (false, false) => ("True", "AcceptedWithWarnings"),
        (false, true) => ("True", "Accepted"),
    };
    let old = status["conditions"].as_array().into_iter().flatten();
    let old = old.filter_map(|condition| serde_json::from_value(condition.clone()).ok());
    let old: Option<Condition> = old.into_iter().find(|old: &Condition| old.type_ == ACCEPTED);
    let since = old.filter(|old| old.status == status_of).map(|old| old.last_transition_time);
    Condition {
        last_transition_time: since.unwrap_or_else(|| now.clone()),
        message: messages.join("; "),
        observed_generation: None,
        reason: reason.to_owned(),
        status: status_of.to_owned(),
        type_: ACCEPTED.to_owned(),
    }
}

fn said(Problem { field, message, .. }: &Problem) -> String {
    if field.is_empty() { message.clone() } else { format!("{field}: {message}") }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::super::inputs::{Heard, Item, Written};
    use super::*;
    use crate::problem::Problems;
    use crate::vip::{Counts, Outcome, PoolCounts};

    fn time(second: u8) -> Time {
        serde_json::from_value(json!(format!("2026-01-01T00:00:{second:02}Z"))).unwrap()
    }

    fn id() -> ObjectId {
        ObjectId::new(Kind::IpAddressPool, Some("lb"), "a")
    }

    fn inputs(status: Value) -> Inputs {
        let now = Instant::now();
        let mut inputs = Inputs::new(Duration::ZERO, now);
        let pool = Written { uid: "u".to_owned(), status, read: None, error: None };
        inputs.take(Heard::Applied(id(), Item::Pool(Box::new(pool))), now);
        inputs
    }

    fn decided(error: Option<&str>) -> Decided {
        let v4 = Counts { total: 3, assigned: 1, available: 2 };
        let counts = PoolCounts { v4, ..PoolCounts::default() };
        let pools = [(("lb".to_owned(), "a".to_owned()), counts)].into();
        let mut problems = Problems::default();
        if let Some(error) = error {
            problems.about("", &id().to_string()).error("spec.addresses", error);
        }
        let outcome = Outcome { pools, ..Outcome::default() };
        Decided { outcome, problems: problems.into_sorted() }
    }

    #[test]
    fn counters_and_condition_are_written_once() {
        let states = States::default();
        let [(_, patch)] = &states.due(&decided(None), &inputs(Value::Null), &time(1))[..] else {
            panic!("nothing to write")
        };
        assert_eq!(patch["metadata"], json!({"uid": "u"}));
        let status = &patch["status"];
        assert_eq!((&status["assignedIPv4"], &status["availableIPv4"]), (&json!(1), &json!(2)));
        let condition = &status["conditions"][0];
        assert_eq!(
            (&condition["status"], &condition["reason"]),
            (&json!("True"), &json!("Accepted"))
        );
        // The time is that of the change.
        assert!(states.due(&decided(None), &inputs(status.clone()), &time(2)).is_empty());
        let all = states.due(&decided(Some("x")), &inputs(status.clone()), &time(3));
        let condition = &all[0].1["status"]["conditions"][0];
        assert_eq!(condition["message"], "spec.addresses: x");
        assert_eq!(condition["lastTransitionTime"], "2026-01-01T00:00:03Z");
        assert_eq!(
            (&condition["status"], &condition["reason"]),
            (&json!("False"), &json!("Refused"))
        );
    }

    #[test]
    fn a_definition_without_conditions_is_not_written_to_for_ever() {
        let mut states = States::default();
        let (id, patch) = states.due(&decided(None), &inputs(Value::Null), &time(1)).remove(0);
        let mut shown = patch["status"].clone();
        shown.as_object_mut().unwrap().remove("conditions");
        states.written(id, patch);
        assert!(states.due(&decided(None), &inputs(shown.clone()), &time(2)).is_empty());
        assert_eq!(states.due(&decided(Some("x")), &inputs(shown.clone()), &time(3)).len(), 1);
        shown["assignedIPv4"] = json!(7);
        assert_eq!(states.due(&decided(None), &inputs(shown), &time(4)).len(), 1);
    }
}
