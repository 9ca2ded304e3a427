//! The decision about a packet from a client, the same at XDP, at tc ingress and at a pod's device.

use aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns;
use lbxdp_common::{
    AddressFlags, AffinityKey, DropReason, Hook, IPPROTO_SCTP, IPPROTO_UDP, Octets as _, flow_hash,
};

use crate::{
    family::Family,
    icmp,
    lookup::{
        address, announced,
        backend::{self, NoChoice, Side},
        flow::{self, Found, NotCreated},
        fragment, mode, port, range,
    },
    packet::{Packet, read},
    parse::{Kind, Unparsed},
    work::Work,
};

/// Offset of the link-layer source.
const SOURCE_MAC: usize = 6;

/// What is to become of a packet.
#[derive(Clone, Copy)]
pub enum Verdict {
    /// Not ours.
    Pass,
    /// It ends here, in silence.
    Drop(DropReason),
    /// It ends here, and its sender is told.
    Refuse(DropReason, icmp::Error),
    /// An echo request that is to be answered.
    Echo,
    /// It becomes what [`Work::flow`] says.
    Translate,
    /// It is for the node that had the address before.
    HandBack,
}

/// The clock of flows: nanoseconds of `CLOCK_MONOTONIC_COARSE`. Linux 5.11.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: no arguments, no memory.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// What the destination is, if packets for it concern the programs. An address of a Service range
/// that no Service has is nothing: [`decide`] drops what is sent to it.
#[inline(always)]
pub fn destination<F: Family>(addr: &F::Addr) -> Option<AddressFlags> {
    const OURS: u32 = AddressFlags::SERVICE | AddressFlags::NODE | AddressFlags::TOMBSTONE;
    match address::what::<F>(addr) {
        Some(address) => address.has(OURS).then_some(address),
        None => address::is_unassigned::<F>(addr).then_some(AddressFlags { flags: 0 }),
    }
}

/// Parses the rest of a packet for `address` that came in at `hook`, by this device, and decides about it.
#[inline(always)]
pub fn decide<F: Family, P: Packet>(
    packet: &P,
    work: &mut Work<F::Addr>,
    hook: Hook,
    ifindex: u32,
    address: AddressFlags,
) -> Verdict {
    let verdict = judge::<F, P>(packet, work, hook, ifindex, address);
    if matches!(verdict, Verdict::Translate) {
        if fragment::is_unchangeable::<F>(work) {
            return Verdict::Drop(DropReason::SctpFragment);
        }
        fragment::remember::<F>(work);
    }
    verdict
}

#[inline(always)]
fn judge<F: Family, P: Packet>(
    packet: &P,
    work: &mut Work<F::Addr>,
    hook: Hook,
    ifindex: u32,
    address: AddressFlags,
) -> Verdict {
    if address.flags == 0 {
        return if mode::leaves(false) {
            Verdict::Pass
        } else {
            Verdict::Drop(DropReason::UnknownAddress)
        };
    }
    if let Err(unparsed) = F::parse(packet, &mut work.segment) {
        return unserved(unparsed, address);
    }
    if !fragment::complete::<F>(work) {
        return unserved(Unparsed::Fragment, address);
    }
    // The node's own ports are nobody else's business. SCTP's flows keep their clients' ports.
    let key = &work.segment.key;
    if address.has(AddressFlags::NODE)
        && key.protocol != IPPROTO_SCTP
        && port::is_free(key.dst_port)
    {
        return Verdict::Pass;
    }
    let now = now();
    work.now = now;
    // Flows outlive their frontend, so they come first.
    match flow::follow::<F>(work, hook, now) {
        Found::Flow => return Verdict::Translate,
        Found::Foreign => {
            fragment::remember::<F>(work);
            return Verdict::Pass;
        }
        Found::Nothing => {}
    }
    // Neither of these begins a flow.
    match work.segment.kind {
        Kind::Error => return unserved(Unparsed::NotOurs, address),
        Kind::Later => return unserved(Unparsed::Fragment, address),
        Kind::Whole | Kind::First => {}
    }
    if !address.has(AddressFlags::SERVICE) {
        return Verdict::Pass;
    }
    let frontend = address::frontend::<F>(&work.segment.key);
    // The node's own ports are nobody else's business.
    let is_nodes = frontend.is_none() && address.has(AddressFlags::NODE);
    if is_nodes || mode::leaves(flow::begins(work.segment.tcp_flags)) {
        return Verdict::Pass;
    }
    let Some(frontend) = frontend else { return nobody(address) };
    let begins = flow::begins(work.segment.tcp_flags) || work.segment.key.protocol == IPPROTO_UDP;
    if hook == Hook::Ingress
        && !begins
        && let Some(before) = announced::before::<F>(work.segment.key.dst, ifindex)
        // What comes from there stays here: it must not go round.
        && read::<[u8; 6], _>(packet, SOURCE_MAC) != Some(before)
    {
        return Verdict::HandBack;
    }
    if let Some(reason) = martian::<F>(&work.segment.key.src) {
        return Verdict::Drop(reason);
    }
    let Some(descriptor) = backend::descriptor::<F>(frontend) else {
        return Verdict::Drop(DropReason::BackendMissing);
    };
    let key = &work.segment.key;
    if !range::admits::<F>(&descriptor, &key.src) {
        return Verdict::Drop(DropReason::SourceRange);
    }
    let client = AffinityKey::of_address(descriptor.service, &key.src);
    let side = if hook == Hook::PodIngress { Side::Internal } else { Side::External };
    let choice = backend::choose::<F>(&descriptor, side, flow_hash(key), &client, now);
    let choice = match choice {
        Ok(choice) => choice,
        Err(NoChoice::Reject) => {
            return Verdict::Refuse(DropReason::NoEndpoint, icmp::Error::PortUnreachable);
        }
        Err(NoChoice::Drop) => return Verdict::Drop(DropReason::NoLocalEndpoint),
        Err(NoChoice::Missing) => return Verdict::Drop(DropReason::BackendMissing),
    };
    match flow::create::<F>(work, hook, frontend, &choice, now) {
        Ok(()) => Verdict::Translate,
        Err(NotCreated::PortsExhausted) => Verdict::Drop(DropReason::SnatPortsExhausted),
        Err(NotCreated::TableFull) => Verdict::Drop(DropReason::FlowTableFull),
    }
}

/// What the node itself is sent, it also judges itself; what is sent to a service ends here if it
/// cannot be served, because passed on it would follow the route that brought it.
#[inline(always)]
fn unserved(unparsed: Unparsed, address: AddressFlags) -> Verdict {
    if address.has(AddressFlags::NODE) || !address.has(AddressFlags::SERVICE) {
        return Verdict::Pass;
    }
    match unparsed {
        Unparsed::NotOurs | Unparsed::Fragment if mode::leaves(false) => Verdict::Pass,
        Unparsed::NotOurs => Verdict::Drop(DropReason::UnknownProtocol),
        Unparsed::Echo => Verdict::Echo,
        Unparsed::Malformed => Verdict::Drop(DropReason::Malformed),
        Unparsed::Fragment => Verdict::Drop(DropReason::Fragment),
    }
}

/// What is wrong with a source, if no client can have it. A flow that such a packet began would
/// end in a backend that answers itself, or in a loop.
#[inline(always)]
fn martian<F: Family>(src: &F::Addr) -> Option<DropReason> {
    if F::is_loopback(src) {
        return Some(DropReason::LoopbackSource);
    }
    if F::is_multicast(src) || *src == F::Addr::UNSPECIFIED {
        return Some(DropReason::MulticastSource);
    }
    let is_service = address::what::<F>(src).is_some_and(|address| {
        address.has(AddressFlags::SERVICE) && !address.has(AddressFlags::NODE)
    });
    is_service.then_some(DropReason::ServiceSource)
}

/// No frontend listens on this port of `address`, which is not the node's.
#[inline(always)]
fn nobody(address: AddressFlags) -> Verdict {
    if address.has(AddressFlags::CLUSTER_IP) {
        Verdict::Refuse(DropReason::UnknownPort, icmp::Error::PortUnreachable)
    } else {
        Verdict::Drop(DropReason::UnknownPort)
    }
}
