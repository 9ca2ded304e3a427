//! `loadBalancerSourceRanges`: which clients a Service port serves.

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

const _: () = {
    assert!(size_of::<RangeKey<[u8; 4]>>() == 8);
    assert!(size_of::<RangeKey<[u8; 16]>>() == 20);
};
