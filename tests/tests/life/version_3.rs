//! Version 3 of the maps kept flows in a hash. No build makes such maps any more, so they are made here.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use aya::Pod;
use aya::maps::{HashMap, Map, MapData};
use lbxdp_agent::apply::FlowEntry;
use lbxdp_common::{Flow, FlowKey, Octets, limits::MAX_FLOWS};
use lbxdp_tests::process::{command, run, wait_until};
use lbxdp_tests::traffic::hold::Held;

use crate::world::{EDIT_WITHIN, TIMEOUT, World, vip};

const V4: &str = "key 16 src@0+4 dst@4+4 src_port@8+2 dst_port@10+2 protocol@12+1 value 32 src@0+4 \
                  dst@4+4 src_port@8+2 dst_port@10+2 frontend@12+4 backend@16+4 state@20+1 hook@21+1 \
                  flags@22+1 last_seen@24+8";
const V6: &str = "key 40 src@0+16 dst@16+16 src_port@32+2 dst_port@34+2 protocol@36+1 value 56 \
                  src@0+16 dst@16+16 src_port@32+2 dst_port@34+2 frontend@36+4 backend@40+4 \
                  state@44+1 hook@45+1 flags@46+1 last_seen@48+8";

type Hash<const K: usize, const V: usize> = HashMap<MapData, [u8; K], [u8; V]>;

/// A map of flows in a directory of version 3, with what that says about it.
fn hash<const K: usize, const V: usize>(maps: &Path, name: &str, layout: &str) -> Hash<K, V>
where
    [u8; K]: Pod,
    [u8; V]: Pod,
{
    let [key, value, entries] = [K, V, MAX_FLOWS].map(|size| size.to_string());
    let path = maps.join(name);
    let mut bpftool = command("bpftool");
    bpftool.args(["map", "create"]).arg(&path).args(["type", "lru_hash", "key", &key]);
    run(bpftool.args(["value", &value, "entries", &entries, "name", name]));
    symlink(layout, maps.join("layout").join(name)).expect("a description");
    let map = MapData::from_pin(path).expect("a pinned map");
    HashMap::try_from(Map::LruHashMap(map)).expect("a hash")
}

/// Key and value as version 3 had them.
fn record<A: Octets, const K: usize, const V: usize>(
    key: &FlowKey<A>,
    flow: &Flow<A>,
) -> ([u8; K], [u8; V]) {
    let addresses = |src: A, dst: A| [&src.widen()[..A::LEN], &dst.widen()[..A::LEN]].concat();
    let mut key_bytes = addresses(key.src, key.dst);
    key_bytes.extend(key.src_port.to_ne_bytes());
    key_bytes.extend(key.dst_port.to_ne_bytes());
    key_bytes.extend([key.protocol, 0, 0, 0]);
    let mut value_bytes = addresses(flow.src, flow.dst);
    value_bytes.extend(flow.src_port.to_ne_bytes());
    value_bytes.extend(flow.dst_port.to_ne_bytes());
    value_bytes.extend(flow.frontend.to_ne_bytes());
    value_bytes.extend(flow.backend.to_ne_bytes());
    value_bytes.extend([flow.state, flow.hook, flow.flags, 0]);
    value_bytes.extend(flow.last_seen.to_ne_bytes());
    (key_bytes.try_into().expect("a key"), value_bytes.try_into().expect("a value"))
}

#[test]
fn connections_that_version_3_has_in_a_hash_go_on() {
    let mut world = World::with_pods(1, 1);
    let targets = [vip(false, 10, 7), vip(true, 10, 7)];
    let open = |to| world.cluster.client.run(|| Held::open(to, 16, 0, TIMEOUT)).expect("open");
    let mut connections = targets.map(open);
    assert_eq!(connections.each_mut().map(Held::ping_all), [0, 0]);
    assert!(world.agent.stop().success());
    let flows: Vec<_> = world.maps().flows().expect("the flows are read").collect();
    assert_eq!(flows.len(), 64);
    world.agent.cli(&["cleanup"]);

    let maps = world.pinned("v3");
    fs::create_dir_all(maps.join("layout")).expect("a directory of pins");
    let mut v4: Hash<16, 32> = hash(&maps, "flows_v4", V4);
    let mut v6: Hash<40, 56> = hash(&maps, "flows_v6", V6);
    for flow in &flows {
        let inserted = match flow {
            FlowEntry::V4(key, flow) => {
                let (key, value) = record(key, flow);
                v4.insert(key, value, 0)
            }
            FlowEntry::V6(key, flow) => {
                let (key, value) = record(key, flow);
                v6.insert(key, value, 0)
            }
        };
        inserted.expect("inserted");
    }

    world.agent.start_again();
    assert_eq!(connections.each_mut().map(Held::ping_all), [0, 0]);
    for held in &connections {
        assert_eq!(held.report().open.len(), 2, "a local and a remote backend");
    }
    let counts = world.agent.status();
    assert_eq!(counts.counter("flow_new"), 0, "nothing was taken for the middle of something else");
    assert!(counts.counter("flow_hit") > 0);
    wait_until("nothing is left of version 3", EDIT_WITHIN, || {
        let entries = fs::read_dir(world.agent.pin_path()).expect("the pins are read");
        entries.flatten().all(|entry| !entry.file_name().to_string_lossy().starts_with("v3"))
    });
}
