//! EndpointSlices: what is read of each, and the endpoints of a Service's ports by them.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::Arc;

use k8s_openapi::api::discovery::v1::{
    Endpoint as WrittenEndpoint, EndpointConditions, EndpointPort, EndpointSlice,
};

use super::address;
use super::ports::{Port, number, protocol};
use super::service::{HEADLESS_LABEL, PROXY_NAME_LABEL, Plan};
use super::topology::{self, Hint, Hints};
use crate::model::{Family, Problem, Protocol};
use crate::problem::{Problems, Reporter, quoted};
use crate::source::{Kind, ObjectId, Sourced};

/// Names the Service that a slice belongs to.
pub(super) const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// One endpoint of one port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// On this node. The name of the node decides, not its addresses.
    pub local: bool,
    /// Whether it may get new connections.
    pub state: State,
    /// For whom it is meant.
    pub hints: Hints,
    /// Its node is dead, as far as this one knows.
    pub is_dead: bool,
}

/// Whether an endpoint may get new connections. Later ones allow more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum State {
    /// Never, and what it has is over as well.
    Unusable,
    /// Never, but it says that it serves: it keeps what it has.
    Serving,
    /// If nobody is ready: it ends, but still serves (KEP-1669).
    Draining,
    /// Yes. A terminating one too, if the slice says so: that is how `publishNotReadyAddresses`
    /// reaches a proxy.
    Ready,
}

impl State {
    /// Absent means ready, serving and not terminating.
    fn of(conditions: Option<&EndpointConditions>) -> Self {
        let says = |condition: fn(&EndpointConditions) -> Option<bool>, absent| {
            conditions.and_then(condition).unwrap_or(absent)
        };
        if says(|c| c.ready, true) {
            Self::Ready
        } else if !says(|c| c.serving, true) {
            Self::Unusable
        } else if says(|c| c.terminating, false) {
            Self::Draining
        } else {
            Self::Serving
        }
    }
}

impl Endpoint {
    /// Whether load balancers are to know of it.
    pub(super) fn is_local_and_ready(&self) -> bool {
        self.local && self.state == State::Ready
    }

    /// One endpoint of two that slices have on the same address. Of what they say differently
    /// that which allows more wins, so that the order of slices doesn't matter. kube-proxy too
    /// prefers a local duplicate, but for the rest takes what it happens to see first.
    fn merge(self, other: Self) -> Self {
        let hints = match self.state.cmp(&other.state) {
            // One that is behind has hints of the past.
            Ordering::Less => other.hints,
            Ordering::Equal => self.hints.merge(other.hints),
            Ordering::Greater => self.hints,
        };
        let (local, state) = (self.local || other.local, self.state.max(other.state));
        Self { local, state, hints, is_dead: self.is_dead && other.is_dead }
    }
}

/// The endpoints of one Service port by address. An address that several slices carry is one
/// endpoint: endpoints move between slices, and both may be there for a while.
pub(super) type Endpoints = BTreeMap<SocketAddr, Endpoint>;

/// What of a slice counts, read once. What its Service and the node's zone make of it is not in
/// here: they change without it.
#[derive(Clone, Debug, Default)]
pub(super) struct Slice {
    /// The Service that it belongs to; none if it is not used.
    pub service: Option<ObjectId>,
    endpoints: Box<[Listed]>,
    ports: Box<[ListedPort]>,
    /// What is wrong with it, whether or not its Service is served.
    pub problems: Vec<Problem>,
    /// What is wrong with it if its Service is served.
    problems_if_served: Vec<Problem>,
}

/// Names of the nodes where endpoints are, each once: there are a hundred times as many endpoints.
#[derive(Clone, Debug, Default)]
pub(super) struct Names {
    names: Vec<Arc<str>>,
    ids: BTreeMap<Arc<str>, NonZeroU32>,
}

impl Names {
    fn id(&mut self, name: &str) -> Option<NonZeroU32> {
        if let Some(id) = self.ids.get(name) {
            return Some(*id);
        }
        let name: Arc<str> = name.into();
        self.names.push(Arc::clone(&name));
        let id = u32::try_from(self.names.len()).ok().and_then(NonZeroU32::new)?;
        self.ids.insert(name, id);
        Some(id)
    }

    /// The ids of those of these names that endpoints have.
    pub(super) fn known<'a>(
        &self,
        names: impl Iterator<Item = &'a String>,
    ) -> BTreeSet<NonZeroU32> {
        names.filter_map(|name| self.ids.get(name.as_str()).copied()).collect()
    }

    fn name(&self, id: NonZeroU32) -> Option<&str> {
        let place = usize::try_from(id.get()).ok()?.checked_sub(1)?;
        self.names.get(place).map(|name| &**name)
    }
}

/// An endpoint of a slice.
#[derive(Clone, Debug)]
struct Listed {
    addr: IpAddr,
    local: bool,
    state: State,
    /// Where it is, by [`Names`].
    node: Option<NonZeroU32>,
    for_node: Hint,
    /// Zones that it is meant for.
    zones: Box<[Box<str>]>,
}

/// A port of a slice.
#[derive(Clone, Debug)]
struct ListedPort {
    index: usize,
    name: Box<str>,
    protocol: Protocol,
    /// As it is written.
    number: Option<i32>,
}

impl Slice {
    /// Reads a slice, on the node with this name.
    pub(super) fn read(
        id: &ObjectId,
        sourced: &Sourced<impl AsRef<EndpointSlice>>,
        node: &str,
        names: &mut Names,
    ) -> Self {
        let slice = sourced.object.as_ref();
        let label = |key| slice.metadata.labels.as_ref().and_then(|labels| labels.get(key));
        if label(PROXY_NAME_LABEL).is_some() || label(HEADLESS_LABEL).is_some() {
            return Self::default();
        }
        let mut problems = Problems::default();
        let mut report = problems.about(&sourced.origin, &id.to_string());
        let Some(name) = label(SERVICE_NAME_LABEL).filter(|name| !name.is_empty()) else {
            let message = format!("no label {SERVICE_NAME_LABEL}: the slice is not used");
            report.error(LABELS, message);
            return Self { problems: problems.into_sorted(), ..Self::default() };
        };
        let mut read = Self {
            service: Some(ObjectId::new(Kind::Service, Some(&id.namespace), name)),
            ..Self::default()
        };
        if let Some(family) = family(&slice.address_type, &mut report) {
            read.endpoints =
                endpoints(slice.endpoints.as_deref(), family, node, names, &mut report);
            let ports = slice.ports.as_deref().unwrap_or_default();
            if ports.is_empty() && !read.endpoints.is_empty() {
                report.warning("ports", "empty: the endpoints of the slice are not used");
            }
            let ports = ports.iter().enumerate();
            read.ports =
                ports.filter_map(|(i, port)| ListedPort::read(i, port, &mut report)).collect();
        }
        read.problems_if_served = problems.into_sorted();
        read
    }

    /// Names of the nodes with endpoints that get connections, terminating ones among them; empty for an
    /// endpoint that is on none.
    pub(super) fn nodes<'a>(&'a self, names: &'a Names) -> impl Iterator<Item = &'a str> {
        let usable = self.endpoints.iter().filter(|endpoint| endpoint.state >= State::Draining);
        usable.map(|endpoint| endpoint.node.and_then(|id| names.name(id)).unwrap_or_default())
    }

    /// Whether an endpoint is on one of these nodes.
    pub(super) fn is_on(&self, nodes: &BTreeSet<NonZeroU32>) -> bool {
        self.endpoints.iter().any(|listed| listed.is_on(nodes))
    }

    /// Says that there is no such Service.
    pub(super) fn report_missing(service: &ObjectId, report: &mut Reporter<'_>) {
        report.warning(LABELS, format!("there is no {service}: the slice is not used"));
    }
}

const LABELS: &str = "metadata.labels";

impl ListedPort {
    fn read(index: usize, port: &EndpointPort, report: &mut Reporter<'_>) -> Option<Self> {
        let Some(protocol) = protocol(port.protocol.as_deref()) else {
            let value = quoted(port.protocol.as_deref().unwrap_or_default());
            let message = format!("{value} is none of TCP, UDP, SCTP: this port is not used");
            report.error(format!("ports[{index}].protocol"), message);
            return None;
        };
        // The API server fills in an empty name; a file may leave it away.
        let name = port.name.as_deref().unwrap_or_default().into();
        Some(Self { index, name, protocol, number: port.port })
    }

    /// The number, if the Service has such a port.
    fn number(&self, plan: &Plan, report: &mut Reporter<'_>) -> Option<u16> {
        let Self { index, name, protocol, number: written } = self;
        if !plan.declares(name, *protocol) {
            let message = format!(
                "the Service has no {protocol} port with the name {}: this port is not used",
                quoted(name)
            );
            report.warning(format!("ports[{index}].name"), message);
            return None;
        }
        let number = written.and_then(number);
        if number.is_none() {
            let value = written.map_or("missing".to_owned(), |port| port.to_string());
            let message = format!("{value}, not in 1..65535: this port is not used");
            report.error(format!("ports[{index}].port"), message);
        }
        number
    }
}

/// The endpoints of one Service by port *name* and protocol. A named `targetPort` that differs
/// between pods needs nothing more, as slices carry numbers (kube-proxy `endpointslicecache.go`).
#[derive(Debug, Default)]
pub(super) struct Slices<'a>(BTreeMap<(Protocol, &'a str), Endpoints>);

impl<'a> Slices<'a> {
    /// Adds the endpoints of a slice, as a node in this zone sees them that takes these for dead.
    pub(super) fn add(
        &mut self,
        slice: &'a Slice,
        plan: &Plan,
        (zone, dead): (Option<&str>, &BTreeSet<NonZeroU32>),
        problems: &mut Problems,
        about: (&str, &ObjectId),
    ) {
        problems.extend(slice.problems_if_served.iter().cloned());
        let (origin, id) = about;
        let mut report = problems.about(origin, &id.to_string());
        for port in &slice.ports {
            let Some(number) = port.number(plan, &mut report) else { continue };
            let endpoints = self.0.entry((port.protocol, &port.name)).or_default();
            for listed in &slice.endpoints {
                let endpoint = listed.seen_from(zone, dead);
                let addr = SocketAddr::new(listed.addr, number);
                let known = endpoints.entry(addr).or_insert(endpoint);
                *known = known.merge(endpoint);
            }
        }
    }

    /// The endpoints of a Service port.
    pub(super) fn of(&self, port: &Port) -> &Endpoints {
        const NONE: &Endpoints = &BTreeMap::new();
        let mut ports = self.0.iter();
        let is_port =
            |(protocol, name): (Protocol, &str)| protocol == port.protocol && name == port.name;
        ports.find(|(key, _)| is_port(**key)).map_or(NONE, |(_, endpoints)| endpoints)
    }
}

impl Listed {
    fn is_on(&self, nodes: &BTreeSet<NonZeroU32>) -> bool {
        self.node.is_some_and(|node| nodes.contains(&node))
    }

    fn seen_from(&self, zone: Option<&str>, dead: &BTreeSet<NonZeroU32>) -> Endpoint {
        let zones = self.zones.iter().map(Box::as_ref);
        let hints = Hints { node: self.for_node, zone: Hint::of(zones, zone) };
        let is_dead = self.is_on(dead);
        Endpoint { local: self.local, state: self.state, hints, is_dead }
    }
}

fn family(address_type: &str, report: &mut Reporter<'_>) -> Option<Family> {
    let reason = match address_type {
        "IPv4" => return Some(Family::V4),
        "IPv6" => return Some(Family::V6),
        "FQDN" => "host names have no defined meaning for a proxy".to_owned(),
        other => format!("{} is neither IPv4 nor IPv6", quoted(other)),
    };
    report.error("addressType", format!("{reason}: the slice is not used"));
    None
}

/// The usable endpoints of a slice.
fn endpoints(
    endpoints: Option<&[WrittenEndpoint]>,
    family: Family,
    node: &str,
    names: &mut Names,
    report: &mut Reporter<'_>,
) -> Box<[Listed]> {
    let mut usable = Vec::new();
    for (index, endpoint) in endpoints.unwrap_or_default().iter().enumerate() {
        let field = format!("endpoints[{index}].addresses");
        let [text, rest @ ..] = endpoint.addresses.as_slice() else {
            report.error(field, "empty: the endpoint is not used");
            continue;
        };
        if !rest.is_empty() {
            // They are defined to be the same endpoint, so a second one would count it twice.
            report.warning(&field, "only the first address of an endpoint is used");
        }
        let reason = match address::parse(text) {
            Ok(addr) if Family::of(addr) == family => {
                usable.push(Listed {
                    addr,
                    local: endpoint.node_name.as_deref() == Some(node),
                    state: State::of(endpoint.conditions.as_ref()),
                    node: endpoint.node_name.as_deref().and_then(|name| names.id(name)),
                    for_node: topology::for_node(endpoint.hints.as_ref(), node),
                    zones: topology::zones(endpoint.hints.as_ref()).map(Box::from).collect(),
                });
                continue;
            }
            Ok(_) => format!("is not of the slice's family {family}"),
            Err(error) => error.to_string(),
        };
        let message = format!("{} {reason}: the endpoint is not used", quoted(text));
        report.error(format!("{field}[0]"), message);
    }
    usable.into()
}
