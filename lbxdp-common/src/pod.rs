//! `aya::Pod` for the agent's side.

use aya::Pod;

use crate::{
    AddressFlags, Affinity, AffinityKey, Announced, AnnouncedKey, Backend, Cidr, Descriptor,
    Device, Flow, FlowKey, FragmentKey, FragmentPorts, FrontendInfo, FrontendKey, FrontendStats,
    Hop, MemberKey, Octets, RangeKey, SocketKey, SocketPeer, TableBlock, Watch, flow_set::FlowSet,
};

// SAFETY: each type is `repr(C)` of integers and byte arrays without padding (sizes are asserted
// where they are defined), so every bit pattern is a value.
unsafe impl Pod for AddressFlags {}
// SAFETY: as above.
unsafe impl Pod for TableBlock {}
// SAFETY: as above.
unsafe impl Pod for Watch {}
// SAFETY: as above.
unsafe impl Pod for Announced {}
// SAFETY: as above.
unsafe impl<A: Octets> Pod for AnnouncedKey<A> {}
// SAFETY: as above.
unsafe impl Pod for Descriptor {}
// SAFETY: as above.
unsafe impl Pod for FrontendInfo {}
// SAFETY: as above.
unsafe impl Pod for FrontendStats {}
// SAFETY: as above.
unsafe impl Pod for Device {}
// SAFETY: as above.
unsafe impl Pod for Hop {}
// SAFETY: as above.
unsafe impl<A: Octets> Pod for FrontendKey<A> {}
// SAFETY: as above.
unsafe impl<A: Octets> Pod for FlowKey<A> {}
// SAFETY: as above.
unsafe impl<A: Octets> Pod for Flow<A> {}
// SAFETY: as above, but for room at the end of a place. Sets are only read, from bytes that are there;
// their fields are written one by one.
unsafe impl<A: Octets> Pod for FlowSet<A> {}
// SAFETY: as above.
unsafe impl<A: Octets> Pod for Backend<A> {}
// SAFETY: as above.
unsafe impl Pod for Affinity {}
// SAFETY: as above.
unsafe impl Pod for AffinityKey {}
// SAFETY: as above.
unsafe impl Pod for MemberKey {}
// SAFETY: as above.
unsafe impl Pod for FragmentPorts {}
// SAFETY: as above.
unsafe impl<A: Octets> Pod for FragmentKey<A> {}
// SAFETY: as above.
unsafe impl<A: Octets> Pod for RangeKey<A> {}
// SAFETY: as above.
unsafe impl<A: Octets> Pod for SocketKey<A> {}
// SAFETY: as above.
unsafe impl<A: Octets> Pod for SocketPeer<A> {}
// SAFETY: as above.
unsafe impl Pod for Cidr {}
