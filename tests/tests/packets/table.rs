//! The table of flows when it is full: who makes room for whom, what a flood does, and whether
//! processors that write the same sets at once keep flows apart.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::atomic::{AtomicBool, Ordering},
};

use lbxdp_common::{Flow, FlowState, IPPROTO_TCP, Octets, flow_set::WAYS, limits::FLOW_SETS};
use nix::sched::{CpuSet, sched_setaffinity};

use crate::{
    Net, every,
    forwarding::source_port,
    frames::Packet,
    nets,
    rig::{CLIENT, Entry, N0, PEER0, Rig, XDP_DROP, XDP_PASS, XDP_TX},
    runner::Runner,
};

/// In a TCP/IPv4 frame without a tag.
const SRC: usize = 26;
const DST_PORT: usize = 36;
const SRC_PORT: usize = 34;
const FLAGS: usize = 47;
const SYN: u8 = 2;
const ACK: u8 = 0x10;

fn client(net: &Net, port: u16) -> SocketAddr {
    SocketAddr::new(net.client.ip(), port)
}

/// Opens a connection to a remote backend; the source port that the backend sees.
fn open(rig: &mut Rig, net: &Net, port: u16) -> Option<u16> {
    let request = Packet::new(IPPROTO_TCP, client(net, port), net.vip);
    let out = rig.xdp(&request.bytes());
    if out.verdict != XDP_TX {
        assert_eq!(out.verdict, XDP_DROP);
        return None;
    }
    let snat = source_port(&request, &out);
    let reply = request.between(net.near, SocketAddr::new(net.node.ip(), snat)).over(PEER0, N0);
    assert_eq!(rig.xdp(&reply.flags("S.").bytes()).verdict, XDP_TX);
    assert_eq!(rig.xdp(&request.flags(".").bytes()).verdict, XDP_TX);
    Some(snat)
}

/// Ports of clients whose flow has an entry of each half, and of those that have one only.
fn clients(rig: &mut Rig) -> (BTreeSet<u16>, BTreeSet<u16>) {
    fn of<A: Octets>(entries: Vec<Entry<A>>, counts: &mut BTreeMap<u16, u32>) {
        for (key, flow) in entries {
            let is_reply = flow.has(Flow::<A>::REPLY);
            *counts.entry(if is_reply { flow.dst_port } else { key.src_port }).or_default() += 1;
        }
    }
    let mut counts = BTreeMap::new();
    of(rig.flows_v4(), &mut counts);
    of(rig.flows_v6(), &mut counts);
    let with = |halves: u32| {
        counts.iter().filter(|(_, count)| **count == halves).map(|(port, _)| *port).collect()
    };
    (with(2), with(1))
}

/// One set, and connections that leave room for one flow: of these ports.
const OPEN: std::ops::RangeInclusive<u16> = 1..=WAYS as u16 / 2 - 1;

/// See [`OPEN`].
fn tiny(net: &Net) -> Rig {
    let mut rig = Rig::with_flow_sets(1, (61_000, 65_535));
    let id = rig.remote(net.near, net.node.ip());
    rig.frontend(net.vip, IPPROTO_TCP, &[id]);
    rig.moved();
    rig
}

#[test]
fn a_new_flow_takes_the_place_of_the_oldest_that_is_not_confirmed() {
    for net in nets() {
        let mut rig = tiny(&net);
        for port in OPEN {
            open(&mut rig, &net, port).expect("room");
        }
        for port in 10..40 {
            // Each older one gets older, and not so old that it is over.
            rig.age(1);
            let syn = Packet::new(IPPROTO_TCP, client(&net, port), net.vip);
            assert_eq!(rig.xdp(&syn.bytes()).verdict, XDP_TX, "{port}");
            assert_eq!(clients(&mut rig), (OPEN.chain([port]).collect(), [].into()));
        }
        rig.moved();
        let data = Packet::new(IPPROTO_TCP, client(&net, 1), net.vip).flags(".");
        assert_eq!(rig.xdp(&data.bytes()).verdict, XDP_TX);
        rig.expect_moved(&[("flow_hit", 1), ("transmitted", 1)]);
    }
}

#[test]
fn an_established_connection_makes_no_room_until_it_was_silent_for_ten_minutes() {
    for net in nets() {
        let mut rig = tiny(&net);
        for port in OPEN.chain([10]) {
            open(&mut rig, &net, port).expect("room");
        }
        rig.age(598);
        rig.moved();
        assert_eq!(open(&mut rig, &net, 11), None);
        rig.expect_moved(&[("flow_table_full", 1)]);
        assert_eq!(clients(&mut rig), (OPEN.chain([10]).collect(), [].into()));
        rig.age(2);
        open(&mut rig, &net, 11).expect("room");
        let (whole, half) = clients(&mut rig);
        assert!(whole.contains(&11), "{whole:?} {half:?}");
        // Nobody believes in a source port that somebody else may get.
        for (key, flow) in rig.flows_v4() {
            let is_reply = flow.has(Flow::<[u8; 4]>::REPLY);
            assert!(is_reply || whole.contains(&key.src_port), "{key:?} is alone");
        }
        for (key, flow) in rig.flows_v6() {
            let is_reply = flow.has(Flow::<[u8; 16]>::REPLY);
            assert!(is_reply || whole.contains(&key.src_port), "{key:?} is alone");
        }
    }
}

#[test]
fn entries_whose_first_set_is_full_are_found_in_their_second() {
    const SETS: usize = 16;
    for net in nets() {
        let mut rig = Rig::with_flow_sets(SETS, (61_000, 65_535));
        let id = rig.remote(net.near, net.node.ip());
        rig.frontend(net.vip, IPPROTO_TCP, &[id]);
        // Three quarters of all places: with one set for each key, a fifth of them would overflow.
        let ports: Vec<_> = (1_000..1_048).collect();
        let snat: Vec<_> = ports.iter().map(|port| open(&mut rig, &net, *port)).collect();
        let open = ports.iter().zip(&snat).filter(|(_, snat)| snat.is_some()).count();
        assert!(open >= 46, "{open} of {}", ports.len());
        rig.moved();
        for (port, snat) in ports.iter().zip(snat) {
            let Some(snat) = snat else { continue };
            let data = Packet::new(IPPROTO_TCP, client(&net, *port), net.vip).flags(".");
            let out = rig.xdp(&data.bytes());
            assert_eq!((out.verdict, source_port(&data, &out)), (XDP_TX, snat), "{port}");
        }
        let open = open as u64;
        rig.expect_moved(&[("flow_hit", open), ("transmitted", open)]);
    }
}

#[test]
fn a_confirmed_flow_looks_for_its_other_half_once_a_second() {
    let mut rig = Rig::new();
    for (net, protocol) in every() {
        let id = rig.remote(net.near, net.node.ip());
        rig.frontend(net.vip, protocol, &[id]);
        let request = Packet::new(protocol, net.client, net.vip);
        let snat = source_port(&request, &rig.xdp(&request.bytes()));
        let reply = request.between(net.near, SocketAddr::new(net.node.ip(), snat)).over(PEER0, N0);
        rig.xdp(&reply.flags("S.").bytes());
        rig.xdp(&request.flags(".").bytes());
        for lost in [true, false] {
            rig.evict(|is_reply| is_reply == lost);
            rig.moved();
            let packet = if lost { request.flags(".") } else { reply.flags(".") };
            assert_eq!(rig.xdp(&packet.bytes()).verdict, XDP_TX);
            rig.expect_moved(&[("flow_hit", 1), ("transmitted", 1)]);
            rig.age(1);
            assert_eq!(rig.xdp(&packet.bytes()).verdict, XDP_TX);
            rig.expect_moved(&[("flow_hit", 1), ("flow_restored", 1), ("transmitted", 1)]);
        }
        rig.evict(|_| true);
        rig.moved();
    }
}

#[test]
fn a_port_range_that_is_used_up_costs_a_new_flow_few_looks() {
    for net in nets() {
        let mut rig = Rig::with_snat_ports(61_000, 61_063);
        let id = rig.remote(net.near, net.node.ip());
        rig.frontend(net.vip, IPPROTO_TCP, &[id]);
        let mut served = BTreeSet::new();
        let mut refused = 0;
        for port in 1_000..2_000 {
            match open(&mut rig, &net, port) {
                Some(snat) => assert!(served.insert(snat), "{snat} twice"),
                None => refused += 1,
            }
        }
        assert_eq!(served, (61_000..=61_063).collect(), "every port is found by somebody");
        assert_eq!(refused, 1_000 - 64);
    }
}

/// A frame of a client, by number.
fn frame(template: &[u8], number: u32, flags: u8) -> Vec<u8> {
    let mut frame = template.to_vec();
    let [_, a, b, _] = number.to_be_bytes();
    frame[SRC..SRC + 4].copy_from_slice(&[10, 1, a, b]);
    let port = 1_024 + (number % 256) as u16;
    frame[SRC_PORT..SRC_PORT + 2].copy_from_slice(&port.to_be_bytes());
    frame[FLAGS] = flags;
    frame
}

/// The answer of the pod to such a frame.
fn answer(template: &[u8], number: u32, flags: u8) -> Vec<u8> {
    let asked = frame(template, number, flags);
    let mut answer = template.to_vec();
    answer[SRC + 4..SRC + 8].copy_from_slice(&asked[SRC..SRC + 4]);
    answer[DST_PORT..DST_PORT + 2].copy_from_slice(&asked[SRC_PORT..SRC_PORT + 2]);
    answer[FLAGS] = flags;
    answer
}

/// Ten SYNs that nobody answers for each packet of 60,000 connections, in a table that is full.
#[test]
fn a_flood_of_syns_ends_no_connection_and_keeps_no_client_away() {
    const CONNECTIONS: u32 = 60_000;
    const FLOOD: u32 = 10;
    let [net, _] = nets();
    let mut rig = Rig::with_flow_sets(FLOW_SETS, (61_000, 65_535));
    let pod = rig.local(net.pod);
    rig.frontend(net.vip, IPPROTO_TCP, &[pod]);
    let request = Packet::new(IPPROTO_TCP, net.client, net.vip).bytes();
    let reply = Packet::new(IPPROTO_TCP, net.pod, net.client).over(N0, CLIENT).bytes();
    let (xdp, egress) = (rig.xdp_runner(), rig.egress_runner());
    let passes = |number: u32, flags: u8| {
        let mut packet = frame(&request, number, flags);
        xdp.run(&mut packet) == XDP_PASS && packet[SRC + 4..SRC + 8] == [10, 244, 1, 5]
    };
    let comes_back = |number: u32, flags: u8| {
        let mut packet = answer(&reply, number, flags);
        egress.run(&mut packet);
        packet[SRC..SRC + 4] == [203, 0, 113, 10]
    };
    let opens =
        |number: u32| passes(number, SYN) && comes_back(number, SYN | ACK) && passes(number, ACK);
    // By its own number each is a client, and none of the flood's.
    let connected: Vec<_> = (0..CONNECTIONS).filter(|number| opens(*number)).collect();
    let connections = u32::try_from(connected.len()).expect("few");
    assert!(connections * 1_000 >= CONNECTIONS * 999, "{connections} find a place");
    let mut attacker = 1 << 20;
    let mut flood = |packets: u32| {
        for _ in 0..packets {
            attacker += 1;
            passes(attacker, SYN);
        }
    };
    flood(400_000);
    let entries = rig.flows_v4().len();
    assert!(entries > lbxdp_common::limits::MAX_FLOWS * 9 / 10, "{entries} entries: it is full");

    rig.moved();
    let (mut served, mut opened, mut tried) = (0, 0, 0);
    for number in connected {
        flood(FLOOD);
        served += u32::from(passes(number, ACK));
        if number % 100 == 0 {
            tried += 1;
            opened += u32::from(opens(CONNECTIONS + number / 100));
        }
    }
    let hits = rig.moved().0.into_iter().find(|(name, _)| *name == "flow_hit").expect("hits").1;
    println!(
        "{hits} hits, {served} of {connections} packets served; {opened} of {tried} connections opened"
    );
    assert_eq!(served, connections, "packets of connections");
    // Two for each connection that was opened.
    let hits = hits - 2 * u64::from(opened);
    assert!(hits * 1_000 >= u64::from(connections) * 999, "{hits} hits");
    assert!(opened * 1_000 >= tried * 999, "{opened} of {tried} new connections");
}

fn pin(cpu: usize) {
    let mut cpus = CpuSet::new();
    cpus.set(cpu).expect("a CPU");
    sched_setaffinity(nix::unistd::Pid::from_raw(0), &cpus).expect("this CPU");
}

/// A long connection through a remote backend: where its packets go, and whose the answers are.
struct Long {
    request: Vec<u8>,
    reply: Vec<u8>,
    client_port: u16,
    snat: u16,
}

impl Long {
    /// Both directions, or what became of one instead.
    fn talks(&self, xdp: &Runner) -> Result<(), String> {
        let mut packet = self.request.clone();
        let verdict = xdp.run(&mut packet);
        let port = u16::from_be_bytes([packet[SRC_PORT], packet[SRC_PORT + 1]]);
        if (verdict, port) != (XDP_TX, self.snat) {
            return Err(format!("port {port} instead of {}, {verdict}", self.snat));
        }
        let mut packet = self.reply.clone();
        let verdict = xdp.run(&mut packet);
        let port = u16::from_be_bytes([packet[DST_PORT], packet[DST_PORT + 1]]);
        if (verdict, port) != (XDP_TX, self.client_port) {
            return Err(format!("client {port} instead of {}, {verdict}", self.client_port));
        }
        Ok(())
    }
}

/// Two processors begin flows in eight sets with sixty-four source ports, while connections go on.
#[test]
fn processors_that_write_the_same_sets_keep_flows_apart() {
    const ROUNDS: u32 = 200_000;
    let [net, _] = nets();
    let mut rig = Rig::with_flow_sets(8, (61_000, 61_063));
    let id = rig.remote(net.near, net.node.ip());
    rig.frontend(net.vip, IPPROTO_TCP, &[id]);
    let request = Packet::new(IPPROTO_TCP, net.client, net.vip);
    let to = |port: u16| {
        let snat = SocketAddr::new(net.node.ip(), port);
        request.between(net.near, snat).over(PEER0, N0)
    };
    let long: Vec<_> = (100..108)
        .map(|port| {
            let snat = open(&mut rig, &net, port).expect("room");
            let request = request.between(client(&net, port), net.vip).flags(".");
            Long {
                request: request.bytes(),
                reply: to(snat).flags(".").bytes(),
                client_port: port,
                snat,
            }
        })
        .collect();
    let reply = to(0).flags("S.").bytes();
    let syn = request.flags("S").bytes();
    let runners = [rig.xdp_runner(), rig.xdp_runner()];
    let failed = AtomicBool::new(false);
    let cpus = std::thread::available_parallelism().expect("CPUs").get();
    std::thread::scope(|scope| {
        for (index, xdp) in runners.iter().enumerate() {
            let (long, reply, syn, failed) = (&long, &reply, &syn, &failed);
            scope.spawn(move || {
                pin(index % cpus);
                // Both processors have clients of their own and clients that send to both.
                let mut random = 0x9e37_79b9_u32 + index as u32;
                let mut taken = 0_u32;
                for round in 0..ROUNDS {
                    if failed.load(Ordering::Relaxed) {
                        return;
                    }
                    random ^= random << 13;
                    random ^= random >> 17;
                    random ^= random << 5;
                    let mut packet = syn.clone();
                    let source =
                        [10, 1, index as u8 * u8::from(random & 1 == 0), random as u8 >> 1];
                    packet[SRC..SRC + 4].copy_from_slice(&source);
                    if xdp.run(&mut packet) == XDP_TX {
                        taken += 1;
                        // Sometimes it is answered, sometimes it becomes a connection or ends.
                        let mut answer = reply.clone();
                        answer[DST_PORT..DST_PORT + 2]
                            .copy_from_slice(&packet[SRC_PORT..SRC_PORT + 2]);
                        if random & 0x300 == 0 {
                            xdp.run(&mut answer);
                        } else if random & 0x300 == 0x100 {
                            answer[FLAGS] = 4;
                            xdp.run(&mut answer);
                        }
                    }
                    let connection = &long[round as usize % long.len()];
                    if let Err(error) = connection.talks(xdp) {
                        failed.store(true, Ordering::Relaxed);
                        panic!("processor {index}, round {round}: {error}");
                    }
                }
                assert!(taken > ROUNDS / 100, "{taken} flows began");
            });
        }
    });

    // Nobody writes any more: what is left is consistent.
    let entries: BTreeMap<_, _> = rig.flows_v4().into_iter().collect();
    assert_eq!(entries.len(), rig.flows_v4().len(), "a key has one entry");
    let mut ports = BTreeSet::new();
    for (key, flow) in &entries {
        let sibling = entries.get(&flow.sibling_key(key));
        let is_mine = sibling.is_some_and(|sibling| sibling.undoes(key));
        if flow.is_confirmed() && !flow.has(Flow::<[u8; 4]>::REPLY) {
            assert!(is_mine, "{key:?} {flow:?}: {sibling:?}");
            assert!(ports.insert(flow.src_port), "{key:?} {flow:?} shares its port");
            assert_eq!(flow.state, FlowState::Established as u8);
        }
    }
    assert!(ports.len() >= long.len(), "{ports:?}");
    assert!(entries.keys().any(|key| IpAddr::from(key.src) != IpAddr::from(Ipv4Addr::UNSPECIFIED)));
}
