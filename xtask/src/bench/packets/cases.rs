//! Which cases there are, and the nodes they are about.

use std::net::IpAddr;

use anyhow::Result;
use lbxdp_bench_ebpf::Choice;
use lbxdp_tests::Cluster;
use lbxdp_tests::manifests::{Endpoint, Port, Service};
use serde_json::Value;

use super::case::{Before, Case, Output, Share, Subject, client};
use super::packet::{Packet, Transport};
use super::runner::{XDP_PASS, XDP_REDIRECT, XDP_TX};
use super::world::World;

/// The control.
pub const CONTROL: &str = "control";

/// Where NodePorts begin.
const NODE_PORTS: u16 = 30_000;
/// NodePort of a Service with [`FEW`] backends elsewhere.
const ELSEWHERE: u16 = 30_080;
/// NodePort of a Service whose only backend is the node's pod.
const HERE: u16 = 30_081;
/// A port of the node that no Service has.
const NOBODYS: u16 = 30_099;
/// The backends' port.
const BACKEND_PORT: u16 = 8_080;
/// Backends of most Services: source ports for 40,000 flows, with room.
const FEW: u8 = 32;
/// Backends of the Service that meets ever new flows.
const MANY: u8 = 250;
/// Flows that fill any table.
const FULL: u64 = 1_000_000;

/// The node that most cases are about.
pub const USUAL: usize = 0;
/// The node whose flow table is full.
pub const CROWDED: usize = 1;

/// Makes the nodes.
pub fn worlds() -> Result<Vec<World>> {
    Ok(vec![World::new(&[], usual)?, World::new(&[], crowded)?])
}

fn service(name: &str, node_port: u16) -> Service {
    let port = |port: Port| port.node_port(node_port);
    // Without a ClusterIP of a family, a Service is not served in it.
    Service::new(name)
        .cluster_ip(&format!("10.96.0.{}", node_port - NODE_PORTS))
        .cluster_ip(&format!("fd00:10:96::{:x}", node_port - NODE_PORTS))
        .node_ports()
        .port(port(Port::tcp("tcp", 80, BACKEND_PORT)))
        .port(port(Port::udp("udp", 80, BACKEND_PORT)))
}

/// So many backends on the other node, of both families.
fn elsewhere(count: u8) -> Vec<Endpoint> {
    let addresses = (1..=count).flat_map(|n| [backend(false, n), backend(true, n)]);
    addresses.map(|address| Endpoint::new(address, "node-b")).collect()
}

fn backend(v6: bool, n: u8) -> IpAddr {
    if v6 {
        [0xfd00, 0x10, 0x244, 2, 0, 0, 0, u16::from(n)].into()
    } else {
        [10, 244, 2, n].into()
    }
}

fn usual(cluster: &Cluster) -> Vec<Value> {
    let node = cluster.node(0);
    let mut objects = service("elsewhere", ELSEWHERE).with(&elsewhere(FEW));
    objects.extend(service("here", HERE).with(&Endpoint::pods_of(node)));
    objects
}

fn crowded(_: &Cluster) -> Vec<Value> {
    service("elsewhere", ELSEWHERE).with(&elsewhere(MANY))
}

/// A family, a protocol and a number of flows.
struct Kind {
    v6: bool,
    transport: Transport,
    flows: u32,
}

impl Kind {
    fn name(&self, path: &str) -> String {
        let Self { v6, transport, flows } = self;
        let family = if *v6 { "v6" } else { "v4" };
        let protocol = if *transport == Transport::Datagram { "udp" } else { "tcp" };
        let flows = match flows {
            1_000_000.. => format!("{}M", flows / 1_000_000),
            1_000.. => format!("{}k", flows / 1_000),
            _ => flows.to_string(),
        };
        format!("{path}/{family}/{protocol}/{flows}")
    }
}

/// All cases, those that are not asked for included.
pub fn cases(worlds: &[World]) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    let (tcp, udp) = (Transport::Ack, Transport::Datagram);
    for v6 in [false, true] {
        cases.push(nobody(&worlds[USUAL], &Kind { v6, transport: tcp, flows: 1 })?);
        cases.push(node(&worlds[USUAL], &Kind { v6, transport: tcp, flows: 1 })?);
        for (transport, flows) in [(tcp, 1), (tcp, 1_000), (tcp, 40_000), (udp, 1), (udp, 1_000)] {
            let kind = Kind { v6, transport, flows };
            cases.push(here(&worlds[USUAL], &kind)?);
            cases.push(away(&worlds[USUAL], &kind)?);
        }
        for transport in [Transport::Syn, udp] {
            cases.push(new(&worlds[CROWDED], &Kind { v6, transport, flows: 1 })?);
        }
    }
    Ok(cases)
}

/// A client's packet to the node's device, by way of its router.
fn request(world: &World, kind: &Kind, address: IpAddr, port: u16) -> Result<Packet> {
    Ok(Packet {
        from: world.router_mac,
        to: world.node_mac,
        src: client(kind.v6)?,
        dst: (address, port).into(),
        ttl: 64,
        transport: kind.transport,
    })
}

/// To an address that is nobody's.
fn nobody(world: &World, kind: &Kind) -> Result<Case> {
    let address: IpAddr = if kind.v6 { "2001:db8:e::e" } else { "198.18.0.1" }.parse()?;
    let packet = request(world, kind, address, 80)?;
    Ok(Case {
        verdicts: &[XDP_PASS],
        output: Output::Same,
        ..Case::new(kind.name("nobody"), Subject::Lbxdp(USUAL), packet)
    })
}

/// To the node itself.
fn node(world: &World, kind: &Kind) -> Result<Case> {
    let packet = request(world, kind, world.node_ip(kind.v6), NOBODYS)?;
    Ok(Case {
        verdicts: &[XDP_PASS],
        output: Output::Same,
        ..Case::new(kind.name("node"), Subject::Lbxdp(USUAL), packet)
    })
}

/// Of a flow to a backend on the node.
fn here(world: &World, kind: &Kind) -> Result<Case> {
    let packet = request(world, kind, world.node_ip(kind.v6), HERE)?;
    let dst = (world.pod_ip(kind.v6), BACKEND_PORT).into();
    Ok(Case {
        choice: Choice::Random,
        flows: kind.flows,
        before: Before::Established,
        verdicts: &[XDP_PASS],
        shares: vec![Share::all(&["flow_hit"]), Share::all(&["passed_local"])],
        output: Output::Packet { packet: Packet { dst, ..packet.clone() }, any_backend: false },
        ..Case::new(kind.name("local"), Subject::Lbxdp(USUAL), packet)
    })
}

/// Of a flow to a backend elsewhere.
fn away(world: &World, kind: &Kind) -> Result<Case> {
    let packet = request(world, kind, world.node_ip(kind.v6), ELSEWHERE)?;
    Ok(Case {
        choice: Choice::Random,
        flows: kind.flows,
        before: Before::Established,
        verdicts: &[XDP_TX, XDP_REDIRECT],
        shares: vec![Share::all(&["flow_hit"]), Share::all(&["transmitted", "redirected"])],
        output: translated(world, kind, &packet),
        ..Case::new(kind.name("snat-established"), Subject::Lbxdp(USUAL), packet)
    })
}

/// Ever new flows to backends elsewhere, with a full table.
fn new(world: &World, kind: &Kind) -> Result<Case> {
    let packet = request(world, kind, world.node_ip(kind.v6), ELSEWHERE)?;
    let kind = Kind { flows: u32::MAX, ..*kind };
    Ok(Case {
        choice: Choice::Sequential,
        flows: kind.flows,
        before: Before::Created(FULL),
        verdicts: &[XDP_TX, XDP_REDIRECT],
        shares: vec![
            Share::nearly_all(&["flow_new"]),
            Share::nearly_all(&["transmitted", "redirected"]),
            // What a full table evicts leaves gaps.
            Share::hardly_any(&["snat_ports_exhausted", "flow_restored", "flow_broken"]),
        ],
        output: translated(world, &kind, &packet),
        ..Case::new(
            kind.name("snat-new").replace("/4294M", "/full"),
            Subject::Lbxdp(CROWDED),
            packet,
        )
    })
}

/// What becomes of a packet to a backend elsewhere.
fn translated(world: &World, kind: &Kind, packet: &Packet) -> Output {
    let packet = Packet {
        from: world.node_mac,
        to: world.peer_mac,
        src: (world.node_ip(kind.v6), 0).into(),
        dst: (backend(kind.v6, 1), BACKEND_PORT).into(),
        ttl: packet.ttl - 1,
        ..packet.clone()
    };
    Output::Packet { packet, any_backend: true }
}
