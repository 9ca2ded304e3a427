//! Whom a frontend serves: `loadBalancerSourceRanges`.

use core::mem::MaybeUninit;

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
    let mut key = MaybeUninit::<Aligned<RangeKey<F::Addr>>>::uninit();
    let aligned = key.as_mut_ptr();
    // SAFETY: the pointers are to fields of `key`, which has no others and no padding in front of
    // the last one's end. Volatile, because the compiler otherwise writes the Service and what is
    // beside it as one word of 8 bytes, at an offset that is no multiple of 8.
    let key = unsafe {
        (&raw mut (*aligned).0.prefix_len).write_volatile(bits);
        (&raw mut (*aligned).0.data.service).write_volatile(descriptor.service);
        (&raw mut (*aligned).0.data.addr).write_unaligned(*client);
        key.assume_init_ref()
    };
    F::range_map().get(&key.0).is_some()
}
