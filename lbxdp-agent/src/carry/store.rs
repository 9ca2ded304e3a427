//! Maps as entries of keys and values, whether these are the elements of a map or in sets.

use std::io;
use std::path::Path;

use aya::Pod;
use lbxdp_common::layout::Layout;
use lbxdp_common::{Flow, FlowKey, Octets};

use super::shape::Described;
use crate::apply::FlowTable;
use crate::sys::raw::{RawMap, Write};
use crate::sys::{self, Access};

/// Calls `take` with the key and the value of each entry of a map that this describes.
pub(super) fn for_each(
    map: &RawMap,
    described: &Described,
    take: &mut dyn FnMut(&[u8], &[u8]),
) -> io::Result<()> {
    if described.sets.is_none() {
        return map.for_each(take);
    }
    map.for_each(&mut |_, element| {
        described.entries(element).for_each(|(key, value)| take(key, value));
    })
}

/// A map of this build.
#[derive(Debug)]
pub(super) enum Store {
    /// Its elements are its entries.
    Elements(RawMap),
    /// A table of flows.
    FlowsV4(FlowTable<[u8; 4]>),
    /// A table of flows.
    FlowsV6(FlowTable<[u8; 16]>),
}

impl Store {
    /// The map that is pinned at `path`.
    pub(super) fn new(layout: &Layout, map: RawMap, path: &Path) -> io::Result<Self> {
        if layout.sets.is_none() {
            return Ok(Self::Elements(map));
        }
        let fd = sys::obj_get(path, Access::ReadWrite)?;
        if layout.key_size == size_of::<FlowKey<[u8; 4]>>() {
            FlowTable::new(fd, Access::ReadWrite).map(Self::FlowsV4)
        } else {
            FlowTable::new(fd, Access::ReadWrite).map(Self::FlowsV6)
        }
    }

    /// The bytes of the value of a key.
    pub(super) fn lookup(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        match self {
            Self::Elements(map) => map.lookup(key),
            Self::FlowsV4(table) => look_up(table, key),
            Self::FlowsV6(table) => look_up(table, key),
        }
    }

    /// Writes an entry. Tables of flows have all that is written from now on, whatever `write` says:
    /// nothing else uses a key of theirs.
    pub(super) fn update(&self, key: &[u8], value: &[u8], write: Write) -> io::Result<()> {
        match self {
            Self::Elements(map) => map.update(key, value, write),
            Self::FlowsV4(table) => merge(table, key, value),
            Self::FlowsV6(table) => merge(table, key, value),
        }
    }

    /// Removes an entry; removing what is not there succeeds.
    pub(super) fn remove(&self, key: &[u8]) -> io::Result<()> {
        match self {
            Self::Elements(map) => map.remove(key),
            Self::FlowsV4(table) => table.remove(&record(key)?, |_| true).map(drop),
            Self::FlowsV6(table) => table.remove(&record(key)?, |_| true).map(drop),
        }
    }
}

fn look_up<A: Octets>(table: &FlowTable<A>, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let flow = table.get(&record::<FlowKey<A>>(key)?)?;
    Ok(flow.map(|flow| bytes_of(&flow).to_owned()))
}

fn merge<A: Octets>(table: &FlowTable<A>, key: &[u8], value: &[u8]) -> io::Result<()> {
    table.merge(&record::<FlowKey<A>>(key)?, &record::<Flow<A>>(value)?)
}

fn record<T: Pod>(bytes: &[u8]) -> io::Result<T> {
    if bytes.len() != size_of::<T>() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: as many bytes, and any are a `Pod`.
    Ok(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

fn bytes_of<T: Pod>(record: &T) -> &[u8] {
    // SAFETY: the bytes of a reference to a type without padding.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(record).cast(), size_of::<T>()) }
}
