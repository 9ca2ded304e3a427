//! The next hops that programs use without asking the kernel: written here, and kept true.
//!
//! Whatever may change the way to a backend (a route, a rule, an address, a device) takes every hop
//! away until the agent has asked for the ways anew; a neighbour or a device that changes is followed
//! at once, on the thread that reads netlink. Programs ask the kernel meanwhile. A hop also ends
//! by itself soon after nobody renews it, so what is written here does not outlive the agent.

mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use lbxdp_common::Hop;

use crate::netlink::Surroundings;
use crate::pins::Pins;
use crate::sys::{self, Access, MmapArray};
pub use table::{NextHop, Table, VALID_FOR};

/// The pinned map `hops` and what is in it.
pub struct Hops {
    inner: Mutex<Inner>,
}

struct Inner {
    table: Table,
    map: MmapArray<Hop>,
}

impl Hops {
    /// Takes over the map. What an earlier agent wrote is believed no more; `held` are the hops that
    /// backends have from it, which are nobody else's before the backends have others.
    pub fn open(pins: &Pins, held: BTreeMap<IpAddr, u32>) -> io::Result<Self> {
        let map = MmapArray::<Hop>::new(sys::obj_get(&pins.map("hops"), Access::ReadWrite)?)?;
        for id in 0..map.len() {
            if map.read(id) != Some(Hop::default()) {
                map.write(id, &Hop::default())?;
            }
        }
        Ok(Self { inner: Mutex::new(Inner { table: Table::new(map.len(), held), map }) })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A table that a panic left half changed is no worse than one that is out of date.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The index of the next hop towards a backend; zero, which is nobody's, if there is no room.
    pub fn id(&self, next: NextHop, backend: IpAddr) -> u32 {
        self.lock().table.id(next, backend)
    }

    /// The ways that were asked for under `routes_version` are those in the maps, and `in_use` are the
    /// hops on them. If nothing has changed since, programs may use them.
    pub fn confirm(&self, routes_version: u64, in_use: &BTreeSet<u32>) {
        let mut inner = self.lock();
        inner.table.confirm(routes_version, in_use, sys::coarse_ns());
        inner.write();
    }

    /// The ways in the maps follow from the routes that were confirmed last, and there may be more of them.
    pub fn go_on(&self) {
        let mut inner = self.lock();
        inner.table.rest(sys::coarse_ns());
        inner.write();
    }

    /// The network is like this now. Answers which neighbours in use nobody has asked about for a
    /// while, by interface index and address: to the kernel, nobody sends to them.
    pub fn follow(&self, surroundings: Surroundings) -> Vec<(u32, IpAddr)> {
        let mut inner = self.lock();
        inner.table.see(surroundings);
        inner.write();
        inner.table.stale(sys::coarse_ns())
    }
}

impl Drop for Hops {
    /// An agent that stops leaves no hop behind.
    fn drop(&mut self) {
        let mut inner = self.lock();
        inner.table.see(Surroundings::default());
        inner.write();
    }
}

impl Inner {
    fn write(&mut self) {
        for (id, hop) in self.table.changes(sys::coarse_ns()) {
            if let Err(error) = self.map.write(id, &hop) {
                tracing::error!(%error, "map hops");
            }
        }
    }
}
