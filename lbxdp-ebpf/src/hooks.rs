//! The hooks: what each admits, and what each can finish.

pub mod egress;
pub mod pod;
pub mod socket;
pub mod tc;
pub mod xdp;

use lbxdp_common::{AddressFlags, Counter, DropReason, Flow};

use crate::{
    family::Family,
    icmp, ingress,
    lookup::{announced, count},
    packet::{Aligned, Packet, Pair, read_words},
    parse::{Kind, Segment},
    rewrite::Rewriter,
    work::Work,
};

/// What a hook did with a packet.
#[derive(Clone, Copy)]
pub enum Outcome {
    /// Not ours: as it came.
    Pass,
    /// Left as it came, for tc ingress to finish.
    Defer,
    /// Translated; up the stack, or on its way out.
    Translated,
    /// Translated; back out of the device it came by.
    Transmit,
    /// Translated; out of the device with this interface index.
    Redirect(u32),
    /// Translated; to the next hop behind the device with this interface index.
    Neighbour(u32),
    /// Replaced by an answer to its sender, behind the device with this interface index.
    Answer(u32),
    /// An echo request turned into its reply, back behind the device with this interface index.
    Echo(u32),
    /// A question for an announced address, turned into its answer; back where it came from.
    Told,
    /// It ends here.
    Drop(DropReason),
}

/// Starts on the packet whose IP header is at `l3`, if its destination concerns the programs: most
/// packets' does not, and they need no more than that one lookup.
#[inline(always)]
fn arrive<F: Family, P: Packet>(
    packet: &P,
    l3: usize,
) -> Option<(&'static mut Work<F::Addr>, AddressFlags)> {
    let Aligned(addresses) = &read_words::<Pair<F::Addr>, P>(packet, l3 + F::SRC_OFFSET)?;
    let address = ingress::destination::<F>(&addresses.dst)?;
    Some((start::<F>(addresses, l3)?, address))
}

/// Starts on the packet whose IP header is at `l3`, wherever it goes.
#[inline(always)]
fn begin<F: Family, P: Packet>(packet: &P, l3: usize) -> Option<&'static mut Work<F::Addr>> {
    let Aligned(addresses) = &read_words::<Pair<F::Addr>, P>(packet, l3 + F::SRC_OFFSET)?;
    start::<F>(addresses, l3)
}

#[inline(always)]
fn start<F: Family>(addresses: &Pair<F::Addr>, l3: usize) -> Option<&'static mut Work<F::Addr>> {
    let work = F::work()?;
    work.segment.set_l3(l3);
    work.segment.key.src = addresses.src;
    work.segment.key.dst = addresses.dst;
    Some(work)
}

/// Translates a packet whose way through the stack is right.
#[inline(always)]
fn up<F: Family, P: Packet + Rewriter>(
    packet: &P,
    segment: &Segment<F::Addr>,
    flow: &Flow<F::Addr>,
) -> Outcome {
    if rewrite::<F, _>(packet, segment, flow) {
        Outcome::Translated
    } else {
        Outcome::Drop(DropReason::RewriteFailed)
    }
}

/// Makes of a packet what its flow says, and counts it; `false` where that failed.
#[inline(always)]
fn rewrite<F: Family, P: Packet + Rewriter>(
    packet: &P,
    segment: &Segment<F::Addr>,
    flow: &Flow<F::Addr>,
) -> bool {
    if segment.kind == Kind::Error {
        let is_done = packet.translate_error::<F>(segment, flow);
        if is_done {
            count::event(Counter::IcmpTranslated);
        }
        return is_done;
    }
    let is_done = packet.translate::<F>(segment, flow);
    if is_done {
        if segment.kind == Kind::Later {
            count::event(Counter::FragmentFollowed);
        }
        account::<F, _>(packet, segment, flow);
    }
    is_done
}

/// Sends a packet on to the node that had its destination before, as a router would.
#[inline(always)]
fn hand_back<F: Family, P: Packet + Rewriter>(
    packet: &P,
    segment: &Segment<F::Addr>,
    ifindex: u32,
    own: [u8; 6],
) -> Outcome {
    if segment.ttl <= 1 {
        return Outcome::Drop(DropReason::TtlExceeded);
    }
    // As a part of the verdict it would be a register that the verifier takes for unset elsewhere.
    let Some(to) = announced::before::<F>(segment.key.dst, ifindex) else { return Outcome::Pass };
    if packet.hop::<F>(segment) && packet.put(0, &to) && packet.put(6, &own) {
        count::event(Counter::HandedBack);
        Outcome::Transmit
    } else {
        Outcome::Drop(DropReason::RewriteFailed)
    }
}

/// Turns an echo request into its reply, as often as ICMP messages may be sent.
#[inline(always)]
fn echo<F: Family, P: icmp::Answer>(
    packet: &P,
    segment: &Segment<F::Addr>,
    ifindex: u32,
) -> Outcome {
    if !count::may_send_icmp(ingress::now()) {
        return Outcome::Drop(DropReason::IcmpRationed);
    }
    if !icmp::echo::<F, P>(packet, segment) {
        return Outcome::Drop(DropReason::RewriteFailed);
    }
    Outcome::Echo(ifindex)
}

/// Counts a translated packet for its frontend, from the IP header on and without padding, unless
/// it is larger than its header can say.
#[inline(always)]
fn account<F: Family, P: Packet>(packet: &P, segment: &Segment<F::Addr>, flow: &Flow<F::Addr>) {
    let bytes = if segment.len == 0 { packet.len() - segment.l3() } else { segment.len };
    count::traffic::<F>(flow.frontend, flow.has(Flow::<F::Addr>::REPLY), bytes as u64);
}
