//! The port to the maps: what can be read from them, what can be done to them.
//!
//! Three implementations: `pinned` (the kernel's maps), `fake` (memory) and `faulty` (memory that
//! fails on purpose, to prove that reconciliation converges).

pub mod announced;
mod carry_out;
pub mod fake;
pub mod faulty;
mod flow;
mod flow_table;
mod mapping;
pub mod pinned;
pub mod pressure;
mod slots;
pub mod sockets;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use lbxdp_common::{AddressFlags, Backend, Descriptor, FrontendInfo, MemberKey};

pub use self::flow::FlowEntry;
pub use self::flow_table::{FlowTable, IfThere};
pub use self::slots::Slots;
use crate::model::{Family, FrontendAddr};
use crate::table::Table;

/// A value of `backends_v4` or `backends_v6`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendEntry {
    /// IPv4.
    V4(Backend<[u8; 4]>),
    /// IPv6.
    V6(Backend<[u8; 16]>),
}

/// One change to one map. Repeating an operation that was carried out changes nothing, and
/// removing what is not there succeeds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MapOp {
    /// Fills or (with [`lbxdp_common::Backend::port`] zero) empties a backend slot.
    SetBackend {
        /// Backend id within the entry's family.
        id: u32,
        /// The value.
        backend: BackendEntry,
    },
    /// Fills a range of the table slab.
    WriteTable {
        /// First block.
        first_block: u32,
        /// Contents.
        table: Table,
    },
    /// Says that a table has a backend, for affinity to it.
    SetMember {
        /// Table and backend.
        member: MemberKey,
    },
    /// Unsays it.
    RemoveMember {
        /// Table and backend.
        member: MemberKey,
    },
    /// Admits the clients of a range to a Service port.
    SetRange {
        /// [`Descriptor::service`] in the range's family.
        service: u32,
        /// The range; no bit is set behind its prefix.
        range: IpNet,
    },
    /// Ends that.
    RemoveRange {
        /// [`Descriptor::service`] in the range's family.
        service: u32,
        /// The range.
        range: IpNet,
    },
    /// Publishes a descriptor: one aligned store for each of its words.
    SetDescriptor {
        /// Family of the frontend.
        family: Family,
        /// Frontend id.
        id: u32,
        /// The value; all zero unpublishes.
        descriptor: Descriptor,
    },
    /// Names a frontend id, or un-names it with [`FrontendInfo::UNUSED`].
    SetInfo {
        /// Family of the frontend.
        family: Family,
        /// Frontend id.
        id: u32,
        /// The value.
        info: Box<FrontendInfo>,
    },
    /// Zeroes the statistics of a frontend id before its first use.
    ResetStats {
        /// Family of the frontend.
        family: Family,
        /// Frontend id.
        id: u32,
    },
    /// Lets packets find a frontend.
    InsertFrontend {
        /// What identifies it.
        addr: FrontendAddr,
        /// Its id.
        id: u32,
    },
    /// Hides a frontend from new flows.
    RemoveFrontend {
        /// What identifies it.
        addr: FrontendAddr,
    },
    /// Says what an address is.
    SetAddress {
        /// The address.
        addr: IpAddr,
        /// What it is.
        flags: AddressFlags,
    },
    /// Makes an address nobody's.
    RemoveAddress {
        /// The address.
        addr: IpAddr,
    },
}

impl MapOp {
    /// The table that this writes, and its first block.
    pub(super) const fn table(&self) -> Option<(u32, &Table)> {
        match self {
            Self::WriteTable { first_block, table } => Some((*first_block, table)),
            _ => None,
        }
    }
}

/// What the maps hold: read once at the start, then kept in step with the operations applied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Actual {
    /// Frontend ids.
    pub frontends: BTreeMap<FrontendAddr, u32>,
    /// Descriptors that are not all zero.
    pub descriptors: BTreeMap<(Family, u32), Descriptor>,
    /// Names in use.
    pub infos: BTreeMap<(Family, u32), FrontendInfo>,
    /// Backends whose port is not zero.
    pub backends: BTreeMap<(Family, u32), BackendEntry>,
    /// Addresses.
    pub addresses: BTreeMap<IpAddr, AddressFlags>,
    /// Backends of tables, as affinity needs them.
    pub members: BTreeSet<MemberKey>,
    /// Source ranges by family and [`Descriptor::service`].
    pub ranges: BTreeMap<(Family, u32), BTreeSet<IpNet>>,
    /// Tables: at least those that descriptors publish. The planner's picture has none.
    pub tables: Slots,
}

impl Actual {
    /// The same picture without the contents of tables.
    pub fn without_tables(&self) -> Self {
        Self { tables: Slots::default(), ..self.clone() }
    }
}

/// An operation that failed.
#[derive(Debug, thiserror::Error)]
#[error("map {map}: {key}: {source}")]
pub struct MapError {
    /// Name of the map.
    pub map: &'static str,
    /// The key, for people.
    pub key: String,
    /// What the kernel said.
    pub source: std::io::Error,
}

/// The maps.
pub trait Maps {
    /// How many frontends of each family there is room for.
    fn frontends(&self) -> usize;

    /// Reads everything.
    fn read(&self) -> Result<Actual, MapError>;

    /// Carries out `ops` in their order and stops at the first failure, so that no frontend is
    /// published before its table. Returns how many were carried out, and the failure.
    fn apply(&mut self, ops: &[MapOp]) -> (usize, Option<MapError>);

    /// Addresses, of frontends and of backends, that flows which are not over still use. Decides
    /// when a tombstone goes and when a backend's id and address are free again.
    fn flow_addresses(&self) -> Result<BTreeSet<IpAddr>, MapError>;

    /// Both halves of every UDP flow, expired ones too.
    fn udp_flows(&self) -> Result<Vec<FlowEntry>, MapError>;

    /// Removes one half of a flow, unless the entry is another flow's by now. Says whether there was
    /// anything to remove.
    fn end_half(&mut self, half: &FlowEntry) -> Result<bool, MapError>;
}
