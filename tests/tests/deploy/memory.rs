//! The memory limit is made of the maps' capacities.

use std::collections::BTreeMap;
use std::os::fd::AsRawFd as _;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::ResourceRequirements;
use lbxdp_agent::object;
use lbxdp_agent::pins::{Pins, pinned_maps};
use lbxdp_agent::sys::{self, Access};
use lbxdp_common::flow_set::FlowSet;
use lbxdp_common::limits::{
    FLOW_SETS, MAX_ADDRESSES, MAX_AFFINITIES, MAX_ANNOUNCED, MAX_BACKENDS, MAX_DEVICES, MAX_FLOWS,
    MAX_FRAGMENTS, MAX_FRONTENDS, MAX_HOPS, MAX_MEMBERS, MAX_RANGES, MAX_SOCKETS, NEAR_DEVICES,
    PORT_WORDS, TABLE_BLOCKS,
};
use lbxdp_common::{
    AddressFlags, Affinity, AffinityKey, Announced, AnnouncedKey, Backend, Descriptor, Device,
    FragmentKey, FragmentPorts, FrontendInfo, FrontendKey, FrontendStats, Hop, MemberKey, Octets,
    RangeKey, SocketKey, SocketPeer, TableBlock, Watch, counter, drop_reason,
};
use lbxdp_tests::chart::{CHART, Helm, least_values, objects};
use lbxdp_tests::go::workspace;
use lbxdp_tests::{Agent, AgentOptions, Cluster, Scratch, Spec};
use serde_json::{Value, json};

use crate::manifest;

/// Bytes of all maps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Memory {
    /// Maps that have one copy.
    maps: usize,
    /// What each possible CPU adds.
    cpu: usize,
}

impl Memory {
    fn array(&mut self, value: usize, entries: usize) {
        self.maps += value.next_multiple_of(8) * entries;
    }

    /// A pointer, and the values.
    fn per_cpu_array(&mut self, value: usize, entries: usize) {
        self.maps += size_of::<u64>() * entries;
        self.cpu += value.next_multiple_of(8) * entries;
    }

    /// `struct htab_elem` has 48 bytes before the key, and a bucket 16. Elements are made with the
    /// map, one more for each CPU; those of a map without preallocation are counted as if they were.
    fn hash(&mut self, key: usize, value: usize, entries: usize) {
        let element = 48 + key.next_multiple_of(8) + value.next_multiple_of(8);
        self.maps += element * entries + 16 * entries.next_power_of_two();
        self.cpu += element;
    }

    /// A node has 40 bytes before its key and value, comes from an allocator of powers of two, and
    /// an inner node may stand over each. All are made when they are needed.
    fn trie(&mut self, key: usize, value: usize, entries: usize) {
        self.maps += 2 * (40 + key + value).next_power_of_two() * entries;
    }

    fn family<A: Octets>(&mut self, flow_sets: usize, frontends: usize) {
        let address = size_of::<A>();
        self.hash(address, size_of::<AddressFlags>(), MAX_ADDRESSES);
        self.hash(size_of::<FrontendKey<A>>(), size_of::<u32>(), frontends);
        self.array(size_of::<Descriptor>(), frontends);
        self.array(size_of::<FrontendInfo>(), frontends);
        self.array(size_of::<Backend<A>>(), MAX_BACKENDS);
        self.array(size_of::<FlowSet<A>>(), flow_sets);
        self.per_cpu_array(size_of::<FrontendStats>(), frontends);
        // The length of the prefix comes before the key.
        self.trie(size_of::<u32>() + size_of::<RangeKey<A>>(), size_of::<u32>(), MAX_RANGES);
        self.hash(size_of::<SocketKey<A>>(), size_of::<SocketPeer<A>>(), MAX_SOCKETS);
        self.hash(size_of::<AnnouncedKey<A>>(), size_of::<Announced>(), MAX_ANNOUNCED);
        self.hash(size_of::<FragmentKey<A>>(), size_of::<FragmentPorts>(), MAX_FRAGMENTS);
    }

    /// Every map of the layout.
    fn of_the_layout() -> Self {
        Self::with(FLOW_SETS, MAX_FRONTENDS)
    }

    /// The same with flow tables of so many sets, and room for so many frontends.
    fn with(flow_sets: usize, frontends: usize) -> Self {
        let mut memory = Self::default();
        memory.family::<[u8; 4]>(flow_sets, frontends);
        memory.family::<[u8; 16]>(flow_sets, frontends);
        memory.array(size_of::<TableBlock>(), TABLE_BLOCKS);
        memory.hash(size_of::<u32>(), size_of::<Device>(), MAX_DEVICES);
        memory.array(size_of::<Device>(), NEAR_DEVICES);
        memory.array(size_of::<Hop>(), MAX_HOPS);
        memory.array(size_of::<u64>(), PORT_WORDS);
        // The mode, and which source ports are given out.
        memory.array(size_of::<u32>(), 1);
        memory.array(size_of::<u32>(), 1);
        memory.array(size_of::<Watch>(), 1);
        memory.hash(size_of::<AffinityKey>(), size_of::<Affinity>(), MAX_AFFINITIES);
        memory.hash(size_of::<MemberKey>(), size_of::<u32>(), MAX_MEMBERS);
        memory.per_cpu_array(size_of::<u64>(), counter::SLOTS);
        memory.per_cpu_array(size_of::<u64>(), drop_reason::SLOTS);
        memory
    }

    /// Every map that the object pins.
    fn of_the_object() -> Self {
        const HASH: u32 = 1;
        const ARRAY: u32 = 2;
        const PER_CPU_ARRAY: u32 = 6;
        const LRU_HASH: u32 = 9;
        const LPM_TRIE: u32 = 11;
        let object = object::bytes().expect("cargo xtask build-ebpf");
        let mut memory = Self::default();
        for (name, spec) in pinned_maps(&object).expect("a BPF object") {
            let [key, value, entries] = [spec.key_size, spec.value_size, spec.max_entries]
                .map(|size| usize::try_from(size).expect("small"));
            match spec.map_type {
                HASH | LRU_HASH => memory.hash(key, value, entries),
                ARRAY => memory.array(value, entries),
                PER_CPU_ARRAY => memory.per_cpu_array(value, entries),
                LPM_TRIE => memory.trie(key, value, entries),
                kind => panic!("{name}: nobody counts maps of type {kind}"),
            }
        }
        memory
    }
}

/// The numbers in the chart, in MiB.
fn of_the_chart() -> BTreeMap<String, usize> {
    let path = workspace().join(CHART).join("templates/_helpers.tpl");
    let text = std::fs::read_to_string(path).expect("helpers");
    let (_, rest) = text.split_once("define \"lbxdp.memory\"").expect("lbxdp.memory");
    let numbers = rest.lines().skip(1).take_while(|line| !line.starts_with("{{"));
    numbers
        .map(|line| {
            let (name, mebibytes) = line.split_once(": ").expect("name: number");
            (name.to_owned(), mebibytes.parse().expect("number"))
        })
        .collect()
}

fn mebibytes(bytes: usize) -> usize {
    bytes.div_ceil(1 << 20)
}

#[test]
fn the_chart_counts_every_map_of_the_layout() {
    let layout = Memory::of_the_layout();
    let chart = of_the_chart();
    assert_eq!(chart["maps"], mebibytes(layout.maps), "{layout:?}");
    assert_eq!(chart["cpu"], mebibytes(layout.cpu), "{layout:?}");
}

#[test]
fn the_chart_knows_what_an_entry_takes() {
    let (layout, chart) = (Memory::of_the_layout(), of_the_chart());
    let more_flows = Memory::with(2 * FLOW_SETS, MAX_FRONTENDS);
    assert_eq!(chart["flow"] * MAX_FLOWS, more_flows.maps - layout.maps);
    assert_eq!(more_flows.cpu, layout.cpu);
    let more_frontends = Memory::with(FLOW_SETS, 2 * MAX_FRONTENDS);
    // Buckets are a power of two, of which the last entry may have asked for half.
    let buckets = 2 * 16 * MAX_FRONTENDS;
    assert_eq!(chart["frontend"] * MAX_FRONTENDS - buckets, more_frontends.maps - layout.maps);
    assert_eq!(chart["frontendCpu"] * MAX_FRONTENDS, more_frontends.cpu - layout.cpu);
}

#[test]
#[ignore = "needs Go"]
fn the_limit_follows_the_values() {
    const CPUS: usize = 8;
    let mut values = least_values();
    for (name, value) in [("flows", 4 * MAX_FLOWS), ("frontends", 100_000), ("nodeCpus", CPUS)] {
        values[name] = json!(value);
    }
    let memory = Memory::with(4 * FLOW_SETS, 100_000);
    let limit = memory.maps + CPUS * memory.cpu + (of_the_chart()["process"] << 20);
    let objects = Helm::get().and_then(|helm| helm.objects(&values)).expect("the chart");
    let limits = resources_of(&objects).limits.expect("limits");
    let mebibytes: usize = limits["memory"].0.trim_end_matches("Mi").parse().expect("MiB");
    let given = mebibytes << 20;
    // Sums are rounded up twice, those of each CPU too.
    assert!(given >= limit && given < limit + ((2 * CPUS + 4) << 20), "{given} for {limit}");
}

#[test]
fn the_object_has_no_map_that_the_chart_does_not_count() {
    let (object, layout) = (Memory::of_the_object(), Memory::of_the_layout());
    assert!(object.maps <= layout.maps, "{object:?} {layout:?}");
    assert!(object.cpu <= layout.cpu, "{object:?} {layout:?}");
}

/// The kernel says of each map what it takes (`memlock`; before Linux 6.4 an estimate that leaves
/// out what is beside keys and values).
#[test]
#[ignore = "needs root"]
fn the_kernel_counts_the_same() {
    let cluster = Cluster::new(&Spec::default());
    let manifests = Scratch::new("manifests");
    let agent = Agent::start(&cluster.nodes[0], manifests.path(), AgentOptions::default());
    let object = object::bytes().expect("cargo xtask build-ebpf");
    let pins = Pins::new(agent.pin_path());
    let mut kernel = 0;
    for name in pinned_maps(&object).expect("a BPF object").into_keys() {
        let map = sys::obj_get(&pins.map(&name), Access::ReadOnly).expect("a pinned map");
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_raw_fd()));
        let info = info.expect("fdinfo");
        let memlock = info.lines().find_map(|line| line.strip_prefix("memlock:"));
        kernel += memlock.expect("memlock").trim().parse::<usize>().expect("a number");
    }
    let memory = Memory::of_the_object();
    let ours = memory.maps + memory.cpu * possible_cpus();
    assert!(kernel <= ours + ours / 100 && kernel >= ours / 2, "kernel {kernel}, chart {ours}");
}

fn possible_cpus() -> usize {
    let possible = std::fs::read_to_string("/sys/devices/system/cpu/possible").expect("CPUs");
    let last = possible.trim().rsplit(['-', ',']).next().expect("a number");
    last.parse::<usize>().expect("a number") + 1
}

fn resources_of(objects: &[Value]) -> ResourceRequirements {
    let daemon = objects.iter().find(|object| object["kind"] == "DaemonSet").expect("one");
    let daemon: DaemonSet = serde_json::from_value(daemon.clone()).expect("a DaemonSet");
    let pod = daemon.spec.expect("spec").template.spec.expect("pod");
    pod.containers[0].resources.clone().expect("resources")
}

#[test]
fn the_limit_of_the_manifest_is_that_sum() {
    const CPUS: usize = 64;
    let resources = resources_of(&objects(&manifest::text()).expect("YAML"));
    let chart = of_the_chart();
    let limit = chart["maps"] + CPUS * chart["cpu"] + chart["process"];
    assert_eq!(resources.limits.expect("limits")["memory"].0, format!("{limit}Mi"));
    let request = chart["maps"] + 64;
    assert_eq!(resources.requests.expect("requests")["memory"].0, format!("{request}Mi"));
}
