//! Devices that appear, go, come back, and change what they can.

use std::time::{Duration, Instant};

use lbxdp_agent::sys::Point;
use lbxdp_common::Device;
use lbxdp_tests::cluster::{OVERLAY, UPLINK};
use lbxdp_tests::link;
use lbxdp_tests::process::wait_until;
use lbxdp_tests::traffic::churn::Churn;
use lbxdp_tests::traffic::spread::{Probe, Spread};
use lbxdp_tests::traffic::transfer::Transfer;
use lbxdp_tests::{AgentOptions, PodPath, Spec};
use serde_json::Value;

use crate::world::{DEVICE_WITHIN, World, ifindex, pods, target};

const TC: [Point; 2] = [Point::Egress, Point::Ingress];
const ALL: [Point; 3] = [Point::Egress, Point::Ingress, Point::Xdp];
/// Features of a veth follow its peer, and have to be asked for.
const FEATURES_WITHIN: Duration = Duration::from_secs(3);
/// Programs that somebody else took away are found when devices are listed anew.
const RESYNC_WITHIN: Duration = Duration::from_secs(15);

fn named(devices: &[&str]) -> AgentOptions {
    let devices = devices.iter().map(|device| (*device).to_owned()).collect();
    AgentOptions { devices, ..AgentOptions::default() }
}

/// Makes the overlay device of the first node and waits until it is served. It carries nothing.
fn add_overlay(world: &World) {
    let node = world.node();
    node.netns.vxlan(OVERLAY, UPLINK, node.v4, "02:0a:f4:01:00:00", false);
    let since = Instant::now();
    wait_until("the overlay device is served", DEVICE_WITHIN, || world.points(OVERLAY) == TC);
    println!("{OVERLAY} served after {:?}", since.elapsed());
}

fn overlay_comes_and_goes(world: &World) {
    for _ in 0..3 {
        add_overlay(world);
        let status = world.device(OVERLAY);
        assert_eq!((&status["xdp"], &status["tc"]), (&"none".into(), &"tcx".into()), "{status}");
        assert_eq!(status["reason"], "a vxlan device has no native XDP");
        world.node().netns.ip(&format!("link del {OVERLAY}"));
        wait_until("the dead links are removed", DEVICE_WITHIN, || {
            world.links().iter().all(|link| link.device == UPLINK)
        });
    }
    add_overlay(world);
    world.ask_both();
}

#[test]
fn an_overlay_device_is_served_within_a_second_each_time_it_appears() {
    overlay_comes_and_goes(&World::with_pods(1, 1));
}

#[test]
fn a_named_device_that_does_not_exist_is_reported_and_served_when_it_appears() {
    let world = World::start(&pods(1, 1), named(&[UPLINK, OVERLAY]));
    let log = world.agent.log();
    let warning = log.lines().find(|line| line.contains("no such device"));
    assert!(warning.is_some_and(|line| line.contains("WARN") && line.contains(OVERLAY)), "{log}");
    world.ask_both();
    overlay_comes_and_goes(&world);
}

#[test]
fn an_agent_without_any_device_is_not_ready_until_one_appears() {
    let options = AgentOptions { do_not_wait: true, ..named(&[OVERLAY]) };
    let mut world = World::start(&pods(1, 1), options);
    wait_until("the agent says what it waits for", Duration::from_secs(10), || {
        world.agent.get("/readyz") == Some((503, "no device is served\n".to_owned()))
    });
    assert_eq!(world.agent.get("/livez").map(|(status, _)| status), Some(200));
    add_overlay(&world);
    world.agent.wait_ready();
}

#[test]
fn a_device_that_is_recreated_under_its_name_is_served_within_a_second() {
    let world = World::with_pods(1, 1);
    world.ask_both();
    let (node, switch) = (world.node(), &world.cluster.switch);
    let before = ifindex(&node.netns, UPLINK);
    for _ in 0..2 {
        node.netns.ip(&format!("link del {UPLINK}"));
        link::leg((&node.netns, UPLINK), (switch, &node.name), "br0");
        node.netns.ip_batch([
            link::address_line(UPLINK, &format!("{}/24", node.v4)),
            link::address_line(UPLINK, &format!("{}/64", node.v6)),
            "route add default via 198.51.100.1".to_owned(),
            "route add default via 2001:db8:1::1".to_owned(),
        ]);
        let since = Instant::now();
        wait_until("the new device is served", DEVICE_WITHIN, || world.points(UPLINK) == ALL);
        println!("served after {:?}", since.elapsed());
        assert_ne!(ifindex(&node.netns, UPLINK), before);
        assert_eq!(world.links().len(), ALL.len());
        let peer = world.cluster.node(1);
        node.netns.ip_batch([
            format!("route add {} via {}", peer.pod_cidr_v4, peer.v4),
            format!("route add {} via {}", peer.pod_cidr_v6, peer.v6),
        ]);
        node.netns.wait_links_up();
        switch.wait_links_up();
        // The node has another hardware address now.
        world.cluster.flush_neighbours();
        for _ in 0..10 {
            world.ask_both();
        }
    }
    let log = world.agent.log();
    assert!(!log.contains("serving with tc alone"), "{log}");
}

fn flags(world: &World) -> u16 {
    let maps = world.maps();
    let devices = maps.devices().expect("the devices are read");
    let ifindex = ifindex(&world.node().netns, UPLINK).expect("the device");
    devices[&ifindex].flags
}

#[test]
fn a_veth_whose_peer_stops_polling_is_left_to_tc_and_loses_no_byte() {
    // Remote backends only: those are transmitted out of the device they came in by.
    let world = World::with_pods(0, 2);
    let client = &world.cluster.client;
    let switch = &world.cluster.switch;
    let forwards = Device::FORWARDS_V4 | Device::FORWARDS_V6;
    let both = Device::TX | Device::XMIT | forwards;
    assert_eq!(flags(&world), both);
    let transfers: Vec<_> = [false, true]
        .map(|v6| Transfer::new(target(v6, Probe::Http), 3_000_000).rate(1_000_000))
        .into_iter()
        .map(|transfer| client.spawn(move || transfer.run()))
        .collect();

    let before = world.counts();
    world.ask_both();
    let by_xdp = world.counts();
    assert!(by_xdp.counter("transmitted") > before.counter("transmitted"));

    switch.exec("ethtool -K node-a gro off");
    switch.exec("bpftool net detach xdpdrv dev node-a");
    wait_until("the device takes no frames", FEATURES_WITHIN, || flags(&world) == forwards);
    let by_tc = world.counts();
    for _ in 0..10 {
        world.ask_both();
    }
    let changes = world.counts().changes_since(&by_tc);
    assert!(changes["counters.redirected_neigh"] >= 20, "{changes:?}");
    assert!(!changes.contains_key("counters.transmitted"), "{changes:?}");
    assert_eq!(world.points(UPLINK), ALL, "native XDP stays, it only does not transmit");

    switch.gro_on("node-a");
    switch.xdp_pass("node-a");
    wait_until("the device takes frames", FEATURES_WITHIN, || flags(&world) == both);
    let again = world.counts();
    world.ask_both();
    let changes = world.counts().changes_since(&again);
    assert!(changes.contains_key("counters.transmitted"), "{changes:?}");

    for transfer in transfers {
        let report = transfer.join().expect("the thread does not panic");
        assert!(report.errors.is_empty(), "{:?}", report.errors);
        assert_eq!(report.bytes, 6_000_000);
    }
}

/// The line of the log that says that a device is served, and the reason for it.
fn why(world: &World, device: &str) -> String {
    let log = world.agent.log();
    let line = log.lines().find(|line| {
        line.contains("serving with") && line.contains(&format!("device=\"{device}\""))
    });
    let why = line.and_then(|line| line.split("why=\"").nth(1)).and_then(|w| w.split('"').next());
    why.unwrap_or_else(|| panic!("{device} is not served:\n{log}")).to_owned()
}

#[test]
fn detection_finds_the_uplink_and_the_overlay_and_no_pod() {
    let spec = Spec { path: PodPath::Vxlan, ..pods(2, 1) };
    let world = World::start(&spec, AgentOptions::default());
    assert_eq!(why(&world, UPLINK), "default route");
    assert_eq!(why(&world, OVERLAY), "overlay");
    let mut devices: Vec<_> = world.links().into_iter().map(|link| link.device).collect();
    devices.sort();
    assert_eq!(devices, [UPLINK, UPLINK, UPLINK, OVERLAY, OVERLAY]);
    world.ask_both();
}

#[test]
fn detection_finds_a_device_with_the_node_address_and_no_default_route() {
    let world = World::prepare(&pods(1, 1), AgentOptions::default(), |cluster| {
        let netns = &cluster.node(0).netns;
        netns.ip("-4 route del default");
        netns.ip("-6 route del default");
    });
    assert_eq!(why(&world, UPLINK), "node address");
    assert_eq!(world.points(UPLINK), ALL);
    world.ask_both();
}

#[test]
fn a_device_with_a_program_of_somebody_else_is_served_by_tc_and_status_says_so() {
    let world = World::prepare(&pods(1, 1), AgentOptions::default(), |cluster| {
        cluster.node(0).netns.xdp_pass(UPLINK);
    });
    let netns = &world.node().netns;
    let shown: Vec<Value> = serde_json::from_str(&netns.ip("-j link show dev eth0")).expect("JSON");
    let foreign = shown[0]["xdp"]["prog"]["id"].as_u64().expect("the id of a program");
    assert_eq!(world.points(UPLINK), TC);
    let status = world.device(UPLINK);
    assert_eq!((&status["xdp"], &status["tc"]), (&"none".into(), &"tcx".into()), "{status}");
    let reason = format!("another XDP program is attached (id {foreign})");
    assert_eq!(status["reason"], reason.as_str());
    assert!(world.agent.cli(&["status"]).contains(&reason));
    assert!(world.agent.log().contains(&reason), "{}", world.agent.log());
    for _ in 0..5 {
        world.ask_both();
    }
    assert_eq!(world.counts().counter("transmitted"), 0);

    // Once it is gone, the place is ours; nobody has to restart anything.
    let spread = Spread::new(target(false, Probe::Echo), Probe::Echo, 1);
    let churn = Churn::start(&world.cluster.client, spread, Duration::from_millis(20));
    netns.exec("bpftool net detach xdpdrv dev eth0");
    wait_until("native XDP is attached", RESYNC_WITHIN, || world.points(UPLINK) == ALL);
    let outcome = churn.stop();
    assert_eq!(outcome.failed, 0, "{:?}", outcome.errors);
    world.ask_both();
}
