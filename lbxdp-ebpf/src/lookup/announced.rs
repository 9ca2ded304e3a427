//! Which addresses this node answers for.

use lbxdp_common::AnnouncedKey;

use crate::{family::Family, ingress, lookup::maps};

/// Whether `addr` is announced by this device, and somebody looks after that.
#[inline(always)]
pub fn is<F: Family>(addr: F::Addr, ifindex: u32) -> bool {
    let key = AnnouncedKey { addr, ifindex };
    // SAFETY: nothing but its being there is looked at.
    unsafe { F::announced_map().get(&key) }.is_some() && is_watched()
}

#[inline(always)]
fn is_watched() -> bool {
    let Some(watch) = maps::watch.get_ptr(0) else { return false };
    // SAFETY: the pointer is into an array, which lives as long as the program; one aligned word
    // is read whole, and volatile, because the agent changes it.
    let valid_until = unsafe { (&raw const (*watch).valid_until).read_volatile() };
    ingress::now() <= valid_until
}
