//! Which set of endpoints has which range of the slab.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use lbxdp_common::{TABLE_BLOCK, TableBlock, TableRef, limits::TABLE_BLOCKS};

use crate::apply::Actual;
use crate::maglev;
use crate::model::Family;
use crate::slab::{BlockRange, Slab};

/// Endpoints of one family in ascending order, without repetition.
pub(super) type EndpointSet = Arc<[SocketAddr]>;

/// A range and what is in it.
#[derive(Debug)]
struct Table {
    family: Family,
    /// Backend ids in the slots.
    backends: BTreeSet<u32>,
    /// The set whose table this is; none where an older agent computed another one.
    endpoints: Option<EndpointSet>,
    /// The slab knows the range: not so if it overlaps another, which no agent leaves behind.
    reserved: bool,
}

/// The tables that are published, and those the current plan adds.
#[derive(Debug)]
pub(super) struct Tables {
    slab: Slab,
    published: BTreeMap<BlockRange, Table>,
    drafts: BTreeMap<BlockRange, Table>,
    by_endpoints: BTreeMap<EndpointSet, BlockRange>,
}

/// The ranges that descriptors publish.
pub(super) fn published_ranges(actual: &Actual) -> BTreeMap<BlockRange, Family> {
    let words = actual.descriptors.iter().flat_map(|((family, _), descriptor)| {
        [descriptor.external, descriptor.internal].map(|word| (*family, word))
    });
    words.filter_map(|(family, word)| Some((BlockRange::of(TableRef(word))?, family))).collect()
}

/// The contents of a table: positions in the set become ids.
fn contents(endpoints: &[SocketAddr], ids: &[u32]) -> Vec<TableBlock> {
    let slots = maglev::table(endpoints);
    slots
        .chunks_exact(TABLE_BLOCK)
        .map(|positions| {
            let mut block = TableBlock { slots: [TableBlock::EMPTY; TABLE_BLOCK] };
            for (slot, position) in block.slots.iter_mut().zip(positions) {
                *slot = ids[*position as usize];
            }
            block
        })
        .collect()
}

impl Tables {
    /// Takes over what the maps publish. A table is only kept if it is the one that this agent
    /// would write for its backends.
    pub(super) fn read(actual: &Actual, ids: &BTreeMap<SocketAddr, u32>) -> Self {
        let mut tables = Self {
            slab: Slab::new(TABLE_BLOCKS),
            published: BTreeMap::new(),
            drafts: BTreeMap::new(),
            by_endpoints: BTreeMap::new(),
        };
        for (range, family) in published_ranges(actual) {
            let Some(blocks) = actual.tables.get(range.indices()) else { continue };
            let backends: BTreeSet<u32> = blocks.iter().flat_map(|block| block.slots).collect();
            let endpoints = endpoints_of(actual, ids, family, &backends, blocks);
            if let Some(endpoints) = &endpoints {
                tables.by_endpoints.insert(endpoints.clone(), range);
            }
            let reserved = tables.slab.reserve(range);
            tables.published.insert(range, Table { family, backends, endpoints, reserved });
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
        let backends = ids.iter().copied().collect();
        let table = Table { family, backends, endpoints: Some(endpoints), reserved: true };
        self.drafts.insert(range, table);
        Some(range)
    }

    /// What to write into `range`, if it is a draft.
    pub(super) fn draft(
        &self,
        range: BlockRange,
        ids: &BTreeMap<SocketAddr, u32>,
    ) -> Option<Vec<TableBlock>> {
        let endpoints = self.drafts.get(&range)?.endpoints.as_ref()?;
        let ids: Vec<u32> = endpoints.iter().map(|endpoint| ids[endpoint]).collect();
        Some(contents(endpoints, &ids))
    }

    /// The backends in a published or drafted range.
    pub(super) fn backends(&self, range: BlockRange) -> impl Iterator<Item = (Family, u32)> + '_ {
        let table = self.published.get(&range).or_else(|| self.drafts.get(&range));
        table.into_iter().flat_map(|table| table.backends.iter().map(|id| (table.family, *id)))
    }

    /// The backends in published ranges.
    pub(super) fn published_backends(&self) -> BTreeSet<(Family, u32)> {
        self.published.keys().flat_map(|range| self.backends(*range)).collect()
    }

    /// Follows what was published and unpublished.
    pub(super) fn settle(&mut self, actual: &Actual) {
        let ranges = published_ranges(actual);
        for range in ranges.keys() {
            if let Some(table) = self.drafts.remove(range) {
                self.published.insert(*range, table);
            }
        }
        let gone: Vec<BlockRange> =
            self.published.keys().copied().filter(|range| !ranges.contains_key(range)).collect();
        for range in gone {
            let Some(table) = self.published.remove(&range) else { continue };
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
    let endpoints: Option<BTreeSet<SocketAddr>> =
        backends.iter().map(|id| Some(actual.backends.get(&(family, *id))?.addr())).collect();
    let endpoints: EndpointSet = endpoints?.into_iter().collect();
    let ids: Vec<u32> =
        endpoints.iter().map(|endpoint| ids.get(endpoint).copied()).collect::<Option<_>>()?;
    let right = maglev::slots(endpoints.len()) == blocks.len() * TABLE_BLOCK
        && contents(&endpoints, &ids) == blocks;
    right.then_some(endpoints)
}
