//! A switch that sends every frame to every host, as one does that has forgotten who is where.

use std::net::SocketAddr;
use std::time::Duration;

use lbxdp_tests::PodPath;
use lbxdp_tests::cluster::UPLINK;
use lbxdp_tests::traffic::frame::Wire;
use lbxdp_tests::traffic::socket::{Source, udp};
use lbxdp_tests::traffic::udp::ask_on;

use crate::scene::{Frontend, Place, Protocol, Scene, TIMEOUT};

#[track_caller]
fn one_node_serves(arguments: &[&str], xdp: bool) {
    let scene = Scene::new(PodPath::SameDevice, arguments);
    for place in [Place::Pod, Place::FarPod] {
        scene.check_frontends(place, Protocol::Udp);
    }
    scene.cluster.switch.flood("br0");
    for v6 in [false, true] {
        for place in [Place::Pod, Place::FarPod] {
            let target = place.target(Frontend::Vip, v6, Protocol::Udp);
            let what = format!("{place:?} {target}");
            let before = scene.statuses();
            let wire = scene.cluster.client.run(|| Wire::open(UPLINK).expect("a packet socket"));
            let socket = scene.cluster.client.run(|| udp(target, Source::ANY, TIMEOUT));
            let socket = socket.expect("a socket");
            let local = socket.local_addr().expect("an address");
            let first = ask_on(&socket, "one").unwrap_or_else(|error| panic!("{what}: {error}"));
            let second = ask_on(&socket, "two").unwrap_or_else(|error| panic!("{what}: {error}"));
            // The server counts what it gets: nobody else sent it another copy of the first.
            assert_eq!(second.request, first.request + 1, "{what}");
            assert_eq!(first.peer, second.peer, "{what}");
            let answers = wire.collect(Duration::from_millis(100), |frame| {
                frame.ends_with(b" one") && is_to(frame, local)
            });
            assert_eq!(answers.expect("no error").len(), 1, "{what}");

            let changes = scene.changes_since(&before);
            assert_eq!(changes[0]["counters.flow_new"], 1, "{what}");
            // The other node sees the two questions, and answers to node-a's address, if any.
            let ignored = changes[1].get("counters.foreign_mac").copied().unwrap_or(0);
            assert!(if xdp { ignored >= 2 } else { ignored == 0 }, "{what}: {changes:?}");
            let others: Vec<_> =
                changes[1].keys().filter(|name| *name != "counters.foreign_mac").collect();
            assert!(others.is_empty(), "{what}: node-b touched a packet: {changes:?}");
        }
    }
    for place in [Place::Pod, Place::FarPod] {
        scene.check_frontends(place, Protocol::Tcp);
    }
    for status in scene.statuses() {
        assert_eq!(status.all_drops(), 0, "{}", status.0);
    }
}

/// Whether a UDP frame without options is for this port.
fn is_to(frame: &[u8], address: SocketAddr) -> bool {
    let port = if address.is_ipv6() { 14 + 40 + 2 } else { 14 + 20 + 2 };
    frame.get(port..port + 2) == Some(&address.port().to_be_bytes())
}

#[test]
fn behind_a_flooding_switch_one_node_serves_each_packet() {
    one_node_serves(&[], true);
}

#[test]
fn behind_a_flooding_switch_tc_serves_only_its_own_frames() {
    one_node_serves(&["--xdp-mode", "off"], false);
}
