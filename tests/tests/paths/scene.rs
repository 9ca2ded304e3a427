//! A cluster in which every kind of backend has a Service of its own, and what a client asks.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use lbxdp_agent::apply::pinned::PinnedMaps;
use lbxdp_agent::pins::Pins;
use lbxdp_agent::sys::Access;
use lbxdp_tests::agent::Status;
use lbxdp_tests::cluster::{BACK_LINK, CLIENT_V4, CLIENT_V6, OVERLAY, UPLINK};
use lbxdp_tests::manifests::{Endpoint, Manifests, Port, Service};
use lbxdp_tests::process::wait_until;
use lbxdp_tests::traffic::frame::{self, Segment, Wire};
use lbxdp_tests::traffic::socket::Source;
use lbxdp_tests::traffic::{Answer, http, udp};
use lbxdp_tests::{Agent, AgentOptions, Cluster, Netns, PodPath, Process, Spec};
use serde_json::{Value, json};

/// For everything that is to be answered.
pub const TIMEOUT: Duration = Duration::from_secs(3);
/// The port of the pods' HTTP servers.
pub const HTTP: u16 = 8080;
/// The port of the pods' UDP servers.
pub const UDP: u16 = 5353;

/// What a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP.
    Tcp,
    /// One datagram each way.
    Udp,
}

impl Protocol {
    pub const BOTH: [Self; 2] = [Self::Tcp, Self::Udp];
}

/// Where a Service's only backend is, seen from node-a.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The pod of node-a.
    Pod,
    /// The pod of node-b.
    FarPod,
    /// node-a itself.
    Host,
    /// node-b itself.
    FarHost,
}

impl Place {
    pub const ALL: [Self; 4] = [Self::Pod, Self::FarPod, Self::Host, Self::FarHost];

    fn number(self) -> u16 {
        match self {
            Self::Pod => 1,
            Self::FarPod => 2,
            Self::Host => 3,
            Self::FarHost => 4,
        }
    }

    fn node(self) -> usize {
        match self {
            Self::Pod | Self::Host => 0,
            Self::FarPod | Self::FarHost => 1,
        }
    }

    /// Whether it is on the node that the client's packets come to.
    pub fn is_local(self) -> bool {
        self.node() == 0
    }

    fn is_host(self) -> bool {
        matches!(self, Self::Host | Self::FarHost)
    }

    /// Whose name is in its answers.
    pub fn answerer(self, cluster: &Cluster) -> &str {
        let node = cluster.node(self.node());
        if self.is_host() { &node.name } else { &node.pods[0].name }
    }

    fn endpoints(self, cluster: &Cluster) -> Vec<Endpoint> {
        let node = cluster.node(self.node());
        if self.is_host() {
            return Endpoint::host(node);
        }
        let pod = &node.pods[0];
        vec![Endpoint::new(pod.v4, &node.name), Endpoint::new(pod.v6, &node.name)]
    }

    /// The Service of it.
    pub fn service(self) -> Service {
        service(&format!("service-{}", self.number()), self.number())
    }

    /// Address and port of one of its frontends.
    pub fn target(self, frontend: Frontend, v6: bool, protocol: Protocol) -> SocketAddr {
        frontend.of(self.number(), v6, protocol)
    }
}

/// How a client reaches a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frontend {
    /// The address of type LoadBalancer.
    Vip,
    /// A NodePort of node-a.
    NodePort,
    /// The address inside the cluster.
    ClusterIp,
}

impl Frontend {
    pub const ALL: [Self; 3] = [Self::Vip, Self::NodePort, Self::ClusterIp];

    /// Address and port for the Service of this number.
    pub fn of(self, number: u16, v6: bool, protocol: Protocol) -> SocketAddr {
        let service_port = match protocol {
            Protocol::Tcp => 80,
            Protocol::Udp => 53,
        };
        let (address, port) = match (self, v6) {
            (Self::Vip, false) => (format!("203.0.113.{number}"), service_port),
            (Self::Vip, true) => (format!("2001:db8:ff::{number}"), service_port),
            (Self::ClusterIp, false) => (format!("10.96.0.{number}"), service_port),
            (Self::ClusterIp, true) => (format!("fd00:10:96::{number}"), service_port),
            (Self::NodePort, false) => ("198.51.100.11".to_owned(), node_port(number, protocol)),
            (Self::NodePort, true) => ("2001:db8:1::11".to_owned(), node_port(number, protocol)),
        };
        SocketAddr::new(address.parse().expect("an address"), port)
    }
}

/// The NodePort of the Service of this number.
pub fn node_port(number: u16, protocol: Protocol) -> u16 {
    match protocol {
        Protocol::Tcp => 30_080 + number,
        Protocol::Udp => 30_053 + number,
    }
}

/// A Service with every kind of frontend, for both families and protocols.
pub fn service(name: &str, number: u16) -> Service {
    let ip = |frontend: Frontend, v6| frontend.of(number, v6, Protocol::Tcp).ip().to_string();
    Service::new(name)
        .cluster_ip(&ip(Frontend::ClusterIp, false))
        .cluster_ip(&ip(Frontend::ClusterIp, true))
        .vip(&ip(Frontend::Vip, false))
        .vip(&ip(Frontend::Vip, true))
        .port(Port::tcp("http", 80, HTTP).node_port(node_port(number, Protocol::Tcp)))
        .port(Port::udp("dns", 53, UDP).node_port(node_port(number, Protocol::Udp)))
}

/// The Services of all places.
pub fn places(cluster: &Cluster) -> Vec<Value> {
    Place::ALL.iter().flat_map(|place| place.service().with(&place.endpoints(cluster))).collect()
}

/// A cluster with an agent on each node. Declared in the order in which things may go.
pub struct Scene {
    pub agents: Vec<Agent>,
    _servers: Vec<Process>,
    _manifests: Manifests,
    pub cluster: Cluster,
    path: PodPath,
}

impl Scene {
    /// Two nodes with a pod each, with the Services of all places. `arguments` are the agents'.
    #[track_caller]
    pub fn new(path: PodPath, arguments: &[&str]) -> Self {
        let cluster = cluster(path);
        let objects = places(&cluster);
        Self::start(cluster, path, &objects, arguments, 2)
    }

    /// The same with an agent on node-a only, which costs less: for what node-b has no part in.
    #[track_caller]
    pub fn of_node_a(path: PodPath, arguments: &[&str]) -> Self {
        let cluster = cluster(path);
        let objects = places(&cluster);
        Self::start(cluster, path, &objects, arguments, 1)
    }

    /// Servers in every pod and on every node of `cluster`, and agents with these objects on its
    /// first `agents` nodes.
    #[track_caller]
    pub fn start(
        cluster: Cluster,
        path: PodPath,
        objects: &[Value],
        arguments: &[&str],
        agents: usize,
    ) -> Self {
        let hosts = cluster.nodes.iter().map(|node| (&node.netns, node.name.as_str()));
        let pods = cluster.pods().map(|(_, pod)| (&pod.netns, pod.name.as_str()));
        let servers = hosts
            .chain(pods)
            .flat_map(|(netns, name)| {
                [cluster.serve(netns, "http", name, HTTP), cluster.serve(netns, "udp", name, UDP)]
            })
            .collect();
        let manifests = Manifests::of(&cluster);
        manifests.write("services.yaml", objects);
        let mut devices = vec![UPLINK.to_owned()];
        match path {
            PodPath::SameDevice => {}
            PodPath::OtherDevice => devices.push(BACK_LINK.to_owned()),
            PodPath::Vxlan | PodPath::VxlanLearning => devices.push(OVERLAY.to_owned()),
        }
        for node in &cluster.nodes {
            // As network cards have it: tc sees packets that were joined.
            node.netns.gro_on(UPLINK);
            if path == PodPath::OtherDevice {
                node.netns.gro_on(BACK_LINK);
            }
        }
        let options = AgentOptions {
            devices,
            extra: arguments.iter().map(|&argument| argument.to_owned()).collect(),
            ..AgentOptions::default()
        };
        let dir = manifests.path();
        let agents = thread::scope(|scope| {
            let starting: Vec<_> = cluster.nodes[..agents]
                .iter()
                .map(|node| scope.spawn(|| Agent::start(node, &dir, options.clone())))
                .collect();
            starting.into_iter().map(|agent| agent.join().expect("an agent")).collect()
        });
        Self { agents, _servers: servers, _manifests: manifests, cluster, path }
    }

    /// Asks as the client and checks who answers and whom it saw.
    #[track_caller]
    pub fn check(&self, place: Place, frontend: Frontend, v6: bool, protocol: Protocol) {
        let source = Source::port(client_port());
        let target = place.target(frontend, v6, protocol);
        let what = format!("{place:?} by {frontend:?} {target} over {protocol:?}");
        let answer = match ask(&self.cluster.client, target, source, protocol) {
            Ok(answer) => answer,
            Err(error) => panic!("{what}: {error}"),
        };
        assert_eq!(answer.name, place.answerer(&self.cluster), "{what}");
        if place.is_local() {
            let client = SocketAddr::new(client(v6), source.port);
            assert_eq!(answer.peer, client, "{what}: a local backend sees the client");
        } else {
            assert_eq!(answer.peer.ip(), self.source_towards(place, v6), "{what}");
            assert!((61_000..=65_535).contains(&answer.peer.port()), "{what}: {}", answer.peer);
        }
    }

    /// All frontends of a place in both families.
    #[track_caller]
    pub fn check_frontends(&self, place: Place, protocol: Protocol) {
        for frontend in Frontend::ALL {
            for v6 in [false, true] {
                self.check(place, frontend, v6, protocol);
            }
        }
    }

    /// What an agent's programs have counted: the part of `status` that changes with each
    /// packet, without the maps that it reads besides.
    #[track_caller]
    pub fn status(&self, node: usize) -> Status {
        let pins = Pins::new(self.agents[node].pin_path());
        let maps = PinnedMaps::open(&pins, Access::ReadOnly).expect("pinned maps");
        let counters = maps.counters().expect("counters").into_iter();
        let drops = maps.drops().expect("drops").into_iter();
        Status(json!({
            "counters": counters.map(|(key, n)| (key.as_str(), n)).collect::<BTreeMap<_, _>>(),
            "drops": drops.map(|(key, n)| (key.as_str(), n)).collect::<BTreeMap<_, _>>(),
        }))
    }

    /// The same of all nodes.
    #[track_caller]
    pub fn statuses(&self) -> Vec<Status> {
        (0..self.agents.len()).map(|node| self.status(node)).collect()
    }

    /// The same once nothing goes on any more: the end of a connection takes a moment longer than
    /// its client.
    #[track_caller]
    pub fn statuses_at_rest(&self) -> Vec<Status> {
        let mut last = self.statuses();
        wait_until("packets come to rest", TIMEOUT, || {
            thread::sleep(Duration::from_millis(20));
            let now = self.statuses();
            let is_same = now.iter().zip(&last).all(|(now, last)| now.0 == last.0);
            last = now;
            is_same
        });
        last
    }

    /// What has changed on each node.
    #[track_caller]
    pub fn changes_since(&self, before: &[Status]) -> Vec<BTreeMap<String, i128>> {
        let after = self.statuses();
        after.iter().zip(before).map(|(after, before)| after.changes_since(before)).collect()
    }

    /// The address of node-a that a backend on node-b sees.
    fn source_towards(&self, place: Place, v6: bool) -> IpAddr {
        let node = self.cluster.node(0);
        match self.path {
            _ if place.is_host() => node.ip(v6),
            PodPath::SameDevice => node.ip(v6),
            PodPath::OtherDevice if v6 => node.back_v6.expect("a second network").into(),
            PodPath::OtherDevice => node.back_v4.expect("a second network").into(),
            PodPath::Vxlan | PodPath::VxlanLearning => {
                let vtep = if v6 { "fd00:10:244:1::" } else { "10.244.1.0" };
                vtep.parse().expect("an address")
            }
        }
    }
}

/// Two nodes with a pod each.
#[track_caller]
pub fn cluster(path: PodPath) -> Cluster {
    Cluster::new(&Spec { pods: vec![1, 1], path, mtu: None })
}

/// The client's address.
pub fn client(v6: bool) -> IpAddr {
    if v6 { CLIENT_V6.into() } else { CLIENT_V4.into() }
}

/// A port that no other flow of this process has.
pub fn client_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(10_000);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// One question from a namespace.
pub fn ask(
    netns: &Netns,
    target: SocketAddr,
    source: Source,
    protocol: Protocol,
) -> io::Result<Answer> {
    netns.run(|| match protocol {
        Protocol::Tcp => http::who(target, source, TIMEOUT),
        Protocol::Udp => udp::ask(target, source, &format!("from {}", source.port), TIMEOUT),
    })
}

/// Asks as the client what must be refused, and at once.
#[track_caller]
pub fn check_refused(scene: &Scene, targets: &[(SocketAddr, Protocol)], reason: &str) {
    let client = &scene.cluster.client;
    let wire = client.run(|| Wire::open(UPLINK).expect("a packet socket"));
    let mac = |netns: &Netns| frame::parse_mac(&netns.mac(UPLINK)).expect("a MAC address");
    let (node_mac, client_mac) = (mac(&scene.cluster.node(0).netns), mac(client));
    let refused = |target: SocketAddr, protocol| {
        let error = ask(client, target, Source::ANY, protocol).expect_err("nobody is there");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{target}: {error}");
    };
    let at_once = Duration::from_millis(500);
    for &(target, protocol) in targets {
        let what = format!("{target} {protocol:?}");
        let before = scene.status(0);
        match protocol {
            Protocol::Udp => {
                let start = Instant::now();
                refused(target, protocol);
                assert!(start.elapsed() < at_once, "{what}: {:?}", start.elapsed());
            }
            Protocol::Tcp => {
                let source = SocketAddr::new(self::client(target.is_ipv6()), client_port());
                let syn = Segment::Tcp { flags: 2, seq: 1, ack: 0, payload: &[] };
                let syn = frame::build(node_mac, client_mac, source, target, syn);
                wire.send(&syn).expect("sent");
                let answer = wire.receive(at_once, |frame| {
                    is_port_unreachable(frame) && quotes(frame, source, target)
                });
                assert!(answer.expect("no error").is_some(), "{what}: no answer to a SYN");
            }
        }
        let expected = [(format!("drops.{reason}"), 1), ("counters.icmp_sent".to_owned(), 1)];
        let changes = scene.status(0).changes_since(&before);
        assert_eq!(changes, BTreeMap::from(expected), "{what}");
    }
    // On a wire this short the error comes while `connect` still holds the socket, and the kernel
    // believes only the second one, a second later: all of them at a time.
    thread::scope(|scope| {
        for &(target, _) in targets.iter().filter(|(_, protocol)| *protocol == Protocol::Tcp) {
            scope.spawn(move || refused(target, Protocol::Tcp));
        }
    });
}

/// Whether a frame without options is ICMP's or ICMPv6's word for "nobody listens".
fn is_port_unreachable(frame: &[u8]) -> bool {
    match frame.get(12..14) {
        Some([0x08, 0]) => frame.get(23) == Some(&1) && frame.get(34..36) == Some(&[3, 3]),
        Some([0x86, 0xdd]) => frame.get(20) == Some(&58) && frame.get(54..56) == Some(&[1, 4]),
        _ => false,
    }
}

/// Whether an ICMP error quotes a packet between these two.
fn quotes(frame: &[u8], source: SocketAddr, target: SocketAddr) -> bool {
    let header = if source.is_ipv6() { 40 } else { 20 };
    let ports = [source.port().to_be_bytes(), target.port().to_be_bytes()].concat();
    let at = 14 + header + 8 + header;
    frame.get(at..at + 4) == Some(&ports)
}

/// Counters by name, for a comparison with what has changed.
pub fn counted<const N: usize>(changes: [(&str, i128); N]) -> BTreeMap<String, i128> {
    changes.into_iter().map(|(name, count)| (format!("counters.{name}"), count)).collect()
}
