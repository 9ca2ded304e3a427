//! A UDP client that keeps its source port gets another backend when its own stops serving, within
//! five seconds and in whatever way that happens.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use lbxdp_agent::apply::pinned::FlowEntry;
use lbxdp_common::IPPROTO_UDP;
use lbxdp_tests::cluster::{CLIENT_V4, CLIENT_V6};
use lbxdp_tests::manifests::{Endpoint, Port, Service};
use lbxdp_tests::process::wait_until;
use lbxdp_tests::traffic::socket::{self, Source};
use lbxdp_tests::traffic::udp::{self, ask_on};

use crate::world::{EDIT_WITHIN, World, cluster_ip, vip};

/// How long a client may be left without an answer.
const RECOVERS_WITHIN: Duration = Duration::from_secs(5);
/// A client's patience with one datagram.
const ANSWER_WITHIN: Duration = Duration::from_millis(200);
/// Longer than everything that ends flows waits.
const LONG: Duration = Duration::from_secs(4);

const FILE: &str = "dns.yaml";
const NODE_PORT: u16 = 30_053;
const CLIENT_PORT: u16 = 40_053;

/// The Service under test, on every kind of address.
fn dns() -> Service {
    Service::new("dns")
        .cluster_ip(&cluster_ip(false, 53))
        .cluster_ip(&cluster_ip(true, 53))
        .vip(&vip(false, 53, 0).ip().to_string())
        .vip(&vip(true, 53, 0).ip().to_string())
        .port(Port::udp("dns", 53, 5353).node_port(NODE_PORT))
}

fn endpoints(world: &World, pod: &str) -> Vec<Endpoint> {
    let (node, pod) = world.cluster.pods().find(|(_, p)| p.name == pod).expect("such a pod");
    crate::world::both(node, pod).into()
}

fn publish(world: &World, endpoints: &[Endpoint]) {
    world.manifests.write(FILE, &dns().with(endpoints));
}

/// Clients of one Service that keep their ports.
struct Clients(Vec<(SocketAddr, UdpSocket)>);

impl Clients {
    /// One for each of `targets`, from this port.
    fn open(world: &World, targets: &[SocketAddr], port: u16) -> Self {
        let open = |target: &SocketAddr| {
            let client: IpAddr = if target.is_ipv6() { CLIENT_V6.into() } else { CLIENT_V4.into() };
            let source = Source::new(client, port);
            let socket = world.cluster.client.run(|| socket::udp(*target, source, ANSWER_WITHIN));
            (*target, socket.expect("the port is free"))
        };
        Self(targets.iter().map(open).collect())
    }

    /// Keeps sending until `pod` answers everybody.
    #[track_caller]
    fn reach(&self, pod: &str, within: Duration) {
        let start = Instant::now();
        for (target, socket) in &self.0 {
            let mut last = None;
            // Nobody, an ICMP error, or an answer to an earlier datagram, is no answer.
            while last.as_deref() != Some(pod) {
                assert!(start.elapsed() < within, "{target}: {last:?}, expected {pod}");
                last = ask_on(socket, "who").ok().map(|answer| answer.name);
            }
        }
    }

    /// Sends for so long and is answered by `pod` each time.
    #[track_caller]
    fn stay_with(&self, pod: &str, long: Duration) {
        let start = Instant::now();
        while start.elapsed() < long {
            for (target, socket) in &self.0 {
                let answer = ask_on(socket, "still").expect("an answer");
                assert_eq!(answer.name, pod, "{target}");
            }
        }
    }
}

fn targets(world: &World) -> Vec<SocketAddr> {
    let of = |v6| {
        [
            vip(v6, 53, 53),
            SocketAddr::new(world.node().ip(v6), NODE_PORT),
            SocketAddr::new(cluster_ip(v6, 53).parse().expect("an address"), 53),
        ]
    };
    [of(false), of(true)].concat()
}

/// The halves of the flows that a client began from this port.
fn flows_of(world: &World, client_port: u16) -> Vec<FlowEntry> {
    let maps = world.maps();
    let flows = maps.flows().expect("the flows are read");
    let is_of = |entry: &FlowEntry| match entry {
        FlowEntry::V4(key, _) => key.src_port == client_port,
        FlowEntry::V6(key, _) => key.src_port == client_port,
    };
    flows.filter(|entry| entry.protocol() == IPPROTO_UDP && is_of(entry)).collect()
}

/// Runs each change against clients of `first`, after which `second` is to answer.
fn clients_follow(first: &str, second: &str) {
    let world = World::with_pods(1, 1);
    let targets = targets(&world);
    let (one, two) = (endpoints(&world, first), endpoints(&world, second));
    // Another Service has the same pods on the same port: its flows are its own.
    let others = [vip(false, 10, 53), vip(true, 10, 53)];
    let bystanders: Vec<_> = (0..8).map(|n| Clients::open(&world, &others, 41_000 + n)).collect();
    for bystander in &bystanders {
        for (_, socket) in &bystander.0 {
            ask_on(socket, "bystander").expect("an answer");
        }
    }
    let made = world.counts().counter("flow_new");
    let mut expected_flows = 0;

    let not_serving = one.iter().cloned().map(Endpoint::unready).chain(two.clone());
    let changes: [(&str, Vec<Vec<Endpoint>>); 4] = [
        ("removed", vec![two.clone()]),
        ("not serving", vec![not_serving.collect()]),
        ("none and then another", vec![Vec::new(), two.clone()]),
        ("deleted and made again", vec![]),
    ];
    for (port, (what, steps)) in (CLIENT_PORT..).zip(changes) {
        println!("{what}");
        publish(&world, &one);
        let clients = Clients::open(&world, &targets, port);
        // One that began before the agent had seen the change has to recover from that.
        clients.reach(first, RECOVERS_WITHIN);
        expected_flows += 2 * clients.0.len() as u64;
        if steps.is_empty() {
            world.manifests.remove(FILE);
            std::thread::sleep(LONG / 4);
            publish(&world, &two);
        }
        for step in &steps {
            publish(&world, step);
            if step.is_empty() {
                // The flows go before anybody is there to take them over.
                wait_until("no flow is left", RECOVERS_WITHIN, || {
                    flows_of(&world, port).is_empty()
                });
            }
        }
        clients.reach(second, RECOVERS_WITHIN);
        // And there they stay.
        clients.stay_with(second, LONG / 4);
    }
    for bystander in &bystanders {
        for (_, socket) in &bystander.0 {
            ask_on(socket, "bystander").expect("an answer");
        }
    }
    let status = world.counts();
    // A client may have begun a flow from the old table while that was being replaced.
    let flows = status.counter("flow_new") - made;
    assert!((expected_flows..expected_flows + 8).contains(&flows), "{flows} of {expected_flows}");
    assert_eq!(status.counter("flow_expired"), 0);
    for port in 41_000..41_008 {
        assert_eq!(flows_of(&world, port).len(), 2, "one of each family for {port}");
    }
}

#[test]
fn clients_of_a_local_pod_follow_their_service_elsewhere() {
    clients_follow("pod-a-1", "pod-b-1");
}

#[test]
fn clients_of_a_remote_pod_follow_their_service_here() {
    clients_follow("pod-b-1", "pod-a-1");
}

#[test]
fn clients_stay_with_a_pod_that_ends_and_serves() {
    let world = World::with_pods(1, 1);
    let targets = targets(&world);
    for (port, first, second) in [(40_053, "pod-a-1", "pod-b-1"), (40_054, "pod-b-1", "pod-a-1")] {
        let (one, two) = (endpoints(&world, first), endpoints(&world, second));
        publish(&world, &one);
        let clients = Clients::open(&world, &targets, port);
        clients.reach(first, RECOVERS_WITHIN);
        let ending = one.iter().cloned().map(Endpoint::terminating).chain(two.clone());
        publish(&world, &ending.collect::<Vec<_>>());
        for target in &targets {
            let ask = || udp::ask(*target, Source::ANY, "new", ANSWER_WITHIN);
            let is_moved = || ask().is_ok_and(|answer| answer.name == second);
            world.cluster.client.run(|| wait_until("new clients move", EDIT_WITHIN, is_moved));
        }
        clients.stay_with(first, LONG);
        // Until it has ended.
        publish(&world, &two);
        clients.reach(second, RECOVERS_WITHIN);
    }
}

#[test]
fn what_changed_while_no_agent_ran_is_made_up_for_at_the_start() {
    let mut world = World::with_pods(1, 1);
    let targets = targets(&world);
    for (port, first, second) in [(40_053, "pod-a-1", "pod-b-1"), (40_054, "pod-b-1", "pod-a-1")] {
        publish(&world, &endpoints(&world, first));
        let clients = Clients::open(&world, &targets, port);
        clients.reach(first, RECOVERS_WITHIN);
        world.agent.kill9();
        publish(&world, &endpoints(&world, second));
        clients.stay_with(first, LONG / 4);
        world.agent.start_again();
        clients.reach(second, RECOVERS_WITHIN);
    }
    // A Service that went meanwhile takes its flows with it.
    world.agent.kill9();
    world.manifests.remove(FILE);
    assert!(!flows_of(&world, 40_054).is_empty());
    world.agent.start_again();
    wait_until("no flow is left", RECOVERS_WITHIN, || flows_of(&world, 40_054).is_empty());
}
