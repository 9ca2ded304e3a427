//! Changing a packet into what its flow says. Two back ends, because checksums differ by hook:
//! at XDP they are in the packet and are updated in place; an skb may carry one that is not
//! computed yet, or one of the whole packet, and only helpers know which.

mod crc32c;
pub mod csum;
mod error;
mod sctp;
pub mod skb;
pub mod xdp;

use lbxdp_common::{Flow, IPPROTO_TCP};

use crate::{
    family::Family,
    packet::{Packet, Wire, read},
    parse::Segment,
};
use csum::Difference;

/// Offset of the checksum in the TCP header.
const TCP_CHECKSUM: usize = 16;
/// Offset of the checksum in the UDP header.
const UDP_CHECKSUM: usize = 6;

/// Something a packet can be changed through.
pub trait Rewriter: Packet {
    /// Whether a checksum may be left for the device to compute.
    const MAY_BE_UNFINISHED: bool;

    /// Stores bytes whose checksum in the packet, if they have one, is complete.
    fn put<T: Wire>(&self, offset: usize, value: &T) -> bool;

    /// Gives the packet the addresses and ports of `flow`, or a later fragment the addresses;
    /// `false` where it could not be changed.
    /// Nothing is changed unless everything is there to be changed.
    fn translate<F: Family>(&self, segment: &Segment<F::Addr>, flow: &Flow<F::Addr>) -> bool;

    /// The same for an error about a packet of the opposite direction: the packet it quotes
    /// becomes what its sender had sent.
    #[inline(always)]
    fn translate_error<F: Family>(&self, segment: &Segment<F::Addr>, flow: &Flow<F::Addr>) -> bool
    where
        Self: Sized,
    {
        error::translate::<F, Self>(self, segment, flow)
    }

    /// Takes one from TTL or hop limit, which must be more than one.
    fn hop<F: Family>(&self, segment: &Segment<F::Addr>) -> bool;
}

/// Offset of the checksum in the header of TCP or UDP.
#[inline(always)]
fn checksum_offset(protocol: u8) -> usize {
    if protocol == IPPROTO_TCP { TCP_CHECKSUM } else { UDP_CHECKSUM }
}

/// What the change of addresses adds to a checksum.
#[inline(always)]
fn addresses<F: Family>(segment: &Segment<F::Addr>, flow: &Flow<F::Addr>) -> Difference {
    let mut difference = Difference::default();
    difference.replace(
        F::sum(&segment.key.src) + F::sum(&segment.key.dst),
        F::sum(&flow.src) + F::sum(&flow.dst),
    );
    difference
}

/// A port as a word of the packet, in the byte order of this machine.
#[inline(always)]
fn port(port: u16) -> u64 {
    u64::from(port.to_be())
}

/// The 16-bit word of the IP header that holds TTL or hop limit, with `ttl` in it: the offset in
/// the packet, the word, and what the change adds to a checksum.
#[inline(always)]
pub fn with_ttl<F: Family, P: Packet>(
    packet: &P,
    segment: &Segment<F::Addr>,
    ttl: u8,
) -> Option<(usize, [u8; 2], Difference)> {
    let offset = segment.l3() + (F::TTL_OFFSET & !1);
    let old: [u8; 2] = read(packet, offset)?;
    let mut new = old;
    new[F::TTL_OFFSET & 1] = ttl;
    let mut difference = Difference::default();
    difference.replace(u16::from_ne_bytes(old).into(), u16::from_ne_bytes(new).into());
    Some((offset, new, difference))
}
