//! The first packet after a long silence: no host knows its neighbours' hardware addresses.

use std::time::{Duration, Instant};

use lbxdp_tests::PodPath;
use lbxdp_tests::cluster::UPLINK;
use lbxdp_tests::link::neighbour_line;

use crate::scene::{Frontend, Place, Protocol, Scene};

/// A datagram that is sent once is answered, and a connection opens at once (its first packet is
/// repeated after a second, so one that needs longer has lost it).
#[track_caller]
fn the_first_packet_arrives(path: PodPath, arguments: &[&str]) {
    let scene = Scene::of_node_a(path, arguments);
    let check = |v6, place| {
        for protocol in Protocol::BOTH {
            scene.cluster.flush_neighbours();
            let start = Instant::now();
            scene.check(place, Frontend::Vip, v6, protocol);
            let took = start.elapsed();
            assert!(took < Duration::from_millis(900), "{place:?} {v6} {protocol:?}: {took:?}");
        }
    };
    for v6 in [false, true] {
        for place in [Place::FarPod, Place::Pod] {
            check(v6, place);
        }
    }
    // A client that need not ask for the node does not introduce itself by that: the node has to
    // find it for the answer.
    let node = scene.cluster.node(0);
    let mac = node.netns.mac(UPLINK);
    scene
        .cluster
        .client
        .ip_batch([false, true].map(|v6| neighbour_line(UPLINK, node.ip(v6), &mac)));
    for v6 in [false, true] {
        for place in [Place::FarPod, Place::Pod] {
            check(v6, place);
            scene.cluster.flush_neighbours();
            let before = scene.status(0);
            scene.check(place, Frontend::Vip, v6, Protocol::Udp);
            let changes = scene.status(0).changes_since(&before);
            if place == Place::FarPod {
                assert_eq!(changes["counters.redirected_neigh"], 2, "tc resolves both ways");
            }
            assert!(changes.keys().all(|name| !name.starts_with("drops.")), "{changes:?}");
        }
    }
}

#[test]
fn the_first_packet_is_answered_over_the_same_device() {
    the_first_packet_arrives(PodPath::SameDevice, &[]);
}

#[test]
fn the_first_packet_is_answered_over_another_device() {
    the_first_packet_arrives(PodPath::OtherDevice, &[]);
}

#[test]
fn the_first_packet_is_answered_over_an_overlay_that_learns() {
    the_first_packet_arrives(PodPath::VxlanLearning, &[]);
}

#[test]
fn the_first_packet_is_answered_by_tc_alone() {
    the_first_packet_arrives(PodPath::SameDevice, &["--xdp-mode", "off"]);
}
