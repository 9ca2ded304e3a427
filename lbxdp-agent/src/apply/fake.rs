//! The maps in memory, which panic at any operation that a kernel reader could trip over. For
//! tests of what comes before the maps.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use lbxdp_common::limits::{MAX_FRONTENDS, TABLE_BLOCKS};
use lbxdp_common::{AddressFlags, Descriptor, MemberKey};

use super::{Actual, BackendEntry, FlowEntry, MapError, MapOp, Maps};
use crate::model::{Family, FrontendAddr};
use crate::quarantine::QUARANTINE;
use crate::slab::BlockRange;

/// The maps in memory.
#[derive(Debug, Default)]
pub struct FakeMaps {
    /// What they hold.
    pub actual: Actual,
    /// What [`Maps::flow_addresses`] answers.
    pub flows: BTreeSet<IpAddr>,
    /// What [`Maps::udp_flows`] answers.
    pub udp_flows: Vec<FlowEntry>,
    /// The time at which the next operations are carried out, in nanoseconds.
    pub now: u64,
    /// When a block was last part of a published range.
    block_seen: BTreeMap<u32, u64>,
    /// When a frontend id was last found by its key.
    frontend_seen: BTreeMap<(Family, u32), u64>,
    /// When a backend id was last in a published range, and as what.
    backend_seen: BTreeMap<(Family, u32), (SocketAddr, u64)>,
}

impl FakeMaps {
    /// Maps that hold what a previous agent left.
    pub fn holding(actual: Actual) -> Self {
        Self { actual, ..Self::default() }
    }

    fn is_recent(&self, seen: u64) -> bool {
        self.now.saturating_sub(seen) < QUARANTINE.as_nanos() as u64
    }

    fn published(&self) -> impl Iterator<Item = (Family, BlockRange)> + '_ {
        self.actual.descriptors.iter().flat_map(|((family, _), descriptor)| {
            BlockRange::published(descriptor).map(move |range| (*family, range))
        })
    }

    /// Ids in a range, without repetition.
    fn ids(&self, range: BlockRange) -> BTreeSet<u32> {
        let blocks = self.actual.tables.get(range);
        let Some(blocks) = blocks else { panic!("{range:?} was never written") };
        blocks.iter().flat_map(|block| block.slots).collect()
    }

    /// Remembers what a descriptor that is about to change made visible.
    fn note_descriptor(&mut self, family: Family, id: u32) {
        let Some(descriptor) = self.actual.descriptors.get(&(family, id)).copied() else { return };
        for range in BlockRange::published(&descriptor) {
            for block in range.indices() {
                self.block_seen.insert(block as u32, self.now);
            }
            for backend in self.ids(range) {
                if let Some(entry) = self.actual.backends.get(&(family, backend)) {
                    self.backend_seen.insert((family, backend), (entry.addr(), self.now));
                }
            }
        }
    }

    /// Panics unless a reader that sees the maps before and after `op` is served rightly.
    fn check(&mut self, op: &MapOp) {
        match op {
            MapOp::SetBackend { id, backend } => self.check_backend(*id, backend),
            MapOp::WriteTable { first_block, table } => {
                self.check_table(*first_block as usize, table.len());
            }
            MapOp::SetDescriptor { family, id, descriptor } => {
                self.check_descriptor(*family, *id, descriptor);
                self.note_descriptor(*family, *id);
            }
            MapOp::SetInfo { family: _, id: _, info: _ } => {}
            MapOp::SetMember { member } => self.check_member(*member),
            MapOp::RemoveMember { member } => {
                assert!(!self.is_member(*member), "{op:?}: affinity to it counts");
            }
            MapOp::SetRange { service: _, range } | MapOp::RemoveRange { service: _, range } => {
                assert_eq!(range.trunc(), *range, "{op:?}: not a range's first address");
            }
            MapOp::ResetStats { family, id } => {
                assert!(!self.is_frontend_id(*family, *id), "{op:?}: statistics in use");
            }
            MapOp::InsertFrontend { addr, id } => self.check_frontend(*addr, *id),
            MapOp::RemoveFrontend { addr } => {
                let others = self.frontends_at(addr.addr).filter(|other| *other != addr).count();
                assert!(others > 0 || !self.is_service(addr.addr), "{op:?}: address says service");
                if let Some(id) = self.actual.frontends.get(addr) {
                    self.frontend_seen.insert((Family::of(addr.addr), *id), self.now);
                }
            }
            MapOp::SetAddress { addr, flags } => {
                let served = self.frontends_at(*addr).next().is_some();
                assert!(served || !flags.has(AddressFlags::SERVICE), "{op:?}: no frontend");
                assert_ne!(flags.flags, 0, "{op:?}: an address that is nothing");
            }
            MapOp::RemoveAddress { addr: _ } => {}
        }
    }

    fn check_backend(&self, id: u32, backend: &BackendEntry) {
        let family = backend.family();
        let addr = backend.addr();
        let in_use =
            self.published().any(|(other, range)| other == family && self.ids(range).contains(&id));
        let before = self.actual.backends.get(&(family, id)).map(BackendEntry::addr);
        if in_use {
            assert_eq!(before, Some(addr), "{backend:?}: {id} is in a published table");
            assert!(!backend.is_retired(), "{backend:?}: {id} is retired in a published table");
        }
        if let Some((other, seen)) = self.backend_seen.get(&(family, id))
            && self.is_recent(*seen)
        {
            assert_eq!(*other, addr, "{backend:?}: {id} was in a published table just before");
        }
        let taken = self.actual.backends.iter().find(|(key, entry)| {
            key.0 == family && key.1 != id && addr.port() != 0 && entry.addr() == addr
        });
        let taken = taken.filter(|_| before != Some(addr));
        assert_eq!(taken, None, "{backend:?}: has an id");
    }

    fn check_table(&self, first: usize, blocks: usize) {
        let end = first + blocks;
        assert!(end <= TABLE_BLOCKS, "range {first}..{end} leaves the slab");
        for (_, range) in self.published() {
            let range = range.indices();
            assert!(end <= range.start || range.end <= first, "{range:?} is published");
        }
        for (block, seen) in self.block_seen.range(first as u32..end as u32) {
            assert!(!self.is_recent(*seen), "block {block} was published just before");
        }
    }

    fn check_descriptor(&self, family: Family, id: u32, descriptor: &Descriptor) {
        if *descriptor == Descriptor::default() {
            assert!(!self.is_frontend_id(family, id), "{family} frontend {id} is still found");
            return;
        }
        if descriptor.affinity != 0 {
            for range in BlockRange::published(descriptor) {
                assert_eq!(
                    self.members(range),
                    self.ids(range),
                    "{range:?} is published with affinity: its members are not its backends"
                );
            }
        }
        for range in BlockRange::published(descriptor) {
            assert_eq!(range.indices().start % range.blocks(), 0, "{range:?} is not aligned");
            assert!(range.indices().end <= TABLE_BLOCKS, "{range:?} leaves the slab");
            for backend in self.ids(range) {
                let entry = self.actual.backends.get(&(family, backend));
                let name = format!("{range:?} names {family} backend {backend}");
                let Some(entry) = entry else { panic!("{name}, which is not set") };
                assert!(!entry.is_retired(), "{name}, which is retired");
            }
        }
    }

    /// The members of a table that somebody may ask are what they should be already.
    fn check_member(&self, member: MemberKey) {
        let mut asked = self.with_affinity().filter(|range| range.first == member.first_block);
        assert!(
            asked.all(|range| self.ids(range).contains(&member.backend)),
            "{member:?}: the table is published without that backend"
        );
    }

    /// Whether a published table for which affinity is asked has the backend.
    fn is_member(&self, member: MemberKey) -> bool {
        let mut asked = self.with_affinity().filter(|range| range.first == member.first_block);
        asked.any(|range| self.ids(range).contains(&member.backend))
    }

    fn with_affinity(&self) -> impl Iterator<Item = BlockRange> + '_ {
        let descriptors = self.actual.descriptors.values();
        descriptors.filter(|descriptor| descriptor.affinity != 0).flat_map(BlockRange::published)
    }

    /// Backend ids that are members of a range.
    fn members(&self, range: BlockRange) -> BTreeSet<u32> {
        let key = |backend| MemberKey { first_block: range.first, backend };
        let members = self.actual.members.range(key(0)..=key(u32::MAX));
        members.map(|member| member.backend).collect()
    }

    fn check_frontend(&self, addr: FrontendAddr, id: u32) {
        let family = Family::of(addr.addr);
        let key = (family, id);
        assert!(self.actual.descriptors.contains_key(&key), "{addr}: {id} has no descriptor");
        assert!(self.actual.infos.contains_key(&key), "{addr}: {id} has no name");
        match self.actual.frontends.get(&addr) {
            Some(before) => assert_eq!(*before, id, "{addr}: the id of a key never changes"),
            None => assert!(!self.is_frontend_id(family, id), "{addr}: {id} is somebody else's"),
        }
        if let Some(seen) = self.frontend_seen.get(&key) {
            assert!(!self.is_recent(*seen), "{addr}: {id} was in use just before");
        }
    }

    fn frontends_at(&self, addr: IpAddr) -> impl Iterator<Item = &FrontendAddr> {
        self.actual.frontends.keys().filter(move |frontend| frontend.addr == addr)
    }

    fn is_frontend_id(&self, family: Family, id: u32) -> bool {
        let mut frontends = self.actual.frontends.iter();
        frontends.any(|(addr, other)| Family::of(addr.addr) == family && *other == id)
    }

    fn is_service(&self, addr: IpAddr) -> bool {
        let flags = self.actual.addresses.get(&addr);
        flags.is_some_and(|flags| flags.has(AddressFlags::SERVICE))
    }
}

impl Maps for FakeMaps {
    fn frontends(&self) -> usize {
        MAX_FRONTENDS
    }

    fn read(&self) -> Result<Actual, MapError> {
        Ok(self.actual.clone())
    }

    fn apply(&mut self, ops: &[MapOp]) -> (usize, Option<MapError>) {
        for op in ops {
            self.check(op);
            self.actual.carry_out(op);
        }
        (ops.len(), None)
    }

    fn flow_addresses(&self) -> Result<BTreeSet<IpAddr>, MapError> {
        Ok(self.flows.clone())
    }

    fn udp_flows(&self) -> Result<Vec<FlowEntry>, MapError> {
        Ok(self.udp_flows.clone())
    }

    fn end_half(&mut self, half: &FlowEntry) -> Result<bool, MapError> {
        let before = self.udp_flows.len();
        self.udp_flows.retain(|other| other != half);
        Ok(self.udp_flows.len() < before)
    }
}

#[cfg(test)]
mod tests {
    use lbxdp_common::{Backend, FrontendInfo, FrontendKind, TableRef};

    use super::*;
    use crate::model::{EndpointSet, Protocol};
    use crate::table::Table;

    const ADDR: FrontendAddr = FrontendAddr {
        addr: IpAddr::V4(std::net::Ipv4Addr::new(10, 96, 0, 1)),
        port: 80,
        protocol: Protocol::Tcp,
    };

    fn backend(port: u16) -> MapOp {
        let addr = [10, 1, 0, 1];
        let backend = Backend { addr, snat_addr: [192, 0, 2, 1], port, flags: 0, hop: 0 };
        MapOp::SetBackend { id: 1, backend: BackendEntry::V4(backend) }
    }

    fn table() -> MapOp {
        let endpoints = EndpointSet::from([([10, 1, 0, 1], 80).into()]);
        MapOp::WriteTable { first_block: 0, table: Table::new(&endpoints, |_| Some(1)).unwrap() }
    }

    fn descriptor() -> MapOp {
        let word = TableRef::serve(0, 4).0;
        let descriptor = Descriptor { external: word, internal: word, ..Descriptor::default() };
        MapOp::SetDescriptor { family: Family::V4, id: 0, descriptor }
    }

    fn info() -> MapOp {
        let info = Box::new(FrontendInfo::new("default/web:http", FrontendKind::ClusterIp));
        MapOp::SetInfo { family: Family::V4, id: 0, info }
    }

    fn frontend() -> MapOp {
        MapOp::InsertFrontend { addr: ADDR, id: 0 }
    }

    #[test]
    fn the_right_order_is_accepted() {
        let ops = [backend(80), table(), info(), descriptor(), frontend()];
        assert_eq!(FakeMaps::default().apply(&ops).0, ops.len());
    }

    #[test]
    #[should_panic(expected = "which is not set")]
    fn a_table_of_unset_backends_is_not_published() {
        FakeMaps::default().apply(&[table(), descriptor()]);
    }

    #[test]
    #[should_panic(expected = "is published")]
    fn a_published_table_is_not_written() {
        FakeMaps::default().apply(&[backend(80), table(), descriptor(), table()]);
    }

    #[test]
    #[should_panic(expected = "is in a published table")]
    fn a_published_backend_is_not_replaced() {
        FakeMaps::default().apply(&[backend(80), table(), descriptor(), backend(81)]);
    }

    fn retired() -> MapOp {
        let MapOp::SetBackend { id, backend } = backend(80) else { unreachable!() };
        MapOp::SetBackend { id, backend: backend.with_retired(true) }
    }

    #[test]
    #[should_panic(expected = "which is retired")]
    fn a_table_of_retired_backends_is_not_published() {
        FakeMaps::default().apply(&[retired(), table(), descriptor()]);
    }

    #[test]
    #[should_panic(expected = "is retired in a published table")]
    fn a_published_backend_is_not_retired() {
        FakeMaps::default().apply(&[backend(80), table(), descriptor(), retired()]);
    }

    #[test]
    #[should_panic(expected = "has no descriptor")]
    fn a_frontend_is_not_found_before_its_descriptor() {
        FakeMaps::default().apply(&[backend(80), table(), info(), frontend()]);
    }

    #[test]
    #[should_panic(expected = "is still found")]
    fn a_frontend_that_is_found_keeps_its_descriptor() {
        let nothing = Descriptor::default();
        let clear = MapOp::SetDescriptor { family: Family::V4, id: 0, descriptor: nothing };
        FakeMaps::default().apply(&[backend(80), table(), info(), descriptor(), frontend(), clear]);
    }

    #[test]
    #[should_panic(expected = "was in use just before")]
    fn an_id_is_not_reused_at_once() {
        let other = FrontendAddr { port: 81, ..ADDR };
        FakeMaps::default().apply(&[
            backend(80),
            table(),
            info(),
            descriptor(),
            frontend(),
            MapOp::RemoveFrontend { addr: ADDR },
            MapOp::InsertFrontend { addr: other, id: 0 },
        ]);
    }

    fn with_affinity() -> MapOp {
        let word = TableRef::serve(0, 4).0;
        let descriptor =
            Descriptor { external: word, internal: word, affinity: 10, ..Descriptor::default() };
        MapOp::SetDescriptor { family: Family::V4, id: 0, descriptor }
    }

    const MEMBER: MemberKey = MemberKey { first_block: 0, backend: 1 };

    #[test]
    fn affinity_is_published_after_the_members_of_its_tables() {
        let ops = [backend(80), table(), MapOp::SetMember { member: MEMBER }, with_affinity()];
        assert_eq!(FakeMaps::default().apply(&ops).0, ops.len());
    }

    #[test]
    #[should_panic(expected = "its members are not its backends")]
    fn affinity_is_not_published_before_the_members_of_its_tables() {
        FakeMaps::default().apply(&[backend(80), table(), with_affinity()]);
    }

    #[test]
    #[should_panic(expected = "its members are not its backends")]
    fn affinity_is_not_published_with_the_members_of_another_table() {
        let stale = MapOp::SetMember { member: MemberKey { backend: 9, ..MEMBER } };
        let member = MapOp::SetMember { member: MEMBER };
        FakeMaps::default().apply(&[stale, backend(80), table(), member, with_affinity()]);
    }

    #[test]
    #[should_panic(expected = "affinity to it counts")]
    fn the_members_of_a_published_table_stay() {
        let member = MapOp::SetMember { member: MEMBER };
        let remove = MapOp::RemoveMember { member: MEMBER };
        FakeMaps::default().apply(&[backend(80), table(), member, with_affinity(), remove]);
    }

    #[test]
    #[should_panic(expected = "without that backend")]
    fn no_member_is_added_to_a_published_table() {
        let member = MapOp::SetMember { member: MEMBER };
        let more = MapOp::SetMember { member: MemberKey { backend: 9, ..MEMBER } };
        FakeMaps::default().apply(&[backend(80), table(), member, with_affinity(), more]);
    }
}
