//! Bulk in both directions, every byte compared, on whatever crosses tc: there packets are large,
//! in pieces, and have checksums that are not computed yet. Pods keep their default offloads.

use lbxdp_tests::PodPath;
use lbxdp_tests::traffic::transfer::Transfer;

use crate::scene::{Frontend, Place, Protocol, Scene};

const BYTES: u64 = 20 << 20;

/// Moves `bytes` each way through a Service's VIP.
#[track_caller]
pub fn transfer(scene: &Scene, place: Place, v6: bool, bytes: u64) {
    let target = place.target(Frontend::Vip, v6, Protocol::Tcp);
    let report = scene.cluster.client.run(|| Transfer::new(target, bytes).run());
    assert_eq!((report.bytes, &report.errors[..]), (2 * bytes, &[][..]), "{place:?} {target}");
}

#[track_caller]
fn bulk_arrives_intact(path: PodPath, arguments: &[&str], places: &[Place]) {
    let scene = Scene::of_node_a(path, arguments);
    for place in places {
        for v6 in [false, true] {
            transfer(&scene, *place, v6, BYTES);
        }
    }
    for status in scene.statuses() {
        // The overlay takes a little less than the client's network, which the client is told.
        let told = if path == PodPath::Vxlan { status.drops("too_big") } else { 0 };
        assert_eq!(status.all_drops(), told, "{}", status.0);
        assert_eq!(status.counter("icmp_sent"), told, "{}", status.0);
    }
}

#[test]
fn bulk_arrives_intact_at_a_local_pod_and_host() {
    bulk_arrives_intact(PodPath::SameDevice, &[], &[Place::Pod, Place::Host]);
}

#[test]
fn bulk_arrives_intact_through_tc_alone() {
    let places = [Place::Pod, Place::FarPod];
    bulk_arrives_intact(PodPath::SameDevice, &["--xdp-mode", "off"], &places);
}

#[test]
fn bulk_arrives_intact_through_clsact_filters() {
    let arguments = ["--xdp-mode", "off", "--tc-mode", "clsact"];
    bulk_arrives_intact(PodPath::OtherDevice, &arguments, &[Place::Pod, Place::FarPod]);
}

#[test]
fn bulk_arrives_intact_over_an_overlay() {
    bulk_arrives_intact(PodPath::Vxlan, &[], &[Place::FarPod]);
}

#[test]
fn bulk_arrives_intact_over_xdp_transmission_and_redirection() {
    bulk_arrives_intact(PodPath::OtherDevice, &[], &[Place::FarHost, Place::FarPod]);
}
