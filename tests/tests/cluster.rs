//! The ground the other tests stand on, without an agent: every wiring carries traffic between
//! the client and the pods, and nothing stays behind.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use lbxdp_tests::cluster::{CLIENT_V4, CLIENT_V6};
use lbxdp_tests::process::{command, run, workspace_binary};
use lbxdp_tests::traffic::churn::Churn;
use lbxdp_tests::traffic::frame::{self, Segment};
use lbxdp_tests::traffic::hold::Held;
use lbxdp_tests::traffic::socket::Source;
use lbxdp_tests::traffic::spread::{Probe, Spread};
use lbxdp_tests::traffic::transfer::Transfer;
use lbxdp_tests::traffic::{http, udp};
use lbxdp_tests::{Cluster, PodPath, Spec};

const TIMEOUT: Duration = Duration::from_secs(3);

fn every_pod_answers_everybody(path: PodPath) {
    let cluster = Cluster::new(&Spec { pods: vec![1, 1], path, mtu: None });
    let _http = cluster.serve_in_pods("http", 8080);
    let _udp = cluster.serve_in_pods("udp", 5353);
    let node_a = cluster.node(0);
    for (_, pod) in cluster.pods() {
        for v6 in [false, true] {
            let web = SocketAddr::new(pod.ip(v6), 8080);
            let answer = cluster.client.run(|| http::who(web, Source::port(4711), TIMEOUT));
            let answer = answer.unwrap_or_else(|e| panic!("client to {web}: {e}"));
            assert_eq!(answer.name, pod.name);
            let client = if v6 { CLIENT_V6.into() } else { CLIENT_V4.into() };
            assert_eq!(answer.peer, SocketAddr::new(client, 4711));

            // The way a translated packet will take: from a node to the other node's pod.
            let answer = node_a.netns.run(|| http::who(web, Source::ANY, TIMEOUT));
            assert_eq!(answer.unwrap_or_else(|e| panic!("node-a to {web}: {e}")).name, pod.name);

            let dns = SocketAddr::new(pod.ip(v6), 5353);
            let answer = cluster.client.run(|| udp::ask(dns, Source::ANY, "hello you", TIMEOUT));
            assert_eq!(answer.unwrap_or_else(|e| panic!("client to {dns}: {e}")).name, pod.name);
        }
    }
    let far = SocketAddr::new(cluster.node(1).pods[0].v4.into(), 8080);
    let report = node_a.netns.run(|| Transfer::new(far, 3_000_000).run());
    assert_eq!((report.bytes, report.errors), (6_000_000, vec![]));
}

#[test]
fn pods_answer_over_the_same_device() {
    every_pod_answers_everybody(PodPath::SameDevice);
}

#[test]
fn pods_answer_over_another_device() {
    every_pod_answers_everybody(PodPath::OtherDevice);
}

#[test]
fn pods_answer_over_vxlan() {
    every_pod_answers_everybody(PodPath::Vxlan);
}

#[test]
fn pods_answer_over_a_vxlan_that_learns() {
    every_pod_answers_everybody(PodPath::VxlanLearning);
}

#[test]
fn legs_finish_checksums_and_pods_keep_their_offloads() {
    let cluster = Cluster::new(&Spec { pods: vec![1, 1], mtu: Some(9000), ..Spec::default() });
    let node = cluster.node(0);
    let leg = node.netns.exec("ethtool -k eth0");
    assert!(leg.contains("tx-checksumming: off"), "{leg}");
    let port = cluster.switch.exec("ethtool -k node-a");
    assert!(port.contains("generic-receive-offload: on"), "{port}");
    let pod = node.pods[0].netns.exec("ethtool -k eth0");
    assert!(pod.contains("tx-checksumming: on"), "{pod}");
    assert!(node.netns.ip("link show eth0").contains("mtu 9000"));
}

#[test]
fn a_flooding_bridge_shows_every_frame_to_every_port() {
    let cluster = Cluster::new(&Spec { pods: vec![1, 1], ..Spec::default() });
    let _http = cluster.serve_in_pods("http", 8080);
    cluster.switch.flood("br0");
    let packets = |port: &str| -> u64 {
        let path = format!("-s -j link show dev {port}");
        let json: serde_json::Value =
            serde_json::from_str(&cluster.switch.ip(&path)).expect("JSON");
        json[0]["stats64"]["tx"]["packets"].as_u64().expect("a number")
    };
    let target = SocketAddr::new(cluster.node(0).pods[0].v4.into(), 8080);
    cluster.client.run(|| http::who(target, Source::ANY, TIMEOUT)).expect("an answer");
    let before = packets("node-b");
    for _ in 0..5 {
        cluster.client.run(|| http::who(target, Source::ANY, TIMEOUT)).expect("an answer");
    }
    assert!(packets("node-b") >= before + 5 * 6, "node-b saw none of the client's frames");
}

#[test]
fn load_clients_count_and_hold() {
    let cluster = Cluster::new(&Spec { pods: vec![1], ..Spec::default() });
    let echo = cluster.serve(&cluster.node(0).pods[0].netns, "tcp-echo", "echo", 7);
    let target = SocketAddr::new(cluster.node(0).pods[0].v4.into(), 7);
    let mut spread = Spread::new(target, Probe::Echo, 600).from_port(20_000);
    spread.sources = cluster.client_addresses(false, 2);
    // Twice: the reset frees a port at once.
    for _ in 0..2 {
        let outcome = cluster.client.run(|| spread.run());
        assert_eq!((outcome.answered(), outcome.failed), (600, 0), "{:?}", outcome.errors);
        assert_eq!(outcome.all_peers().len(), 3);
    }

    let mut held =
        cluster.client.run(|| Held::open(target, 20, 0, TIMEOUT)).expect("connections open");
    assert_eq!(held.ping_all(), 0);
    assert_eq!(held.report().open["echo"], 20);
    drop(echo);
    assert_eq!(held.ping_all(), 20);
}

#[test]
fn the_load_program_says_what_happened() {
    let cluster = Cluster::new(&Spec { pods: vec![1], ..Spec::default() });
    let _http = cluster.serve_in_pods("http", 8080);
    let target = SocketAddr::new(cluster.node(0).pods[0].v6.into(), 8080);
    let testd = workspace_binary("lbxdp-testd");
    let mut command = cluster.client.command(&testd);
    let text =
        run(command.args(["client", "connect-spread", "--count", "10", &target.to_string()]));
    let outcome: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(outcome["backends"]["pod-a-1"], 10);
    let mut command = cluster.client.command(&testd);
    let text = run(command.args(["client", "transfer", "--bytes", "100000", &target.to_string()]));
    let report: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(report["bytes"], 200_000);
}

#[test]
fn a_hand_made_datagram_is_answered_and_a_wire_shows_both() {
    let cluster = Cluster::new(&Spec { pods: vec![1], ..Spec::default() });
    let _udp = cluster.serve_in_pods("udp", 5353);
    let node_mac = frame::parse_mac(&cluster.node(0).netns.mac("eth0")).expect("a MAC address");
    let own_mac = frame::parse_mac(&cluster.client.mac("eth0")).expect("a MAC address");
    for v6 in [false, true] {
        let client: IpAddr = if v6 { CLIENT_V6.into() } else { CLIENT_V4.into() };
        let target = SocketAddr::new(cluster.node(0).pods[0].ip(v6), 5353);
        // The port must be somebody's, or the answer is refused; the wire sees it anyhow.
        let (wire, _socket) = cluster.client.run(|| {
            let wire = frame::Wire::open("eth0").expect("a packet socket");
            (wire, UdpSocket::bind(SocketAddr::new(client, 4000)).expect("a socket"))
        });
        let source = SocketAddr::new(client, 4000);
        let sent = frame::build(node_mac, own_mac, source, target, Segment::Udp(b"by hand"));
        wire.send(&sent).expect("sent");
        let answer =
            wire.receive(TIMEOUT, |frame| frame[..6] == own_mac && frame.ends_with(b"by hand"));
        assert!(answer.expect("no error").is_some(), "no answer to a frame to {target}");
    }
}

#[test]
fn churn_goes_on_until_it_is_stopped() {
    let cluster = Cluster::new(&Spec { pods: vec![1], ..Spec::default() });
    let _http = cluster.serve_in_pods("http", 8080);
    let target = SocketAddr::new(cluster.node(0).pods[0].v4.into(), 8080);
    let spread = Spread::new(target, Probe::Http, 1);
    let churn = Churn::start(&cluster.client, spread, Duration::from_millis(1));
    std::thread::sleep(Duration::from_millis(200));
    let outcome = churn.stop();
    assert!(outcome.answered() > 5 && outcome.failed == 0, "{outcome:?}");
}

#[test]
fn a_cluster_leaves_no_namespace_behind() {
    let cluster = Cluster::new(&Spec { pods: vec![1], ..Spec::default() });
    let names: Vec<_> = [&cluster.client, &cluster.switch, &cluster.node(0).netns]
        .map(|netns| netns.name().to_owned())
        .into();
    let server = cluster.serve(&cluster.client, "http", "forgotten", 80);
    drop(cluster);
    let left = run(command("ip").args(["netns", "list"]));
    for name in names {
        assert!(!left.contains(&name), "{name} is still there");
    }
    drop(server);
}
