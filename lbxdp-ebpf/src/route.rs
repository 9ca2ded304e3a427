//! Where a translated packet goes next: by what the agent keeps of the kernel's tables where it may
//! be believed, else by the tables themselves.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{
        BPF_FIB_LKUP_RET_BLACKHOLE, BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_FWD_DISABLED,
        BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_NOT_FWDED, BPF_FIB_LKUP_RET_PROHIBIT,
        BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LKUP_RET_UNREACHABLE, bpf_fib_lookup,
    },
    helpers::generated,
};
use lbxdp_common::{Device, DropReason};

use crate::{family::Family, lookup::hop, work::Work};

/// A way onwards, or why there is none. What goes with a way is in [`Work::route`]: a value that only
/// some variants have is spilled in all of them, and the verifier objects.
#[derive(Clone, Copy)]
pub enum Route {
    /// The device to leave by, the next hop and its link-layer addresses are known.
    Hop,
    /// The device is known, the next hop's link-layer address is not.
    Unresolved,
    /// The destination is this host.
    Here,
    /// The packet is larger than the way takes, which is in [`crate::parse::Segment::mtu`].
    TooBig,
    /// Encapsulation by the routing table, which only the stack does.
    Unsupported,
    /// There is none.
    None(DropReason),
}

/// Looks up the way of what [`Work::flow`] makes of a packet that came in by device `ifindex`, which
/// is `device` if the agent follows it. `len` is the length of the IP packet, or zero to leave the
/// MTU to the stack.
#[inline(always)]
pub fn lookup<F: Family>(
    ctx: *mut c_void,
    ifindex: u32,
    device: Option<Device>,
    work: &mut Work<F::Addr>,
    len: usize,
) -> Route {
    // Where the kernel does not forward, it says so itself.
    if device.is_some_and(|device| device.has(F::FORWARDS))
        && let Some(hop) = hop::of::<F>(&work.flow, work.now)
    {
        if len > usize::from(hop.mtu) {
            work.segment.mtu = u32::from(hop.mtu);
            return Route::TooBig;
        }
        work.route.ifindex = hop.ifindex;
        work.route.dmac = hop.dst;
        work.route.smac = hop.src;
        return Route::Hop;
    }
    ask::<F>(ctx, ifindex, work, len)
}

/// Asks the kernel. Linux 5.12 for the MTU in the answer.
#[inline(always)]
fn ask<F: Family>(ctx: *mut c_void, ifindex: u32, work: &mut Work<F::Addr>, len: usize) -> Route {
    let Work { segment, flow, route: params, .. } = work;
    // SAFETY: the structure is plain integers.
    *params = unsafe { core::mem::zeroed() };
    params.family = F::AF;
    params.l4_protocol = segment.key.protocol;
    params.sport = flow.src_port.to_be();
    params.dport = flow.dst_port.to_be();
    params.ifindex = ifindex;
    params.__bindgen_anon_1.tot_len = len as u16;
    F::route_between(params, &flow.src, &flow.dst);
    // SAFETY: `ctx` is the kernel's context, `params` is as large as said.
    let answer =
        unsafe { generated::bpf_fib_lookup(ctx, params, size_of::<bpf_fib_lookup>() as i32, 0) };
    match u32::try_from(answer) {
        Ok(BPF_FIB_LKUP_RET_SUCCESS) => Route::Hop,
        Ok(BPF_FIB_LKUP_RET_NO_NEIGH) => Route::Unresolved,
        Ok(BPF_FIB_LKUP_RET_NOT_FWDED) => Route::Here,
        Ok(BPF_FIB_LKUP_RET_FRAG_NEEDED) => {
            // SAFETY: the kernel wrote this field of the union with this answer.
            segment.mtu = u32::from(unsafe { params.__bindgen_anon_1.mtu_result });
            Route::TooBig
        }
        Ok(
            BPF_FIB_LKUP_RET_BLACKHOLE | BPF_FIB_LKUP_RET_UNREACHABLE | BPF_FIB_LKUP_RET_PROHIBIT,
        ) => Route::None(DropReason::NoRoute),
        Ok(BPF_FIB_LKUP_RET_FWD_DISABLED) => Route::None(DropReason::ForwardingDisabled),
        _ => Route::Unsupported,
    }
}
