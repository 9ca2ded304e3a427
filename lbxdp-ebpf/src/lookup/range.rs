//! Whom a frontend serves: `loadBalancerSourceRanges`.

use aya_ebpf::btf_maps::lpm_trie::Key;
use lbxdp_common::{Descriptor, Octets as _, RangeKey};

use crate::family::Family;

/// The key of a trie is packed, but the verifier wants words of the stack aligned.
#[repr(C, align(8))]
struct Aligned<K>(Key<K>);

/// Whether the frontend of `descriptor` serves a client at `client`. Asked before a backend is
/// chosen for a new flow; what has begun goes on.
#[inline(always)]
pub fn admits<F: Family>(descriptor: &Descriptor, client: &F::Addr) -> bool {
    if !descriptor.has(Descriptor::SOURCE_RANGES) {
        return true;
    }
    let bits = RangeKey::<F::Addr>::SERVICE_BITS + F::Addr::LEN as u32 * 8;
    let key = RangeKey { service: 0, addr: F::Addr::UNSPECIFIED };
    let mut key = Aligned(Key::new(bits, key));
    let data = (&raw mut key).cast::<u32>();
    // SAFETY: the key is the length, the service and the address, packed. One by one: the compiler
    // would join the service and a short address to a word that is not aligned.
    unsafe {
        data.add(1).write_volatile(descriptor.service);
        data.add(2).cast::<F::Addr>().write_volatile(*client);
    }
    F::range_map().get(&key.0).is_some()
}
