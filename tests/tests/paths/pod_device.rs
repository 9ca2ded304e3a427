//! Pods whose sockets no hook sees: tc on their devices serves them, and nothing else does.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use lbxdp_agent::pins::Pins;
use lbxdp_agent::sys::Point;
use lbxdp_tests::agent::Status;
use lbxdp_tests::cluster::{Pod, UPLINK};
use lbxdp_tests::link::{address_line, veth};
use lbxdp_tests::manifests::Endpoint;
use lbxdp_tests::process::wait_until;
use lbxdp_tests::traffic::socket::{Source, udp_listener};
use lbxdp_tests::traffic::transfer::Transfer;
use lbxdp_tests::traffic::{Answer, http, udp};
use lbxdp_tests::{AgentOptions, Cluster, Netns, PodPath, Spec};
use serde_json::Value;

use crate::scene::{self, Frontend, Place, Protocol, Scene, TIMEOUT, ask, client_port};
use crate::strict::NO_INVALID;

const POD_DEVICES: [&str; 2] = ["--pod-device", "veth-*"];
/// What a packet that ends in silence is waited for.
const PATIENCE: Duration = Duration::from_millis(300);
const AT_ONCE: Duration = Duration::from_millis(500);

/// Two pods on node-a, of which the second has no Service, and one on node-b.
fn cluster() -> Cluster {
    Cluster::new(&Spec { pods: vec![2, 1], ..Spec::default() })
}

/// Agents on both nodes, which are strict about what they take.
#[track_caller]
fn strict_scene(cluster: Cluster, objects: &[Value], arguments: &[&str]) -> Scene {
    for node in &cluster.nodes {
        node.netns.strict_rp_filter();
        // What the kernel tells a pod about another pod on its bridge is invalid to conntrack.
        let output = "hook output priority 0; ";
        let but_redirects = format!("{output}icmpv6 type nd-redirect accept; ");
        assert!(NO_INVALID.contains(output));
        node.netns.nft(&NO_INVALID.replace(output, &but_redirects));
    }
    let arguments = [&POD_DEVICES, arguments].concat();
    Scene::start(cluster, PodPath::SameDevice, objects, &arguments, 2)
}

/// No packet was in the way of a firewall, and none was dropped by a program.
#[track_caller]
fn nothing_was_lost(scene: &Scene) {
    for node in &scene.cluster.nodes {
        let rules = node.netns.exec("nft list table inet strict");
        assert_eq!(rules.matches("counter packets 0 ").count(), 3, "{}: {rules}", node.name);
    }
    for status in scene.statuses() {
        assert_eq!(status.all_drops(), 0, "{}", status.0);
    }
}

/// No program is on a pod's device but ours at tc.
#[track_caller]
fn no_xdp_on_pods(scene: &Scene) {
    for node in &scene.cluster.nodes {
        for pod in &node.pods {
            let link = node.netns.ip(&format!("-d link show dev {}", pod.node_device));
            assert!(!link.contains("xdp"), "{link}");
        }
    }
}

/// Asks as a pod and checks who answers and whom it saw.
#[track_caller]
fn check(caller: &Pod, target: SocketAddr, protocol: Protocol, answerer: &str) -> Answer {
    let what = format!("{} asks {target} over {protocol:?}", caller.name);
    let source = Source::port(client_port());
    let answer = ask(&caller.netns, target, source, protocol);
    let answer = answer.unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(answer.name, answerer, "{what}");
    if answerer == caller.name {
        assert_eq!(answer.peer.ip(), target.ip(), "{what}: itself, as the frontend");
        assert!((61_000..=65_535).contains(&answer.peer.port()), "{what}: {}", answer.peer);
    } else {
        let pod = SocketAddr::new(caller.ip(target.is_ipv6()), source.port);
        assert_eq!(answer.peer, pod, "{what}: the backend sees the pod");
    }
    answer
}

/// Every frontend of every place, from a pod without a Service and from the pod of the place.
#[track_caller]
fn pods_reach_everything(scene: &Scene) {
    let [itself, other] = &scene.cluster.node(0).pods[..] else { panic!("two pods") };
    for place in Place::ALL {
        let answerer = place.answerer(&scene.cluster);
        for v6 in [false, true] {
            for protocol in Protocol::BOTH {
                // A UDP server of the node that is bound to no address answers from that of the
                // device towards the pod, whoever was asked; kube-proxy's clients have no answer
                // either.
                if (place, protocol) == (Place::Host, Protocol::Udp) {
                    continue;
                }
                for frontend in Frontend::ALL {
                    let target = place.target(frontend, v6, protocol);
                    for caller in [itself, other] {
                        check(caller, target, protocol, answerer);
                    }
                }
            }
            // TCP in both directions, in packets larger than the MTU.
            for (caller, frontend) in [
                (other, Frontend::ClusterIp),
                (itself, Frontend::ClusterIp),
                (itself, Frontend::Vip),
            ] {
                let target = place.target(frontend, v6, Protocol::Tcp);
                let report = caller.netns.run(|| Transfer::new(target, 2 << 20).run());
                let what = format!("{} {target}", caller.name);
                assert_eq!((report.bytes, &report.errors[..]), (4 << 20, &[][..]), "{what}");
            }
        }
        // From outside it is as ever.
        for protocol in Protocol::BOTH {
            scene.check_frontends(place, protocol);
        }
    }
}

#[test]
fn routed_pods_reach_every_backend_and_themselves() {
    let cluster = cluster();
    let objects = scene::places(&cluster);
    let scene = strict_scene(cluster, &objects, &[]);
    pods_reach_everything(&scene);
    nothing_was_lost(&scene);
    no_xdp_on_pods(&scene);
    for (node, agent) in scene.cluster.nodes.iter().zip(&scene.agents) {
        for pod in &node.pods {
            let status = agent.status().0;
            let lines = status["devices"].as_array().expect("a list");
            let line = lines.iter().find(|line| line["name"] == pod.node_device.as_str());
            let line = line.unwrap_or_else(|| panic!("no {} in {status}", pod.node_device));
            assert_eq!((&line["xdp"], &line["tc"]), (&"none".into(), &"tcx".into()), "{line}");
            assert_eq!(line["reason"], "a pod's device is left to tc");
            let log = agent.log();
            assert!(log.contains(&format!("device=\"{}\"", pod.node_device)), "{log}");
        }
        let (_, metrics) = agent.get("/metrics").expect("metrics");
        let count = format!("lbxdp_pod_devices_attached {}\n", node.pods.len());
        assert!(metrics.contains(&count), "{metrics}");
        assert!(!metrics.contains("veth-"), "no series of a pod's own: {metrics}");
    }
}

#[test]
fn pods_on_a_bridge_reach_every_backend_and_themselves() {
    let cluster = cluster();
    cluster.bridge_pods();
    let objects = scene::places(&cluster);
    let scene = strict_scene(cluster, &objects, &[]);
    pods_reach_everything(&scene);
    nothing_was_lost(&scene);
    no_xdp_on_pods(&scene);
}

#[test]
fn pods_reach_every_backend_through_clsact_filters() {
    let cluster = cluster();
    let objects = scene::places(&cluster);
    let scene = strict_scene(cluster, &objects, &["--xdp-mode", "off", "--tc-mode", "clsact"]);
    pods_reach_everything(&scene);
    nothing_was_lost(&scene);
    no_xdp_on_pods(&scene);
    let status = scene.agents[0].status().0;
    for pod in &scene.cluster.node(0).pods {
        let lines = status["devices"].as_array().expect("a list");
        let line = lines.iter().find(|line| line["name"] == pod.node_device.as_str());
        let line = line.unwrap_or_else(|| panic!("no {} in {status}", pod.node_device));
        assert_eq!(line["tc"], "clsact", "{line}");
        assert_eq!(line["reason"], "a pod's device is left to tc", "{line}");
    }
}

/// One unconnected socket per pod, all with one port, to two frontends of one backend: each answer
/// comes from whom was asked.
#[test]
fn one_port_serves_two_frontends_of_one_backend() {
    let cluster = cluster();
    let objects = scene::places(&cluster);
    let scene = strict_scene(cluster, &objects, &[]);
    let port = client_port();
    for v6 in [false, true] {
        let any: IpAddr =
            if v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        let sockets: Vec<_> = scene.cluster.node(0).pods[1..]
            .iter()
            .chain(&scene.cluster.node(1).pods)
            .map(|pod| {
                let socket = pod.netns.run(|| udp_listener(SocketAddr::new(any, port)));
                let socket = socket.expect("a socket");
                socket.set_read_timeout(Some(TIMEOUT)).expect("a timeout");
                (pod, socket)
            })
            .collect();
        for place in [Place::Pod, Place::FarPod] {
            let targets = [Frontend::ClusterIp, Frontend::Vip]
                .map(|frontend| place.target(frontend, v6, Protocol::Udp));
            for round in 0..3 {
                for (pod, socket) in &sockets {
                    if pod.name == place.answerer(&scene.cluster) {
                        continue;
                    }
                    for target in targets {
                        socket.send_to(b"hello", target).expect("sent");
                    }
                    let mut buffer = [0; 200];
                    let mut from: Vec<_> = targets
                        .iter()
                        .map(|_| {
                            let received = socket.recv_from(&mut buffer);
                            let what = || format!("{} {targets:?} round {round}", pod.name);
                            received.unwrap_or_else(|error| panic!("{}: {error}", what())).1
                        })
                        .collect();
                    from.sort();
                    let mut expected = targets.to_vec();
                    expected.sort();
                    assert_eq!(from, expected, "{}", pod.name);
                }
            }
        }
    }
    assert!(scene.status(0).counter("port_changed") > 0);
    nothing_was_lost(&scene);
}

/// `externalTrafficPolicy: Local`, endpoints on node-b alone.
const EXTERNAL: u16 = 21;
/// `internalTrafficPolicy: Local`, endpoints on both nodes.
const INTERNAL: u16 = 22;
/// `internalTrafficPolicy: Local`, endpoints on node-b alone.
const INTERNAL_ELSEWHERE: u16 = 23;
/// No endpoint anywhere.
const EMPTY: u16 = 24;

#[test]
fn pods_are_clients_on_this_node_to_every_policy() {
    let cluster = cluster();
    let far = Endpoint::pods_of(cluster.node(1));
    let all = Endpoint::pods(&cluster);
    let mut objects = scene::service("external", EXTERNAL).external_local().with(&far);
    objects.extend(scene::service("internal", INTERNAL).internal_local().with(&all));
    let elsewhere = scene::service("internal-elsewhere", INTERNAL_ELSEWHERE);
    objects.extend(elsewhere.internal_local().with(&far));
    objects.extend(scene::service("empty", EMPTY).with(&[]));
    let scene = strict_scene(cluster, &objects, &[]);
    let [first, caller] = &scene.cluster.node(0).pods[..] else { panic!("two pods") };
    let far = &scene.cluster.node(1).pods[0];

    for v6 in [false, true] {
        for protocol in Protocol::BOTH {
            // The cluster's endpoints, though from outside there is none.
            for frontend in Frontend::ALL {
                check(caller, frontend.of(EXTERNAL, v6, protocol), protocol, &far.name);
            }
            // The node's own, however many there are elsewhere.
            let cluster_ip = Frontend::ClusterIp.of(INTERNAL, v6, protocol);
            let mut names = [0; 2];
            for _ in 0..8 {
                let source = Source::port(client_port());
                let answer = ask(&caller.netns, cluster_ip, source, protocol).expect("an answer");
                let index = [first, caller].iter().position(|pod| pod.name == answer.name);
                names[index.unwrap_or_else(|| panic!("{cluster_ip}: {}", answer.name))] += 1;
            }
            println!("{cluster_ip}: {names:?}");
        }
        silent_places(&scene, caller, v6);
        refused_places(&scene, caller, v6);
        // A service address answers, whatever it serves.
        for frontend in [Frontend::ClusterIp, Frontend::Vip] {
            let address = frontend.of(EMPTY, v6, Protocol::Tcp).ip();
            let before = scene.status(0);
            caller.netns.exec(&format!("ping -c 1 -W 2 {address}"));
            let changes = begun(&scene, &before);
            assert_eq!(changes, scene::counted([("echo_answered", 1)]), "{address}");
        }
    }
}

/// What the first node has counted since, without packets of flows that were there: connections of
/// earlier questions may still be closing.
fn begun(scene: &Scene, before: &Status) -> BTreeMap<String, i128> {
    const FOLLOWING: [&str; 4] = ["flow_hit", "transmitted", "passed_local", "reply_translated"];
    let mut changes = scene.status(0).changes_since(before);
    changes
        .retain(|name, _| FOLLOWING.iter().all(|counter| *name != format!("counters.{counter}")));
    changes
}

/// What ends in silence, and under which reason.
#[track_caller]
fn silent_places(scene: &Scene, caller: &Pod, v6: bool) {
    for protocol in Protocol::BOTH {
        let nobody = SocketAddr::new(Frontend::Vip.of(EXTERNAL, v6, protocol).ip(), 9);
        let elsewhere = Frontend::ClusterIp.of(INTERNAL_ELSEWHERE, v6, protocol);
        for (target, reason) in [(elsewhere, "no_local_endpoint"), (nobody, "unknown_port")] {
            let before = scene.status(0);
            let error = caller.netns.run(|| match protocol {
                Protocol::Tcp => http::who(target, Source::ANY, PATIENCE),
                Protocol::Udp => udp::ask(target, Source::ANY, "hello", PATIENCE),
            });
            let error = error.expect_err("silence");
            let is_silent = matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock);
            assert!(is_silent, "{target} {protocol:?}: {error}");
            let changes = begun(scene, &before);
            assert_eq!(changes, [(format!("drops.{reason}"), 1)].into(), "{target} {protocol:?}");
        }
    }
    // The contrast: the same address from outside.
    let vip = Frontend::Vip.of(EXTERNAL, v6, Protocol::Udp);
    let outside = &scene.cluster.client;
    outside.run(|| udp::ask(vip, Source::ANY, "hello", PATIENCE)).expect_err("silence");
}

/// What is refused, and how soon.
#[track_caller]
fn refused_places(scene: &Scene, caller: &Pod, v6: bool) {
    for protocol in Protocol::BOTH {
        let unknown = SocketAddr::new(Frontend::ClusterIp.of(EMPTY, v6, protocol).ip(), 9);
        let empty = Frontend::ALL.map(|frontend| frontend.of(EMPTY, v6, protocol));
        for target in empty.into_iter().chain([unknown]) {
            let start = Instant::now();
            let error = ask(&caller.netns, target, Source::ANY, protocol).expect_err("nobody");
            let what = format!("{target} {protocol:?} after {:?}: {error}", start.elapsed());
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{what}");
            // The answer to a SYN comes while `connect` still holds the socket, and the kernel
            // heeds only what the next one gets, a second later.
            let limit = if protocol == Protocol::Tcp { AT_ONCE * 4 } else { AT_ONCE };
            assert!(start.elapsed() < limit, "{what}");
        }
    }
    assert!(scene.status(0).drops("no_endpoint") > 0 && scene.status(0).drops("unknown_port") > 0);
}

/// Where programs run on a device of the first node, by its pins.
fn points(scene: &Scene, device: &str) -> Vec<Point> {
    let links = Pins::new(scene.agents[0].pin_path()).links().expect("the pins are read");
    let here = links.iter().filter(|link| link.device == device && link.info.ifindex != 0);
    here.map(|link| link.point).collect()
}

const BOTH_POINTS: [Point; 2] = [Point::PodEgress, Point::PodIngress];
const WITHIN: Duration = Duration::from_secs(1);

#[test]
fn pods_that_come_are_served_within_a_second_and_stay_so_without_an_agent() {
    let cluster = cluster();
    let objects = scene::places(&cluster);
    let mut scene = strict_scene(cluster, &objects, &[]);
    let device = "veth-a-9";
    for _ in 0..2 {
        let node = scene.cluster.node(0);
        let late = Netns::new("pod-late");
        let (v4, v6): (Ipv4Addr, Ipv6Addr) =
            ("10.244.1.99".parse().expect("v4"), "fd00:10:244:1::99".parse().expect("v6"));
        veth((&late, UPLINK), (&node.netns, device));
        let since = Instant::now();
        wait_until("the pod's device is served", WITHIN, || points(&scene, device) == BOTH_POINTS);
        println!("served after {:?}", since.elapsed());
        node.netns.ip_batch([
            address_line(device, "10.244.1.1/32"),
            address_line(device, "fe80::1/64"),
            format!("route add {v4}/32 dev {device}"),
            format!("route add {v6}/128 dev {device}"),
        ]);
        late.ip_batch([
            address_line(UPLINK, &format!("{v4}/32")),
            address_line(UPLINK, &format!("{v6}/128")),
            format!("route add 10.244.1.1/32 dev {UPLINK} scope link"),
            format!("route add default via 10.244.1.1 dev {UPLINK}"),
            format!("route add default via fe80::1 dev {UPLINK}"),
        ]);
        late.wait_links_up();
        let late = Pod { name: "late".into(), netns: late, v4, v6, node_device: device.to_owned() };
        for place in [Place::Pod, Place::FarPod] {
            for family in [false, true] {
                let target = place.target(Frontend::ClusterIp, family, Protocol::Tcp);
                check(&late, target, Protocol::Tcp, place.answerer(&scene.cluster));
            }
        }
        scene.cluster.node(0).netns.ip(&format!("link del {device}"));
        wait_until("the dead links are removed", WITHIN, || {
            let links = Pins::new(scene.agents[0].pin_path()).links().expect("the pins are read");
            links.iter().all(|link| link.device != device)
        });
    }

    scene.agents[0].kill9();
    let caller = &scene.cluster.node(0).pods[1];
    for place in [Place::Pod, Place::FarPod] {
        for family in [false, true] {
            for protocol in Protocol::BOTH {
                let target = place.target(Frontend::ClusterIp, family, protocol);
                check(caller, target, protocol, place.answerer(&scene.cluster));
            }
        }
    }
    nothing_was_lost(&scene);

    // A new agent takes them over, and one that is not told of pods takes its programs off.
    let device = scene.cluster.node(0).pods[1].node_device.clone();
    assert_eq!(points(&scene, &device), BOTH_POINTS);
    scene.agents[0].start_again();
    assert_eq!(points(&scene, &device), BOTH_POINTS);
    let devices = vec![UPLINK.to_owned()];
    scene.agents[0].set_options(AgentOptions { devices, ..AgentOptions::default() });
    scene.agents[0].restart();
    wait_until("nothing is on the pod's device", WITHIN, || points(&scene, &device).is_empty());
}
