//! Which cases there are, and the nodes they are about.

use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;

use anyhow::{Result, bail};
use lbxdp_bench_ebpf::{BACKENDS, Backend, Choice, Frontend, MAX_LISTED};
use lbxdp_common::limits::{MAX_FLOWS, MAX_FRONTENDS};
use lbxdp_tests::Cluster;
use lbxdp_tests::manifests::{Endpoint, Port, Service};
use serde_json::{Value, json};

use super::case::{Before, Case, Output, Share, Subject, client};
use super::packet::{Packet, Transport};
use super::runner::{Runner, XDP_DROP, XDP_PASS, XDP_REDIRECT, XDP_TX};
use super::world::World;

/// The control.
pub const CONTROL: &str = "control";

/// How the names of reference programs' cases begin.
const REFERENCE: &str = "ref-";

/// Where NodePorts begin.
const NODE_PORTS: u16 = 30_000;
/// NodePort of a Service with backends elsewhere.
const ELSEWHERE: u16 = 30_080;
/// NodePort of a Service whose only backend is the node's pod.
const HERE: u16 = 30_081;
/// NodePort of a Service with backends elsewhere, whose clients keep theirs.
const KEPT: u16 = 30_082;
/// NodePort of a Service without backends.
const EMPTY: u16 = 30_083;
/// NodePorts of Services that come to have 50, 99 and 100 % of their source ports in use.
const HALF: u16 = 30_084;
/// See above.
const SCARCE: u16 = 30_085;
/// See above.
const NONE_LEFT: u16 = 30_086;
/// A port of the node that no Service has.
const NOBODYS: u16 = 30_099;
/// The backends' port.
const BACKEND_PORT: u16 = 8_080;
/// Backends of most Services: source ports for 40,000 flows, with room.
const FEW: u16 = 64;
/// Backends of Services that meet ever new flows: source ports for all that the table holds, with
/// room.
const MANY: u16 = {
    let enough = FULL / SOURCE_PORTS * 5 / 4;
    if enough > 250 { enough as u16 } else { 250 }
};
/// Backends of the Service with a million flows: one source port of nine is in use.
const FOR_A_MILLION: u16 = 2_000;
/// Entries of the table for a million flows: twice as many as they take.
const ROOM_FOR_A_MILLION: usize = 1 << 22;
/// Source ports towards one backend (61000 to 65535).
const SOURCE_PORTS: u64 = 4_536;
/// Backends of the Service with [`HALF`] of its source ports in use.
const HALF_BACKENDS: u16 = 16;
/// Backends of the Service whose source ports are [`SCARCE`].
const SCARCE_BACKENDS: u16 = 8;
/// New flows that fill the table, of two entries each, and then some.
const FULL: u64 = MAX_FLOWS as u64 / 2 * 3;
/// Flows that are established while others flood the node.
const BESIDE_A_FLOOD: u32 = 60_000;
/// Ports of each of the Services that are there for their number.
const PORTS_EACH: u16 = 16;

/// A node, by what is on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Node {
    /// A few Services and established flows.
    Usual,
    /// A full flow table.
    Crowded,
    /// A full flow table, with flows in it that are wanted.
    Flooded,
    /// Services that run out of source ports.
    Exhausted,
    /// A few frontends, and a table that does not fill.
    Few,
    /// The same with a thousand frontends.
    Thousand,
    /// A hundred thousand.
    Most,
    /// A million flows.
    Million,
}

impl Node {
    /// Makes it.
    pub fn make(self) -> Result<World> {
        let entries = if self == Self::Million { ROOM_FOR_A_MILLION } else { MAX_FLOWS };
        let frontends = if self == Self::Most { 2 * MAX_FRONTENDS } else { MAX_FRONTENDS };
        World::new(entries, frontends, |cluster| match self {
            Self::Usual | Self::Few => usual(cluster, 0),
            Self::Crowded => {
                let kept = service("kept", KEPT).spec("sessionAffinity", json!("ClientIP"));
                let mut objects = service("elsewhere", ELSEWHERE).with(&elsewhere(1..=MANY));
                objects.extend(kept.with(&elsewhere(1..=MANY)));
                objects
            }
            Self::Flooded => service("elsewhere", ELSEWHERE).with(&elsewhere(1..=MANY)),
            Self::Million => service("elsewhere", ELSEWHERE).with(&elsewhere(1..=FOR_A_MILLION)),
            Self::Exhausted => {
                // Source ports are a backend's, whichever Service leads to it.
                let scarce = HALF_BACKENDS + 1..=HALF_BACKENDS + SCARCE_BACKENDS;
                let none_left = *scarce.end() + 1;
                let mut objects = service("half", HALF).with(&elsewhere(1..=HALF_BACKENDS));
                objects.extend(service("scarce", SCARCE).with(&elsewhere(scarce)));
                objects.extend(
                    service("none-left", NONE_LEFT).with(&elsewhere(none_left..=none_left)),
                );
                objects
            }
            Self::Thousand => usual(cluster, 1_000),
            Self::Most => usual(cluster, 100_000),
        })
    }
}

/// Cases to be made, once there is a node.
pub struct Plan {
    /// The case's name.
    pub name: String,
    /// Its node.
    pub node: Node,
    /// Whether the short form has it.
    pub is_short: bool,
    kind: Kind,
    make: fn(&World, &Kind) -> Result<Case>,
}

impl Plan {
    /// Whether the case is one of a reference program that others are compared with, even if it was
    /// not asked for.
    pub fn is_ruler(&self) -> bool {
        self.is_short && self.name.starts_with(REFERENCE)
    }

    /// The case.
    pub fn make(&self, world: &World) -> Result<Case> {
        let case = (self.make)(world, &self.kind)?;
        Ok(Case { name: self.name.clone(), ..case })
    }
}

/// A family, a protocol and a number of flows, on a node.
#[derive(Clone, Copy)]
struct Kind {
    node: Node,
    v6: bool,
    transport: Transport,
    flows: u32,
}

/// Flows without end.
const EVER_NEW: u32 = u32::MAX;

impl Kind {
    fn name(&self, path: &str) -> String {
        let Self { node, v6, transport, flows } = self;
        let family = if *v6 { "v6" } else { "v4" };
        let protocol = if *transport == Transport::Datagram { "udp" } else { "tcp" };
        let flows = match *flows {
            EVER_NEW => "new".to_owned(),
            1_000_000.. => format!("{}M", flows / 1_000_000),
            1_000.. => format!("{}k", flows / 1_000),
            _ => flows.to_string(),
        };
        let services = match node {
            Node::Few => "/few-services",
            Node::Thousand => "/1k-services",
            Node::Most => "/100k-services",
            _ => "",
        };
        format!("{path}/{family}/{protocol}/{flows}{services}")
    }

    fn subject(&self) -> Subject {
        Subject::Lbxdp(self.node)
    }

    /// The reference program that does the same.
    fn reference(&self, program: &str) -> Option<String> {
        let flows = match self.flows {
            EVER_NEW => "new",
            1 => "1",
            1_000 => "1k",
            40_000 | BESIDE_A_FLOOD => "40k",
            _ => return None,
        };
        Some(format!("{REFERENCE}{program}/{flows}"))
    }
}

/// Every case.
pub fn plans() -> Vec<Plan> {
    let (syn, tcp, udp) = (Transport::Syn, Transport::Ack, Transport::Datagram);
    let mut plans = references();
    let mut plan = |path: &str, make: fn(&World, &Kind) -> Result<Case>, is_short, kind: Kind| {
        plans.push(Plan { name: kind.name(path), node: kind.node, is_short, kind, make });
    };
    for v6 in [false, true] {
        let v4 = !v6;
        let of = |node, transport, flows| Kind { node, v6, transport, flows };
        plan("nobody", nobody, v4, of(Node::Usual, tcp, 1));
        plan("node", node, v4, of(Node::Usual, tcp, 1));
        for (transport, flows, is_short) in [
            (tcp, 1, true),
            (tcp, 1_000, false),
            (tcp, 40_000, true),
            (udp, 1, false),
            (udp, 1_000, false),
        ] {
            let kind = of(Node::Usual, transport, flows);
            plan("local-established", here, is_short && v4, kind);
            plan("snat-established", away, is_short, kind);
        }
        for flows in [1, 40_000] {
            plan("snat-reply", reply, false, of(Node::Usual, tcp, flows));
        }
        for (path, transport) in [("snat-new", syn), ("snat-new", udp)] {
            plan(path, new, v4 && transport == syn, of(Node::Crowded, transport, EVER_NEW));
        }
        plan("affinity-new", kept, false, of(Node::Crowded, syn, EVER_NEW));
        plan("reject", reject, false, of(Node::Usual, syn, 1));
        plan("beside-a-flood", flooded, v4, of(Node::Flooded, tcp, BESIDE_A_FLOOD));
        plan("ports-50%", half, false, of(Node::Exhausted, syn, EVER_NEW));
        plan("ports-99%", scarce, false, of(Node::Exhausted, syn, EVER_NEW));
        plan("ports-100%", none_left, v4, of(Node::Exhausted, syn, EVER_NEW));
        plan("snat-established", away, false, of(Node::Million, tcp, 1_000_000));
    }
    for node in [Node::Few, Node::Thousand, Node::Most] {
        for flows in [1, 1_000] {
            let kind = Kind { node, v6: false, transport: tcp, flows };
            plan("snat-established", away, node == Node::Thousand && flows == 1, kind);
        }
        let kind = Kind { node, v6: false, transport: syn, flows: EVER_NEW };
        plan("local-new", new_here, false, kind);
    }
    plans
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

/// These backends on the other node, of both families.
fn elsewhere(numbers: RangeInclusive<u16>) -> Vec<Endpoint> {
    let addresses = numbers.flat_map(|n| [backend(false, n), backend(true, n)]);
    addresses.map(|address| Endpoint::new(address, "node-b")).collect()
}

fn backend(v6: bool, n: u16) -> IpAddr {
    let [high, low] = n.to_be_bytes();
    if v6 { [0xfd00, 0x10, 0x245, 0, 0, 0, 0, n].into() } else { [10, 245, high, low].into() }
}

/// The Services of the usual node, and others with `frontends` IPv4 frontends in all.
fn usual(cluster: &Cluster, frontends: u32) -> Vec<Value> {
    let node = cluster.node(0);
    let mut objects = service("elsewhere", ELSEWHERE).with(&elsewhere(1..=FEW));
    objects.extend(service("here", HERE).with(&Endpoint::pods_of(node)));
    objects.push(service("empty", EMPTY).object());
    let pod = [Endpoint::new(node.pods[0].v4, &node.name)];
    for number in 0..frontends / u32::from(PORTS_EACH) {
        let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 96, 16, 0)) + number);
        let mut service = Service::new(&format!("other-{number}")).cluster_ip(&address.to_string());
        for port in 0..PORTS_EACH {
            service = service.port(Port::tcp(&format!("p{port}"), 80 + port, BACKEND_PORT));
        }
        objects.extend(service.with(&pod));
    }
    objects
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

fn to_node(world: &World, kind: &Kind, port: u16) -> Result<Packet> {
    request(world, kind, world.node_ip(kind.v6), port)
}

/// To an address that is nobody's.
fn nobody(world: &World, kind: &Kind) -> Result<Case> {
    let address: IpAddr = if kind.v6 { "2001:db8:e::e" } else { "198.18.0.1" }.parse()?;
    passed(kind, request(world, kind, address, 80)?)
}

/// To the node itself.
fn node(world: &World, kind: &Kind) -> Result<Case> {
    passed(kind, to_node(world, kind, NOBODYS)?)
}

fn passed(kind: &Kind, packet: Packet) -> Result<Case> {
    Ok(Case {
        verdicts: &[XDP_PASS],
        output: Output::Same,
        reference: kind.reference("hash-hit"),
        ..Case::new(kind.subject(), packet)
    })
}

/// Of a flow to a backend on the node.
fn here(world: &World, kind: &Kind) -> Result<Case> {
    let packet = to_node(world, kind, HERE)?;
    let dst = (world.pod_ip(kind.v6), BACKEND_PORT).into();
    Ok(Case {
        choice: choice(kind),
        flows: kind.flows,
        before: Before::Established,
        verdicts: if kind.flows == 1 { &[XDP_PASS] } else { &[XDP_PASS, XDP_DROP] },
        shares: vec![met(kind), of_flows(kind, &["passed_local"])],
        may_count_others: kind.flows > 1,
        output: Output::Packet { packet: Packet { dst, ..packet.clone() }, any_backend: false },
        reference: kind.reference("dnat-flow"),
        ..Case::new(kind.subject(), packet)
    })
}

/// New flows to a backend on the node, which keep their ports, while there is room in the table.
fn new_here(world: &World, kind: &Kind) -> Result<Case> {
    Ok(Case {
        before: Before::Nothing,
        choice: Choice::Sequential,
        // Flow 0 is for the packet that is looked at.
        next: 1,
        packets: 2_000,
        limit: 30,
        shares: vec![Share::nearly_all(&["flow_new"]), Share::nearly_all(&["passed_local"])],
        may_count_others: true,
        reference: kind.reference("snat-fib"),
        ..here(world, kind)?
    })
}

/// Of a flow to a backend elsewhere.
fn away(world: &World, kind: &Kind) -> Result<Case> {
    let packet = to_node(world, kind, ELSEWHERE)?;
    Ok(Case {
        choice: choice(kind),
        flows: kind.flows,
        before: Before::Established,
        verdicts: if kind.flows == 1 { FORWARDED } else { MOSTLY_FORWARDED },
        shares: vec![met(kind), of_flows(kind, LEFT)],
        may_count_others: kind.flows > 1,
        output: translated(world, kind, &packet),
        reference: kind.reference("snat-fib"),
        ..Case::new(kind.subject(), packet)
    })
}

/// The other direction of it.
fn reply(world: &World, kind: &Kind) -> Result<Case> {
    let request = away(world, kind)?;
    let expected = Packet {
        from: world.node_mac,
        to: world.router_mac,
        src: request.packet.dst,
        dst: request.packet.src,
        ttl: 63,
        transport: kind.transport,
    };
    // What the request becomes says where it comes from and goes to.
    let packet = Packet {
        from: world.peer_mac,
        src: (backend(kind.v6, 1), 1).into(),
        ..to_node(world, kind, 1)?
    };
    Ok(Case {
        choice: if kind.flows == 1 { Choice::One } else { Choice::Listed },
        before: Before::Replying(Box::new(request.clone())),
        output: Output::Packet { packet: expected, any_backend: false },
        first_listed: if kind.v6 { u32::try_from(MAX_LISTED / 2)? } else { 0 },
        packet,
        ..request
    })
}

/// Ever new flows to backends elsewhere, with a table that is full of established ones.
fn new(world: &World, kind: &Kind) -> Result<Case> {
    created(world, kind, ELSEWHERE, Before::Created(FULL))
}

fn created(world: &World, kind: &Kind, port: u16, before: Before) -> Result<Case> {
    let packet = to_node(world, kind, port)?;
    let filler = match kind.transport {
        Transport::Datagram => Transport::Datagram,
        Transport::Syn | Transport::Ack => Transport::Ack,
    };
    Ok(Case {
        choice: Choice::Sequential,
        flows: EVER_NEW,
        // Flow 0 is for the packet that is looked at.
        next: 1,
        packets: 2_000,
        before,
        filler,
        verdicts: MOSTLY_FORWARDED,
        shares: vec![Share::nearly_all(&["flow_new"]), Share::nearly_all(LEFT)],
        may_count_others: true,
        output: translated(world, kind, &packet),
        reference: kind.reference("snat-fib"),
        ..Case::new(kind.subject(), packet)
    })
}

/// The same where clients keep their backend.
fn kept(world: &World, kind: &Kind) -> Result<Case> {
    let mut case = created(world, kind, KEPT, Before::Created(FULL))?;
    case.shares.push(Share::nearly_all(&["affinity_kept"]));
    Ok(case)
}

/// To a Service without backends. Most packets are over the rate at which clients are told.
fn reject(world: &World, kind: &Kind) -> Result<Case> {
    let packet = to_node(world, kind, EMPTY)?;
    Ok(Case {
        pushed: if kind.v6 { 48 } else { 28 },
        verdicts: &[XDP_TX, XDP_DROP],
        shares: vec![Share::all(&["no_endpoint"]), Share::all(&["icmp_sent", "icmp_suppressed"])],
        ..Case::new(kind.subject(), packet)
    })
}

/// Of established flows, after ten times as many beginnings of others, with a full table.
fn flooded(world: &World, kind: &Kind) -> Result<Case> {
    let flood = Kind { transport: Transport::Syn, flows: EVER_NEW, ..*kind };
    // From other clients than the established ones.
    let flood = Case { next: 1 << 24, ..created(world, &flood, ELSEWHERE, Before::Created(FULL))? };
    let flood = Case { packets: 10 * flood.packets, filler: Transport::Syn, ..flood };
    Ok(Case {
        before: Before::Beside(Box::new(flood)),
        packets: 2_000,
        // Each round finds fewer of them: what is compared has to have seen as many.
        limit: 100,
        // How many hit is a result.
        shares: vec![Share::nearly_all(LEFT)],
        ..away(world, kind)?
    })
}

/// With half of the source ports in use: each sample takes a few more.
fn half(world: &World, kind: &Kind) -> Result<Case> {
    let ports = SOURCE_PORTS * u64::from(HALF_BACKENDS);
    let case = created(world, kind, HALF, Before::Created(ports * 47 / 100))?;
    Ok(Case { packets: 64, limit: 100, ..case })
}

/// With hardly any left: most flows find none.
fn scarce(world: &World, kind: &Kind) -> Result<Case> {
    let ports = SOURCE_PORTS * u64::from(SCARCE_BACKENDS);
    Ok(Case {
        packets: 16,
        limit: 100,
        shares: vec![Share::all(&["flow_new", "snat_ports_exhausted"])],
        output: Output::Other,
        ..created(world, kind, SCARCE, Before::Created(ports * 988 / 1_000))?
    })
}

/// With none left.
fn none_left(world: &World, kind: &Kind) -> Result<Case> {
    Ok(Case {
        verdicts: &[XDP_DROP],
        shares: vec![Share::all(&["snat_ports_exhausted"])],
        may_count_others: false,
        output: Output::Same,
        ..created(world, kind, NONE_LEFT, Before::Exhausted)?
    })
}

/// Verdicts on what goes to another host.
const FORWARDED: &[u32] = &[XDP_TX, XDP_REDIRECT];
/// The same, where the last packet may be one of the few that find no port, or no place for their flow.
const MOSTLY_FORWARDED: &[u32] = &[XDP_TX, XDP_REDIRECT, XDP_DROP];
/// What it counts.
const LEFT: &[&str] = &["transmitted", "redirected"];
/// A packet meets its flow.
fn met(kind: &Kind) -> Share {
    of_flows(kind, &["flow_hit"])
}

/// What each packet counts. Of many flows a table may lack some, for want of room in the right place: the
/// report says how many.
fn of_flows(kind: &Kind, counters: &'static [&'static str]) -> Share {
    if kind.flows == 1 { Share::all(counters) } else { Share::nearly_all(counters) }
}

fn choice(kind: &Kind) -> Choice {
    if kind.flows == 1 { Choice::One } else { Choice::Random }
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

/// The benchmark's own programs.
fn references() -> Vec<Plan> {
    let mut plans = Vec::new();
    let mut plan = |path: &str, flows, is_short, make| {
        let kind = Kind { node: Node::Usual, v6: false, transport: Transport::Ack, flows };
        let name = match kind.reference(path) {
            Some(name) if path != "encap20" => name,
            _ => path.to_owned(),
        };
        plans.push(Plan { name, node: kind.node, is_short, kind, make });
    };
    plan("encap20", 1, false, |world, kind| own(world, kind, "encap20"));
    for flows in [1, 1_000, 40_000] {
        let is_short = flows != 1_000;
        plan("hash-hit", flows, is_short, |world, kind| own(world, kind, "hash_hit"));
        plan("maglev-ipip", flows, false, |world, kind| own(world, kind, "maglev_ipip"));
        plan("dnat-flow", flows, is_short, |world, kind| own(world, kind, "dnat_flow"));
        plan("snat-fib", flows, is_short, |world, kind| own(world, kind, "snat_fib"));
    }
    plan("snat-fib", EVER_NEW, true, |world, kind| own(world, kind, "snat_fib_new"));
    plans
}

fn own(world: &World, kind: &Kind, program: &'static str) -> Result<Case> {
    let packet = to_node(world, kind, ELSEWHERE)?;
    let mut translated = match translated(world, kind, &packet) {
        Output::Packet { packet, .. } => packet,
        output => bail!("{output:?}"),
    };
    let output = match program {
        "hash_hit" => Output::Same,
        "snat_fib" | "snat_fib_new" => Output::Packet { packet: translated, any_backend: true },
        "dnat_flow" => {
            translated.src = packet.src;
            Output::Packet { packet: translated, any_backend: true }
        }
        // Longer than a packet that could be compared.
        _ => Output::Other,
    };
    let choice = if kind.flows == EVER_NEW { Choice::Sequential } else { choice(kind) };
    Ok(Case {
        choice,
        flows: kind.flows,
        before: Before::Passed,
        pushed: if matches!(program, "encap20" | "maglev_ipip") { 20 } else { 0 },
        verdicts: &[XDP_TX],
        output,
        ..Case::new(Subject::Own(program), packet)
    })
}

/// Tells the benchmark's own programs where to send what comes for [`ELSEWHERE`].
pub fn serve(runner: &mut Runner, world: &World) -> Result<()> {
    let octets = |address| match address {
        IpAddr::V4(address) => Ok(address.octets()),
        IpAddr::V6(_) => bail!("the reference programs speak IPv4"),
    };
    let frontend = Frontend {
        address: octets(world.node_ip(false))?,
        port: ELSEWHERE.to_be_bytes(),
        ..Frontend::default()
    };
    let mut macs = [0; 12];
    macs[..6].copy_from_slice(&world.peer_mac);
    macs[6..].copy_from_slice(&world.node_mac);
    let mut backends =
        [Backend { port: BACKEND_PORT.to_be_bytes(), macs, ..Backend::default() }; BACKENDS];
    for (number, entry) in (1..).zip(&mut backends) {
        entry.address = octets(backend(false, number))?;
    }
    runner.serve(frontend, &backends)
}
