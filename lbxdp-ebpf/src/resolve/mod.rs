//! Who has this address? A node that announces an address says so itself, where and as long as somebody
//! looks after that; to the kernel the address is nobody's.
//!
//! A question becomes its answer, and goes back by the device it came by, the only one it is about.

mod arp;
mod ndp;

use lbxdp_common::DropReason;
use network_types::eth::EthHdr;

use crate::{
    hooks::Outcome,
    packet::{Packet, Wire, read, read_words},
    parse::ethernet,
    rewrite::Rewriter,
};

pub use ndp::is_solicitation;

/// Where the message begins.
const L3: usize = EthHdr::LEN;

/// A link-layer address, as a number, its first byte the highest.
type Mac = u64;

/// A packet that can be made longer or shorter at its end.
pub trait Resize: Rewriter {
    /// Gives the packet this many bytes.
    fn resize(&self, len: usize) -> bool;
}

/// Eight bytes of the packet as a number.
#[inline(always)]
fn word<P: Packet>(packet: &P, offset: usize) -> Option<u64> {
    Some(u64::from_be_bytes(read_words::<[u8; 8], _>(packet, offset)?.0))
}

/// A number as it is written. Bytes that are put together one by one do not lie on the stack as the
/// verifier wants it.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct Number<T>(T);

// SAFETY: an integer.
unsafe impl Wire for Number<u16> {}
// SAFETY: as above.
unsafe impl Wire for Number<u32> {}
// SAFETY: as above.
unsafe impl Wire for Number<u64> {}

/// Writes eight bytes of a number.
#[inline(always)]
fn put<P: Rewriter>(packet: &P, offset: usize, word: u64) -> bool {
    packet.put(offset, &Number(word.to_be()))
}

/// Whether a station can have this link-layer address.
#[inline(always)]
const fn is_station(mac: Mac) -> bool {
    mac != 0 && mac >> 40 & 1 == 0
}

/// Addresses the frame.
#[inline(always)]
fn address<P: Rewriter>(packet: &P, to: Mac, from: Mac) -> bool {
    put(packet, 0, to << 16 | from >> 32) && packet.put(8, &Number((from as u32).to_be()))
}

/// What has become of a frame.
#[repr(u32)]
#[derive(Clone, Copy)]
pub enum Reply {
    /// It is what it was.
    None,
    /// It is the answer to what it was.
    Sent,
    /// It is neither.
    Broken,
}

impl Reply {
    #[inline(always)]
    const fn of(is_whole: bool) -> Self {
        if is_whole { Self::Sent } else { Self::Broken }
    }
}

impl From<Reply> for Outcome {
    #[inline(always)]
    fn from(reply: Reply) -> Self {
        match reply {
            Reply::None => Self::Pass,
            Reply::Sent => Self::Told,
            Reply::Broken => Self::Drop(DropReason::RewriteFailed),
        }
    }
}

/// Answers a frame for this host or for many, if it asks for an address that is announced by this
/// device, whose link-layer address is `mac`. A question in a VLAN is about the device above.
#[inline(always)]
pub fn answer<P: Resize>(packet: &P, ifindex: u32, mac: [u8; 6]) -> Reply {
    let [a, b, c, d, e, f] = mac;
    let mac = u64::from_be_bytes([0, 0, a, b, c, d, e, f]);
    packet.linearize(packet.len());
    match read(packet, L3 - 2).map(u16::from_be_bytes) {
        Some(ethernet::ARP) => arp::answer(packet, ifindex, mac),
        Some(ethernet::IPV6) => ndp::answer(packet, ifindex, mac),
        _ => Reply::None,
    }
}
