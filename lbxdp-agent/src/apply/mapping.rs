//! Maps in this process's memory, for as long as they are used: every page of a mapping counts as
//! resident, whoever touches it.

use std::cell::OnceCell;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use aya::Pod;

use crate::sys::{self, Access, MmapArray};

/// A map that is mapped when it is used, and until it is let go of.
#[derive(Debug)]
pub(super) struct OnDemand<M> {
    map: OwnedFd,
    access: Access,
    mapper: fn(OwnedFd, Access) -> io::Result<M>,
    mapped: OnceCell<M>,
}

impl<M> OnDemand<M> {
    /// The map that is pinned at `path`, mapped for now.
    ///
    /// # Errors
    /// There is none, or `mapper` finds that it is another one.
    pub(super) fn open(
        path: &Path,
        access: Access,
        mapper: fn(OwnedFd, Access) -> io::Result<M>,
    ) -> io::Result<Self> {
        let map = sys::obj_get(path, access)?;
        let this = Self { map, access, mapper, mapped: OnceCell::new() };
        this.get()?;
        Ok(this)
    }

    /// What it is mapped as.
    pub(super) fn get(&self) -> io::Result<&M> {
        if let Some(mapped) = self.mapped.get() {
            return Ok(mapped);
        }
        let mapped = (self.mapper)(self.map.try_clone()?, self.access)?;
        Ok(self.mapped.get_or_init(|| mapped))
    }

    /// Ends the mapping, until [`Self::get`].
    pub(super) fn let_go(&mut self) {
        self.mapped.take();
    }
}

/// A mmapable array.
#[derive(Debug)]
pub(super) struct SharedArray<T: Pod>(OnDemand<Elements<T>>);

/// The kernel refuses to map what was opened for reading only (a shared mapping of a read-only file
/// counts as private, and maps take only shared ones), so readers look up.
#[derive(Debug)]
enum Elements<T: Pod> {
    Mapped(MmapArray<T>),
    Lookups(OwnedFd),
}

impl<T: Pod> Elements<T> {
    fn new(map: OwnedFd, access: Access) -> io::Result<Self> {
        match access {
            Access::ReadOnly => Ok(Self::Lookups(map)),
            Access::ReadWrite => MmapArray::new(map).map(Self::Mapped),
        }
    }
}

impl<T: Pod> SharedArray<T> {
    /// The array that is pinned at `path`.
    pub(super) fn open(path: &Path, access: Access) -> io::Result<Self> {
        OnDemand::open(path, access, Elements::new).map(Self)
    }

    /// Every element.
    pub(super) fn read(&self) -> io::Result<Vec<T>> {
        match self.0.get()? {
            Elements::Mapped(array) => {
                Ok((0..array.len()).filter_map(|id| array.read(id)).collect())
            }
            Elements::Lookups(map) => {
                let entries = sys::read_batched::<u32, T>(map.as_fd())?;
                Ok(entries.into_iter().map(|(_, value)| value).collect())
            }
        }
    }

    /// The elements, to read and write them one by one.
    ///
    /// # Errors
    /// The map was opened for reading only.
    pub(super) fn mapped(&self) -> io::Result<&MmapArray<T>> {
        match self.0.get()? {
            Elements::Mapped(array) => Ok(array),
            Elements::Lookups(_) => Err(io::ErrorKind::PermissionDenied.into()),
        }
    }

    /// Ends the mapping, until it is used.
    pub(super) fn let_go(&mut self) {
        self.0.let_go();
    }
}
