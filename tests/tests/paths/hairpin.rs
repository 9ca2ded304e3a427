//! A pod asks for an external address of its own Service, which leads out of the node and back.

use lbxdp_tests::PodPath;
use lbxdp_tests::traffic::socket::Source;
use lbxdp_tests::traffic::transfer::Transfer;

use crate::router;
use crate::scene::{self, Frontend, Place, Protocol, Scene, ask, client_port};

#[track_caller]
fn a_pod_reaches_itself(arguments: &[&str]) {
    let cluster = scene::cluster(PodPath::SameDevice);
    for node in &cluster.nodes {
        node.netns.strict_rp_filter();
    }
    let _router = router::attach(&cluster);
    let objects = scene::places(&cluster);
    let scene = Scene::start(cluster, PodPath::SameDevice, &objects, arguments, 1);
    let pod = &scene.cluster.node(0).pods[0];
    for v6 in [false, true] {
        for protocol in Protocol::BOTH {
            let vip = Place::Pod.target(Frontend::Vip, v6, protocol);
            for round in 0..5 {
                let answer = ask(&pod.netns, vip, Source::port(client_port()), protocol);
                let answer = answer.unwrap_or_else(|e| panic!("round {round}: {vip}: {e}"));
                assert_eq!(answer.name, pod.name, "{vip}");
                assert_eq!(answer.peer.ip(), vip.ip(), "a pod that calls itself sees the frontend");
            }
            // The other pod's Service, the same way round.
            let far = Place::FarPod.target(Frontend::Vip, v6, protocol);
            let answer = ask(&pod.netns, far, Source::port(client_port()), protocol);
            let answer = answer.unwrap_or_else(|error| panic!("{far}: {error}"));
            assert_eq!(answer.name, scene.cluster.node(1).pods[0].name, "{far}");
            assert_eq!(answer.peer.ip(), scene.cluster.node(0).ip(v6), "{far}");
        }
        for place in [Place::Pod, Place::FarPod] {
            let vip = place.target(Frontend::Vip, v6, Protocol::Tcp);
            let report = pod.netns.run(|| Transfer::new(vip, 2 << 20).run());
            assert_eq!((report.bytes, &report.errors[..]), (4 << 20, &[][..]), "{place:?} {vip}");
        }
    }
    for status in scene.statuses() {
        assert_eq!(status.all_drops(), 0, "{}", status.0);
    }
}

#[test]
fn a_pod_reaches_its_own_service_around_the_router() {
    a_pod_reaches_itself(&[]);
}

#[test]
fn a_pod_reaches_its_own_service_with_tc_alone() {
    a_pod_reaches_itself(&["--xdp-mode", "off"]);
}
