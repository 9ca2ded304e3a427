//! A list that lacks most of what was there is not believed at once: API servers have answered with
//! empty lists after a restore, behind a broken cache, and through a proxy.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::packed::Packed;
use super::trim::Arrived;
use crate::source::{Delta, Kind, Object, ObjectId, Sourced};

/// What the last list lacks, and when that is believed.
#[derive(Debug, Default)]
pub(super) struct Doubt(Option<(Instant, BTreeSet<ObjectId>)>);

impl Doubt {
    /// How many objects are missing.
    pub(super) fn count(&self) -> Option<usize> {
        self.0.as_ref().map(|(_, ids)| ids.len())
    }

    /// When [`Self::believe`] has something to do.
    pub(super) fn due(&self) -> Option<Instant> {
        self.0.as_ref().map(|(due, _)| *due)
    }

    /// A list lacks these of so many; which of them are gone. More than half of the objects wait for
    /// `hold`, counted from the first list that lacked them.
    pub(super) fn list(
        &mut self,
        before: usize,
        missing: BTreeSet<ObjectId>,
        now: Instant,
        hold: Duration,
    ) -> BTreeSet<ObjectId> {
        let due = self.due().unwrap_or(now + hold);
        if missing.len() * 2 > before && due > now {
            self.0 = Some((due, missing));
            return BTreeSet::new();
        }
        self.0 = None;
        missing
    }

    /// An object was heard of.
    pub(super) fn heard(&mut self, id: &ObjectId) {
        self.0.take_if(|(_, ids)| {
            ids.remove(id);
            ids.is_empty()
        });
    }

    /// What was missing for long enough.
    pub(super) fn believe(&mut self, now: Instant) -> BTreeSet<ObjectId> {
        self.0.take_if(|(due, _)| *due <= now).map(|(_, ids)| ids).unwrap_or_default()
    }
}

/// The objects of one kind.
#[derive(Debug, Default)]
pub(super) struct Known {
    objects: BTreeMap<ObjectId, Packed>,
    /// Whether the API has listed them since the start.
    is_listed: bool,
    missing: Doubt,
}

impl Known {
    /// What an earlier agent knew. The first list is compared with that.
    pub(super) fn remembered(objects: impl IntoIterator<Item = Object>) -> Self {
        let objects = objects.into_iter().map(|object| (object.id(), Packed::new(&object)));
        Self { objects: objects.collect(), ..Self::default() }
    }

    pub(super) fn is_listed(&self) -> bool {
        self.is_listed
    }

    /// The objects, one by one; those of `arrived` need not be unpacked.
    pub(super) fn objects(
        &self,
        arrived: &mut BTreeMap<ObjectId, Object>,
    ) -> impl Iterator<Item = Object> {
        let object = |(id, packed): (&ObjectId, &Packed)| {
            arrived.remove(id).or_else(|| packed.object(id.kind))
        };
        self.objects.iter().filter_map(object)
    }

    /// The same as they are kept.
    pub(super) fn packed(&self) -> impl Iterator<Item = &Packed> {
        self.objects.values()
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.objects.len()
    }

    /// How many objects are missing and how many there are, while that is not believed.
    pub(super) fn held(&self) -> Option<(usize, usize)> {
        Some((self.missing.count()?, self.objects.len()))
    }

    /// When [`Self::believe`] has something to do.
    pub(super) fn due(&self) -> Option<Instant> {
        self.missing.due()
    }

    /// Takes a complete list; what differs.
    pub(super) fn list(
        &mut self,
        list: BTreeMap<ObjectId, Arrived>,
        now: Instant,
        hold: Duration,
    ) -> Vec<Delta> {
        self.is_listed = true;
        let before = self.objects.len();
        let missing: BTreeSet<ObjectId> =
            self.objects.keys().filter(|id| !list.contains_key(id)).cloned().collect();
        let mut deltas: Vec<_> =
            list.into_values().filter_map(|arrived| self.insert(arrived)).collect();
        let gone = self.missing.list(before, missing, now, hold);
        deltas.extend(gone.into_iter().filter_map(|id| self.remove(id)));
        deltas
    }

    /// Takes a new or changed object; `None` if nothing differs.
    pub(super) fn apply(&mut self, arrived: Arrived) -> Option<Delta> {
        self.missing.heard(&arrived.id());
        self.insert(arrived)
    }

    /// Takes a deletion, which needs no second thought.
    pub(super) fn delete(&mut self, id: ObjectId) -> Option<Delta> {
        self.missing.heard(&id);
        self.remove(id)
    }

    /// Removes what was missing for long enough.
    pub(super) fn believe(&mut self, now: Instant) -> Vec<Delta> {
        let gone = self.missing.believe(now);
        gone.into_iter().filter_map(|id| self.remove(id)).collect()
    }

    fn insert(&mut self, Arrived { object, triggered }: Arrived) -> Option<Delta> {
        let (id, packed) = (object.id(), Packed::new(&object));
        if self.objects.get(&id) == Some(&packed) {
            return None;
        }
        self.objects.insert(id, packed);
        Some(Delta::Apply { object: Sourced::new("", object), triggered })
    }

    fn remove(&mut self, id: ObjectId) -> Option<Delta> {
        self.objects.remove(&id).map(|_| Delta::Delete(id))
    }
}

/// What the operator is told while removals are held.
pub(super) fn message(kind: Kind, (missing, all): (usize, usize), hold: Duration) -> String {
    format!(
        "the API's list lacks {missing} of {all} known {kind}s: they stay for {} s \
         (--bulk-removal-hold), unless they come back",
        hold.as_secs()
    )
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Service;

    use super::*;

    const HOLD: Duration = Duration::from_secs(30);

    fn service(name: &str) -> Arrived {
        let mut service = Service::default();
        service.metadata.name = Some(name.to_owned());
        service.into()
    }

    fn list(names: &[&str]) -> BTreeMap<ObjectId, Arrived> {
        names.iter().map(|name| service(name)).map(|object| (object.id(), object)).collect()
    }

    fn objects(names: &[&str]) -> impl Iterator<Item = Object> {
        list(names).into_values().map(|arrived| arrived.object)
    }

    fn id(name: &str) -> ObjectId {
        ObjectId::new(Kind::Service, None, name)
    }

    /// `+name` for what is new or differs, `-name` for what is gone.
    fn shown(deltas: &[Delta]) -> Vec<String> {
        let show = |delta: &Delta| match delta {
            Delta::Apply { object, .. } => format!("+{}", object.object.id().name),
            Delta::Delete(id) => format!("-{}", id.name),
        };
        deltas.iter().map(show).collect()
    }

    #[test]
    fn half_may_go_at_once_and_more_waits() {
        let now = Instant::now();
        let mut known = Known::default();
        let names = ["a", "b", "c", "d"];
        assert_eq!(shown(&known.list(list(&names), now, HOLD)), ["+a", "+b", "+c", "+d"]);
        assert_eq!(shown(&known.list(list(&["a", "b"]), now, HOLD)), ["-c", "-d"]);
        assert_eq!(known.held(), None);

        // What is new is there at once all the same.
        assert_eq!(shown(&known.list(list(&["e"]), now, HOLD)), ["+e"]);
        assert_eq!(known.held(), Some((2, 3)));
        assert_eq!(known.due(), Some(now + HOLD));
        assert_eq!(shown(&known.believe(now + HOLD / 2)), [""; 0]);
        // Another list that says the same starts no new wait.
        assert_eq!(shown(&known.list(list(&["e"]), now + HOLD / 2, HOLD)), [""; 0]);
        assert_eq!(known.due(), Some(now + HOLD));
        assert_eq!(shown(&known.believe(now + HOLD)), ["-a", "-b"]);
        assert_eq!((known.held(), known.due()), (None, None));
    }

    #[test]
    fn what_comes_back_stays() {
        let now = Instant::now();
        let mut known = Known::default();
        known.list(list(&["a", "b", "c"]), now, HOLD);
        known.list(list(&[]), now, HOLD);
        assert_eq!(known.held(), Some((3, 3)));
        assert!(known.apply(service("a")).is_none());
        assert_eq!(known.held(), Some((2, 3)));
        // A list has the last word.
        assert_eq!(shown(&known.list(list(&["a", "b", "c"]), now + HOLD, HOLD)), [""; 0]);
        assert_eq!(known.held(), None);
        assert_eq!(shown(&known.believe(now + HOLD * 2)), [""; 0]);
    }

    #[test]
    fn a_deletion_that_was_seen_is_believed() {
        let now = Instant::now();
        let mut known = Known::default();
        known.list(list(&["a", "b", "c"]), now, HOLD);
        for name in ["a", "b", "c"] {
            assert!(known.delete(id(name)).is_some());
        }
        assert_eq!((known.held(), known.len()), (None, 0));
        assert!(known.delete(id("a")).is_none());
    }

    #[test]
    fn the_first_list_is_compared_with_what_an_earlier_agent_knew() {
        let now = Instant::now();
        let mut known = Known::remembered(objects(&["a", "b", "c"]));
        assert!(!known.is_listed());
        assert_eq!(shown(&known.list(list(&[]), now, HOLD)), [""; 0]);
        assert!(known.is_listed());
        assert_eq!(known.held(), Some((3, 3)));
    }

    #[test]
    fn without_a_hold_nothing_waits() {
        let now = Instant::now();
        let mut known = Known::remembered(objects(&["a"]));
        assert_eq!(shown(&known.list(list(&[]), now, Duration::ZERO)), ["-a"]);
    }
}
