//! Pinned maps that are not what this agent expects.

use std::fs;

use lbxdp_common::limits::MAX_FRONTENDS;
use lbxdp_tests::process::{command, run, wait_until};

use crate::world::{EDIT_WITHIN, World};

/// Puts a map of another shape where one of ours belongs.
fn misplace(world: &World, name: &str, kind: &str, sizes: [u32; 3]) {
    let path = world.pins().map(name);
    let _ = fs::remove_file(&path);
    let [key, value, entries] = sizes.map(|size| size.to_string());
    let mut bpftool = command("bpftool");
    bpftool.args(["map", "create"]).arg(&path).args(["type", kind, "key", &key, "value", &value]);
    run(bpftool.args(["entries", &entries, "name", name]));
}

fn is_rebuilt(world: &mut World, complaint: &str) {
    let logged = world.agent.log().len();
    world.agent.start_again();
    let log = world.agent.log()[logged..].to_owned();
    let line = log.lines().find(|line| line.contains(complaint));
    let line = line.unwrap_or_else(|| panic!("no {complaint:?} in\n{log}"));
    assert!(line.contains("WARN") && line.contains("all maps are rebuilt"), "{line}");
    for _ in 0..5 {
        world.ask_both();
    }
    wait_until("the old maps are gone", EDIT_WITHIN, || {
        world.pins().replaced().expect("the pins are read").is_empty()
    });
    // And the next start finds nothing to complain about.
    let logged = world.agent.log().len();
    world.agent.restart();
    assert!(!world.agent.log()[logged..].contains("rebuilt"), "{}", world.agent.log());
    world.ask_both();
}

#[test]
fn maps_of_another_shape_are_reported_and_rebuilt_below_a_running_dataplane() {
    let mut world = World::with_pods(1, 1);
    world.ask_both();
    assert!(world.agent.stop().success());
    misplace(&world, "frontends_v4", "hash", [8, 8, 65_536]);
    is_rebuilt(&mut world, "pinned map frontends_v4: value size is 8, expected 4");
    assert!(world.agent.stop().success());
    misplace(&world, "drops", "array", [4, 8, 64]);
    is_rebuilt(&mut world, "pinned map drops: type is");
}

#[test]
fn a_map_of_another_shape_from_before_the_first_start_is_reported_and_replaced() {
    let mut world = World::with_pods(1, 1);
    assert!(world.agent.stop().success());
    world.agent.cli(&["cleanup"]);
    assert!(!world.agent.pin_path().exists());
    fs::create_dir_all(world.pins().maps()).expect("a directory of pins");
    misplace(&world, "flows_v6", "lru_hash", [40, 56, 16]);
    is_rebuilt(&mut world, "pinned map flows_v6: type is 9, expected 2");
}

#[test]
fn the_room_for_frontends_and_flows_is_a_setting() {
    // A ClusterIP and a NodePort of each family, and what the Service has besides.
    let mut world = World::with_pods(1, 1);
    world.ask_both();
    let capacity = |world: &World, map: &str| {
        let (_, metrics) = world.agent.get("/metrics").expect("metrics");
        let name = format!("lbxdp_map_capacity_entries{{map=\"{map}\"}} ");
        let line = metrics.lines().find_map(|line| line.strip_prefix(&name));
        line.unwrap_or_else(|| panic!("no {name}in\n{metrics}")).parse::<usize>().expect("a number")
    };
    assert_eq!(capacity(&world, "frontends_v4"), MAX_FRONTENDS);
    assert_eq!(capacity(&world, "frontends_v6"), MAX_FRONTENDS);

    assert!(world.agent.stop().success());
    let room = ["--frontends=1".to_owned(), "--flows=1024".to_owned()];
    world.agent.change_options(|options| options.extra.extend(room));
    world.agent.start_again();
    assert!(world.agent.log().contains(" is not served: 1 IPv4 frontends exist (--frontends)"));
    assert_eq!(capacity(&world, "frontends_v4"), 1);

    assert!(world.agent.stop().success());
    world.agent.change_options(|options| {
        options.extra.truncate(options.extra.len() - 2);
        options.extra.push(format!("--frontends={}", 2 * MAX_FRONTENDS));
    });
    is_rebuilt(&mut world, "pinned map ");
    assert_eq!(capacity(&world, "frontends_v4"), 2 * MAX_FRONTENDS);
}
