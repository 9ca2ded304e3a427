//! tc on the host's side of a pod's device, for pods whose sockets no hook sees. The request is
//! translated as it comes from the pod, the reply as it goes to the pod: to the stack in between,
//! conntrack and policies included, the pod talks to the backend.

use lbxdp_common::{DropReason, Hook};

use super::{Outcome, egress, rewrite, tc, up};
use crate::{
    family::{Family as _, V4, V6},
    icmp,
    lookup::fragment,
    packet::{Packet as _, skb::SkbPacket},
    parse::ethernet,
    work::Work,
};

/// Handles an skb that a pod sent.
#[inline(always)]
pub fn ingress(packet: &SkbPacket) -> Outcome {
    if packet.has_vlan_tag() {
        return Outcome::Pass;
    }
    packet.linearize(tc::USUAL_HEADERS);
    let Some(frame) = ethernet::parse(packet) else { return Outcome::Pass };
    match frame.ether_type {
        V4::ETHER_TYPE => request::<V4>(packet, frame.l3),
        V6::ETHER_TYPE => request::<V6>(packet, frame.l3),
        _ => Outcome::Pass,
    }
}

/// Handles an skb that a pod is about to receive.
#[inline(always)]
pub fn egress(packet: &SkbPacket) -> Outcome {
    packet.linearize(tc::USUAL_HEADERS);
    let Some(frame) = ethernet::parse(packet) else { return Outcome::Pass };
    match frame.ether_type {
        V4::ETHER_TYPE => reply::<V4>(packet, frame.l3),
        V6::ETHER_TYPE => reply::<V6>(packet, frame.l3),
        _ => Outcome::Pass,
    }
}

#[inline(always)]
fn request<F: icmp::Protocol>(packet: &SkbPacket, l3: usize) -> Outcome {
    let Some((work, address)) = super::arrive::<F, _>(packet, l3) else {
        return Outcome::Pass;
    };
    // Whose hardware address it is does not matter: where the device is a port of a bridge, it is
    // the bridge's.
    if packet.is_for_many() {
        return Outcome::Pass;
    }
    tc::respond::<F>(packet, work, Hook::PodIngress, address, |packet, work| {
        if work.flow.goes_back(&work.segment.key) {
            turn_round::<F>(packet, work)
        } else {
            up::<F, _>(packet, &work.segment, &work.flow)
        }
    })
}

/// Translates a packet of a pod to itself and sends it back. The stack would not: the source is
/// an address of its own, or one whose route leads elsewhere. TTL and hop limit stay, because
/// the packet passes no router; it cannot go round, because it is addressed to the pod now.
#[inline(always)]
fn turn_round<F: icmp::Protocol>(packet: &SkbPacket, work: &Work<F::Addr>) -> Outcome {
    let Work { segment, flow, .. } = work;
    if rewrite::<F, _>(packet, segment, flow) && icmp::turn_frame(packet) {
        Outcome::Transmit
    } else {
        Outcome::Drop(DropReason::RewriteFailed)
    }
}

/// The source may be a backend anywhere, so there is no address to ask for first: the flow is the
/// only lookup.
#[inline(always)]
fn reply<F: icmp::Protocol>(packet: &SkbPacket, l3: usize) -> Outcome {
    let Some(work) = super::begin::<F, _>(packet, l3) else { return Outcome::Pass };
    if !egress::has_flow::<F>(packet, work, Hook::PodEgress) {
        return Outcome::Pass;
    }
    if fragment::is_unchangeable::<F>(work) {
        return Outcome::Drop(DropReason::SctpFragment);
    }
    up::<F, _>(packet, &work.segment, &work.flow)
}
