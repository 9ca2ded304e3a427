//! A Maglev table as it goes into the maps: which endpoints, and by which ids.

use lbxdp_common::{TABLE_BLOCK, TableBlock};

use crate::maglev;
use crate::model::EndpointSet;

/// What a table's blocks follow from. They are eight kilobytes where this is a few hundred bytes, so
/// they are made when they are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    endpoints: EndpointSet,
    /// Of the endpoints, in their order.
    ids: Box<[u32]>,
}

impl Table {
    /// The table of these endpoints, if each has an id.
    pub fn new(
        endpoints: &EndpointSet,
        id: impl FnMut(&std::net::SocketAddr) -> Option<u32>,
    ) -> Option<Self> {
        let ids = endpoints.iter().map(id).collect::<Option<_>>()?;
        Some(Self { endpoints: endpoints.clone(), ids })
    }

    /// How many blocks it has.
    pub fn len(&self) -> usize {
        maglev::slots(self.endpoints.len()) / TABLE_BLOCK
    }

    /// Whether nobody is in it.
    pub fn is_empty(&self) -> bool {
        self.endpoints.is_empty()
    }

    /// Its contents: positions in the set become ids.
    pub fn blocks(&self) -> Vec<TableBlock> {
        let slots = maglev::table(&self.endpoints);
        slots
            .chunks_exact(TABLE_BLOCK)
            .map(|positions| {
                let mut block = TableBlock { slots: [TableBlock::EMPTY; TABLE_BLOCK] };
                for (slot, position) in block.slots.iter_mut().zip(positions) {
                    *slot = self.ids[*position as usize];
                }
                block
            })
            .collect()
    }
}
