//! The contents of Maglev tables in a picture of the maps. Most of the slab is unused at any time,
//! and all of it is a hundred megabytes: what was written is kept, and nothing else.

use std::collections::BTreeMap;

use lbxdp_common::TableBlock;

use crate::slab::{self, BlockRange};

/// Ranges of blocks by their first one, none over another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slots(BTreeMap<u32, Vec<TableBlock>>);

impl Slots {
    /// Takes the contents of a range. Whatever lay where it is now is forgotten, as a whole: tables
    /// that are read do not overlap.
    pub fn write(&mut self, first: u32, blocks: &[TableBlock]) {
        slab::clear(&mut self.0, first, blocks.len(), Vec::len);
        self.0.insert(first, blocks.to_vec());
    }

    /// The contents of a range, if they are known.
    pub fn get(&self, range: BlockRange) -> Option<&[TableBlock]> {
        let (start, blocks) = self.0.range(..=range.first).next_back()?;
        let offset = (range.first - start) as usize;
        blocks.get(offset..offset + range.blocks())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(id: u32, count: usize) -> Vec<TableBlock> {
        vec![TableBlock { slots: [id; lbxdp_common::TABLE_BLOCK] }; count]
    }

    #[test]
    fn a_range_is_found_by_any_part_of_it_and_forgotten_with_any_part_of_it() {
        let mut slots = Slots::default();
        slots.write(4, &blocks(1, 4));
        slots.write(8, &blocks(2, 1));
        let range = |first, order| BlockRange { first, order };
        assert_eq!(slots.get(range(4, 2)), Some(&blocks(1, 4)[..]));
        assert_eq!(slots.get(range(6, 1)), Some(&blocks(1, 2)[..]));
        assert_eq!(slots.get(range(8, 0)), Some(&blocks(2, 1)[..]));
        for unknown in [range(0, 0), range(4, 3), range(8, 1), range(16, 0)] {
            assert_eq!(slots.get(unknown), None, "{unknown:?}");
        }
        slots.write(6, &blocks(3, 4));
        assert_eq!(slots.get(range(4, 1)), None);
        assert_eq!(slots.get(range(8, 0)), Some(&blocks(3, 1)[..]));
    }
}
