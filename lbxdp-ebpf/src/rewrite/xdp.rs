//! Rewriting a frame in place.

use lbxdp_common::{Flow, IPPROTO_SCTP, IPPROTO_UDP};

use super::{Rewriter, addresses, checksum_offset, csum::Difference, port, sctp, with_ttl};
use crate::{
    family::Family,
    packet::{Pair, Wire, read, write, xdp::XdpPacket},
    parse::{Kind, Segment},
};

impl Rewriter for XdpPacket {
    const MAY_BE_UNFINISHED: bool = false;

    #[inline(always)]
    fn put<T: Wire>(&self, offset: usize, value: &T) -> bool {
        write(self, offset, *value)
    }

    #[inline(always)]
    fn translate<F: Family>(&self, segment: &Segment<F::Addr>, flow: &Flow<F::Addr>) -> bool {
        let difference = addresses::<F>(segment, flow);
        let l3_checksum = match F::CHECKSUM_OFFSET {
            Some(offset) => {
                let offset = segment.l3() + offset;
                let Some(checksum) = read::<[u8; 2], _>(self, offset) else { return false };
                Some((offset, difference.apply(checksum)))
            }
            None => None,
        };
        if segment.kind != Kind::Later && !transport(self, segment, flow, difference) {
            return false;
        }
        if let Some((offset, checksum)) = l3_checksum
            && !write(self, offset, checksum)
        {
            return false;
        }
        write(self, segment.l3() + F::SRC_OFFSET, Pair { src: flow.src, dst: flow.dst })
    }

    #[inline(always)]
    fn hop<F: Family>(&self, segment: &Segment<F::Addr>) -> bool {
        let Some((word_offset, word, difference)) =
            with_ttl::<F, _>(self, segment, segment.ttl.wrapping_sub(1))
        else {
            return false;
        };
        if let Some(offset) = F::CHECKSUM_OFFSET {
            let offset = segment.l3() + offset;
            let Some(checksum) = read::<[u8; 2], _>(self, offset) else { return false };
            if !write(self, offset, difference.apply(checksum)) {
                return false;
            }
        }
        write(self, word_offset, word)
    }
}

/// Gives the packet the ports of `flow` and a checksum that takes in `difference` as well.
#[inline(always)]
fn transport<A>(
    packet: &XdpPacket,
    segment: &Segment<A>,
    flow: &Flow<A>,
    mut difference: Difference,
) -> bool {
    if segment.key.protocol == IPPROTO_SCTP {
        return sctp::transport(packet, segment, flow);
    }
    let offset = segment.l4() + checksum_offset(segment.key.protocol);
    let Some(old) = read::<[u8; 2], _>(packet, offset) else { return false };
    let [a, b] = flow.src_port.to_be_bytes();
    let [c, d] = flow.dst_port.to_be_bytes();
    if !write(packet, segment.l4(), [a, b, c, d]) {
        return false;
    }
    difference.replace(
        port(segment.key.src_port) + port(segment.key.dst_port),
        port(flow.src_port) + port(flow.dst_port),
    );
    let is_udp = segment.key.protocol == IPPROTO_UDP;
    // A datagram without a checksum stays without (RFC 768).
    if is_udp && old == [0; 2] {
        return true;
    }
    let new = difference.apply(old);
    write(packet, offset, if is_udp && new == [0; 2] { [0xff; 2] } else { new })
}

impl XdpPacket {
    /// Gives the frame its next hop's link-layer addresses.
    #[inline(always)]
    pub fn address_frame(&self, dst: [u8; 6], src: [u8; 6]) -> bool {
        write(self, 0, dst) && write(self, 6, src)
    }
}
