//! Room to work in: a program's stack has 512 bytes, and an IPv6 packet's flow needs more.

use aya_ebpf::{bindings::bpf_fib_lookup, btf_maps::PerCpuArray};
use lbxdp_common::{Flow, FlowKey, FragmentKey};

use crate::parse::Segment;

/// What the decision about one packet needs. One per CPU and family: XDP and tc programs run with
/// softirqs disabled, so a packet is finished before the next one of this CPU begins.
#[repr(C)]
pub struct Work<A> {
    /// The packet.
    pub segment: Segment<A>,
    /// What it becomes.
    pub flow: Flow<A>,
    /// What its replies become.
    pub reply: Flow<A>,
    /// The key of its replies.
    pub reply_key: FlowKey<A>,
    /// A flow that is in the way.
    pub other: Flow<A>,
    /// Its key.
    pub other_key: FlowKey<A>,
    /// A place in a set of flows.
    pub way: u32,
    /// Another one.
    pub spare_way: u32,
    /// A place in all sets of flows.
    pub number: u32,
    /// How many places of a set are needed.
    pub needed: u32,
    /// How readily one is given to another flow.
    pub spare: u64,
    /// The datagram that the packet is a fragment of.
    pub fragment: FragmentKey<A>,
    /// The clock of flows when it was read for the packet.
    pub now: u64,
    /// The question where it goes, and the answer.
    pub route: bpf_fib_lookup,
}

/// This CPU's element of `map`.
#[inline(always)]
pub fn get<A>(map: &PerCpuArray<Work<A>, 1>) -> Option<&'static mut Work<A>> {
    // SAFETY: nothing else uses this CPU's element while the program runs, a program asks once,
    // and any bytes are a value.
    map.get_ptr_mut(0).map(|work| unsafe { &mut *work })
}
