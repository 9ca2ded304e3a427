//! Frontends: what clients address, and which backends each may choose.

use crate::layout;

/// What a destination (or, at egress, a source) address is. The first lookup of every packet:
/// a miss passes the packet at the price of one hash lookup.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AddressFlags {
    /// Union of the constants of this type.
    pub flags: u32,
}

impl AddressFlags {
    /// Frontends listen on this address.
    pub const SERVICE: u32 = 1;
    /// An address of this node: NodePort frontends and SNAT ports live here, and what neither
    /// knows belongs to the node itself.
    pub const NODE: u32 = 1 << 1;
    /// A backend on this node: its replies carry the frontend's address after tc egress.
    pub const BACKEND: u32 = 1 << 2;
    /// A ClusterIP: an unknown port on it is rejected rather than dropped.
    pub const CLUSTER_IP: u32 = 1 << 3;
    /// No frontend is left, flows through it may be: looked up in the flow table only.
    pub const TOMBSTONE: u32 = 1 << 4;

    /// Whether any of `flags` is set.
    #[inline(always)]
    pub const fn has(self, flags: u32) -> bool {
        self.flags & flags != 0
    }
}

/// Key of `frontends_v4` and `frontends_v6`.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FrontendKey<A> {
    /// Address, network order.
    pub addr: A,
    /// Port, host order.
    pub port: u16,
    /// IANA protocol number.
    pub protocol: u8,
    /// Always zero.
    pub _pad: u8,
}

impl<A> FrontendKey<A> {
    /// A key for `addr`, `port` (host order) and IANA `protocol`.
    #[inline(always)]
    pub const fn new(addr: A, port: u16, protocol: u8) -> Self {
        Self { addr, port, protocol, _pad: 0 }
    }
}

/// Slots in one element of the `tables` map. A `u32` array would have a stride of 8 bytes when
/// mmapable; 64 bytes are one cache line.
pub const TABLE_BLOCK: usize = 16;

/// One element of the `tables` map: backend ids.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableBlock {
    /// Backend ids, or [`TableBlock::EMPTY`] in unused slots.
    pub slots: [u32; TABLE_BLOCK],
}

impl TableBlock {
    /// The id of no backend.
    pub const EMPTY: u32 = u32::MAX;
}

/// What a table decides, in bits 40..48 of a [`TableRef`].
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TablePolicy {
    /// The frontend is unused.
    None = 0,
    /// Choose from the range.
    Serve = 1,
    /// No endpoint anywhere: ICMP port unreachable.
    Reject = 2,
    /// Endpoints, but none that the traffic policy allows: silence.
    Drop = 3,
}

/// A range of the `tables` slab and what to do with it, in one aligned word so that a change is
/// one store and no reader sees half of it.
///
/// Bits 0..32: first block; 32..40: log2 of the number of slots (at least 4: one block);
/// 40..48: [`TablePolicy`].
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableRef(pub u64);

impl TableRef {
    /// A range of `1 << log2_slots` slots that starts at block `first_block`.
    pub const fn serve(first_block: u32, log2_slots: u8) -> Self {
        Self(first_block as u64 | (log2_slots as u64) << 32 | (TablePolicy::Serve as u64) << 40)
    }

    /// No range, only a verdict.
    pub const fn verdict(policy: TablePolicy) -> Self {
        Self((policy as u64) << 40)
    }

    /// First block of the range.
    #[inline(always)]
    pub const fn first_block(self) -> u32 {
        self.0 as u32
    }

    /// Log2 of the number of slots.
    #[inline(always)]
    pub const fn log2_slots(self) -> u8 {
        (self.0 >> 32) as u8
    }

    /// The policy as its number in [`TablePolicy`].
    #[inline(always)]
    pub const fn policy(self) -> u8 {
        (self.0 >> 40) as u8
    }

    /// Whether there is a range to choose from.
    #[inline(always)]
    pub const fn serves(self) -> bool {
        self.policy() == TablePolicy::Serve as u8
    }
}

/// Value of `descriptors_v4` and `descriptors_v6`, indexed by frontend id.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Descriptor {
    /// A [`TableRef`]: what packets from outside the node choose from.
    #[cfg(not(feature = "next-layout"))]
    pub external: u64,
    /// A [`TableRef`]: what clients on this node choose from.
    pub internal: u64,
    /// A [`TableRef`]: what packets from outside the node choose from.
    #[cfg(feature = "next-layout")]
    pub external: u64,
    /// Seconds without a new flow for which a client keeps its backend; zero for no affinity.
    pub affinity: u32,
    /// Frontend id that stands for the Service port in `affinity` and `ranges`: all frontends of
    /// a Service port and family have the same one.
    pub service: u32,
    /// Union of the constants of this type.
    pub flags: u32,
    /// Always zero.
    pub _pad: u32,
}

impl Descriptor {
    /// Only clients in `ranges` are served.
    pub const SOURCE_RANGES: u32 = 1;
    /// With [`Self::SOURCE_RANGES`]: processes of the node itself are served, because one of its
    /// addresses is in a range.
    pub const NODE_IN_RANGE: u32 = 1 << 1;

    /// Whether any of `flags` is set.
    #[inline(always)]
    pub const fn has(&self, flags: u32) -> bool {
        self.flags & flags != 0
    }
}

/// Which of a Service's addresses a frontend is.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FrontendKind {
    /// `spec.clusterIPs`.
    ClusterIp = 1,
    /// `status.loadBalancer.ingress`.
    LoadBalancer = 2,
    /// `spec.externalIPs`.
    ExternalIp = 3,
    /// A node address with `spec.ports[].nodePort`.
    NodePort = 4,
}

impl FrontendKind {
    /// The kind with this number, for readers of pinned maps.
    pub const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::ClusterIp,
            2 => Self::LoadBalancer,
            3 => Self::ExternalIp,
            4 => Self::NodePort,
            _ => return None,
        })
    }

    /// The name users know.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ClusterIp => "ClusterIP",
            Self::LoadBalancer => "LoadBalancer",
            Self::ExternalIp => "ExternalIP",
            Self::NodePort => "NodePort",
        }
    }
}

/// Value of `names_v4` and `names_v6`, indexed by frontend id: what the CLI shows without an API
/// server.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrontendInfo {
    /// `namespace/name:port` in UTF-8, the rest zero. Namespace and name are at most 63 bytes,
    /// a port name 15 (RFC 1123 and RFC 6335, as Kubernetes validates them).
    pub name: [u8; 144],
    /// A [`FrontendKind`] number; zero when the id is unused.
    pub kind: u8,
    /// Always zero.
    pub _pad: [u8; 7],
}

impl FrontendInfo {
    /// The value of an unused id.
    pub const UNUSED: Self = Self { name: [0; 144], kind: 0, _pad: [0; 7] };

    /// Names a frontend; a longer name is cut at the array's end.
    pub fn new(name: &str, kind: FrontendKind) -> Self {
        let mut info = Self { kind: kind as u8, ..Self::UNUSED };
        for (to, from) in info.name.iter_mut().zip(name.bytes()) {
            *to = from;
        }
        info
    }

    /// The name, up to the first zero byte or the first byte that is not UTF-8.
    pub fn name(&self) -> &str {
        let end = self.name.iter().position(|byte| *byte == 0).unwrap_or(self.name.len());
        let bytes = &self.name[..end];
        match core::str::from_utf8(bytes) {
            Ok(name) => name,
            Err(error) => core::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or(""),
        }
    }
}

/// Per-CPU value of `stats_v4` and `stats_v6`, indexed by frontend id. Bytes count from the IP
/// header on.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrontendStats {
    /// Packets translated towards a backend.
    #[cfg(not(feature = "next-layout"))]
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Packets translated back towards the client.
    pub reply_packets: u64,
    /// Their bytes.
    pub reply_bytes: u64,
    /// Packets translated towards a backend.
    #[cfg(feature = "next-layout")]
    pub packets: u64,
}

layout::record! { AddressFlags { flags } }
layout::record! { FrontendKey<A> { addr, port, protocol, _pad } }
layout::record! { TableBlock { slots } }
layout::record! { Descriptor { external, internal, affinity, service, flags, _pad } }
layout::record! { FrontendInfo { name, kind, _pad } }
layout::record! { FrontendStats { packets, bytes, reply_packets, reply_bytes } }

const _: () = {
    assert!(size_of::<AddressFlags>() == 4);
    assert!(size_of::<FrontendKey<[u8; 4]>>() == 8);
    assert!(size_of::<FrontendKey<[u8; 16]>>() == 20);
    assert!(size_of::<TableBlock>() == 64);
    assert!(size_of::<Descriptor>() == 32);
    assert!(size_of::<FrontendInfo>() == 152);
    assert!(size_of::<FrontendStats>() == 32);
};
