//! TCP, UDP and SCTP.

use lbxdp_common::{IPPROTO_SCTP, IPPROTO_TCP, IPPROTO_UDP};
use network_types::udp::UdpHdr;

use super::{ACK, Kind, RST, SYN, Segment, Unparsed};
use crate::packet::{Packet, read};

/// Bytes of the TCP header without options; the others' are shorter.
pub const LONGEST_FIXED_HEADER: usize = TCP_HEADER;

const TCP_HEADER: usize = 20;
/// Bytes of the common header: ports, tag, checksum (RFC 9260, 3.1).
const SCTP_HEADER: usize = 12;

/// Whether the programs translate this IANA protocol number.
#[inline(always)]
pub fn is_served(protocol: u8) -> bool {
    protocol == IPPROTO_TCP || protocol == IPPROTO_UDP || protocol == IPPROTO_SCTP
}

/// The TCP flags that do to a connection what the first chunk of a packet, of this type, does to an
/// association (RFC 9260, 3.2). The chunks that matter here are never behind another one.
#[inline(always)]
fn as_tcp(chunk: u8) -> u8 {
    const INIT: u8 = 1;
    const ABORT: u8 = 6;
    const SHUTDOWN_COMPLETE: u8 = 14;
    match chunk {
        INIT => SYN,
        ABORT | SHUTDOWN_COMPLETE => RST,
        _ => ACK,
    }
}

/// A fragment other than the first: what is at `data` is of the datagram's middle.
#[inline(always)]
pub fn later<A>(segment: &mut Segment<A>, data: usize, protocol: u8) -> Result<(), Unparsed> {
    segment.set_l4(data);
    segment.kind = Kind::Later;
    segment.key.set_protocol(protocol);
    segment.tcp_flags = 0;
    segment.header_len = data - segment.l3();
    if segment.len < segment.header_len {
        return Err(Unparsed::Malformed);
    }
    Ok(())
}

/// Reads ports and flags of the header at `l4`. It must lie within what the packet has and within
/// what the IP header says it has.
#[inline(always)]
pub fn parse<A, P: Packet>(
    packet: &P,
    segment: &mut Segment<A>,
    l4: usize,
    protocol: u8,
) -> Result<(), Unparsed> {
    segment.set_l4(l4);
    segment.key.set_protocol(protocol);
    let l4_len = if protocol == IPPROTO_TCP {
        let header: [u8; TCP_HEADER] = read(packet, l4).ok_or(Unparsed::Malformed)?;
        segment.key.src_port = u16::from_be_bytes([header[0], header[1]]);
        segment.key.dst_port = u16::from_be_bytes([header[2], header[3]]);
        segment.tcp_flags = header[13];
        let l4_len = usize::from(header[12] >> 4) << 2;
        if l4_len < TCP_HEADER {
            return Err(Unparsed::Malformed);
        }
        l4_len
    } else if protocol == IPPROTO_SCTP {
        let header: [u8; SCTP_HEADER] = read(packet, l4).ok_or(Unparsed::Malformed)?;
        segment.key.src_port = u16::from_be_bytes([header[0], header[1]]);
        segment.key.dst_port = u16::from_be_bytes([header[2], header[3]]);
        let has_chunk = segment.len == 0 || l4 - segment.l3() + SCTP_HEADER + 2 <= segment.len;
        let chunk = read::<[u8; 2], P>(packet, l4 + SCTP_HEADER).filter(|_| has_chunk);
        segment.tcp_flags = chunk.map_or(ACK, |[kind, _]| as_tcp(kind));
        SCTP_HEADER
    } else {
        let header: UdpHdr = read(packet, l4).ok_or(Unparsed::Malformed)?;
        segment.key.src_port = u16::from_be_bytes(header.src);
        segment.key.dst_port = u16::from_be_bytes(header.dst);
        segment.tcp_flags = 0;
        UdpHdr::LEN
    };
    segment.header_len = l4 - segment.l3() + l4_len;
    if segment.len != 0 && segment.len < segment.header_len {
        return Err(Unparsed::Malformed);
    }
    Ok(())
}
