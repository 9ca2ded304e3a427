//! Nodes that are strict about what they take: reverse path filters, and a firewall that drops
//! what belongs to no connection it has seen.

use lbxdp_tests::{Cluster, PodPath};

use crate::bulk;
use crate::scene::{self, Place, Protocol, Scene};

pub const NO_INVALID: &str = "table inet strict { \
    chain forward { type filter hook forward priority 0; ct state invalid counter drop; }; \
    chain input { type filter hook input priority 0; ct state invalid counter drop; }; \
    chain output { type filter hook output priority 0; ct state invalid counter drop; }; }";

#[track_caller]
fn strict(cluster: Cluster, path: PodPath, arguments: &[&str]) {
    for node in &cluster.nodes {
        node.netns.strict_rp_filter();
        node.netns.nft(NO_INVALID);
    }
    let objects = scene::places(&cluster);
    let scene = Scene::start(cluster, path, &objects, arguments, 2);
    for place in Place::ALL {
        for protocol in Protocol::BOTH {
            scene.check_frontends(place, protocol);
        }
        for v6 in [false, true] {
            bulk::transfer(&scene, place, v6, 2 << 20);
        }
    }
    for node in &scene.cluster.nodes {
        let rules = node.netns.exec("nft list table inet strict");
        assert_eq!(rules.matches("counter packets 0 ").count(), 3, "{}: {rules}", node.name);
    }
}

#[test]
fn strict_nodes_drop_nothing_over_the_same_device() {
    strict(scene::cluster(PodPath::SameDevice), PodPath::SameDevice, &[]);
}

#[test]
fn strict_nodes_drop_nothing_over_an_overlay() {
    strict(scene::cluster(PodPath::Vxlan), PodPath::Vxlan, &[]);
}

#[test]
fn strict_nodes_drop_nothing_with_tc_alone() {
    strict(scene::cluster(PodPath::Vxlan), PodPath::Vxlan, &["--xdp-mode", "off"]);
}
