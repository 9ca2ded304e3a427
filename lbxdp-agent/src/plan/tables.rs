//! Which set of endpoints has which range of the slab.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use lbxdp_common::{Descriptor, TableBlock, limits::TABLE_BLOCKS};

use super::PerFamily;
use super::backends::Backends;
use crate::apply::Actual;
use crate::maglev;
use crate::model::{EndpointSet, Family};
use crate::slab::{BlockRange, Slab};
use crate::table;

/// A range and what is in it.
#[derive(Debug)]
struct Table {
    family: Family,
    /// Backend ids in the slots, in ascending order.
    backends: Box<[u32]>,
    /// The set whose table this is; none where an older agent computed another one.
    endpoints: Option<EndpointSet>,
    /// The slab knows the range: not so if it overlaps another, which no agent leaves behind.
    reserved: bool,
    /// Words of descriptors that publish it.
    uses: usize,
    /// Those of them whose frontends have affinity.
    affine_uses: usize,
}

/// The tables that are published, and those the current plan adds.
#[derive(Debug)]
pub(super) struct Tables {
    slab: Slab,
    published: BTreeMap<BlockRange, Table>,
    drafts: BTreeMap<BlockRange, Table>,
    /// How many published tables name a backend, by id.
    named: PerFamily<Vec<u32>>,
    by_endpoints: BTreeMap<EndpointSet, BlockRange>,
    /// Published ranges that a descriptor left since the last [`Tables::settle`].
    left: BTreeSet<BlockRange>,
}

impl Tables {
    /// Takes over what the maps publish. A table is only kept if it is the one that this agent
    /// would write for its backends.
    pub(super) fn read(actual: &Actual, ids: &BTreeMap<SocketAddr, u32>) -> Self {
        let mut tables = Self {
            slab: Slab::new(TABLE_BLOCKS),
            published: BTreeMap::new(),
            drafts: BTreeMap::new(),
            named: PerFamily::new(Vec::new),
            by_endpoints: BTreeMap::new(),
            left: BTreeSet::new(),
        };
        let published = actual.descriptors.iter().flat_map(|((family, _), descriptor)| {
            BlockRange::published(descriptor).map(move |range| (range, *family))
        });
        for (range, family) in published.collect::<BTreeMap<_, _>>() {
            let Some(blocks) = actual.tables.get(range) else { continue };
            let backends: BTreeSet<u32> = blocks.iter().flat_map(|block| block.slots).collect();
            let endpoints = endpoints_of(actual, ids, family, &backends, blocks);
            if let Some(endpoints) = &endpoints {
                tables.by_endpoints.insert(endpoints.clone(), range);
            }
            let reserved = tables.slab.reserve(range);
            let backends = backends.into_iter().collect();
            let table = Table { family, backends, endpoints, reserved, uses: 0, affine_uses: 0 };
            tables.name(&table);
            tables.published.insert(range, table);
        }
        for descriptor in actual.descriptors.values() {
            tables.count(descriptor, usize::checked_add);
        }
        tables
    }

    /// Forgets drafts that came to nothing and moves time on.
    pub(super) fn begin(&mut self, now: u64) {
        for (range, table) in std::mem::take(&mut self.drafts) {
            self.forget(range, &table);
            self.slab.give_back(range);
        }
        self.slab.tick(now);
    }

    /// The range for a set of endpoints, which `ids` name in the same order, and its contents if
    /// they are to be written first. None if the slab has no room.
    pub(super) fn range(
        &mut self,
        family: Family,
        endpoints: &EndpointSet,
        ids: &[u32],
    ) -> Option<BlockRange> {
        if let Some(range) = self.by_endpoints.get(endpoints) {
            return Some(*range);
        }
        let range = self.slab.take(BlockRange::order_of(maglev::slots(endpoints.len())))?;
        let endpoints = endpoints.clone();
        self.by_endpoints.insert(endpoints.clone(), range);
        let mut backends: Box<[u32]> = ids.into();
        backends.sort_unstable();
        let endpoints = Some(endpoints);
        let table = Table { family, backends, endpoints, reserved: true, uses: 0, affine_uses: 0 };
        self.drafts.insert(range, table);
        Some(range)
    }

    /// What to write into `range`, if it is a draft.
    pub(super) fn draft(
        &self,
        range: BlockRange,
        ids: &BTreeMap<SocketAddr, u32>,
    ) -> Option<table::Table> {
        let endpoints = self.drafts.get(&range)?.endpoints.as_ref()?;
        table::Table::new(endpoints, |endpoint| ids.get(endpoint).copied())
    }

    /// The backends in a published or drafted range.
    pub(super) fn backends(&self, range: BlockRange) -> impl Iterator<Item = (Family, u32)> + '_ {
        let table = self.published.get(&range).or_else(|| self.drafts.get(&range));
        table.into_iter().flat_map(|table| table.backends.iter().map(|id| (table.family, *id)))
    }

    /// Words of descriptors that publish a range.
    pub(super) fn uses(&self, range: BlockRange) -> usize {
        self.published.get(&range).map_or(0, |table| table.uses)
    }

    /// Those of them whose frontends have affinity.
    pub(super) fn affine_uses(&self, range: BlockRange) -> usize {
        self.published.get(&range).map_or(0, |table| table.affine_uses)
    }

    /// How many published tables name a backend.
    pub(super) fn named(&self, (family, id): (Family, u32)) -> usize {
        self.named.get(family).get(id as usize).map_or(0, |count| *count as usize)
    }

    /// Whether a published table names a backend.
    pub(super) fn names(&self, key: (Family, u32)) -> bool {
        self.named(key) > 0
    }

    /// Follows a descriptor that was replaced by another one. What that leaves to nobody stays until
    /// [`Tables::settle`]: a later descriptor of the same plan may take it.
    pub(super) fn follow(
        &mut self,
        before: Option<&Descriptor>,
        after: &Descriptor,
        backends: &mut Backends,
    ) {
        for range in BlockRange::published(after) {
            if let Some(table) = self.drafts.remove(&range) {
                for key in self.name(&table) {
                    backends.busy(key);
                }
                self.published.insert(range, table);
            }
        }
        self.count(after, usize::checked_add);
        if let Some(before) = before {
            self.count(before, usize::checked_sub);
            self.left.extend(BlockRange::published(before));
        }
    }

    /// Gives back the ranges that no descriptor publishes any more.
    pub(super) fn settle(&mut self, backends: &mut Backends) {
        for range in std::mem::take(&mut self.left) {
            if self.uses(range) > 0 {
                continue;
            }
            let Some(table) = self.published.remove(&range) else { continue };
            for key in self.unname(&table) {
                backends.idle(key);
            }
            self.forget(range, &table);
            if table.reserved {
                self.slab.release(range);
            }
        }
    }

    /// How many blocks are used or rest before they are used again.
    pub(super) fn used_blocks(&self) -> usize {
        TABLE_BLOCKS - self.slab.free_blocks()
    }

    /// Counts the words of a descriptor, up or down.
    fn count(&mut self, descriptor: &Descriptor, step: fn(usize, usize) -> Option<usize>) {
        for range in BlockRange::published(descriptor) {
            if let Some(table) = self.published.get_mut(&range) {
                table.uses = step(table.uses, 1).unwrap_or_default();
                if descriptor.affinity != 0 {
                    table.affine_uses = step(table.affine_uses, 1).unwrap_or_default();
                }
            }
        }
    }

    /// Counts the backends of a table that is published; those that no other table names.
    fn name(&mut self, table: &Table) -> Vec<(Family, u32)> {
        let named = self.named.get_mut(table.family);
        let is_new = |id: &&u32| {
            let index = **id as usize;
            if named.len() <= index {
                named.resize(index + 1, 0);
            }
            named[index] += 1;
            named[index] == 1
        };
        table.backends.iter().filter(is_new).map(|id| (table.family, *id)).collect()
    }

    /// The same for a table that is published no more.
    fn unname(&mut self, table: &Table) -> Vec<(Family, u32)> {
        let named = self.named.get_mut(table.family);
        let is_last = |id: &&u32| {
            let count = &mut named[**id as usize];
            *count -= 1;
            *count == 0
        };
        table.backends.iter().filter(is_last).map(|id| (table.family, *id)).collect()
    }

    /// Whether room will come by waiting.
    pub(super) fn is_waiting(&self) -> bool {
        self.slab.is_waiting()
    }

    fn forget(&mut self, range: BlockRange, table: &Table) {
        if let Some(endpoints) = &table.endpoints
            && self.by_endpoints.get(endpoints) == Some(&range)
        {
            self.by_endpoints.remove(endpoints);
        }
    }
}

/// The set whose table `blocks` is, if it is the table of its backends.
fn endpoints_of(
    actual: &Actual,
    ids: &BTreeMap<SocketAddr, u32>,
    family: Family,
    backends: &BTreeSet<u32>,
    blocks: &[TableBlock],
) -> Option<EndpointSet> {
    let endpoints: Option<EndpointSet> =
        backends.iter().map(|id| Some(actual.backends.get(&(family, *id))?.addr())).collect();
    let endpoints = endpoints?;
    let table = table::Table::new(&endpoints, |endpoint| ids.get(endpoint).copied())?;
    (table.len() == blocks.len() && table.blocks() == blocks).then_some(endpoints)
}
