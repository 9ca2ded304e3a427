//! Rewriting an skb through helpers.
//!
//! What the device may have summed over the whole packet (`CHECKSUM_COMPLETE`) has to stay right.
//! With IPv4 a change of addresses cancels out against the header checksum, and
//! `BPF_F_PSEUDO_HDR` accounts for the transport checksum. With IPv6 it cancels out against the
//! transport checksum, but `BPF_F_PSEUDO_HDR` accounts for that all the same, so the addresses
//! have to be accounted for, too (a flag that says "IPv6" is new in 6.16).

use aya_ebpf::bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR};
use lbxdp_common::{Flow, IPPROTO_SCTP, IPPROTO_UDP};

use super::{Rewriter, addresses, checksum_offset, csum::Difference, port, sctp, with_ttl};
use crate::{
    family::Family,
    packet::{Wire, skb::SkbPacket},
    parse::{Kind, Segment},
};

impl Rewriter for SkbPacket {
    const MAY_BE_UNFINISHED: bool = true;

    #[inline(always)]
    fn put<T: Wire>(&self, offset: usize, value: &T) -> bool {
        self.store_accounted(offset, value)
    }

    #[inline(always)]
    fn translate<F: Family>(&self, segment: &Segment<F::Addr>, flow: &Flow<F::Addr>) -> bool {
        let moved = addresses::<F>(segment, flow).word();
        if segment.kind != Kind::Later && !transport(self, segment, flow, moved) {
            return false;
        }
        let src = segment.l3() + F::SRC_OFFSET;
        let dst = src + size_of::<F::Addr>();
        match F::CHECKSUM_OFFSET {
            Some(checksum) => {
                self.l3_checksum(segment.l3() + checksum, moved)
                    && self.store(src, &flow.src)
                    && self.store(dst, &flow.dst)
            }
            None => self.store_accounted(src, &flow.src) && self.store_accounted(dst, &flow.dst),
        }
    }

    #[inline(always)]
    fn hop<F: Family>(&self, segment: &Segment<F::Addr>) -> bool {
        let Some((offset, word, difference)) =
            with_ttl::<F, _>(self, segment, segment.ttl.wrapping_sub(1))
        else {
            return false;
        };
        match F::CHECKSUM_OFFSET {
            Some(checksum) => {
                self.l3_checksum(segment.l3() + checksum, difference.word())
                    && self.store(offset, &word)
            }
            None => self.store_accounted(offset, &word),
        }
    }
}

/// Gives the packet the ports of `flow` and a checksum that takes in `moved`, the change of
/// addresses, as well.
#[inline(always)]
fn transport<A>(packet: &SkbPacket, segment: &Segment<A>, flow: &Flow<A>, moved: u32) -> bool {
    if segment.key.protocol == IPPROTO_SCTP {
        return sctp::transport(packet, segment, flow);
    }
    let mut ports = Difference::default();
    ports.replace(
        port(segment.key.src_port) + port(segment.key.dst_port),
        port(flow.src_port) + port(flow.dst_port),
    );
    let offset = segment.l4() + checksum_offset(segment.key.protocol);
    let mangled = if segment.key.protocol == IPPROTO_UDP { BPF_F_MARK_MANGLED_0 } else { 0 };
    let pseudo = u64::from(mangled | BPF_F_PSEUDO_HDR);
    let [a, b] = flow.src_port.to_be_bytes();
    let [c, d] = flow.dst_port.to_be_bytes();
    packet.l4_checksum(offset, moved, pseudo)
        && packet.l4_checksum(offset, ports.word(), u64::from(mangled))
        && packet.store(segment.l4(), &[a, b, c, d])
}
