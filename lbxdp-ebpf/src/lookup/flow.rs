//! Flows: what a packet became, and what the next one becomes.
//!
//! Every flow is two entries of one LRU map, each the other's inverse. The map evicts each entry
//! by itself and hands its memory out again at once, so nothing is believed of an entry until its
//! sibling confirms it: a hit whose sibling is gone puts it back, a hit whose sibling undoes some
//! other translation by now is ended. That also covers an entry that changed hands while it was
//! being read.

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use lbxdp_common::{Counter, Flow, FlowKey, FlowState, Hook, IPPROTO_SCTP, IPPROTO_UDP};

use crate::{
    family::Family,
    globals,
    lookup::{
        backend::{self, Choice},
        count,
    },
    parse::{ACK, FIN, Kind, RST, SYN},
    work::Work,
};

/// Nanoseconds for which `last_seen` is left alone, so that a busy flow does not dirty two cache
/// lines with each packet.
const REFRESH: i64 = 1_000_000_000;

/// Ports tried for a flow whose source port cannot stay as it is.
const PORT_TRIES: u32 = 32;

/// Errno of an entry that exists.
const EEXIST: i32 = 17;

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
    let Work { segment, flow, reply, reply_key, .. } = work;
    let key = &segment.key;
    let map = F::flow_map();
    let Some(entry) = map.get_ptr_mut(key) else { return Found::Nothing };
    // SAFETY: the pointer is to an element of a preallocated map. Its content may change hands
    // meanwhile, which the sibling then shows.
    *flow = unsafe { *entry };
    let is_foreign = flow.has(Flow::<F::Addr>::FOREIGN);
    if flow.hook != hook as u8 && !is_foreign {
        return Found::Nothing;
    }
    *reply_key = flow.sibling_key(key);
    let sibling = map.get_ptr_mut(&*reply_key);
    // SAFETY: as above.
    let is_mine = sibling.map(|sibling| unsafe { (*sibling).undoes(key) });

    // The client begins again, where the old connection is over or nothing new may begin: its packet
    // chooses anew. A live flow is kept, because anybody can send a SYN in a client's name. The stack
    // would begin again too where it translates: all but a SYN that is sent again is a new connection.
    let is_restart = begins(segment.tcp_flags)
        && if is_foreign {
            flow.state != FlowState::Syn as u8
        } else {
            flow.state == FlowState::Closing as u8
                || !flow.has(Flow::<F::Addr>::REPLY) && !backend::takes_new_flows::<F>(flow)
        };
    if flow.expired(now) || is_restart {
        remove::<F>(key);
        // The reply of a foreign flow stays: to the stack, its source port is in use as yet.
        if is_mine == Some(true) && !is_foreign {
            remove::<F>(reply_key);
        }
        count::event(Counter::FlowExpired);
        return Found::Nothing;
    }
    if is_mine == Some(false) && !is_foreign {
        remove::<F>(key);
        count::event(Counter::FlowBroken);
        return Found::Nothing;
    }

    // An error about a flow is no sign of its life: anybody on the way may send one.
    if segment.kind != Kind::Error {
        let (state, flags) = advance(flow, key.protocol, segment.tcp_flags);
        let is_due = flow.idle_ns(now) >= REFRESH;
        if is_due || state != flow.state || flags != flow.flags {
            flow.state = state;
            flow.flags = flags;
            flow.last_seen = now;
            touch(entry, flow);
            // A foreign flow may have lost its other half to another flow.
            if let (Some(sibling), Some(true)) = (sibling, is_mine) {
                touch(sibling, flow);
            }
        }
    }
    if is_foreign {
        count::event(Counter::ForeignHit);
        return Found::Foreign;
    }
    if sibling.is_none() {
        invert::<F>(key, flow, reply);
        if map.insert(&*reply_key, &*reply, BPF_NOEXIST.into()).is_err() {
            remove::<F>(key);
            count::event(Counter::FlowBroken);
            return Found::Nothing;
        }
        count::event(Counter::FlowRestored);
    }
    count::event(Counter::FlowHit);
    Found::Flow
}

/// Whether these flags are those of the first packet of a connection.
#[inline(always)]
pub fn begins(tcp_flags: u8) -> bool {
    tcp_flags & (SYN | ACK) == SYN
}

/// Writes what both entries of a flow share.
#[inline(always)]
fn touch<A>(entry: *mut Flow<A>, flow: &Flow<A>) {
    // SAFETY: an element of a preallocated map stays mapped. Should it belong to another flow by
    // now, that flow's age and state are off by one packet.
    unsafe {
        (*entry).state = flow.state;
        (*entry).last_seen = flow.last_seen;
        (*entry).flags = (*entry).flags & Flow::<A>::REPLY | flow.flags & Flow::<A>::SHARED;
    }
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

#[inline(always)]
fn remove<F: Family>(key: &FlowKey<F::Addr>) {
    // Another CPU may have been first.
    let _already_gone = F::flow_map().remove(key);
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
    flow._pad = 0;
    flow.last_seen = now;

    enter_reply::<F>(work, keeps_source, now)?;
    let Work { segment, flow, reply_key, .. } = work;
    match F::flow_map().insert(&segment.key, &*flow, BPF_ANY.into()) {
        Ok(()) => {
            count::event(Counter::FlowNew);
            if flow.state == FlowState::Established as u8 {
                count::event(Counter::FlowMidstream);
            }
            Ok(())
        }
        Err(_) => {
            remove::<F>(reply_key);
            Err(NotCreated::TableFull)
        }
    }
}

/// Enters the reply under the first source port for which it is nobody else's.
#[inline(always)]
fn enter_reply<F: Family>(
    work: &mut Work<F::Addr>,
    keeps_source: bool,
    now: u64,
) -> Result<(), NotCreated> {
    let Work { segment, flow, reply, reply_key, other_key, .. } = work;
    let key = &segment.key;
    invert::<F>(key, flow, reply);
    *reply_key = flow.sibling_key(key);
    let (low, count) = globals::snat_ports();
    let start = lbxdp_common::flow_hash(key) >> 1;
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
            flow.src_port = low.wrapping_add(((start + attempt) % count) as u16);
            reply_key.dst_port = flow.src_port;
        }
        if claim::<F>(key, reply_key, reply, other_key, now)? {
            if keeps_port && attempt > 0 {
                count::event(Counter::PortChanged);
            }
            return Ok(());
        }
    }
    Err(NotCreated::PortsExhausted)
}

/// Makes `reply` the entry of `reply_key`, unless a live flow has it.
#[inline(always)]
fn claim<F: Family>(
    key: &FlowKey<F::Addr>,
    reply_key: &FlowKey<F::Addr>,
    reply: &Flow<F::Addr>,
    other_key: &mut FlowKey<F::Addr>,
    now: u64,
) -> Result<bool, NotCreated> {
    let map = F::flow_map();
    match map.insert(reply_key, reply, BPF_NOEXIST.into()) {
        Ok(()) => return Ok(true),
        Err(errno) if errno == -EEXIST => {}
        Err(_) => return Err(NotCreated::TableFull),
    }
    let Some(other) = map.get_ptr_mut(reply_key) else { return Ok(false) };
    // SAFETY: as in `follow`; a decision on an entry that changes hands meanwhile is found out by
    // the sibling check of the flow that loses it.
    let (is_mine, is_over) = unsafe {
        let is_foreign = (*other).has(Flow::<F::Addr>::FOREIGN);
        ((*other).undoes(key) && !is_foreign, (*other).expired(now))
    };
    if is_mine {
        // Only the request's half was evicted.
        map.insert(reply_key, reply, BPF_ANY.into()).map_err(|_| NotCreated::TableFull)?;
        count::event(Counter::FlowRestored);
        return Ok(true);
    }
    if is_over {
        // SAFETY: as above.
        *other_key = unsafe { (*other).sibling_key(reply_key) };
        remove::<F>(other_key);
        remove::<F>(reply_key);
        count::event(Counter::FlowExpired);
        return Ok(map.insert(reply_key, reply, BPF_NOEXIST.into()).is_ok());
    }
    Ok(false)
}
