//! A client, a switch, nodes and pods.
//!
//! ```text
//!                      switch: br0, 198.51.100.0/24, 2001:db8:1::/64
//!        ┌───────────────────┬───────────────────┐
//!   client .100         node-a .11          node-b .12 …
//!                            │                   │
//!                      pods 10.244.1.x     pods 10.244.2.x
//!                      fd00:10:244:1::x    fd00:10:244:2::x
//! ```
//!
//! The client reaches service addresses through one node, as behind a router
//! ([`Cluster::route_via`]). Pods hang on their node by a veth pair each, routed without a bridge,
//! and keep their devices' default offloads. [`PodPath`] says how nodes reach each other's pods.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use crate::link::{self, VxlanPeer, address_line, veth};
use crate::netns::Netns;
use crate::process::{Process, workspace_binary};
use crate::scratch::Scratch;

/// The client's IPv4 address.
pub const CLIENT_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 100);
/// The client's IPv6 address.
pub const CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x100);
/// Where addresses of type LoadBalancer come from, IPv4.
pub const VIPS_V4: &str = "203.0.113.0/24";
/// Where addresses of type LoadBalancer come from, IPv6.
pub const VIPS_V6: &str = "2001:db8:ff::/64";
/// Where ClusterIPs come from, IPv4.
pub const CLUSTER_IPS_V4: &str = "10.96.0.0/16";
/// Where ClusterIPs come from, IPv6.
pub const CLUSTER_IPS_V6: &str = "fd00:10:96::/112";
/// The device of every host and pod that leads outwards.
pub const UPLINK: &str = "eth0";
/// The nodes' second device, with [`PodPath::OtherDevice`].
pub const BACK_LINK: &str = "eth1";
/// The nodes' overlay device, with [`PodPath::Vxlan`].
pub const OVERLAY: &str = "flannel.1";

/// The bridge of a node's pods, after [`Cluster::bridge_pods`].
pub const BRIDGE: &str = "cni0";

/// How nodes reach each other's pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodPath {
    /// Routed over the network the client is on.
    SameDevice,
    /// Routed over a second network, 192.0.2.0/24 and 2001:db8:2::/64.
    OtherDevice,
    /// Through a VXLAN overlay whose tables are complete from the start.
    Vxlan,
    /// Through a VXLAN overlay that learns, neighbours included (two nodes).
    VxlanLearning,
}

/// What to build.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Pods of each node; its length is the number of nodes.
    pub pods: Vec<usize>,
    /// How nodes reach each other's pods.
    pub path: PodPath,
    /// MTU of the network the client is on, if not 1500.
    pub mtu: Option<u32>,
}

impl Default for Spec {
    /// Two nodes with two pods each, on one network.
    fn default() -> Self {
        Self { pods: vec![2, 2], path: PodPath::SameDevice, mtu: None }
    }
}

/// A pod: a namespace behind its node.
#[derive(Debug)]
pub struct Pod {
    /// `pod-<node>-<number>`, such as `pod-a-1`.
    pub name: String,
    /// Its namespace; its device is [`UPLINK`].
    pub netns: Netns,
    /// IPv4 address.
    pub v4: Ipv4Addr,
    /// IPv6 address.
    pub v6: Ipv6Addr,
    /// The device on the node that leads to it.
    pub node_device: String,
}

/// A node.
#[derive(Debug)]
pub struct Node {
    /// `node-a`, `node-b`, …
    pub name: String,
    /// Its namespace.
    pub netns: Netns,
    /// IPv4 address on the client's network.
    pub v4: Ipv4Addr,
    /// IPv6 address on the client's network.
    pub v6: Ipv6Addr,
    /// Address on the second network, with [`PodPath::OtherDevice`].
    pub back_v4: Option<Ipv4Addr>,
    /// IPv6 address on the second network, with [`PodPath::OtherDevice`].
    pub back_v6: Option<Ipv6Addr>,
    /// IPv4 prefix of its pods.
    pub pod_cidr_v4: String,
    /// IPv6 prefix of its pods.
    pub pod_cidr_v6: String,
    /// Its pods.
    pub pods: Vec<Pod>,
}

impl Node {
    /// Address of a family.
    pub fn ip(&self, v6: bool) -> IpAddr {
        if v6 { self.v6.into() } else { self.v4.into() }
    }
}

impl Pod {
    /// Address of a family.
    pub fn ip(&self, v6: bool) -> IpAddr {
        if v6 { self.v6.into() } else { self.v4.into() }
    }
}

/// All of it. Dropping it deletes everything.
#[derive(Debug)]
pub struct Cluster {
    // Declared first: a namespace's processes end before the namespaces they talk to go.
    /// The client.
    pub client: Netns,
    /// The nodes, `node-a` first.
    pub nodes: Vec<Node>,
    /// The switch. Its ports are named after who is on them: `client`, `node-a`, `node-a-back`.
    pub switch: Netns,
    logs: Scratch,
}

impl Cluster {
    /// Builds the namespaces, devices, addresses and routes. Service addresses are routed to the
    /// first node.
    #[track_caller]
    pub fn new(spec: &Spec) -> Self {
        let Spec { pods, path, mtu } = spec;
        let logs = Scratch::new("logs");
        let switch = Netns::new("switch");
        switch.bridge("br0");
        let client = Netns::new("client");
        link::leg((&client, UPLINK), (&switch, "client"), "br0");
        client.ip_batch([
            address_line(UPLINK, &format!("{CLIENT_V4}/24")),
            address_line(UPLINK, &format!("{CLIENT_V6}/64")),
        ]);
        if *path == PodPath::OtherDevice {
            switch.bridge("br1");
        }
        let nodes: Vec<Node> =
            pods.iter().enumerate().map(|(i, pods)| build_node(&switch, i, *pods, *path)).collect();
        for node in &nodes {
            connect_node(node, &nodes, *path);
        }
        // Pods are reachable from the client too, as on a routed pod network.
        client.ip_batch(nodes.iter().flat_map(|node| {
            [
                format!("route add {} via {}", node.pod_cidr_v4, node.v4),
                format!("route add {} via {}", node.pod_cidr_v6, node.v6),
            ]
        }));
        if let Some(mtu) = mtu {
            let ends = std::iter::once((&client, "client".to_owned()))
                .chain(nodes.iter().map(|node| (&node.netns, node.name.clone())));
            for (host, port) in ends {
                switch.ip(&format!("link set {port} mtu {mtu}"));
                host.ip(&format!("link set {UPLINK} mtu {mtu}"));
            }
            switch.ip(&format!("link set br0 mtu {mtu}"));
        }
        let cluster = Self { client, nodes, switch, logs };
        cluster.switch.wait_links_up();
        cluster.client.wait_links_up();
        for node in &cluster.nodes {
            node.netns.wait_links_up();
            for pod in &node.pods {
                pod.netns.wait_links_up();
            }
        }
        for prefix in [VIPS_V4, VIPS_V6, CLUSTER_IPS_V4, CLUSTER_IPS_V6] {
            cluster.route_via(prefix, 0);
        }
        cluster
    }

    /// A node by its place: 0 is `node-a`.
    pub fn node(&self, index: usize) -> &Node {
        &self.nodes[index]
    }

    /// Every pod with its node, in order.
    pub fn pods(&self) -> impl Iterator<Item = (&Node, &Pod)> {
        self.nodes.iter().flat_map(|node| node.pods.iter().map(move |pod| (node, pod)))
    }

    /// Lets the client send an address or prefix to a node.
    #[track_caller]
    pub fn route_via(&self, prefix: &str, node: usize) {
        let node = &self.nodes[node];
        self.client.route(&format!("{prefix} via {}", node.ip(prefix.contains(':'))));
    }

    /// Gives the client `count` more addresses of one family and returns them, the usual one
    /// first.
    #[track_caller]
    pub fn client_addresses(&self, v6: bool, count: u16) -> Vec<IpAddr> {
        let mut addresses: Vec<IpAddr> = vec![if v6 { CLIENT_V6.into() } else { CLIENT_V4.into() }];
        for n in 1..=count {
            addresses.push(if v6 {
                Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0x100, n).into()
            } else {
                assert!(n < 150, "one /24 holds no more");
                Ipv4Addr::new(198, 51, 100, 100 + u8::try_from(n).expect("small")).into()
            });
        }
        let length = if v6 { 64 } else { 24 };
        self.client.ip_batch(
            addresses[1..].iter().map(|a| address_line(UPLINK, &format!("{a}/{length}"))),
        );
        addresses
    }

    /// Puts the pods of each node on a bridge [`BRIDGE`] that has the gateway's addresses, as CNI
    /// plugins with a bridge do, with what such nodes need to have: bridged packets pass conntrack
    /// and the firewall (`br_netfilter`).
    #[track_caller]
    pub fn bridge_pods(&self) {
        for (number, node) in (1_u8..).zip(&self.nodes) {
            let gateway = Ipv4Addr::new(10, 244, number, 1);
            node.netns.bridge(BRIDGE);
            for key in ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"] {
                node.netns.sysctl(&format!("net.bridge.{key}"), "1");
            }
            for pod in &node.pods {
                node.netns.ip_batch([
                    // IPv4 routes go with the last address, IPv6 ones stay.
                    format!("address flush dev {}", pod.node_device),
                    format!("route del {}/128 dev {}", pod.v6, pod.node_device),
                    format!("link set {} master {BRIDGE}", pod.node_device),
                ]);
                pod.netns.ip_batch([
                    format!("address flush dev {UPLINK} scope global"),
                    address_line(UPLINK, &format!("{}/24", pod.v4)),
                    address_line(UPLINK, &format!("{}/64", pod.v6)),
                    format!("route replace default via {gateway} dev {UPLINK}"),
                    format!("route replace default via fe80::1 dev {UPLINK}"),
                ]);
            }
            node.netns.ip_batch([
                address_line(BRIDGE, &format!("{gateway}/24")),
                address_line(BRIDGE, "fe80::1/64"),
                format!("route replace {} dev {BRIDGE}", node.pod_cidr_v6),
            ]);
            node.netns.wait_links_up();
        }
    }

    /// Every host and pod forgets its neighbours, as after a long silence.
    #[track_caller]
    pub fn flush_neighbours(&self) {
        self.client.flush_neighbours();
        for node in &self.nodes {
            node.netns.flush_neighbours();
            for pod in &node.pods {
                pod.netns.flush_neighbours();
            }
        }
    }

    /// Runs `lbxdp-testd KIND --name NAME --listen [::]:PORT` in a namespace until the handle is
    /// dropped. KIND is `http`, `tcp-echo` or `udp`.
    #[track_caller]
    pub fn serve(&self, netns: &Netns, kind: &str, name: &str, port: u16) -> Process {
        let listen = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port);
        let mut command = netns.command(workspace_binary("lbxdp-testd"));
        command.args([kind, "--name", name, "--listen", &listen.to_string()]);
        let log = self.logs.join(&format!("{kind}-{name}-{port}.log"));
        let mut process = Process::spawn(&mut command, &log);
        process.wait_line("ready", Duration::from_secs(10));
        process
    }

    /// Serves the same in every pod, under the pod's name.
    #[track_caller]
    pub fn serve_in_pods(&self, kind: &str, port: u16) -> Vec<Process> {
        self.pods().map(|(_, pod)| self.serve(&pod.netns, kind, &pod.name, port)).collect()
    }

    /// A directory for logs that lives as long as the cluster.
    pub fn logs(&self) -> &Scratch {
        &self.logs
    }
}

fn overlay_mac(number: u16) -> String {
    format!("02:0a:f4:{number:02x}:00:00")
}

fn overlay_v4(number: u16) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, u8::try_from(number).expect("few nodes"), 0)
}

fn overlay_v6(number: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x10, 0x244, number, 0, 0, 0, 0)
}

#[track_caller]
fn build_node(switch: &Netns, index: usize, pods: usize, path: PodPath) -> Node {
    let number = u16::try_from(index + 1).expect("few nodes");
    let host = u8::try_from(10 + number).expect("few nodes");
    let letter = char::from(b'a' + u8::try_from(index).expect("few nodes"));
    let name = format!("node-{letter}");
    let netns = Netns::new(&name);
    netns.enable_forwarding();
    link::leg((&netns, UPLINK), (switch, &name), "br0");
    let v4 = Ipv4Addr::new(198, 51, 100, host);
    let v6 = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x10 + number);
    netns.ip_batch([
        address_line(UPLINK, &format!("{v4}/24")),
        address_line(UPLINK, &format!("{v6}/64")),
        // A router that answers nobody: a node has a default route.
        "route add default via 198.51.100.1".to_owned(),
        "route add default via 2001:db8:1::1".to_owned(),
    ]);
    let back = (path == PodPath::OtherDevice).then(|| {
        link::leg((&netns, BACK_LINK), (switch, &format!("{name}-back")), "br1");
        let v4 = Ipv4Addr::new(192, 0, 2, host);
        let v6 = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 0x10 + number);
        netns.ip_batch([
            address_line(BACK_LINK, &format!("{v4}/24")),
            address_line(BACK_LINK, &format!("{v6}/64")),
        ]);
        (v4, v6)
    });
    if matches!(path, PodPath::Vxlan | PodPath::VxlanLearning) {
        let learning = path == PodPath::VxlanLearning;
        netns.vxlan(OVERLAY, UPLINK, v4, &overlay_mac(number), learning);
        netns.ip_batch([
            address_line(OVERLAY, &format!("{}/32", overlay_v4(number))),
            address_line(OVERLAY, &format!("{}/128", overlay_v6(number))),
        ]);
    }
    let pods = (1..=pods).map(|n| build_pod(&netns, letter, number, n)).collect();
    Node {
        name,
        netns,
        v4,
        v6,
        back_v4: back.map(|(v4, _)| v4),
        back_v6: back.map(|(_, v6)| v6),
        pod_cidr_v4: format!("10.244.{number}.0/24"),
        pod_cidr_v6: format!("fd00:10:244:{number:x}::/64"),
        pods,
    }
}

#[track_caller]
fn build_pod(node: &Netns, letter: char, node_number: u16, n: usize) -> Pod {
    let n = u8::try_from(n).expect("few pods");
    let name = format!("pod-{letter}-{n}");
    let netns = Netns::new(&name);
    let node_device = format!("veth-{letter}-{n}");
    veth((&netns, UPLINK), (node, &node_device));
    let node_octet = u8::try_from(node_number).expect("few nodes");
    let v4 = Ipv4Addr::new(10, 244, node_octet, 10 + n);
    let gateway = Ipv4Addr::new(10, 244, node_octet, 1);
    let v6 = Ipv6Addr::new(0xfd00, 0x10, 0x244, node_number, 0, 0, 0, 0x10 + u16::from(n));
    node.ip_batch([
        address_line(&node_device, &format!("{gateway}/32")),
        address_line(&node_device, "fe80::1/64"),
        format!("route add {v4}/32 dev {node_device}"),
        format!("route add {v6}/128 dev {node_device}"),
    ]);
    netns.ip_batch([
        address_line(UPLINK, &format!("{v4}/32")),
        address_line(UPLINK, &format!("{v6}/128")),
        format!("route add {gateway}/32 dev {UPLINK} scope link"),
        format!("route add default via {gateway} dev {UPLINK}"),
        format!("route add default via fe80::1 dev {UPLINK}"),
    ]);
    Pod { name, netns, v4, v6, node_device }
}

/// Routes from one node to the pods of the others.
#[track_caller]
fn connect_node(node: &Node, all: &[Node], path: PodPath) {
    for (index, peer) in all.iter().enumerate() {
        if peer.name == node.name {
            continue;
        }
        let number = u16::try_from(index + 1).expect("few nodes");
        let (via_v4, via_v6, rest): (Ipv4Addr, Ipv6Addr, String) = match path {
            PodPath::SameDevice => (peer.v4, peer.v6, String::new()),
            PodPath::OtherDevice => (
                peer.back_v4.expect("on the second network"),
                peer.back_v6.expect("on the second network"),
                String::new(),
            ),
            PodPath::Vxlan | PodPath::VxlanLearning => {
                let overlay = (overlay_v4(number), overlay_v6(number));
                if path == PodPath::Vxlan {
                    node.netns.vxlan_peer(
                        OVERLAY,
                        &VxlanPeer {
                            underlay: peer.v4,
                            mac: overlay_mac(number),
                            overlay: vec![overlay.0.into(), overlay.1.into()],
                        },
                    );
                } else {
                    node.netns.vxlan_flood_to(OVERLAY, peer.v4);
                }
                (overlay.0, overlay.1, format!("dev {OVERLAY} onlink"))
            }
        };
        node.netns.ip_batch([
            format!("route add {} via {via_v4} {rest}", peer.pod_cidr_v4),
            format!("route add {} via {via_v6} {rest}", peer.pod_cidr_v6),
        ]);
    }
}
