//! Flows: what a packet became, and what the next one becomes.
//!
//! Every flow is two entries of one table, each the other's inverse. A flow that both sides have
//! confirmed is believed by the entry that a packet meets, and the other entry is looked at once a
//! second: the reply's entry of such a flow is never taken without the request's ([`table::enter`]),
//! so nobody else can have its source port. Until then, the other entry is looked at with each
//! packet: an entry whose sibling is gone puts it back, one whose sibling undoes some other
//! translation by now is ended. A flow becomes confirmed in its reply's entry first.

mod atomic;
pub mod call;
mod table;

use lbxdp_common::{
    Counter, Flow, FlowKey, FlowState, Hook, IPPROTO_SCTP, IPPROTO_UDP, PortShare,
    flow_set::FlowPlace,
};

use crate::{
    family::Family,
    globals,
    lookup::{
        backend::{self, Choice},
        count, maps,
    },
    parse::{ACK, FIN, Kind, RST, SYN},
    work::Work,
};
use table::Entered;

/// Nanoseconds for which `last_seen` is left alone, so that a busy flow does not dirty two cache
/// lines with each packet.
const REFRESH: i64 = 1_000_000_000;

/// Ports tried for a flow whose source port cannot stay as it is. Each costs a look into the table.
const PORT_TRIES: u32 = 16;

/// What the table has for a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Nothing that is alive and valid at the hook.
    Nothing,
    /// A flow: the packet becomes what [`Work::flow`] says.
    Flow,
    /// A flow that the stack translates: the packet is left to it.
    Foreign,
}

/// Why no flow was created.
#[derive(Clone, Copy)]
pub enum NotCreated {
    /// No source port is free.
    PortsExhausted,
    /// The map took no entry.
    TableFull,
}

/// Finds what the flow of a packet makes of it, if it has one that is alive and valid at `hook`.
/// An error about a flow finds what packets become that travel as it does.
#[inline(always)]
pub fn follow<F: Family>(work: &mut Work<F::Addr>, hook: Hook, now: u64) -> Found {
    let Work { segment, flow, way, .. } = work;
    let key = &segment.key;
    let hash = key.hash();
    let Some(place) = table::find::<F>(key, hash, way) else { return Found::Nothing };
    if !table::read::<F>(place, hash, flow) {
        return Found::Nothing;
    }
    let is_foreign = flow.has(Flow::<F::Addr>::FOREIGN);
    if flow.hook != hook as u8 && !is_foreign {
        return Found::Nothing;
    }
    // An error about a flow is no sign of its life: anybody on the way may send one.
    let is_news = segment.kind != Kind::Error
        && advance(flow, key.protocol, segment.tcp_flags) != (flow.state, flow.flags);
    let is_quiet = flow.is_confirmed() && !is_news && segment.tcp_flags & SYN == 0;
    if !(is_quiet && flow.idle_ns(now) < REFRESH) {
        let goes_on = match F::attend_flow(work, place, now) {
            Attended::GOES_ON => true,
            Attended::HALVED => restore::<F>(work, place, now),
            _ => false,
        };
        if !goes_on {
            return Found::Nothing;
        }
    }
    if is_foreign {
        count::event(Counter::ForeignHit);
        return Found::Foreign;
    }
    count::event(Counter::FlowHit);
    Found::Flow
}

/// What became of a flow that was looked at with both its entries.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Attended(u64);

impl Attended {
    /// It is over.
    const IS_OVER: Self = Self(0);
    /// It goes on.
    const GOES_ON: Self = Self(1);
    /// It goes on if its other entry, which is gone, can be put back.
    const HALVED: Self = Self(2);
}

/// Looks at both entries of the flow that a packet has met at `place`, and tells both of the packet.
#[inline(always)]
fn attend<F: Family>(
    work: &mut Work<F::Addr>,
    place: *mut FlowPlace<F::Addr>,
    now: u64,
) -> Attended {
    let Work { segment, flow, reply, reply_key, way, .. } = work;
    let key = &segment.key;
    let is_foreign = flow.has(Flow::<F::Addr>::FOREIGN);
    let is_reply = flow.has(Flow::<F::Addr>::REPLY);
    *reply_key = flow.sibling_key(key);
    let hash = reply_key.hash();
    let sibling = table::find::<F>(reply_key, hash, way)
        .filter(|sibling| table::read::<F>(*sibling, hash, reply));
    let is_mine = sibling.is_some() && reply.undoes(key);

    // The client begins again, where the old connection is over or nothing new may begin: its packet
    // chooses anew. A live flow is kept, because anybody can send a SYN in a client's name. The stack
    // would begin again too where it translates: all but a SYN that is sent again is a new connection.
    // An answer to a SYN that this flow has not seen is another connection's: the client uses the port
    // to talk to the backend itself.
    let is_closing = flow.state == FlowState::Closing as u8;
    let is_restart = if begins(segment.tcp_flags) {
        if is_foreign {
            flow.state != FlowState::Syn as u8
        } else {
            is_closing || !is_reply && !backend::takes_new_flows::<F>(flow)
        }
    } else {
        segment.tcp_flags & SYN != 0 && is_reply && is_closing && !is_foreign
    };
    if flow.expired(now) || is_restart {
        // The reply's entry first: who puts back the request's looks for it afterwards. The reply of
        // a foreign flow stays: to the stack, its source port is in use as yet.
        if is_reply {
            table::end(place, flow.check);
        }
        if let Some(sibling) = sibling
            && is_mine
            && !is_foreign
        {
            table::end(sibling, reply.check);
        }
        if !is_reply {
            table::end(place, flow.check);
        }
        count::event(Counter::FlowExpired);
        return Attended::IS_OVER;
    }
    if sibling.is_some() && !is_mine && !is_foreign {
        table::end(place, flow.check);
        count::event(Counter::FlowBroken);
        return Attended::IS_OVER;
    }

    let is_error = segment.kind == Kind::Error;
    if !is_error {
        let is_due = flow.idle_ns(now) >= REFRESH;
        let news = advance(flow, key.protocol, segment.tcp_flags);
        if is_due || news != (flow.state, flow.flags) {
            (flow.state, flow.flags) = news;
            flow.last_seen = now;
        }
    }
    if is_foreign || is_mine {
        if flow.last_seen == now && !is_error {
            // A foreign flow may have lost its other half to another flow.
            tell(flow, place, sibling.filter(|_| is_mine), reply.check);
        }
        return Attended::GOES_ON;
    }
    // The reply's entry knows first what the request's is put back with.
    let news = (flow.state, flow.flags);
    if is_reply && !table::advance(place, flow.check, news, flow.last_seen) {
        return Attended::IS_OVER;
    }
    Attended::HALVED
}

/// Writes what both entries of a flow share: the reply's first if that confirms the flow, else last.
/// Nobody takes the place of a reply's entry that is confirmed without the request's, and an entry
/// that is not confirmed is not believed alone.
#[inline(always)]
fn tell<A>(
    flow: &Flow<A>,
    place: *mut FlowPlace<A>,
    sibling: Option<*mut FlowPlace<A>>,
    sibling_check: u32,
) {
    let (news, now) = ((flow.state, flow.flags), flow.last_seen);
    let Some(sibling) = sibling else {
        table::advance(place, flow.check, news, now);
        return;
    };
    if flow.is_confirmed() == flow.has(Flow::<A>::REPLY) {
        let is_told = table::advance(place, flow.check, news, now);
        if is_told || !flow.is_confirmed() {
            table::advance(sibling, sibling_check, news, now);
        }
    } else {
        let is_told = table::advance(sibling, sibling_check, news, now);
        if is_told || !flow.is_confirmed() {
            table::advance(place, flow.check, news, now);
        }
    }
}

/// Puts back the other half of the flow that a packet has met at `place`. Whether the flow goes on.
#[inline(always)]
fn restore<F: Family>(work: &mut Work<F::Addr>, place: *mut FlowPlace<F::Addr>, now: u64) -> bool {
    let Work { segment, flow, reply, .. } = work;
    let is_reply = flow.has(Flow::<F::Addr>::REPLY);
    let check = flow.check;
    invert::<F>(&segment.key, flow, reply);
    let entered = F::enter_flow(work, true, now);
    if !entered.is_there() {
        table::end(place, check);
        count::event(Counter::FlowBroken);
        return false;
    }
    if !is_reply {
        table::advance(place, check, (work.flow.state, work.flow.flags), work.flow.last_seen);
    } else if table::status(place).check() != check {
        // Somebody has taken the reply's place, and may have missed the request.
        withdraw::<F>(work, entered);
        return false;
    }
    count::event(Counter::FlowRestored);
    true
}

/// Ends the entry that was entered last.
#[inline(always)]
fn withdraw<F: Family>(work: &Work<F::Addr>, entered: Entered) {
    if let Some(place) = table::at::<F>(entered) {
        table::end(place, work.reply.check);
    }
}

/// Whether these flags are those of the first packet of a connection.
#[inline(always)]
pub fn begins(tcp_flags: u8) -> bool {
    tcp_flags & (SYN | ACK) == SYN
}

/// State and flags after a packet.
#[inline(always)]
fn advance<A>(flow: &Flow<A>, protocol: u8, tcp_flags: u8) -> (u8, u8) {
    let mut flags = flow.flags;
    let mut state = flow.state;
    if flow.has(Flow::<A>::REPLY) {
        flags |= Flow::<A>::ANSWERED;
    }
    if protocol == IPPROTO_UDP {
        return (state, flags);
    }
    if tcp_flags & FIN != 0 {
        flags |=
            if flow.has(Flow::<A>::REPLY) { Flow::<A>::BACKEND_FIN } else { Flow::<A>::CLIENT_FIN };
    }
    let fins = Flow::<A>::BACKEND_FIN | Flow::<A>::CLIENT_FIN;
    if tcp_flags & RST != 0 || flags & fins == fins {
        state = FlowState::Closing as u8;
    } else if state == FlowState::Syn as u8
        && flags & Flow::<A>::ANSWERED != 0
        && !flow.has(Flow::<A>::REPLY)
        && tcp_flags & (SYN | ACK) == ACK
    {
        state = FlowState::Established as u8;
    }
    (state, flags)
}

/// Makes `reply` the entry that undoes `flow`, found under `key`.
#[inline(always)]
fn invert<F: Family>(key: &FlowKey<F::Addr>, flow: &Flow<F::Addr>, reply: &mut Flow<F::Addr>) {
    *reply = *flow;
    reply.src = key.dst;
    reply.dst = key.src;
    reply.src_port = key.dst_port;
    reply.dst_port = key.src_port;
    reply.hook = flow.opposite_hook(key) as u8;
    reply.flags ^= Flow::<F::Addr>::REPLY;
}

/// Creates the flow of a packet at `hook` to a backend: both entries, the reply's first, so that
/// no request leaves whose reply would be a stranger.
#[inline(always)]
pub fn create<F: Family>(
    work: &mut Work<F::Addr>,
    hook: Hook,
    frontend: u32,
    choice: &Choice<F::Addr>,
    now: u64,
) -> Result<(), NotCreated> {
    let Choice { id, backend } = choice;
    let Work { segment, flow, .. } = work;
    let key = &segment.key;
    // A backend that calls itself must see another source, or it would answer itself directly.
    // The frontend's address is one whose replies come back this way, and no martian.
    let is_hairpin = backend.addr == key.src;
    // A pod's address is known to every backend, and the replies come back to its device.
    let keeps_source = (backend.is_local() || hook == Hook::PodIngress) && !is_hairpin;
    flow.src = if keeps_source {
        key.src
    } else if is_hairpin {
        key.dst
    } else {
        backend.snat_addr
    };
    flow.dst = backend.addr;
    flow.src_port = key.src_port;
    flow.dst_port = backend.port;
    flow.frontend = frontend;
    flow.backend = *id;
    flow.state = if key.protocol == IPPROTO_UDP {
        FlowState::Datagram
    } else if begins(segment.tcp_flags) {
        FlowState::Syn
    } else {
        // The middle of a connection whose state was lost.
        FlowState::Established
    } as u8;
    flow.hook = hook as u8;
    flow.flags = if backend.is_local() { Flow::<F::Addr>::LOCAL } else { 0 };
    flow.check = 0;
    flow._pad = 0;
    flow._pad2 = 0;
    flow.last_seen = now;

    let replies = enter_reply::<F>(work, keeps_source, now)?;
    let check = work.reply.check;
    let Work { segment, flow, reply, reply_key, .. } = work;
    *reply = *flow;
    *reply_key = segment.key;
    let requests = F::enter_flow(work, false, now);
    let Some(place) = table::at::<F>(replies) else { return Err(NotCreated::TableFull) };
    if !requests.is_there() {
        table::end(place, check);
        return Err(NotCreated::TableFull);
    }
    if table::status(place).check() != check {
        // The reply's place went to another flow already, which did not find the request's.
        withdraw::<F>(work, requests);
        return Err(NotCreated::TableFull);
    }
    count::event(Counter::FlowNew);
    if work.flow.state == FlowState::Established as u8 {
        count::event(Counter::FlowMidstream);
    }
    Ok(())
}

/// From one source port that is tried to the next. Each flow has its own, and another one each second, or
/// flows would run into each other again and again: neighbours of ports that are in use are, too. Of a few
/// ports each is tried.
#[inline(always)]
fn step(start: u32, count: u32, now: u64) -> u32 {
    if count <= PORT_TRIES {
        return 1;
    }
    let second = (now >> 30) as u32;
    start.wrapping_add(second).wrapping_mul(0x9e37_79b1) >> 8 | 1
}

/// The source ports that a flow may be given: the first, and how many.
#[inline(always)]
fn ports() -> (u16, u32) {
    let (low, count) = globals::snat_ports();
    let Some(share) = maps::word(&maps::port_share) else { return (low, count) };
    let (low, count) = PortShare::of(share, low, count);
    // The compiler has to see that it is not 0: what divides by it would have a branch to panic.
    (low, count.max(1))
}

/// Enters the reply under the first source port for which it is nobody else's.
#[inline(always)]
fn enter_reply<F: Family>(
    work: &mut Work<F::Addr>,
    keeps_source: bool,
    now: u64,
) -> Result<Entered, NotCreated> {
    let Work { segment, flow, reply, reply_key, .. } = work;
    let key = &segment.key;
    invert::<F>(key, flow, reply);
    *reply_key = flow.sibling_key(key);
    let (low, count) = ports();
    let start = lbxdp_common::flow_hash(key) >> 1;
    let step = step(start, count, now);
    // A kept source port is given up only when its reply is another flow's. SCTP's is kept
    // wherever it can be: a change costs a checksum, and fragments.
    let keeps_port = keeps_source || key.protocol == IPPROTO_SCTP;
    for attempt in 0..PORT_TRIES {
        if !keeps_port || attempt > 0 {
            if attempt > count {
                break;
            }
            // A division each time: with a counter that wraps around, the verifier would follow
            // every place where it may have done so.
            let number = start.wrapping_add(attempt.wrapping_mul(step)) % count;
            work.flow.src_port = low.wrapping_add(number as u16);
            work.reply_key.dst_port = work.flow.src_port;
        }
        let entered = F::enter_flow(work, true, now);
        if entered.is_there() {
            if entered.was_mine() {
                // Only the request's half was evicted.
                count::event(Counter::FlowRestored);
            }
            if entered.was_over() {
                count::event(Counter::FlowExpired);
            }
            if keeps_port && attempt > 0 {
                count::event(Counter::PortChanged);
            }
            return Ok(entered);
        }
        if !entered.is_taken() {
            return Err(NotCreated::TableFull);
        }
    }
    Err(NotCreated::PortsExhausted)
}
