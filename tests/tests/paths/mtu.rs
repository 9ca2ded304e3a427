//! The way to the backend takes smaller packets than the way from the client.

use lbxdp_tests::PodPath;
use lbxdp_tests::cluster::BACK_LINK;

use crate::bulk;
use crate::scene::{self, Frontend, Place, Protocol, Scene};

#[track_caller]
fn the_client_learns_the_smaller_mtu(arguments: &[&str]) {
    let cluster = scene::cluster(PodPath::OtherDevice);
    for node in &cluster.nodes {
        node.netns.ip(&format!("link set {BACK_LINK} mtu 1300"));
        cluster.switch.ip(&format!("link set {}-back mtu 1300", node.name));
    }
    let objects = scene::places(&cluster);
    let scene = Scene::start(cluster, PodPath::OtherDevice, &objects, arguments, 1);
    for v6 in [false, true] {
        let before = scene.status(0);
        bulk::transfer(&scene, Place::FarPod, v6, 4 << 20);
        let changes = scene.status(0).changes_since(&before);
        assert!(changes["drops.too_big"] >= 1, "{changes:?}");
        assert_eq!(changes["counters.icmp_sent"], changes["drops.too_big"], "{changes:?}");
        let vip = Place::FarPod.target(Frontend::Vip, v6, Protocol::Tcp).ip();
        let route = scene.cluster.client.ip(&format!("route get {vip}"));
        assert!(route.contains("mtu 1300"), "{route}");
    }
}

#[test]
fn a_client_learns_from_xdp_that_the_backend_is_behind_a_smaller_mtu() {
    the_client_learns_the_smaller_mtu(&[]);
}

#[test]
fn a_client_learns_from_tc_that_the_backend_is_behind_a_smaller_mtu() {
    the_client_learns_the_smaller_mtu(&["--xdp-mode", "off"]);
}
