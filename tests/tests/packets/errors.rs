//! Packets that end here, and what their senders are told.

use std::process::Command;

use lbxdp_common::{AddressFlags, TablePolicy};

use crate::{
    every,
    frames::{Packet, icmp_error},
    nets,
    rig::{CLIENT, Fate, N0, Rig, TCX_DROP, TCX_NEXT, TCX_REDIRECT, XDP_DROP, XDP_PASS, XDP_TX},
};

const PORT_UNREACHABLE: [(u8, u8, [u8; 4]); 2] = [(3, 3, [0; 4]), (1, 4, [0; 4])];
const TIME_EXCEEDED: [(u8, u8, [u8; 4]); 2] = [(11, 0, [0; 4]), (3, 0, [0; 4])];

fn error(about: &Packet, [v4, v6]: [(u8, u8, [u8; 4]); 2]) -> Vec<u8> {
    icmp_error(about, v4, v6)
}

/// Payloads shorter and longer than what is quoted, of every residue of a word's length.
const LENGTHS: [usize; 8] = [0, 1, 2, 3, 70, 121, 400, 1_000];

#[test]
fn a_service_without_endpoints_refuses() {
    let mut rig = Rig::new();
    for (net, protocol) in every() {
        rig.verdict(net.vip, protocol, TablePolicy::Reject);
        for length in LENGTHS {
            let mut packet = Packet::new(protocol, net.client, net.vip);
            packet.payload = vec![0xa5; length];
            let bytes = error(&packet, PORT_UNREACHABLE);
            assert_eq!(rig.xdp(&packet.bytes()), Fate { verdict: XDP_TX, bytes: bytes.clone() });
            assert_eq!(rig.ingress(&packet.bytes()), Fate { verdict: TCX_REDIRECT, bytes });
            rig.expect_moved(&[("no_endpoint", 2), ("icmp_sent", 2)]);
        }
    }
}

#[test]
fn a_refusal_of_a_tagged_frame_is_tagged() {
    let mut rig = Rig::new();
    for (net, protocol) in every() {
        rig.verdict(net.vip, protocol, TablePolicy::Reject);
        let plain = Packet::new(protocol, net.client, net.vip);
        let tagged = Packet { vlan: vec![200, 100], ..plain.clone() };
        let mut expected = tagged.bytes()[..22].to_vec();
        let answer = error(&plain, PORT_UNREACHABLE);
        expected[..12].copy_from_slice(&answer[..12]);
        expected.extend_from_slice(&answer[14..]);
        assert_eq!(rig.xdp(&tagged.bytes()), Fate { verdict: XDP_TX, bytes: expected });
    }
}

#[test]
fn an_unknown_port_is_refused_on_a_cluster_ip_and_dropped_on_other_service_addresses() {
    let mut rig = Rig::new();
    for (net, protocol) in every() {
        let packet = Packet::new(protocol, net.client, net.vip);
        rig.address(net.vip.ip(), AddressFlags::SERVICE | AddressFlags::CLUSTER_IP);
        let bytes = error(&packet, PORT_UNREACHABLE);
        assert_eq!(rig.xdp(&packet.bytes()), Fate { verdict: XDP_TX, bytes });
        rig.expect_moved(&[("unknown_port", 1), ("icmp_sent", 1)]);
        rig.address(net.vip.ip(), AddressFlags::SERVICE);
        assert_eq!(rig.xdp(&packet.bytes()).verdict, XDP_DROP);
        assert_eq!(rig.ingress(&packet.bytes()).verdict, TCX_DROP);
        rig.expect_moved(&[("unknown_port", 2)]);
    }
}

#[test]
fn a_packet_whose_hops_end_here_is_answered_unless_it_stays_here() {
    let mut rig = Rig::new();
    for (net, protocol) in every() {
        let near = rig.remote(net.near, net.node.ip());
        let pod = rig.local(net.pod);
        rig.frontend(net.vip, protocol, &[near]);
        rig.frontend(net.vip2, protocol, &[pod]);
        for ttl in [0, 1] {
            let packet = Packet { ttl, ..Packet::new(protocol, net.client, net.vip) };
            let bytes = error(&packet, TIME_EXCEEDED);
            rig.moved();
            assert_eq!(rig.xdp(&packet.bytes()), Fate { verdict: XDP_TX, bytes: bytes.clone() });
            assert_eq!(rig.ingress(&packet.bytes()), Fate { verdict: TCX_REDIRECT, bytes });
            let flow =
                if ttl == 0 { [("flow_new", 1), ("flow_hit", 1)] } else { [("flow_hit", 2); 2] };
            let mut expected = vec![("ttl_exceeded", 2), ("icmp_sent", 2)];
            expected.extend(flow);
            expected.dedup();
            rig.expect_moved(&expected);
            // The stack, which forwards to the pod, judges the rest.
            let packet = packet.between(net.client, net.vip2);
            let expected = packet.between(net.client, net.pod).bytes();
            assert_eq!(rig.xdp(&packet.bytes()), Fate { verdict: XDP_PASS, bytes: expected });
        }
        rig.moved();
    }
}

#[test]
fn a_packet_larger_than_the_way_to_its_backend_is_answered_with_what_fits() {
    let mut rig = Rig::new();
    for device in ["n0", "n1"] {
        let status = Command::new("ip").args(["link", "set", device, "mtu", "1400"]).status();
        assert!(status.expect("iproute2").success());
    }
    let mtu = 1_400_u16.to_be_bytes();
    let too_big = [(3, 4, [0, 0, mtu[0], mtu[1]]), (2, 0, [0, 0, mtu[0], mtu[1]])];
    for (net, protocol) in every() {
        let far = rig.remote(net.far, net.node1.ip());
        rig.frontend(net.vip, protocol, &[far]);
        let mut packet = Packet::new(protocol, net.client, net.vip);
        let headers = packet.bytes().len() - 14 - packet.payload.len();
        packet.payload = vec![1; 1_400 - headers];
        rig.xdp(&packet.bytes());
        rig.expect_moved(&[("flow_new", 1), ("redirected", 1)]);
        packet.payload.push(1);
        let bytes = error(&packet, too_big);
        assert_eq!(rig.xdp(&packet.bytes()), Fate { verdict: XDP_TX, bytes: bytes.clone() });
        assert_eq!(rig.ingress(&packet.bytes()), Fate { verdict: TCX_REDIRECT, bytes });
        rig.expect_moved(&[("flow_hit", 2), ("too_big", 2), ("icmp_sent", 2)]);
    }
}

#[test]
fn errors_are_rationed() {
    let mut rig = Rig::new();
    let (net, protocol) = every()[0];
    rig.verdict(net.vip, protocol, TablePolicy::Reject);
    let frame = Packet::new(protocol, net.client, net.vip).bytes();
    let mut answered = 0;
    let mut silent = 0;
    for _ in 0..20_000 {
        match rig.xdp(&frame).verdict {
            XDP_TX => answered += 1,
            XDP_DROP => silent += 1,
            other => panic!("verdict {other}"),
        }
    }
    assert!(silent > 0, "{answered} answers and none withheld");
    assert!(answered >= 1_000, "a burst of {answered} only");
    let mut expected = vec![("no_endpoint", 20_000), ("icmp_sent", answered)];
    expected.push(("icmp_suppressed", silent));
    rig.expect_moved(&expected);
}

#[test]
fn a_frame_cut_anywhere_is_dropped_for_a_service_and_passes_for_anybody_else() {
    let mut rig = Rig::new();
    for (net, protocol) in every() {
        let near = rig.remote(net.near, net.node.ip());
        rig.frontend(net.vip, protocol, &[near]);
        let packet = Packet::new(protocol, net.client, net.vip);
        let frame = packet.bytes();
        let transport = packet.transport_offset();
        let headers = transport + if protocol == 6 { 20 } else { 8 };
        let addresses = if net.vip.is_ipv4() { 14 + 20 } else { 14 + 40 };
        for cut in 14..headers {
            let fate = rig.xdp(&frame[..cut]);
            if cut < addresses {
                assert_eq!(fate, Fate { verdict: XDP_PASS, bytes: frame[..cut].to_vec() });
                rig.expect_moved(&[]);
            } else {
                assert_eq!(fate.verdict, XDP_DROP, "cut at {cut}");
                rig.expect_moved(&[("malformed", 1)]);
                // tc test runs take no frame that ends before the IP header does.
                assert_eq!(rig.ingress(&frame[..cut]).verdict, TCX_DROP, "cut at {cut}");
                rig.expect_moved(&[("malformed", 1)]);
            }
        }
        let foreign = packet.between(net.client, net.nobody).bytes();
        for cut in 14..headers {
            let fate = rig.xdp(&foreign[..cut]);
            assert_eq!(fate, Fate { verdict: XDP_PASS, bytes: foreign[..cut].to_vec() });
        }
        rig.expect_moved(&[]);
    }
}

#[test]
fn a_header_that_contradicts_itself_is_dropped_for_a_service_only() {
    let mut rig = Rig::new();
    let [net, _] = nets();
    for protocol in [6, 17] {
        let near = rig.remote(net.near, net.node.ip());
        rig.frontend(net.vip, protocol, &[near]);
        rig.address(net.node.ip(), AddressFlags::NODE);
        for ihl in 0..5 {
            let mut frame = Packet::new(protocol, net.client, net.vip).bytes();
            frame[14] = 0x40 | ihl;
            assert_eq!(rig.xdp(&frame).verdict, XDP_DROP, "IHL {ihl}");
            rig.expect_moved(&[("malformed", 1)]);
            let mut frame = Packet::new(protocol, net.client, net.node).bytes();
            frame[14] = 0x40 | ihl;
            assert_eq!(rig.xdp(&frame), Fate { verdict: XDP_PASS, bytes: frame.clone() });
            rig.expect_moved(&[]);
        }
    }
}

/// An echo request to `to`, and the reply that is due.
fn echo(net: &crate::Net, to: std::net::SocketAddr, payload: &[u8]) -> (Vec<u8>, Vec<u8>) {
    use std::net::IpAddr;

    use etherparse::{IcmpEchoHeader, PacketBuilder};

    let header = IcmpEchoHeader { id: 7, seq: 3 };
    let (mut request, mut reply) = (Vec::new(), Vec::new());
    let there = PacketBuilder::ethernet2(CLIENT, N0);
    let back = PacketBuilder::ethernet2(N0, CLIENT);
    match (net.client.ip(), to.ip()) {
        (IpAddr::V4(client), IpAddr::V4(to)) => {
            let there = there.ipv4(client.octets(), to.octets(), 3);
            there.icmpv4_echo_request(header.id, header.seq).write(&mut request, payload)
        }
        .and_then(|()| {
            let back = back.ipv4(to.octets(), client.octets(), 64);
            back.icmpv4_echo_reply(header.id, header.seq).write(&mut reply, payload)
        }),
        (IpAddr::V6(client), IpAddr::V6(to)) => {
            let there = there.ipv6(client.octets(), to.octets(), 3);
            there.icmpv6_echo_request(header.id, header.seq).write(&mut request, payload)
        }
        .and_then(|()| {
            let back = back.ipv6(to.octets(), client.octets(), 64);
            back.icmpv6_echo_reply(header.id, header.seq).write(&mut reply, payload)
        }),
        _ => panic!("one family"),
    }
    .expect("memory");
    (request, reply)
}

#[test]
fn a_service_address_answers_ping_and_a_node_does_so_itself() {
    let mut rig = Rig::new();
    for net in nets() {
        rig.address(net.vip.ip(), AddressFlags::SERVICE);
        rig.address(net.node.ip(), AddressFlags::SERVICE | AddressFlags::NODE);
        for length in [0, 1, 56, 1_400] {
            let (request, reply) = echo(&net, net.vip, &vec![0x5a; length]);
            assert_eq!(rig.xdp(&request), Fate { verdict: XDP_TX, bytes: reply.clone() });
            assert_eq!(rig.ingress(&request), Fate { verdict: TCX_REDIRECT, bytes: reply });
            rig.expect_moved(&[("echo_answered", 2)]);
        }
        for to in [net.node, net.nobody] {
            let (request, _) = echo(&net, to, b"ping");
            assert_eq!(rig.xdp(&request), Fate { verdict: XDP_PASS, bytes: request.clone() });
            assert_eq!(rig.ingress(&request), Fate { verdict: TCX_NEXT, bytes: request.clone() });
        }
        // An answer is no question.
        let (_, reply) = echo(&net, net.vip, b"ping");
        let mut towards_us = reply[..12].to_vec();
        towards_us.rotate_left(6);
        towards_us.extend_from_slice(&reply[12..]);
        assert_eq!(rig.xdp(&towards_us), Fate { verdict: XDP_PASS, bytes: towards_us.clone() });
        rig.expect_moved(&[]);
    }
}

#[test]
fn answers_to_pings_are_rationed_with_the_errors() {
    let mut rig = Rig::new();
    let [net, _] = nets();
    rig.address(net.vip.ip(), AddressFlags::SERVICE);
    let (request, _) = echo(&net, net.vip, b"ping");
    let answered = (0..20_000).filter(|_| rig.xdp(&request).verdict == XDP_TX).count();
    let answered = u64::try_from(answered).expect("small");
    assert!((1_000..20_000).contains(&answered), "{answered} answers");
    let silent = 20_000 - answered;
    rig.expect_moved(&[
        ("echo_answered", answered),
        ("icmp_rationed", silent),
        ("icmp_suppressed", silent),
    ]);
}

#[test]
fn sources_that_no_client_can_have_are_dropped_each_for_its_reason() {
    let mut rig = Rig::new();
    for (net, protocol) in every() {
        let near = rig.remote(net.near, net.node.ip());
        rig.frontend(net.vip, protocol, &[near]);
        rig.frontend(net.vip2, protocol, &[near]);
        let martians: &[(&str, &'static str)] = if net.vip.is_ipv4() {
            &[
                ("127.0.0.1", "loopback_source"),
                ("127.255.0.1", "loopback_source"),
                ("0.0.0.0", "multicast_source"),
                ("224.0.0.1", "multicast_source"),
                ("239.1.2.3", "multicast_source"),
                ("255.255.255.255", "multicast_source"),
                ("203.0.113.11", "service_source"),
                ("203.0.113.10", "service_source"),
            ]
        } else {
            &[
                ("::1", "loopback_source"),
                ("::", "multicast_source"),
                ("ff02::1", "multicast_source"),
                ("2001:db8:ff::11", "service_source"),
                ("2001:db8:ff::10", "service_source"),
            ]
        };
        for (source, reason) in martians {
            let source = source.parse().expect("an address");
            let packet = Packet::new(protocol, std::net::SocketAddr::new(source, 9), net.vip);
            assert_eq!(rig.xdp(&packet.bytes()).verdict, XDP_DROP, "{source}");
            assert_eq!(rig.ingress(&packet.bytes()).verdict, TCX_DROP, "{source}");
            rig.expect_moved(&[(*reason, 2)]);
        }
    }
}
