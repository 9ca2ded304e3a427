//! A node with lbxdp on it: a real agent has filled the maps and loaded the programs, so that what is
//! measured is what runs. Then the agent is ended, because its work would be measured, too: what it has to
//! renew is given time without end.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use aya::Pod;
use aya::maps::{Array, Map, MapData, PerCpuArray};
use aya::programs::ProgramFd;
use lbxdp_common::flow_set::{FlowSet, Status};
use lbxdp_common::{ABI_VERSION, Counter, DropReason, Flow, FlowState, Hop};
use lbxdp_tests::cluster::UPLINK;
use lbxdp_tests::link::neighbour_line;
use lbxdp_tests::manifests::Manifests;
use lbxdp_tests::process::wait_until;
use lbxdp_tests::traffic::frame::parse_mac;
use lbxdp_tests::{Agent, AgentOptions, Cluster, Netns, ServedCgroup, Spec};
use serde_json::Value;

use super::packet::Mac;
use super::runner::{self, Place};

/// The node's default router, which exists only as a neighbour.
const ROUTER: Mac = [2, 0, 0, 0, 0, 1];

/// Where backends on other nodes are, of either family: more than a node's own pods.
const BACKENDS: [&str; 2] = ["10.245.0.0/16", "fd00:10:245::/112"];

/// How long an agent may take, which was built without optimisations and may have a lot to read.
const SERVING_WITHIN: Duration = Duration::from_secs(120);

/// Counters and drop reasons that moved, by name.
pub type Moved = BTreeMap<&'static str, u64>;

/// A node and the hosts around it.
pub struct World {
    /// Where frames come in.
    pub place: Place,
    /// lbxdp's XDP program.
    pub program: ProgramFd,
    /// The node's device.
    pub node_mac: Mac,
    /// From where everything comes, and to where replies go.
    pub router_mac: Mac,
    /// The next hop of all backends elsewhere.
    pub peer_mac: Mac,
    counters: PerCpuArray<MapData, u64>,
    drops: PerCpuArray<MapData, u64>,
    seen: Moved,
    flows_v4: Array<MapData, FlowSet<[u8; 4]>>,
    flows_v6: Array<MapData, FlowSet<[u8; 16]>>,
    cluster: Cluster,
    // Its pins, and the links behind them.
    _agent: Agent,
}

impl World {
    /// Builds the hosts and has an agent serve what `objects` makes of them, with tables of so many
    /// entries for flows and so many frontends. It has to reach backends of both families by way of the other node.
    pub fn new(
        flows: usize,
        frontends: usize,
        objects: impl FnOnce(&Cluster) -> Vec<Value>,
    ) -> Result<Self> {
        let cluster = Cluster::new(&Spec { pods: vec![1, 1], ..Spec::default() });
        let (node, peer) = (cluster.node(0), cluster.node(1));
        let peer_mac = mac(&peer.netns)?;
        // A neighbour that is asked again now and then would be measured with it.
        for (address, mac) in [
            (peer.ip(false), peer_mac),
            (peer.ip(true), peer_mac),
            ("198.51.100.1".parse()?, ROUTER),
            ("2001:db8:1::1".parse()?, ROUTER),
        ] {
            neighbour(&node.netns, address, mac);
        }
        for prefix in BACKENDS {
            node.netns.route(&format!("{prefix} via {}", peer.ip(prefix.contains(':'))));
        }
        let manifests = Manifests::of(&cluster);
        manifests.write("services.yaml", &objects(&cluster));
        let options = AgentOptions {
            cgroup: ServedCgroup::None,
            do_not_wait: true,
            extra: vec![format!("--flows={flows}"), format!("--frontends={frontends}")],
            ..AgentOptions::default()
        };
        let mut agent = Agent::start(node, &manifests.path(), options);
        wait_until("the agent serves", SERVING_WITHIN, || {
            agent.get("/readyz").is_some_and(|(status, _)| status == 200)
        });
        let maps = agent.pin_path().join(format!("v{ABI_VERSION}"));
        let mut hops: Array<_, Hop> = array(&maps, "hops")?;
        let free_ports: Array<_, u64> = array(&maps, "free_ports")?;
        wait_until("programs know next hops and free ports", SERVING_WITHIN, || {
            usable(&hops).count() == 2 && free_ports.iter().flatten().any(|word| word != 0)
        });
        agent.kill9();
        let lasting: Vec<_> =
            usable(&hops).map(|(id, hop)| (id, Hop { valid_until: u64::MAX, ..hop })).collect();
        ensure!(lasting.len() == 2, "the agent ended while it changed a next hop");
        for (id, hop) in lasting {
            hops.set(id, hop, 0)?;
        }

        let link: Value = serde_json::from_str(&node.netns.ip(&format!("-j link show {UPLINK}")))?;
        let id = link[0]["xdp"]["prog"]["id"].as_u64().context("no XDP program on the node")?;
        let program = runner::by_id(u32::try_from(id)?)?.fd()?;
        let ifindex = link[0]["ifindex"].as_u64().context("no interface index")?;
        let place = Place {
            netns: File::open(node.netns.path()).context("the node's namespace")?,
            ifindex: u32::try_from(ifindex)?,
        };
        let per_cpu = |name: &str| -> Result<PerCpuArray<MapData, u64>> {
            Ok(PerCpuArray::try_from(Map::PerCpuArray(pinned(&maps, name)?))?)
        };
        let mut world = Self {
            node_mac: mac(&node.netns)?,
            router_mac: ROUTER,
            peer_mac,
            counters: per_cpu("counters")?,
            drops: per_cpu("drops")?,
            place,
            program,
            seen: Moved::new(),
            flows_v4: array(&maps, "flows_v4")?,
            flows_v6: array(&maps, "flows_v6")?,
            cluster,
            _agent: agent,
        };
        world.moved()?;
        Ok(world)
    }

    /// The node's address.
    pub fn node_ip(&self, v6: bool) -> IpAddr {
        self.cluster.node(0).ip(v6)
    }

    /// The address of the node's pod.
    pub fn pod_ip(&self, v6: bool) -> IpAddr {
        self.cluster.node(0).pods[0].ip(v6)
    }

    /// Makes every flow one that its backend has answered, as the first reply does. Nothing else may
    /// use the table.
    pub fn answer(&mut self, v6: bool) -> Result<()> {
        if v6 { answer(&mut self.flows_v6) } else { answer(&mut self.flows_v4) }
    }

    /// What moved since the last call.
    pub fn moved(&mut self) -> Result<Moved> {
        let mut now = Moved::new();
        for counter in Counter::ALL {
            let count = self.counters.get(&(*counter as u32), 0)?.iter().sum();
            now.insert(counter.as_str(), count);
        }
        for reason in DropReason::ALL {
            now.insert(reason.as_str(), self.drops.get(&(*reason as u32), 0)?.iter().sum());
        }
        let before = |name: &&str| self.seen.get(name).copied().unwrap_or_default();
        let moved = now.iter().map(|(name, count)| (*name, count - before(name)));
        let moved = moved.filter(|(_, count)| *count > 0).collect();
        self.seen = now;
        Ok(moved)
    }
}

fn pinned(maps: &Path, name: &str) -> Result<MapData> {
    MapData::from_pin(maps.join(name)).with_context(|| name.to_owned())
}

fn array<T: Pod>(maps: &Path, name: &str) -> Result<Array<MapData, T>> {
    Ok(Array::try_from(Map::Array(pinned(maps, name)?))?)
}

/// Next hops that programs may use at this moment, and the indices of these.
fn usable(hops: &Array<MapData, Hop>) -> impl Iterator<Item = (u32, Hop)> {
    (0..).zip(hops.iter().flatten()).filter(|(_, hop)| hop.is_valid(0))
}

fn answer<A: Copy>(flows: &mut Array<MapData, FlowSet<A>>) -> Result<()>
where
    FlowSet<A>: Pod,
{
    for index in 0..flows.len() {
        let mut set = flows.get(&index, 0)?;
        let is_asked = |flow: &&mut Flow<A>| {
            let has_begun = [FlowState::Established, FlowState::Datagram]
                .iter()
                .any(|state| flow.state == *state as u8);
            Status::of(flow).is_some() && has_begun && !flow.has(Flow::<A>::ANSWERED)
        };
        let mut is_changed = false;
        for flow in set.places.iter_mut().map(|place| &mut place.flow).filter(is_asked) {
            flow.flags |= Flow::<A>::ANSWERED;
            is_changed = true;
        }
        if is_changed {
            flows.set(index, set, 0)?;
        }
    }
    Ok(())
}

fn mac(netns: &Netns) -> Result<Mac> {
    parse_mac(&netns.mac(UPLINK)).context("a hardware address")
}

fn neighbour(netns: &Netns, address: IpAddr, mac: Mac) {
    let mac = mac.map(|octet| format!("{octet:02x}")).join(":");
    netns.ip(&neighbour_line(UPLINK, address, &mac));
}
