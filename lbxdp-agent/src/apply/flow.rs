//! Entries of the flow tables, as the agent reads them.

use std::net::{IpAddr, SocketAddr};

use lbxdp_common::{Flow, FlowKey, Octets};

/// An entry of a flow table: one half of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowEntry {
    /// IPv4.
    V4(FlowKey<[u8; 4]>, Flow<[u8; 4]>),
    /// IPv6.
    V6(FlowKey<[u8; 16]>, Flow<[u8; 16]>),
}

impl FlowEntry {
    /// IANA protocol number.
    pub const fn protocol(&self) -> u8 {
        match self {
            Self::V4(key, _) => key.protocol,
            Self::V6(key, _) => key.protocol,
        }
    }

    /// Whether the stack translates the flow.
    pub const fn is_foreign(&self) -> bool {
        match self {
            Self::V4(_, flow) => flow.has(Flow::<[u8; 4]>::FOREIGN),
            Self::V6(_, flow) => flow.has(Flow::<[u8; 16]>::FOREIGN),
        }
    }

    /// Whether it is the half that replies meet.
    pub const fn is_reply(&self) -> bool {
        match self {
            Self::V4(_, flow) => flow.has(Flow::<[u8; 4]>::REPLY),
            Self::V6(_, flow) => flow.has(Flow::<[u8; 16]>::REPLY),
        }
    }

    /// From where to where the packets of the other half come in.
    pub fn other_arrives(&self) -> (SocketAddr, SocketAddr) {
        match self {
            Self::V4(key, flow) => Self::V4(flow.sibling_key(key), *flow).arrives(),
            Self::V6(key, flow) => Self::V6(flow.sibling_key(key), *flow).arrives(),
        }
    }

    /// From where to where the packets of this half come in.
    pub fn arrives(&self) -> (SocketAddr, SocketAddr) {
        fn of<A: Octets + Into<IpAddr>>(key: &FlowKey<A>) -> (SocketAddr, SocketAddr) {
            (
                SocketAddr::new(key.src.into(), key.src_port),
                SocketAddr::new(key.dst.into(), key.dst_port),
            )
        }
        match self {
            Self::V4(key, _) => of(key),
            Self::V6(key, _) => of(key),
        }
    }

    /// The ports that packets of this half and of the other one come in for.
    pub const fn ports(&self) -> [u16; 2] {
        match self {
            Self::V4(key, flow) => [key.dst_port, flow.src_port],
            Self::V6(key, flow) => [key.dst_port, flow.src_port],
        }
    }

    /// The frontend and the backend. Each half says both, so none depends on the other.
    pub fn ends(&self) -> (SocketAddr, SocketAddr) {
        match self {
            Self::V4(key, flow) => ends(key, flow),
            Self::V6(key, flow) => ends(key, flow),
        }
    }
}

/// See [`FlowEntry::ends`].
pub(super) fn ends<A>(key: &FlowKey<A>, flow: &Flow<A>) -> (SocketAddr, SocketAddr)
where
    A: Octets + Into<IpAddr>,
{
    let of = |addr: A, port| SocketAddr::new(addr.into(), port);
    if flow.has(Flow::<A>::REPLY) {
        (of(flow.src, flow.src_port), of(key.src, key.src_port))
    } else {
        (of(key.dst, key.dst_port), of(flow.dst, flow.dst_port))
    }
}
