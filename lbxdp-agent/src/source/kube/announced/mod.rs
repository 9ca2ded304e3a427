//! What this node announces, told to the API: Events on Services with MetalLB's reasons, and a
//! ServiceL2Status for each (`statuses`).
//!
//! Nothing of it is in the way of announcing, which does not wait for the API.

mod statuses;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use kube::Client;
use tokio::sync::{mpsc, watch};

use self::statuses::Statuses;
use super::events::queue::{QUEUE, Telling};
use super::events::report::{event_name, shortened};
use super::events::{self, Counts, Events, Report, add, queue};
use crate::layer2::Seen;
use crate::model::Reason;
use crate::source::ObjectId;

/// As MetalLB has it.
const ASSIGNED: &str = "nodeAssigned";
const ACTION: &str = "Announcing";

/// Tells it, for ever.
pub(super) async fn run(
    client: Client,
    namespace: String,
    node: String,
    seen: watch::Receiver<Arc<Seen>>,
    counts: Arc<Counts>,
) {
    let (sender, queue) = mpsc::channel(QUEUE);
    let (events, reports) = Events::new();
    let teller =
        Teller { node: node.clone(), queue: sender, events, counts, told: BTreeMap::new() };
    let statuses = Statuses::new(client.clone(), &namespace, &node);
    let counts = Arc::clone(&teller.counts);
    tokio::join!(
        teller.run(seen.clone()),
        statuses.run(seen),
        queue::run(queue, client.clone(), &node, &counts),
        events::run(reports, client, node.clone(), Arc::clone(&counts)),
    );
}

/// Makes Events.
struct Teller {
    node: String,
    /// What has happened,
    queue: mpsc::Sender<Telling>,
    /// and what is wrong as long as it lasts.
    events: Events,
    counts: Arc<Counts>,
    /// Services that are announced from here, with their `metadata.uid`.
    told: BTreeMap<ObjectId, String>,
}

impl Teller {
    async fn run(mut self, mut seen: watch::Receiver<Arc<Seen>>) {
        while seen.changed().await.is_ok() {
            let latest = Arc::clone(&seen.borrow_and_update());
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            for telling in self.assigned(&latest, now.as_millis()) {
                if self.queue.try_send(telling).is_err() {
                    add(&self.counts.overflow, 1);
                }
            }
            self.events.set(failed(&latest));
        }
    }

    /// What is announced since `now`, whatever number that is.
    fn assigned(&mut self, seen: &Seen, now: u128) -> Vec<Telling> {
        let Some(announced) = seen.announced() else { return Vec::new() };
        let uid = |uid: &Option<Box<str>>| uid.as_deref().unwrap_or_default().to_owned();
        let all: BTreeMap<ObjectId, String> =
            announced.into_iter().map(|(id, (it, _))| (id.clone(), uid(&it.uid))).collect();
        let new = all.iter().filter(|(id, uid)| self.told.get(id) != Some(uid));
        let note = format!("announcing from node \"{}\" with protocol \"layer2\"", self.node);
        let new = new.map(|(id, uid)| Telling {
            // What happens again is told again.
            name: event_name(id, &[uid, ASSIGNED, &note, &now.to_string()]),
            object: id.clone(),
            uid: uid.clone(),
            reason: ASSIGNED,
            note: note.clone(),
            is_warning: false,
            action: ACTION,
        });
        let new = new.collect();
        self.told = all;
        new
    }
}

/// What cannot be announced.
fn failed(seen: &Seen) -> Vec<Report> {
    let uid = |id: &ObjectId| Some(seen.balancers.as_ref()?.get(id)?.uid.as_deref()?.to_owned());
    let failed = seen.failed().into_iter();
    let failed = failed.filter_map(|(id, why)| {
        let note = format!(
            "node \"{}\" cannot announce it with protocol \"layer2\": {why}",
            seen.here.name
        );
        let reason = Reason::AnnounceFailed;
        Some(Report { uid: uid(&id)?, object: id, reason, note: shortened(note) })
    });
    failed.collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::{Value, json};

    use super::*;
    use crate::layer2::{Balancer, Here, NodeFacts, Resources};
    use crate::members::{Devices, Members, Says};
    use crate::source::{Kind, Sourced};
    use crate::vip::Facts;
    use crate::vip::resources::read;

    /// What "n1" sees, with Services of these names at 192.0.2.1 and so on; those in `answered` it
    /// answers for.
    fn seen(services: &[&str], answered: &[u8], advertisement: &Value) -> Seen {
        let object =
            |spec: &Value| json!({"metadata": {"name": "a", "namespace": "lb"}, "spec": spec});
        let facts = Facts {
            pools: vec![Sourced::new(
                "",
                read(&object(&json!({"addresses": ["192.0.2.0/28"]}))).unwrap(),
            )],
            advertisements: vec![Sourced::new("", read(&object(advertisement)).unwrap())],
            ..Facts::default()
        };
        let nodes =
            ["n1", "n2"].map(|name| NodeFacts { name: name.to_owned(), ..NodeFacts::default() });
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<BTreeSet<_>>();
        let balancers = (1..).zip(services).map(|(host, name)| {
            let balancer = Balancer {
                uid: Some(format!("uid of {name}").into()),
                addresses: vec![[192, 0, 2, host].into()],
                endpoints: names(&["n1"]),
                ..Balancer::default()
            };
            (ObjectId::new(Kind::Service, Some("shop"), name), Arc::new(balancer))
        });
        Seen {
            is_off: false,
            here: Here {
                name: "n1".to_owned(),
                is_healthy: true,
                is_leaving: false,
                devices: names(&["eth0"]),
            },
            resources: Some(Arc::new(Resources::new(&facts, nodes.into(), true))),
            balancers: Some(Arc::new(balancers.collect())),
            members: Members { alive: names(&["n1", "n2"]), ..Members::default() },
            answered: answered
                .iter()
                .map(|host| ([192, 0, 2, *host].into(), "eth0".to_owned()))
                .collect(),
            failures: BTreeMap::new(),
        }
    }

    fn teller() -> Teller {
        let (queue, _) = mpsc::channel(QUEUE);
        let (events, _) = Events::new();
        Teller {
            node: "n1".to_owned(),
            queue,
            events,
            counts: Arc::default(),
            told: BTreeMap::new(),
        }
    }

    #[test]
    fn an_address_is_told_of_when_it_begins_to_be_announced() {
        let mut teller = teller();
        let mut tell = |services: &[&str], answered: &[u8], now| {
            let told = teller.assigned(&seen(services, answered, &json!({})), now);
            told.into_iter()
                .map(|it| (it.object.name.to_string(), it.uid, it.name))
                .collect::<Vec<_>>()
        };
        assert!(tell(&["web", "mail"], &[], 1).is_empty());
        let first = tell(&["web", "mail"], &[1], 2);
        assert_eq!(first.len(), 1);
        assert_eq!((first[0].0.as_str(), first[0].1.as_str()), ("web", "uid of web"));
        assert!(tell(&["web", "mail"], &[1], 3).is_empty());
        // It has moved away and back.
        assert!(tell(&["web", "mail"], &[], 4).is_empty());
        let second = tell(&["web", "mail"], &[1, 2], 5);
        assert_eq!(second.iter().map(|it| it.0.as_str()).collect::<Vec<_>>(), ["mail", "web"]);
        assert_ne!(second[1].2, first[0].2);
        let telling = &teller.assigned(&seen(&["other"], &[1], &json!({})), 6)[0];
        assert_eq!(telling.note, "announcing from node \"n1\" with protocol \"layer2\"");
        assert_eq!((telling.reason, telling.is_warning), ("nodeAssigned", false));
    }

    #[test]
    fn what_this_node_should_announce_and_cannot_is_told_of() {
        let services: Vec<String> = (1..=14).map(|number| format!("s{number}")).collect();
        let services: Vec<&str> = services.iter().map(String::as_str).collect();
        let notes = |seen: &Seen| {
            let told = failed(seen).into_iter();
            told.map(|it| (it.object.name.to_string(), it.note)).collect::<Vec<_>>()
        };
        // Those of which it is the owner, and no others.
        let told = notes(&seen(&services, &[], &json!({"interfaces": ["eth9"]})));
        assert!(!told.is_empty() && told.len() < services.len(), "{told:?}");
        let expected = "node \"n1\" cannot announce it with protocol \"layer2\": none of the devices \
                        that are named is there and carries frames";
        assert!(told.iter().all(|(_, note)| note == expected), "{told:?}");
        // What the other one says of itself decides, where it says something.
        for (device, is_told) in [("eth0", true), ("eth9", false)] {
            let mut seen = seen(&services, &[], &json!({"interfaces": ["eth9"]}));
            let says = Says { devices: Devices::of([device]), ..Says::default() };
            seen.members.says.insert("n2".to_owned(), says);
            let expected = if is_told { told.clone() } else { Vec::new() };
            assert_eq!(notes(&seen), expected, "n2 has {device}");
        }
        // Of a node without any device the others know, and one of them announces it if there is one.
        let mut none = seen(&services, &[], &json!({}));
        none.here.devices.clear();
        assert!(notes(&none).is_empty());
        none.members.alive.remove("n2");
        assert_eq!(notes(&none).len(), services.len());
        // What the kernel did not take.
        let mut full = seen(&services, &[], &json!({}));
        full.failures = [("answering for addresses", "map announced_v4: full".to_owned())].into();
        let missing = notes(&full);
        let names =
            |told: &[(String, String)]| told.iter().map(|it| it.0.clone()).collect::<Vec<_>>();
        assert_eq!(names(&missing), names(&told));
        assert!(missing[0].1.ends_with("answering for addresses: map announced_v4: full"));
        let all: Vec<u8> = (1..=14).collect();
        assert!(notes(&seen(&services, &all, &json!({}))).is_empty());
        full.members.isolated = true;
        assert!(notes(&full).is_empty());
    }
}
