//! What the maps hold, as people look at it: frontends with their backends, backends with their
//! frontends, flows with their names. Built from the pins alone.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use lbxdp_common::{
    AddressFlags, Descriptor, Flow, FlowKey, FlowState, FrontendKind, FrontendStats, Octets,
    TablePolicy, TableRef,
};
use serde::Serialize;

use crate::apply::pinned::{FlowEntry, PinnedMaps};
use crate::apply::{Actual, BackendEntry, MapError};
use crate::foreign;
use crate::model::{Family, FrontendAddr, Protocol};
use crate::slab::BlockRange;

/// What a table decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Decision {
    /// Chooses among backends.
    Serve,
    /// Refuses: no endpoint anywhere.
    Reject,
    /// Stays silent: no endpoint that the policy allows.
    Drop,
    /// Not published.
    None,
}

impl Decision {
    /// The decision of a table.
    pub const fn of(table: TableRef) -> Self {
        const SERVE: u8 = TablePolicy::Serve as u8;
        const REJECT: u8 = TablePolicy::Reject as u8;
        const DROP: u8 = TablePolicy::Drop as u8;
        match table.policy() {
            SERVE => Self::Serve,
            REJECT => Self::Reject,
            DROP => Self::Drop,
            _ => Self::None,
        }
    }

    /// The name that users see.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Serve => "serve",
            Self::Reject => "reject",
            Self::Drop => "drop",
            Self::None => "none",
        }
    }
}

/// A backend of a frontend.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct BackendView {
    /// Where it listens.
    pub address: SocketAddr,
    /// Whether it is on this node.
    pub local: bool,
}

/// A frontend.
#[derive(Clone, Debug, Serialize)]
pub struct FrontendView {
    /// `namespace/name:port`.
    pub service: String,
    /// Which of the Service's addresses it is.
    pub kind: &'static str,
    /// Address and port that clients send to.
    pub address: SocketAddr,
    /// Protocol.
    pub protocol: String,
    /// What packets from outside the node meet.
    pub decision: Decision,
    /// What they choose from.
    pub backends: BTreeSet<BackendView>,
    /// Seconds without a new flow for which a client keeps its backend; zero for no affinity.
    pub affinity_seconds: u32,
    /// The ranges of the clients that are served; everybody is if it is absent.
    pub source_ranges: Option<Vec<String>>,
    /// Packets and bytes so far.
    pub packets: u64,
    /// Bytes towards backends, from the IP header on.
    pub bytes: u64,
    /// Packets towards clients.
    pub reply_packets: u64,
    /// Bytes towards clients.
    pub reply_bytes: u64,
}

/// The distinct backends of a table.
pub fn backends_of(actual: &Actual, family: Family, table: TableRef) -> Vec<(u32, BackendEntry)> {
    let Some(range) = BlockRange::of(table) else { return Vec::new() };
    let blocks = actual.tables.get(range).unwrap_or_default();
    let ids: BTreeSet<u32> = blocks.iter().flat_map(|block| block.slots).collect();
    ids.into_iter()
        .filter_map(|id| actual.backends.get(&(family, id)).map(|entry| (id, *entry)))
        .collect()
}

/// Every frontend, by name and address.
pub fn frontends(maps: &PinnedMaps, actual: &Actual) -> Result<Vec<FrontendView>, MapError> {
    let mut views = Vec::new();
    for (addr, id) in &actual.frontends {
        let family = Family::of(addr.addr);
        let FrontendAddr { addr: ip, port, protocol } = *addr;
        let descriptor = actual.descriptors.get(&(family, *id)).copied().unwrap_or_default();
        let ranges = || {
            let ranges = actual.ranges.get(&(family, descriptor.service)).into_iter().flatten();
            ranges.map(ToString::to_string).collect()
        };
        let table = TableRef(descriptor.external);
        let backends = backends_of(actual, family, table)
            .into_iter()
            .map(|(_, entry)| BackendView { address: entry.addr(), local: entry.is_local() });
        let FrontendStats { packets, bytes, reply_packets, reply_bytes } =
            maps.stats(family, *id)?;
        views.push(FrontendView {
            service: name(actual, family, *id),
            kind: kind(actual, family, *id),
            address: SocketAddr::new(ip, port),
            protocol: protocol.to_string(),
            decision: Decision::of(table),
            backends: backends.collect(),
            affinity_seconds: descriptor.affinity,
            source_ranges: descriptor.has(Descriptor::SOURCE_RANGES).then(ranges),
            packets,
            bytes,
            reply_packets,
            reply_bytes,
        });
    }
    views.sort_by(|a, b| (&a.service, a.address).cmp(&(&b.service, b.address)));
    Ok(views)
}

/// The name of a frontend id, or its number where it has none any more.
fn name(actual: &Actual, family: Family, id: u32) -> String {
    actual.infos.get(&(family, id)).map_or_else(|| format!("#{id}"), |info| info.name().to_owned())
}

fn kind(actual: &Actual, family: Family, id: u32) -> &'static str {
    let info = actual.infos.get(&(family, id));
    info.and_then(|info| FrontendKind::from_number(info.kind)).map_or("?", FrontendKind::as_str)
}

/// A backend and who uses it.
#[derive(Clone, Debug, Serialize)]
pub struct BackendUse {
    /// Where it listens.
    pub address: SocketAddr,
    /// Whether it is on this node.
    pub local: bool,
    /// Source of packets to it, if it is elsewhere.
    pub snat_source: Option<IpAddr>,
    /// The Service ports that may choose it from outside the node.
    pub services: BTreeSet<String>,
}

/// Every backend, by address.
pub fn backends(actual: &Actual) -> Vec<BackendUse> {
    let mut services: BTreeMap<(Family, u32), BTreeSet<String>> = BTreeMap::new();
    for (addr, id) in &actual.frontends {
        let family = Family::of(addr.addr);
        let table = actual.descriptors.get(&(family, *id)).copied().unwrap_or_default();
        for (backend, _) in backends_of(actual, family, TableRef(table.external)) {
            services.entry((family, backend)).or_default().insert(name(actual, family, *id));
        }
    }
    let mut views: Vec<_> = actual
        .backends
        .iter()
        .map(|(key, entry)| BackendUse {
            address: entry.addr(),
            local: entry.is_local(),
            snat_source: (!entry.is_local()).then(|| entry.snat_source()),
            services: services.remove(key).unwrap_or_default(),
        })
        .collect();
    views.sort_by_key(|view| view.address);
    views
}

/// A flow: the half that clients' packets meet, or a reply's half that has lost it.
#[derive(Clone, Debug, Serialize)]
pub struct FlowView {
    /// `namespace/name:port` of its frontend.
    pub service: String,
    /// Protocol.
    pub protocol: String,
    /// Who sends.
    pub client: SocketAddr,
    /// To whom.
    pub frontend: SocketAddr,
    /// As whom it reaches the backend.
    pub source: SocketAddr,
    /// The backend.
    pub backend: SocketAddr,
    /// Whether the backend is on this node.
    pub local: bool,
    /// Whether the stack translates it, and the programs leave it alone.
    pub foreign: bool,
    /// State.
    pub state: &'static str,
    /// Seconds since the last packet.
    pub idle_seconds: u64,
}

/// Every flow that is not over at `now`, by client.
pub fn flows(maps: &PinnedMaps, actual: &Actual, now: u64) -> Result<Vec<FlowView>, MapError> {
    let mut views: Vec<_> = maps
        .flows()?
        .filter_map(|entry| match entry {
            FlowEntry::V4(key, flow) => flow_view(actual, Family::V4, &key, &flow, now),
            FlowEntry::V6(key, flow) => flow_view(actual, Family::V6, &key, &flow, now),
        })
        .collect();
    views.sort_by_key(|view| (view.client, view.frontend));
    Ok(views)
}

fn flow_view<A: Octets + Into<IpAddr>>(
    actual: &Actual,
    family: Family,
    key: &FlowKey<A>,
    flow: &Flow<A>,
    now: u64,
) -> Option<FlowView> {
    if !flow.is_live_request(now) {
        return None;
    }
    let socket = |addr: A, port| SocketAddr::new(addr.into(), port);
    let protocol = Protocol::from_number(key.protocol);
    Some(FlowView {
        service: match flow.frontend {
            foreign::NONE => "-".to_owned(),
            id => name(actual, family, id),
        },
        protocol: protocol
            .map_or_else(|| key.protocol.to_string(), |protocol| protocol.to_string()),
        client: socket(key.src, key.src_port),
        frontend: socket(key.dst, key.dst_port),
        source: socket(flow.src, flow.src_port),
        backend: socket(flow.dst, flow.dst_port),
        local: flow.has(Flow::<A>::LOCAL),
        foreign: flow.has(Flow::<A>::FOREIGN),
        state: FlowState::name(flow.state),
        idle_seconds: u64::try_from(flow.idle_ns(now)).unwrap_or(0) / 1_000_000_000,
    })
}

/// Whether some address waits for its last flow to end.
pub fn has_tombstones(actual: &Actual) -> bool {
    actual.addresses.values().any(|flags| flags.has(AddressFlags::TOMBSTONE))
}
