//! From a client through the node to somewhere else.
//!
//! Packets leave the client for Services, and the node forwards them to pods that seem to be behind the
//! end. Nobody answers.

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aya::Ebpf;
use lbxdp_tests::cluster::{BACK_LINK, UPLINK};
use lbxdp_tests::link::neighbour_line;
use lbxdp_tests::manifests::Manifests;
use lbxdp_tests::traffic::frame::parse_mac;
use lbxdp_tests::{Agent, AgentOptions, Netns};
use serde_json::Value;

use super::Dataplane;
use super::generator::{attach, load};
use super::hosts::{FAR, Hosts};
use super::services::Services;
use crate::bench::packets::Mac;

/// The MAC address of the next hop of the pods; not that of the device there, so the kernel's stack ends at once what gets there.
const FAR_MAC: &str = "02:00:00:00:00:02";

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
    hosts: Hosts,
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
        let hosts = Hosts::new(dataplane.name(), queues);
        let Hosts { client, node, end } = &hosts;
        // Or the first flows would be answered by nobody, and their packets be kept.
        end.sysctl("net.ipv6.conf.all.disable_ipv6", "1");
        client.sysctl("net.ipv6.conf.all.disable_ipv6", "1");
        node.netns.ip(&neighbour_line(BACK_LINK, FAR.into(), FAR_MAC));
        let link: Value = serde_json::from_str(&client.ip(&format!("-j link show {UPLINK}")))?;
        let ifindex = link[0]["ifindex"].as_u64().context("no interface index")?;
        let mac = |netns: &Netns| parse_mac(&netns.mac(UPLINK)).context("a hardware address");
        let mut road = Self {
            client: File::open(client.path()).context("the client's namespace")?,
            ifindex: u32::try_from(ifindex)?,
            client_mac: mac(client)?,
            node_mac: mac(&node.netns)?,
            is_through: dataplane != Dataplane::Floor,
            hosts,
            _agent: None,
            _ebpf: Vec::new(),
        };
        road.serve(dataplane, services, object)?;
        Ok(road)
    }

    fn serve(&mut self, dataplane: Dataplane, services: &Services, object: &Path) -> Result<()> {
        let Hosts { node, end, .. } = &self.hosts;
        match dataplane {
            Dataplane::Floor => {
                let mut ebpf = load(object, &["sink"])?;
                attach(&mut ebpf, "sink", &node.netns, UPLINK)?;
                self._ebpf.push(ebpf);
            }
            Dataplane::Lbxdp => {
                // XDP hands frames only to a device whose peer has a program.
                let mut ebpf = load(object, &["sink"])?;
                attach(&mut ebpf, "sink", end, UPLINK)?;
                self._ebpf.push(ebpf);
                self._agent = Some(self.hosts.agent(services, AgentOptions::default()));
            }
            Dataplane::Nftables | Dataplane::Iptables => {
                node.netns.gro_on(UPLINK);
                // New flows come faster than they would be forgotten. A round takes less.
                node.netns.sysctl("net.netfilter.nf_conntrack_udp_timeout", "15");
                self.hosts.rules(dataplane, services)?;
            }
        }
        Ok(())
    }

    /// Packets that came to the end so far: of the path, or of what is measured of it.
    pub fn arrived(&self) -> Result<u64> {
        let netns = if self.is_through { &self.hosts.end } else { &self.hosts.node.netns };
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
