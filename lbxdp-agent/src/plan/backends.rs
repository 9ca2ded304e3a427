//! Which backend has which id.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use lbxdp_common::{Backend, Octets, limits::MAX_BACKENDS};

use crate::apply::{Actual, BackendEntry};
use crate::model::{Desired, Family, NodeFacts};
use crate::quarantine::{IdPool, Quarantine};

use super::PerFamily;

/// The value for a backend, or none if packets for it have no way to go: it is neither on this
/// node nor does a route lead to it.
pub(super) fn entry(
    addr: SocketAddr,
    desired: &Desired,
    facts: &NodeFacts,
) -> Option<BackendEntry> {
    let source = if desired.local_backends.contains(&addr) {
        None
    } else {
        Some(*facts.snat_sources.get(&addr.ip())?)
    };
    let hop = match source {
        Some(_) => facts.hops.get(&addr.ip()).copied().unwrap_or_default(),
        None => 0,
    };
    Some(match (addr.ip(), source) {
        (IpAddr::V4(ip), None) => BackendEntry::V4(value(ip.octets(), None, addr.port(), hop)),
        (IpAddr::V6(ip), None) => BackendEntry::V6(value(ip.octets(), None, addr.port(), hop)),
        (IpAddr::V4(ip), Some(IpAddr::V4(source))) => {
            BackendEntry::V4(value(ip.octets(), Some(source.octets()), addr.port(), hop))
        }
        (IpAddr::V6(ip), Some(IpAddr::V6(source))) => {
            BackendEntry::V6(value(ip.octets(), Some(source.octets()), addr.port(), hop))
        }
        (IpAddr::V4(_), Some(IpAddr::V6(_))) | (IpAddr::V6(_), Some(IpAddr::V4(_))) => return None,
    })
}

fn value<A: Octets>(addr: A, source: Option<A>, port: u16, hop: u32) -> Backend<A> {
    let flags = if source.is_none() { Backend::<A>::LOCAL } else { 0 };
    Backend { addr, snat_addr: source.unwrap_or(A::UNSPECIFIED), port, flags, hop }
}

/// The value of an unused id.
pub(super) fn unused(family: Family) -> BackendEntry {
    fn zero<A: Octets>() -> Backend<A> {
        Backend { addr: A::UNSPECIFIED, snat_addr: A::UNSPECIFIED, port: 0, flags: 0, hop: 0 }
    }
    match family {
        Family::V4 => BackendEntry::V4(zero()),
        Family::V6 => BackendEntry::V6(zero()),
    }
}

/// Ids of backends: those in the maps, and those the current plan adds.
#[derive(Debug)]
pub(super) struct Backends {
    pools: PerFamily<IdPool>,
    ids: BTreeMap<SocketAddr, u32>,
    drafts: BTreeSet<SocketAddr>,
    /// In the maps, but in no published table.
    idle: Quarantine<(Family, u32)>,
}

impl Backends {
    /// Where ids come from.
    pub(super) const fn pools(&self) -> &PerFamily<IdPool> {
        &self.pools
    }

    /// Takes over the ids in the maps.
    pub(super) fn read(actual: &Actual) -> Self {
        let mut backends = Self {
            pools: PerFamily::new(|| IdPool::new(MAX_BACKENDS)),
            ids: BTreeMap::new(),
            drafts: BTreeSet::new(),
            idle: Quarantine::default(),
        };
        for ((family, id), entry) in &actual.backends {
            backends.pools.get_mut(*family).reserve(*id);
            backends.ids.entry(entry.addr()).or_insert(*id);
        }
        backends
    }

    /// Forgets drafts that came to nothing and moves time on.
    pub(super) fn begin(&mut self, now: u64) {
        for addr in std::mem::take(&mut self.drafts) {
            if let Some(id) = self.ids.remove(&addr) {
                self.pools.get_mut(Family::of(addr.ip())).give_back(id);
            }
        }
        for family in [Family::V4, Family::V6] {
            self.pools.get_mut(family).tick(now);
        }
        self.idle.tick(now);
    }

    /// The id of a backend, or none if all are in use.
    pub(super) fn id(&mut self, addr: SocketAddr) -> Option<u32> {
        if let Some(id) = self.ids.get(&addr) {
            return Some(*id);
        }
        let id = self.pools.get_mut(Family::of(addr.ip())).take()?;
        self.ids.insert(addr, id);
        self.drafts.insert(addr);
        Some(id)
    }

    /// Every id that is given out.
    pub(super) fn ids(&self) -> &BTreeMap<SocketAddr, u32> {
        &self.ids
    }

    /// Backends that have been in no table for long enough to go.
    pub(super) fn may_go(&self, now: u64) -> impl Iterator<Item = (Family, u32)> {
        self.idle.over(now)
    }

    /// Whether backends will go by waiting.
    pub(super) fn is_waiting(&self) -> bool {
        !self.idle.is_empty()
    }

    /// Follows a backend into the maps, or out of them.
    pub(super) fn applied(&mut self, before: Option<SocketAddr>, id: u32, entry: &BackendEntry) {
        self.drafts.remove(&entry.addr());
        if entry.is_unused() {
            self.idle.cancel((entry.family(), id));
            self.pools.get_mut(entry.family()).give_back(id);
            if let Some(before) = before
                && self.ids.get(&before) == Some(&id)
            {
                self.ids.remove(&before);
            }
        }
    }

    /// Follows a backend of the maps into its first published table.
    pub(super) fn busy(&mut self, key: (Family, u32)) {
        self.idle.cancel(key);
    }

    /// Follows a backend of the maps out of its last published table.
    pub(super) fn idle(&mut self, key: (Family, u32)) {
        self.idle.enter(key);
    }
}
