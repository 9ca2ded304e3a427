//! The choice of a backend.

use lbxdp_common::{Backend, Flow, Octets as _, TABLE_BLOCK, TablePolicy, TableRef};

use crate::{family::Family, lookup::maps};

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

/// The flags of a frontend's [`lbxdp_common::Descriptor`]: which clients it has.
#[inline(always)]
pub fn client_rules<F: Family>(frontend: u32) -> u32 {
    F::descriptor_map().get_ptr(frontend).map_or(0, |descriptor| {
        // SAFETY: as in `choose`: one aligned word, read once.
        unsafe { (&raw const (*descriptor).flags).read_volatile() }
    })
}

/// Chooses by `hash` from one of the tables of `frontend`.
#[inline(always)]
pub fn choose<F: Family>(
    frontend: u32,
    side: Side,
    hash: u32,
) -> Result<Choice<F::Addr>, NoChoice> {
    let descriptor = F::descriptor_map().get_ptr(frontend).ok_or(NoChoice::Missing)?;
    // SAFETY: the pointer is into an array, which lives as long as the program. The agent stores
    // the aligned word at once; volatile keeps the compiler from reading it twice.
    let table = TableRef(unsafe {
        match side {
            Side::External => (&raw const (*descriptor).external).read_volatile(),
            Side::Internal => (&raw const (*descriptor).internal).read_volatile(),
        }
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
    let slots = 1u32 << (table.log2_slots() & 31);
    let slot = hash & (slots - 1);
    let block = table.first_block() + slot / TABLE_BLOCK as u32;
    let block = maps::tables.get(block).ok_or(NoChoice::Missing)?;
    let id = block.slots[slot as usize % TABLE_BLOCK];
    let backend = F::backend_map().get(id).ok_or(NoChoice::Missing)?;
    let has_source = backend.is_local() || backend.snat_addr != F::Addr::UNSPECIFIED;
    if backend.port == 0 || !has_source {
        return Err(NoChoice::Missing);
    }
    Ok(Choice { id, backend })
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
