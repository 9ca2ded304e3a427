//! VIP, NodePort and ClusterIP from outside, to every kind of backend, over every kind of way.

use std::collections::BTreeMap;

use lbxdp_tests::PodPath;

use crate::scene::{Place, Protocol, Scene, counted};

/// Frontends times families: questions that [`Scene::check_frontends`] asks.
const QUESTIONS: i128 = 6;

/// What node-a counts for one datagram and its answer.
type Count = BTreeMap<String, i128>;

/// The backend is on the node: translated on the way in, and back on the way out.
fn passed_up() -> Count {
    counted([("flow_new", 1), ("flow_hit", 1), ("passed_local", 1), ("reply_translated", 1)])
}

/// XDP sends both back out of the device they came by.
fn transmitted() -> Count {
    counted([("flow_new", 1), ("flow_hit", 1), ("transmitted", 2)])
}

/// XDP sends both out of the other device.
fn redirected() -> Count {
    counted([("flow_new", 1), ("flow_hit", 1), ("redirected", 2)])
}

/// XDP finds that it cannot send to the overlay and leaves the packet to tc, which meets its flow;
/// the answer comes by the overlay device, where there is only tc.
fn overlaid() -> Count {
    counted([("flow_new", 1), ("flow_hit", 2), ("deferred", 1), ("redirected_neigh", 2)])
}

/// tc does it all.
fn by_tc() -> Count {
    counted([("flow_new", 1), ("flow_hit", 1), ("redirected_neigh", 2)])
}

#[track_caller]
fn every_backend_answers(path: PodPath, arguments: &[&str], far_pod: Count, far_host: Count) {
    let scene = Scene::new(path, arguments);
    // Neighbours get to know each other first.
    for place in Place::ALL {
        scene.check_frontends(place, Protocol::Udp);
    }
    let expected = |place| match place {
        Place::Pod | Place::Host => passed_up(),
        Place::FarPod => far_pod.clone(),
        Place::FarHost => far_host.clone(),
    };
    for place in Place::ALL {
        let before = scene.statuses();
        scene.check_frontends(place, Protocol::Udp);
        let [node_a, node_b] = <[Count; 2]>::try_from(scene.changes_since(&before)).expect("two");
        let expected: Count =
            expected(place).into_iter().map(|(name, n)| (name, n * QUESTIONS)).collect();
        assert_eq!(node_a, expected, "{place:?} over UDP");
        assert_eq!(node_b, Count::new(), "{place:?}: node-b only sees what is translated already");
    }
    for place in Place::ALL {
        let before = scene.statuses_at_rest();
        scene.check_frontends(place, Protocol::Tcp);
        let changes = scene.changes_since(&before);
        // How many packets a connection has depends on the moment; which programs do it does not.
        let names: Vec<_> = changes[0].keys().collect();
        assert_eq!(names, expected(place).keys().collect::<Vec<_>>(), "{place:?} over TCP");
        assert_eq!(changes[0]["counters.flow_new"], QUESTIONS, "{place:?} over TCP");
        assert_eq!(changes[1], Count::new(), "{place:?} over TCP");
    }
}

#[test]
fn backends_behind_the_same_device_are_reached_by_xdp_transmission() {
    every_backend_answers(PodPath::SameDevice, &[], transmitted(), transmitted());
}

#[test]
fn backends_behind_another_device_are_reached_by_xdp_redirection() {
    every_backend_answers(PodPath::OtherDevice, &[], redirected(), transmitted());
}

#[test]
fn backends_behind_an_overlay_are_reached_through_tc() {
    every_backend_answers(PodPath::Vxlan, &[], overlaid(), transmitted());
}

#[test]
fn tc_alone_reaches_backends_behind_the_same_device() {
    every_backend_answers(PodPath::SameDevice, &["--xdp-mode", "off"], by_tc(), by_tc());
}

#[test]
fn clsact_filters_alone_reach_backends_behind_an_overlay() {
    let arguments = ["--xdp-mode", "off", "--tc-mode", "clsact"];
    every_backend_answers(PodPath::Vxlan, &arguments, by_tc(), by_tc());
}

#[test]
fn clsact_filters_finish_what_xdp_cannot() {
    every_backend_answers(PodPath::Vxlan, &["--tc-mode", "clsact"], overlaid(), transmitted());
}
