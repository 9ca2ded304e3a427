//! Somebody at the switch pretends to be a pod and answers a client through its node.

use std::time::Duration;

use lbxdp_tests::cluster::UPLINK;
use lbxdp_tests::traffic::frame::{self, Segment, Wire};
use lbxdp_tests::traffic::socket::{Source, udp};
use lbxdp_tests::traffic::udp::ask_on;
use lbxdp_tests::{Netns, PodPath, link};

use crate::scene::{Frontend, Place, Protocol, Scene, TIMEOUT, UDP, client};

#[track_caller]
fn a_stranger_speaks_for_no_pod(arguments: &[&str]) {
    let scene = Scene::of_node_a(PodPath::SameDevice, arguments);
    let cluster = &scene.cluster;
    let node = cluster.node(0);
    let stranger = Netns::new("stranger");
    link::leg((&stranger, UPLINK), (&cluster.switch, "stranger"), "br0");
    cluster.switch.wait_links_up();
    let mac = |netns: &Netns| frame::parse_mac(&netns.mac(UPLINK)).expect("a MAC address");
    let (node_mac, own_mac) = (mac(&node.netns), mac(&stranger));
    let wire = stranger.run(|| Wire::open(UPLINK).expect("a packet socket"));
    for v6 in [false, true] {
        let vip = Place::Pod.target(Frontend::Vip, v6, Protocol::Udp);
        let socket = cluster.client.run(|| udp(vip, Source::ANY, TIMEOUT)).expect("a socket");
        let port = socket.local_addr().expect("an address").port();
        ask_on(&socket, "the truth").unwrap_or_else(|error| panic!("{vip}: {error}"));

        let seen = cluster.client.run(|| Wire::open(UPLINK).expect("a packet socket"));
        let before = scene.status(0);
        let pod = (node.pods[0].ip(v6), UDP).into();
        let to = (client(v6), port).into();
        let lie = frame::build(node_mac, own_mac, pod, to, Segment::Udp(b"a lie"));
        wire.send(&lie).expect("sent");
        // The node forwards it, as any router would. Its source is nobody the client speaks with.
        let arrived = seen.receive(TIMEOUT, |frame| frame.ends_with(b"a lie"));
        assert!(arrived.expect("no error").is_some(), "{vip}: the node forwards it");
        socket.set_read_timeout(Some(Duration::from_millis(200))).expect("a timeout");
        let mut buffer = [0; 64];
        if let Ok(count) = socket.recv(&mut buffer) {
            let text = String::from_utf8_lossy(&buffer[..count]).into_owned();
            panic!("{vip} said: {text}");
        }
        let changes = scene.status(0).changes_since(&before);
        assert!(changes.is_empty(), "{vip}: {changes:?}");
        socket.set_read_timeout(Some(TIMEOUT)).expect("a timeout");
        ask_on(&socket, "still the truth").unwrap_or_else(|error| panic!("{vip}: {error}"));
    }
}

#[test]
fn a_reply_from_outside_in_a_pods_name_stays_what_it_is() {
    a_stranger_speaks_for_no_pod(&[]);
}

#[test]
fn tc_alone_translates_no_reply_from_outside() {
    a_stranger_speaks_for_no_pod(&["--xdp-mode", "off"]);
}
