//! What the API has said of everything that addresses are given by.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Service;
use serde_json::Value;
use tokio::time::Instant;

use crate::layer2::NodeFacts;
use crate::problem::Problems;
use crate::source::kube::brake::Doubt;
use crate::source::{Kind, ObjectId, Sourced};
use crate::vip::resources::{IpAddressPool, L2Advertisement, Read, Unreadable};
use crate::vip::{Facts, Labels, POOL_ANNOTATION, Reserved};

/// What is kept of an object.
#[derive(Clone, Debug)]
pub(super) enum Item {
    /// A Service that is a load balancer, or was one of ours.
    Service(Arc<Service>),
    /// Of a namespace.
    Labels(Labels),
    /// Of a Node: its addresses, and what announcing goes by.
    Node(Vec<IpAddr>, Box<NodeFacts>),
    /// Of a ServiceCIDR.
    Ranges(Vec<IpNet>),
    /// A pool.
    Pool(Box<Written<IpAddressPool>>),
    /// An advertisement.
    Advertisement(Box<Written<L2Advertisement>>),
    /// A slice of the Service of MetalLB's controller, and whether an endpoint of it is ready.
    MetalLb(bool),
    /// Nothing of interest here.
    Nothing,
}

/// One of MetalLB's resources.
#[derive(Clone, Debug)]
pub(super) struct Written<T> {
    /// `metadata.uid`.
    pub uid: String,
    /// `status`.
    pub status: Value,
    /// The object, or the last version of it that could be read.
    pub read: Option<Read<T>>,
    /// Why it cannot be read.
    pub error: Option<Unreadable>,
}

impl<T> Written<T> {
    /// Keeps what could be read before, if this can't.
    fn after(mut self, before: Self) -> Self {
        if self.read.is_none() {
            self.read = before.read;
        }
        self
    }

    fn is_usable(&self, id: &ObjectId, problems: &mut Problems) -> bool {
        if let Some(Unreadable { field, message }) = &self.error {
            let consequence = match &self.read {
                Some(_) => "its last good version stays in use",
                None => "no address is given or taken until it can be read",
            };
            let message = format!("{message}: {consequence}");
            problems.about("", &id.to_string()).error(field, message);
        }
        self.read.is_some()
    }
}

/// The objects of one kind.
#[derive(Debug, Default)]
struct Known {
    items: BTreeMap<ObjectId, Item>,
    is_listed: bool,
    missing: Doubt,
}

/// Everything.
#[derive(Debug)]
pub(super) struct Inputs {
    kinds: BTreeMap<Kind, Known>,
    /// Since when there is no pool.
    emptied: Option<Instant>,
    /// The API has no definition of pools (any more).
    is_undefined: bool,
    hold: Duration,
}

/// What a watch tells.
#[derive(Debug)]
pub(super) enum Heard {
    /// Every object of a kind.
    Listed(Kind, BTreeMap<ObjectId, Item>),
    /// An object is new or differs.
    Applied(ObjectId, Item),
    /// An object is gone.
    Deleted(ObjectId),
    /// The API has no such kind.
    Absent(Kind),
}

/// What has to be listed before anything is decided.
const NEEDED: [Kind; 7] = [
    Kind::Service,
    Kind::EndpointSlice,
    Kind::Node,
    Kind::Namespace,
    Kind::ServiceCidr,
    Kind::IpAddressPool,
    Kind::L2Advertisement,
];

/// What has to be listed before anything is announced.
const NEEDED_TO_ANNOUNCE: [Kind; 4] =
    [Kind::EndpointSlice, Kind::Node, Kind::IpAddressPool, Kind::L2Advertisement];

impl Inputs {
    /// Nothing yet. Lists that lack most of what was there are not believed for so long.
    pub(super) fn new(hold: Duration, now: Instant) -> Self {
        Self { kinds: BTreeMap::new(), emptied: Some(now), is_undefined: false, hold }
    }

    /// Takes what a watch tells.
    pub(super) fn take(&mut self, heard: Heard, now: Instant) {
        match heard {
            Heard::Listed(kind, list) => {
                if kind == Kind::IpAddressPool && std::mem::take(&mut self.is_undefined) {
                    // Whoever has made the definition is about to make pools.
                    self.emptied = None;
                }
                let known = self.kinds.entry(kind).or_default();
                known.is_listed = true;
                let before = known.items.len();
                let missing: BTreeSet<_> =
                    known.items.keys().filter(|id| !list.contains_key(id)).cloned().collect();
                for id in known.missing.list(before, missing, now, self.hold) {
                    known.items.remove(&id);
                }
                list.into_iter().for_each(|(id, item)| known.insert(id, item));
            }
            Heard::Applied(id, item) => {
                let known = self.kinds.entry(id.kind).or_default();
                known.missing.heard(&id);
                known.insert(id, item);
            }
            Heard::Deleted(id) => {
                let known = self.kinds.entry(id.kind).or_default();
                known.missing.heard(&id);
                known.items.remove(&id);
            }
            // Older servers have no ServiceCIDRs. A cluster without advertisements announces nothing,
            // which is none of our business here. But without pools everything would be taken back.
            Heard::Absent(kind @ (Kind::ServiceCidr | Kind::L2Advertisement)) => {
                self.kinds.entry(kind).or_default().is_listed = true;
            }
            Heard::Absent(kind) => self.is_undefined |= kind == Kind::IpAddressPool,
        }
        let has_pools = self.items(Kind::IpAddressPool).next().is_some();
        self.emptied = if has_pools { None } else { self.emptied.or(Some(now)) };
    }

    /// Believes what was missing for long enough.
    pub(super) fn tick(&mut self, now: Instant) {
        for known in self.kinds.values_mut() {
            for id in known.missing.believe(now) {
                known.items.remove(&id);
            }
        }
    }

    /// When there is something to do although nothing was heard.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        let doubts = self.kinds.values().filter_map(|known| known.missing.due());
        let empty = self.emptied.map(|since| since + self.hold).filter(|due| *due > now);
        doubts.chain(empty).min()
    }

    /// Why nothing is decided for now. That there is no pool (any more), where Services name some, is
    /// not believed at once: an uninstall may have taken the definition with it, and whoever has just got
    /// the lease remembers nothing. Without a definition it is not believed at all.
    pub(super) fn waiting(&self, now: Instant) -> Option<String> {
        let missing =
            NEEDED.iter().find(|kind| self.kinds.get(kind).is_none_or(|it| !it.is_listed));
        if let Some(kind) = missing {
            return Some(format!("{kind}s were not listed yet"));
        }
        if self.is_undefined {
            return Some("the API has no definition of IPAddressPools any more".to_owned());
        }
        let unreadable = self.items(Kind::IpAddressPool).find_map(|(id, item)| match item {
            Item::Pool(pool) if pool.read.is_none() => Some(id),
            _ => None,
        });
        if let Some(id) = unreadable {
            return Some(format!("{id} cannot be read"));
        }
        let names_a_pool = |service: &Service| {
            let annotations = service.metadata.annotations.as_ref();
            annotations.is_some_and(|annotations| annotations.contains_key(POOL_ANNOTATION))
        };
        let is_doubtful = self.emptied.is_some_and(|since| now < since + self.hold);
        (is_doubtful && self.services().any(|service| names_a_pool(service))).then(|| {
            let seconds = self.hold.as_secs();
            format!("there are no pools, though Services have addresses of some: for {seconds} s")
        })
    }

    /// All Services of interest.
    pub(super) fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.items(Kind::Service).filter_map(|(_, item)| match item {
            Item::Service(service) => Some(service),
            _ => None,
        })
    }

    /// One of them.
    pub(super) fn service(&self, id: &ObjectId) -> Option<&Arc<Service>> {
        match self.kinds.get(&Kind::Service)?.items.get(id)? {
            Item::Service(service) => Some(service),
            _ => None,
        }
    }

    /// The pools and advertisements: `metadata.uid` and `status`.
    pub(super) fn resources(&self) -> impl Iterator<Item = (&ObjectId, &str, &Value)> {
        let kinds = [Kind::IpAddressPool, Kind::L2Advertisement].into_iter();
        kinds.flat_map(|kind| self.items(kind)).filter_map(|(id, item)| match item {
            Item::Pool(pool) => Some((id, pool.uid.as_str(), &pool.status)),
            Item::Advertisement(it) => Some((id, it.uid.as_str(), &it.status)),
            _ => None,
        })
    }

    /// All Nodes.
    pub(super) fn nodes(&self) -> impl Iterator<Item = &NodeFacts> {
        self.items(Kind::Node).filter_map(|(_, item)| match item {
            Item::Node(_, facts) => Some(&**facts),
            _ => None,
        })
    }

    /// Whether it is known from where which addresses are announced. That pools are gone is not believed
    /// sooner than by those who take addresses back.
    pub(super) fn are_announced(&self, now: Instant) -> bool {
        let is_listed = |kind| self.kinds.get(kind).is_some_and(|known| known.is_listed);
        NEEDED_TO_ANNOUNCE.iter().all(is_listed)
            && !self.is_undefined
            && self.emptied.is_none_or(|since| now >= since + self.hold)
    }

    /// Whether a slice of MetalLB's controller is there, and one has a ready endpoint.
    pub(super) fn metallb(&self) -> (bool, bool) {
        let mut slices = self.items(Kind::EndpointSlice).filter_map(|(_, item)| match item {
            Item::MetalLb(is_ready) => Some(*is_ready),
            _ => None,
        });
        match slices.next() {
            None => (false, false),
            Some(is_ready) => (true, is_ready || slices.any(|is_ready| is_ready)),
        }
    }

    /// What addresses are given by.
    pub(super) fn facts(
        &self,
        pool_namespaces: &BTreeSet<String>,
        service_cidrs: &[IpNet],
    ) -> (Facts, Problems) {
        let mut problems = Problems::default();
        let mut facts = Facts {
            pool_namespaces: pool_namespaces.clone(),
            reserved: Reserved { service_cidrs: service_cidrs.to_vec(), ..Reserved::default() },
            ..Facts::default()
        };
        for (id, item) in self.kinds.values().flat_map(|known| &known.items) {
            match item {
                Item::Labels(labels) => {
                    facts.namespaces.insert(id.name.to_string(), labels.clone());
                }
                Item::Node(addresses, _) => {
                    let name = id.name.to_string();
                    let nodes = addresses.iter().map(|addr| (*addr, name.clone()));
                    facts.reserved.nodes.extend(nodes);
                }
                Item::Ranges(ranges) => facts.reserved.service_cidrs.extend(ranges),
                Item::Pool(pool) if pool.is_usable(id, &mut problems) => {
                    facts.pools.extend(pool.read.clone().map(|read| Sourced::new("", read)));
                }
                Item::Advertisement(it) if it.is_usable(id, &mut problems) => {
                    facts.advertisements.extend(it.read.clone().map(|read| Sourced::new("", read)));
                }
                _ => {}
            }
        }
        (facts, problems)
    }

    fn items(&self, kind: Kind) -> impl Iterator<Item = (&ObjectId, &Item)> {
        self.kinds.get(&kind).into_iter().flat_map(|known| &known.items)
    }
}

impl Known {
    fn insert(&mut self, id: ObjectId, item: Item) {
        let item = match (item, self.items.remove(&id)) {
            (Item::Nothing, _) => return,
            (Item::Pool(new), Some(Item::Pool(old))) => Item::Pool(Box::new(new.after(*old))),
            (Item::Advertisement(new), Some(Item::Advertisement(old))) => {
                Item::Advertisement(Box::new(new.after(*old)))
            }
            (item, _) => item,
        };
        self.items.insert(id, item);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::vip::resources::read;

    const HOLD: Duration = Duration::from_secs(30);

    fn pool(name: &str, spec: Value) -> (ObjectId, Item) {
        let object = json!({"metadata": {"namespace": "lb", "name": name}, "spec": spec});
        let (read, error) = match read(&object) {
            Ok(read) => (Some(read), None),
            Err(error) => (None, Some(error)),
        };
        let id = ObjectId::new(Kind::IpAddressPool, Some("lb"), name);
        let uid = name.to_owned();
        (id, Item::Pool(Box::new(Written { uid, status: Value::Null, read, error })))
    }

    fn good(name: &str) -> (ObjectId, Item) {
        pool(name, json!({"addresses": ["192.0.2.0/30"]}))
    }

    fn listed(now: Instant) -> Inputs {
        let mut inputs = Inputs::new(HOLD, now);
        for kind in NEEDED {
            inputs.take(Heard::Listed(kind, BTreeMap::new()), now);
        }
        inputs
    }

    fn named(name: &str, annotation: &str) -> (ObjectId, Item) {
        let service = json!({"metadata": {
            "namespace": "shop", "name": name, "annotations": {annotation: "a"},
        }});
        let service: Service = serde_json::from_value(service).unwrap();
        let id = ObjectId::of(Kind::Service, &service.metadata);
        (id, Item::Service(Arc::new(service)))
    }

    fn pools(inputs: &Inputs) -> usize {
        inputs.facts(&BTreeSet::new(), &[]).0.pools.len()
    }

    #[test]
    fn nothing_is_decided_before_everything_is_listed() {
        let now = Instant::now();
        let mut inputs = Inputs::new(HOLD, now);
        for kind in NEEDED {
            assert!(inputs.waiting(now).unwrap().contains("listed"), "{kind}");
            match kind {
                Kind::ServiceCidr | Kind::L2Advertisement => {
                    inputs.take(Heard::Absent(kind), now);
                }
                _ => {
                    inputs.take(Heard::Absent(kind), now);
                    assert!(inputs.waiting(now).is_some(), "{kind}");
                    inputs.take(Heard::Listed(kind, BTreeMap::new()), now);
                }
            }
        }
        assert_eq!(inputs.waiting(now), None);
    }

    #[test]
    fn a_first_list_without_pools_is_doubted_while_services_name_some() {
        let now = Instant::now();
        let mut inputs = listed(now);
        let (id, item) = named("x", "example.com/other");
        inputs.take(Heard::Applied(id, item), now);
        assert_eq!(inputs.waiting(now), None);
        let (id, item) = named("y", POOL_ANNOTATION);
        inputs.take(Heard::Applied(id, item), now);
        assert!(inputs.waiting(now).unwrap().contains("no pools"));
        assert_eq!(inputs.due(now), Some(now + HOLD));
        assert_eq!(inputs.waiting(now + HOLD), None);
        let (id, item) = good("a");
        inputs.take(Heard::Applied(id, item), now);
        assert_eq!(inputs.waiting(now), None);
    }

    #[test]
    fn that_the_last_pool_is_gone_is_doubted_and_without_a_definition_not_believed() {
        let now = Instant::now();
        let mut inputs = listed(now);
        for (id, item) in [named("y", POOL_ANNOTATION), good("a")] {
            inputs.take(Heard::Applied(id, item), now);
        }
        let later = now + HOLD * 2;
        inputs.take(Heard::Deleted(good("a").0), later);
        assert!(inputs.waiting(later).unwrap().contains("no pools"));
        assert_eq!(inputs.due(later), Some(later + HOLD));
        assert_eq!(inputs.waiting(later + HOLD), None);

        inputs.take(Heard::Absent(Kind::IpAddressPool), later);
        let much_later = later + HOLD * 9;
        assert!(inputs.waiting(much_later).unwrap().contains("no definition"));
        // It is back, and pools are on their way.
        inputs.take(Heard::Listed(Kind::IpAddressPool, BTreeMap::new()), much_later);
        assert!(inputs.waiting(much_later).unwrap().contains("no pools"));
        assert_eq!(inputs.waiting(much_later + HOLD), None);
    }

    #[test]
    fn a_list_that_lacks_most_of_the_pools_is_not_believed_at_once() {
        let now = Instant::now();
        let mut inputs = listed(now);
        let all = BTreeMap::from([good("a"), good("b"), good("c")]);
        inputs.take(Heard::Listed(Kind::IpAddressPool, all), now);
        inputs.take(Heard::Listed(Kind::IpAddressPool, [good("a")].into()), now);
        assert_eq!(pools(&inputs), 3);
        // What a watch reports needs no second thought.
        inputs.take(Heard::Deleted(good("b").0), now);
        assert_eq!(pools(&inputs), 2);
        inputs.tick(now + HOLD);
        assert_eq!(pools(&inputs), 1);
    }

    #[test]
    fn a_pool_that_cannot_be_read_keeps_its_last_good_version() {
        let now = Instant::now();
        let mut inputs = listed(now);
        let (id, bad) = pool("a", json!({"addresses": 7}));
        inputs.take(Heard::Applied(id.clone(), bad.clone()), now);
        assert!(inputs.waiting(now).unwrap().contains("IPAddressPool lb/a cannot be read"));
        let (_, item) = good("a");
        inputs.take(Heard::Applied(id.clone(), item), now);
        inputs.take(Heard::Applied(id, bad), now);
        assert_eq!(inputs.waiting(now), None);
        let (facts, problems) = inputs.facts(&BTreeSet::new(), &[]);
        assert_eq!(facts.pools.len(), 1);
        let problems = problems.into_sorted();
        let text = problems[0].to_string();
        assert!(text.contains("spec.addresses") && text.contains("last good version"), "{text}");
    }

    #[test]
    fn metallb_is_there_while_a_slice_is_and_alive_while_one_is_ready() {
        let now = Instant::now();
        let mut inputs = listed(now);
        assert_eq!(inputs.metallb(), (false, false));
        let id = |name| ObjectId::new(Kind::EndpointSlice, Some("metallb-system"), name);
        inputs.take(Heard::Applied(id("a"), Item::MetalLb(false)), now);
        assert_eq!(inputs.metallb(), (true, false));
        inputs.take(Heard::Applied(id("b"), Item::MetalLb(true)), now);
        assert_eq!(inputs.metallb(), (true, true));
        inputs.take(Heard::Applied(id("b"), Item::Nothing), now);
        assert_eq!(inputs.metallb(), (true, false));
    }
}
