//! Where packets go: every path, both families, both protocols.

use lbxdp_common::{AddressFlags, Device, FrontendStats, IPPROTO_TCP, IPPROTO_UDP, TablePolicy};

use crate::{
    Net, every,
    frames::Packet,
    nets,
    rig::{
        CLIENT, Fate, N0, N1, PEER0, PEER1, Rig, TCX_DROP, TCX_NEXT, TCX_REDIRECT, XDP_DROP,
        XDP_PASS, XDP_REDIRECT, XDP_TX,
    },
};

fn fate(verdict: u32, packet: &Packet) -> Fate {
    Fate { verdict, bytes: packet.bytes() }
}

/// The source port that the node gave a packet.
pub fn source_port(packet: &Packet, fate: &Fate) -> u16 {
    let at = packet.transport_offset();
    u16::from_be_bytes([fate.bytes[at], fate.bytes[at + 1]])
}

/// The port to which the node sends a packet.
pub fn destination_port(packet: &Packet, fate: &Fate) -> u16 {
    let at = packet.transport_offset() + 2;
    u16::from_be_bytes([fate.bytes[at], fate.bytes[at + 1]])
}

#[test]
fn what_is_nobodys_passes_untouched_at_every_hook() {
    let mut rig = Rig::new();
    for (net, protocol) in every() {
        rig.frontend(net.vip, protocol, &[]);
        let packet = Packet::new(protocol, net.client, net.nobody);
        assert_eq!(rig.xdp(&packet.bytes()), fate(XDP_PASS, &packet));
        assert_eq!(rig.ingress(&packet.bytes()), fate(TCX_NEXT, &packet));
        assert_eq!(rig.egress(&packet.bytes()), fate(TCX_NEXT, &packet));
    }
    // Not IP at all, even where a service's address would be.
    let mut arp = Packet::new(IPPROTO_UDP, nets()[0].client, nets()[0].vip).bytes();
    arp[12..14].copy_from_slice(&[0x08, 0x06]);
    assert_eq!(rig.xdp(&arp), Fate { verdict: XDP_PASS, bytes: arp.clone() });
    assert_eq!(rig.ingress(&arp), Fate { verdict: TCX_NEXT, bytes: arp.clone() });
    rig.expect_moved(&[]);
    // IP that is not served ends at a service, as the route would bring it back; the node gets it.
    for (to, xdp, ingress) in
        [(nets()[0].vip, XDP_DROP, TCX_DROP), (nets()[0].node, XDP_PASS, TCX_NEXT)]
    {
        let mut gre = Packet::new(IPPROTO_UDP, nets()[0].client, to).bytes();
        gre[23] = 47;
        assert_eq!(rig.xdp(&gre), Fate { verdict: xdp, bytes: gre.clone() });
        assert_eq!(rig.ingress(&gre), Fate { verdict: ingress, bytes: gre.clone() });
    }
    rig.expect_moved(&[("unknown_protocol", 2)]);
}

#[test]
fn a_local_backend_gets_the_packet_up_the_stack_with_the_clients_address() {
    let mut rig = Rig::new();
    for (net, protocol) in every() {
        let pod = rig.local(net.pod);
        let frontend = rig.frontend(net.vip, protocol, &[pod]);
        let request = Packet::new(protocol, net.client, net.vip);
        let expected = request.between(net.client, net.pod);
        assert_eq!(rig.xdp(&request.bytes()), fate(XDP_PASS, &expected));
        rig.expect_moved(&[("flow_new", 1), ("passed_local", 1)]);

        let reply = request.between(net.pod, net.client).over(N0, CLIENT).flags("S.");
        let expected = reply.between(net.vip, net.client);
        assert_eq!(rig.egress(&reply.bytes()), fate(TCX_NEXT, &expected));
        rig.expect_moved(&[("flow_hit", 1), ("reply_translated", 1)]);

        let more = request.flags(".");
        assert_eq!(rig.xdp(&more.bytes()), fate(XDP_PASS, &more.between(net.client, net.pod)));
        rig.expect_moved(&[("flow_hit", 1), ("passed_local", 1)]);

        let request_bytes = u64::try_from(request.bytes().len() - 14).expect("short");
        let reply_bytes = u64::try_from(reply.bytes().len() - 14).expect("short");
        assert_eq!(
            rig.stats(net.vip.ip(), frontend),
            FrontendStats { packets: 2, bytes: 2 * request_bytes, reply_packets: 1, reply_bytes }
        );
    }
}

#[test]
fn tc_ingress_serves_a_local_backend_where_xdp_is_absent() {
    let mut rig = Rig::new();
    for (net, protocol) in every() {
        let pod = rig.local(net.pod);
        rig.frontend(net.vip, protocol, &[pod]);
        let request = Packet::new(protocol, net.client, net.vip);
        let expected = request.between(net.client, net.pod);
        assert_eq!(rig.ingress(&request.bytes()), fate(TCX_NEXT, &expected));
        rig.expect_moved(&[("flow_new", 1), ("passed_local", 1)]);
        // What XDP has translated passes tc as it is.
        assert_eq!(rig.ingress(&expected.bytes()), fate(TCX_NEXT, &expected));
        rig.expect_moved(&[]);
    }
}

/// A request to a remote backend, its reply, and the next request; the source port it was given.
fn there_and_back(rig: &mut Rig, net: &Net, protocol: u8, far: bool) -> u16 {
    let (backend, node, peer, device) =
        if far { (net.far, net.node1, PEER1, N1) } else { (net.near, net.node, PEER0, N0) };
    let verdict = if far { XDP_REDIRECT } else { XDP_TX };
    let way = if far { "redirected" } else { "transmitted" };
    let id = rig.remote(backend, node.ip());
    rig.frontend(net.vip, protocol, &[id]);

    let request = Packet::new(protocol, net.client, net.vip);
    let out = rig.xdp(&request.bytes());
    let port = source_port(&request, &out);
    let snat = std::net::SocketAddr::new(node.ip(), port);
    let expected = request.between(snat, backend).over(device, peer).hop();
    assert_eq!(out, fate(verdict, &expected));
    rig.expect_moved(&[("flow_new", 1), (way, 1)]);

    let reply = request.between(backend, snat).over(peer, N0).flags("S.");
    let expected = reply.between(net.vip, net.client).over(N0, CLIENT).hop();
    assert_eq!(rig.xdp(&reply.bytes()), fate(XDP_TX, &expected));
    rig.expect_moved(&[("flow_hit", 1), ("transmitted", 1)]);

    let more = request.flags(".");
    let expected = more.between(snat, backend).over(device, peer).hop();
    assert_eq!(rig.xdp(&more.bytes()), fate(verdict, &expected));
    rig.expect_moved(&[("flow_hit", 1), (way, 1)]);
    port
}

#[test]
fn a_remote_backend_on_the_same_device_is_reached_by_transmitting() {
    let mut rig = Rig::new();
    for (net, protocol) in every() {
        let port = there_and_back(&mut rig, &net, protocol, false);
        assert!(port >= 61_000, "{port} is not in the SNAT range");
    }
}

#[test]
fn a_remote_backend_on_another_device_is_reached_by_redirecting() {
    let mut rig = Rig::new();
    for (net, protocol) in every() {
        there_and_back(&mut rig, &net, protocol, true);
    }
}

#[test]
fn tc_ingress_finishes_what_xdp_leaves_untouched() {
    let mut rig = Rig::new();
    for (net, protocol) in every() {
        let id = rig.remote(net.unresolved, net.node.ip());
        rig.frontend(net.vip, protocol, &[id]);
        let request = Packet::new(protocol, net.client, net.vip);
        assert_eq!(rig.xdp(&request.bytes()), fate(XDP_PASS, &request), "unknown neighbour");
        rig.expect_moved(&[("flow_new", 1), ("deferred", 1)]);

        let out = rig.ingress(&request.bytes());
        let snat = std::net::SocketAddr::new(net.node.ip(), source_port(&request, &out));
        let expected = request.between(snat, net.unresolved).hop();
        assert_eq!(out, fate(TCX_REDIRECT, &expected));
        rig.expect_moved(&[("flow_hit", 1), ("redirected_neigh", 1)]);

        let reply = request.between(net.unresolved, snat).over(PEER0, N0).flags("S.");
        let expected = reply.between(net.vip, net.client).hop();
        assert_eq!(rig.ingress(&reply.bytes()), fate(TCX_REDIRECT, &expected));
        rig.expect_moved(&[("flow_hit", 1), ("redirected_neigh", 1)]);
    }
}

#[test]
fn a_device_that_cannot_transmit_is_left_to_tc() {
    let mut rig = Rig::new();
    let n1 = rig.n1;
    rig.device(n1, Device { mac: N1, ..Device::default() });
    for (net, protocol) in every() {
        let id = rig.remote(net.far, net.node1.ip());
        rig.frontend(net.vip, protocol, &[id]);
        let request = Packet::new(protocol, net.client, net.vip);
        assert_eq!(rig.xdp(&request.bytes()), fate(XDP_PASS, &request));
        rig.expect_moved(&[("flow_new", 1), ("deferred", 1)]);
        assert_eq!(rig.ingress(&request.bytes()).verdict, TCX_REDIRECT);
        rig.expect_moved(&[("flow_hit", 1), ("redirected_neigh", 1)]);
    }
    let n0 = rig.n0;
    rig.device(n0, Device { mac: N0, flags: Device::XMIT, ..Device::default() });
    for (net, protocol) in every() {
        let id = rig.remote(net.near, net.node.ip());
        rig.frontend(net.vip2, protocol, &[id]);
        let request = Packet::new(protocol, net.client, net.vip2);
        assert_eq!(rig.xdp(&request.bytes()), fate(XDP_PASS, &request));
        rig.expect_moved(&[("flow_new", 1), ("deferred", 1)]);
    }
}

#[test]
fn a_frame_for_another_machine_is_left_alone() {
    let mut rig = Rig::new();
    for (net, protocol) in every() {
        let pod = rig.local(net.pod);
        rig.frontend(net.vip, protocol, &[pod]);
        for foreign in [[2, 0, 0, 0, 0, 0x77], [0xff; 6], [0x33, 0x33, 0, 0, 0, 1]] {
            let packet = Packet::new(protocol, net.client, net.vip).over(CLIENT, foreign);
            assert_eq!(rig.xdp(&packet.bytes()), fate(XDP_PASS, &packet));
            assert_eq!(rig.ingress(&packet.bytes()), fate(TCX_NEXT, &packet));
            rig.expect_moved(&[("foreign_mac", 1)]);
        }
    }
}

#[test]
fn a_device_that_nobody_follows_is_left_alone() {
    let mut rig = Rig::new();
    let n0 = rig.n0;
    for (net, protocol) in every() {
        let pod = rig.local(net.pod);
        rig.frontend(net.vip, protocol, &[pod]);
        rig.device(n0, Device::default());
        let packet = Packet::new(protocol, net.client, net.vip);
        assert_eq!(rig.xdp(&packet.bytes()), fate(XDP_PASS, &packet));
    }
    rig.expect_moved(&[]);
}

#[test]
fn options_and_extension_headers_are_kept() {
    let mut rig = Rig::new();
    for (net, protocol) in every() {
        let pod = rig.local(net.pod);
        let near = rig.remote(net.near, net.node.ip());
        rig.frontend(net.vip, protocol, &[pod]);
        rig.frontend(net.vip2, protocol, &[near]);
        let options = Packet { options: true, ..Packet::new(protocol, net.client, net.vip) };
        let expected = options.between(net.client, net.pod);
        assert_eq!(rig.xdp(&options.bytes()), fate(XDP_PASS, &expected));
        assert_eq!(rig.ingress(&options.bytes()), fate(TCX_NEXT, &expected));
        let reply = options.between(net.pod, net.client).over(N0, CLIENT);
        let expected = reply.between(net.vip, net.client);
        assert_eq!(rig.egress(&reply.bytes()), fate(TCX_NEXT, &expected));

        let options = options.between(net.client, net.vip2);
        let out = rig.xdp(&options.bytes());
        let snat = std::net::SocketAddr::new(net.node.ip(), source_port(&options, &out));
        let expected = options.between(snat, net.near).over(N0, PEER0).hop();
        assert_eq!(out, fate(XDP_TX, &expected));
        rig.moved();
    }
}

#[test]
fn a_tagged_frame_keeps_its_tags_or_is_left_to_the_vlan_device() {
    let mut rig = Rig::new();
    let (n0, n1) = (rig.n0, rig.n1);
    for (net, protocol) in every() {
        let pod = rig.local(net.pod);
        let far = rig.remote(net.far, net.node1.ip());
        rig.frontend(net.vip, protocol, &[pod]);
        rig.frontend(net.vip2, protocol, &[far]);
        for vlan in [vec![100], vec![200, 100]] {
            let tags = [vlan[0], vlan.get(1).copied().unwrap_or(0)];
            let packet =
                Packet { vlan: vlan.clone(), ..Packet::new(protocol, net.client, net.vip) };
            let expected = packet.between(net.client, net.pod);
            assert_eq!(rig.xdp(&packet.bytes()), fate(XDP_PASS, &expected), "local, {vlan:?}");

            // The way out is the VLAN device of the same tags on the same device.
            let packet = packet.between(net.client, net.vip2);
            let flags = Device::XMIT | Device::TX;
            rig.device(n1, Device { mac: N1, flags, parent: n0, vlan: tags });
            let out = rig.xdp(&packet.bytes());
            let snat = std::net::SocketAddr::new(net.node1.ip(), source_port(&packet, &out));
            let expected = packet.between(snat, net.far).over(N1, PEER1).hop();
            assert_eq!(out, fate(XDP_TX, &expected), "same tags, {vlan:?}");

            // Any other way out needs other tags or none.
            for device in [
                Device { mac: N1, flags, parent: n0, vlan: [101, 0] },
                Device { mac: N1, flags, parent: 0, vlan: [0, 0] },
            ] {
                rig.device(n1, device);
                assert_eq!(rig.xdp(&packet.bytes()), fate(XDP_PASS, &packet), "{device:?}");
            }
        }
        rig.moved();
    }
}

#[test]
fn a_datagram_without_a_checksum_stays_without() {
    let mut rig = Rig::new();
    let [net, _] = nets();
    let pod = rig.local(net.pod);
    rig.frontend(net.vip, IPPROTO_UDP, &[pod]);
    let packet = Packet::new(IPPROTO_UDP, net.client, net.vip);
    let clear = |packet: &Packet| {
        let mut bytes = packet.bytes();
        let at = packet.transport_offset() + 6;
        bytes[at..at + 2].copy_from_slice(&[0, 0]);
        bytes
    };
    let expected = clear(&packet.between(net.client, net.pod));
    assert_eq!(rig.xdp(&clear(&packet)), Fate { verdict: XDP_PASS, bytes: expected.clone() });
    assert_eq!(rig.ingress(&clear(&packet)), Fate { verdict: TCX_NEXT, bytes: expected });
    let reply = packet.between(net.pod, net.client).over(N0, CLIENT);
    let expected = clear(&reply.between(net.vip, net.client));
    assert_eq!(rig.egress(&clear(&reply)), Fate { verdict: TCX_NEXT, bytes: expected });
}

#[test]
fn a_datagram_whose_checksum_becomes_zero_says_all_ones() {
    let mut rig = Rig::new();
    for net in nets() {
        let pod = rig.local(net.pod);
        rig.frontend(net.vip, IPPROTO_UDP, &[pod]);
        let mut packet = Packet::new(IPPROTO_UDP, net.client, net.vip);
        // A payload word that takes the checksum of the translated packet to zero.
        packet.payload = vec![0, 0];
        let at = packet.transport_offset() + 6;
        let translated = packet.between(net.client, net.pod).bytes();
        packet.payload = translated[at..at + 2].to_vec();
        let expected = packet.between(net.client, net.pod);
        assert_eq!(expected.bytes()[at..at + 2], [0xff, 0xff], "the case is the one that is meant");
        assert_eq!(rig.xdp(&packet.bytes()), fate(XDP_PASS, &expected));
        assert_eq!(rig.ingress(&packet.bytes()), fate(TCX_NEXT, &expected));
    }
}

#[test]
fn merged_packets_are_measured_by_their_pieces() {
    let mut rig = Rig::new();
    for net in nets() {
        let near = rig.remote(net.near, net.node.ip());
        rig.frontend(net.vip, IPPROTO_TCP, &[near]);
        let mut packet = Packet::new(IPPROTO_TCP, net.client, net.vip).flags(".");
        packet.payload = vec![7; 2_800];
        assert_eq!(rig.ingress_merged(&packet.bytes(), 1_400).verdict, TCX_REDIRECT);
        rig.expect_moved(&[("flow_midstream", 1), ("flow_new", 1), ("redirected_neigh", 1)]);
        rig.ingress_merged(&packet.bytes(), 1_500);
        rig.expect_moved(&[("flow_hit", 1), ("too_big", 1), ("icmp_sent", 1)]);
    }
}

#[test]
fn the_traffic_policy_decides_between_silence_and_refusal() {
    let mut rig = Rig::new();
    for (net, protocol) in every() {
        rig.verdict(net.vip, protocol, TablePolicy::Drop);
        let packet = Packet::new(protocol, net.client, net.vip);
        assert_eq!(rig.xdp(&packet.bytes()).verdict, XDP_DROP);
        assert_eq!(rig.ingress(&packet.bytes()).verdict, TCX_DROP);
        rig.expect_moved(&[("no_local_endpoint", 2)]);
    }
}

#[test]
fn a_slot_without_a_backend_drops_and_says_so() {
    let mut rig = Rig::new();
    for (net, protocol) in every() {
        rig.frontend(net.vip, protocol, &[]);
        let packet = Packet::new(protocol, net.client, net.vip);
        assert_eq!(rig.xdp(&packet.bytes()).verdict, XDP_DROP);
        rig.expect_moved(&[("backend_missing", 1)]);
        rig.verdict(net.vip2, protocol, TablePolicy::None);
        let packet = Packet::new(protocol, net.client, net.vip2);
        assert_eq!(rig.xdp(&packet.bytes()).verdict, XDP_DROP);
        rig.expect_moved(&[("backend_missing", 1)]);
    }
}

#[test]
fn a_node_port_shares_the_address_with_the_node_itself() {
    let mut rig = Rig::new();
    for (net, protocol) in every() {
        let pod = rig.local(net.pod);
        rig.frontend(net.node, protocol, &[pod]);
        rig.address(net.node.ip(), AddressFlags::SERVICE | AddressFlags::NODE);
        let packet = Packet::new(protocol, net.client, net.node);
        let expected = packet.between(net.client, net.pod);
        assert_eq!(rig.xdp(&packet.bytes()), fate(XDP_PASS, &expected));
        rig.expect_moved(&[("flow_new", 1), ("passed_local", 1)]);
        for port in [22, 61_234] {
            let other = std::net::SocketAddr::new(net.node.ip(), port);
            let packet = Packet::new(protocol, net.client, other);
            assert_eq!(rig.xdp(&packet.bytes()), fate(XDP_PASS, &packet), "port {port}");
            assert_eq!(rig.ingress(&packet.bytes()), fate(TCX_NEXT, &packet), "port {port}");
        }
        rig.expect_moved(&[]);
    }
}

#[test]
fn a_host_network_backend_is_served_under_the_nodes_own_address() {
    let mut rig = Rig::new();
    for (net, protocol) in every() {
        let own = std::net::SocketAddr::new(net.node.ip(), 8_080);
        let id = rig.local(own);
        rig.address(net.node.ip(), AddressFlags::NODE | AddressFlags::BACKEND);
        rig.frontend(net.vip, protocol, &[id]);
        let packet = Packet::new(protocol, net.client, net.vip);
        let expected = packet.between(net.client, own);
        assert_eq!(rig.xdp(&packet.bytes()), fate(XDP_PASS, &expected));
        assert_eq!(rig.ingress(&expected.bytes()), fate(TCX_NEXT, &expected), "once only");
        let reply = packet.between(own, net.client).over(N0, CLIENT);
        assert_eq!(rig.egress(&reply.bytes()), fate(TCX_NEXT, &reply.between(net.vip, net.client)));
        rig.expect_moved(&[
            ("flow_new", 1),
            ("passed_local", 1),
            ("flow_hit", 1),
            ("reply_translated", 1),
        ]);
    }
}

#[test]
fn egress_leaves_a_backends_other_traffic_alone() {
    let mut rig = Rig::new();
    for (net, protocol) in every() {
        rig.local(net.pod);
        let packet = Packet::new(protocol, net.pod, net.client).over(N0, CLIENT);
        assert_eq!(rig.egress(&packet.bytes()), fate(TCX_NEXT, &packet));
    }
    rig.expect_moved(&[]);
}

#[test]
fn a_remote_backend_without_a_source_is_not_reached_from_nowhere() {
    let mut rig = Rig::new();
    for (net, protocol) in every() {
        let unspecified = if net.near.is_ipv4() { "0.0.0.0" } else { "::" };
        let id = rig.remote(net.near, unspecified.parse().expect("an address"));
        rig.frontend(net.vip, protocol, &[id]);
        let packet = Packet::new(protocol, net.client, net.vip);
        assert_eq!(rig.xdp(&packet.bytes()).verdict, XDP_DROP);
        rig.expect_moved(&[("backend_missing", 1)]);
    }
}
