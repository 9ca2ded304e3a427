//! The kernel's maps, through their pins alone: the agent works on them like the command line,
//! which needs no agent.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZero;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::panic::resume_unwind;
use std::thread;

use aya::Pod;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData, MapError as AyaError, PerCpuArray, PerCpuValues};
use ipnet::IpNet;
use lbxdp_common::{
    AddressFlags, Backend, Counter, Descriptor, Device, DropReason, Flow, FlowKey, FlowState,
    FrontendInfo, FrontendKey, FrontendStats, Hop, IPPROTO_UDP, MemberKey, Mode, Octets, RangeKey,
    limits::{PORT_WORDS, TABLE_BLOCKS},
};

pub use super::FlowEntry;
use super::flow_table::{Entry, FlowTable, IfThere};
use super::mapping::{OnDemand, SharedArray};
use super::{Actual, BackendEntry, MapError, MapOp, Maps, flow};
use crate::model::{Family, FrontendAddr, Protocol};
use crate::pins::Pins;
use crate::slab::BlockRange;
use crate::sys::{self, Access};
use crate::table::Table;

/// Tables that are worth a thread: some milliseconds of filling.
const TABLES_PER_THREAD: usize = 64;

/// Errors of aya as the kernel's errors that they mostly are.
pub(super) fn io_error(error: AyaError) -> io::Error {
    match error {
        AyaError::KeyNotFound => io::ErrorKind::NotFound.into(),
        AyaError::SyscallError(error) => error.io_error,
        error => io::Error::other(error),
    }
}

pub(super) fn map_error(
    map: &'static str,
    key: impl ToString,
) -> impl FnOnce(io::Error) -> MapError {
    move |source| MapError { map, key: key.to_string(), source }
}

/// Removing what is not there succeeds.
pub(super) fn or_missing(result: Result<(), AyaError>) -> io::Result<()> {
    match result.map_err(io_error) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn open(pins: &Pins, name: &'static str, access: Access) -> Result<Map, MapError> {
    let open = || {
        let fd = sys::obj_get(&pins.map(name), access)?;
        let data = MapData::from_fd(fd).map_err(io_error)?;
        Map::from_map_data(data).map_err(io_error)
    };
    open().map_err(map_error(name, pins.map(name).display()))
}

/// A map of one kind; opening it compares kind, key size and value size.
fn typed<M>(pins: &Pins, name: &'static str, access: Access) -> Result<M, MapError>
where
    M: TryFrom<Map, Error = AyaError>,
{
    let map = open(pins, name, access)?;
    M::try_from(map).map_err(io_error).map_err(map_error(name, "the pinned map"))
}

fn shared<T: Pod>(
    pins: &Pins,
    name: &'static str,
    access: Access,
) -> Result<SharedArray<T>, MapError> {
    SharedArray::open(&pins.map(name), access).map_err(map_error(name, pins.map(name).display()))
}

pub(super) fn open_flows<A: Addr>(pins: &Pins, access: Access) -> Result<FlowTable<A>, MapError> {
    sys::obj_get(&pins.map(A::FLOWS), access)
        .and_then(|fd| FlowTable::new(fd, access))
        .map_err(map_error(A::FLOWS, pins.map(A::FLOWS).display()))
}

/// A whole hash: in batches, or key by key where the kernel cannot.
fn read_hash<K: Pod, V: Pod>(
    name: &'static str,
    map: &HashMap<MapData, K, V>,
    fd: &MapData,
) -> Result<Vec<(K, V)>, MapError> {
    let read = match sys::read_batched(fd.fd().as_fd()) {
        Err(error) if lacks_batches(&error) => {
            map.iter().collect::<Result<_, _>>().map_err(io_error)
        }
        read => read,
    };
    read.map_err(map_error(name, "all entries"))
}

/// `EINVAL` before 5.6, `ENOTSUPP` (which has no name in libc) for a map kind without.
fn lacks_batches(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP | 524))
}

/// An address family, as the names of its maps and the conversions of its addresses.
pub(super) trait Addr: Octets + Pod + Into<IpAddr> {
    const FAMILY: Family;
    const ADDRESSES: &'static str;
    const FRONTENDS: &'static str;
    const DESCRIPTORS: &'static str;
    const BACKENDS: &'static str;
    const NAMES: &'static str;
    const FLOWS: &'static str;
    const SOCKETS: &'static str;
    const RANGES: &'static str;
    const STATS: &'static str;
    fn ip(self) -> IpAddr;
    fn entry(backend: Backend<Self>) -> BackendEntry;
}

impl Addr for [u8; 4] {
    const FAMILY: Family = Family::V4;
    const ADDRESSES: &'static str = "addresses_v4";
    const FRONTENDS: &'static str = "frontends_v4";
    const DESCRIPTORS: &'static str = "descriptors_v4";
    const BACKENDS: &'static str = "backends_v4";
    const NAMES: &'static str = "names_v4";
    const FLOWS: &'static str = "flows_v4";
    const SOCKETS: &'static str = "sockets_v4";
    const RANGES: &'static str = "ranges_v4";
    const STATS: &'static str = "stats_v4";

    fn ip(self) -> IpAddr {
        Ipv4Addr::from(self).into()
    }

    fn entry(backend: Backend<Self>) -> BackendEntry {
        BackendEntry::V4(backend)
    }
}

impl Addr for [u8; 16] {
    const FAMILY: Family = Family::V6;
    const ADDRESSES: &'static str = "addresses_v6";
    const FRONTENDS: &'static str = "frontends_v6";
    const DESCRIPTORS: &'static str = "descriptors_v6";
    const BACKENDS: &'static str = "backends_v6";
    const NAMES: &'static str = "names_v6";
    const FLOWS: &'static str = "flows_v6";
    const SOCKETS: &'static str = "sockets_v6";
    const RANGES: &'static str = "ranges_v6";
    const STATS: &'static str = "stats_v6";

    fn ip(self) -> IpAddr {
        Ipv6Addr::from(self).into()
    }

    fn entry(backend: Backend<Self>) -> BackendEntry {
        BackendEntry::V6(backend)
    }
}

/// A hash, with a second descriptor for batches: aya keeps its own to itself.
pub(super) struct Hash<K: Pod, V: Pod> {
    name: &'static str,
    pub(super) map: HashMap<MapData, K, V>,
    fd: MapData,
}

impl<K: Pod, V: Pod> Hash<K, V> {
    pub(super) fn open(pins: &Pins, name: &'static str, access: Access) -> Result<Self, MapError> {
        let map = typed(pins, name, access)?;
        let fd = sys::obj_get(&pins.map(name), access)
            .and_then(|fd| MapData::from_fd(fd).map_err(io_error))
            .map_err(map_error(name, pins.map(name).display()))?;
        Ok(Self { name, map, fd })
    }

    pub(super) fn read(&self) -> Result<Vec<(K, V)>, MapError> {
        read_hash(self.name, &self.map, &self.fd)
    }
}

fn write_table(map: BorrowedFd<'_>, first_block: u32, table: &Table) -> Result<(), MapError> {
    sys::write_range(map, first_block, &table.blocks()).map_err(map_error("tables", first_block))
}

/// Writes tables, which nothing publishes yet, with all processors if they are many. How many of them,
/// from the first on, are written, and what failed with the next one.
fn write_tables(map: BorrowedFd<'_>, tables: &[(u32, &Table)]) -> (usize, Option<MapError>) {
    let write = |tables: &[(u32, &Table)]| {
        for (done, (first_block, table)) in tables.iter().enumerate() {
            if let Err(error) = write_table(map, *first_block, table) {
                return (done, Some(error));
            }
        }
        (tables.len(), None)
    };
    let processors = thread::available_parallelism().map_or(1, NonZero::get);
    let share = tables.len().div_ceil(processors).max(TABLES_PER_THREAD);
    if tables.len() <= share {
        return write(tables);
    }
    thread::scope(|scope| {
        let shares = tables.chunks(share);
        let threads: Vec<_> = shares.map(|share| scope.spawn(move || write(share))).collect();
        let mut done = 0;
        for thread in threads {
            let (count, failure) = thread.join().unwrap_or_else(|panic| resume_unwind(panic));
            done += count;
            if failure.is_some() {
                return (done, failure);
            }
        }
        (done, None)
    })
}

/// The maps of one family.
struct FamilyMaps<A: Addr> {
    addresses: Hash<A, AddressFlags>,
    frontends: Hash<FrontendKey<A>, u32>,
    descriptors: SharedArray<Descriptor>,
    backends: SharedArray<Backend<A>>,
    names: Array<MapData, FrontendInfo>,
    names_fd: MapData,
    flows: OnDemand<FlowTable<A>>,
    ranges: LpmTrie<MapData, RangeKey<A>, u32>,
    stats: PerCpuArray<MapData, FrontendStats>,
}

impl<A: Addr> FamilyMaps<A> {
    fn open(pins: &Pins, access: Access) -> Result<Self, MapError> {
        Ok(Self {
            addresses: Hash::open(pins, A::ADDRESSES, access)?,
            frontends: Hash::open(pins, A::FRONTENDS, access)?,
            descriptors: shared(pins, A::DESCRIPTORS, access)?,
            backends: shared(pins, A::BACKENDS, access)?,
            names: typed(pins, A::NAMES, access)?,
            names_fd: sys::obj_get(&pins.map(A::NAMES), access)
                .and_then(|fd| MapData::from_fd(fd).map_err(io_error))
                .map_err(map_error(A::NAMES, pins.map(A::NAMES).display()))?,
            flows: OnDemand::open(&pins.map(A::FLOWS), access, FlowTable::new)
                .map_err(map_error(A::FLOWS, pins.map(A::FLOWS).display()))?,
            ranges: typed(pins, A::RANGES, access)?,
            stats: typed(pins, A::STATS, access)?,
        })
    }

    fn let_go(&mut self) {
        self.descriptors.let_go();
        self.backends.let_go();
        self.flows.let_go();
    }

    fn read(&self, actual: &mut Actual) -> Result<(), MapError> {
        for (addr, flags) in self.addresses.read()? {
            actual.addresses.insert(addr.ip(), flags);
        }
        for (key, id) in self.frontends.read()? {
            let FrontendKey { addr, port, protocol, _pad } = key;
            let Some(protocol) = Protocol::from_number(protocol) else {
                let unknown = io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("protocol {protocol} is not one this agent writes"),
                );
                return Err(map_error(A::FRONTENDS, format!("{}:{port}", addr.ip()))(unknown));
            };
            actual.frontends.insert(FrontendAddr { addr: addr.ip(), port, protocol }, id);
        }
        let descriptors =
            self.descriptors.read().map_err(map_error(A::DESCRIPTORS, "all entries"))?;
        for (id, descriptor) in (0..).zip(descriptors) {
            if descriptor != Descriptor::default() {
                actual.descriptors.insert((A::FAMILY, id), descriptor);
            }
        }
        let backends = self.backends.read().map_err(map_error(A::BACKENDS, "all entries"))?;
        for (id, backend) in (0..).zip(backends) {
            if backend.port != 0 {
                actual.backends.insert((A::FAMILY, id), A::entry(backend));
            }
        }
        let infos = self.infos().map_err(map_error(A::NAMES, "all entries"))?;
        self.read_ranges(actual)?;
        let named = infos.into_iter().filter(|(_, info)| *info != FrontendInfo::UNUSED);
        actual.infos.extend(named.map(|(id, info)| ((A::FAMILY, id), info)));
        Ok(())
    }

    fn read_ranges(&self, actual: &mut Actual) -> Result<(), MapError> {
        for key in self.ranges.keys() {
            let key = key.map_err(io_error).map_err(map_error(A::RANGES, "all entries"))?;
            let RangeKey { service, addr } = key.data();
            let range = key
                .prefix_len()
                .checked_sub(RangeKey::<A>::SERVICE_BITS)
                .and_then(|len| IpNet::new(addr.ip(), u8::try_from(len).ok()?).ok());
            let Some(range) = range else {
                let unknown = io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("a prefix of {} bits is not one this agent writes", key.prefix_len()),
                );
                return Err(map_error(A::RANGES, addr.ip())(unknown));
            };
            actual.ranges.entry((A::FAMILY, service)).or_default().insert(range);
        }
        Ok(())
    }

    fn set_range(&mut self, service: u32, addr: A, range: IpNet) -> Result<(), MapError> {
        let inserted = self.ranges.insert(&range_key(service, addr, range), 1, 0);
        inserted.map_err(io_error).map_err(map_error(A::RANGES, range))
    }

    fn remove_range(&mut self, service: u32, addr: A, range: IpNet) -> Result<(), MapError> {
        let removed = or_missing(self.ranges.remove(&range_key(service, addr, range)));
        removed.map_err(map_error(A::RANGES, range))
    }

    fn sizes(&self) -> Result<Sizes, MapError> {
        let backends = self.backends.read().map_err(map_error(A::BACKENDS, "all entries"))?;
        Ok(Sizes {
            frontends: self.frontends.read()?.len(),
            backends: backends.iter().filter(|backend| backend.port != 0).count(),
            addresses: self.addresses.read()?.len(),
        })
    }

    /// Backends that have a next hop, and its index.
    fn hops_by_backend(&self) -> Result<impl Iterator<Item = (SocketAddr, u32)>, MapError> {
        let backends = self.backends.read().map_err(map_error(A::BACKENDS, "all entries"))?;
        let used = backends.into_iter().filter(|backend| backend.port != 0 && backend.hop != 0);
        Ok(used.map(|backend| (SocketAddr::new(backend.addr.ip(), backend.port), backend.hop)))
    }

    fn read_flows(&self) -> Result<Vec<Entry<A>>, MapError> {
        self.flows.get().and_then(FlowTable::read).map_err(map_error(A::FLOWS, "all entries"))
    }

    /// See [`PinnedMaps::flow_counts`].
    fn count_flows(&self, now: u64, counts: &mut FlowCounts) -> Result<(), MapError> {
        for (key, flow) in self.read_flows()? {
            if flow.is_live_request(now) {
                counts.count(key.protocol, flow.state, flow.has(Flow::<A>::FOREIGN));
            }
        }
        Ok(())
    }

    /// Enters a half unless there is one already. Whether there was none.
    fn enter_flow(&mut self, key: &FlowKey<A>, flow: &Flow<A>) -> Result<bool, MapError> {
        let entered = self.flows.get().and_then(|table| table.insert(key, flow, IfThere::Keep));
        entered.map_err(map_error(A::FLOWS, format!("{key:?}")))
    }

    fn infos(&self) -> io::Result<Vec<(u32, FrontendInfo)>> {
        match sys::read_batched(self.names_fd.fd().as_fd()) {
            Err(error) if lacks_batches(&error) => (0..self.names.len())
                .map(|id| Ok((id, self.names.get(&id, 0).map_err(io_error)?)))
                .collect(),
            read => read,
        }
    }

    /// Packets see a backend's port last when it appears and first when it goes, so that none is
    /// sent to half an address. The port is in the last word.
    fn set_backend(&self, id: u32, backend: &Backend<A>) -> Result<(), MapError> {
        let stored = self.backends.mapped().and_then(|backends| {
            if backend.port == 0 {
                backends.write_backwards(id, backend)
            } else {
                backends.write(id, backend)
            }
        });
        stored.map_err(map_error(A::BACKENDS, id))
    }

    /// The flags are in the last word, and programs read the first word first: what restricts is
    /// seen before the tables that it restricts, and goes after them.
    fn set_descriptor(&self, id: u32, descriptor: &Descriptor) -> Result<(), MapError> {
        let stored = self.descriptors.mapped().and_then(|descriptors| {
            if descriptor.has(Descriptor::SOURCE_RANGES) {
                descriptors.write_backwards(id, descriptor)
            } else {
                descriptors.write(id, descriptor)
            }
        });
        stored.map_err(map_error(A::DESCRIPTORS, id))
    }

    fn set_info(&mut self, id: u32, info: &FrontendInfo) -> Result<(), MapError> {
        self.names.set(id, info, 0).map_err(io_error).map_err(map_error(A::NAMES, id))
    }

    fn reset_stats(&mut self, id: u32) -> Result<(), MapError> {
        let mut reset = || {
            let cpus = aya::util::nr_cpus().map_err(|(_, error)| error)?;
            let zeroes = PerCpuValues::try_from(vec![FrontendStats::default(); cpus])?;
            self.stats.set(id, zeroes, 0).map_err(io_error)
        };
        reset().map_err(map_error(A::STATS, id))
    }

    fn stats(&self, id: u32) -> Result<FrontendStats, MapError> {
        let values = self.stats.get(&id, 0).map_err(io_error).map_err(map_error(A::STATS, id))?;
        Ok(values.iter().fold(FrontendStats::default(), |sum, cpu| {
            let FrontendStats { packets, bytes, reply_packets, reply_bytes } = *cpu;
            FrontendStats {
                packets: sum.packets.wrapping_add(packets),
                bytes: sum.bytes.wrapping_add(bytes),
                reply_packets: sum.reply_packets.wrapping_add(reply_packets),
                reply_bytes: sum.reply_bytes.wrapping_add(reply_bytes),
            }
        }))
    }

    fn insert_frontend(
        &mut self,
        addr: A,
        frontend: &FrontendAddr,
        id: u32,
    ) -> Result<(), MapError> {
        let key = FrontendKey::new(addr, frontend.port, frontend.protocol.number());
        let inserted = self.frontends.map.insert(key, id, 0);
        inserted.map_err(io_error).map_err(map_error(A::FRONTENDS, frontend))
    }

    fn remove_frontend(&mut self, addr: A, frontend: &FrontendAddr) -> Result<(), MapError> {
        let key = FrontendKey::new(addr, frontend.port, frontend.protocol.number());
        or_missing(self.frontends.map.remove(&key)).map_err(map_error(A::FRONTENDS, frontend))
    }

    fn set_address(&mut self, addr: A, flags: AddressFlags) -> Result<(), MapError> {
        let inserted = self.addresses.map.insert(addr, flags, 0);
        inserted.map_err(io_error).map_err(map_error(A::ADDRESSES, addr.ip()))
    }

    fn remove_address(&mut self, addr: A) -> Result<(), MapError> {
        let removed = or_missing(self.addresses.map.remove(&addr));
        removed.map_err(map_error(A::ADDRESSES, addr.ip()))
    }

    /// Both addresses that stay the service's in each entry: the frontend's and the backend's. A
    /// reply entry may have been evicted and come back, so each entry speaks for both.
    fn flow_addresses(&self, now: u64, into: &mut BTreeSet<IpAddr>) -> Result<(), MapError> {
        for (key, flow) in self.read_flows()? {
            // What the stack translates needs nothing of what is programmed.
            if flow.expired(now) || flow.has(Flow::<A>::FOREIGN) {
                continue;
            }
            let (frontend, backend) = flow::ends(&key, &flow);
            into.insert(frontend.ip());
            into.insert(backend.ip());
        }
        Ok(())
    }

    /// See [`Maps::end_half`].
    fn end_half(&mut self, key: &FlowKey<A>, flow: &Flow<A>) -> Result<bool, MapError> {
        let sibling = flow.sibling_key(key);
        self.remove_flow(key, |now| now.sibling_key(key) == sibling)
    }

    /// Removes an entry if it is the one that is meant.
    fn remove_flow(
        &mut self,
        key: &FlowKey<A>,
        is_meant: impl Fn(&Flow<A>) -> bool,
    ) -> Result<bool, MapError> {
        let removed = self.flows.get().and_then(|table| table.remove(key, is_meant));
        removed.map_err(map_error(A::FLOWS, format!("{key:?}")))
    }
}

fn range_key<A: Addr>(service: u32, addr: A, range: IpNet) -> Key<RangeKey<A>> {
    let bits = RangeKey::<A>::SERVICE_BITS + u32::from(range.prefix_len());
    Key::new(bits, RangeKey { service, addr })
}

/// How much is programmed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Frontends.
    pub frontends: usize,
    /// Backends.
    pub backends: usize,
    /// Addresses that the programs look at.
    pub addresses: usize,
}

/// Flows that are not over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowCounts {
    /// TCP connections and SCTP associations that are established, translated by the programs.
    pub established: usize,
    /// UDP, and what begins or ends, translated by the programs.
    pub other: usize,
    /// TCP connections and SCTP associations that are established, translated by the stack.
    pub foreign_established: usize,
    /// UDP, and what begins or ends, translated by the stack.
    pub foreign_other: usize,
}

impl FlowCounts {
    const fn count(&mut self, protocol: u8, state: u8, is_foreign: bool) {
        let is_established = protocol != IPPROTO_UDP && state == FlowState::Established as u8;
        *match (is_foreign, is_established) {
            (false, true) => &mut self.established,
            (false, false) => &mut self.other,
            (true, true) => &mut self.foreign_established,
            (true, false) => &mut self.foreign_other,
        } += 1;
    }

    /// Those that the programs translate.
    pub const fn own(&self) -> usize {
        self.established + self.other
    }
}

/// The pinned maps.
pub struct PinnedMaps {
    v4: FamilyMaps<[u8; 4]>,
    v6: FamilyMaps<[u8; 16]>,
    /// Not mapped: it is most of all maps, and what is mapped counts as the agent's memory.
    tables: OwnedFd,
    members: Hash<MemberKey, u32>,
    devices: Hash<u32, Device>,
    near_devices: SharedArray<Device>,
    hops: SharedArray<Hop>,
    free_ports: SharedArray<u64>,
    mode: Array<MapData, u32>,
    drops: PerCpuArray<MapData, u64>,
    counters: PerCpuArray<MapData, u64>,
}

impl PinnedMaps {
    /// Opens the maps by their pins, needing neither an agent nor the object. A map that is not
    /// what this program was built for is an error.
    pub fn open(pins: &Pins, access: Access) -> Result<Self, MapError> {
        let tables = sys::obj_get(&pins.map("tables"), access)
            .map_err(map_error("tables", pins.map("tables").display()))?;
        let blocks = sys::map_info(tables.as_fd())
            .map_err(map_error("tables", "the pinned map"))?
            .max_entries;
        if blocks as usize != TABLE_BLOCKS {
            let wrong = io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{blocks} blocks, expected {TABLE_BLOCKS}"),
            );
            return Err(map_error("tables", "the pinned map")(wrong));
        }
        Ok(Self {
            v4: FamilyMaps::open(pins, access)?,
            v6: FamilyMaps::open(pins, access)?,
            tables,
            members: Hash::open(pins, "members", access)?,
            devices: Hash::open(pins, "devices", access)?,
            near_devices: shared(pins, "near_devices", access)?,
            hops: shared(pins, "hops", access)?,
            free_ports: shared(pins, "free_ports", access)?,
            mode: typed(pins, "mode", access)?,
            drops: typed(pins, "drops", access)?,
            counters: typed(pins, "counters", access)?,
        })
    }

    fn carry_out(&mut self, op: &MapOp) -> Result<(), MapError> {
        match op {
            MapOp::SetBackend { id, backend } => match backend {
                BackendEntry::V4(backend) => self.v4.set_backend(*id, backend),
                BackendEntry::V6(backend) => self.v6.set_backend(*id, backend),
            },
            MapOp::WriteTable { first_block, table } => {
                write_table(self.tables.as_fd(), *first_block, table)
            }
            MapOp::SetMember { member } => {
                let inserted = self.members.map.insert(member, 1, 0);
                inserted.map_err(io_error).map_err(map_error("members", member.first_block))
            }
            MapOp::RemoveMember { member } => or_missing(self.members.map.remove(member))
                .map_err(map_error("members", member.first_block)),
            MapOp::SetRange { service, range } => match range.addr() {
                IpAddr::V4(ip) => self.v4.set_range(*service, ip.octets(), *range),
                IpAddr::V6(ip) => self.v6.set_range(*service, ip.octets(), *range),
            },
            MapOp::RemoveRange { service, range } => match range.addr() {
                IpAddr::V4(ip) => self.v4.remove_range(*service, ip.octets(), *range),
                IpAddr::V6(ip) => self.v6.remove_range(*service, ip.octets(), *range),
            },
            MapOp::SetDescriptor { family, id, descriptor } => match family {
                Family::V4 => self.v4.set_descriptor(*id, descriptor),
                Family::V6 => self.v6.set_descriptor(*id, descriptor),
            },
            MapOp::SetInfo { family, id, info } => match family {
                Family::V4 => self.v4.set_info(*id, info),
                Family::V6 => self.v6.set_info(*id, info),
            },
            MapOp::ResetStats { family, id } => match family {
                Family::V4 => self.v4.reset_stats(*id),
                Family::V6 => self.v6.reset_stats(*id),
            },
            MapOp::InsertFrontend { addr, id } => {
                self.occupy_ports(addr.port..=addr.port)?;
                match addr.addr {
                    IpAddr::V4(ip) => self.v4.insert_frontend(ip.octets(), addr, *id),
                    IpAddr::V6(ip) => self.v6.insert_frontend(ip.octets(), addr, *id),
                }
            }
            MapOp::RemoveFrontend { addr } => match addr.addr {
                IpAddr::V4(ip) => self.v4.remove_frontend(ip.octets(), addr),
                IpAddr::V6(ip) => self.v6.remove_frontend(ip.octets(), addr),
            },
            MapOp::SetAddress { addr, flags } => match addr {
                IpAddr::V4(ip) => self.v4.set_address(ip.octets(), *flags),
                IpAddr::V6(ip) => self.v6.set_address(ip.octets(), *flags),
            },
            MapOp::RemoveAddress { addr } => match addr {
                IpAddr::V4(ip) => self.v4.remove_address(ip.octets()),
                IpAddr::V6(ip) => self.v6.remove_address(ip.octets()),
            },
        }
    }

    /// Has this process do without the flow tables, until they are looked into again.
    pub fn let_go_of_flows(&mut self) {
        self.v4.flows.let_go();
        self.v6.flows.let_go();
    }

    /// The same with everything that reading the maps has mapped. What is written often is mapped
    /// again by the first write; of a family that no Service has, nothing is.
    pub fn let_go(&mut self) {
        self.v4.let_go();
        self.v6.let_go();
    }

    /// Every entry of both flow tables, expired ones too; compare with [`sys::coarse_ns`].
    pub fn flows(&self) -> Result<impl Iterator<Item = FlowEntry>, MapError> {
        let v4 = self.v4.read_flows()?.into_iter().map(|(key, flow)| FlowEntry::V4(key, flow));
        let v6 = self.v6.read_flows()?.into_iter().map(|(key, flow)| FlowEntry::V6(key, flow));
        Ok(v4.chain(v6))
    }

    /// How much is programmed, without reading names and tables, which are most of the maps.
    pub fn sizes(&self) -> Result<Sizes, MapError> {
        let (v4, v6) = (self.v4.sizes()?, self.v6.sizes()?);
        Ok(Sizes {
            frontends: v4.frontends + v6.frontends,
            backends: v4.backends + v6.backends,
            addresses: v4.addresses + v6.addresses,
        })
    }

    /// How many flows are not over at `now` (see [`sys::coarse_ns`]), each counted by the half that
    /// clients' packets meet.
    pub fn flow_counts(&self, now: u64) -> Result<FlowCounts, MapError> {
        let mut counts = FlowCounts::default();
        self.v4.count_flows(now, &mut counts)?;
        self.v6.count_flows(now, &mut counts)?;
        Ok(counts)
    }

    /// Every half of a flow that the stack translates.
    pub fn foreign_flows(&self) -> Result<Vec<FlowEntry>, MapError> {
        Ok(self.flows()?.filter(FlowEntry::is_foreign).collect())
    }

    /// Enters a half of a flow that the stack translates, unless packets of its kind have a flow
    /// already. Whether they had none.
    pub fn enter_foreign(&mut self, entry: &FlowEntry) -> Result<bool, MapError> {
        for port in entry.ports() {
            self.occupy_ports(port..=port)?;
        }
        match entry {
            FlowEntry::V4(key, flow) => self.v4.enter_flow(key, flow),
            FlowEntry::V6(key, flow) => self.v6.enter_flow(key, flow),
        }
    }

    /// Removes such a half, unless it has become another flow's. Whether there was one.
    pub fn remove_foreign(&mut self, entry: &FlowEntry) -> Result<bool, MapError> {
        match entry {
            FlowEntry::V4(key, _) => {
                self.v4.remove_flow(key, |now| now.has(Flow::<[u8; 4]>::FOREIGN))
            }
            FlowEntry::V6(key, _) => {
                self.v6.remove_flow(key, |now| now.has(Flow::<[u8; 16]>::FOREIGN))
            }
        }
    }

    /// Has programs look for flows and frontends at these ports of the node's own addresses. Before
    /// anything is there to be found.
    pub fn occupy_ports(&self, ports: RangeInclusive<u16>) -> Result<(), MapError> {
        let occupied = self.free_ports.mapped().and_then(|free| {
            for port in ports {
                let (word, bit) = place_of(port);
                let ports = free.read(word).unwrap_or_default();
                if ports & bit != 0 {
                    free.write(word, &(ports & !bit))?;
                }
            }
            Ok(())
        });
        occupied.map_err(map_error("free_ports", "a port"))
    }

    /// Has programs leave all ports of the node's own addresses to the node, but those of `frontends`,
    /// those that a flow has, expired or not, and the `source` ports of flows to come. No program that
    /// runs may use other source ports.
    pub fn free_other_ports(
        &self,
        frontends: impl IntoIterator<Item = u16>,
        source: RangeInclusive<u16>,
    ) -> Result<(), MapError> {
        let mut free = vec![u64::MAX; PORT_WORDS];
        let flows = self.flows()?.flat_map(|flow| flow.ports());
        for port in frontends.into_iter().chain(source).chain(flows) {
            let (word, bit) = place_of(port);
            free[word as usize] &= !bit;
        }
        let freed = self.free_ports.mapped().and_then(|ports| {
            (0..).zip(&free).try_for_each(|(word, free)| ports.write(word, free))
        });
        freed.map_err(map_error("free_ports", "all entries"))
    }

    /// The mode that the programs are in.
    pub fn mode(&self) -> Result<Mode, MapError> {
        let number =
            self.mode.get(&0, 0).map_err(io_error).map_err(map_error("mode", "the element"))?;
        Mode::from_number(number).ok_or_else(|| {
            let unknown = io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{number} is not one this agent writes"),
            );
            map_error("mode", "the element")(unknown)
        })
    }

    /// Puts the programs into a mode.
    pub fn set_mode(&mut self, mode: Mode) -> Result<(), MapError> {
        let set = self.mode.set(0, mode as u32, 0);
        set.map_err(io_error).map_err(map_error("mode", "the element"))
    }

    /// Drops by reason, summed over CPUs.
    pub fn drops(&self) -> Result<BTreeMap<DropReason, u64>, MapError> {
        let sum = |reason: &DropReason| {
            Ok((
                *reason,
                sum_of(&self.drops, *reason as u32).map_err(map_error("drops", reason.as_str()))?,
            ))
        };
        DropReason::ALL.iter().map(sum).collect()
    }

    /// Counters, summed over CPUs.
    pub fn counters(&self) -> Result<BTreeMap<Counter, u64>, MapError> {
        let sum = |counter: &Counter| {
            let read = sum_of(&self.counters, *counter as u32);
            Ok((*counter, read.map_err(map_error("counters", counter.as_str()))?))
        };
        Counter::ALL.iter().map(sum).collect()
    }

    /// Statistics of a frontend, summed over CPUs.
    pub fn stats(&self, family: Family, id: u32) -> Result<FrontendStats, MapError> {
        match family {
            Family::V4 => self.v4.stats(id),
            Family::V6 => self.v6.stats(id),
        }
    }

    /// The devices the programs know, by interface index.
    pub fn devices(&self) -> Result<BTreeMap<u32, Device>, MapError> {
        Ok(self.devices.read()?.into_iter().collect())
    }

    /// Tells the programs about a device.
    pub fn set_device(&mut self, ifindex: u32, device: &Device) -> Result<(), MapError> {
        let inserted = self.devices.map.insert(ifindex, device, 0);
        inserted.map_err(io_error).map_err(map_error("devices", ifindex))?;
        self.set_near(ifindex, device)
    }

    /// Makes the programs forget a device.
    pub fn remove_device(&mut self, ifindex: u32) -> Result<(), MapError> {
        self.set_near(ifindex, &Device::default())?;
        or_missing(self.devices.map.remove(&ifindex)).map_err(map_error("devices", ifindex))
    }

    /// The same where programs look first, if it has a place there.
    fn set_near(&self, ifindex: u32, device: &Device) -> Result<(), MapError> {
        let stored = self.near_devices.mapped().and_then(|near| match ifindex < near.len() {
            true => near.write(ifindex, device),
            false => Ok(()),
        });
        stored.map_err(map_error("near_devices", ifindex))
    }

    /// Makes `devices` what the programs know; only what differs is written.
    pub fn sync_devices(&mut self, devices: &BTreeMap<u32, Device>) -> Result<(), MapError> {
        let known = self.devices()?;
        for (ifindex, device) in devices {
            // An earlier layout had no `near_devices`.
            if known.get(ifindex) != Some(device) || !self.is_near(*ifindex, device) {
                self.set_device(*ifindex, device)?;
            }
        }
        for ifindex in known.keys().filter(|ifindex| !devices.contains_key(ifindex)) {
            self.remove_device(*ifindex)?;
        }
        Ok(())
    }

    /// Whether programs find the device where they look first, if it has a place there.
    fn is_near(&self, ifindex: u32, device: &Device) -> bool {
        self.near_devices
            .mapped()
            .is_ok_and(|near| ifindex >= near.len() || near.read(ifindex) == Some(*device))
    }

    /// The next hop on the way to each backend that has one, valid or not.
    pub fn backend_hops(&self) -> Result<BTreeMap<SocketAddr, Hop>, MapError> {
        let hops = self.hops.read().map_err(map_error("hops", "all entries"))?;
        let ids = self.v4.hops_by_backend()?.chain(self.v6.hops_by_backend()?);
        Ok(ids.filter_map(|(addr, id)| Some((addr, *hops.get(id as usize)?))).collect())
    }

    /// The index of the next hop on the way to each address of a backend that has one.
    pub fn hops(&self) -> Result<BTreeMap<IpAddr, u32>, MapError> {
        let hops = self.v4.hops_by_backend()?.chain(self.v6.hops_by_backend()?);
        Ok(hops.map(|(backend, hop)| (backend.ip(), hop)).collect())
    }
}

/// The word of `free_ports` that a port has its bit in, and the bit.
fn place_of(port: u16) -> (u32, u64) {
    (u32::from(port) / 64, 1 << (port % 64))
}

fn sum_of(map: &PerCpuArray<MapData, u64>, index: u32) -> io::Result<u64> {
    let values = map.get(&index, 0).map_err(io_error)?;
    Ok(values.iter().fold(0, |sum, cpu| sum.wrapping_add(*cpu)))
}

impl Maps for PinnedMaps {
    fn frontends(&self) -> usize {
        self.v4.names.len().min(self.v6.names.len()) as usize
    }

    fn read(&self) -> Result<Actual, MapError> {
        let mut actual = Actual {
            members: self.members.read()?.into_iter().map(|(member, _)| member).collect(),
            ..Actual::default()
        };
        self.v4.read(&mut actual)?;
        self.v6.read(&mut actual)?;
        let published = actual.descriptors.values().flat_map(BlockRange::published);
        for range in published.collect::<BTreeSet<_>>() {
            // What leads out of the slab is no table: whoever looks for it finds none.
            if range.indices().end <= TABLE_BLOCKS {
                let blocks = sys::read_range(self.tables.as_fd(), range.first, range.blocks());
                actual
                    .tables
                    .write(range.first, &blocks.map_err(map_error("tables", range.first))?);
            }
        }
        Ok(actual)
    }

    fn apply(&mut self, ops: &[MapOp]) -> (usize, Option<MapError>) {
        let mut done = 0;
        while let Some(op) = ops.get(done) {
            let rest = ops[done..].iter();
            let tables: Vec<_> = rest.map_while(MapOp::table).collect();
            let (count, failure) = if tables.len() > 1 {
                write_tables(self.tables.as_fd(), &tables)
            } else {
                match self.carry_out(op) {
                    Ok(()) => (1, None),
                    Err(error) => (0, Some(error)),
                }
            };
            done += count;
            if failure.is_some() {
                return (done, failure);
            }
        }
        (done, None)
    }

    fn flow_addresses(&self) -> Result<BTreeSet<IpAddr>, MapError> {
        let now = sys::coarse_ns();
        let mut addresses = BTreeSet::new();
        self.v4.flow_addresses(now, &mut addresses)?;
        self.v6.flow_addresses(now, &mut addresses)?;
        Ok(addresses)
    }

    fn udp_flows(&self) -> Result<Vec<FlowEntry>, MapError> {
        Ok(self.flows()?.filter(|flow| flow.protocol() == IPPROTO_UDP).collect())
    }

    fn end_half(&mut self, half: &FlowEntry) -> Result<bool, MapError> {
        match half {
            FlowEntry::V4(key, flow) => self.v4.end_half(key, flow),
            FlowEntry::V6(key, flow) => self.v6.end_half(key, flow),
        }
    }
}
