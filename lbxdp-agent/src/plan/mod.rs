//! From what the maps hold to what they should hold: an ordered list of operations.
//!
//! The order is what keeps every reader in the kernel right at every moment. First backends, then
//! whole tables in ranges that nobody reads, then source ranges and what affinity needs, then for
//! each frontend its name, its descriptor and its key, then addresses; what goes, goes the other
//! way round. A published range is never
//! written: another set of endpoints gets another range, and one store in the descriptor swaps
//! them. Ids and ranges that were visible rest before they are used again
//! ([`crate::quarantine`]).
//!
//! Which ranges and backends are in use follows from the picture of the maps: each descriptor that
//! changes there counts. So an operation that failed leaves nothing behind but the need to plan
//! again.
//!
//! A plan compares everything, or what is said to have changed. Both are one way through the same
//! steps; they differ in whom they look at. After anything but a complete success everything is
//! compared.

mod addresses;
mod backends;
mod clients;
mod scope;
mod tables;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use lbxdp_common::limits::{MAX_ADDRESSES, MAX_BACKENDS, MAX_MEMBERS, MAX_RANGES, TABLE_BLOCKS};
use lbxdp_common::{AddressFlags, Descriptor, FrontendInfo, TablePolicy, TableRef};

use crate::apply::{Actual, BackendEntry, MapOp};
use crate::changes::Touched;
use crate::model::{
    Desired, EndpointSet, Endpoints, Family, Frontend, FrontendAddr, NodeFacts, Problem, Reason,
    ServicePortName, Severity,
};
use crate::progress::Room;
use crate::quarantine::IdPool;
use crate::slab;
use crate::table::Table;

use backends::Backends;
use scope::{After, Scope};
use tables::Tables;

/// One of something for each family.
#[derive(Debug)]
struct PerFamily<T> {
    v4: T,
    v6: T,
}

impl<T> PerFamily<T> {
    fn new(make: impl Fn() -> T) -> Self {
        Self { v4: make(), v6: make() }
    }

    const fn get(&self, family: Family) -> &T {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    fn map<U>(self, f: impl Fn(T) -> U) -> PerFamily<U> {
        PerFamily { v4: f(self.v4), v6: f(self.v6) }
    }

    fn get_mut(&mut self, family: Family) -> &mut T {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }
}

/// What to do next.
#[derive(Debug, Default)]
pub struct Plan {
    /// The operations, in the order in which they must be carried out.
    pub ops: Vec<MapOp>,
    /// What is not served as desired, sorted, without repetition.
    pub problems: Vec<Problem>,
}

/// Keeps the picture of the maps and decides what changes it.
#[derive(Debug)]
pub struct Planner {
    /// Without the contents of tables: [`Tables`] knows the endpoints that they follow from.
    actual: Actual,
    /// Tables in the maps that a plan which failed did not come to publish, by first block.
    written: BTreeMap<u32, Table>,
    frontend_pools: PerFamily<IdPool>,
    frontend_ids: BTreeMap<FrontendAddr, u32>,
    frontend_drafts: BTreeMap<FrontendAddr, u32>,
    backends: Backends,
    tables: Tables,
    /// Of the last plan, by frontend.
    warnings: BTreeMap<FrontendAddr, BTreeSet<Problem>>,
    /// Endpoints that tables do without since everything was compared, because there was no route.
    unreachable: BTreeSet<SocketAddr>,
    /// Operations of the last plan that were not carried out. Before the first one there is no
    /// saying.
    open: Option<usize>,
    /// Something had no room in the last plan.
    exhausted: bool,
    /// The last plan made room among source ranges or members.
    makes_room: bool,
}

impl Planner {
    /// Starts from what the maps hold, which have room for so many frontends of each family. Ids stay
    /// what they are.
    ///
    /// What the maps do not use is taken to be free: starting takes longer than any program run
    /// that may still see what the previous agent unpublished last.
    pub fn new(actual: &Actual, frontends: usize, now: u64) -> Self {
        let mut frontend_pools = PerFamily::new(|| IdPool::new(frontends));
        let mut frontend_ids = BTreeMap::new();
        for (addr, id) in &actual.frontends {
            // Two keys with one id are nothing an agent writes; the second will be removed.
            if frontend_pools.get_mut(Family::of(addr.addr)).reserve(*id) {
                frontend_ids.insert(*addr, *id);
            }
        }
        let mut backends = Backends::read(actual);
        let mut tables = Tables::read(actual, backends.ids());
        for key in actual.backends.keys().filter(|key| !tables.names(**key)) {
            backends.idle(*key);
        }
        backends.begin(now);
        tables.begin(now);
        Self {
            actual: actual.without_tables(),
            written: BTreeMap::new(),
            frontend_pools,
            frontend_ids,
            frontend_drafts: BTreeMap::new(),
            backends,
            tables,
            warnings: BTreeMap::new(),
            unreachable: BTreeSet::new(),
            open: None,
            exhausted: false,
            makes_room: false,
        }
    }

    /// The picture of the maps, without the contents of tables.
    pub const fn actual(&self) -> &Actual {
        &self.actual
    }

    /// Compares everything. `flows` are the addresses that live flows use, read just before, or none
    /// if they were not read: then everything that flows may need stays.
    ///
    /// A plan that is not carried out is forgotten by the next one.
    pub fn plan(
        &mut self,
        desired: &Desired,
        facts: &NodeFacts,
        flows: Option<&BTreeSet<IpAddr>>,
        now: u64,
    ) -> Plan {
        self.plan_within(Scope::All, desired, facts, flows, now).unwrap_or_default()
    }

    /// Compares what may differ from the `desired` of the last plan; `facts` are those of the last
    /// plan but for new backends. Where that is not enough, everything is compared.
    pub fn plan_some(
        &mut self,
        desired: &Desired,
        facts: &NodeFacts,
        touched: &Touched,
        now: u64,
    ) -> Plan {
        let is_enough = self.open == Some(0) && !self.exhausted;
        let plan = is_enough
            .then(|| self.plan_within(Scope::Some(touched), desired, facts, None, now))
            .flatten();
        match plan {
            Some(plan) => plan,
            None => self.plan(desired, facts, None, now),
        }
    }

    /// `None` if the scope is too narrow.
    fn plan_within(
        &mut self,
        scope: Scope<'_>,
        desired: &Desired,
        facts: &NodeFacts,
        flows: Option<&BTreeSet<IpAddr>>,
        now: u64,
    ) -> Option<Plan> {
        match scope {
            Scope::All => self.unreachable.clear(),
            // On this node it needs no route, and nobody knows which tables do without it.
            Scope::Some(_) if scope.moved().any(|addr| self.unreachable.contains(addr)) => {
                return None;
            }
            Scope::Some(_) => {}
        }
        self.begin(now);
        let mut draft =
            Draft { desired, facts, served: BTreeMap::new(), backends: BTreeMap::new() };
        let mut problems = Problems::default();
        for (addr, frontend) in scope.frontends(desired) {
            self.plan_frontend(&mut draft, &mut problems, addr, frontend);
        }

        let clients = clients::decide(&mut draft, &self.actual, &self.tables, &mut problems);
        if problems.exhausted && !matches!(scope, Scope::All) {
            return None;
        }
        let before = scope.descriptors(&self.actual, &self.frontend_ids);
        let after = After::new(&before, &draft, &self.tables);
        self.plan_moved(scope, &after, &mut draft)?;

        let leftovers = clients.leftovers(scope, &self.actual);
        let gone = clients.gone(scope, &before, &after, &self.actual);
        self.makes_room = !leftovers.is_empty() || !gone.is_empty();
        let mut ops = self.plan_repairs(scope);
        ops.extend(leftovers);
        self.plan_tables(&draft, &after, &mut ops);
        ops.extend(clients.additions(&self.actual));
        self.plan_frontends(&draft, &mut ops);
        let going = self.going_backends(&after, now);
        self.plan_addresses(scope, &draft, &going, flows, &mut problems, &mut ops);
        self.plan_removals(scope, &draft, &mut ops);
        self.plan_retirements(scope, &after, &going, &mut ops);
        ops.extend(gone);
        ops.extend(
            going.iter().map(|(family, id)| MapOp::SetBackend {
                id: *id,
                backend: backends::unused(*family),
            }),
        );

        if problems.exhausted && !matches!(scope, Scope::All) {
            return None;
        }
        self.exhausted = problems.exhausted;
        scope.forget(&mut self.warnings);
        self.warnings.extend(problems.warnings);
        self.open = Some(ops.len());
        let mut found = problems.found;
        found.extend(self.warnings.values().flatten().cloned());
        Some(Plan { ops, problems: found.into_iter().collect() })
    }

    /// How full the maps are that hold ids and ranges, and those that cannot tell at a glance.
    pub fn rooms(&self) -> Vec<Room> {
        let room = |map, used: usize, capacity: usize| Room {
            map,
            used: used as u64,
            capacity: capacity as u64,
        };
        let ranges = |family| {
            let of_family = self.actual.ranges.iter().filter(|((of, _), _)| *of == family);
            of_family.map(|(_, ranges)| ranges.len()).sum()
        };
        let PerFamily { v4, v6 } = &self.frontend_pools;
        let backends = self.backends.pools();
        vec![
            room("frontends_v4", v4.used(), v4.capacity()),
            room("frontends_v6", v6.used(), v6.capacity()),
            room("backends_v4", backends.v4.used(), MAX_BACKENDS),
            room("backends_v6", backends.v6.used(), MAX_BACKENDS),
            room("tables", self.tables.used_blocks(), TABLE_BLOCKS),
            room("members", self.actual.members.len(), MAX_MEMBERS),
            room("ranges_v4", ranges(Family::V4), MAX_RANGES),
            room("ranges_v6", ranges(Family::V6), MAX_RANGES),
        ]
    }

    /// Whether planning again after [`crate::quarantine::QUARANTINE`] will find more to do, even
    /// if nothing else changes: backends go, or room comes for what had none.
    pub fn is_waiting(&self) -> bool {
        let PerFamily { v4, v6 } = &self.frontend_pools;
        let room_comes = v4.is_waiting() || v6.is_waiting() || self.tables.is_waiting();
        self.backends.is_waiting() || self.exhausted && (room_comes || self.makes_room)
    }

    /// Follows the operations of the last plan that were carried out, in their order.
    pub fn commit(&mut self, applied: &[MapOp]) {
        self.open = self.open.map(|open| open.saturating_sub(applied.len()));
        for op in applied {
            match op {
                MapOp::SetBackend { id, backend } => {
                    let key = (backend.family(), *id);
                    let before = self.actual.backends.get(&key);
                    self.backends.applied(before.map(BackendEntry::addr), *id, backend);
                    if !backend.is_unused() && !self.tables.names(key) {
                        self.backends.idle(key);
                    }
                }
                MapOp::SetDescriptor { family, id, descriptor } => {
                    let before = self.actual.descriptors.get(&(*family, *id));
                    self.tables.follow(before, descriptor, &mut self.backends);
                }
                MapOp::InsertFrontend { addr, id } => {
                    self.frontend_drafts.remove(addr);
                    self.frontend_ids.insert(*addr, *id);
                }
                MapOp::RemoveFrontend { addr } => {
                    if let Some(id) = self.frontend_ids.remove(addr) {
                        self.frontend_pools.get_mut(Family::of(addr.addr)).release(id);
                    }
                }
                MapOp::WriteTable { .. }
                | MapOp::SetMember { .. }
                | MapOp::RemoveMember { .. }
                | MapOp::SetRange { .. }
                | MapOp::RemoveRange { .. }
                | MapOp::SetInfo { .. }
                | MapOp::ResetStats { .. }
                | MapOp::SetAddress { .. }
                | MapOp::RemoveAddress { .. } => {}
            }
            match op {
                MapOp::WriteTable { first_block, table } => {
                    slab::clear(&mut self.written, *first_block, table.len(), Table::len);
                    self.written.insert(*first_block, table.clone());
                }
                op => self.actual.carry_out(op),
            }
        }
        self.tables.settle(&mut self.backends);
        if self.open == Some(0) {
            self.written.clear();
        }
    }

    fn begin(&mut self, now: u64) {
        for (addr, id) in std::mem::take(&mut self.frontend_drafts) {
            self.frontend_pools.get_mut(Family::of(addr.addr)).give_back(id);
        }
        for family in [Family::V4, Family::V6] {
            self.frontend_pools.get_mut(family).tick(now);
        }
        self.backends.begin(now);
        self.tables.begin(now);
    }

    /// Decides a frontend's id and descriptor.
    fn plan_frontend<'a>(
        &mut self,
        draft: &mut Draft<'a>,
        problems: &mut Problems,
        addr: FrontendAddr,
        frontend: &'a Frontend,
    ) {
        let family = Family::of(addr.addr);
        let known = self.frontend_ids.get(&addr).copied();
        if known.is_none() && self.actual.frontends.contains_key(&addr) {
            // A key with somebody else's id: it is removed first and comes back with the next plan.
            problems.exhausted(frontend, format!("{addr} is repaired: it shares an id"));
            return;
        }
        let before = known.and_then(|id| self.actual.descriptors.get(&(family, id)).copied());

        let mut words = [None; 2];
        let sides = [
            (&frontend.external, before.map(|before| before.external)),
            (&frontend.internal, before.map(|before| before.internal)),
        ];
        for (side, (endpoints, before)) in sides.into_iter().enumerate() {
            if side == 1 && frontend.internal == frontend.external && before == sides[0].1 {
                words[1] = words[0];
                break;
            }
            let word = self.choose(draft, problems, addr, frontend, endpoints);
            if word.is_none() && before.is_some() {
                problems.exhausted(
                    frontend,
                    format!("{addr} keeps its previous endpoints: no room for another table"),
                );
            }
            words[side] = word.or(before);
        }
        let [Some(external), Some(internal)] = words else {
            problems.exhausted(frontend, format!("{addr} is not served: no room for its table"));
            return;
        };

        let id = match known {
            Some(id) => id,
            None => {
                let pool = self.frontend_pools.get_mut(family);
                let Some(id) = pool.take() else {
                    let most = pool.capacity();
                    problems.exhausted(
                        frontend,
                        format!(
                            "{addr} is not served: {most} {family} frontends exist (--frontends)"
                        ),
                    );
                    return;
                };
                self.frontend_drafts.insert(addr, id);
                id
            }
        };
        let descriptor = Descriptor { external, internal, ..Descriptor::default() };
        draft.served.insert(addr, Served { id, descriptor, frontend });
    }

    /// The descriptor's word for a set of endpoints, or none if the slab has no room.
    fn choose(
        &mut self,
        draft: &mut Draft<'_>,
        problems: &mut Problems,
        addr: FrontendAddr,
        frontend: &Frontend,
        endpoints: &Endpoints,
    ) -> Option<u64> {
        let endpoints = match endpoints {
            Endpoints::Serve(endpoints) => endpoints,
            Endpoints::Reject => return Some(TableRef::verdict(TablePolicy::Reject).0),
            Endpoints::Drop => return Some(TableRef::verdict(TablePolicy::Drop).0),
        };
        let family = Family::of(addr.addr);
        let mut ids = Vec::with_capacity(endpoints.len());
        let mut servable = Vec::with_capacity(endpoints.len());
        for endpoint in endpoints {
            match self.backend(draft, family, *endpoint) {
                Ok(id) => {
                    ids.push(id);
                    servable.push(*endpoint);
                }
                Err(LeftOut::NoRoom) => problems.exhausted(
                    frontend,
                    format!(
                        "endpoint {endpoint} is left out: {MAX_BACKENDS} {family} backends exist"
                    ),
                ),
                Err(LeftOut::NoRoute) => {
                    self.unreachable.insert(*endpoint);
                    problems.warn(
                        addr,
                        frontend,
                        format!("endpoint {endpoint} is left out: this node has no route to it"),
                    );
                }
                Err(LeftOut::OtherFamily) => problems.warn(
                    addr,
                    frontend,
                    format!("endpoint {endpoint} is left out: {addr} needs {family}"),
                ),
            }
        }
        if servable.is_empty() {
            // There are endpoints, so refusing would be a lie: the client is to try again.
            problems.warn(
                addr,
                frontend,
                format!("packets to {addr} are dropped: this node reaches none of its endpoints"),
            );
            return Some(TableRef::verdict(TablePolicy::Drop).0);
        }
        let set = match servable.len() == endpoints.len() {
            true => endpoints.clone(),
            false => servable.into_iter().collect::<EndpointSet>(),
        };
        Some(self.tables.range(family, &set, &ids)?.serve().0)
    }

    /// The id of a backend, and what it should be.
    fn backend(
        &mut self,
        draft: &mut Draft<'_>,
        family: Family,
        addr: SocketAddr,
    ) -> Result<u32, LeftOut> {
        if Family::of(addr.ip()) != family {
            return Err(LeftOut::OtherFamily);
        }
        let entry = backends::entry(addr, draft.desired, draft.facts).ok_or(LeftOut::NoRoute)?;
        let id = self.backends.id(addr).ok_or(LeftOut::NoRoom)?;
        draft.backends.insert((family, id), entry);
        Ok(id)
    }

    /// Adds the backends to the draft that are where they were not, in whatever tables. `None` if a
    /// table must do without one of them.
    fn plan_moved(&self, scope: Scope<'_>, after: &After, draft: &mut Draft<'_>) -> Option<()> {
        for addr in scope.moved() {
            let Some(id) = self.backends.ids().get(addr) else { continue };
            let key = (Family::of(addr.ip()), *id);
            if self.actual.backends.contains_key(&key) && after.uses(key, &self.tables) {
                draft.backends.insert(key, backends::entry(*addr, draft.desired, draft.facts)?);
            }
        }
        Some(())
    }

    /// Backends and tables that frontends will use.
    fn plan_tables(&self, draft: &Draft<'_>, after: &After, ops: &mut Vec<MapOp>) {
        let moved = draft.backends.keys().filter(|key| after.uses(**key, &self.tables));
        let used: BTreeSet<(Family, u32)> = after.backends().chain(moved).copied().collect();
        for key in &used {
            // Missing where a frontend keeps a table that is out of date: its backends stay as
            // they are.
            let before = self.actual.backends.get(key);
            let kept = || before.map(|entry| entry.without_hop());
            let Some(entry) = draft.backends.get(key).copied().or_else(kept) else { continue };
            let entry = entry.with_retired(false);
            if before != Some(&entry) {
                ops.push(MapOp::SetBackend { id: key.1, backend: entry });
            }
        }
        for range in after.ranges() {
            // After a failure the range may hold the table already, written but not published.
            if let Some(table) = self.tables.draft(range, self.backends.ids())
                && self.written.get(&range.first) != Some(&table)
            {
                ops.push(MapOp::WriteTable { first_block: range.first, table });
            }
        }
    }

    /// Keys that were found without an id of their own: it is another key's, or there is no room for
    /// it any more. They go first, because they may take the place of others.
    fn plan_repairs(&self, scope: Scope<'_>) -> Vec<MapOp> {
        let found = match scope {
            Scope::All => self.actual.frontends.keys(),
            Scope::Some(_) => return Vec::new(),
        };
        let lost = found.filter(|addr| !self.frontend_ids.contains_key(addr));
        lost.map(|addr| MapOp::RemoveFrontend { addr: *addr }).collect()
    }

    /// Names, descriptors and keys of the frontends that are served.
    fn plan_frontends(&self, draft: &Draft<'_>, ops: &mut Vec<MapOp>) {
        for (addr, served) in &draft.served {
            let Served { id, descriptor, frontend } = *served;
            let family = Family::of(addr.addr);
            let key = (family, id);
            let is_new = !self.actual.frontends.contains_key(addr);
            if is_new {
                ops.push(MapOp::ResetStats { family, id });
            }
            let info = FrontendInfo::new(&frontend.name.to_string(), frontend.kind);
            if self.actual.infos.get(&key) != Some(&info) {
                ops.push(MapOp::SetInfo { family, id, info: Box::new(info) });
            }
            if self.actual.descriptors.get(&key) != Some(&descriptor) {
                ops.push(MapOp::SetDescriptor { family, id, descriptor });
            }
            if is_new {
                ops.push(MapOp::InsertFrontend { addr: *addr, id });
            }
        }
    }

    /// Backends that no table has named for long enough.
    fn going_backends(&self, after: &After, now: u64) -> BTreeSet<(Family, u32)> {
        let keys = self.backends.may_go(now).filter(|key| self.actual.backends.contains_key(key));
        keys.filter(|key| !after.uses(*key, &self.tables)).collect()
    }

    /// Backends that no table names any more and that rest until they may go. Only after the last
    /// table is gone: until then, clients may begin something new with them.
    fn plan_retirements(
        &self,
        scope: Scope<'_>,
        after: &After,
        going: &BTreeSet<(Family, u32)>,
        ops: &mut Vec<MapOp>,
    ) {
        let mut retire = |key: &(Family, u32), entry: &BackendEntry| {
            if !after.uses(*key, &self.tables) && !going.contains(key) && !entry.is_retired() {
                // Nobody follows the way to it any more, so the kernel is asked.
                let backend = entry.with_retired(true).without_hop();
                ops.push(MapOp::SetBackend { id: key.1, backend });
            }
        };
        match scope {
            Scope::All => self.actual.backends.iter().for_each(|(key, entry)| retire(key, entry)),
            Scope::Some(_) => {
                for key in after.left() {
                    if let Some(entry) = self.actual.backends.get(key) {
                        retire(key, entry);
                    }
                }
            }
        }
    }

    fn plan_addresses(
        &self,
        scope: Scope<'_>,
        draft: &Draft<'_>,
        going: &BTreeSet<(Family, u32)>,
        flows: Option<&BTreeSet<IpAddr>>,
        problems: &mut Problems,
        ops: &mut Vec<MapOp>,
    ) {
        let is_served = |addr: &FrontendAddr| match scope.has(addr) {
            true => draft.served.contains_key(addr),
            false => self.frontend_ids.contains_key(addr),
        };
        let stays = |addr: &SocketAddr, id: &u32| {
            let key = (Family::of(addr.ip()), *id);
            let entry = self.actual.backends.get(&key);
            entry.is_some_and(|entry| entry.is_local() && !going.contains(&key))
        };
        let addresses = addresses::Addresses {
            desired: draft.desired,
            facts: draft.facts,
            ids: self.backends.ids(),
            flows,
            actual: &self.actual,
        };
        let mut room = None;
        let mut gone = Vec::new();
        for addr in scope.addresses(draft, &self.actual) {
            let flags = addresses.flags(addr, is_served, stays);
            let before = self.actual.addresses.get(&addr);
            if flags == AddressFlags::default() {
                gone.extend(before.map(|_| MapOp::RemoveAddress { addr }));
                continue;
            }
            if before == Some(&flags) {
                continue;
            }
            if before.is_none() {
                let family = Family::of(addr);
                let room = room.get_or_insert_with(|| self.room_for_addresses()).get_mut(family);
                if *room == 0 {
                    problems.address(addr, family, flags);
                    continue;
                }
                *room -= 1;
            }
            ops.push(MapOp::SetAddress { addr, flags });
        }
        ops.extend(gone);
    }

    fn room_for_addresses(&self) -> PerFamily<usize> {
        let v4 = self.actual.addresses.keys().filter(|addr| addr.is_ipv4()).count();
        let v6 = self.actual.addresses.len() - v4;
        PerFamily { v4, v6 }.map(|count| MAX_ADDRESSES.saturating_sub(count))
    }

    /// Frontends that go, and what is left of ids that no key leads to.
    fn plan_removals(&self, scope: Scope<'_>, draft: &Draft<'_>, ops: &mut Vec<MapOp>) {
        let gone: Vec<(FrontendAddr, u32)> = scope
            .programmed(&self.actual)
            .filter(|(addr, _)| !draft.served.contains_key(addr))
            .filter(|(addr, _)| self.frontend_ids.contains_key(addr))
            .collect();
        ops.extend(gone.iter().map(|(addr, _)| MapOp::RemoveFrontend { addr: *addr }));

        let (descriptors, infos): (Vec<_>, Vec<_>) = match scope {
            Scope::All => {
                let served = draft.served.iter();
                let served: BTreeSet<(Family, u32)> =
                    served.map(|(addr, served)| (Family::of(addr.addr), served.id)).collect();
                let unserved = |key: &(Family, u32)| !served.contains(key);
                let descriptors = self.actual.descriptors.keys().copied().filter(unserved);
                let infos = self.actual.infos.keys().copied().filter(unserved);
                (descriptors.collect(), infos.collect())
            }
            Scope::Some(_) => {
                let keys = gone.iter().map(|(addr, id)| (Family::of(addr.addr), *id));
                let descriptors =
                    keys.clone().filter(|key| self.actual.descriptors.contains_key(key));
                let infos = keys.filter(|key| self.actual.infos.contains_key(key));
                (descriptors.collect(), infos.collect())
            }
        };
        for (family, id) in descriptors {
            ops.push(MapOp::SetDescriptor { family, id, descriptor: Descriptor::default() });
        }
        for (family, id) in infos {
            ops.push(MapOp::SetInfo { family, id, info: Box::new(FrontendInfo::UNUSED) });
        }
    }
}

/// A frontend as it should be.
#[derive(Clone, Copy)]
struct Served<'a> {
    id: u32,
    descriptor: Descriptor,
    frontend: &'a Frontend,
}

/// A plan in the making.
struct Draft<'a> {
    desired: &'a Desired,
    facts: &'a NodeFacts,
    served: BTreeMap<FrontendAddr, Served<'a>>,
    backends: BTreeMap<(Family, u32), BackendEntry>,
}

/// Why an endpoint is in no table.
enum LeftOut {
    NoRoute,
    NoRoom,
    OtherFamily,
}

/// What is not served as desired.
#[derive(Default)]
struct Problems {
    /// What the frontends alone decide.
    warnings: BTreeMap<FrontendAddr, BTreeSet<Problem>>,
    found: BTreeSet<Problem>,
    /// Some of it because a map is full: then one frontend matters to others.
    exhausted: bool,
}

impl Problems {
    fn warn(&mut self, addr: FrontendAddr, frontend: &Frontend, message: String) {
        let warnings = self.warnings.entry(addr).or_default();
        let reason = Reason::EndpointUnreachable;
        warnings.insert(problem(Severity::Warning, &frontend.name, message, reason));
    }

    fn exhausted(&mut self, frontend: &Frontend, message: String) {
        self.exhausted = true;
        let reason = Reason::CapacityExceeded;
        self.found.insert(problem(Severity::Error, &frontend.name, message, reason));
    }

    fn address(&mut self, addr: IpAddr, family: Family, flags: AddressFlags) {
        self.exhausted = true;
        let what = if flags.has(AddressFlags::SERVICE) { "frontends on it are" } else { "it is" };
        self.found.insert(Problem {
            severity: Severity::Error,
            origin: String::new(),
            object: format!("address {addr}"),
            field: String::new(),
            message: format!("{what} not served: {MAX_ADDRESSES} {family} addresses exist"),
            reason: Reason::CapacityExceeded,
        });
    }
}

fn problem(severity: Severity, name: &ServicePortName, message: String, reason: Reason) -> Problem {
    Problem {
        severity,
        origin: String::new(),
        object: format!("Service {}/{}", name.namespace, name.service),
        field: format!("port {}", name.port),
        message,
        reason,
    }
}
