//! SCTP: its checksum covers ports and no addresses. This library's CRC32c is another one than
//! the programs'.

use std::net::SocketAddr;

use lbxdp_common::{FlowState, IPPROTO_SCTP};

use crate::{
    Net,
    forwarding::source_port,
    frames::{Message, Packet},
    nets,
    rig::{
        CLIENT, Fate, N0, PEER0, Rig, TCX_DROP, TCX_NEXT, TCX_REDIRECT, XDP_DROP, XDP_PASS, XDP_TX,
    },
};

/// Chunk types (RFC 9260, 3.2).
const DATA: u8 = 0;
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const ABORT: u8 = 6;
const COOKIE_ECHO: u8 = 10;
const SHUTDOWN_COMPLETE: u8 = 14;

fn fate(verdict: u32, packet: &Packet) -> Fate {
    Fate { verdict, bytes: packet.bytes() }
}

/// A packet with one chunk of this type and `length` more bytes.
fn chunk(kind: u8, length: usize, src: SocketAddr, dst: SocketAddr) -> Packet {
    let mut payload = vec![kind, 0, 0, 4];
    payload.extend((0..=255).cycle().take(length));
    Packet { payload, ..Packet::new(IPPROTO_SCTP, src, dst) }
}

/// State of the only flow there is.
fn state(rig: &mut Rig) -> u8 {
    let v4 = rig.flows_v4().into_iter().map(|(_, flow)| flow.state);
    let mut states: Vec<u8> = v4.collect();
    states.extend(rig.flows_v6().into_iter().map(|(_, flow)| flow.state));
    assert_eq!(states.len(), 2, "two halves");
    assert_eq!(states[0], states[1], "both halves say the same");
    states[0]
}

fn lengths() -> impl Iterator<Item = usize> {
    (0..70).chain((70..1_440).step_by(37))
}

#[test]
fn both_directions_of_a_local_backend_are_translated_at_every_length() {
    let mut rig = Rig::new();
    for net in nets() {
        let pod = rig.local(net.pod);
        rig.frontend(net.vip, IPPROTO_SCTP, &[pod]);
        for length in lengths() {
            for options in [false, true] {
                let request = chunk(DATA, length, net.client, net.vip);
                let request = Packet { options, ..request };
                let expected = request.between(net.client, net.pod);
                assert_eq!(rig.xdp(&request.bytes()), fate(XDP_PASS, &expected));
                assert_eq!(rig.ingress(&request.bytes()), fate(TCX_NEXT, &expected));
                let reply = request.between(net.pod, net.client).over(N0, CLIENT);
                let expected = reply.between(net.vip, net.client);
                assert_eq!(rig.egress(&reply.bytes()), fate(TCX_NEXT, &expected));
                // What Ethernet pads is not the packet.
                let mut padded = request.bytes();
                padded.extend([0xee; 9]);
                let mut expected = request.between(net.client, net.pod).bytes();
                expected.extend([0xee; 9]);
                let expected = Fate { verdict: XDP_PASS, bytes: expected };
                assert_eq!(rig.xdp(&padded), expected, "{length} bytes and padding");
            }
        }
    }
}

#[test]
fn a_remote_backend_sees_the_clients_port_unless_another_client_has_it() {
    let mut rig = Rig::new();
    for net in nets() {
        let id = rig.remote(net.near, net.node.ip());
        rig.frontend(net.vip, IPPROTO_SCTP, &[id]);
        rig.frontend(net.vip2, IPPROTO_SCTP, &[id]);
        let request = chunk(INIT, 40, net.client, net.vip);
        let snat = SocketAddr::new(net.node.ip(), net.client.port());
        let expected = request.between(snat, net.near).over(N0, PEER0).hop();
        assert_eq!(rig.xdp(&request.bytes()), fate(XDP_TX, &expected));
        rig.expect_moved(&[("flow_new", 1), ("transmitted", 1)]);
        let reply = chunk(INIT_ACK, 40, net.near, snat).over(PEER0, N0);
        let expected = reply.between(net.vip, net.client).over(N0, CLIENT).hop();
        assert_eq!(rig.xdp(&reply.bytes()), fate(XDP_TX, &expected));
        rig.moved();

        let other = chunk(INIT, 40, net.client, net.vip2);
        let out = rig.xdp(&other.bytes());
        let port = source_port(&other, &out);
        assert!(port >= 61_000, "{port} is not in the SNAT range");
        let snat = SocketAddr::new(net.node.ip(), port);
        assert_eq!(out, fate(XDP_TX, &other.between(snat, net.near).over(N0, PEER0).hop()));
        rig.expect_moved(&[("flow_new", 1), ("port_changed", 1), ("transmitted", 1)]);
        rig.evict(|_| true);
    }
}

#[test]
fn an_association_lives_like_a_connection() {
    let mut rig = Rig::new();
    for net in nets() {
        for (end, by_client) in [(ABORT, true), (ABORT, false), (SHUTDOWN_COMPLETE, true)] {
            let id = rig.remote(net.near, net.node.ip());
            rig.frontend(net.vip, IPPROTO_SCTP, &[id]);
            let snat = SocketAddr::new(net.node.ip(), net.client.port());
            let request = |kind| chunk(kind, 8, net.client, net.vip).bytes();
            let reply = |kind| chunk(kind, 8, net.near, snat).over(PEER0, N0).bytes();
            rig.xdp(&request(INIT));
            assert_eq!(state(&mut rig), FlowState::Syn as u8);
            rig.xdp(&reply(INIT_ACK));
            assert_eq!(state(&mut rig), FlowState::Syn as u8);
            rig.xdp(&request(COOKIE_ECHO));
            assert_eq!(state(&mut rig), FlowState::Established as u8);
            rig.xdp(&if by_client { request(end) } else { reply(end) });
            assert_eq!(state(&mut rig), FlowState::Closing as u8);
            rig.moved();
            rig.xdp(&request(INIT));
            rig.expect_moved(&[("flow_expired", 1), ("flow_new", 1), ("transmitted", 1)]);
            rig.evict(|_| true);
        }
    }
}

#[test]
fn a_checksum_that_tc_leaves_to_the_device_stays_unfinished() {
    let mut rig = Rig::new();
    for net in nets() {
        let pod = rig.local(net.pod);
        rig.frontend(net.vip, IPPROTO_SCTP, &[pod]);
        let request = chunk(DATA, 21, net.client, net.vip);
        let at = request.transport_offset() + 8;
        let unfinished = |packet: &Packet| {
            let mut bytes = packet.bytes();
            bytes[at..at + 4].fill(0);
            bytes
        };
        let bytes = unfinished(&request.between(net.client, net.pod));
        assert_eq!(rig.ingress(&unfinished(&request)), Fate { verdict: TCX_NEXT, bytes });
        let reply = request.between(net.pod, net.client).over(N0, CLIENT);
        let bytes = unfinished(&reply.between(net.vip, net.client));
        assert_eq!(rig.egress(&unfinished(&reply)), Fate { verdict: TCX_NEXT, bytes });
    }
}

#[test]
fn fragments_are_translated_unless_the_checksum_would_change() {
    let mut rig = Rig::new();
    for net in nets() {
        let same = SocketAddr::new(net.pod.ip(), net.vip.port());
        let keeping = rig.local(same);
        // Its port is not the frontend's.
        let pod = SocketAddr::new(net.pod.ip(), 9);
        let changing = rig.local(pod);
        rig.frontend(net.vip, IPPROTO_SCTP, &[keeping]);
        let request = chunk(DATA, 500, net.client, net.vip);
        let expected = request.between(net.client, same).fragments(1, 96);
        for (fragment, bytes) in request.fragments(1, 96).iter().zip(expected) {
            assert_eq!(rig.xdp(fragment), Fate { verdict: XDP_PASS, bytes });
        }
        rig.frontend(net.vip2, IPPROTO_SCTP, &[changing]);
        rig.moved();
        let fragments = chunk(DATA, 500, net.client, net.vip2).fragments(2, 96);
        assert_eq!(rig.xdp(&fragments[0]).verdict, XDP_DROP);
        assert_eq!(rig.ingress(&fragments[0]).verdict, TCX_DROP);
        assert_eq!(rig.xdp(&fragments[1]).verdict, XDP_DROP);
        rig.expect_moved(&[
            ("flow_new", 1),
            ("flow_midstream", 1),
            ("flow_hit", 1),
            ("sctp_fragment", 2),
            ("fragment", 1),
        ]);
        let reply = chunk(DATA, 500, pod, net.client).over(N0, CLIENT);
        let fragments = reply.fragments(3, 96);
        assert_eq!(rig.egress(&fragments[0]).verdict, TCX_DROP);
        rig.expect_moved(&[("flow_hit", 1), ("sctp_fragment", 1)]);
        rig.evict(|_| true);
    }
}

/// An error about `quoted`, by whom it was addressed to.
fn error(net: &Net, quoted: &Packet, from: SocketAddr, to: SocketAddr) -> Message {
    Message {
        from_mac: CLIENT,
        to_mac: N0,
        from: from.ip(),
        to: to.ip(),
        ttl: 60,
        code: if net.vip.is_ipv4() { (3, 2, [0; 4]) } else { (4, 1, [0, 0, 0, 6]) },
        quoted: quoted.ip_bytes(),
    }
}

#[test]
fn errors_about_sctp_are_translated_but_for_the_checksum_of_what_they_quote() {
    let mut rig = Rig::new();
    for net in nets() {
        let id = rig.remote(net.near, net.node.ip());
        rig.frontend(net.vip, IPPROTO_SCTP, &[id]);
        let request = chunk(INIT, 20, net.client, net.vip);
        rig.xdp(&request.bytes());
        let snat = SocketAddr::new(net.node.ip(), net.client.port());
        let forwarded = request.between(snat, net.near);
        let message = error(&net, &forwarded, net.near, snat);
        let mut quoted = request.ip_bytes();
        let at = request.transport_offset() - 14 + 8;
        quoted[at..at + 4].copy_from_slice(&forwarded.ip_bytes()[at..at + 4]);
        let expected = error(&net, &request, net.vip, net.client).about(&quoted);
        let expected = expected.forwarded(N0, CLIENT).bytes();
        assert_eq!(rig.xdp(&message.bytes()), Fate { verdict: XDP_TX, bytes: expected });
        assert_eq!(rig.ingress(&message.bytes()).verdict, TCX_REDIRECT);
        rig.evict(|_| true);
    }
}
