//! A client, a node, another network, and who forwards on the node.
//!
//! ```text
//! client: eth0 ── eth0 :node: eth1 ── eth0 :end
//! ```

use std::io::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lbxdp_tests::cluster::{BACK_LINK, Node, UPLINK};
use lbxdp_tests::manifests::{Manifests, node_object};
use lbxdp_tests::process::wait_until;
use lbxdp_tests::{Agent, AgentOptions, Netns, ServedCgroup};

use super::services::Services;
use super::{Dataplane, kube_proxy};

/// The client's address.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// The node's address on the client's side.
pub const NODE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 11);
/// The same on the other one.
pub const BACK: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 11);
/// The next hop of the pods.
pub const FAR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 12);
/// How long an agent may take, which was built without optimisations and has a lot to read.
const SERVING_WITHIN: Duration = Duration::from_secs(180);

/// Three namespaces with veth pairs between them.
pub struct Hosts {
    /// Where packets come from.
    pub client: Netns,
    /// What forwards them.
    pub node: Node,
    /// Where the pods are.
    pub end: Netns,
}

impl Hosts {
    /// Makes them, each device with a queue for each of `queues` processors.
    pub fn new(name: &str, queues: usize) -> Self {
        let (client, node, end) = (Netns::new("client"), Netns::new(name), Netns::new("end"));
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
        node.enable_forwarding();
        let addresses = [
            (UPLINK, format!("{NODE}/24")),
            (UPLINK, "2001:db8:1::11/64".to_owned()),
            (BACK_LINK, format!("{BACK}/24")),
        ];
        for (device, prefix) in addresses {
            node.add_address(device, &prefix);
        }
        node.route(&format!("default via {CLIENT}"));
        node.route(&format!("{} via {FAR}", Services::FAR_PODS));
        for netns in [&client, &node, &end] {
            netns.wait_links_up();
        }
        Self { client, node: host(node), end }
    }

    /// An agent on the node that serves these.
    pub fn agent(&self, services: &Services, options: AgentOptions) -> (Agent, Manifests) {
        let manifests = Manifests::new();
        manifests.write("nodes.yaml", &[node_object(&self.node)]);
        for number in 0..services.count() {
            manifests.write(&Services::file(number), &services.objects(number, None));
        }
        let options = AgentOptions {
            devices: vec![UPLINK.to_owned(), BACK_LINK.to_owned()],
            cgroup: ServedCgroup::None,
            do_not_wait: true,
            ..options
        };
        let agent = Agent::start(&self.node, &manifests.path(), options);
        wait_until("the agent serves", SERVING_WITHIN, || {
            agent.get("/readyz").is_some_and(|(status, _)| status == 200)
        });
        (agent, manifests)
    }

    /// kube-proxy's rules on the node for these.
    pub fn rules(&self, dataplane: Dataplane, services: &Services) -> Result<()> {
        let (program, arguments, rules): (_, &[&str], _) = match dataplane {
            Dataplane::Iptables => ("iptables-restore", &[], kube_proxy::iptables(services)),
            _ => ("nft", &["-f", "-"], kube_proxy::nftables(services)),
        };
        feed(&self.node.netns, program, arguments, &rules)
    }
}

/// The node, as the agent's test harness knows it.
fn host(netns: Netns) -> Node {
    Node {
        name: "node-a".to_owned(),
        netns,
        v4: NODE,
        v6: Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x11),
        back_v4: Some(BACK),
        back_v6: None,
        pod_cidr_v4: "10.244.1.0/24".to_owned(),
        pod_cidr_v6: "fd00:10:244:1::/64".to_owned(),
        pods: Vec::new(),
    }
}

/// Runs a program in the namespace with `text` as its input.
fn feed(netns: &Netns, program: &str, arguments: &[&str], text: &str) -> Result<()> {
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
