//! What the kernel programs and the agent share: map keys and values, drop reasons, counters,
//! the flow hash and the ABI version.
//!
//! Every type is `repr(C)` without padding, its size asserted below, so that two compilers
//! never disagree and no uninitialised byte becomes part of a hash key. Addresses are byte
//! arrays and ports are in host order, so that `bpftool map dump` reads by eye.
//!
//! There is no `bool`, `enum` or `Option` in a map: any bit pattern the kernel hands back must
//! be a valid value.
#![cfg_attr(not(feature = "user"), no_std)]

pub mod affinity;
pub mod announced;
pub mod backend;
pub mod cidr;
pub mod counter;
pub mod device;
pub mod drop_reason;
pub mod family;
pub mod flow;
pub mod flow_set;
pub mod fragment;
pub mod frontend;
pub mod hop;
pub mod layout;
pub mod limits;
pub mod mode;
pub mod port_share;
pub mod range;
pub mod socket;

#[cfg(feature = "user")]
mod pod;

pub use affinity::{Affinity, AffinityKey, MemberKey};
pub use announced::{Announced, AnnouncedKey, Watch};
pub use backend::Backend;
pub use cidr::{Cidr, Cidrs, MAX_SERVICE_CIDRS};
pub use counter::Counter;
pub use device::Device;
pub use drop_reason::DropReason;
pub use family::Octets;
pub use flow::{Flow, FlowKey, FlowState, Hook, flow_hash};
pub use fragment::{FragmentKey, FragmentPorts};
pub use frontend::{
    AddressFlags, Descriptor, FrontendInfo, FrontendKey, FrontendKind, FrontendStats, TABLE_BLOCK,
    TableBlock, TablePolicy, TableRef,
};
pub use hop::Hop;
pub use mode::Mode;
pub use port_share::PortShare;
pub use range::RangeKey;
pub use socket::{SocketKey, SocketPeer};

/// Version of the map layout. It names the pin directory (`/sys/fs/bpf/lbxdp/v4`), so two
/// layouts never meet in one map. Any change to a type of this crate that reaches a map needs
/// a new number; [`layout`] is how the maps of other versions are read.
///
/// The feature `next-layout` stands for the next version in tests: the same with fields in other
/// places, so that nothing that takes one layout for the other goes unnoticed.
pub const ABI_VERSION: u32 = 5 + cfg!(feature = "next-layout") as u32;

/// IANA protocol number of TCP.
pub const IPPROTO_TCP: u8 = 6;
/// IANA protocol number of UDP.
pub const IPPROTO_UDP: u8 = 17;
/// IANA protocol number of SCTP.
pub const IPPROTO_SCTP: u8 = 132;
