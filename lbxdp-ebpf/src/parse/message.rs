//! ICMP and ICMPv6: echo requests, and errors about packets of flows.

use super::{ICMP_HEADER, Kind, Quoted, Segment, Unparsed, transport};
use crate::{
    family::Family,
    packet::{Packet, read},
};

/// Bytes of a quoted packet that hold all that is looked at: an IPv6 header, extension headers as
/// far as they are walked, and TCP.
const LONGEST_QUOTE: usize = 40 + 256 + transport::LONGEST_FIXED_HEADER;

/// Reads the message at `l4`. Of an error, the segment's key becomes that of the flow direction
/// which the error travels in: the quoted packet's, turned round.
#[inline(always)]
pub fn parse<F: Family, P: Packet>(
    packet: &P,
    segment: &mut Segment<F::Addr>,
    l4: usize,
) -> Result<(), Unparsed> {
    segment.set_l4(l4);
    // Type, code, checksum, and four bytes that depend on the type (RFC 792, RFC 4443).
    match read::<[u8; ICMP_HEADER], P>(packet, l4) {
        Some([kind, 0, ..]) if kind == F::ECHO_REQUEST => Err(Unparsed::Echo),
        Some([kind, ..]) if F::is_error(kind) => quote::<F, P>(packet, segment, l4 + ICMP_HEADER),
        _ => Err(Unparsed::NotOurs),
    }
}

/// Reads the quoted packet at `at`. The first four bytes of its transport header are enough; more
/// than eight need not be there (RFC 792).
#[inline(always)]
fn quote<F: Family, P: Packet>(
    packet: &P,
    segment: &mut Segment<F::Addr>,
    at: usize,
) -> Result<(), Unparsed> {
    packet.linearize(at + LONGEST_QUOTE);
    let Quoted { addresses, protocol, l4 } = F::quoted(packet, segment, at)?;
    let [a, b, c, d] = read(packet, l4).ok_or(Unparsed::NotOurs)?;
    let header_len = l4 + 4 - segment.l3();
    let is_cut = segment.len != 0 && segment.len < header_len;
    // An error goes to the sender of the packet that it is about.
    if !transport::is_served(protocol) || addresses.src != segment.key.dst || is_cut {
        return Err(Unparsed::NotOurs);
    }
    segment.sender = segment.key.src;
    segment.key.src = addresses.dst;
    segment.key.src_port = u16::from_be_bytes([c, d]);
    segment.key.dst_port = u16::from_be_bytes([a, b]);
    segment.key.set_protocol(protocol);
    segment.quoted_l4 = l4 as u16;
    segment.header_len = header_len;
    segment.tcp_flags = 0;
    segment.kind = Kind::Error;
    Ok(())
}
