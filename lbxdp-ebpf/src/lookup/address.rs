//! What an address is, and which frontend listens on it.

use lbxdp_common::{AddressFlags, Cidr, FlowKey, FrontendKey};

use crate::{family::Family, globals};

/// What `addr` is; `None` if it is nobody's.
#[inline(always)]
pub fn what<F: Family>(addr: &F::Addr) -> Option<AddressFlags> {
    // SAFETY: the value is copied at once. A concurrent update may hand out the element again,
    // and one aligned word is read whole either way.
    unsafe { F::address_map().get(addr) }.copied()
}

/// The id of the frontend that a packet of `key` is sent to.
#[inline(always)]
pub fn frontend<F: Family>(key: &FlowKey<F::Addr>) -> Option<u32> {
    listener::<F>(&FrontendKey::new(key.dst, key.dst_port, key.protocol))
}

/// The id of the frontend that listens there.
#[inline(always)]
pub fn listener<F: Family>(key: &FrontendKey<F::Addr>) -> Option<u32> {
    // SAFETY: as above. An id is immutable and is not used again for a second after its removal.
    unsafe { F::frontend_map().get(key) }.copied()
}

/// Whether `addr`, which [`what`] does not know, is of a range that only Services have: nobody is
/// there, and the default route would carry the packet away.
#[inline(always)]
pub fn is_unassigned<F: Family>(addr: &F::Addr) -> bool {
    globals::cidr_has(F::service_cidrs(), Cidr::words_of(addr))
}
