//! tc ingress: what XDP passed because it could not finish it, and everything on devices
//! without native XDP.

use aya_ebpf::EbpfContext as _;
use lbxdp_common::{AddressFlags, DropReason, Flow, Hook};

use super::{Outcome, rewrite, up};
use crate::{
    family::{Family, V4, V6},
    icmp,
    ingress::{self, Verdict},
    lookup::{count, device},
    packet::{Packet as _, skb::SkbPacket},
    parse::{Segment, ethernet},
    resolve::{self, Reply},
    rewrite::Rewriter as _,
    route::{self, Route},
    work::Work,
};

/// Bytes that hold the headers of a packet without options or extension headers.
pub const USUAL_HEADERS: usize = 14 + 40 + 20;

/// Handles an skb that came in.
#[inline(always)]
pub fn handle(packet: &SkbPacket) -> Outcome {
    if packet.has_vlan_tag() {
        return Outcome::Pass;
    }
    packet.linearize(USUAL_HEADERS);
    let Some(frame) = ethernet::parse(packet) else { return Outcome::Pass };
    match frame.ether_type {
        V4::ETHER_TYPE => serve::<V4>(packet, frame.l3),
        V6::ETHER_TYPE if resolve::is_solicitation(packet, frame.l3) => tell(packet).into(),
        V6::ETHER_TYPE => serve::<V6>(packet, frame.l3),
        ethernet::ARP => tell(packet).into(),
        _ => Outcome::Pass,
    }
}

/// Answers a question for an announced address. A function of its own, so that other packets pay for
/// one comparison.
#[inline(never)]
fn tell(packet: &SkbPacket) -> Reply {
    let ifindex = packet.ifindex();
    let Some(device) = device::get(ifindex) else { return Reply::None };
    if !packet.is_for_host() && !packet.is_for_many() {
        return Reply::None;
    }
    resolve::answer(packet, ifindex, device.mac)
}

#[inline(always)]
fn serve<F: icmp::Protocol>(packet: &SkbPacket, l3: usize) -> Outcome {
    let Some((work, address)) = super::arrive::<F, _>(packet, l3) else {
        return Outcome::Pass;
    };
    if !packet.is_for_host() {
        return Outcome::Pass;
    }
    respond::<F>(packet, work, Hook::Ingress, address, |packet, work| {
        if work.flow.has(Flow::<F::Addr>::LOCAL) {
            up::<F, _>(packet, &work.segment, &work.flow)
        } else {
            forward::<F>(packet, work)
        }
    })
}

/// Decides about a packet for `address` and does it; `translate` is for what has a flow.
#[inline(always)]
pub fn respond<F: icmp::Protocol>(
    packet: &SkbPacket,
    work: &mut Work<F::Addr>,
    hook: Hook,
    address: AddressFlags,
    translate: impl FnOnce(&SkbPacket, &mut Work<F::Addr>) -> Outcome,
) -> Outcome {
    let ifindex = packet.ifindex();
    match ingress::decide::<F, _>(packet, work, hook, ifindex, address) {
        Verdict::Pass => Outcome::Pass,
        Verdict::Drop(reason) => Outcome::Drop(reason),
        Verdict::Refuse(reason, error) => refuse::<F>(packet, &work.segment, reason, error),
        Verdict::Echo => super::echo::<F, _>(packet, &work.segment, ifindex),
        Verdict::HandBack => {
            let Some(device) = device::get(ifindex) else { return Outcome::Pass };
            super::hand_back::<F, _>(packet, &work.segment, ifindex, device.mac)
        }
        Verdict::Translate => translate(packet, work),
    }
}

/// Translates a packet and sends it to its next hop.
#[inline(always)]
pub fn forward<F: icmp::Protocol>(packet: &SkbPacket, work: &mut Work<F::Addr>) -> Outcome {
    // The device cuts a GSO packet into pieces before the MTU matters.
    let len = match packet.gso_size() {
        0 => work.segment.len,
        size => work.segment.header_len + size as usize,
    };
    let ifindex = packet.ifindex();
    let device = device::get(ifindex);
    let route = route::lookup::<F>(packet.ctx.as_ptr(), ifindex, device, work, len);
    let Work { segment, flow, route: way, .. } = &*work;
    let refusal = match route {
        Route::Hop | Route::Unresolved if segment.ttl <= 1 => {
            (DropReason::TtlExceeded, icmp::Error::TimeExceeded)
        }
        Route::Hop | Route::Unresolved => {
            return send::<F>(packet, segment, flow, way.ifindex);
        }
        Route::Here if flow.has(Flow::<F::Addr>::REPLY) => {
            return up::<F, _>(packet, segment, flow);
        }
        Route::Here | Route::Unsupported => return Outcome::Drop(DropReason::NoRoute),
        Route::TooBig => (DropReason::TooBig, icmp::Error::TooBig),
        Route::None(reason) => return Outcome::Drop(reason),
    };
    let (reason, error) = refusal;
    refuse::<F>(packet, segment, reason, error)
}

#[inline(always)]
fn send<F: Family>(
    packet: &SkbPacket,
    segment: &Segment<F::Addr>,
    flow: &Flow<F::Addr>,
    ifindex: u32,
) -> Outcome {
    if packet.hop::<F>(segment) && rewrite::<F, _>(packet, segment, flow) {
        Outcome::Neighbour(ifindex)
    } else {
        Outcome::Drop(DropReason::RewriteFailed)
    }
}

#[inline(always)]
fn refuse<F: icmp::Protocol>(
    packet: &SkbPacket,
    segment: &Segment<F::Addr>,
    reason: DropReason,
    error: icmp::Error,
) -> Outcome {
    let ifindex = packet.ifindex();
    if !segment.may_be_answered()
        || !count::may_send_icmp(ingress::now())
        || !icmp::answer::<F, _>(packet, segment, error)
    {
        return Outcome::Drop(reason);
    }
    count::drop(reason);
    Outcome::Answer(ifindex)
}
