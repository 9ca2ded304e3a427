//! ICMP and ICMPv6 errors about translated packets (RFC 5508, section 4). One for both back ends:
//! the checksums of these messages are complete wherever they are made.

use lbxdp_common::{Flow, IPPROTO_SCTP, IPPROTO_UDP};

use super::{Rewriter, addresses, checksum_offset, csum::Difference, port};
use crate::{
    family::Family,
    packet::{Pair, read},
    parse::Segment,
};

/// Offset of the checksum in the ICMP header.
const ICMP_CHECKSUM: usize = 2;

/// A checksum, as it is in the packet and as it will be.
struct Sum {
    offset: usize,
    old: [u8; 2],
    new: [u8; 2],
}

impl Sum {
    #[inline(always)]
    fn read<P: Rewriter>(packet: &P, offset: usize) -> Option<Self> {
        let old = read(packet, offset)?;
        Some(Self { offset, old, new: old })
    }

    /// Takes in what was changed under it, and is a change itself in the eyes of `outer`.
    #[inline(always)]
    fn update(&mut self, change: Difference, outer: &mut Difference) {
        self.new = change.apply(self.old);
        outer.replace(u16::from_ne_bytes(self.old).into(), u16::from_ne_bytes(self.new).into());
    }

    #[inline(always)]
    fn store<P: Rewriter>(&self, packet: &P) -> bool {
        packet.put(self.offset, self.new)
    }
}

/// Sends an error the way of `flow`, and makes of the packet it quotes what the receiver of the
/// error had sent.
#[inline(always)]
pub fn translate<F: Family, P: Rewriter>(
    packet: &P,
    segment: &Segment<F::Addr>,
    flow: &Flow<F::Addr>,
) -> bool {
    let key = &segment.key;
    let (quoted_l3, quoted_l4) = (segment.quoted_l3(), segment.quoted_l4());
    let Some(mut message_sum) = Sum::read(packet, segment.l4() + ICMP_CHECKSUM) else {
        return false;
    };

    // The quoted packet goes the other way, but a sum knows no order. What changes in it, its
    // own checksums among it, changes the message.
    let moved = addresses::<F>(segment, flow);
    let mut content = moved;
    content.replace(
        port(key.src_port) + port(key.dst_port),
        port(flow.src_port) + port(flow.dst_port),
    );
    let mut message = content;
    let quoted_sum = match F::CHECKSUM_OFFSET {
        Some(offset) => {
            let Some(mut sum) = Sum::read(packet, quoted_l3 + offset) else { return false };
            sum.update(moved, &mut message);
            Some(sum)
        }
        None => None,
    };
    let transport_sum = transport::<F, P>(packet, segment).map(|mut sum| {
        sum.update(content, &mut message);
        sum
    });

    // Who sees a translated peer does not see its real address in an error either. A router on
    // the way to somebody who is seen as he is shows itself.
    let is_peer = segment.sender == key.src;
    let src = if is_peer || flow.src != key.src { flow.src } else { segment.sender };
    let old = F::sum(&segment.sender) + F::sum(&key.dst);
    let new = F::sum(&src) + F::sum(&flow.dst);
    let header_sum = match F::CHECKSUM_OFFSET {
        Some(offset) => {
            let Some(mut sum) = Sum::read(packet, segment.l3() + offset) else { return false };
            let mut header = Difference::default();
            header.replace(old, new);
            sum.new = header.apply(sum.old);
            Some(sum)
        }
        None => {
            // Without a header checksum the message's own covers the addresses (RFC 8200, 8.1).
            message.replace(old, new);
            None
        }
    };
    message_sum.new = message.apply(message_sum.old);

    let [a, b] = flow.dst_port.to_be_bytes();
    let [c, d] = flow.src_port.to_be_bytes();
    packet.put(quoted_l3 + F::SRC_OFFSET, Pair { src: flow.dst, dst: flow.src })
        && packet.put(quoted_l4, [a, b, c, d])
        && quoted_sum.is_none_or(|sum| sum.store(packet))
        && transport_sum.is_none_or(|sum| sum.store(packet))
        && message_sum.store(packet)
        && header_sum.is_none_or(|sum| sum.store(packet))
        && packet.put(segment.l3() + F::SRC_OFFSET, Pair { src, dst: flow.dst })
}

/// The quoted packet's transport checksum, if it is quoted and there is one. SCTP's stays as it is:
/// nobody can check it by the head of a packet, and none of it depends on addresses.
#[inline(always)]
fn transport<F: Family, P: Rewriter>(packet: &P, segment: &Segment<F::Addr>) -> Option<Sum> {
    if segment.key.protocol == IPPROTO_SCTP {
        return None;
    }
    let offset = segment.quoted_l4() + checksum_offset(segment.key.protocol);
    let is_quoted = segment.len == 0 || offset + 2 <= segment.l3() + segment.len;
    let sum = Sum::read(packet, offset).filter(|_| is_quoted)?;
    // A datagram without a checksum stays without (RFC 768).
    (segment.key.protocol != IPPROTO_UDP || sum.old != [0; 2]).then_some(sum)
}
