//! From problems to what is told: one report for each object and reason.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};

use crate::model::{Problem, Reason};
use crate::source::ObjectId;

/// Longest note that the API takes, in bytes.
const NOTE_BYTES: usize = 1_024;
/// Longest part of an object's name in an Event's. Both may have 253 bytes.
const NAME_BYTES: usize = 200;

/// What there is to tell about an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The object.
    pub object: ObjectId,
    /// Its `metadata.uid`: one that is made anew under the same name is another object.
    pub uid: String,
    /// What it is about.
    pub reason: Reason,
    /// For people.
    pub note: String,
}

impl Report {
    /// The name of its Event. The same on every node, unless other nodes may not have the problem.
    pub(super) fn name(&self, node: &str) -> String {
        let Self { object, uid, reason, note } = self;
        let node = if reason.is_of_node() { node } else { "" };
        event_name(object, &[uid, reason.as_str(), note, node])
    }
}

/// The name of an Event about an object, which is another one if any of the parts is.
pub(in crate::source::kube) fn event_name(object: &ObjectId, parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part);
        // Nowhere in them.
        hash.update([0]);
    }
    let digest = u64::from_be_bytes(hash.finalize()[..8].try_into().unwrap_or_default());
    let end = object.name.floor_char_boundary(NAME_BYTES);
    let stem = object.name[..end].trim_end_matches(['.', '-']);
    format!("{stem}.{digest:016x}")
}

/// What to tell of these problems. `uid` knows objects that are there: nothing else can have Events.
pub fn reports<'a>(
    problems: impl IntoIterator<Item = &'a Problem>,
    uid: impl Fn(&ObjectId) -> Option<String>,
) -> Vec<Report> {
    let mut notes = BTreeMap::<(ObjectId, Reason), Vec<String>>::new();
    for Problem { severity: _, origin: _, object, field, message, reason } in problems {
        let Ok(object) = object.parse() else { continue };
        let note = if field.is_empty() { message.clone() } else { format!("{field}: {message}") };
        notes.entry((object, *reason)).or_default().push(note);
    }
    let report = |((object, reason), notes): ((ObjectId, Reason), Vec<String>)| {
        Some(Report { uid: uid(&object)?, object, reason, note: joined(&notes) })
    };
    notes.into_iter().filter_map(report).collect()
}

fn joined(notes: &[String]) -> String {
    shortened(notes.join("; "))
}

/// A note as the API takes it.
pub(in crate::source::kube) fn shortened(mut note: String) -> String {
    if note.len() > NOTE_BYTES {
        note.truncate(note.floor_char_boundary(NOTE_BYTES - '…'.len_utf8()));
        note.push('…');
    }
    note
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Severity;

    fn problem(object: &str, field: &str, message: &str, reason: Reason) -> Problem {
        Problem {
            severity: Severity::Error,
            origin: String::new(),
            object: object.to_owned(),
            field: field.to_owned(),
            message: message.to_owned(),
            reason,
        }
    }

    fn told(problems: &[Problem]) -> Vec<Report> {
        reports(problems, |id| (&*id.name != "gone").then(|| format!("uid of {id}")))
    }

    #[test]
    fn problems_of_an_object_are_told_together_by_reason() {
        let all = told(&[
            problem("Service shop/web", "spec.a", "x", Reason::InvalidField),
            problem("Service shop/web", "spec.b", "y", Reason::InvalidField),
            problem("Service shop/web", "", "z", Reason::AddressConflict),
            problem("Service shop/gone", "", "z", Reason::AddressConflict),
            problem("address 192.0.2.1", "", "z", Reason::CapacityExceeded),
            problem("Node node-a", "", "n", Reason::SyncFailed),
        ]);
        let shown: Vec<_> =
            all.iter().map(|it| format!("{} {:?} {}", it.object, it.reason, it.note)).collect();
        assert_eq!(
            shown,
            [
                "Service shop/web InvalidField spec.a: x; spec.b: y",
                "Service shop/web AddressConflict z",
                "Node node-a SyncFailed n",
            ]
        );
        assert_eq!(all[0].uid, "uid of Service shop/web");
    }

    #[test]
    fn the_name_is_the_same_on_every_node_unless_the_problem_is_the_nodes() {
        let name = |reason, note: &str, node: &str| {
            told(&[problem("Service shop/web", "", note, reason)])[0].name(node)
        };
        let first = name(Reason::AddressConflict, "x", "a");
        assert_eq!(first, name(Reason::AddressConflict, "x", "b"));
        assert_ne!(first, name(Reason::AddressConflict, "y", "a"));
        assert_ne!(first, name(Reason::InvalidField, "x", "a"));
        assert_ne!(
            name(Reason::HealthCheckNotServed, "x", "a"),
            name(Reason::HealthCheckNotServed, "x", "b")
        );
        // Agents of all versions have to agree.
        assert_eq!(first, "web.ded9ac42958ecf3e");
    }

    #[test]
    fn names_and_notes_are_no_longer_than_the_api_takes() {
        let object = format!("Service shop/{}", "a.".repeat(126));
        let long = "ü".repeat(2_000);
        let all = told(&[problem(&object, "", &long, Reason::InvalidField)]);
        assert!(all[0].note.len() <= NOTE_BYTES && all[0].note.ends_with("ü…"));
        let name = all[0].name("n");
        assert!(name.len() <= 253 && name.contains("a.") && !name.contains(".."), "{name}");
    }
}
