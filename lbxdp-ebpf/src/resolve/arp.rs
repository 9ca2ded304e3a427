//! ARP for IPv4 over Ethernet (RFC 826).

use super::{L3, Mac, Number, Reply, Resize, address, is_station, put, word};
use crate::{family::V4, lookup::announced, packet::read};

/// Ethernet, IPv4, the lengths of their addresses, and what kind of message it is.
const REQUEST: u64 = 0x0001_0800_0604_0001;
const REPLY: u64 = 0x0001_0800_0604_0002;
/// Offset of the sender's link-layer address and the first half of its address.
const FROM: usize = L3 + 8;
/// Offset of the second half, and the target's link-layer address.
const MIDDLE: usize = L3 + 16;
/// Offset of the target's address.
const TARGET: usize = L3 + 24;

/// Answers a message.
///
/// Whoever only wants to know whether the address is in use (RFC 5227) has no own address, and is
/// told so. Whoever claims it for himself is not answered: that is a conflict, and an answer would be
/// one more claim.
#[inline(always)]
pub fn answer<P: Resize>(packet: &P, ifindex: u32, mac: Mac) -> Reply {
    let Some(target) = read::<[u8; 4], _>(packet, TARGET) else { return Reply::None };
    let (Some(kind), Some(from), Some(middle)) =
        (word(packet, L3), word(packet, FROM), word(packet, MIDDLE))
    else {
        return Reply::None;
    };
    let asker = from >> 16;
    let sender = ((from << 16) as u32) | (middle >> 48) as u32;
    let asked = u32::from_be_bytes(target);
    if kind != REQUEST
        || sender == asked
        || !is_station(asker)
        || !announced::is::<V4>(target, ifindex)
    {
        return Reply::None;
    }
    let asked = u64::from(asked);
    let is_written = put(packet, L3, REPLY)
        && put(packet, FROM, mac << 16 | asked >> 16)
        && put(packet, MIDDLE, asked << 48 | asker)
        && packet.put(TARGET, &Number(sender.to_be()))
        && address(packet, asker, mac);
    Reply::of(is_written)
}
