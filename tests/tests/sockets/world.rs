//! What every test starts from: two nodes, an agent on the first one, and clients in its cgroup.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use lbxdp_agent::apply::sockets::SocketMaps;
use lbxdp_agent::pins::Pins;
use lbxdp_agent::sys::Access;
use lbxdp_tests::manifests::{Endpoint, Manifests, Port, Service};
use lbxdp_tests::process::{Process, wait_until};
use lbxdp_tests::traffic::puppet::{Kind, Puppet};
use lbxdp_tests::{Agent, AgentOptions, Cgroup, Cluster, Netns, Node, Pod, ServedCgroup, Spec};

/// By when an edit is served.
pub const EDIT_WITHIN: Duration = Duration::from_secs(5);

/// How a client writes an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
    /// IPv4 in an IPv6 socket.
    Mapped,
}

impl Family {
    pub const ALL: [Self; 3] = [Self::V4, Self::V6, Self::Mapped];

    /// Whether the address is one of IPv6.
    pub fn is_v6(self) -> bool {
        self == Self::V6
    }

    /// Whether the socket is.
    pub fn has_v6_socket(self) -> bool {
        self != Self::V4
    }

    /// As the socket wants it written.
    pub fn write(self, addr: SocketAddr) -> SocketAddr {
        match (self, addr.ip()) {
            (Self::Mapped, IpAddr::V4(ip)) => (ip.to_ipv6_mapped(), addr.port()).into(),
            _ => addr,
        }
    }

    /// A ClusterIP.
    pub fn cluster_ip(self, last: u8, port: u16) -> SocketAddr {
        let addr = if self.is_v6() {
            format!("[fd00:10:96::{last}]:{port}").parse().expect("an address")
        } else {
            SocketAddr::from(([10, 96, 0, last], port))
        };
        self.write(addr)
    }

    /// A load balancer's address.
    pub fn vip(self, last: u8, port: u16) -> SocketAddr {
        let addr = if self.is_v6() {
            format!("[2001:db8:ff::{last}]:{port}").parse().expect("an address")
        } else {
            SocketAddr::from(([203, 0, 113, last], port))
        };
        self.write(addr)
    }

    /// A node's address.
    pub fn node(self, node: &Node, port: u16) -> SocketAddr {
        self.write((node.ip(self.is_v6()), port).into())
    }

    /// A pod's address.
    pub fn pod(self, pod: &Pod, port: u16) -> SocketAddr {
        self.write((pod.ip(self.is_v6()), port).into())
    }
}

/// The TCP port of every Service and server.
pub const ECHO: u16 = 7;
/// The UDP port of every Service.
pub const DNS: u16 = 53;
/// The UDP port of the servers.
pub const DNS_TARGET: u16 = 5353;
/// The NodePort of `web` for TCP.
pub const NODE_PORT_ECHO: u16 = 30007;
/// The NodePort of `web` for UDP.
pub const NODE_PORT_DNS: u16 = 30053;
/// Last part of the addresses of `web`: every pod serves it.
pub const WEB: u8 = 10;

/// A Service with TCP and UDP at the addresses that end so.
pub fn service(name: &str, last: u8) -> Service {
    Service::new(name)
        .cluster_ip(&format!("10.96.0.{last}"))
        .cluster_ip(&format!("fd00:10:96::{last}"))
        .vip(&format!("203.0.113.{last}"))
        .vip(&format!("2001:db8:ff::{last}"))
}

/// The ports of every Service.
pub fn ports() -> [Port; 2] {
    [Port::tcp("echo", ECHO, ECHO), Port::udp("dns", DNS, DNS_TARGET)]
}

/// The same with [`ports`].
pub fn plain(name: &str, last: u8) -> Service {
    ports().into_iter().fold(service(name, last), Service::port)
}

/// Both endpoints of a pod.
pub fn both(node: &Node, pod: &Pod) -> [Endpoint; 2] {
    [Endpoint::new(pod.v4, &node.name), Endpoint::new(pod.v6, &node.name)]
}

/// A cluster, an agent on its first node, and a cgroup for the clients there. The parts go in this
/// order.
pub struct World {
    pub agent: Agent,
    pub manifests: Manifests,
    _servers: Vec<Process>,
    pub cluster: Cluster,
    pub cgroup: Cgroup,
}

impl World {
    /// Two pods on the first node and one on the second; every one serves `web`.
    #[track_caller]
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// The same with further arguments for the agent.
    #[track_caller]
    pub fn start_with(extra: &[&str]) -> Self {
        let cluster = Cluster::new(&Spec { pods: vec![2, 1], ..Spec::default() });
        let mut servers = cluster.serve_in_pods("tcp-echo", ECHO);
        servers.extend(cluster.serve_in_pods("udp", DNS_TARGET));
        let manifests = Manifests::of(&cluster);
        let cgroup = Cgroup::new("node");
        let web = service("web", WEB)
            .port(Port::tcp("echo", ECHO, ECHO).node_port(NODE_PORT_ECHO))
            .port(Port::udp("dns", DNS, DNS_TARGET).node_port(NODE_PORT_DNS));
        manifests.write("web.yaml", &web.with(&Endpoint::pods(&cluster)));
        let options = AgentOptions {
            cgroup: ServedCgroup::At(cgroup.path().to_owned()),
            extra: extra.iter().map(|argument| (*argument).to_owned()).collect(),
            ..AgentOptions::default()
        };
        let agent = Agent::start(cluster.node(0), &manifests.path(), options);
        Self { agent, manifests, _servers: servers, cluster, cgroup }
    }

    /// The node with the agent.
    pub fn node(&self) -> &Node {
        self.cluster.node(0)
    }

    /// A pod of that node.
    pub fn pod(&self, index: usize) -> &Pod {
        &self.node().pods[index]
    }

    /// The pod of the other node.
    pub fn far_pod(&self) -> &Pod {
        &self.cluster.node(1).pods[0]
    }

    /// A process in the cgroup.
    #[track_caller]
    pub fn puppet(&self, netns: &Netns) -> Puppet {
        Puppet::start(&self.cgroup, netns)
    }

    /// One in the first pod.
    #[track_caller]
    pub fn in_pod(&self) -> Puppet {
        self.puppet(&self.pod(0).netns)
    }

    /// One on the node itself.
    #[track_caller]
    pub fn on_node(&self) -> Puppet {
        self.puppet(&self.node().netns)
    }

    /// Writes a Service with these pods, and waits until a client gets to one of them, or to none.
    #[track_caller]
    pub fn serve(&self, name: &str, last: u8, pods: &[(&Node, &Pod)]) {
        let endpoints: Vec<_> = pods.iter().flat_map(|(node, pod)| both(node, pod)).collect();
        self.manifests.write(&format!("{name}.yaml"), &plain(name, last).with(&endpoints));
        self.wait_backends(&format!("default/{name}:"), pods.len());
    }

    /// Waits until every frontend whose name starts so has so many backends, and there is one.
    #[track_caller]
    pub fn wait_backends(&self, start: &str, count: usize) {
        wait_until(&format!("{start} has {count} backends"), EDIT_WITHIN, || {
            let list = self.agent.json(&["service", "list"]);
            let list = list.as_array().expect("a list");
            let mut ours = list
                .iter()
                .filter(|row| row["service"].as_str().is_some_and(|name| name.starts_with(start)))
                .peekable();
            ours.peek().is_some()
                && ours.all(|row| row["backends"].as_array().is_some_and(|b| b.len() == count))
        });
    }

    /// Entries of the maps of sockets.
    #[track_caller]
    pub fn entries(&self) -> usize {
        let pins = Pins::new(self.agent.pin_path());
        let maps = SocketMaps::open(&pins, Access::ReadOnly).expect("the maps open");
        maps.count().expect("the maps are read")
    }

    /// A counter of the programs.
    pub fn counter(&self, name: &str) -> u64 {
        self.agent.status().counter(name)
    }
}

/// Which pod speaks in an answer line.
#[track_caller]
pub fn name_in(answer: &str) -> String {
    let word = answer.split(' ').find_map(|word| word.strip_prefix("name="));
    word.unwrap_or_else(|| panic!("no name in {answer:?}")).to_owned()
}

/// Connects, and returns who answers.
#[track_caller]
pub fn who_tcp(puppet: &mut Puppet, family: Family, to: SocketAddr) -> String {
    puppet.open(90, Kind::Tcp, family.has_v6_socket());
    let connected = puppet.connect(90, to);
    assert_eq!(connected, Ok(()), "connect to {to}");
    let name = name_in(&puppet.recv(90).expect("a banner"));
    puppet.close(90);
    name
}

/// Asks in one datagram on this unconnected socket, and returns who sent the answer and who is
/// named in it.
#[track_caller]
pub fn ask_udp(puppet: &mut Puppet, id: u32, to: SocketAddr) -> (SocketAddr, String) {
    let sent = puppet.send_to(id, to, "hello");
    assert_eq!(sent, Ok(()), "sendto {to}");
    let (from, answer) = puppet.recv_from(id).unwrap_or_else(|e| panic!("no answer of {to}: {e}"));
    (from, name_in(&answer))
}

/// The unspecified address of a client's socket.
pub fn any(v6: bool, port: u16) -> SocketAddr {
    if v6 {
        format!("[::]:{port}").parse().expect("an address")
    } else {
        (Ipv4Addr::UNSPECIFIED, port).into()
    }
}
