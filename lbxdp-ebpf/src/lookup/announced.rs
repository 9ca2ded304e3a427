//! Which addresses this node answers for, and which node did before.

use lbxdp_common::{Announced, AnnouncedKey};

use crate::{family::Family, ingress, lookup::maps};

/// Whether `addr` is announced by this device, and somebody looks after that.
#[inline(always)]
pub fn is<F: Family>(addr: F::Addr, ifindex: u32) -> bool {
    get::<F>(addr, ifindex).is_some_and(|it| it.is_answered != 0) && is_watched()
}

/// The link-layer address of the node to which packets for `addr` went before, by this device.
#[inline(always)]
pub fn before<F: Family>(addr: F::Addr, ifindex: u32) -> Option<[u8; 6]> {
    let before = get::<F>(addr, ifindex)?.before;
    (before != [0; 6]).then_some(before)
}

#[inline(always)]
fn get<F: Family>(addr: F::Addr, ifindex: u32) -> Option<&'static Announced> {
    let key = AnnouncedKey { addr, ifindex };
    // SAFETY: an element lives as long as the program runs; its bytes change one by one, and a frame
    // that goes to half of an address is lost as if the node were.
    unsafe { F::announced_map().get(&key) }
}

#[inline(always)]
fn is_watched() -> bool {
    let Some(watch) = maps::watch.get_ptr(0) else { return false };
    // SAFETY: the pointer is into an array, which lives as long as the program; one aligned word
    // is read whole, and volatile, because the agent changes it.
    let valid_until = unsafe { (&raw const (*watch).valid_until).read_volatile() };
    ingress::now() <= valid_until
}
