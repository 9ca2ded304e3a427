//! Who is served, who keeps a backend, and what is sent to nobody's address of a Service range.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use lbxdp_common::{AddressFlags, Descriptor, IPPROTO_UDP, TablePolicy};

use crate::{
    Net, every,
    forwarding::destination_port,
    frames::Packet,
    nets,
    rig::{CLIENT, Fate, N0, Rig, TCX_DROP, TCX_NEXT, XDP_DROP, XDP_PASS},
};

/// Seconds for which clients keep their backend.
const TIMEOUT: u32 = 10;
/// An id of a Service port that is no frontend's here.
const SERVICE: u32 = 4_711;

/// A packet of a new flow: another port of the client each time.
struct Flows {
    net: Net,
    protocol: u8,
    port: u16,
}

impl Flows {
    fn new(net: Net, protocol: u8) -> Self {
        Self { net, protocol, port: 10_000 }
    }

    fn next(&mut self, to: SocketAddr) -> Packet {
        self.port += 1;
        let client = SocketAddr::new(self.net.client.ip(), self.port);
        Packet::new(self.protocol, client, to)
    }
}

/// Local backends that differ in their ports.
fn pods(rig: &mut Rig, net: &Net, ports: std::ops::Range<u16>) -> Vec<u32> {
    ports.map(|port| rig.local(SocketAddr::new(net.pod.ip(), port))).collect()
}

/// Sends a packet by XDP to a local backend; its port.
fn backend(rig: &mut Rig, packet: &Packet) -> u16 {
    let fate = rig.xdp(&packet.bytes());
    assert_eq!(fate.verdict, XDP_PASS);
    destination_port(packet, &fate)
}

fn restrict(rig: &mut Rig, net: &Net, frontend: u32) {
    rig.rule(net.vip.ip(), frontend, |descriptor| {
        descriptor.flags = Descriptor::SOURCE_RANGES;
        descriptor.service = SERVICE;
    });
}

fn is_dropped(rig: &mut Rig, packet: &Packet, reason: &'static str) {
    let bytes = packet.bytes();
    assert_eq!(rig.xdp(&bytes), Fate { verdict: XDP_DROP, bytes: bytes.clone() });
    let dropped = Fate { verdict: TCX_DROP, bytes: bytes.clone() };
    assert_eq!(rig.ingress(&bytes), dropped);
    assert_eq!(rig.pod_ingress(&bytes), dropped);
    rig.expect_moved(&[(reason, 3)]);
}

/// As long as the address, and one bit shorter.
fn lengths(addr: IpAddr) -> [u8; 2] {
    if addr.is_ipv4() { [32, 31] } else { [128, 127] }
}

#[test]
fn a_client_outside_the_source_ranges_is_dropped_in_silence() {
    let mut rig = Rig::new();
    for (net, protocol) in every() {
        let pod = rig.local(net.pod);
        let frontend = rig.frontend(net.vip, protocol, &[pod]);
        let mut flows = Flows::new(net, protocol);
        restrict(&mut rig, &net, frontend);
        is_dropped(&mut rig, &flows.next(net.vip), "source_range");

        // Ranges of other clients, of another Service port, and of none.
        let client = net.client.ip();
        rig.range(SERVICE, (net.near.ip(), lengths(client)[0]), true);
        rig.range(SERVICE + 1, (client, lengths(client)[0]), true);
        rig.range(SERVICE + 1, (client, 0), true);
        is_dropped(&mut rig, &flows.next(net.vip), "source_range");

        let admitting = [(client, lengths(client)[0]), (client, 24), (client, 1), (client, 0)];
        for range in admitting {
            rig.range(SERVICE, range, true);
            assert_eq!(backend(&mut rig, &flows.next(net.vip)), net.pod.port(), "{range:?}");
            let packet = flows.next(net.vip);
            assert_eq!(rig.ingress(&packet.bytes()).verdict, TCX_NEXT, "{range:?}");
            rig.expect_moved(&[("flow_new", 2), ("passed_local", 2)]);
            rig.range(SERVICE, range, false);
        }
        is_dropped(&mut rig, &flows.next(net.vip), "source_range");
        rig.range(SERVICE, (net.near.ip(), lengths(client)[0]), false);

        // Without the flag nobody looks.
        rig.rule(net.vip.ip(), frontend, |descriptor| descriptor.flags = 0);
        assert_eq!(backend(&mut rig, &flows.next(net.vip)), net.pod.port());
        rig.expect_moved(&[("flow_new", 1), ("passed_local", 1)]);

        // A Service that would refuse keeps silent, too.
        let empty = rig.verdict(net.vip2, protocol, TablePolicy::Reject);
        restrict(&mut rig, &net, empty);
        is_dropped(&mut rig, &flows.next(net.vip2), "source_range");
    }
}

#[test]
fn flows_outlive_the_source_range_they_began_in() {
    let mut rig = Rig::new();
    for (net, protocol) in every() {
        let pod = rig.local(net.pod);
        let frontend = rig.frontend(net.vip, protocol, &[pod]);
        let mut flows = Flows::new(net, protocol);
        restrict(&mut rig, &net, frontend);
        let range = (net.client.ip(), lengths(net.client.ip())[1]);
        rig.range(SERVICE, range, true);
        let first = flows.next(net.vip);
        backend(&mut rig, &first);
        let reply = first.between(net.pod, first.src).over(N0, CLIENT).flags("S.");
        assert_eq!(rig.egress(&reply.bytes()).bytes, reply.between(net.vip, first.src).bytes());
        rig.range(SERVICE, range, false);
        rig.moved();
        assert_eq!(backend(&mut rig, &first.flags(".")), net.pod.port());
        rig.expect_moved(&[("flow_hit", 1), ("passed_local", 1)]);
        is_dropped(&mut rig, &flows.next(net.vip), "source_range");
    }
}

#[test]
fn clients_keep_their_backend_and_others_have_theirs() {
    let mut rig = Rig::new();
    for (net, protocol) in every() {
        let pods = pods(&mut rig, &net, 8_080..8_088);
        let frontend = rig.frontend(net.vip, protocol, &pods);
        let mut flows = Flows::new(net, protocol);
        let without: BTreeSet<u16> =
            (0..32).map(|_| backend(&mut rig, &flows.next(net.vip))).collect();
        assert!(without.len() > 2, "{without:?} prove nothing");
        rig.expect_moved(&[("flow_new", 32), ("passed_local", 32)]);

        rig.keep_clients(net.vip.ip(), frontend, SERVICE + u32::from(protocol), TIMEOUT);
        let kept: BTreeSet<u16> =
            (0..16).map(|_| backend(&mut rig, &flows.next(net.vip))).collect();
        assert_eq!(kept.len(), 1);
        rig.expect_moved(&[("flow_new", 16), ("passed_local", 16), ("affinity_kept", 15)]);
        // tc ingress remembers the same.
        let packet = flows.next(net.vip);
        let fate = rig.ingress(&packet.bytes());
        assert!(kept.contains(&destination_port(&packet, &fate)));
        rig.expect_moved(&[("flow_new", 1), ("passed_local", 1), ("affinity_kept", 1)]);

        // The neighbours of the client are others.
        let mut others = BTreeSet::new();
        for last in 20..36_u8 {
            let mut packet = flows.next(net.vip);
            packet.src.set_ip(match net.client.ip() {
                IpAddr::V4(_) => [192, 0, 2, last].into(),
                IpAddr::V6(_) => [0x2001, 0xdb8, 1, 0, 0, 0, 0, u16::from(last)].into(),
            });
            others.insert(backend(&mut rig, &packet));
        }
        assert!(others.len() > 2, "{others:?}");
        rig.expect_moved(&[("flow_new", 16), ("passed_local", 16)]);
    }
}

#[test]
fn affinity_lasts_until_just_before_its_time_out() {
    let mut rig = Rig::new();
    for (net, protocol) in every() {
        let pods = pods(&mut rig, &net, 8_080..8_088);
        let frontend = rig.frontend(net.vip, protocol, &pods);
        rig.keep_clients(net.vip.ip(), frontend, SERVICE + u32::from(protocol), TIMEOUT);
        let mut flows = Flows::new(net, protocol);
        let first = flows.next(net.vip);
        let kept = backend(&mut rig, &first);
        // Each new flow begins the time anew.
        for _ in 0..3 {
            rig.age_affinity(u64::from(TIMEOUT) - 2);
            assert_eq!(backend(&mut rig, &flows.next(net.vip)), kept);
        }
        rig.expect_moved(&[("flow_new", 4), ("passed_local", 4), ("affinity_kept", 3)]);
        // A packet of a flow that exists does not.
        rig.age_affinity(u64::from(TIMEOUT) - 2);
        assert_eq!(backend(&mut rig, &first.flags(".")), kept);
        rig.expect_moved(&[("flow_hit", 1), ("passed_local", 1)]);
        rig.age_affinity(2);
        backend(&mut rig, &flows.next(net.vip));
        rig.expect_moved(&[("flow_new", 1), ("passed_local", 1)]);

        // With time the client gets others.
        let mut chosen = BTreeSet::new();
        for _ in 0..32 {
            rig.age_affinity(u64::from(TIMEOUT));
            chosen.insert(backend(&mut rig, &flows.next(net.vip)));
        }
        assert!(chosen.len() > 2, "{chosen:?}");
        rig.expect_moved(&[("flow_new", 32), ("passed_local", 32)]);

        // Another time-out counts from the same use.
        rig.age_affinity(u64::from(TIMEOUT));
        rig.keep_clients(net.vip.ip(), frontend, SERVICE + u32::from(protocol), 2 * TIMEOUT);
        backend(&mut rig, &flows.next(net.vip));
        rig.expect_moved(&[("flow_new", 1), ("passed_local", 1), ("affinity_kept", 1)]);
    }
}

#[test]
fn affinity_holds_only_in_tables_that_have_the_backend() {
    let mut rig = Rig::new();
    for (net, protocol) in every() {
        let all = pods(&mut rig, &net, 8_080..8_088);
        let one = pods(&mut rig, &net, 9_000..9_001);
        let service = SERVICE + u32::from(protocol);
        let frontend = rig.frontend(net.vip, protocol, &all);
        let other = rig.frontend(net.vip2, protocol, &one);
        rig.keep_clients(net.vip.ip(), frontend, service, TIMEOUT);
        rig.keep_clients(net.vip.ip(), other, service, TIMEOUT);
        let mut flows = Flows::new(net, protocol);
        assert_ne!(backend(&mut rig, &flows.next(net.vip)), 9_000);
        assert_eq!(backend(&mut rig, &flows.next(net.vip2)), 9_000);
        rig.expect_moved(&[("flow_new", 2), ("passed_local", 2)]);
        // The last one is remembered, and the first table does not have it.
        assert_eq!(backend(&mut rig, &flows.next(net.vip2)), 9_000);
        rig.expect_moved(&[("flow_new", 1), ("passed_local", 1), ("affinity_kept", 1)]);
        let kept = backend(&mut rig, &flows.next(net.vip));
        assert_ne!(kept, 9_000);
        rig.expect_moved(&[("flow_new", 1), ("passed_local", 1)]);
        assert_eq!(backend(&mut rig, &flows.next(net.vip)), kept);
        rig.expect_moved(&[("flow_new", 1), ("passed_local", 1), ("affinity_kept", 1)]);

        // Frontends with a table in common share it.
        let both = rig.frontend(net.vip2, protocol, &all);
        rig.keep_clients(net.vip.ip(), both, service, TIMEOUT);
        assert_eq!(backend(&mut rig, &flows.next(net.vip2)), kept);
        rig.expect_moved(&[("flow_new", 1), ("passed_local", 1), ("affinity_kept", 1)]);
        // Another Service port does not know the client.
        rig.keep_clients(net.vip.ip(), both, service + 1_000, TIMEOUT);
        backend(&mut rig, &flows.next(net.vip2));
        rig.expect_moved(&[("flow_new", 1), ("passed_local", 1)]);
    }
}

#[test]
fn affinity_to_a_backend_that_is_gone_is_forgotten() {
    let mut rig = Rig::new();
    for (net, protocol) in every() {
        let service = SERVICE + u32::from(protocol);
        let gone = pods(&mut rig, &net, 8_080..8_081);
        let stays = pods(&mut rig, &net, 9_000..9_001);
        let frontend = rig.frontend(net.vip, protocol, &gone);
        rig.keep_clients(net.vip.ip(), frontend, service, TIMEOUT);
        let mut flows = Flows::new(net, protocol);
        assert_eq!(backend(&mut rig, &flows.next(net.vip)), 8_080);
        // A table that still names it, as a member only.
        let both = [gone[0], stays[0]];
        let frontend = rig.frontend(net.vip, protocol, &both);
        rig.keep_clients(net.vip.ip(), frontend, service, TIMEOUT);
        rig.remove_backend(net.vip.ip(), gone[0]);
        rig.moved();
        let mut left = 64;
        loop {
            // Half of the slots name the backend that is gone.
            let packet = flows.next(net.vip);
            let fate = rig.xdp(&packet.bytes());
            if fate.verdict == XDP_PASS {
                assert_eq!(destination_port(&packet, &fate), 9_000);
                break;
            }
            rig.expect_moved(&[("backend_missing", 1)]);
            left -= 1;
            assert!(left > 0, "no slot of the other backend");
        }
        rig.expect_moved(&[("flow_new", 1), ("passed_local", 1)]);
        assert_eq!(backend(&mut rig, &flows.next(net.vip)), 9_000);
        rig.expect_moved(&[("flow_new", 1), ("passed_local", 1), ("affinity_kept", 1)]);
    }
}

/// The last one of each family has [`Net::nobody`], and none has a VIP.
const CIDRS: [&str; 8] = [
    "10.96.0.0/12",
    "198.18.0.0/15",
    "100.64.0.0/10",
    "203.0.113.128/25",
    "fd00:10::/32",
    "fd00:20::/64",
    "fd00:30::/108",
    "2001:db8:ff::200/119",
];

#[test]
fn what_is_sent_to_an_unassigned_service_address_is_dropped() {
    for ranges in [&CIDRS[..], &["203.0.113.200/32", "2001:db8:ff::200/128"]] {
        let mut rig = Rig::with_service_cidrs(ranges);
        for (net, protocol) in every() {
            let pod = rig.local(net.pod);
            rig.frontend(net.vip, protocol, &[pod]);
            let packet = Packet::new(protocol, net.client, net.nobody);
            is_dropped(&mut rig, &packet, "unknown_address");

            // For another machine, and out of the ranges.
            let foreign = packet.over(CLIENT, [2, 0, 0, 0, 0, 9]);
            let bytes = foreign.bytes();
            assert_eq!(rig.xdp(&bytes), Fate { verdict: XDP_PASS, bytes });
            rig.expect_moved(&[("foreign_mac", 1)]);
            let bytes = packet.between(net.client, net.far).bytes();
            assert_eq!(rig.xdp(&bytes), Fate { verdict: XDP_PASS, bytes: bytes.clone() });
            assert_eq!(rig.ingress(&bytes), Fate { verdict: TCX_NEXT, bytes });
            rig.expect_moved(&[]);
        }
    }
}

#[test]
fn every_protocol_to_an_unassigned_service_address_is_dropped() {
    let mut rig = Rig::with_service_cidrs(&CIDRS);
    for (net, at) in nets().into_iter().zip([23, 20]) {
        for protocol in [1, 58, 132, 47] {
            let mut bytes = Packet::new(IPPROTO_UDP, net.client, net.nobody).bytes();
            bytes[at] = protocol;
            assert_eq!(rig.xdp(&bytes).verdict, XDP_DROP, "{protocol}");
            assert_eq!(rig.ingress(&bytes).verdict, TCX_DROP, "{protocol}");
            rig.expect_moved(&[("unknown_address", 2)]);
        }
    }
}

#[test]
fn an_address_of_a_service_range_that_somebody_has_is_left_to_them() {
    let mut rig = Rig::with_service_cidrs(&CIDRS);
    for (net, protocol) in every() {
        let bytes = Packet::new(protocol, net.client, net.nobody).bytes();
        for flags in [AddressFlags::NODE, AddressFlags::BACKEND, AddressFlags::TOMBSTONE] {
            rig.address(net.nobody.ip(), flags);
            assert_eq!(rig.xdp(&bytes), Fate { verdict: XDP_PASS, bytes: bytes.clone() });
            assert_eq!(rig.ingress(&bytes), Fate { verdict: TCX_NEXT, bytes: bytes.clone() });
            rig.expect_moved(&[]);
        }
        let pod = rig.local(net.pod);
        rig.frontend(net.nobody, protocol, &[pod]);
        assert_eq!(rig.xdp(&bytes).verdict, XDP_PASS);
        rig.expect_moved(&[("flow_new", 1), ("passed_local", 1)]);
    }
}
