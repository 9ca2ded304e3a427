//! `loadBalancerSourceRanges`: which clients a Service port serves.

use crate::layout;

/// What follows the prefix length in the key of `ranges_v4` and `ranges_v6` (longest-prefix
/// tries). The prefix length counts the bits of both fields: 32 for the Service port and as many
/// as the range has for the address.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RangeKey<A> {
    /// [`crate::Descriptor::service`].
    pub service: u32,
    /// First address of the range, network order.
    pub addr: A,
}

impl<A> RangeKey<A> {
    /// Bits of the key in front of the address.
    pub const SERVICE_BITS: u32 = 32;
}

/// The whole key, as the kernel sees it.
#[repr(C)]
pub struct PrefixedRange<A> {
    /// Bits of both fields that count.
    pub prefix_len: u32,
    /// [`RangeKey::service`].
    pub service: u32,
    /// [`RangeKey::addr`].
    pub addr: A,
}

layout::record! { PrefixedRange<A> { prefix_len, service, addr } }

const _: () = {
    assert!(size_of::<RangeKey<[u8; 4]>>() == 8);
    assert!(size_of::<RangeKey<[u8; 16]>>() == 20);
};
