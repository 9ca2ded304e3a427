//! `externalTrafficPolicy: Local`, and Services without endpoints.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use lbxdp_tests::cluster::CLUSTER_IPS_V4;
use lbxdp_tests::manifests::Endpoint;
use lbxdp_tests::traffic::socket::Source;
use lbxdp_tests::traffic::{http, udp};
use lbxdp_tests::{Cluster, PodPath, Spec};

use crate::scene::{self, Frontend, Protocol, Scene, ask, check_refused, client, client_port};

/// Three nodes, endpoints on two of them.
const LOCAL: u16 = 11;
/// No endpoint anywhere.
const EMPTY: u16 = 12;
/// The same with `externalTrafficPolicy: Local`.
const EMPTY_LOCAL: u16 = 13;

#[track_caller]
fn scene(arguments: &[&str]) -> Scene {
    let cluster = Cluster::new(&Spec { pods: vec![1, 1, 1], path: PodPath::SameDevice, mtu: None });
    let served: Vec<_> = cluster.nodes[..2].iter().flat_map(Endpoint::pods_of).collect();
    let mut objects = scene::service("local", LOCAL).external_local().with(&served);
    objects.extend(scene::service("empty", EMPTY).with(&[]));
    objects.extend(scene::service("empty-local", EMPTY_LOCAL).external_local().with(&[]));
    Scene::start(cluster, PodPath::SameDevice, &objects, arguments, 3)
}

/// The external frontends of a Service on one node, which the client's route leads to.
fn external(scene: &Scene, number: u16, node: usize) -> Vec<(SocketAddr, Protocol)> {
    let mut targets = Vec::new();
    for v6 in [false, true] {
        for protocol in Protocol::BOTH {
            let vip = Frontend::Vip.of(number, v6, protocol);
            scene.cluster.route_via(&format!("{}/{}", vip.ip(), if v6 { 128 } else { 32 }), node);
            let mut node_port = Frontend::NodePort.of(number, v6, protocol);
            node_port.set_ip(scene.cluster.node(node).ip(v6));
            targets.extend([(vip, protocol), (node_port, protocol)]);
        }
    }
    targets
}

#[track_caller]
fn only_local_endpoints_serve(scene: &Scene) {
    for node in [0, 1] {
        let pod = &scene.cluster.node(node).pods[0];
        for (target, protocol) in external(scene, LOCAL, node) {
            for _ in 0..4 {
                let source = Source::port(client_port());
                let answer = ask(&scene.cluster.client, target, source, protocol);
                let answer = answer.unwrap_or_else(|error| panic!("{target}: {error}"));
                assert_eq!(answer.name, pod.name, "{target} {protocol:?}");
                let client = SocketAddr::new(client(target.is_ipv6()), source.port);
                assert_eq!(answer.peer, client, "{target} {protocol:?}");
            }
        }
    }

    // The third node has none: silence.
    let before = scene.statuses();
    let targets = external(scene, LOCAL, 2);
    let patience = Duration::from_millis(300);
    for (target, protocol) in &targets {
        let error = scene.cluster.client.run(|| match protocol {
            Protocol::Tcp => http::who(*target, Source::ANY, patience).expect_err("silence"),
            Protocol::Udp => {
                udp::ask(*target, Source::ANY, "hello", patience).expect_err("silence")
            }
        });
        let silent = matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock);
        assert!(silent, "{target} {protocol:?}: {error}");
    }
    let changes = scene.changes_since(&before);
    let drops = i128::try_from(targets.len()).expect("few");
    assert_eq!(changes[2].keys().collect::<Vec<_>>(), ["drops.no_local_endpoint"]);
    assert_eq!(changes[2]["drops.no_local_endpoint"], drops);

    // The policy is one for traffic from outside to external addresses.
    scene.cluster.route_via(CLUSTER_IPS_V4, 2);
    let inside = Frontend::ClusterIp.of(LOCAL, false, Protocol::Tcp);
    ask(&scene.cluster.client, inside, Source::ANY, Protocol::Tcp).expect("an answer");
    scene.cluster.route_via(CLUSTER_IPS_V4, 0);
}

#[track_caller]
fn nobody_refuses_at_once(scene: &Scene) {
    for number in [EMPTY, EMPTY_LOCAL] {
        let mut targets = external(scene, number, 0);
        for v6 in [false, true] {
            targets.extend(Protocol::BOTH.map(|p| (Frontend::ClusterIp.of(number, v6, p), p)));
        }
        check_refused(scene, &targets, "no_endpoint");
    }
}

#[test]
fn a_node_without_endpoints_is_silent_and_a_service_without_endpoints_refuses() {
    let scene = scene(&[]);
    only_local_endpoints_serve(&scene);
    nobody_refuses_at_once(&scene);
}

#[test]
fn tc_alone_is_silent_without_local_endpoints_and_refuses_without_any() {
    let scene = scene(&["--xdp-mode", "off"]);
    only_local_endpoints_serve(&scene);
    nobody_refuses_at_once(&scene);
}
