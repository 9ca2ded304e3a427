//! Events for the authors of Services, with MetalLB's reasons.
//!
//! What was done is told when it is written, once. What is wrong is true in every pass, and told when it
//! is something new. Names follow from what is said, so that an agent which gets the lease does not
//! say it all again: it learns that the Event exists.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::sync::mpsc;

use super::inputs::Inputs;
use crate::source::ObjectId;
use crate::source::kube::events::queue::{QUEUE, Telling};
use crate::source::kube::events::report::{event_name, shortened};
use crate::source::kube::events::{Counts, add};
use crate::vip::{self, Reason};

const ACTION: &str = "Allocating";

/// Knows what was told.
#[derive(Debug)]
pub(super) struct Teller {
    queue: mpsc::Sender<Telling>,
    counts: Arc<Counts>,
    /// What is wrong, as it was told last.
    told: BTreeMap<(ObjectId, Reason), (String, String)>,
}

impl Teller {
    /// And what it has to tell, for [`queue::run`](crate::source::kube::events::queue::run).
    pub(super) fn new(counts: Arc<Counts>) -> (Self, mpsc::Receiver<Telling>) {
        let (queue, receiver) = mpsc::channel(QUEUE);
        (Self { queue, counts, told: BTreeMap::new() }, receiver)
    }

    /// Tells what is new of what a pass has found. `written` are the Services that have what was
    /// decided. Never waits.
    pub(super) fn tell(
        &mut self,
        events: &[vip::Event],
        written: &BTreeSet<ObjectId>,
        inputs: &Inputs,
    ) {
        let mut lasting = BTreeMap::new();
        for vip::Event { service, reason, message } in events {
            let Some(object) = inputs.service(service) else { continue };
            let uid = object.metadata.uid.clone().unwrap_or_default();
            let is_of_moment = matches!(reason, Reason::IpAllocated | Reason::ClearAssignment);
            let note = shortened(message.clone());
            // What happens to another version of the Service is something else.
            let version = object.metadata.resource_version.as_deref().unwrap_or_default();
            let version = if is_of_moment { version } else { "" };
            let name = event_name(service, &[&uid, reason.as_str(), &note, version]);
            let is_new = if is_of_moment {
                written.contains(service)
            } else {
                let said = (uid.clone(), note.clone());
                let is_new = self.told.get(&(service.clone(), *reason)) != Some(&said);
                lasting.insert((service.clone(), *reason), said);
                is_new
            };
            if is_new {
                let telling = Telling {
                    name,
                    object: service.clone(),
                    uid,
                    reason: reason.as_str(),
                    note,
                    is_warning: reason.is_warning(),
                    action: ACTION,
                };
                if self.queue.try_send(telling).is_err() {
                    add(&self.counts.overflow, 1);
                }
            }
        }
        self.told = lasting;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use k8s_openapi::api::core::v1::Service;
    use serde_json::json;
    use tokio::time::Instant;

    use super::super::inputs::{Heard, Item};
    use super::*;
    use crate::source::Kind;

    struct World {
        inputs: Inputs,
        teller: Teller,
        queue: mpsc::Receiver<Telling>,
    }

    impl World {
        fn new() -> Self {
            let (teller, queue) = Teller::new(Arc::default());
            let inputs = Inputs::new(Duration::ZERO, Instant::now());
            Self { inputs, teller, queue }
        }

        fn service(&mut self, uid: &str, version: &str) -> ObjectId {
            let service: Service = serde_json::from_value(json!({"metadata": {
                "name": "web", "namespace": "shop", "uid": uid, "resourceVersion": version,
            }}))
            .unwrap();
            let id = ObjectId::of(Kind::Service, &service.metadata);
            let heard = Heard::Applied(id.clone(), Item::Service(Arc::new(service)));
            self.inputs.take(heard, Instant::now());
            id
        }

        /// Names of what is told.
        fn tell(&mut self, reason: Reason, message: &str, is_written: bool) -> Vec<String> {
            let service = ObjectId::new(Kind::Service, Some("shop"), "web");
            let written = is_written.then(|| service.clone()).into_iter().collect();
            let event = vip::Event { service, reason, message: message.to_owned() };
            self.teller.tell(&[event], &written, &self.inputs);
            let mut names = Vec::new();
            while let Ok(telling) = self.queue.try_recv() {
                assert_eq!(telling.note, message);
                names.push(telling.name);
            }
            names
        }
    }

    #[test]
    fn what_lasts_is_told_when_it_is_something_new() {
        let mut world = World::new();
        world.service("u", "1");
        let failed = Reason::AllocationFailed;
        let [first] = &world.tell(failed, "x", false)[..] else { panic!("not told") };
        world.service("u", "2");
        assert!(world.tell(failed, "x", true).is_empty());
        assert_eq!(world.tell(failed, "y", false).len(), 1);
        // Whoever has the lease next says it under the same name.
        let mut other = World::new();
        other.service("u", "3");
        assert_eq!(&other.tell(failed, "x", false)[0], first);
        // Another Service of the name is another one.
        world.service("v", "4");
        assert_ne!(&world.tell(failed, "x", false)[0], first);
        // What was over is something new.
        world.teller.tell(&[], &BTreeSet::new(), &world.inputs);
        assert_eq!(world.tell(failed, "x", false).len(), 1);
    }

    #[test]
    fn what_is_done_is_told_when_it_is_written() {
        let mut world = World::new();
        world.service("u", "1");
        let given = Reason::IpAllocated;
        assert!(world.tell(given, "x", false).is_empty());
        let first = world.tell(given, "x", true);
        world.service("u", "9");
        let second = world.tell(given, "x", true);
        assert_eq!((first.len(), second.len()), (1, 1));
        assert_ne!(first, second);
        assert!(world.tell(given, "x", false).is_empty());
    }

    #[test]
    fn what_does_not_fit_is_counted() {
        let mut world = World::new();
        world.service("u", "1");
        let service = ObjectId::new(Kind::Service, Some("shop"), "web");
        for number in 0..QUEUE + 3 {
            let reason = Reason::AllocationFailed;
            let event =
                vip::Event { service: service.clone(), reason, message: number.to_string() };
            world.teller.tell(&[event], &BTreeSet::new(), &world.inputs);
        }
        assert_eq!(world.teller.counts.dropped()[0], ("overflow", 3));
    }
}
