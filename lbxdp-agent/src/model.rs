//! What the parts of the agent hand each other: the desired state, free of Kubernetes and of BPF.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::Deref;
use std::sync::Arc;

use ipnet::IpNet;
use lbxdp_common::{FrontendKind, IPPROTO_SCTP, IPPROTO_TCP, IPPROTO_UDP};

/// Address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    pub const fn of(addr: IpAddr) -> Self {
        match addr {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// Transport protocol of a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// Transmission Control Protocol.
    Tcp,
    /// User Datagram Protocol.
    Udp,
    /// Stream Control Transmission Protocol.
    Sctp,
}

impl Protocol {
    /// IANA protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => IPPROTO_TCP,
            Self::Udp => IPPROTO_UDP,
            Self::Sctp => IPPROTO_SCTP,
        }
    }

    /// The protocol with this IANA number.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            IPPROTO_TCP => Some(Self::Tcp),
            IPPROTO_UDP => Some(Self::Udp),
            IPPROTO_SCTP => Some(Self::Sctp),
            _ => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

/// What identifies a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrontendAddr {
    /// Address clients send to.
    pub addr: IpAddr,
    /// Port clients send to.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
}

impl fmt::Display for FrontendAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", SocketAddr::new(self.addr, self.port), self.protocol)
    }
}

/// One port of one Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServicePortName {
    /// Namespace of the Service.
    pub namespace: Arc<str>,
    /// Name of the Service.
    pub service: Arc<str>,
    /// Port name, or the port number where the Service has a single nameless port.
    pub port: Arc<str>,
}

impl fmt::Display for ServicePortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}:{}", self.namespace, self.service, self.port)
    }
}

/// Endpoints in ascending order, without repetition. There may be many copies of a set; they share
/// its memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct EndpointSet(Arc<[SocketAddr]>);

impl EndpointSet {
    /// Whether it has this endpoint.
    pub fn contains(&self, endpoint: &SocketAddr) -> bool {
        self.0.binary_search(endpoint).is_ok()
    }

    /// Whether `other` has all of its endpoints.
    pub fn is_subset(&self, other: &Self) -> bool {
        self.0.iter().all(|endpoint| other.contains(endpoint))
    }
}

impl Deref for EndpointSet {
    type Target = [SocketAddr];

    fn deref(&self) -> &[SocketAddr] {
        &self.0
    }
}

impl FromIterator<SocketAddr> for EndpointSet {
    fn from_iter<I: IntoIterator<Item = SocketAddr>>(endpoints: I) -> Self {
        let mut endpoints: Vec<SocketAddr> = endpoints.into_iter().collect();
        endpoints.sort_unstable();
        endpoints.dedup();
        Self(endpoints.into())
    }
}

impl<const N: usize> From<[SocketAddr; N]> for EndpointSet {
    fn from(endpoints: [SocketAddr; N]) -> Self {
        endpoints.into_iter().collect()
    }
}

impl<'a> IntoIterator for &'a EndpointSet {
    type Item = &'a SocketAddr;
    type IntoIter = std::slice::Iter<'a, SocketAddr>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

/// What a client of a frontend may reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoints {
    /// One of these, never empty, all of the frontend's family.
    Serve(EndpointSet),
    /// No endpoint anywhere: refuse.
    Reject,
    /// Endpoints, but none that the traffic policy allows: silence.
    Drop,
}

/// A frontend and its choices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frontend {
    /// Which of the Service's addresses it is.
    pub kind: FrontendKind,
    /// The Service port it belongs to.
    pub name: ServicePortName,
    /// For packets that come from outside the node.
    pub external: Endpoints,
    /// For clients on this node.
    pub internal: Endpoints,
    /// Every endpoint of the frontend's family that still serves, whatever policies, hints and the
    /// state of others say: UDP flows to one of them stay.
    pub serving: EndpointSet,
    /// What depends on who asks.
    pub clients: Clients,
}

impl Frontend {
    /// A frontend for everybody, whose endpoints are those that it chooses from.
    pub fn new(
        kind: FrontendKind,
        name: ServicePortName,
        external: Endpoints,
        internal: Endpoints,
    ) -> Self {
        let serving = match (&external, &internal) {
            (Endpoints::Serve(one), Endpoints::Serve(other)) if one != other => {
                one.iter().chain(other.iter()).copied().collect()
            }
            (Endpoints::Serve(set), _) | (_, Endpoints::Serve(set)) => set.clone(),
            _ => EndpointSet::default(),
        };
        Self { kind, name, external, internal, serving, clients: Clients::default() }
    }

    /// The sets that clients are given one of, each once.
    pub fn choices(&self) -> impl Iterator<Item = &EndpointSet> {
        let is_twice = self.internal == self.external;
        let sides = [Some(&self.external), (!is_twice).then_some(&self.internal)];
        sides.into_iter().flatten().filter_map(|side| match side {
            Endpoints::Serve(endpoints) => Some(endpoints),
            Endpoints::Reject | Endpoints::Drop => None,
        })
    }
}

/// Rules about the clients of a frontend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Clients {
    /// Seconds without a new flow for which a client keeps its backend; zero for no affinity.
    pub affinity: u32,
    /// Those that are served; everybody if none.
    pub source_ranges: Option<BTreeSet<IpNet>>,
}

/// `healthCheckNodePort` of a Service: what load balancers ask before they send to this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// Where the answer is served, on the node's addresses for NodePorts.
    pub port: u16,
    /// For each family of the Service: distinct addresses of ready endpoints on this node, over all
    /// of its ports. The families are counted apart, because who asks in one of them sends in it.
    pub local_endpoints: BTreeMap<Family, usize>,
}

/// Everything the maps should hold, as the manifests say it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// Frontends by what identifies them.
    pub frontends: BTreeMap<FrontendAddr, Frontend>,
    /// Those of `frontends` that are known from the maps and not from the input, which is not
    /// complete: what else serves them is not known.
    pub kept: BTreeSet<FrontendAddr>,
    /// Backends on this node, among those that `frontends` name.
    pub local_backends: BTreeSet<SocketAddr>,
    /// Health checks by namespace and name of the Service.
    pub health_checks: BTreeMap<(String, String), HealthCheck>,
    /// Where NodePorts are served on this node.
    pub node_port_addresses: BTreeSet<IpAddr>,
}

/// What only the running node knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// The addresses of this node's devices, loopback and link-local ones left out.
    pub addresses: BTreeSet<IpAddr>,
    /// For remote backends: the preferred source of the route to them. A backend without a route
    /// is absent.
    pub snat_sources: BTreeMap<IpAddr, IpAddr>,
    /// For remote backends: the next hop on the way to them ([`lbxdp_common::Backend::hop`]). Where
    /// one is absent, the kernel is asked with each packet.
    pub hops: BTreeMap<IpAddr, u32>,
}

/// How bad a [`Problem`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Something is not served as written.
    Warning,
    /// The object, or the part of it that is named, is ignored.
    Error,
}

/// What a [`Problem`] is about, for programs. Names are never given another meaning: people select
/// Events by them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// A field says nothing that can be served.
    InvalidField,
    /// Something is not served as it is written.
    NotServedAsWritten,
    /// An address and port is somebody else's.
    AddressConflict,
    /// An external address that the operator does not allow.
    ExternalIpNotAllowed,
    /// A source range that cannot be read, and admits nobody.
    InvalidSourceRange,
    /// Nobody answers the health checks of load balancers on this node.
    HealthCheckNotServed,
    /// The node has no address for NodePorts.
    NodePortsNotServed,
    /// A map is full.
    CapacityExceeded,
    /// This node has no way to an endpoint.
    EndpointUnreachable,
    /// The maps of this node are not what they should be.
    SyncFailed,
    /// This node should announce an address, and cannot.
    AnnounceFailed,
}

impl Reason {
    /// The name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InvalidField => "InvalidField",
            Self::NotServedAsWritten => "NotServedAsWritten",
            Self::AddressConflict => "AddressConflict",
            Self::ExternalIpNotAllowed => "ExternalIPNotAllowed",
            Self::InvalidSourceRange => "InvalidSourceRange",
            Self::HealthCheckNotServed => "HealthCheckNotServed",
            Self::NodePortsNotServed => "NodePortsNotServed",
            Self::CapacityExceeded => "CapacityExceeded",
            Self::EndpointUnreachable => "EndpointUnreachable",
            Self::SyncFailed => "SyncFailed",
            // MetalLB's.
            Self::AnnounceFailed => "announceFailed",
        }
    }

    /// Whether other nodes may not have the problem. Every node has the others, in the same words.
    pub const fn is_of_node(self) -> bool {
        matches!(
            self,
            Self::HealthCheckNotServed
                | Self::NodePortsNotServed
                | Self::EndpointUnreachable
                | Self::SyncFailed
                | Self::AnnounceFailed
        )
    }
}

/// Bad input: which object in which file, which field, and what is wrong. Everything else keeps
/// being served.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// How bad it is.
    pub severity: Severity,
    /// File, or another origin; empty where the object has none.
    pub origin: String,
    /// `Kind namespace/name`, or the position of a document that has no name.
    pub object: String,
    /// Path of the field, such as `spec.ports[0].port`; empty for the whole object.
    pub field: String,
    /// What is wrong and what follows from it.
    pub message: String,
    /// What kind of problem it is.
    pub reason: Reason,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { severity: _, reason: _, origin, object, field, message } = self;
        if !origin.is_empty() {
            write!(f, "{origin}: ")?;
        }
        write!(f, "{object}")?;
        if !field.is_empty() {
            write!(f, ": {field}")?;
        }
        write!(f, ": {message}")
    }
}
