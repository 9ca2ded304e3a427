//! IPv4, with options.

use network_types::ip::Ipv4Hdr;

use super::{Kind, Quoted, Segment, Unparsed, message, transport};
use crate::{
    family::{Family as _, V4},
    packet::{Packet, Pair, read},
};

/// Options included (RFC 791).
const LONGEST_HEADER: usize = 60;
/// More-fragments flag and offset, of the 16 bits they share with don't-fragment.
const FRAGMENT: u16 = 0x3fff;
/// Offset alone.
const FRAGMENT_OFFSET: u16 = 0x1fff;

/// Parses the packet whose IPv4 header is at `segment.l3()`.
#[inline(always)]
pub fn parse<P: Packet>(packet: &P, segment: &mut Segment<[u8; 4]>) -> Result<(), Unparsed> {
    let l3 = segment.l3();
    let header: Ipv4Hdr = read(packet, l3).ok_or(Unparsed::Malformed)?;
    if !transport::is_served(header.proto) && header.proto != V4::ICMP {
        return Err(Unparsed::NotOurs);
    }
    let header_len = usize::from(header.vihl & 0x0f) << 2;
    if header.vihl >> 4 != 4 || header_len < Ipv4Hdr::LEN {
        return Err(Unparsed::Malformed);
    }
    segment.len = usize::from(u16::from_be_bytes(header.tot_len));
    segment.ttl = header.ttl;
    segment.kind = Kind::Whole;
    if header_len > Ipv4Hdr::LEN {
        packet.linearize(l3 + LONGEST_HEADER + transport::LONGEST_FIXED_HEADER);
    }
    let fragment = u16::from_be_bytes(header.frags) & FRAGMENT;
    if fragment != 0 {
        if header.proto == V4::ICMP {
            return Err(Unparsed::NotOurs);
        }
        segment.fragment_id = u32::from(u16::from_be_bytes(header.id));
        if fragment & FRAGMENT_OFFSET != 0 {
            return transport::later(segment, l3 + header_len, header.proto);
        }
        segment.kind = Kind::First;
    }
    if header.proto == V4::ICMP {
        return message::parse::<V4, P>(packet, segment, l3 + header_len);
    }
    transport::parse(packet, segment, l3 + header_len, header.proto)
}

/// Reads the header of a packet that is quoted from `at` on.
#[inline(always)]
pub fn quoted<P: Packet>(packet: &P, at: usize) -> Result<Quoted<[u8; 4]>, Unparsed> {
    let header: Ipv4Hdr = read(packet, at).ok_or(Unparsed::NotOurs)?;
    let header_len = usize::from(header.vihl & 0x0f) << 2;
    let is_later = u16::from_be_bytes(header.frags) & FRAGMENT_OFFSET != 0;
    if header.vihl >> 4 != 4 || header_len < Ipv4Hdr::LEN || is_later {
        return Err(Unparsed::NotOurs);
    }
    let addresses = Pair { src: header.src_addr, dst: header.dst_addr };
    Ok(Quoted { addresses, protocol: header.proto, l4: at + header_len })
}
