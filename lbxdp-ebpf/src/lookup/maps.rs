//! The maps. The agent pins them under these names, and `bpftool` shows them by these names, so
//! they are in the case of map names rather than of Rust statics. Only this directory uses them.
#![expect(non_upper_case_globals, reason = "a static's name is its map's name")]

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray},
    macros::btf_map,
};
use lbxdp_common::{
    AddressFlags, Affinity, AffinityKey, Announced, AnnouncedKey, Backend, Descriptor, Device,
    FragmentKey, FragmentPorts, FrontendInfo, FrontendKey, FrontendStats, Hop, MemberKey, RangeKey,
    SocketKey, SocketPeer, TableBlock, Watch, counter, drop_reason,
    flow_set::FlowSet,
    limits::{
        FLOW_SETS, MAX_ADDRESSES, MAX_AFFINITIES, MAX_ANNOUNCED, MAX_BACKENDS, MAX_DEVICES,
        MAX_FRAGMENTS, MAX_FRONTENDS, MAX_HOPS, MAX_MEMBERS, MAX_RANGES, MAX_SOCKETS, NEAR_DEVICES,
        PORT_WORDS, TABLE_BLOCKS,
    },
};

use crate::work::Work;

/// User space maps the array into its memory and writes it without a system call. Linux 5.5.
pub const MMAPABLE: usize = BPF_F_MMAPABLE as usize;

/// The kind of map that holds flows.
pub type FlowMap<A> = Array<FlowSet<A>, FLOW_SETS, MMAPABLE>;
/// The kind of map that holds sockets. The release hook forgets most of them; the rest (a socket
/// that failed to connect, or that sent to several frontends) makes room when it is needed.
pub type SocketMap<A> = LruHashMap<SocketKey<A>, SocketPeer<A>, MAX_SOCKETS>;
/// The kind of map that holds statistics.
pub type StatsMap<V, const N: usize> = PerCpuArray<V, N>;

/// Destination address → what it is.
#[btf_map]
pub static addresses_v4: HashMap<[u8; 4], AddressFlags, MAX_ADDRESSES> = HashMap::new();
/// Destination address → what it is.
#[btf_map]
pub static addresses_v6: HashMap<[u8; 16], AddressFlags, MAX_ADDRESSES> = HashMap::new();

/// Address, port, protocol → frontend id.
#[btf_map]
pub static frontends_v4: HashMap<FrontendKey<[u8; 4]>, u32, MAX_FRONTENDS> = HashMap::new();
/// Address, port, protocol → frontend id.
#[btf_map]
pub static frontends_v6: HashMap<FrontendKey<[u8; 16]>, u32, MAX_FRONTENDS> = HashMap::new();

/// Frontend id → its tables.
#[btf_map]
pub static descriptors_v4: Array<Descriptor, MAX_FRONTENDS, MMAPABLE> = Array::new();
/// Frontend id → its tables.
#[btf_map]
pub static descriptors_v6: Array<Descriptor, MAX_FRONTENDS, MMAPABLE> = Array::new();

/// Frontend id → its name, for people.
#[btf_map]
pub static names_v4: Array<FrontendInfo, MAX_FRONTENDS> = Array::new();
/// Frontend id → its name, for people.
#[btf_map]
pub static names_v6: Array<FrontendInfo, MAX_FRONTENDS> = Array::new();

/// The slab of Maglev tables.
#[btf_map]
pub static tables: Array<TableBlock, TABLE_BLOCKS, MMAPABLE> = Array::new();

/// Backend id → backend.
#[btf_map]
pub static backends_v4: Array<Backend<[u8; 4]>, MAX_BACKENDS, MMAPABLE> = Array::new();
/// Backend id → backend.
#[btf_map]
pub static backends_v6: Array<Backend<[u8; 16]>, MAX_BACKENDS, MMAPABLE> = Array::new();

/// Packet as it arrives → packet as it leaves ([`lbxdp_common::flow_set`]).
#[btf_map]
pub static flows_v4: FlowMap<[u8; 4]> = Array::new();
/// Packet as it arrives → packet as it leaves ([`lbxdp_common::flow_set`]).
#[btf_map]
pub static flows_v6: FlowMap<[u8; 16]> = Array::new();

/// Datagram that arrives in fragments → its ports.
#[btf_map]
pub static fragments_v4: LruHashMap<FragmentKey<[u8; 4]>, FragmentPorts, MAX_FRAGMENTS> =
    LruHashMap::new();
/// Datagram that arrives in fragments → its ports.
#[btf_map]
pub static fragments_v6: LruHashMap<FragmentKey<[u8; 16]>, FragmentPorts, MAX_FRAGMENTS> =
    LruHashMap::new();
/// Socket and one of its peers → the other one: what it asked for, or what it got.
#[btf_map]
pub static sockets_v4: SocketMap<[u8; 4]> = LruHashMap::new();
/// Socket and one of its peers → the other one: what it asked for, or what it got.
#[btf_map]
pub static sockets_v6: SocketMap<[u8; 16]> = LruHashMap::new();

/// Frontend id → packets and bytes.
#[btf_map]
pub static stats_v4: StatsMap<FrontendStats, MAX_FRONTENDS> = PerCpuArray::new();
/// Frontend id → packets and bytes.
#[btf_map]
pub static stats_v6: StatsMap<FrontendStats, MAX_FRONTENDS> = PerCpuArray::new();

/// Service port and client → its backend, of both families.
#[btf_map]
pub static affinity: LruHashMap<AffinityKey, Affinity, MAX_AFFINITIES> = LruHashMap::new();

/// Tables of frontends with session affinity → their backends. Few have it, so memory is taken as
/// it is needed.
#[btf_map]
pub static members: HashMap<MemberKey, u32, MAX_MEMBERS, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();

/// Service port and client → whether it is served. Linux 4.11; memory is taken as it is needed.
#[btf_map]
pub static ranges_v4: LpmTrie<RangeKey<[u8; 4]>, u32, MAX_RANGES> = LpmTrie::new();
/// Service port and client → whether it is served. Linux 4.11; memory is taken as it is needed.
#[btf_map]
pub static ranges_v6: LpmTrie<RangeKey<[u8; 16]>, u32, MAX_RANGES> = LpmTrie::new();

/// [`lbxdp_common::DropReason`] → packets.
#[btf_map]
pub static drops: PerCpuArray<u64, { drop_reason::SLOTS }> = PerCpuArray::new();

/// [`lbxdp_common::Counter`] → events.
#[btf_map]
pub static counters: PerCpuArray<u64, { counter::SLOTS }> = PerCpuArray::new();

/// The [`lbxdp_common::Mode`] that the programs are in, as its number.
#[btf_map]
pub static mode: Array<u32, 1> = Array::new();

/// The number of the [`lbxdp_common::PortShare`] that these programs take source ports of.
#[btf_map]
pub static port_share: Array<u32, 1> = Array::new();

/// Backend's index of a next hop → next hop.
#[btf_map]
pub static hops: Array<Hop, MAX_HOPS, MMAPABLE> = Array::new();

/// Ports by 64 → a bit for each that is nobody's but the node's. Where nothing is known all are
/// clear.
#[btf_map]
pub static free_ports: Array<u64, PORT_WORDS, MMAPABLE> = Array::new();

/// Address and device → whether this node answers for it there, and who did before.
#[btf_map]
pub static announced_v4: HashMap<AnnouncedKey<[u8; 4]>, Announced, MAX_ANNOUNCED> = HashMap::new();
/// Address and device → whether this node answers for it there, and who did before.
#[btf_map]
pub static announced_v6: HashMap<AnnouncedKey<[u8; 16]>, Announced, MAX_ANNOUNCED> = HashMap::new();

/// Until when it does.
#[btf_map]
pub static watch: Array<Watch, 1, MMAPABLE> = Array::new();

/// Interface index → device, for those below [`NEAR_DEVICES`].
#[btf_map]
pub static near_devices: Array<Device, NEAR_DEVICES, MMAPABLE> = Array::new();

/// Interface index → device.
#[btf_map]
pub static devices: HashMap<u32, Device, MAX_DEVICES> = HashMap::new();

/// The one element of an array that the agent changes.
#[inline(always)]
pub fn word(map: &Array<u32, 1>) -> Option<u32> {
    // SAFETY: the pointer is into an array, which lives as long as the program; one aligned word
    // is read whole, and volatile, because the agent changes it.
    map.get_ptr(0).map(|word| unsafe { word.read_volatile() })
}

/// Room to work in, for the program that runs on this CPU. Not pinned.
#[btf_map]
pub static scratch_v4: PerCpuArray<Work<[u8; 4]>, 1> = PerCpuArray::new();
/// Room to work in, for the program that runs on this CPU. Not pinned.
#[btf_map]
pub static scratch_v6: PerCpuArray<Work<[u8; 16]>, 1> = PerCpuArray::new();

/// The one element of `scratch_icmp`: a token bucket.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct IcmpBudget {
    /// When the bucket was last filled, nanoseconds of `CLOCK_MONOTONIC_COARSE`.
    pub filled_at: u64,
    /// Errors that may still be sent.
    pub tokens: u64,
}

/// How many ICMP errors this CPU may send. Not pinned.
#[btf_map]
pub static scratch_icmp: PerCpuArray<IcmpBudget, 1> = PerCpuArray::new();
