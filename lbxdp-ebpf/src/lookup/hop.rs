//! Next hops that the agent keeps, so that the kernel's tables need not be asked for each packet.

use lbxdp_common::{Flow, Hop};

use crate::{family::Family, lookup::maps};

/// The next hop of the packets that `flow`, a request's half, makes; `None` where the kernel has to
/// be asked. The backend must be the one that the flow has chosen: ids are given to others, but
/// flows last.
#[inline(always)]
pub fn of<F: Family>(flow: &Flow<F::Addr>, now: u64) -> Option<Hop> {
    if flow.has(Flow::<F::Addr>::REPLY) {
        return None;
    }
    let backend = F::backend_map().get(flow.backend)?;
    if backend.port != flow.dst_port || backend.addr != flow.dst || backend.hop == 0 {
        return None;
    }
    let from = maps::hops.get_ptr(backend.hop)?.cast::<u64>();
    // SAFETY: the pointer is to the four words of a hop in an array, which lives as long as the
    // program. Each word is read once and whole, because the agent changes them; what they say of
    // their version tells whether they belong together. Any bits are a hop.
    let hop: Hop = unsafe {
        core::mem::transmute([
            from.read_volatile(),
            from.add(1).read_volatile(),
            from.add(2).read_volatile(),
            from.add(3).read_volatile(),
        ])
    };
    hop.is_valid(now).then_some(hop)
}
