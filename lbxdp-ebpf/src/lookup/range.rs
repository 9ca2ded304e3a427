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
    let key = RangeKey { service: descriptor.service, addr: *client };
    let key = Aligned(Key::new(bits, key));
    F::range_map().get(&key.0).is_some()
}
