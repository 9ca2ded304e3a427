//! From a client through the node to somewhere else.
//!
//! ```text
//! client: eth0 ── eth0 :node: eth1 ── eth0 :end
//! ```
//!
//! Packets leave the client for Services, and the node forwards them to pods that seem to be behind the
//! end. Nobody answers.

use std::fs::File;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aya::Ebpf;
use lbxdp_tests::cluster::{BACK_LINK, Node, UPLINK};
use lbxdp_tests::link::neighbour_line;
use lbxdp_tests::manifests::{Manifests, node_object};
use lbxdp_tests::process::wait_until;
use lbxdp_tests::traffic::frame::parse_mac;
use lbxdp_tests::{Agent, AgentOptions, Netns, ServedCgroup};
use serde_json::Value;

use super::generator::{attach, load};
use super::services::Services;
use super::{Dataplane, kube_proxy};
use crate::bench::packets::Mac;

/// The node's address on the client's side.
const NODE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 11);
/// The next hop of the pods.
const FAR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 12);
/// Its MAC address; not that of the device there, so the kernel's stack ends at once what gets there.
const FAR_MAC: &str = "02:00:00:00:00:02";
/// The other node.
const FAR_NODE: &str = "node-b";
/// How long an agent may take, which was built without optimisations and has a lot to read.
const SERVING_WITHIN: Duration = Duration::from_secs(180);

/// The path with something on the node that forwards.
pub struct Road {
    /// Where packets leave.
    pub client: File,
    /// Index of the client's device.
    pub ifindex: u32,
    /// The client's device.
    pub client_mac: Mac,
    /// The node's device.
    pub node_mac: Mac,
    /// Whether packets get to the end, or only to the node.
    is_through: bool,
    end: Netns,
    node: Node,
    _client: Netns,
    // With what it reads.
    _agent: Option<(Agent, Manifests)>,
    _ebpf: Vec<Ebpf>,
}

impl Road {
    /// Builds it, each device with a queue for each of `queues` processors.
    pub fn new(
        dataplane: Dataplane,
        services: &Services,
        object: &Path,
        queues: usize,
    ) -> Result<Self> {
        let (client, node, end) =
            (Netns::new("client"), Netns::new(dataplane.name()), Netns::new("end"));
        for (here, device, peer, far) in
            [(&client, UPLINK, &node, UPLINK), (&node, BACK_LINK, &end, UPLINK)]
        {
            let queues = format!("numtxqueues {queues} numrxqueues {queues}");
            here.ip(&format!(
                "link add {device} {queues} type veth peer name {far} {queues} netns {}",
                peer.name()
            ));
            here.ip(&format!("link set {device} up"));
            peer.ip(&format!("link set {far} up"));
        }
        // Or the first flows would be answered by nobody, and their packets be kept.
        end.sysctl("net.ipv6.conf.all.disable_ipv6", "1");
        client.sysctl("net.ipv6.conf.all.disable_ipv6", "1");
        node.enable_forwarding();
        let addresses = [
            (UPLINK, format!("{NODE}/24")),
            (UPLINK, "2001:db8:1::11/64".to_owned()),
            (BACK_LINK, "192.0.2.11/24".to_owned()),
        ];
        for (device, prefix) in addresses {
            node.add_address(device, &prefix);
        }
        node.route("default via 198.51.100.1");
        node.ip(&neighbour_line(BACK_LINK, FAR.into(), FAR_MAC));
        node.route(&format!("{} via {FAR}", Services::FAR_PODS));
        for netns in [&client, &node, &end] {
            netns.wait_links_up();
        }
        let link: Value = serde_json::from_str(&client.ip(&format!("-j link show {UPLINK}")))?;
        let ifindex = link[0]["ifindex"].as_u64().context("no interface index")?;
        let mac = |netns: &Netns| parse_mac(&netns.mac(UPLINK)).context("a hardware address");
        let mut road = Self {
            client: File::open(client.path()).context("the client's namespace")?,
            ifindex: u32::try_from(ifindex)?,
            client_mac: mac(&client)?,
            node_mac: mac(&node)?,
            is_through: dataplane != Dataplane::Floor,
            end,
            node: host(node),
            _client: client,
            _agent: None,
            _ebpf: Vec::new(),
        };
        road.serve(dataplane, services, object)?;
        Ok(road)
    }

    fn serve(&mut self, dataplane: Dataplane, services: &Services, object: &Path) -> Result<()> {
        let node = &self.node.netns;
        match dataplane {
            Dataplane::Floor => {
                let mut ebpf = load(object, &["sink"])?;
                attach(&mut ebpf, "sink", node, UPLINK)?;
                self._ebpf.push(ebpf);
            }
            Dataplane::Lbxdp => {
                // XDP hands frames only to a device whose peer has a program.
                let mut ebpf = load(object, &["sink"])?;
                attach(&mut ebpf, "sink", &self.end, UPLINK)?;
                self._ebpf.push(ebpf);
                self._agent = Some(agent(&self.node, services));
            }
            Dataplane::Nftables | Dataplane::Iptables => {
                node.gro_on(UPLINK);
                // New flows come faster than they would be forgotten. A round takes less.
                node.sysctl("net.netfilter.nf_conntrack_udp_timeout", "15");
                let (program, arguments, rules): (_, &[&str], _) =
                    if dataplane == Dataplane::Nftables {
                        ("nft", &["-f", "-"], kube_proxy::nftables(services))
                    } else {
                        ("iptables-restore", &[], kube_proxy::iptables(services))
                    };
                feed(node, program, arguments, &rules)?;
            }
        }
        Ok(())
    }

    /// Packets that came to the end so far: of the path, or of what is measured of it.
    pub fn arrived(&self) -> Result<u64> {
        let netns = if self.is_through { &self.end } else { &self.node.netns };
        let shown = netns.ip(&format!("-j -s link show {UPLINK}"));
        let link: Value = serde_json::from_str(&shown)?;
        link[0]["stats64"]["rx"]["packets"].as_u64().context("no count of packets")
    }

    /// Waits until `count` packets have come since `before`, of which one in a thousand may be missing.
    pub fn expect(&self, before: u64, count: u64) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(2);
        loop {
            let arrived = self.arrived()? - before;
            if arrived + count / 1_000 >= count {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{arrived} of {count} packets came to the end");
        }
    }
}

/// The node, as the agent's test harness knows it.
fn host(netns: Netns) -> Node {
    Node {
        name: "node-a".to_owned(),
        netns,
        v4: NODE,
        v6: Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x11),
        back_v4: Some(Ipv4Addr::new(192, 0, 2, 11)),
        back_v6: None,
        pod_cidr_v4: "10.244.1.0/24".to_owned(),
        pod_cidr_v6: "fd00:10:244:1::/64".to_owned(),
        pods: Vec::new(),
    }
}

fn agent(node: &Node, services: &Services) -> (Agent, Manifests) {
    let manifests = Manifests::new();
    manifests.write("nodes.yaml", &[node_object(node)]);
    manifests.write("services.yaml", &services.objects(FAR_NODE));
    let options = AgentOptions {
        devices: vec![UPLINK.to_owned(), BACK_LINK.to_owned()],
        cgroup: ServedCgroup::None,
        do_not_wait: true,
        ..AgentOptions::default()
    };
    let agent = Agent::start(node, &manifests.path(), options);
    wait_until("the agent serves", SERVING_WITHIN, || {
        agent.get("/readyz").is_some_and(|(status, _)| status == 200)
    });
    (agent, manifests)
}

/// Runs a program in the namespace with `text` as its input.
fn feed(netns: &Netns, program: &str, arguments: &[&str], text: &str) -> Result<()> {
    use std::io::Write as _;

    let mut command = netns.command(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| program.to_owned())?;
    let mut stdin = child.stdin.take().context("its input")?;
    let written = stdin.write_all(text.as_bytes());
    drop(stdin);
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(written.is_ok() && output.status.success(), "{program}: {said}");
    Ok(())
}
