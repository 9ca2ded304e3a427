//! The two address families behind one trait, so that nothing is written twice.

use core::fmt::Debug;

/// An address as it stands in a packet header: 4 or 16 bytes in network order.
pub trait Octets: Copy + Eq + Ord + Debug + 'static {
    /// Bytes in the address.
    const LEN: usize;
    /// The address of no host (`0.0.0.0`, `::`).
    const UNSPECIFIED: Self;
    /// The IP version: 4 or 6.
    const VERSION: u8;
    /// The address in front of zeros.
    fn widen(&self) -> [u8; 16];
    /// Folds the address into 64 bits for [`crate::flow_hash`], mixing nothing but what is there.
    fn fold(&self) -> u64;
}

impl Octets for [u8; 4] {
    const LEN: usize = 4;
    const UNSPECIFIED: Self = [0; 4];
    const VERSION: u8 = 4;

    #[inline(always)]
    fn widen(&self) -> [u8; 16] {
        let [a, b, c, d] = *self;
        [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    }

    #[inline(always)]
    fn fold(&self) -> u64 {
        u64::from(u32::from_ne_bytes(*self).to_be())
    }
}

impl Octets for [u8; 16] {
    const LEN: usize = 16;
    const UNSPECIFIED: Self = [0; 16];
    const VERSION: u8 = 6;

    #[inline(always)]
    fn widen(&self) -> [u8; 16] {
        *self
    }

    #[inline(always)]
    fn fold(&self) -> u64 {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *self;
        let high = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
        let low = u64::from_be_bytes([i, j, k, l, m, n, o, p]);
        crate::flow::mix(high).wrapping_add(low)
    }
}
