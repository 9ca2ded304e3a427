//! Session affinity: which backend a client had. Asked and written with each new flow, so that
//! packets of a flow that exists pay nothing, and do not prolong it.
//!
//! Two first flows of a client that begin on two CPUs at once may part; the later one is kept.

use aya_ebpf::bindings::BPF_ANY;
use lbxdp_common::{Affinity, AffinityKey, MemberKey, TableRef};

use crate::lookup::maps;

/// The backend that a client had less than `timeout` seconds before `now`, if `table` still has
/// it; from now on its time begins anew.
#[inline(always)]
pub fn recall(key: &AffinityKey, table: TableRef, timeout: u32, now: u64) -> Option<u32> {
    let entry = maps::affinity.get_ptr_mut(key)?;
    // SAFETY: the pointer is to an element of a preallocated map. Should it become another
    // client's meanwhile, one flow goes to a backend of the same table that this client did not
    // have, or the other client keeps its own for longer.
    let Affinity { last_used, backend, _pad } = unsafe { *entry };
    if !(Affinity { last_used, backend, _pad }).holds(now, timeout) {
        return None;
    }
    let member = MemberKey { first_block: table.first_block(), backend };
    // SAFETY: only its presence counts.
    unsafe { maps::members.get(&member) }?;
    // SAFETY: as above.
    unsafe { (*entry).last_used = now };
    Some(backend)
}

/// Remembers which backend a client has got.
#[inline(always)]
pub fn remember(key: &AffinityKey, backend: u32, now: u64) {
    let entry = Affinity { last_used: now, backend, _pad: 0 };
    // An LRU map makes room; if it cannot at this moment, the next flow tries again.
    let _not_remembered = maps::affinity.insert(key, &entry, BPF_ANY.into());
}
