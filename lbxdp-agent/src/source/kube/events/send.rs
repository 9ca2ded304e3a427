//! An Event as the API knows it (`events.k8s.io/v1`).

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, Error};

use super::board::{How, Telling};
use super::report::Report;
use crate::source::kube::backoff::Failure;
use crate::source::kube::watch::failure;
use crate::source::{DEFAULT_NAMESPACE, ObjectId};

/// Who tells.
const CONTROLLER: &str = "lbxdp";
/// What did not go as it should.
const ACTION: &str = "Programming";

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::source::kube) enum Outcome {
    Created,
    /// There is an Event of this name.
    Exists,
    Repeated,
    /// There is none any more.
    Gone,
    /// The API does not want it, and will not want it next time.
    Refused,
    /// It may be tried again.
    Unanswered(Failure),
}

/// Does it.
pub(super) async fn send(client: &Client, node: &str, telling: &Telling) -> Outcome {
    let Telling { name, report, how } = telling;
    let api = Api::<Event>::namespaced(client.clone(), namespace(&report.object));
    let now = MicroTime(Timestamp::now());
    let sent = match how {
        How::Create => {
            let event = event(name, report, node, now);
            api.create(&PostParams::default(), &event).await.map(|_| Outcome::Created)
        }
        How::Repeat(count) => {
            let series = serde_json::json!({
                "series": { "count": count, "lastObservedTime": now },
            });
            let patch = Patch::Merge(&series);
            let patched = api.patch(name, &PatchParams::default(), &patch).await;
            patched.map(|_| Outcome::Repeated)
        }
    };
    sent.unwrap_or_else(|error| {
        let outcome = of_error(&error, *how);
        match outcome {
            Outcome::Exists | Outcome::Gone => {}
            Outcome::Refused => {
                tracing::warn!(object = %report.object, "an Event is refused: {error}");
            }
            _ => tracing::debug!(object = %report.object, "an Event has to wait: {error}"),
        }
        outcome
    })
}

/// What an error means.
pub(in crate::source::kube) fn of_error(error: &Error, how: How) -> Outcome {
    let Error::Api(status) = error else { return Outcome::Unanswered(failure(error)) };
    match (status.code, how) {
        (409, How::Create) => Outcome::Exists,
        (404, How::Repeat(_)) => Outcome::Gone,
        // Tokens are replaced while they are still good; this one was too late.
        (401 | 408 | 409 | 429 | 500.., _) => Outcome::Unanswered(failure(error)),
        _ => Outcome::Refused,
    }
}

/// Of objects without a namespace it is where others put them, too.
pub(in crate::source::kube) fn namespace(object: &ObjectId) -> &str {
    match &*object.namespace {
        "" => DEFAULT_NAMESPACE,
        namespace => namespace,
    }
}

fn event(name: &str, report: &Report, node: &str, now: MicroTime) -> Event {
    let Report { object, uid, reason, note } = report;
    let about =
        About { object, uid, reason: reason.as_str(), note, is_warning: true, action: ACTION };
    about.event(name, node, now)
}

/// What an Event says, and of what.
pub(in crate::source::kube) struct About<'a> {
    /// The object.
    pub(in crate::source::kube) object: &'a ObjectId,
    /// Its `metadata.uid`.
    pub(in crate::source::kube) uid: &'a str,
    /// What it is about, for machines.
    pub(in crate::source::kube) reason: &'a str,
    /// The same for people.
    pub(in crate::source::kube) note: &'a str,
    /// Whether something is not as it should be.
    pub(in crate::source::kube) is_warning: bool,
    /// What was done or not.
    pub(in crate::source::kube) action: &'a str,
}

impl About<'_> {
    /// The Event, under a name of its own.
    pub(in crate::source::kube) fn event(&self, name: &str, node: &str, now: MicroTime) -> Event {
        let Self { object, uid, reason, note, is_warning, action } = *self;
        Event {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                namespace: Some(namespace(object).to_owned()),
                ..ObjectMeta::default()
            },
            action: Some(action.to_owned()),
            event_time: Some(now),
            note: Some(note.to_owned()),
            reason: Some(reason.to_owned()),
            regarding: Some(ObjectReference {
                api_version: Some(object.kind.api_version().to_owned()),
                kind: Some(object.kind.to_string()),
                name: Some(object.name.to_string()),
                namespace: Some(object.namespace.to_string()).filter(|ns| !ns.is_empty()),
                uid: Some(uid.to_owned()),
                ..ObjectReference::default()
            }),
            reporting_controller: Some(CONTROLLER.to_owned()),
            // The API takes no more.
            reporting_instance: Some(node.chars().take(128).collect()),
            type_: Some(if is_warning { "Warning" } else { "Normal" }.to_owned()),
            ..Event::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    #[test]
    fn what_an_answer_means_depends_on_what_was_asked() {
        let error = |code| Error::Api(Box::new(Status { code, ..Status::failure("x", "y") }));
        let repeat = How::Repeat(2);
        assert_eq!(of_error(&error(409), How::Create), Outcome::Exists);
        assert_eq!(of_error(&error(404), repeat), Outcome::Gone);
        // The namespace is gone or going, or the rights are missing.
        for (code, how) in [(404, How::Create), (403, How::Create), (403, repeat), (422, repeat)] {
            assert_eq!(of_error(&error(code), how), Outcome::Refused, "{code} {how:?}");
        }
        for (code, how) in [(401, repeat), (409, repeat), (429, How::Create), (503, How::Create)] {
            let outcome = of_error(&error(code), how);
            assert!(matches!(outcome, Outcome::Unanswered(Failure::Refusal { .. })), "{code}");
        }
    }
}
