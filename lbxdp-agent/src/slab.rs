//! The slab of Maglev tables: which blocks of the `tables` map belong to which table.
//!
//! A buddy allocator: ranges are powers of two, aligned to their size, and neighbours merge when
//! both are free. A range that was published rests before it is written again
//! ([`crate::quarantine`]).

use std::collections::{BTreeMap, BTreeSet};

use lbxdp_common::{Descriptor, TABLE_BLOCK, TableRef};

use crate::quarantine::Quarantine;

/// `1 << order` blocks from `first` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BlockRange {
    /// First block.
    pub first: u32,
    /// Log2 of the number of blocks.
    pub order: u8,
}

impl BlockRange {
    const BLOCK_LOG2: u8 = TABLE_BLOCK.trailing_zeros() as u8;

    /// The range that a descriptor's word chooses from, if it does.
    pub fn of(table: TableRef) -> Option<Self> {
        let order = table.log2_slots().checked_sub(Self::BLOCK_LOG2)?;
        (table.serves() && order < 32).then_some(Self { first: table.first_block(), order })
    }

    /// The ranges that a descriptor publishes: one for each word, so the same one twice as well.
    pub fn published(descriptor: &Descriptor) -> impl Iterator<Item = Self> + use<> {
        let words = [descriptor.external, descriptor.internal].into_iter();
        words.filter_map(|word| Self::of(TableRef(word)))
    }

    /// The descriptor's word that publishes the range.
    pub const fn serve(self) -> TableRef {
        TableRef::serve(self.first, self.order + Self::BLOCK_LOG2)
    }

    /// Number of blocks.
    pub const fn blocks(self) -> usize {
        1 << self.order
    }

    /// The blocks as indices into the slab.
    pub const fn indices(self) -> std::ops::Range<usize> {
        self.first as usize..self.first as usize + self.blocks()
    }

    /// The order of a table of this many slots, a power of two.
    pub const fn order_of(slots: usize) -> u8 {
        slots.div_ceil(TABLE_BLOCK).trailing_zeros() as u8
    }

    const fn buddy(self) -> u32 {
        self.first ^ (1 << self.order)
    }

    const fn parent(self) -> Self {
        Self { first: self.first & !(1 << self.order), order: self.order + 1 }
    }
}

/// The allocator.
#[derive(Debug)]
pub struct Slab {
    /// First blocks of the free ranges of each order.
    free: Vec<BTreeSet<u32>>,
    quarantine: Quarantine<BlockRange>,
}

impl Slab {
    /// A slab of `blocks` blocks, all free: powers of two in descending order.
    pub fn new(blocks: usize) -> Self {
        let mut free = vec![BTreeSet::new(); blocks.max(1).ilog2() as usize + 1];
        let mut first = 0;
        for (order, free) in free.iter_mut().enumerate().rev() {
            if blocks & (1 << order) != 0 {
                free.insert(first as u32);
                first += 1 << order;
            }
        }
        Self { free, quarantine: Quarantine::default() }
    }

    /// Marks a range that a map publishes as used. Says whether it was free: otherwise it lies
    /// outside, is not aligned, or overlaps another.
    pub fn reserve(&mut self, range: BlockRange) -> bool {
        let mut around = range;
        while let Some(free) = self.free.get_mut(usize::from(around.order)) {
            if free.remove(&around.first) {
                self.split(around, range);
                return true;
            }
            if around.first & ((1 << around.order) - 1) != 0 {
                return false;
            }
            around = around.parent();
        }
        false
    }

    /// Frees what of `whole` is not `part`.
    fn split(&mut self, whole: BlockRange, part: BlockRange) {
        let mut part = part;
        while part.order < whole.order {
            self.free[usize::from(part.order)].insert(part.buddy());
            part = part.parent();
        }
    }

    /// An unused range of `1 << order` blocks, from the smallest free range that holds one.
    pub fn take(&mut self, order: u8) -> Option<BlockRange> {
        let (whole_order, first) = self
            .free
            .iter()
            .enumerate()
            .skip(usize::from(order))
            .find_map(|(order, free)| Some((order as u8, *free.first()?)))?;
        self.free[usize::from(whole_order)].remove(&first);
        let range = BlockRange { first, order };
        self.split(BlockRange { first, order: whole_order }, range);
        Some(range)
    }

    /// Returns a range that no kernel program has seen.
    pub fn give_back(&mut self, range: BlockRange) {
        let mut range = range;
        while usize::from(range.order) + 1 < self.free.len()
            && self.free[usize::from(range.order)].remove(&range.buddy())
        {
            range = range.parent();
        }
        self.free[usize::from(range.order)].insert(range.first);
    }

    /// Returns a range that was just unpublished.
    pub fn release(&mut self, range: BlockRange) {
        self.quarantine.enter(range);
    }

    /// Moves time on.
    pub fn tick(&mut self, now: u64) {
        self.quarantine.tick(now);
        for range in self.quarantine.drain_over(now) {
            self.give_back(range);
        }
    }

    /// Whether ranges will become free by waiting.
    pub fn is_waiting(&self) -> bool {
        !self.quarantine.is_empty()
    }

    /// Blocks that may be taken now.
    pub fn free_blocks(&self) -> usize {
        self.free.iter().enumerate().map(|(order, free)| free.len() << order).sum()
    }
}

/// Forgets what lies, wholly or in part, where `blocks` blocks from `first` on are. What is known is
/// kept by its first block, nothing over anything else, and has so many blocks as `len` says.
pub fn clear<T>(known: &mut BTreeMap<u32, T>, first: u32, blocks: usize, len: fn(&T) -> usize) {
    let end = first as usize + blocks;
    let before = known.range(..first).next_back();
    let over = before.filter(|(start, old)| **start as usize + len(old) > first as usize);
    let over = over.map(|(start, _)| *start);
    let inside = known.range(first..).map(|(start, _)| *start);
    let inside = inside.take_while(|start| (*start as usize) < end);
    for start in over.into_iter().chain(inside).collect::<Vec<_>>() {
        known.remove(&start);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn small_ranges_leave_large_ones_whole() {
        let mut slab = Slab::new(16);
        assert_eq!(slab.take(0), Some(BlockRange { first: 0, order: 0 }));
        assert_eq!(slab.take(0), Some(BlockRange { first: 1, order: 0 }));
        assert_eq!(slab.take(3), Some(BlockRange { first: 8, order: 3 }));
        assert_eq!(slab.take(3), None);
        assert_eq!(slab.take(2), Some(BlockRange { first: 4, order: 2 }));
        assert_eq!(slab.free_blocks(), 2);
    }

    #[test]
    fn a_released_range_rests_for_a_second() {
        let mut slab = Slab::new(16);
        let whole = slab.take(4).unwrap();
        slab.release(whole);
        slab.tick(SECOND);
        slab.tick(2 * SECOND - 1);
        assert_eq!(slab.take(0), None);
        slab.tick(2 * SECOND);
        assert_eq!(slab.take(4), Some(whole));
    }

    #[test]
    fn ranges_that_maps_hold_are_reserved_once() {
        let mut slab = Slab::new(16);
        assert!(slab.reserve(BlockRange { first: 4, order: 2 }));
        assert!(!slab.reserve(BlockRange { first: 5, order: 0 }), "inside a used one");
        assert!(!slab.reserve(BlockRange { first: 0, order: 3 }), "around a used one");
        assert!(!slab.reserve(BlockRange { first: 9, order: 1 }), "not aligned");
        assert!(!slab.reserve(BlockRange { first: 16, order: 0 }), "outside");
        assert!(!slab.reserve(BlockRange { first: 0, order: 9 }), "larger than the slab");
        assert!(slab.reserve(BlockRange { first: 9, order: 0 }));
        assert_eq!(slab.free_blocks(), 11);
    }

    #[test]
    fn a_slab_need_not_be_a_power_of_two() {
        let mut slab = Slab::new(24);
        assert_eq!(slab.free_blocks(), 24);
        assert!(!slab.reserve(BlockRange { first: 16, order: 4 }), "beyond the end");
        let small = slab.take(3).unwrap();
        assert_eq!(small, BlockRange { first: 16, order: 3 }, "the large range stays whole");
        let large = slab.take(4).unwrap();
        assert_eq!((large.first, slab.take(0)), (0, None));
        slab.give_back(small);
        slab.give_back(large);
        assert_eq!(slab.free_blocks(), 24);
        assert_eq!(slab.take(4), Some(large));
    }

    #[test]
    fn a_descriptor_word_and_a_range_convert_both_ways() {
        let range = BlockRange { first: 128, order: BlockRange::order_of(2_048) };
        assert_eq!(range.blocks(), 128);
        assert_eq!(BlockRange::of(range.serve()), Some(range));
        assert_eq!(BlockRange::order_of(16), 0);
        assert_eq!(BlockRange::of(TableRef::default()), None);
    }

    proptest! {
        #[test]
        fn ranges_never_overlap_and_everything_comes_back(
            steps in prop::collection::vec((any::<bool>(), 0_u8..5, any::<prop::sample::Index>()), 1..80)
        ) {
            let mut slab = Slab::new(64);
            let mut held: Vec<BlockRange> = Vec::new();
            for (take, order, index) in steps {
                if take {
                    if let Some(range) = slab.take(order) {
                        let new = range.indices();
                        for other in &held {
                            let old = other.indices();
                            prop_assert!(new.end <= old.start || old.end <= new.start);
                        }
                        prop_assert_eq!(new.start % range.blocks(), 0);
                        held.push(range);
                    }
                } else if !held.is_empty() {
                    slab.give_back(held.swap_remove(index.index(held.len())));
                }
                let used: usize = held.iter().map(|range| range.blocks()).sum();
                prop_assert_eq!(slab.free_blocks() + used, 64);
                // A second allocator that is told what the first one gave out agrees.
                let mut other = Slab::new(64);
                for range in &held {
                    prop_assert!(other.reserve(*range));
                }
                prop_assert_eq!(other.free_blocks(), slab.free_blocks());
            }
            for range in held {
                slab.give_back(range);
            }
            prop_assert_eq!(slab.take(6), Some(BlockRange { first: 0, order: 6 }));
        }
    }
}
