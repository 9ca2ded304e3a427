//! The maps of what this node answers for on a local network: `announced_v4`, `announced_v6`, `watch`.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::time::Duration;

pub use lbxdp_common::Announced as Way;
use lbxdp_common::{AnnouncedKey, Watch};

use super::MapError;
use super::pinned::{Addr, Hash, io_error, map_error, or_missing};
use crate::pins::Pins;
use crate::sys::{self, Access, MmapArray};

const V4: &str = "announced_v4";
const V6: &str = "announced_v6";
const WATCH: &str = "watch";

/// An address and the interface index of a device by which it is answered for.
pub type Entry = (IpAddr, u32);

/// The addresses of both families.
pub struct Announced {
    v4: Hash<AnnouncedKey<[u8; 4]>, Way>,
    v6: Hash<AnnouncedKey<[u8; 16]>, Way>,
}

impl Announced {
    /// Opens the pinned maps.
    pub fn open(pins: &Pins, access: Access) -> Result<Self, MapError> {
        Ok(Self { v4: Hash::open(pins, V4, access)?, v6: Hash::open(pins, V6, access)? })
    }

    /// What is there.
    pub fn read(&self) -> Result<BTreeMap<Entry, Way>, MapError> {
        let v4 = self.v4.read()?;
        let v6 = self.v6.read()?;
        let v4 = v4.iter().map(|(key, way)| ((key.addr.ip(), key.ifindex), *way));
        let v6 = v6.iter().map(|(key, way)| ((key.addr.ip(), key.ifindex), *way));
        Ok(v4.chain(v6).collect())
    }

    /// What is answered for.
    pub fn answered(&self) -> Result<BTreeSet<Entry>, MapError> {
        let all = self.read()?.into_iter().filter(|(_, way)| way.is_answered != 0);
        Ok(all.map(|(entry, _)| entry).collect())
    }

    /// What becomes of packets for an address from now on.
    pub fn insert(&mut self, (addr, ifindex): Entry, way: Way) -> Result<(), MapError> {
        let (name, inserted) = match addr {
            IpAddr::V4(addr) => {
                let key = AnnouncedKey { addr: addr.octets(), ifindex };
                (V4, self.v4.map.insert(key, way, 0))
            }
            IpAddr::V6(addr) => {
                let key = AnnouncedKey { addr: addr.octets(), ifindex };
                (V6, self.v6.map.insert(key, way, 0))
            }
        };
        inserted.map_err(io_error).map_err(map_error(name, addr))
    }

    /// It is nothing any more.
    pub fn remove(&mut self, (addr, ifindex): Entry) -> Result<(), MapError> {
        let (name, removed) = match addr {
            IpAddr::V4(addr) => {
                let key = AnnouncedKey { addr: addr.octets(), ifindex };
                (V4, self.v4.map.remove(&key))
            }
            IpAddr::V6(addr) => {
                let key = AnnouncedKey { addr: addr.octets(), ifindex };
                (V6, self.v6.map.remove(&key))
            }
        };
        or_missing(removed).map_err(map_error(name, addr))
    }
}

/// Until when programs answer.
pub struct Gate(MmapArray<Watch>);

impl Gate {
    /// Opens the pinned map, for reading and writing.
    pub fn open(pins: &Pins) -> io::Result<Self> {
        MmapArray::new(sys::obj_get(&pins.map(WATCH), Access::ReadWrite)?).map(Self)
    }

    /// Whether programs answer at this moment.
    pub fn is_open(pins: &Pins) -> io::Result<bool> {
        let map = sys::obj_get(&pins.map(WATCH), Access::ReadOnly)?;
        let watch: Vec<Watch> = sys::read_range(map.as_fd(), 0, 1)?;
        Ok(watch.first().is_some_and(|watch| sys::coarse_ns() <= watch.valid_until))
    }

    /// Has programs answer for so long from now on; not at all, if that is nothing.
    pub fn keep_open(&self, time: Duration) -> io::Result<()> {
        let time = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let valid_until = if time == 0 { 0 } else { sys::coarse_ns().saturating_add(time) };
        self.0.write(0, &Watch { valid_until })
    }
}
