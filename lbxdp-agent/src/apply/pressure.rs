//! How full the maps are that packets fill, or that are too large to be counted each time somebody
//! asks: by a sample of each, which costs the same however full it is.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use aya::Pod;
use lbxdp_common::limits::{MAX_ADDRESSES, MAX_AFFINITIES, MAX_SOCKETS};
use lbxdp_common::{
    AddressFlags, Affinity, AffinityKey, Descriptor, Octets, SocketKey, SocketPeer,
};

use super::MapError;
use super::pinned::{Addr, map_error, open_flows};
use crate::pins::Pins;
use crate::progress::Room;
use crate::sys::{self, Access, Sample};

/// Entries of a sample. Fuller maps are estimated, with a standard error of 2 %.
const SAMPLE: usize = 2_048;

/// Asks the kernel, by the pins alone. `now` is [`sys::coarse_ns`]. Entries whose time is over do
/// not count: they stay until somebody needs the room, so that every busy LRU map would look full.
/// The maps of fragments, whose entries have no end but that, say nothing.
pub fn sampled(pins: &Pins, now: u64) -> Result<Vec<Room>, MapError> {
    let mut rooms = Vec::new();
    of_family::<[u8; 4]>(pins, now, &mut rooms)?;
    of_family::<[u8; 16]>(pins, now, &mut rooms)?;
    let affinity = sample::<AffinityKey, Affinity>(pins, "affinity")?;
    let descriptors = match affinity.entries.is_empty() {
        true => [Vec::new(), Vec::new()],
        false => [descriptors::<[u8; 4]>(pins)?, descriptors::<[u8; 16]>(pins)?],
    };
    let holds = |key: &AffinityKey, value: &Affinity| {
        let [v4, v6] = &descriptors;
        let of_family = if key.family == <[u8; 4]>::VERSION { v4 } else { v6 };
        let service = of_family.get(key.service as usize);
        service.is_some_and(|service| value.holds(now, service.affinity))
    };
    rooms.push(room("affinity", affinity.estimate(holds), MAX_AFFINITIES));
    Ok(rooms)
}

fn of_family<A: Addr>(pins: &Pins, now: u64, rooms: &mut Vec<Room>) -> Result<(), MapError> {
    let addresses = sample::<A, AddressFlags>(pins, A::ADDRESSES)?;
    rooms.push(room(A::ADDRESSES, addresses.estimate(|_, _| true), MAX_ADDRESSES));
    let table = open_flows::<A>(pins, Access::ReadOnly)?;
    let flows = table.sample(SAMPLE).map_err(map_error(A::FLOWS, "a sample"))?;
    let used = flows.estimate(|_, flow| !flow.expired(now));
    rooms.push(Room { map: A::FLOWS, used, capacity: table.capacity() });
    let sockets = sample::<SocketKey<A>, SocketPeer<A>>(pins, A::SOCKETS)?;
    rooms.push(room(A::SOCKETS, sockets.estimate(|_, _| true), MAX_SOCKETS));
    Ok(())
}

const fn room(map: &'static str, used: u64, capacity: usize) -> Room {
    Room { map, used, capacity: capacity as u64 }
}

fn open(pins: &Pins, name: &'static str) -> io::Result<OwnedFd> {
    sys::obj_get(&pins.map(name), Access::ReadOnly)
}

fn sample<K: Pod, V: Pod>(pins: &Pins, name: &'static str) -> Result<Sample<K, V>, MapError> {
    let sampled = open(pins, name).and_then(|fd| sys::sample_hash(fd.as_fd(), SAMPLE));
    sampled.map_err(map_error(name, "a sample"))
}

/// Every descriptor of a family, by id.
fn descriptors<A: Addr>(pins: &Pins) -> Result<Vec<Descriptor>, MapError> {
    let read = open(pins, A::DESCRIPTORS)
        .and_then(|fd| sys::read_batched::<u32, Descriptor>(fd.as_fd()))
        .map_err(map_error(A::DESCRIPTORS, "all entries"))?;
    Ok(read.into_iter().map(|(_, descriptor)| descriptor).collect())
}
