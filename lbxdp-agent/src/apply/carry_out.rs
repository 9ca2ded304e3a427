//! What an operation does to a picture of the maps. The planner and the fake agree by sharing it.

use std::collections::btree_map::Entry;
use std::net::{IpAddr, SocketAddr};

use lbxdp_common::{Backend, Descriptor, FrontendInfo};

use super::{Actual, BackendEntry, MapOp};
use crate::model::Family;

impl BackendEntry {
    /// The family of the map it belongs to.
    pub const fn family(&self) -> Family {
        match self {
            Self::V4(_) => Family::V4,
            Self::V6(_) => Family::V6,
        }
    }

    /// Address and port.
    pub fn addr(&self) -> SocketAddr {
        match self {
            Self::V4(backend) => (backend.addr, backend.port).into(),
            Self::V6(backend) => (backend.addr, backend.port).into(),
        }
    }

    /// Source of packets to it, if it is elsewhere.
    pub fn snat_source(&self) -> IpAddr {
        match self {
            Self::V4(backend) => backend.snat_addr.into(),
            Self::V6(backend) => backend.snat_addr.into(),
        }
    }

    /// Whether the backend is on this node.
    pub const fn is_local(&self) -> bool {
        match self {
            Self::V4(backend) => backend.is_local(),
            Self::V6(backend) => backend.is_local(),
        }
    }

    /// Whether no table names it any more.
    pub const fn is_retired(&self) -> bool {
        match self {
            Self::V4(backend) => backend.is_retired(),
            Self::V6(backend) => backend.is_retired(),
        }
    }

    /// The same backend, retired or not.
    pub const fn with_retired(mut self, is_retired: bool) -> Self {
        const FLAG: u16 = Backend::<[u8; 4]>::RETIRED;
        let flags = match &mut self {
            Self::V4(backend) => &mut backend.flags,
            Self::V6(backend) => &mut backend.flags,
        };
        *flags = if is_retired { *flags | FLAG } else { *flags & !FLAG };
        self
    }

    /// Index of the next hop on the way to it, zero where the kernel is asked.
    pub const fn hop(&self) -> u32 {
        match self {
            Self::V4(backend) => backend.hop,
            Self::V6(backend) => backend.hop,
        }
    }

    /// The same backend, the way to which the kernel is asked for.
    pub const fn without_hop(mut self) -> Self {
        match &mut self {
            Self::V4(backend) => backend.hop = 0,
            Self::V6(backend) => backend.hop = 0,
        }
        self
    }

    /// Whether it empties its slot.
    pub const fn is_unused(&self) -> bool {
        match self {
            Self::V4(backend) => backend.port == 0,
            Self::V6(backend) => backend.port == 0,
        }
    }
}

impl Actual {
    /// Changes the picture as `op` changes the maps.
    pub fn carry_out(&mut self, op: &MapOp) {
        match op {
            MapOp::SetBackend { id, backend } => {
                let key = (backend.family(), *id);
                if backend.is_unused() {
                    self.backends.remove(&key);
                } else {
                    self.backends.insert(key, *backend);
                }
            }
            MapOp::WriteTable { first_block, table } => {
                self.tables.write(*first_block, &table.blocks());
            }
            MapOp::SetMember { member } => {
                self.members.insert(*member);
            }
            MapOp::RemoveMember { member } => {
                self.members.remove(member);
            }
            MapOp::SetRange { service, range } => {
                let key = (Family::of(range.addr()), *service);
                self.ranges.entry(key).or_default().insert(*range);
            }
            MapOp::RemoveRange { service, range } => {
                let key = (Family::of(range.addr()), *service);
                if let Entry::Occupied(mut ranges) = self.ranges.entry(key) {
                    ranges.get_mut().remove(range);
                    if ranges.get().is_empty() {
                        ranges.remove();
                    }
                }
            }
            MapOp::SetDescriptor { family, id, descriptor } => {
                if *descriptor == Descriptor::default() {
                    self.descriptors.remove(&(*family, *id));
                } else {
                    self.descriptors.insert((*family, *id), *descriptor);
                }
            }
            MapOp::SetInfo { family, id, info } => {
                if **info == FrontendInfo::UNUSED {
                    self.infos.remove(&(*family, *id));
                } else {
                    self.infos.insert((*family, *id), **info);
                }
            }
            MapOp::ResetStats { family: _, id: _ } => {}
            MapOp::InsertFrontend { addr, id } => {
                self.frontends.insert(*addr, *id);
            }
            MapOp::RemoveFrontend { addr } => {
                self.frontends.remove(addr);
            }
            MapOp::SetAddress { addr, flags } => {
                self.addresses.insert(*addr, *flags);
            }
            MapOp::RemoveAddress { addr } => {
                self.addresses.remove(addr);
            }
        }
    }
}
