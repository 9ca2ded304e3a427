//! Ranges of addresses that the programs compare with, without a map.

use crate::Octets;

/// Service ranges of one family at the most.
pub const MAX_SERVICE_CIDRS: usize = 4;

/// A range of addresses as words of the address in front of zeros, each in the byte order of this
/// machine: a member masked is the range's first address. A range without any bit of a mask is
/// unused, so none is as large as all addresses.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    /// First address of the range.
    pub first: [u64; 2],
    /// The bits that all members share.
    pub mask: [u64; 2],
}

/// The ranges of one family, unused ones last.
pub type Cidrs = [Cidr; MAX_SERVICE_CIDRS];

impl Cidr {
    /// No range.
    pub const UNUSED: Self = Self { first: [0; 2], mask: [0; 2] };

    /// The range of the addresses that share their first `len` bits (1 to 128) with `addr`.
    pub fn new<A: Octets>(addr: &A, len: u8) -> Self {
        let mask = u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0);
        let first = u128::from_be_bytes(addr.widen()) & mask;
        Self { first: words(first.to_be_bytes()), mask: words(mask.to_be_bytes()) }
    }

    /// The words of an address, to compare.
    #[inline(always)]
    pub fn words_of<A: Octets>(addr: &A) -> [u64; 2] {
        words(addr.widen())
    }
}

#[inline(always)]
fn words(bytes: [u8; 16]) -> [u64; 2] {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = bytes;
    [u64::from_ne_bytes([a, b, c, d, e, f, g, h]), u64::from_ne_bytes([i, j, k, l, m, n, o, p])]
}

const _: () = assert!(size_of::<Cidr>() == 32);
