//! Maps as bytes: for those whose types this build does not have.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::Path;

use aya_obj::generated::{bpf_cmd, bpf_map_type};

use super::{Access, BATCH, BatchAttr, MapInfo, bpf, map_info, obj_get};

/// The start of the variants of `union bpf_attr` that are about one element.
#[repr(C)]
struct ElementAttr {
    map_fd: u32,
    _pad: u32,
    key: u64,
    /// The value, or where the next key goes.
    value: u64,
    flags: u64,
}

/// What is there already when an element is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// It makes no difference.
    Any = 0,
    /// Nothing may be.
    New = 1,
    /// Something has to be.
    Existing = 2,
}

/// A pinned map of any type.
#[derive(Debug)]
pub struct RawMap {
    fd: OwnedFd,
    info: MapInfo,
    /// Bytes that the kernel reads and writes for a value: one for each processor, if it is per CPU.
    value_size: usize,
}

impl RawMap {
    /// Opens a pinned map.
    pub fn open(path: &Path, access: Access) -> io::Result<Self> {
        let fd = obj_get(path, access)?;
        let info = map_info(fd.as_fd())?;
        let one = info.value_size as usize;
        let value_size = if is_per_cpu(&info) {
            let cpus = aya::util::nr_cpus().map_err(|(_, error)| error)?;
            cpus * one.next_multiple_of(8)
        } else {
            one
        };
        Ok(Self { fd, info, value_size })
    }

    /// What the kernel says about it.
    pub const fn info(&self) -> &MapInfo {
        &self.info
    }

    /// Whether all elements are there from the start, zero until somebody writes them.
    pub const fn is_array(&self) -> bool {
        self.info.map_type == bpf_map_type::BPF_MAP_TYPE_ARRAY as u32 || is_per_cpu(&self.info)
    }

    /// The values of all processors, of the bytes of an element; the only one where there is one.
    pub fn values<'a>(&self, element: &'a [u8]) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let one = self.info.value_size as usize;
        let stride = if is_per_cpu(&self.info) { one.next_multiple_of(8) } else { one };
        element.chunks_exact(stride).map(move |value| &value[..one])
    }

    fn expect(&self, key: &[u8], value: Option<&[u8]>) -> io::Result<()> {
        let fits = key.len() == self.info.key_size as usize
            && value.is_none_or(|value| value.len() == self.value_size);
        if fits { Ok(()) } else { Err(io::ErrorKind::InvalidInput.into()) }
    }

    fn attr(&self, key: *const u8, value: *const u8, flags: u64) -> ElementAttr {
        ElementAttr {
            map_fd: self.fd.as_raw_fd() as u32,
            _pad: 0,
            key: key as u64,
            value: value as u64,
            flags,
        }
    }

    /// The bytes of an element, if there is one.
    pub fn lookup(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.expect(key, None)?;
        let mut value = vec![0; self.value_size];
        let mut attr = self.attr(key.as_ptr(), value.as_mut_ptr(), 0);
        match bpf(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attr) {
            Ok(_) => Ok(Some(value)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes an element.
    pub fn update(&self, key: &[u8], value: &[u8], write: Write) -> io::Result<()> {
        self.expect(key, Some(value))?;
        let mut attr = self.attr(key.as_ptr(), value.as_ptr(), write as u64);
        bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr).map(drop)
    }

    /// Removes an element; removing what is not there succeeds.
    pub fn remove(&self, key: &[u8]) -> io::Result<()> {
        self.expect(key, None)?;
        let mut attr = self.attr(key.as_ptr(), std::ptr::null(), 0);
        match bpf(bpf_cmd::BPF_MAP_DELETE_ELEM, &mut attr) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Calls `take` with the key and the bytes of each element. Elements that come and go meanwhile
    /// may be missed; elements that stay are not, unless the map is one without batches and its
    /// programs run.
    pub fn for_each(&self, take: &mut dyn FnMut(&[u8], &[u8])) -> io::Result<()> {
        if has_batches(&self.info) { self.in_batches(take) } else { self.one_by_one(take) }
    }

    fn in_batches(&self, take: &mut dyn FnMut(&[u8], &[u8])) -> io::Result<()> {
        let key_size = self.info.key_size as usize;
        // A token is a bucket number (4 bytes) for hashes and a key for arrays.
        let (mut token, mut next) = (vec![0; key_size.max(4)], vec![0; key_size.max(4)]);
        let mut capacity = BATCH;
        let mut is_first = true;
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        loop {
            keys.resize(capacity * key_size, 0_u8);
            values.resize(capacity * self.value_size, 0_u8);
            let mut attr = BatchAttr {
                in_batch: if is_first { 0 } else { token.as_ptr() as u64 },
                out_batch: next.as_mut_ptr() as u64,
                keys: keys.as_mut_ptr() as u64,
                values: values.as_mut_ptr() as u64,
                count: capacity as u32,
                map_fd: self.fd.as_raw_fd() as u32,
                elem_flags: 0,
                flags: 0,
            };
            let is_end = match bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attr) {
                Ok(_) => false,
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
                // One bucket holds more than the buffer: nothing was read.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                    capacity *= 2;
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let read = keys.chunks_exact(key_size).zip(values.chunks_exact(self.value_size));
            for (key, value) in read.take(attr.count as usize) {
                take(key, value);
            }
            if is_end {
                return Ok(());
            }
            std::mem::swap(&mut token, &mut next);
            is_first = false;
        }
    }

    fn one_by_one(&self, take: &mut dyn FnMut(&[u8], &[u8])) -> io::Result<()> {
        let mut key: Option<Vec<u8>> = None;
        loop {
            let mut next = vec![0; self.info.key_size as usize];
            let before = key.as_ref().map_or(std::ptr::null(), |key| key.as_ptr());
            let mut attr = self.attr(before, next.as_mut_ptr(), 0);
            match bpf(bpf_cmd::BPF_MAP_GET_NEXT_KEY, &mut attr) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(error) => return Err(error),
            }
            if let Some(value) = self.lookup(&next)? {
                take(&next, &value);
            }
            key = Some(next);
        }
    }
}

const fn is_per_cpu(info: &MapInfo) -> bool {
    info.map_type == bpf_map_type::BPF_MAP_TYPE_PERCPU_ARRAY as u32
}

/// Hashes and arrays have had batches since 5.6, per-CPU arrays since 5.13; tries have none.
const fn has_batches(info: &MapInfo) -> bool {
    info.map_type == bpf_map_type::BPF_MAP_TYPE_HASH as u32
        || info.map_type == bpf_map_type::BPF_MAP_TYPE_LRU_HASH as u32
        || info.map_type == bpf_map_type::BPF_MAP_TYPE_ARRAY as u32
        || is_per_cpu(info)
}
