//! ICMP and ICMPv6 errors about translated packets (RFC 5508, section 4). One for both back ends:
//! the checksums of these messages are complete wherever they are made.

use lbxdp_common::{Flow, IPPROTO_SCTP, IPPROTO_UDP};

use super::{Rewriter, addresses, checksum_offset, csum::Difference, port};
use crate::{
    family::Family,
    packet::{Wire, read},
    parse::Segment,
};

/// Offset of the checksum in the ICMP header.
const ICMP_CHECKSUM: usize = 2;

/// Sends an error the way of `flow`, and makes of the packet it quotes what the receiver of the
/// error had sent. Each change is stored at once: the stack has no room to keep them, and a packet
/// that cannot be changed any further ends here.
#[inline(always)]
pub fn translate<F: Family, P: Rewriter>(
    packet: &P,
    segment: &Segment<F::Addr>,
    flow: &Flow<F::Addr>,
) -> bool {
    translate_parts::<F, P>(packet, segment, flow).is_some()
}

#[inline(always)]
fn translate_parts<F: Family, P: Rewriter>(
    packet: &P,
    segment: &Segment<F::Addr>,
    flow: &Flow<F::Addr>,
) -> Option<()> {
    let key = &segment.key;
    // Who sees a translated peer does not see its real address in an error either. A router on
    // the way to somebody who is seen as he is shows itself.
    let is_peer = segment.sender == key.src;
    let src = if is_peer || flow.src != key.src { &flow.src } else { &segment.sender };
    let mut header = Difference::default();
    header.replace(F::sum(&segment.sender) + F::sum(&key.dst), F::sum(src) + F::sum(&flow.dst));
    let outer = segment.l3() + F::SRC_OFFSET;
    put(packet, outer, src)?;
    put(packet, outer + size_of::<F::Addr>(), &flow.dst)?;

    // The quoted packet goes the other way, but a sum knows no order. What changes in it, its
    // own checksums among it, changes the message.
    let moved = addresses::<F>(segment, flow);
    let mut content = moved;
    content.replace(
        port(key.src_port) + port(key.dst_port),
        port(flow.src_port) + port(flow.dst_port),
    );
    let mut message = content;
    match F::CHECKSUM_OFFSET {
        Some(offset) => {
            update(packet, segment.l3() + offset, header)?;
            message.add(update(packet, segment.quoted_l3() + offset, moved)?);
        }
        // Without a header checksum the message's own covers the addresses (RFC 8200, 8.1).
        None => message.add(header),
    }
    if let Some(offset) = transport_checksum(packet, segment) {
        message.add(update(packet, offset, content)?);
    }
    update(packet, segment.l4() + ICMP_CHECKSUM, message)?;

    let quoted = segment.quoted_l3() + F::SRC_OFFSET;
    put(packet, quoted, &flow.dst)?;
    put(packet, quoted + size_of::<F::Addr>(), &flow.src)?;
    let [a, b] = flow.dst_port.to_be_bytes();
    let [c, d] = flow.src_port.to_be_bytes();
    put(packet, segment.quoted_l4(), &[a, b, c, d])
}

#[inline(always)]
fn put<T: Wire, P: Rewriter>(packet: &P, offset: usize, value: &T) -> Option<()> {
    packet.put(offset, value).then_some(())
}

/// Takes `change` into the checksum at `offset`; what that changes for a sum around it.
#[inline(always)]
fn update<P: Rewriter>(packet: &P, offset: usize, change: Difference) -> Option<Difference> {
    let old: [u8; 2] = read(packet, offset)?;
    let new = change.apply(old);
    put(packet, offset, &new)?;
    let mut difference = Difference::default();
    difference.replace(u16::from_ne_bytes(old).into(), u16::from_ne_bytes(new).into());
    Some(difference)
}

/// Where the quoted packet's transport checksum is, if it is quoted and there is one. SCTP's stays as
/// it is: nobody can check it by the head of a packet, and none of it depends on addresses.
#[inline(always)]
fn transport_checksum<A, P: Rewriter>(packet: &P, segment: &Segment<A>) -> Option<usize> {
    if segment.key.protocol == IPPROTO_SCTP {
        return None;
    }
    let offset = segment.quoted_l4() + checksum_offset(segment.key.protocol);
    let is_quoted = segment.len == 0 || offset + 2 <= segment.l3() + segment.len;
    let sum: [u8; 2] = read(packet, offset).filter(|_| is_quoted)?;
    // A datagram without a checksum stays without (RFC 768).
    (segment.key.protocol != IPPROTO_UDP || sum != [0; 2]).then_some(offset)
}
