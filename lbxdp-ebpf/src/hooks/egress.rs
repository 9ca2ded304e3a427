//! tc egress: replies of backends on this node get their frontend's address.

use lbxdp_common::{AddressFlags, DropReason, Hook};

use super::{Outcome, tc, up};
use crate::{
    family::{Family, V4, V6},
    icmp, ingress,
    lookup::{
        address, device,
        flow::{self, Found},
        fragment,
    },
    packet::{Packet as _, read, skb::SkbPacket},
    parse::ethernet,
    work::Work,
};

/// Whether the packet is an ICMP or ICMPv6 message, extension headers aside.
#[inline(always)]
fn is_icmp<F: Family>(packet: &SkbPacket, l3: usize) -> bool {
    read::<[u8; 2], _>(packet, l3 + (F::PROTOCOL_OFFSET & !1))
        .is_some_and(|word| word[F::PROTOCOL_OFFSET & 1] == F::ICMP)
}

/// Handles an skb that is about to leave.
#[inline(always)]
pub fn handle(packet: &SkbPacket) -> Outcome {
    packet.linearize(tc::USUAL_HEADERS);
    let Some(frame) = ethernet::parse(packet) else { return Outcome::Pass };
    match frame.ether_type {
        V4::ETHER_TYPE => serve::<V4>(packet, frame.l3),
        V6::ETHER_TYPE => serve::<V6>(packet, frame.l3),
        _ => Outcome::Pass,
    }
}

#[inline(always)]
fn serve<F: icmp::Protocol>(packet: &SkbPacket, l3: usize) -> Outcome {
    let Some(work) = super::begin::<F, _>(packet, l3) else { return Outcome::Pass };
    // An error about a translated packet may be the node's own; everything else is a backend's.
    let is_backend = || {
        address::what::<F>(&work.segment.key.src)
            .is_some_and(|address| address.has(AddressFlags::BACKEND))
    };
    if !is_icmp::<F>(packet, l3) && !is_backend() {
        return Outcome::Pass;
    }
    // A backend of this node sends by its own device or by none. What came in by a device that
    // faces outwards and is only forwarded has somebody else's word for its source.
    let is_from_outside = device::get(packet.ingress_ifindex()).is_some();
    if is_from_outside || !has_flow::<F>(packet, work, Hook::Egress) {
        return Outcome::Pass;
    }
    if fragment::is_unchangeable::<F>(work) {
        return Outcome::Drop(DropReason::SctpFragment);
    }
    if work.flow.dst == work.segment.key.dst {
        up::<F, _>(packet, &work.segment, &work.flow)
    } else {
        // The reply of a backend that called itself: what it left for is not where it goes.
        tc::forward::<F>(packet, work)
    }
}

/// Parses a packet that leaves and finds its flow, if it has one that is valid at `hook`.
#[inline(always)]
pub fn has_flow<F: Family>(packet: &SkbPacket, work: &mut Work<F::Addr>, hook: Hook) -> bool {
    let is_found = F::parse(packet, &mut work.segment).is_ok()
        && fragment::complete::<F>(work)
        && flow::follow::<F>(work, hook, ingress::now()) == Found::Flow;
    if is_found {
        fragment::remember::<F>(work);
    }
    is_found
}
