//! dnsmasq behind a ClusterIP, and a resolver that has never heard of Services.

use std::fs;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::Command;
use std::thread;
use std::time::Duration;

use lbxdp_tests::manifests::{Endpoint, Manifests, Port, Service};
use lbxdp_tests::process::workspace_binary;
use lbxdp_tests::traffic::resolve::Lookups;
use lbxdp_tests::{Agent, AgentOptions, Cluster, Pod, Process, Scratch, Spec};

const DOMAIN: &str = "cluster.test";
const ANSWER: &str = "192.0.2.53";
const LOOKUPS: u32 = 10_000;
/// For which a pod serves after it was announced to end, and after it is no endpoint any more. A pod
/// has thirty seconds by default; an agent on a busy machine needs a part of one.
const GRACE: Duration = Duration::from_secs(1);

/// One header, one question: `x.cluster.test`, A, IN (RFC 1035, 4.1).
fn query() -> Vec<u8> {
    let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, b'x'];
    for label in DOMAIN.split('.') {
        query.push(u8::try_from(label.len()).expect("short"));
        query.extend(label.bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    query
}

fn answers(server: SocketAddr) -> bool {
    let any: SocketAddr = if server.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" }.parse().unwrap();
    let Ok(socket) = UdpSocket::bind(any) else { return false };
    let ask = || {
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        socket.send_to(&query(), server)?;
        socket.recv(&mut [0; 512])
    };
    ask().is_ok()
}

fn dnsmasq(pod: &Pod, files: &Scratch) -> Process {
    let mut command = pod.netns.command("dnsmasq");
    command.args(["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts"]);
    command.args(["--user=root", "--pid-file=", &format!("--address=/{DOMAIN}/{ANSWER}")]);
    let mut process = Process::spawn(&mut command, &files.join(&format!("{}.log", pod.name)));
    let itself = (IpAddr::from([127, 0, 0, 1]), 53).into();
    process.wait_ready(Duration::from_secs(5), |_| pod.netns.run(|| answers(itself)));
    process
}

/// `command` with `nameserver` in its /etc/resolv.conf and everything else at its default.
fn resolving(mut command: Command, nameserver: &str, files: &Scratch) -> Command {
    let file = files.join("resolv.conf");
    fs::write(&file, format!("nameserver {nameserver}\n")).expect("write resolv.conf");
    let script = "mount --bind \"$0\" /etc/resolv.conf && exec \"$@\"";
    command.args(["--mount", "sh", "-c", script]).arg(file).arg(workspace_binary("lbxdp-testd"));
    command.args(["client", "resolve", DOMAIN, ANSWER, "--count", &LOOKUPS.to_string()]);
    command.args(["--pace-us", "1000"]);
    command
}

/// Looks names up at `nameserver` while pods end and come back one after the other.
fn roll(cluster: &Cluster, manifests: &Manifests, service: &Service, mut resolver: Command) {
    let files = Scratch::new("dnsmasq");
    let pods: Vec<_> = cluster.pods().collect();
    let mut servers: Vec<_> = pods.iter().map(|(_, pod)| Some(dnsmasq(pod, &files))).collect();
    let endpoints = |ending: Option<usize>, gone: Option<usize>| {
        let listed = pods.iter().enumerate().filter(|(index, _)| Some(*index) != gone);
        let endpoints = listed.flat_map(|(index, (node, pod))| {
            [IpAddr::from(pod.v4), pod.v6.into()].map(|ip| {
                let endpoint = Endpoint::new(ip, &node.name);
                if Some(index) == ending { endpoint.terminating() } else { endpoint }
            })
        });
        manifests.write("dns.yaml", &service.with(&endpoints.collect::<Vec<_>>()));
    };
    endpoints(None, None);
    thread::sleep(GRACE);

    let log = files.join("lookups");
    let mut lookups = Process::spawn(&mut resolver, &log);
    let mut rolled = 0;
    let status = 'rolling: loop {
        for index in 0..pods.len() {
            endpoints(Some(index), None);
            thread::sleep(GRACE);
            endpoints(None, Some(index));
            thread::sleep(GRACE);
            servers[index] = None;
            servers[index] = Some(dnsmasq(pods[index].1, &files));
            endpoints(None, None);
            rolled += 1;
            if let Some(status) = lookups.ended() {
                break 'rolling status;
            }
        }
    };
    let found = lookups.log();
    assert!(status.success(), "{status}: {found}");
    let found: Lookups = serde_json::from_str(found.trim()).expect("one line of JSON");
    assert_eq!((found.count, found.failed), (LOOKUPS, 0), "{found:?}");
    assert!(rolled >= pods.len(), "only {rolled} pods rolled");
    println!("{found:?} while {rolled} pods rolled");
}

fn service() -> Service {
    Service::new("dns")
        .cluster_ip("10.96.0.53")
        .cluster_ip("fd00:10:96::53")
        .vip("203.0.113.53")
        .port(Port::udp("dns", 53, 53))
}

/// The socket path: the resolver runs in a pod.
#[test]
fn ten_thousand_names_are_resolved_in_a_pod_while_the_dns_servers_roll() {
    for nameserver in ["10.96.0.53", "fd00:10:96::53"] {
        let cluster = Cluster::new(&Spec::default());
        let manifests = Manifests::of(&cluster);
        let node = cluster.node(0);
        let agent = Agent::start(node, &manifests.path(), AgentOptions::default());
        let files = Scratch::new("resolver");
        let command = agent.pod_command(&node.pods[0].netns, "unshare");
        roll(&cluster, &manifests, &service(), resolving(command, nameserver, &files));
    }
}

/// The packet path: the resolver is a client outside.
#[test]
fn ten_thousand_names_are_resolved_from_outside_while_the_dns_servers_roll() {
    let cluster = Cluster::new(&Spec::default());
    let manifests = Manifests::of(&cluster);
    let options = AgentOptions { snat_ports: Some((10_000, 29_999)), ..AgentOptions::default() };
    let _agent = Agent::start(cluster.node(0), &manifests.path(), options);
    let files = Scratch::new("resolver");
    let command = cluster.client.command("unshare");
    roll(&cluster, &manifests, &service(), resolving(command, "203.0.113.53", &files));
}
