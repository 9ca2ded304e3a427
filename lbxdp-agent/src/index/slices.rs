//! EndpointSlices: the endpoints of every Service port.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::net::SocketAddr;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::{
    Endpoint as WrittenEndpoint, EndpointConditions, EndpointPort, EndpointSlice,
};

use super::address;
use super::ports::{Port, number, protocol};
use super::service::{HEADLESS_LABEL, PROXY_NAME_LABEL};
use super::topology::{Here, Hints};
use crate::model::{Family, Protocol};
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
        Self { local, state, hints }
    }
}

/// The endpoints of one Service port by address. An address that several slices carry is one
/// endpoint: endpoints move between slices, and both may be there for a while.
pub(super) type Endpoints = BTreeMap<SocketAddr, Endpoint>;

/// What the endpoints of all Services are found by: Service, port *name* and protocol. A named
/// `targetPort` that differs between pods needs nothing more, as slices carry numbers
/// (kube-proxy `endpointslicecache.go`).
#[derive(Debug, Default)]
pub(super) struct Slices<'a>(BTreeMap<(ObjectId, Protocol), BTreeMap<&'a str, Endpoints>>);

impl<'a> Slices<'a> {
    /// Adds the endpoints of a slice. `find` returns the Service of an id, and whether it is
    /// served: what is not served needs no endpoints, and no complaints about them.
    pub(super) fn add<'s>(
        &mut self,
        id: &ObjectId,
        sourced: &'a Sourced<impl AsRef<EndpointSlice>>,
        here: Here<'_>,
        find: impl FnOnce(&ObjectId) -> Option<(&'s Service, bool)>,
        problems: &mut Problems,
    ) {
        let slice = sourced.object.as_ref();
        let mut report = problems.about(&sourced.origin, &id.to_string());
        let report = &mut report;
        let label = |key| slice.metadata.labels.as_ref().and_then(|labels| labels.get(key));
        if label(PROXY_NAME_LABEL).is_some() || label(HEADLESS_LABEL).is_some() {
            return;
        }
        let labels = "metadata.labels";
        let Some(name) = label(SERVICE_NAME_LABEL).filter(|name| !name.is_empty()) else {
            let message = format!("no label {SERVICE_NAME_LABEL}: the slice is not used");
            return report.error(labels, message);
        };
        let service_id = ObjectId::new(Kind::Service, Some(&id.namespace), name);
        let service = match find(&service_id) {
            Some((service, true)) => service,
            Some((_, false)) => return,
            None => {
                let message = format!("there is no {service_id}: the slice is not used");
                return report.warning(labels, message);
            }
        };
        let Some(family) = family(&slice.address_type, report) else { return };
        let addresses = addresses(slice.endpoints.as_deref(), family, here, report);
        let ports = slice.ports.as_deref().unwrap_or_default();
        if ports.is_empty() && !addresses.is_empty() {
            report.warning("ports", "empty: the endpoints of the slice are not used");
        }
        for (index, port) in ports.iter().enumerate() {
            let field = format!("ports[{index}]");
            let Some((name, protocol, number)) = read_port(port, service, &field, report) else {
                continue;
            };
            let by_name = self.0.entry((service_id.clone(), protocol)).or_default();
            let endpoints = by_name.entry(name).or_default();
            for (addr, endpoint) in &addresses {
                let mut addr = *addr;
                addr.set_port(number);
                let known = endpoints.entry(addr).or_insert(*endpoint);
                *known = known.merge(*endpoint);
            }
        }
    }

    /// The endpoints of a Service port.
    pub(super) fn of(&self, service: &ObjectId, port: &Port) -> &Endpoints {
        const NONE: &Endpoints = &BTreeMap::new();
        let by_name = self.0.get(&(service.clone(), port.protocol));
        by_name.and_then(|ports| ports.get(port.name.as_str())).unwrap_or(NONE)
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

/// The usable endpoints of a slice, with port 0.
fn addresses(
    endpoints: Option<&[WrittenEndpoint]>,
    family: Family,
    here: Here<'_>,
    report: &mut Reporter<'_>,
) -> Vec<(SocketAddr, Endpoint)> {
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
                let endpoint = Endpoint {
                    local: endpoint.node_name.as_deref() == Some(here.node),
                    state: State::of(endpoint.conditions.as_ref()),
                    hints: Hints::read(endpoint.hints.as_ref(), here),
                };
                usable.push((SocketAddr::new(addr, 0), endpoint));
                continue;
            }
            Ok(_) => format!("is not of the slice's family {family}"),
            Err(error) => error.to_string(),
        };
        let message = format!("{} {reason}: the endpoint is not used", quoted(text));
        report.error(format!("{field}[0]"), message);
    }
    usable
}

/// Name, protocol and number of a slice port, if the Service has such a port.
fn read_port<'a>(
    port: &'a EndpointPort,
    service: &Service,
    field: &str,
    report: &mut Reporter<'_>,
) -> Option<(&'a str, Protocol, u16)> {
    let Some(transport) = protocol(port.protocol.as_deref()) else {
        let value = quoted(port.protocol.as_deref().unwrap_or_default());
        let message = format!("{value} is none of TCP, UDP, SCTP: this port is not used");
        report.error(format!("{field}.protocol"), message);
        return None;
    };
    // The API server fills in an empty name; a file may leave it away.
    let name = port.name.as_deref().unwrap_or_default();
    let mut declared = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
    if !declared.any(|declared| {
        declared.name.as_deref().unwrap_or_default() == name
            && protocol(declared.protocol.as_deref()) == Some(transport)
    }) {
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let message = format!(
            "the Service has no {protocol} port with the name {}: this port is not used",
            quoted(name)
        );
        report.warning(format!("{field}.name"), message);
        return None;
    }
    let Some(number) = port.port.and_then(number) else {
        let value = port.port.map_or("missing".to_owned(), |port| port.to_string());
        let message = format!("{value}, not in 1..65535: this port is not used");
        report.error(format!("{field}.port"), message);
        return None;
    };
    Some((name, transport, number))
}
