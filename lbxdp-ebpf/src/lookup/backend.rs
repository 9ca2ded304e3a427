//! The choice of a backend.

use lbxdp_common::{
    AffinityKey, Backend, Counter, Descriptor, Flow, Octets as _, TABLE_BLOCK, TablePolicy,
    TableRef,
};

use crate::{
    family::Family,
    lookup::{affinity, count, maps},
};

/// A backend and its id.
pub struct Choice<A: 'static> {
    /// Index in `backends`.
    pub id: u32,
    /// The backend. The agent leaves an element alone while a table names it, and for a second
    /// after.
    pub backend: &'static Backend<A>,
}

/// Which of a frontend's two tables is asked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The one for clients elsewhere.
    External,
    /// The one for clients on this node.
    Internal,
}

/// Why there is no choice.
#[derive(Clone, Copy)]
pub enum NoChoice {
    /// No endpoint anywhere.
    Reject,
    /// None that the traffic policy allows.
    Drop,
    /// The tables contradict each other.
    Missing,
}

/// The descriptor of a frontend.
#[inline(always)]
pub fn descriptor<F: Family>(frontend: u32) -> Option<Descriptor> {
    let from = F::descriptor_map().get_ptr(frontend)?;
    // SAFETY: the pointer is into an array, which lives as long as the program. The agent stores
    // each aligned word at once; volatile keeps the compiler from reading one twice. Of the
    // agent's order of stores the tables come first, so that nobody meets a table without the
    // source ranges that were put in front of it.
    unsafe {
        Some(Descriptor {
            external: (&raw const (*from).external).read_volatile(),
            internal: (&raw const (*from).internal).read_volatile(),
            affinity: (&raw const (*from).affinity).read_volatile(),
            service: (&raw const (*from).service).read_volatile(),
            flags: (&raw const (*from).flags).read_volatile(),
            _pad: 0,
        })
    }
}

/// Chooses a backend for a new flow from one of the tables of `descriptor`: the one that the
/// `client` had, where the frontend has session affinity and the table still has that backend,
/// else by `hash`. `now` is the clock of flows.
///
/// The hash covers the source port also with affinity: once its time is over, a client may get
/// another backend.
#[inline(always)]
pub fn choose<F: Family>(
    descriptor: &Descriptor,
    side: Side,
    hash: u32,
    client: &AffinityKey,
    now: u64,
) -> Result<Choice<F::Addr>, NoChoice> {
    let table = TableRef(match side {
        Side::External => descriptor.external,
        Side::Internal => descriptor.internal,
    });
    if !table.serves() {
        return Err(if table.policy() == TablePolicy::Reject as u8 {
            NoChoice::Reject
        } else if table.policy() == TablePolicy::Drop as u8 {
            NoChoice::Drop
        } else {
            NoChoice::Missing
        });
    }
    if descriptor.affinity != 0
        && let Some(id) = affinity::recall(client, table, descriptor.affinity, now)
        && let Some(choice) = usable::<F>(id)
    {
        count::event(Counter::AffinityKept);
        return Ok(choice);
    }
    let slots = 1u32 << (table.log2_slots() & 31);
    let slot = hash & (slots - 1);
    let block = table.first_block() + slot / TABLE_BLOCK as u32;
    let block = maps::tables.get(block).ok_or(NoChoice::Missing)?;
    let choice = usable::<F>(block.slots[slot as usize % TABLE_BLOCK]).ok_or(NoChoice::Missing)?;
    if descriptor.affinity != 0 {
        affinity::remember(client, choice.id, now);
    }
    Ok(choice)
}

/// The backend with this id, if it is one that packets can be sent to.
#[inline(always)]
fn usable<F: Family>(id: u32) -> Option<Choice<F::Addr>> {
    let backend = F::backend_map().get(id)?;
    let has_source = backend.is_local() || backend.snat_addr != F::Addr::UNSPECIFIED;
    (backend.port != 0 && has_source).then_some(Choice { id, backend })
}

/// Whether the backend that `flow`, a request's half, leads to may still get new flows: it has its id
/// as yet, and some table names it. Ids are given to others a second after the last table, but flows
/// last.
#[inline(always)]
pub fn takes_new_flows<F: Family>(flow: &Flow<F::Addr>) -> bool {
    F::backend_map().get(flow.backend).is_some_and(|backend| {
        backend.port == flow.dst_port && backend.addr == flow.dst && !backend.is_retired()
    })
}
