//! Datagrams in pieces: the later ones follow the first.

use std::net::SocketAddr;

use lbxdp_common::AddressFlags;

use crate::{
    every,
    forwarding::source_port,
    frames::Packet,
    rig::{
        CLIENT, Fate, N0, PEER0, Rig, TCX_DROP, TCX_NEXT, TCX_REDIRECT, XDP_DROP, XDP_PASS, XDP_TX,
    },
};

/// Bytes in each piece.
const SIZE: usize = 96;

fn datagram(protocol: u8, src: SocketAddr, dst: SocketAddr, options: bool) -> Packet {
    let payload = (0..=255).cycle().take(1_000).collect();
    Packet { payload, options, ..Packet::new(protocol, src, dst) }
}

/// What the flow of `request` makes of it on its way to a remote backend.
fn forwarded(request: &Packet, out: &Fate, node: SocketAddr, backend: SocketAddr) -> Packet {
    let snat = SocketAddr::new(node.ip(), source_port(request, out));
    request.between(snat, backend).over(N0, PEER0).hop()
}

#[test]
fn fragments_of_both_directions_of_a_remote_backend_are_translated() {
    let mut rig = Rig::new();
    for (net, protocol) in every() {
        let id = rig.remote(net.near, net.node.ip());
        let frontend = rig.frontend(net.vip, protocol, &[id]);
        for options in [false, true] {
            let request = datagram(protocol, net.client, net.vip, options);
            let out = rig.xdp(&request.bytes());
            let expected = forwarded(&request, &out, net.node, net.near);
            let before = rig.stats(net.vip.ip(), frontend);
            rig.moved();
            let mut bytes = 0;
            let fragments = request.fragments(7, SIZE);
            for (fragment, expected) in fragments.iter().zip(expected.fragments(7, SIZE)) {
                bytes += u64::try_from(fragment.len() - 14).expect("short");
                assert_eq!(rig.xdp(fragment), Fate { verdict: XDP_TX, bytes: expected });
            }
            let count = u64::try_from(fragments.len()).expect("few");
            rig.expect_moved(&[
                ("flow_hit", count),
                ("fragment_followed", count - 1),
                ("transmitted", count),
            ]);
            let after = rig.stats(net.vip.ip(), frontend);
            assert_eq!(
                (after.packets - before.packets, after.bytes - before.bytes),
                (count, bytes)
            );

            // tc leaves the next hop's addresses to the stack.
            let unaddressed = expected.over(request.from_mac, request.to_mac);
            for (fragment, bytes) in fragments.iter().zip(unaddressed.fragments(7, SIZE)) {
                assert_eq!(rig.ingress(fragment), Fate { verdict: TCX_REDIRECT, bytes });
            }
            rig.moved();

            let reply = expected.between(expected.dst, expected.src).over(PEER0, N0).flags("S.");
            let translated = reply.between(net.vip, net.client).over(N0, CLIENT).hop();
            let fragments = reply.fragments(7, SIZE);
            for (fragment, bytes) in fragments.iter().zip(translated.fragments(7, SIZE)) {
                assert_eq!(rig.xdp(fragment), Fate { verdict: XDP_TX, bytes });
            }
            rig.expect_moved(&[
                ("flow_hit", count),
                ("fragment_followed", count - 1),
                ("transmitted", count),
            ]);
        }
        rig.evict(|_| true);
    }
}

#[test]
fn fragments_to_a_local_backend_and_of_its_replies_are_translated() {
    let mut rig = Rig::new();
    for (net, protocol) in every() {
        let pod = rig.local(net.pod);
        rig.frontend(net.vip, protocol, &[pod]);
        for (id, options) in [(1, false), (2, true)] {
            let request = datagram(protocol, net.client, net.vip, options);
            let expected = request.between(net.client, net.pod).fragments(id, SIZE);
            for (fragment, bytes) in request.fragments(id, SIZE).iter().zip(&expected) {
                let bytes = bytes.clone();
                assert_eq!(rig.xdp(fragment), Fate { verdict: XDP_PASS, bytes });
            }
            let expected = request.between(net.client, net.pod).fragments(id + 100, SIZE);
            for (fragment, bytes) in request.fragments(id + 100, SIZE).iter().zip(&expected) {
                let bytes = bytes.clone();
                assert_eq!(rig.ingress(fragment), Fate { verdict: TCX_NEXT, bytes });
            }
            let count = u64::try_from(expected.len()).expect("few");
            let new = u64::from(!options);
            let mut moved = vec![
                ("flow_hit", 2 * count - new),
                ("fragment_followed", 2 * (count - 1)),
                ("passed_local", 2 * count),
            ];
            if !options {
                moved.push(("flow_new", 1));
            }
            rig.expect_moved(&moved);

            let reply = request.between(net.pod, net.client).over(N0, CLIENT).flags("S.");
            let expected = reply.between(net.vip, net.client).fragments(id, SIZE);
            for (fragment, bytes) in reply.fragments(id, SIZE).iter().zip(expected) {
                assert_eq!(rig.egress(fragment), Fate { verdict: TCX_NEXT, bytes });
            }
            rig.expect_moved(&[
                ("flow_hit", count),
                ("fragment_followed", count - 1),
                ("reply_translated", count),
            ]);
        }
    }
}

#[test]
fn fragments_that_come_before_their_first_one_are_counted_and_the_nodes_own_pass() {
    let mut rig = Rig::new();
    for (net, protocol) in every() {
        let near = rig.remote(net.near, net.node.ip());
        rig.local(net.pod);
        rig.frontend(net.vip, protocol, &[near]);
        rig.address(net.node.ip(), AddressFlags::NODE);
        let fragments = datagram(protocol, net.client, net.vip, false).fragments(3, SIZE);
        assert_eq!(rig.xdp(&fragments[1]).verdict, XDP_DROP);
        assert_eq!(rig.ingress(&fragments[1]).verdict, TCX_DROP);
        rig.expect_moved(&[("fragment", 2)]);
        assert_eq!(rig.xdp(&fragments[0]).verdict, XDP_TX);
        assert_eq!(rig.xdp(&fragments[1]).verdict, XDP_TX);
        rig.expect_moved(&[
            ("flow_hit", 1),
            ("flow_new", 1),
            ("fragment_followed", 1),
            ("transmitted", 2),
        ]);
        // The same pieces of another datagram.
        let other = datagram(protocol, net.client, net.vip, false).fragments(4, SIZE);
        assert_eq!(rig.xdp(&other[1]).verdict, XDP_DROP);
        rig.expect_moved(&[("fragment", 1)]);

        for fragment in datagram(protocol, net.client, net.node, false).fragments(3, SIZE) {
            let expected = Fate { verdict: XDP_PASS, bytes: fragment.clone() };
            assert_eq!(rig.xdp(&fragment), expected);
            let expected = Fate { verdict: TCX_NEXT, bytes: fragment.clone() };
            assert_eq!(rig.ingress(&fragment), expected);
        }
        // A pod's own, too.
        for fragment in datagram(protocol, net.pod, net.client, false).fragments(3, SIZE) {
            let expected = Fate { verdict: TCX_NEXT, bytes: fragment.clone() };
            assert_eq!(rig.egress(&fragment), expected);
        }
        rig.expect_moved(&[]);
        rig.evict(|_| true);
    }
}

#[test]
fn only_what_is_translated_is_remembered_and_the_last_first_one_wins() {
    let mut rig = Rig::new();
    for (net, protocol) in every() {
        let pod = rig.local(net.pod);
        rig.frontend(net.vip, protocol, &[pod]);
        // Nobody listens on that port.
        let port = SocketAddr::new(net.vip.ip(), 9);
        let unknown = datagram(protocol, net.client, port, false).fragments(5, SIZE);
        assert_eq!(rig.xdp(&unknown[0]).verdict, XDP_DROP);
        assert_eq!(rig.xdp(&unknown[1]).verdict, XDP_DROP);
        rig.expect_moved(&[("unknown_port", 1), ("fragment", 1)]);

        // Two datagrams that look the same but for their ports, one to a pod, one to elsewhere.
        let id = rig.remote(net.near, net.node.ip());
        let elsewhere = SocketAddr::new(net.vip.ip(), 81);
        rig.frontend(elsewhere, protocol, &[id]);
        let one = datagram(protocol, net.client, net.vip, false).fragments(6, SIZE);
        let other = datagram(protocol, net.client, elsewhere, false).fragments(6, SIZE);
        assert_eq!(one[2], other[2]);
        for _ in 0..2 {
            assert_eq!(rig.xdp(&one[0]).verdict, XDP_PASS);
            assert_eq!(rig.xdp(&one[2]).verdict, XDP_PASS);
            assert_eq!(rig.xdp(&other[0]).verdict, XDP_TX);
            assert_eq!(rig.xdp(&other[2]).verdict, XDP_TX);
        }
        rig.evict(|_| true);
        rig.moved();
        // Without its flow a later fragment begins nothing.
        assert_eq!(rig.xdp(&other[2]).verdict, XDP_DROP);
        rig.expect_moved(&[("fragment", 1)]);
    }
}
