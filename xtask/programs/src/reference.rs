//! Programs to compare with: what a load balancer does at least, each without options, counters and
//! second thoughts. IPv4 without options, TCP only. Their maps hold little and say the same for ever.
#![expect(non_upper_case_globals, reason = "a static's name is its map's name")]

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_ANY, BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup},
    btf_maps::{Array, HashMap, LruHashMap},
    helpers::generated::{self, bpf_xdp_adjust_head},
    macros::btf_map,
    programs::XdpContext,
};
use lbxdp_bench_ebpf::{BACKENDS, Backend, FLOWS, Frontend, RING};

/// Frontend → the address that flows to its backends come from.
#[btf_map]
static frontends: HashMap<Frontend, [u8; 4], 1_024> = HashMap::new();
/// Maglev: hash → backend.
#[btf_map]
static ring: Array<u32, RING> = Array::new();
/// Backends.
#[btf_map]
static backends: Array<Backend, BACKENDS> = Array::new();
/// What `hash_hit` looks up.
#[btf_map]
static seen: HashMap<Tuple, u64, FLOWS> = HashMap::new();
/// Flows of `dnat_flow`.
#[btf_map]
static dnat_flows: FlowTable = LruHashMap::new();
/// Flows of `snat_fib`.
#[btf_map]
static snat_flows: FlowTable = LruHashMap::new();
/// Flows of `snat_fib_new`.
#[btf_map]
static new_flows: FlowTable = LruHashMap::new();

type FlowTable = LruHashMap<Tuple, Chosen, FLOWS>;

/// A packet's addresses and ports, as they stand in it.
#[repr(C)]
#[derive(Clone, Copy)]
struct Tuple {
    src: [u8; 4],
    dst: [u8; 4],
    ports: [u8; 4],
    protocol: u32,
}

/// What a flow became.
#[repr(C)]
#[derive(Clone, Copy)]
struct Chosen {
    backend: u32,
    port: [u8; 2],
    _pad: [u8; 2],
}

/// Where headers and fields begin.
const ETHERNET: usize = 14;
const TTL: usize = ETHERNET + 8;
const IP_CHECKSUM: usize = ETHERNET + 10;
const SRC: usize = ETHERNET + 12;
const DST: usize = ETHERNET + 16;
const SRC_PORT: usize = ETHERNET + 20;
const TCP_CHECKSUM: usize = SRC_PORT + 16;
/// Length of all headers, so that one check is enough.
const HEADERS: usize = SRC_PORT + 20;
/// Length of an IPv4 header without options.
const OUTER: usize = 20;

#[inline(always)]
fn load<T: Copy>(start: usize, offset: usize) -> T {
    // SAFETY: callers have checked the frame's length; integers and their arrays have no invalid
    // values.
    unsafe { ((start + offset) as *const T).read_unaligned() }
}

#[inline(always)]
fn store<T>(start: usize, offset: usize, value: T) {
    // SAFETY: callers have checked the frame's length.
    unsafe { ((start + offset) as *mut T).write_unaligned(value) };
}

/// The beginning of a frame that holds `length` bytes.
#[inline(always)]
fn start(ctx: &XdpContext, length: usize) -> Option<usize> {
    let start = ctx.data();
    (start + length <= ctx.data_end()).then_some(start)
}

#[inline(always)]
fn push(ctx: &XdpContext) -> Option<()> {
    // SAFETY: the kernel's own context; pointers into the packet are taken afterwards.
    let result = unsafe { bpf_xdp_adjust_head(ctx.as_ptr().cast(), -(OUTER as i32)) };
    (result == 0).then_some(())
}

#[inline(always)]
fn parse(start: usize) -> Option<Tuple> {
    let is_ipv4 = load::<[u8; 2]>(start, 12) == [8, 0] && load::<u8>(start, ETHERNET) == 0x45;
    is_ipv4.then(|| Tuple {
        src: load(start, SRC),
        dst: load(start, DST),
        ports: load(start, SRC_PORT),
        protocol: u32::from(load::<u8>(start, ETHERNET + 9)),
    })
}

#[inline(always)]
fn hash(tuple: &Tuple) -> u32 {
    let word = |bytes: [u8; 4]| u64::from(u32::from_ne_bytes(bytes));
    let mut mixed = (word(tuple.src) << 32 | word(tuple.ports)) ^ word(tuple.dst);
    mixed ^= mixed >> 33;
    mixed = mixed.wrapping_mul(0xff51_afd7_ed55_8ccd);
    (mixed >> 32) as u32
}

#[inline(always)]
fn source(tuple: &Tuple) -> Option<[u8; 4]> {
    let [_, _, high, low] = tuple.ports;
    let key = Frontend { address: tuple.dst, port: [high, low], _pad: [0; 2] };
    // SAFETY: nobody writes the map meanwhile.
    unsafe { frontends.get(key) }.copied()
}

/// The control of programs that encapsulate.
#[inline(always)]
pub fn encap20(ctx: &XdpContext) -> Option<()> {
    push(ctx)
}

/// A lookup; the first packet of a flow enters it.
#[inline(always)]
pub fn hash_hit(ctx: &XdpContext) -> Option<()> {
    let tuple = parse(start(ctx, HEADERS)?)?;
    // SAFETY: one program runs at a time.
    if unsafe { seen.get(tuple) }.is_none() {
        seen.insert(tuple, 1, BPF_ANY.into()).ok()?;
    }
    Some(())
}

/// Frontend, Maglev, backend, and an outer header.
#[inline(always)]
pub fn maglev_ipip(ctx: &XdpContext) -> Option<()> {
    let frame = start(ctx, HEADERS)?;
    let tuple = parse(frame)?;
    let src = source(&tuple)?;
    let id = *ring.get(hash(&tuple) % RING as u32)?;
    let backend = backends.get(id)?;
    let length = u16::from_be(load(frame, ETHERNET + 2)) + OUTER as u16;
    push(ctx)?;
    let frame = start(ctx, ETHERNET + OUTER)?;
    store(frame, 0, backend.macs);
    store(frame, 12, [8_u8, 0]);
    store(frame, ETHERNET, [0x45_u8, 0]);
    store(frame, ETHERNET + 2, length.to_be());
    store(frame, ETHERNET + 4, 0_u32);
    // TTL 64, IPIP, and the checksum's place.
    store(frame, TTL, [64_u8, 4, 0, 0]);
    store(frame, SRC, src);
    store(frame, DST, backend.address);
    let mut sum = 0;
    for word in 0..OUTER / 2 {
        sum += u64::from(load::<u16>(frame, ETHERNET + 2 * word));
    }
    store(frame, IP_CHECKSUM, !fold(sum));
    Some(())
}

/// Translates the destination, by the flow table.
#[inline(always)]
pub fn dnat_flow(ctx: &XdpContext) -> Option<()> {
    let frame = start(ctx, HEADERS)?;
    let tuple = parse(frame)?;
    source(&tuple)?;
    let chosen = chosen(&dnat_flows, &tuple)?;
    let backend = backends.get(chosen.backend)?;
    let mut new = tuple;
    new.dst = backend.address;
    let [from_high, from_low, ..] = tuple.ports;
    let [to_high, to_low] = backend.port;
    new.ports = [from_high, from_low, to_high, to_low];
    rewrite(frame, &tuple, &new, backend.macs);
    Some(())
}

/// Translates both ends, with a table of flows that stay.
#[inline(always)]
pub fn snat_fib(ctx: &XdpContext) -> Option<()> {
    translate_both(ctx, &snat_flows)
}

/// Translates both ends, with a table of flows that pass.
#[inline(always)]
pub fn snat_fib_new(ctx: &XdpContext) -> Option<()> {
    translate_both(ctx, &new_flows)
}

#[inline(always)]
fn translate_both(ctx: &XdpContext, table: &FlowTable) -> Option<()> {
    let frame = start(ctx, HEADERS)?;
    let tuple = parse(frame)?;
    let src = source(&tuple)?;
    let chosen = chosen(table, &tuple)?;
    let backend = backends.get(chosen.backend)?;
    let [from_high, from_low] = chosen.port;
    let [to_high, to_low] = backend.port;
    let ports = [from_high, from_low, to_high, to_low];
    let new = Tuple { src, dst: backend.address, ports, ..tuple };

    // SAFETY: the structure is plain integers.
    let mut params: bpf_fib_lookup = unsafe { core::mem::zeroed() };
    params.family = 2;
    params.l4_protocol = tuple.protocol as u8;
    params.sport = u16::from_ne_bytes(chosen.port);
    params.dport = u16::from_ne_bytes(backend.port);
    params.ifindex = ctx.ingress_ifindex() as u32;
    params.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(src);
    params.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(backend.address);
    let (context, size) = (ctx.as_ptr(), size_of::<bpf_fib_lookup>() as i32);
    // SAFETY: the kernel's own context, and a structure of the size that is given.
    let answer = unsafe { generated::bpf_fib_lookup(context, &raw mut params, size, 0) };
    if answer != i64::from(BPF_FIB_LKUP_RET_SUCCESS) {
        return None;
    }
    let mut macs = [0; 12];
    macs[..6].copy_from_slice(&params.dmac);
    macs[6..].copy_from_slice(&params.smac);
    rewrite(frame, &tuple, &new, macs);
    Some(())
}

/// What the flow became; a new one gets a backend by the ring and a port by its hash.
#[inline(always)]
fn chosen(table: &FlowTable, tuple: &Tuple) -> Option<Chosen> {
    // SAFETY: one program runs at a time.
    if let Some(chosen) = unsafe { table.get(tuple) } {
        return Some(*chosen);
    }
    let hash = hash(tuple);
    let backend = *ring.get(hash % RING as u32)?;
    let port = 61_000 + (hash >> 20);
    let chosen = Chosen { backend, port: (port as u16).to_be_bytes(), _pad: [0; 2] };
    table.insert(tuple, chosen, BPF_ANY.into()).ok()?;
    Some(chosen)
}

/// Writes addresses, ports, TTL, checksums and hardware addresses.
#[inline(always)]
fn rewrite(frame: usize, old: &Tuple, new: &Tuple, macs: [u8; 12]) {
    let word = |bytes: [u8; 4]| u64::from(u32::from_ne_bytes(bytes));
    let without = |bytes: [u8; 4]| u64::from(!u32::from_ne_bytes(bytes));
    let addresses = word(new.src) + word(new.dst) + without(old.src) + without(old.dst);
    let ports = word(new.ports) + without(old.ports);
    // One hop less, in the byte in front of the protocol.
    let old_ttl = load::<u16>(frame, TTL);
    let ttl = load::<u8>(frame, TTL) - 1;
    store(frame, TTL, ttl);
    let hop = u64::from(load::<u16>(frame, TTL)) + u64::from(!old_ttl);
    let check = |offset: usize| u64::from(!load::<u16>(frame, offset));
    store(frame, IP_CHECKSUM, !fold(check(IP_CHECKSUM) + addresses + hop));
    store(frame, TCP_CHECKSUM, !fold(check(TCP_CHECKSUM) + addresses + ports));
    store(frame, 0, macs);
    store(frame, SRC, new.src);
    store(frame, DST, new.dst);
    store(frame, SRC_PORT, new.ports);
}

/// The 16-bit ones' complement sum.
#[inline(always)]
fn fold(sum: u64) -> u16 {
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    ((sum >> 16) + (sum & 0xffff)) as u16
}
