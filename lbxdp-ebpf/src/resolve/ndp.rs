//! Neighbour discovery (RFC 4861): solicitations, and advertisements that answer them.

use network_types::ip::Ipv6Hdr;

use super::{L3, Mac, Number, Reply, Resize, address, is_station, put, word};
use crate::{
    family::{Family as _, V6},
    lookup::announced,
    packet::{Packet, read, read_words},
    rewrite::csum::fold16,
};

const SOLICITATION: u8 = 135;
/// The first eight bytes of an advertisement.
const ADVERTISEMENT: u64 = 136 << 56;
/// Of a message that no router has forwarded.
const HOP_LIMIT: u8 = 255;
/// The advertisement answers a solicitation.
const SOLICITED: u64 = 0x40 << 24;
/// What the receiver knew before is over.
const OVERRIDE: u64 = 0x20 << 24;
/// The option with the target's link-layer address, of eight bytes: its first two.
const TARGET_MAC: u64 = 0x0201 << 48;
/// `ff02::1`: all nodes.
const ALL_NODES: (u64, u64) = (0xff02 << 48, 1);
/// The link-layer address that belongs to it (RFC 2464, 7).
const ALL_NODES_MAC: Mac = 0x3333_0000_0001;
/// Offset of the payload's length in the IP header; type of the payload and hop limit follow it.
const LENGTH: usize = 4;
/// Offset of both addresses, which stand in front of the message.
const SRC: usize = L3 + V6::SRC_OFFSET;
const DST: usize = SRC + size_of::<[u8; 16]>();
const MESSAGE: usize = L3 + Ipv6Hdr::LEN;
/// Bytes of both addresses.
const ADDRESSES: usize = MESSAGE - SRC;
/// Offset of the target in both messages.
const TARGET: usize = MESSAGE + 8;
/// Bytes of both messages without options.
const SHORTEST: usize = 24;
/// And of the longest solicitation that is answered: one option would be usual.
const LONGEST: usize = 64;
/// Bytes of an advertisement with one option.
const ANSWER: usize = SHORTEST + size_of::<[u8; 8]>();
/// The first eight bytes of the IP header in front of it: version, length, type, hop limit.
const HEADER: u64 = 0x6 << 60 | (ANSWER as u64) << 16 | (V6::ICMP as u64) << 8 | HOP_LIMIT as u64;

/// Whether the packet at `l3` may be a solicitation. Most are known not to be by one byte.
#[inline(always)]
pub fn is_solicitation<P: Packet>(packet: &P, l3: usize) -> bool {
    read(packet, l3 + V6::PROTOCOL_OFFSET) == Some([V6::ICMP])
        && read(packet, l3 + Ipv6Hdr::LEN) == Some([SOLICITATION, 0])
}

/// Answers a solicitation.
///
/// The answer goes to where the frame came from, whether the solicitation says so in an option (a
/// node that only makes sure of a neighbour leaves that out) or not. Who has no address yet is told
/// with all others that this one is in use.
///
/// What both messages have in common stays where it is.
#[inline(always)]
pub fn answer<P: Resize>(packet: &P, ifindex: u32, mac: Mac) -> Reply {
    let Some([high, low, _, hop_limit]) = read::<[u8; 4], _>(packet, L3 + LENGTH) else {
        return Reply::None;
    };
    let len = usize::from(u16::from_be_bytes([high, low]));
    if hop_limit != HOP_LIMIT || !(SHORTEST..=LONGEST).contains(&len) || len & 7 != 0 {
        return Reply::None;
    }
    let Some(target) = read_words::<[u8; 16], _>(packet, TARGET) else { return Reply::None };
    if !announced::is::<V6>(target.0, ifindex) || sum(packet, len) != Some(0xffff) {
        return Reply::None;
    }
    let Some(from) = word(packet, 6) else { return Reply::None };
    let (Some(high), Some(low)) = (word(packet, SRC), word(packet, SRC + 8)) else {
        return Reply::None;
    };
    let from = from >> 16;
    let is_multicast = high >> 56 == 0xff;
    if !is_station(from) || is_multicast {
        return Reply::None;
    }
    let is_unknown = high | low == 0;
    let flags = if is_unknown { OVERRIDE } else { SOLICITED | OVERRIDE };
    let (high, low) = if is_unknown { ALL_NODES } else { (high, low) };
    let is_written = packet.resize(MESSAGE + ANSWER)
        && put(packet, L3, HEADER)
        && packet.put(SRC, &target.0)
        && put(packet, DST, high)
        && put(packet, DST + 8, low)
        && put(packet, MESSAGE, ADVERTISEMENT | flags)
        && put(packet, MESSAGE + SHORTEST, TARGET_MAC | mac)
        && address(packet, if is_unknown { ALL_NODES_MAC } else { from }, mac);
    if !is_written {
        return Reply::Broken;
    }
    let Some(whole) = read_words::<[u8; ADDRESSES + ANSWER], _>(packet, SRC) else {
        return Reply::Broken;
    };
    let (words, _) = whole.0.as_chunks::<4>();
    let words = words.iter().map(|word| u64::from(u32::from_ne_bytes(*word)));
    let check = !fold16(begin(ANSWER) + words.sum::<u64>());
    Reply::of(packet.put(MESSAGE + 2, &Number(check)))
}

/// The sum of what the pseudo-header has besides addresses.
#[inline(always)]
fn begin(len: usize) -> u64 {
    u64::from((len as u32 + u32::from(V6::ICMP)).to_be())
}

/// The ones' complement sum of the pseudo-header and a message of `len` bytes; `None` where they are not
/// there.
#[inline(always)]
fn sum<P: Packet>(packet: &P, len: usize) -> Option<u16> {
    let mut sum = begin(len);
    for word in 0..(ADDRESSES + LONGEST) / 4 {
        if word * 4 >= ADDRESSES + len {
            break;
        }
        let bytes: [u8; 4] = read(packet, SRC + word * 4)?;
        sum += u64::from(u32::from_ne_bytes(bytes));
    }
    Some(fold16(sum))
}
