//! Datagrams larger than the MTU, both ways: the receiving socket has checked the checksum of what
//! it was given.

use lbxdp_tests::PodPath;
use lbxdp_tests::traffic::socket::Source;
use lbxdp_tests::traffic::udp;

use crate::scene::{Frontend, Place, Protocol, Scene, TIMEOUT, client_port};

/// Bytes of payload: six fragments.
const BYTES: usize = 8_000;

#[track_caller]
fn large_datagrams_arrive(path: PodPath, arguments: &[&str]) {
    let scene = Scene::of_node_a(path, arguments);
    for place in [Place::Pod, Place::FarPod] {
        for v6 in [false, true] {
            let target = place.target(Frontend::Vip, v6, Protocol::Udp);
            // Resolves what is to be resolved, so that the first fragment waits for nobody.
            scene.check(place, Frontend::Vip, v6, Protocol::Udp);
            let before = scene.status(0);
            for round in 0..5 {
                let payload: String = (0..BYTES)
                    .map(|n| char::from(b'a' + ((n * 7 + n / 97 + round) % 26) as u8))
                    .collect();
                let source = Source::port(client_port());
                let answer =
                    scene.cluster.client.run(|| udp::ask(target, source, &payload, TIMEOUT));
                let answer = answer.unwrap_or_else(|error| panic!("{place:?} {target}: {error}"));
                assert_eq!(answer.name, place.answerer(&scene.cluster), "{target}");
            }
            let changes = scene.status(0).changes_since(&before);
            // Five later fragments each way at the least.
            assert!(changes["counters.fragment_followed"] >= 50, "{target}: {changes:?}");
            assert!(!changes.keys().any(|key| key.starts_with("drops.")), "{target}: {changes:?}");
        }
    }
}

#[test]
fn large_datagrams_go_both_ways() {
    large_datagrams_arrive(PodPath::SameDevice, &[]);
}

#[test]
fn large_datagrams_go_both_ways_over_two_devices() {
    large_datagrams_arrive(PodPath::OtherDevice, &[]);
}

#[test]
fn large_datagrams_go_both_ways_through_tc_alone() {
    large_datagrams_arrive(PodPath::SameDevice, &["--xdp-mode", "off"]);
}
