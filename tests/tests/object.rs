//! What the agent, the command line and people with bpftool expect of the object: needs no
//! privileges, and catches what was renamed.

use lbxdp_agent::object;
use lbxdp_agent::pins::{MapSpec, pinned_maps};
use lbxdp_common::flow_set::FlowSet;
use lbxdp_common::layout::{Layout, MAPS, Sets};
use lbxdp_common::limits::{
    FLOW_SETS, MAX_ADDRESSES, MAX_AFFINITIES, MAX_ANNOUNCED, MAX_BACKENDS, MAX_DEVICES,
    MAX_FRAGMENTS, MAX_FRONTENDS, MAX_HOPS, MAX_MEMBERS, MAX_RANGES, MAX_SOCKETS, NEAR_DEVICES,
    PORT_WORDS, TABLE_BLOCKS,
};
use lbxdp_common::{
    ABI_VERSION, AddressFlags, Affinity, AffinityKey, Announced, AnnouncedKey, Backend, Descriptor,
    Device, FragmentKey, FragmentPorts, FrontendInfo, FrontendKey, FrontendStats, Hop, MemberKey,
    RangeKey, SocketKey, SocketPeer, TableBlock, Watch, counter, drop_reason,
};

const INDEX: usize = size_of::<u32>();
/// In front of the key of a longest-prefix trie.
const PREFIX_LEN: usize = size_of::<u32>();

/// Name, bytes of key and value, entries.
fn expected() -> Vec<(&'static str, usize, usize, usize)> {
    type V4 = [u8; 4];
    type V6 = [u8; 16];
    vec![
        ("addresses_v4", 4, size_of::<AddressFlags>(), MAX_ADDRESSES),
        ("addresses_v6", 16, size_of::<AddressFlags>(), MAX_ADDRESSES),
        ("affinity", size_of::<AffinityKey>(), size_of::<Affinity>(), MAX_AFFINITIES),
        ("announced_v4", size_of::<AnnouncedKey<V4>>(), size_of::<Announced>(), MAX_ANNOUNCED),
        ("announced_v6", size_of::<AnnouncedKey<V6>>(), size_of::<Announced>(), MAX_ANNOUNCED),
        ("backends_v4", INDEX, size_of::<Backend<V4>>(), MAX_BACKENDS),
        ("backends_v6", INDEX, size_of::<Backend<V6>>(), MAX_BACKENDS),
        ("counters", INDEX, size_of::<u64>(), counter::SLOTS),
        ("descriptors_v4", INDEX, size_of::<Descriptor>(), MAX_FRONTENDS),
        ("descriptors_v6", INDEX, size_of::<Descriptor>(), MAX_FRONTENDS),
        ("devices", INDEX, size_of::<Device>(), MAX_DEVICES),
        ("drops", INDEX, size_of::<u64>(), drop_reason::SLOTS),
        ("flows_v4", INDEX, size_of::<FlowSet<V4>>(), FLOW_SETS),
        ("flows_v6", INDEX, size_of::<FlowSet<V6>>(), FLOW_SETS),
        ("fragments_v4", size_of::<FragmentKey<V4>>(), size_of::<FragmentPorts>(), MAX_FRAGMENTS),
        ("fragments_v6", size_of::<FragmentKey<V6>>(), size_of::<FragmentPorts>(), MAX_FRAGMENTS),
        ("free_ports", INDEX, size_of::<u64>(), PORT_WORDS),
        ("frontends_v4", size_of::<FrontendKey<V4>>(), size_of::<u32>(), MAX_FRONTENDS),
        ("frontends_v6", size_of::<FrontendKey<V6>>(), size_of::<u32>(), MAX_FRONTENDS),
        ("hops", INDEX, size_of::<Hop>(), MAX_HOPS),
        ("members", size_of::<MemberKey>(), size_of::<u32>(), MAX_MEMBERS),
        ("mode", INDEX, size_of::<u32>(), 1),
        ("names_v4", INDEX, size_of::<FrontendInfo>(), MAX_FRONTENDS),
        ("names_v6", INDEX, size_of::<FrontendInfo>(), MAX_FRONTENDS),
        ("near_devices", INDEX, size_of::<Device>(), NEAR_DEVICES),
        ("port_share", INDEX, size_of::<u32>(), 1),
        ("ranges_v4", PREFIX_LEN + size_of::<RangeKey<V4>>(), size_of::<u32>(), MAX_RANGES),
        ("ranges_v6", PREFIX_LEN + size_of::<RangeKey<V6>>(), size_of::<u32>(), MAX_RANGES),
        ("sockets_v4", size_of::<SocketKey<V4>>(), size_of::<SocketPeer<V4>>(), MAX_SOCKETS),
        ("sockets_v6", size_of::<SocketKey<V6>>(), size_of::<SocketPeer<V6>>(), MAX_SOCKETS),
        ("stats_v4", INDEX, size_of::<FrontendStats>(), MAX_FRONTENDS),
        ("stats_v6", INDEX, size_of::<FrontendStats>(), MAX_FRONTENDS),
        ("tables", INDEX, size_of::<TableBlock>(), TABLE_BLOCKS),
        ("watch", INDEX, size_of::<Watch>(), 1),
    ]
}

fn maps() -> Vec<(String, MapSpec)> {
    let object = object::bytes().expect("cargo xtask build-ebpf");
    pinned_maps(&object).expect("a BPF object").into_iter().collect()
}

#[test]
fn the_object_has_exactly_the_maps_that_are_pinned() {
    let found: Vec<_> = maps()
        .iter()
        .map(|(name, spec)| {
            let sizes = [spec.key_size, spec.value_size, spec.max_entries];
            (name.clone(), sizes.map(|size| usize::try_from(size).expect("small")))
        })
        .collect();
    let expected: Vec<_> = expected()
        .into_iter()
        .map(|(name, key, value, entries)| (name.to_owned(), [key, value, entries]))
        .collect();
    assert_eq!(found, expected, "a changed layout needs another ABI_VERSION");
    assert_eq!(ABI_VERSION, 5);
}

/// Map memory is charged to the pod that creates the maps: the bound of what a container needs.
/// Few Services have source ranges or affinity, so the maps for these take memory with each entry.
#[test]
fn the_maps_take_less_than_336_mib_on_a_machine_of_16_cpus_and_another_64_when_full() {
    let (mut at_once, mut when_full) = (0, 0);
    for (name, key, value, entries) in expected() {
        let bytes = memory(name, key, value, entries);
        when_full += bytes;
        if !["members", "ranges_v4", "ranges_v6"].contains(&name) {
            at_once += bytes;
        }
    }
    assert!(at_once < 336 << 20, "{} MiB", at_once >> 20);
    assert!(when_full < 400 << 20, "{} MiB", when_full >> 20);
}

/// Bytes of a full map.
fn memory(name: &str, key: usize, value: usize, entries: usize) -> usize {
    /// What the kernel keeps beside key and value of a hash element, and its bucket.
    const HASH_OVERHEAD: usize = 64 + 16;
    /// A node of a trie, and one that joins two, which every element may need one of.
    const TRIE_NODES: usize = 2;
    /// What the kernel keeps in a node beside address and value.
    const TRIE_OVERHEAD: usize = 48;
    let is_one_of = |prefixes: &[&str]| prefixes.iter().any(|prefix| name.starts_with(prefix));
    let is_hash = is_one_of(&[
        "addresses",
        "affinity",
        "devices",
        "fragments",
        "frontends",
        "members",
        "sockets",
    ]);
    let value = value.next_multiple_of(8);
    let element = if is_one_of(&["ranges"]) {
        // Allocated one by one, in sizes that are powers of two.
        TRIE_NODES * (TRIE_OVERHEAD + key + value).next_power_of_two()
    } else if is_hash {
        key.next_multiple_of(8) + value + HASH_OVERHEAD
    } else {
        value
    };
    entries * element * if is_one_of(&["counters", "drops", "stats"]) { 16 } else { 1 }
}

#[test]
#[expect(clippy::disallowed_methods, reason = "collected into an ordered set")]
fn the_object_has_the_programs_that_are_attached() {
    let object = object::bytes().expect("cargo xtask build-ebpf");
    let object = aya_obj::Object::parse(&object).expect("a BPF object");
    let found: std::collections::BTreeSet<_> = object.programs.keys().map(String::as_str).collect();
    let expected = [
        "lbxdp_connect4",
        "lbxdp_connect6",
        "lbxdp_egress",
        "lbxdp_ingress",
        "lbxdp_peername4",
        "lbxdp_peername6",
        "lbxdp_pod_egress",
        "lbxdp_pod_ingress",
        "lbxdp_recvmsg4",
        "lbxdp_recvmsg6",
        "lbxdp_release",
        "lbxdp_sendmsg4",
        "lbxdp_sendmsg6",
        "lbxdp_stale",
        "lbxdp_xdp",
        "lbxdp_xdp_frags",
    ];
    assert_eq!(found, expected.into());
}

/// Bytes of key and value of a map's elements.
const fn element_sizes(map: &Layout) -> [usize; 2] {
    match map.sets {
        Some(Sets { ways, stride }) => [INDEX, ways * stride],
        None => [map.key_size, map.value_size],
    }
}

#[test]
fn what_each_pinned_map_consists_of_is_written_down() {
    let found: Vec<_> = maps()
        .iter()
        .map(|(name, spec)| (name.clone(), [spec.key_size as usize, spec.value_size as usize]))
        .collect();
    let described: Vec<_> =
        MAPS.iter().map(|map| (map.name.to_owned(), element_sizes(map))).collect();
    assert_eq!(found, described);
}
