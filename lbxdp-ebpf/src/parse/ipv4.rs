//! IPv4, with options.

use network_types::ip::Ipv4Hdr;

use super::{Segment, Unparsed, transport};
use crate::packet::{Packet, read};

/// Options included (RFC 791).
const LONGEST_HEADER: usize = 60;
/// IANA protocol number.
const ICMP: u8 = 1;
/// Type of the message (RFC 792).
const ECHO_REQUEST: u8 = 8;
/// More-fragments flag and offset, of the 16 bits they share with don't-fragment.
const FRAGMENT: u16 = 0x3fff;

/// Parses the packet whose IPv4 header is at `segment.l3()`.
#[inline(always)]
pub fn parse<P: Packet>(packet: &P, segment: &mut Segment<[u8; 4]>) -> Result<(), Unparsed> {
    let l3 = segment.l3();
    let header: Ipv4Hdr = read(packet, l3).ok_or(Unparsed::Malformed)?;
    if !transport::is_served(header.proto) && header.proto != ICMP {
        return Err(Unparsed::NotOurs);
    }
    let header_len = usize::from(header.vihl & 0x0f) << 2;
    if header.vihl >> 4 != 4 || header_len < Ipv4Hdr::LEN {
        return Err(Unparsed::Malformed);
    }
    if u16::from_be_bytes(header.frags) & FRAGMENT != 0 {
        return Err(Unparsed::Fragment);
    }
    segment.len = usize::from(u16::from_be_bytes(header.tot_len));
    segment.ttl = header.ttl;
    if header_len > Ipv4Hdr::LEN {
        packet.linearize(l3 + LONGEST_HEADER + transport::LONGEST_FIXED_HEADER);
    }
    if header.proto == ICMP {
        return Err(transport::message(packet, segment, l3 + header_len, ECHO_REQUEST));
    }
    transport::parse(packet, segment, l3 + header_len, header.proto)
}
