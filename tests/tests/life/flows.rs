//! Flows that share a client's port, lose a half, or find no port.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use lbxdp_agent::apply::{FlowEntry, FlowTable};
use lbxdp_agent::sys::{self, Access};
use lbxdp_common::{Flow, Octets};
use lbxdp_tests::cluster::{CLIENT_V4, CLIENT_V6};
use lbxdp_tests::manifests::{Port, Service};
use lbxdp_tests::process::wait_until;
use lbxdp_tests::traffic::echo::Client;
use lbxdp_tests::traffic::socket::{Source, reset};
use lbxdp_tests::traffic::udp;
use lbxdp_tests::{AgentOptions, Spec};

use crate::world::{EDIT_WITHIN, SHORT, TIMEOUT, World, both, cluster_ip, pods, vip};

const ONE_PORT: u16 = 40_123;

/// How long a flow that has ended keeps its port.
const CLOSING: Duration = Duration::from_secs(10);

/// A Service of one pod, on the load balancer addresses with this last part.
fn lone(world: &World, last: u8, pod: &str) {
    let name = format!("lone-{last}");
    let service = Service::new(&name)
        .cluster_ip(&cluster_ip(false, last))
        .cluster_ip(&cluster_ip(true, last))
        .vip(&vip(false, last, 0).ip().to_string())
        .vip(&vip(true, last, 0).ip().to_string())
        .port(Port::tcp("echo", 7, 7))
        .port(Port::tcp("again", 8, 7))
        .port(Port::udp("udp", 53, 5353));
    let (node, pod) = world.cluster.pods().find(|(_, p)| p.name == pod).expect("such a pod");
    world.manifests.write(&format!("{name}.yaml"), &service.with(&both(node, pod)));
}

fn wait_served(world: &World, last: u8) {
    for v6 in [false, true] {
        let end = Instant::now() + EDIT_WITHIN;
        while connect(world, vip(v6, last, 7), Source::ANY).is_err() {
            assert!(Instant::now() < end, "not served: {}", vip(v6, last, 7));
        }
    }
}

fn connect(world: &World, target: SocketAddr, source: Source) -> std::io::Result<Client> {
    world.cluster.client.run(|| Client::connect(target, source, SHORT))
}

fn patient(world: &World, target: SocketAddr, source: Source) -> Client {
    match world.cluster.client.run(|| Client::connect(target, source, TIMEOUT)) {
        Ok(client) => client,
        Err(error) => panic!("{source:?} to {target}: {error}"),
    }
}

fn client_address(v6: bool) -> IpAddr {
    if v6 { CLIENT_V6.into() } else { CLIENT_V4.into() }
}

fn frontends_of_one_pod_stay_apart(pod: &str) {
    let world = World::with_pods(1, 1);
    lone(&world, 20, pod);
    lone(&world, 21, pod);
    wait_served(&world, 20);
    wait_served(&world, 21);
    let before = world.counts();
    for v6 in [false, true] {
        let source = Source::new(client_address(v6), ONE_PORT);
        // Two addresses, and two ports of one address.
        let targets = [vip(v6, 20, 7), vip(v6, 21, 7), vip(v6, 20, 8), vip(v6, 21, 8)];
        let mut clients = targets.map(|target| patient(&world, target, source));
        let peers: std::collections::BTreeSet<_> =
            clients.iter().map(|client| client.answer().peer).collect();
        assert_eq!(peers.len(), targets.len(), "{peers:?}");
        let is_local = pod == "pod-a-1";
        if is_local {
            assert!(peers.iter().all(|peer| peer.ip() == client_address(v6)), "{peers:?}");
            assert!(peers.contains(&SocketAddr::new(client_address(v6), ONE_PORT)), "{peers:?}");
        }
        for round in 0..20 {
            for (n, client) in clients.iter_mut().enumerate() {
                client.ping(&format!("connection {n} of {round}")).expect("its own line");
            }
        }
        let datagrams = [vip(v6, 20, 53), vip(v6, 21, 53)].map(|target| {
            world.cluster.client.run(|| udp::ask(target, source, "apart", TIMEOUT)).expect("answer")
        });
        assert_ne!(datagrams[0].peer, datagrams[1].peer);
    }
    let changes = world.counts().changes_since(&before);
    assert!(!changes.keys().any(|name| name.starts_with("drops.")), "{changes:?}");
    assert!(!changes.contains_key("counters.flow_broken"), "{changes:?}");
    if pod == "pod-a-1" {
        // For each family three of four connections and one of two datagrams.
        assert_eq!(changes["counters.port_changed"], 8, "{changes:?}");
    }
}

#[test]
fn frontends_of_one_local_pod_used_from_one_client_port_stay_apart() {
    frontends_of_one_pod_stay_apart("pod-a-1");
}

#[test]
fn frontends_of_one_remote_pod_used_from_one_client_port_stay_apart() {
    frontends_of_one_pod_stay_apart("pod-b-1");
}

/// The request's and the reply's half of the client's connection.
fn halves(world: &World, v6: bool) -> (Vec<FlowEntry>, Vec<FlowEntry>) {
    let maps = world.maps();
    let (mut requests, mut replies) = (Vec::new(), Vec::new());
    for entry in maps.flows().expect("the flows are read") {
        let (is_v6, is_reply, port) = match entry {
            FlowEntry::V4(key, flow) => {
                let is_reply = flow.has(Flow::<[u8; 4]>::REPLY);
                (false, is_reply, if is_reply { flow.dst_port } else { key.src_port })
            }
            FlowEntry::V6(key, flow) => {
                let is_reply = flow.has(Flow::<[u8; 16]>::REPLY);
                (true, is_reply, if is_reply { flow.dst_port } else { key.src_port })
            }
        };
        if is_v6 == v6 && port == ONE_PORT {
            if is_reply { &mut replies } else { &mut requests }.push(entry);
        }
    }
    (requests, replies)
}

fn table<A: Octets>(world: &World, name: &str) -> FlowTable<A> {
    let map = sys::obj_get(&world.pins().map(name), Access::ReadWrite).expect("pinned");
    FlowTable::new(map, Access::ReadWrite).expect("a table")
}

fn evict(world: &World, half: &FlowEntry) {
    let evicted = match half {
        FlowEntry::V4(key, _) => table(world, "flows_v4").remove(key, |_| true),
        FlowEntry::V6(key, _) => table(world, "flows_v6").remove(key, |_| true),
    };
    assert!(evicted.expect("removed"), "{half:?} is there");
}

/// What a half translates, without what changes with each packet.
fn translation(half: &FlowEntry) -> (SocketAddr, SocketAddr, (SocketAddr, SocketAddr)) {
    let (from, to) = half.arrives();
    (from, to, half.ends())
}

/// Until nothing has been counted for longer than TCP delays an acknowledgement.
fn wait_quiet(world: &World) {
    const QUIET: Duration = Duration::from_millis(250);
    let (mut counts, mut since) = (world.counts(), Instant::now());
    wait_until("nothing is under way", TIMEOUT, || {
        let now = world.counts();
        if !now.changes_since(&counts).is_empty() {
            (counts, since) = (now, Instant::now());
        }
        since.elapsed() > QUIET
    });
}

fn connections_outlive_their_entries(pod: &str) {
    let world = World::with_pods(1, 1);
    lone(&world, 20, pod);
    wait_served(&world, 20);
    for v6 in [false, true] {
        let source = Source::new(client_address(v6), ONE_PORT);
        let mut client = patient(&world, vip(v6, 20, 7), source);
        let peer = client.answer().peer;
        let both_there = |when: &str| {
            let (requests, replies) = halves(&world, v6);
            assert_eq!((requests.len(), replies.len()), (1, 1), "{when}");
            (requests[0], replies[0])
        };
        for (which, restored) in [("request", true), ("reply", true), ("both", false)] {
            let (request, reply) = both_there(which);
            // A packet between one removal and the next would bring back what is gone.
            wait_quiet(&world);
            let before = world.counts();
            if which != "reply" {
                evict(&world, &request);
            }
            if which != "request" {
                evict(&world, &reply);
            }
            if which == "reply" {
                // The programs never take a reply's half alone; a request that is believed without it
                // looks for it once a second.
                std::thread::sleep(Duration::from_millis(1_100));
            }
            for round in 0..5 {
                let line = format!("without {which} {round}");
                client.ping(&line).unwrap_or_else(|error| panic!("{which}: {error}"));
            }
            let (_, reply_now) = both_there(which);
            // The backend sees the same source as before, or its connection would be another.
            assert_eq!(translation(&reply), translation(&reply_now), "{which} of {peer}");
            let changes = world.counts().changes_since(&before);
            assert_eq!(changes.contains_key("counters.flow_restored"), restored, "{changes:?}");
            assert!(!changes.contains_key("counters.flow_broken"), "{changes:?}");
        }
    }
    assert_eq!(world.counts().all_drops(), 0);
}

#[test]
fn a_connection_to_a_local_pod_outlives_each_half_of_its_flow() {
    connections_outlive_their_entries("pod-a-1");
}

#[test]
fn a_connection_to_a_remote_pod_outlives_each_half_of_its_flow() {
    connections_outlive_their_entries("pod-b-1");
}

fn ports_run_out_and_come_back(v6: bool, with_reset: bool) {
    const PORTS: u16 = 4;
    let options = AgentOptions { snat_ports: Some((61_000, 61_003)), ..AgentOptions::default() };
    let spec: Spec = pods(0, 1);
    let world = World::start(&spec, options);
    let target = vip(v6, 10, 7);
    let mut clients: Vec<_> = (0..PORTS).map(|_| patient(&world, target, Source::ANY)).collect();
    let ports: std::collections::BTreeSet<_> =
        clients.iter().map(|client| client.answer().peer.port()).collect();
    assert_eq!(ports, (61_000..=61_003).collect());
    assert_eq!(world.counts().all_drops(), 0);

    assert!(connect(&world, target, Source::ANY).is_err(), "a fifth connection to {target}");
    let status = world.counts();
    assert!(status.drops("snat_ports_exhausted") > 0, "{:#}", status.0);
    assert_eq!(status.drops("snat_ports_exhausted"), status.all_drops());
    for client in &mut clients {
        client.ping("the others go on").expect("the line");
    }

    let closed = clients.remove(1);
    let freed = closed.answer().peer;
    if with_reset {
        reset(closed.into_stream()).expect("closed");
    } else {
        drop(closed);
    }
    let since = Instant::now();
    std::thread::sleep(CLOSING / 2);
    assert!(connect(&world, target, Source::ANY).is_err(), "a port that may still be in use");
    let end = since + CLOSING + Duration::from_secs(3);
    let client = loop {
        match connect(&world, target, Source::ANY) {
            Ok(client) => break client,
            Err(error) => assert!(Instant::now() < end, "no port came back: {error}"),
        }
    };
    assert!(since.elapsed() >= CLOSING - Duration::from_secs(1), "{:?}", since.elapsed());
    assert_eq!(client.answer().peer, freed);
    for client in &mut clients {
        client.ping("still").expect("the line");
    }
}

#[test]
fn four_ipv4_ports_are_enough_for_four_connections_until_one_is_closed() {
    ports_run_out_and_come_back(false, false);
}

#[test]
fn four_ipv6_ports_are_enough_for_four_connections_until_one_is_reset() {
    ports_run_out_and_come_back(true, true);
}
