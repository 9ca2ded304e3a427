//! Bulk TCP between a client outside and a pod of the node, through a Service, against the same
//! without one.
//!
//! An XDP program on a veth device makes the kernel cut bulk into packets, whatever the program does. So
//! XDP is compared with one that passes everything on the same device, and what tc alone does with no
//! program at all.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use lbxdp_tests::cluster::UPLINK;
use lbxdp_tests::manifests::{Endpoint, Manifests, Port, Service};
use lbxdp_tests::{Agent, AgentOptions, Cluster, Process, ServedCgroup, Spec};

use super::Comparison;
use super::sockets::{BULK, bulk};

const VIP: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 80);

/// A client, a node and a pod, and what is on the node's device.
struct Place {
    // Ended before the hosts go.
    agent: Option<(Agent, Manifests)>,
    _iperf3: Process,
    cluster: Cluster,
}

/// What is on the node's device.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Programs {
    /// An XDP program that passes everything.
    Pass,
    /// lbxdp with XDP.
    Xdp,
    /// Nothing.
    None,
    /// lbxdp without XDP.
    Tc,
}

/// Both directions, each way of attachment.
pub fn run(pairs: u32) -> Result<Vec<Comparison>> {
    let mut all = Vec::new();
    for (names, reference, measured) in [
        (
            ["XDP, to the pod, against a program that passes", "the same, from the pod"],
            Programs::Pass,
            Programs::Xdp,
        ),
        (
            ["tc, to the pod, against no program", "the same, from the pod"],
            Programs::None,
            Programs::Tc,
        ),
    ] {
        let (reference, measured) = (Place::new(reference), Place::new(measured));
        for (name, direction) in names.into_iter().zip([&[][..], &["-R"]]) {
            all.push(Comparison::run(
                name,
                "Mbit/s",
                pairs,
                || reference.sample(direction),
                || measured.sample(direction),
            )?);
        }
    }
    Ok(all)
}

impl Place {
    fn new(programs: Programs) -> Self {
        let cluster = Cluster::new(&Spec { pods: vec![1], ..Spec::default() });
        let node = cluster.node(0);
        if matches!(programs, Programs::None | Programs::Tc) {
            // Bulk as veth devices carry it if nobody looks into it.
            for (host, port) in [(&cluster.client, "client"), (&node.netns, node.name.as_str())] {
                cluster.switch.ip(&format!("link set {port} xdpdrv off"));
                cluster.switch.exec(&format!("ethtool -K {port} tx on"));
                host.exec(&format!("ethtool -K {UPLINK} tx on"));
            }
        }
        let agent = match programs {
            Programs::Pass => {
                node.netns.xdp_pass(UPLINK);
                None
            }
            Programs::None => None,
            Programs::Xdp | Programs::Tc => {
                let mode = if programs == Programs::Xdp { "native" } else { "off" };
                let manifests = Manifests::of(&cluster);
                let service = Service::new("bulk")
                    .cluster_ip("10.96.0.80")
                    .vip(&VIP.to_string())
                    .port(Port::tcp("bulk", BULK, BULK));
                manifests.write("bulk.yaml", &service.with(&Endpoint::pods(&cluster)));
                let options = AgentOptions {
                    cgroup: ServedCgroup::None,
                    extra: vec!["--xdp-mode".to_owned(), mode.to_owned()],
                    ..AgentOptions::default()
                };
                Some((Agent::start(node, &manifests.path(), options), manifests))
            }
        };
        let mut command = node.pods[0].netns.command("iperf3");
        let log = cluster.logs().join("iperf3.log");
        let mut iperf3 = Process::spawn(command.args(["-s", "--forceflush"]), &log);
        iperf3.wait_line("Server listening", Duration::from_secs(5));
        Self { agent, _iperf3: iperf3, cluster }
    }

    /// Through the Service where there is one.
    fn sample(&self, direction: &[&str]) -> Result<f64> {
        let target = if self.agent.is_some() { VIP } else { self.cluster.node(0).pods[0].v4 };
        let mut iperf3 = self.cluster.client.command("iperf3");
        iperf3.args(direction);
        bulk(iperf3, &target.to_string()).with_context(|| format!("to {target}"))
    }
}
