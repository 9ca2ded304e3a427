//! TCP and UDP.

use lbxdp_common::{IPPROTO_TCP, IPPROTO_UDP};
use network_types::udp::UdpHdr;

use super::{Kind, Segment, Unparsed};
use crate::packet::{Packet, read};

/// Bytes of the TCP header without options; UDP's is shorter.
pub const LONGEST_FIXED_HEADER: usize = TCP_HEADER;

const TCP_HEADER: usize = 20;

/// Whether the programs translate this IANA protocol number.
#[inline(always)]
pub fn is_served(protocol: u8) -> bool {
    protocol == IPPROTO_TCP || protocol == IPPROTO_UDP
}

/// A fragment other than the first: what is at `data` is of the datagram's middle.
#[inline(always)]
pub fn later<A>(segment: &mut Segment<A>, data: usize, protocol: u8) -> Result<(), Unparsed> {
    segment.set_l4(data);
    segment.kind = Kind::Later;
    segment.key.protocol = protocol;
    segment.key._pad = [0; 3];
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
    segment.key.protocol = protocol;
    segment.key._pad = [0; 3];
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
