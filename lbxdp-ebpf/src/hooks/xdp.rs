//! XDP: the fast path. What it cannot finish it leaves untouched for tc ingress.

use aya_ebpf::EbpfContext as _;
use lbxdp_common::{Counter, Device, DropReason, Flow, Hook};

use super::{Outcome, rewrite, up};
use crate::{
    family::{Family, V4, V6},
    icmp,
    ingress::{self, Verdict},
    lookup::{count, device},
    packet::{read, xdp::XdpPacket},
    parse::{
        Segment,
        ethernet::{self, Frame},
    },
    resolve::{self, Reply},
    rewrite::Rewriter as _,
    route::{self, Route},
    work::Work,
};

/// Handles a frame.
#[inline(always)]
pub fn handle(packet: &XdpPacket) -> Outcome {
    let Some(frame) = ethernet::parse(packet) else { return Outcome::Pass };
    match frame.ether_type {
        V4::ETHER_TYPE => serve::<V4>(packet, &frame),
        V6::ETHER_TYPE if resolve::is_solicitation(packet, frame.l3) => tell(packet).into(),
        V6::ETHER_TYPE => serve::<V6>(packet, &frame),
        ethernet::ARP => tell(packet).into(),
        _ => Outcome::Pass,
    }
}

/// Answers a question for an announced address. A function of its own, so that other packets pay for
/// one comparison.
#[inline(never)]
fn tell(packet: &XdpPacket) -> Reply {
    let ifindex = packet.ctx.ingress_ifindex() as u32;
    let Some(device) = device::get(ifindex) else { return Reply::None };
    let Some(to) = read::<[u8; 6], _>(packet, 0) else { return Reply::None };
    let is_for_us = to == device.mac || to[0] & 1 != 0;
    if !is_for_us || !device.has(Device::TX) {
        return Reply::None;
    }
    resolve::answer(packet, ifindex, device.mac)
}

#[inline(always)]
fn serve<F: icmp::Protocol>(packet: &XdpPacket, frame: &Frame) -> Outcome {
    let Some((work, address)) = super::arrive::<F, _>(packet, frame.l3) else {
        return Outcome::Pass;
    };
    let ifindex = packet.ctx.ingress_ifindex() as u32;
    let Some(device) = device::get(ifindex) else { return Outcome::Pass };
    if read::<[u8; 6], _>(packet, 0) != Some(device.mac) {
        count::event(Counter::ForeignMac);
        return Outcome::Pass;
    }
    let verdict = ingress::decide::<F, _>(packet, work, Hook::Ingress, ifindex, address);
    let (reason, error) = match verdict {
        Verdict::Pass => return Outcome::Pass,
        Verdict::Drop(reason) => return Outcome::Drop(reason),
        Verdict::Refuse(reason, error) => (reason, error),
        Verdict::Echo if device.has(Device::TX) => {
            return super::echo::<F, _>(packet, &work.segment, ifindex);
        }
        Verdict::Echo => return Outcome::Defer,
        Verdict::HandBack if device.has(Device::TX) => {
            return super::hand_back::<F, _>(packet, &work.segment, ifindex, device.mac);
        }
        Verdict::HandBack => return Outcome::Defer,
        Verdict::Translate => match forward::<F>(packet, frame, work, device, ifindex) {
            Ok(outcome) => return outcome,
            Err(refusal) => refusal,
        },
    };
    refuse::<F>(packet, &work.segment, device, ifindex, reason, error)
}

#[inline(always)]
fn forward<F: icmp::Protocol>(
    packet: &XdpPacket,
    frame: &Frame,
    work: &mut Work<F::Addr>,
    device: Device,
    ifindex: u32,
) -> Result<Outcome, (DropReason, icmp::Error)> {
    if work.flow.has(Flow::<F::Addr>::LOCAL) {
        // A tagged frame belongs to the VLAN device above; the stack takes it there.
        return Ok(up::<F, _>(packet, &work.segment, &work.flow));
    }
    let len = work.segment.len;
    let route = route::lookup::<F>(packet.ctx.as_ptr(), ifindex, Some(device), work, len);
    let Work { segment, flow, route: way, .. } = &*work;
    match route {
        Route::Hop => {}
        Route::Unresolved | Route::Unsupported => return Ok(Outcome::Defer),
        Route::Here => return Ok(here::<F>(packet, segment, flow)),
        Route::TooBig => return Err((DropReason::TooBig, icmp::Error::TooBig)),
        Route::None(reason) => return Ok(Outcome::Drop(reason)),
    }
    let Some(outcome) = way_out(frame, device, ifindex, way.ifindex) else {
        return Ok(Outcome::Defer);
    };
    if segment.ttl <= 1 {
        return Err((DropReason::TtlExceeded, icmp::Error::TimeExceeded));
    }
    if packet.hop::<F>(segment)
        && rewrite::<F, _>(packet, segment, flow)
        && packet.address_frame(way.dmac, way.smac)
    {
        Ok(outcome)
    } else {
        Ok(Outcome::Drop(DropReason::RewriteFailed))
    }
}

/// How XDP itself can send out of device `out`, if it can.
#[inline(always)]
fn way_out(frame: &Frame, device: Device, ifindex: u32, out: u32) -> Option<Outcome> {
    if frame.vlan[0] == 0 && out == ifindex {
        return device.has(Device::TX).then_some(Outcome::Transmit);
    }
    let target = device::get(out)?;
    if frame.vlan[0] == 0 {
        return target.has(Device::XMIT).then_some(Outcome::Redirect(out));
    }
    // A tagged frame can only keep its tags.
    let is_same = target.parent == ifindex && target.vlan == frame.vlan && device.has(Device::TX);
    is_same.then_some(Outcome::Transmit)
}

/// The route of a packet that should leave ends at this host. A reply may: its client lives here.
#[inline(always)]
fn here<F: Family>(
    packet: &XdpPacket,
    segment: &Segment<F::Addr>,
    flow: &Flow<F::Addr>,
) -> Outcome {
    if flow.has(Flow::<F::Addr>::REPLY) {
        up::<F, _>(packet, segment, flow)
    } else {
        Outcome::Drop(DropReason::NoRoute)
    }
}

#[inline(always)]
fn refuse<F: icmp::Protocol>(
    packet: &XdpPacket,
    segment: &Segment<F::Addr>,
    device: Device,
    ifindex: u32,
    reason: DropReason,
    error: icmp::Error,
) -> Outcome {
    if !device.has(Device::TX) {
        return Outcome::Defer;
    }
    if !segment.may_be_answered()
        || !count::may_send_icmp(ingress::now())
        || !icmp::answer::<F, _>(packet, segment, error)
    {
        return Outcome::Drop(reason);
    }
    count::drop(reason);
    Outcome::Answer(ifindex)
}
