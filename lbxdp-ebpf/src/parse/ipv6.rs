//! IPv6, with extension headers.

use network_types::ip::Ipv6Hdr;

use super::{Kind, Quoted, Segment, Unparsed, message, transport};
use crate::{
    family::{Family as _, V6},
    packet::{Packet, Pair, read},
};

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;

/// Extension headers that are walked; RFC 8200 has a sender use each kind once, destination
/// options twice.
const MOST_HEADERS: usize = 6;
/// Their bytes together. It bounds what the verifier must consider.
const MOST_BYTES: usize = 256;

/// Parses the packet whose IPv6 header is at `segment.l3()`.
#[inline(always)]
pub fn parse<P: Packet>(packet: &P, segment: &mut Segment<[u8; 16]>) -> Result<(), Unparsed> {
    let header: Ipv6Hdr = read(packet, segment.l3()).ok_or(Unparsed::Malformed)?;
    if header.vcf[0] >> 4 != 6 {
        return Err(Unparsed::Malformed);
    }
    let payload = usize::from(u16::from_be_bytes(header.payload_len));
    // A jumbogram (RFC 2675) says zero.
    segment.len = if payload == 0 { 0 } else { Ipv6Hdr::LEN + payload };
    segment.ttl = header.hop_limit;
    segment.kind = Kind::Whole;
    let l4 = segment.l3() + Ipv6Hdr::LEN;
    if transport::is_served(header.next_hdr) {
        transport::parse(packet, segment, l4, header.next_hdr)
    } else if header.next_hdr == V6::ICMP {
        message::parse::<V6, P>(packet, segment, l4)
    } else {
        let (bytes, protocol) = extensions(packet, segment, l4, header.next_hdr)?;
        if segment.kind == Kind::Later {
            return transport::later(segment, l4 + bytes, protocol);
        }
        transport::parse(packet, segment, l4 + bytes, protocol)
    }
}

/// Reads the header of a packet that is quoted from `at` on.
#[inline(always)]
pub fn quoted<P: Packet>(
    packet: &P,
    segment: &mut Segment<[u8; 16]>,
    at: usize,
) -> Result<Quoted<[u8; 16]>, Unparsed> {
    let header: Ipv6Hdr = read(packet, at).ok_or(Unparsed::NotOurs)?;
    if header.vcf[0] >> 4 != 6 {
        return Err(Unparsed::NotOurs);
    }
    let l4 = at + Ipv6Hdr::LEN;
    let addresses = Pair { src: header.src_addr, dst: header.dst_addr };
    if transport::is_served(header.next_hdr) {
        return Ok(Quoted { addresses, protocol: header.next_hdr, l4 });
    }
    let (bytes, protocol) =
        extensions(packet, segment, l4, header.next_hdr).map_err(|_| Unparsed::NotOurs)?;
    if segment.kind == Kind::Later {
        return Err(Unparsed::NotOurs);
    }
    Ok(Quoted { addresses, protocol, l4: l4 + bytes })
}

/// Walks the extension headers at `at`, of which the first is of kind `next`: how many bytes they
/// take, and the protocol behind them. They may say that the packet is a fragment; of a later one
/// nothing behind the fragment header is a header, and only those are followed whose datagram has
/// its transport header there.
#[inline(always)]
fn extensions<P: Packet>(
    packet: &P,
    segment: &mut Segment<[u8; 16]>,
    at: usize,
    next: u8,
) -> Result<(usize, u8), Unparsed> {
    packet.linearize(at + MOST_BYTES + transport::LONGEST_FIXED_HEADER);
    let mut protocol = next;
    let mut bytes = 0;
    for _ in 0..=MOST_HEADERS {
        let longer = match protocol {
            protocol if transport::is_served(protocol) => return Ok((bytes, protocol)),
            HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION => {
                let [next, length, c, d]: [u8; 4] =
                    read(packet, at + bytes).ok_or(Unparsed::Malformed)?;
                let kind = core::mem::replace(&mut protocol, next);
                match kind {
                    // An atomic fragment (RFC 6946) is whole.
                    FRAGMENT if u16::from_be_bytes([c, d]) & 0xfff9 != 0 => {
                        let id = read(packet, at + bytes + 4).ok_or(Unparsed::Malformed)?;
                        segment.fragment_id = u32::from_be_bytes(id);
                        if u16::from_be_bytes([c, d]) & 0xfff8 != 0 {
                            if !transport::is_served(protocol) {
                                return Err(Unparsed::NotOurs);
                            }
                            segment.kind = Kind::Later;
                            return Ok((bytes + 8, protocol));
                        }
                        segment.kind = Kind::First;
                        8
                    }
                    FRAGMENT => 8,
                    AUTHENTICATION => (usize::from(length) + 2) << 2,
                    _ => (usize::from(length) + 1) << 3,
                }
            }
            _ => return Err(Unparsed::NotOurs),
        };
        bytes += longer;
        if bytes > MOST_BYTES {
            break;
        }
    }
    Err(Unparsed::Malformed)
}
