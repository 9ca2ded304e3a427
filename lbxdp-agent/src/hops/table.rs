//! Which next hop has which index, and what is to be written for it. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use lbxdp_common::Hop;

use crate::model::Family;
use crate::netlink::Surroundings;
use crate::quarantine::IdPool;

/// How long a hop is valid after it was last renewed: how long programs may be wrong about neighbours
/// once no agent runs.
pub const VALID_FOR: Duration = Duration::from_secs(3);
/// A hop is renewed once less than this is left of it. The netlink thread wakes every second.
const RENEW_BELOW: Duration = Duration::from_millis(2_500);
/// How long after a neighbour was asked about it may be asked about again: the kernel waits for five
/// seconds before it sends something.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// Where packets go next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NextHop {
    /// Interface index of the device to leave by.
    pub ifindex: u32,
    /// Of the packets: a neighbour of one family may be the way for both.
    pub family: Family,
    /// The neighbour behind the device.
    pub addr: IpAddr,
}

/// Next hops, their indices, and what the map holds.
#[derive(Debug)]
pub struct Table {
    pool: IdPool,
    ids: BTreeMap<NextHop, u32>,
    /// Of an earlier agent, by the backends that have them.
    held: BTreeMap<IpAddr, u32>,
    /// What is in the map, and the last version that was.
    written: BTreeMap<u32, (Hop, u16)>,
    /// The ways are those of these routes.
    confirmed: Option<u64>,
    seen: Surroundings,
    /// When a neighbour was last asked about.
    asked: BTreeMap<(u32, IpAddr), u64>,
}

impl Table {
    /// A table for a map of `capacity` elements, of which an earlier agent's backends hold some.
    pub fn new(capacity: u32, held: BTreeMap<IpAddr, u32>) -> Self {
        let mut pool = IdPool::new(capacity as usize);
        // Nobody's.
        pool.reserve(0);
        for id in held.values().collect::<BTreeSet<_>>() {
            pool.reserve(*id);
        }
        Self {
            pool,
            ids: BTreeMap::new(),
            held,
            written: BTreeMap::new(),
            confirmed: None,
            seen: Surroundings::default(),
            asked: BTreeMap::new(),
        }
    }

    /// The index of the next hop towards a backend; zero if there is no room. One that the backend has
    /// from an earlier agent stays: nothing was written there yet, and before something is, backends
    /// that have it and go another way by now get another one.
    pub fn id(&mut self, next: NextHop, backend: IpAddr) -> u32 {
        if let Some(id) = self.ids.get(&next) {
            return *id;
        }
        let held = self.held.get(&backend).copied();
        let is_free = |id: &u32| self.ids.values().all(|taken| taken != id);
        let Some(id) = held.filter(is_free).or_else(|| self.pool.take()) else { return 0 };
        self.ids.insert(next, id);
        id
    }

    /// What backends in the maps lead to follows from routes of this version; hops that are not in
    /// use rest until no program can hold them any more.
    pub fn confirm(&mut self, routes_version: u64, in_use: &BTreeSet<u32>, now: u64) {
        self.confirmed = Some(routes_version);
        self.rest(now);
        let unused: BTreeSet<u32> = self.ids.values().chain(self.held.values()).copied().collect();
        for id in unused.into_iter().filter(|id| !in_use.contains(id)) {
            self.pool.release(id);
        }
        self.ids.retain(|_, id| in_use.contains(id));
        self.held.retain(|_, id| in_use.contains(id));
    }

    /// Indices that have rested for long enough are free.
    pub fn rest(&mut self, now: u64) {
        self.pool.tick(now);
    }

    /// The network is like this now.
    pub fn see(&mut self, surroundings: Surroundings) {
        self.seen = surroundings;
    }

    /// What the elements of the map are to be that are something else, from now on in the map.
    pub fn changes(&mut self, now: u64) -> Vec<(u32, Hop)> {
        let wanted: BTreeMap<u32, Hop> =
            self.ids.iter().filter_map(|(next, id)| Some((*id, self.content(next)?))).collect();
        let mut changes = Vec::new();
        for (id, content) in &wanted {
            let (before, version) = self.written.get(id).copied().unwrap_or_default();
            let same = Hop {
                dst_version: before.dst_version,
                src_version: before.src_version,
                version: before.version,
                valid_until: before.valid_until,
                ..*content
            };
            let is_same = before.version != 0 && same == before;
            let left = before.valid_until.saturating_sub(now);
            if is_same && left >= RENEW_BELOW.as_nanos() as u64 {
                continue;
            }
            // Zero is the version of what nobody may use.
            let version = if is_same { version } else { version.checked_add(1).unwrap_or(1) };
            let hop = Hop {
                dst_version: version,
                src_version: version,
                version,
                valid_until: now + VALID_FOR.as_nanos() as u64,
                ..*content
            };
            self.written.insert(*id, (hop, version));
            changes.push((*id, hop));
        }
        for (id, (hop, _)) in &mut self.written {
            if !wanted.contains_key(id) && *hop != Hop::default() {
                *hop = Hop::default();
                changes.push((*id, *hop));
            }
        }
        changes
    }

    /// A hop without versions and time, if it is known and may be used.
    fn content(&self, next: &NextHop) -> Option<Hop> {
        if self.confirmed != Some(self.seen.routes_version) {
            return None;
        }
        let way = self.seen.ways.get(&next.ifindex)?;
        let neighbour = self.seen.neighbours.get(&(next.ifindex, next.addr))?;
        let mtu = match next.family {
            Family::V4 => way.mtu,
            Family::V6 => way.mtu_v6,
        };
        Some(Hop {
            dst: neighbour.mac,
            src: way.mac,
            ifindex: next.ifindex,
            mtu: u16::try_from(mtu).unwrap_or(u16::MAX),
            ..Hop::default()
        })
    }

    /// Neighbours in use that have to be asked about now. What XDP sends does not count with the kernel,
    /// which would forget them, or not notice that they are somewhere else.
    pub fn stale(&mut self, now: u64) -> Vec<(u32, IpAddr)> {
        let is_over = |asked: u64| now.saturating_sub(asked) >= ASK_AGAIN.as_nanos() as u64;
        self.asked.retain(|_, asked| !is_over(*asked));
        let neighbours = self.ids.keys().map(|next| (next.ifindex, next.addr));
        let stale: BTreeSet<_> = neighbours
            .filter(|key| self.seen.neighbours.get(key).is_some_and(|found| found.is_stale))
            .filter(|key| !self.asked.contains_key(key))
            .collect();
        self.asked.extend(stale.iter().map(|key| (*key, now)));
        stale.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::Arc;

    use super::*;
    use crate::netlink::{Neighbour, WayOut};

    const SECOND: u64 = 1_000_000_000;
    const OURS: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const THEIRS: [u8; 6] = [2, 0, 0, 0, 0, 2];

    fn next() -> NextHop {
        NextHop { ifindex: 7, family: Family::V4, addr: [192, 0, 2, 9].into() }
    }

    fn surroundings(neighbour: Option<Neighbour>) -> Surroundings {
        let way = WayOut { mac: OURS, mtu: 1_500, mtu_v6: 1_280 };
        let neighbours = neighbour.map(|neighbour| ((7, next().addr), neighbour));
        Surroundings {
            ways: [(7, way)].into(),
            neighbours: Arc::new(neighbours.into_iter().collect()),
            routes_version: 1,
        }
    }

    fn known(mac: [u8; 6]) -> Surroundings {
        surroundings(Some(Neighbour { mac, is_stale: false }))
    }

    const BACKEND: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));

    /// A table with one hop in use, and its index.
    fn table() -> (Table, u32) {
        let mut table = Table::new(8, BTreeMap::new());
        let id = table.id(next(), BACKEND);
        table.see(known(THEIRS));
        table.confirm(1, &[id].into(), 0);
        (table, id)
    }

    /// The only change.
    fn change(table: &mut Table, now: u64) -> (u32, Hop) {
        let changes = table.changes(now);
        assert_eq!(changes.len(), 1, "{changes:?}");
        changes[0]
    }

    #[test]
    fn a_hop_is_valid_for_as_long_as_it_is_renewed() {
        let (mut table, id) = table();
        let (changed, hop) = change(&mut table, SECOND);
        assert_eq!((changed, hop.dst, hop.src, hop.ifindex, hop.mtu), (id, THEIRS, OURS, 7, 1_500));
        assert!(hop.is_valid(4 * SECOND));
        assert!(!hop.is_valid(4 * SECOND + 1));
        assert_eq!(table.changes(SECOND + SECOND / 2), []);
        let (_, renewed) = change(&mut table, 2 * SECOND);
        assert_eq!(renewed, Hop { valid_until: 5 * SECOND, ..hop });
    }

    #[test]
    fn what_changes_gets_another_version_and_what_is_unknown_has_none() {
        let (mut table, _) = table();
        let (_, first) = change(&mut table, 0);
        table.see(known(OURS));
        let (_, second) = change(&mut table, 0);
        assert_eq!(second.dst, OURS);
        assert_ne!(second.version, first.version);
        table.see(surroundings(None));
        assert_eq!(change(&mut table, 0).1, Hop::default());
        assert_eq!(table.changes(9 * SECOND), []);
        table.see(known(THEIRS));
        let (_, third) = change(&mut table, 9 * SECOND);
        assert!(![0, first.version, second.version].contains(&third.version), "{third:?}");
        for torn in [
            Hop { dst: first.dst, dst_version: first.dst_version, ..second },
            Hop { src: third.src, src_version: third.src_version, ..second },
            Hop { ifindex: first.ifindex, version: first.version, ..second },
        ] {
            assert!(!torn.is_valid(0), "{torn:?}");
        }
    }

    #[test]
    fn the_version_of_nothing_is_left_out() {
        let (mut table, _) = table();
        let mut seen = BTreeSet::new();
        for round in 0..=u32::from(u16::MAX) {
            table.see(known(if round % 2 == 0 { OURS } else { THEIRS }));
            seen.insert(change(&mut table, 0).1.version);
        }
        assert_eq!(seen.len(), usize::from(u16::MAX));
        assert!(!seen.contains(&0));
    }

    #[test]
    fn other_routes_take_hops_away_until_the_ways_are_known() {
        let (mut table, id) = table();
        let (_, hop) = change(&mut table, 0);
        table.see(Surroundings { routes_version: 2, ..known(THEIRS) });
        assert_eq!(change(&mut table, 0), (id, Hop::default()));
        // Asked for before the routes changed.
        table.confirm(1, &[id].into(), 0);
        assert_eq!(table.changes(0), []);
        table.confirm(2, &[id].into(), 0);
        let (_, again) = change(&mut table, 0);
        assert_eq!((again.dst, again.ifindex), (hop.dst, hop.ifindex));
    }

    #[test]
    fn a_device_that_is_gone_takes_its_hops_along() {
        let (mut table, id) = table();
        change(&mut table, 0);
        table.see(Surroundings { ways: BTreeMap::new(), ..known(THEIRS) });
        assert_eq!(change(&mut table, 0), (id, Hop::default()));
    }

    #[test]
    fn families_have_their_own_mtu() {
        let mut table = Table::new(8, BTreeMap::new());
        table.see(known(THEIRS));
        let id = table.id(NextHop { family: Family::V6, ..next() }, BACKEND);
        table.confirm(1, &[id].into(), 0);
        assert_eq!(change(&mut table, 0).1.mtu, 1_280);
    }

    #[test]
    fn an_index_is_another_hops_a_second_after_nobody_uses_it() {
        let held = 2;
        let mut table = Table::new(4, [([10, 0, 0, 2].into(), held)].into());
        table.see(known(THEIRS));
        let other = |last: u8| NextHop { addr: [192, 0, 2, last].into(), ..next() };
        let (first, second) = (table.id(next(), BACKEND), table.id(other(2), BACKEND));
        assert_eq!((first, second), (1, 3));
        assert_eq!(table.id(other(3), BACKEND), 0, "no room");
        table.confirm(1, &[second, held].into(), 0);
        assert_eq!(table.id(other(3), BACKEND), 0, "it rests");
        table.confirm(1, &[second, held].into(), SECOND / 2);
        table.confirm(1, &[second, held].into(), 2 * SECOND);
        assert_eq!(table.id(other(3), BACKEND), first);
        table.confirm(1, &[first, second].into(), 2 * SECOND);
        table.confirm(1, &[first, second].into(), 3 * SECOND);
        table.confirm(1, &[first, second].into(), 4 * SECOND);
        assert_eq!(table.id(other(4), BACKEND), held);
    }

    #[test]
    fn a_backend_of_an_earlier_agent_keeps_its_index_for_one_way() {
        let (first, second): (IpAddr, IpAddr) = ([10, 0, 0, 2].into(), [10, 0, 0, 3].into());
        let mut table = Table::new(8, [(first, 3), (second, 3)].into());
        let other = NextHop { addr: [192, 0, 2, 10].into(), ..next() };
        assert_eq!(table.id(next(), first), 3);
        assert_eq!(table.id(other, second), 1, "3 is another way's");
        assert_eq!(table.id(next(), second), 3);
        table.confirm(1, &[1].into(), 0);
        assert_eq!(table.id(next(), first), 2, "3 rests");
    }

    #[test]
    fn a_stale_neighbour_is_asked_about_while_it_is_in_use() {
        let (mut table, id) = table();
        let stale = surroundings(Some(Neighbour { mac: THEIRS, is_stale: true }));
        assert_eq!(table.stale(0), []);
        table.see(stale);
        assert!(change(&mut table, 0).1.is_valid(0), "stale is known");
        assert_eq!(table.stale(0), [(7, next().addr)]);
        assert_eq!(table.stale(SECOND), []);
        assert_eq!(table.stale(6 * SECOND), [(7, next().addr)]);
        table.confirm(1, &BTreeSet::new(), 0);
        assert_eq!(change(&mut table, 0), (id, Hop::default()));
        assert_eq!(table.stale(20 * SECOND), []);
    }
}
