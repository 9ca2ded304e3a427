//! Beside another translator, which uses the stack: whose packets are left to it, and which source
//! ports.

use std::{collections::BTreeMap, net::SocketAddr};

use lbxdp_agent::{
    foreign,
    model::{FrontendAddr, Protocol},
    netlink::conntrack::{Connection, Direction, Progress},
    sys,
};
use lbxdp_common::{AddressFlags, IPPROTO_TCP, IPPROTO_UDP, Mode};

use crate::{
    Net, every,
    forwarding::source_port,
    frames::{Packet, icmp_error},
    nets,
    rig::{CLIENT, Fate, N0, PEER0, Rig, TCX_NEXT, TCX_REDIRECT, XDP_DROP, XDP_PASS, XDP_TX},
};

/// Enters what the stack has, as the agent does: the client's connection to `vip`, which reaches
/// `backend` as `seen`.
fn stack_has(
    rig: &mut Rig,
    protocol: u8,
    [client, vip, backend, seen]: [SocketAddr; 4],
    progress: Progress,
) {
    let connection = Connection {
        protocol,
        original: Direction { from: client, to: vip },
        reply: Direction { from: backend, to: seen },
        progress,
    };
    let named = Protocol::from_number(protocol).expect("served");
    let frontend = FrontendAddr { addr: vip.ip(), port: vip.port(), protocol: named };
    let frontends = BTreeMap::from([(frontend, 1)]);
    let halves = foreign::flow(&connection, &frontends, sys::coarse_ns()).expect("it matters");
    for half in halves {
        rig.enter(&half);
    }
}

/// A packet that begins nothing.
fn later(packet: &Packet) -> Packet {
    packet.flags(".")
}

/// Checks that every hook by which it may come in leaves a packet alone.
#[track_caller]
fn is_left(rig: &mut Rig, packet: &[u8]) {
    rig.moved();
    assert_eq!(rig.xdp(packet), Fate { verdict: XDP_PASS, bytes: packet.to_vec() });
    assert_eq!(rig.ingress(packet), Fate { verdict: TCX_NEXT, bytes: packet.to_vec() });
    assert_eq!(rig.pod_ingress(packet), Fate { verdict: TCX_NEXT, bytes: packet.to_vec() });
}

const FOREIGN: [(&str, u64); 1] = [("foreign_hit", 3)];
const LEFT: [(&str, u64); 1] = [("left_to_stack", 3)];

#[test]
fn what_the_stack_translates_is_left_to_it_in_both_directions() {
    let mut rig = Rig::new();
    for (net, protocol) in every() {
        let pod = rig.local(net.pod);
        rig.frontend(net.vip, protocol, &[pod]);
        rig.address(net.node.ip(), AddressFlags::NODE | AddressFlags::BACKEND);
        let masqueraded = SocketAddr::new(net.node.ip(), 1_234);
        for (backend, seen) in [(net.pod, net.client), (net.near, masqueraded)] {
            let ends = [net.client, net.vip, backend, seen];
            stack_has(&mut rig, protocol, ends, Progress::Established);
            let request = later(&Packet::new(protocol, net.client, net.vip));
            is_left(&mut rig, &request.bytes());
            rig.expect_moved(&FOREIGN);
            // As the stack sends it on, and its reply as it comes in and as it leaves.
            let onwards = request.between(seen, backend);
            assert_eq!(rig.egress(&onwards.bytes()).bytes, onwards.bytes());
            let reply = onwards.between(backend, seen).over(PEER0, N0);
            if seen == masqueraded {
                is_left(&mut rig, &reply.bytes());
                rig.expect_moved(&FOREIGN);
            }
            for sent in [&reply, &reply.between(net.vip, net.client).over(N0, CLIENT)] {
                let untouched = Fate { verdict: TCX_NEXT, bytes: sent.bytes() };
                assert_eq!(rig.egress(&sent.bytes()), untouched);
                assert_eq!(rig.pod_egress(&sent.bytes()), untouched);
            }
            rig.evict(|_| true);
            rig.moved();
        }
    }
}

#[test]
fn errors_and_fragments_follow_what_the_stack_translates() {
    let mut rig = Rig::new();
    for (net, protocol) in every() {
        let id = rig.remote(net.near, net.node.ip());
        rig.frontend(net.vip, protocol, &[id]);
        let seen = SocketAddr::new(net.node.ip(), 1_234);
        let ends = [net.client, net.vip, net.near, seen];
        stack_has(&mut rig, protocol, ends, Progress::Established);
        let request = Packet::new(protocol, net.client, net.vip);
        // A router's, about a reply on its way to the client.
        let reply = request.between(net.vip, net.client).over(N0, CLIENT);
        let error = icmp_error(&reply, (3, 4, [0, 0, 5, 0]), (2, 0, [0, 0, 5, 0]));
        is_left(&mut rig, &error);
        rig.expect_moved(&FOREIGN);
        let payload = vec![7; 400];
        let whole = later(&Packet { payload, ..request });
        for fragment in whole.fragments(7, 96) {
            is_left(&mut rig, &fragment);
            rig.expect_moved(&FOREIGN);
        }
        rig.evict(|_| true);
        rig.moved();
    }
}

/// A frontend with one remote backend, with which the stack has the client's connection.
fn remote(rig: &mut Rig, net: &Net, protocol: u8, progress: Progress) -> Packet {
    let id = rig.remote(net.near, net.node.ip());
    rig.frontend(net.vip, protocol, &[id]);
    let seen = SocketAddr::new(net.node.ip(), 1_234);
    stack_has(rig, protocol, [net.client, net.vip, net.near, seen], progress);
    rig.moved();
    Packet::new(protocol, net.client, net.vip)
}

#[test]
fn a_handshake_that_the_stack_has_begun_it_also_ends() {
    let mut rig = Rig::new();
    for net in nets() {
        let syn = remote(&mut rig, &net, IPPROTO_TCP, Progress::Beginning);
        // Sent again, and the answer to the backend's.
        for packet in [&syn, &later(&syn)] {
            is_left(&mut rig, &packet.bytes());
            rig.expect_moved(&FOREIGN);
        }
        // The next one is a new connection.
        assert_eq!(rig.xdp(&syn.bytes()).verdict, XDP_TX);
        rig.expect_moved(&[("flow_expired", 1), ("flow_new", 1), ("transmitted", 1)]);
        rig.evict(|_| true);
    }
}

#[test]
fn a_connection_that_begins_again_is_ours_and_leaves_the_old_source_port_to_the_stack() {
    let mut rig = Rig::new();
    for net in nets() {
        let pod = rig.local(net.pod);
        rig.frontend(net.vip, IPPROTO_TCP, &[pod]);
        for progress in [Progress::Established, Progress::Closing] {
            let ends = [net.client, net.vip, net.pod, net.client];
            stack_has(&mut rig, IPPROTO_TCP, ends, progress);
            rig.moved();
            let syn = Packet::new(IPPROTO_TCP, net.client, net.vip);
            let out = rig.xdp(&syn.bytes());
            assert_eq!(out.verdict, XDP_PASS);
            rig.expect_moved(&[
                ("flow_expired", 1),
                ("flow_new", 1),
                ("port_changed", 1),
                ("passed_local", 1),
            ]);
            let port = source_port(&syn, &out);
            let changed = SocketAddr::new(net.client.ip(), port);
            assert_eq!(out.bytes, syn.between(changed, net.pod).bytes());
            // The old one's answers are the stack's as before.
            let reply = later(&syn).between(net.pod, net.client).over(N0, CLIENT);
            assert_eq!(rig.egress(&reply.bytes()).bytes, reply.bytes());
            rig.evict(|_| true);
        }
    }
}

#[test]
fn no_flow_gets_a_source_port_that_the_stack_uses() {
    let mut rig = Rig::with_snat_ports(61_000, 61_001);
    for (net, protocol) in every() {
        let id = rig.remote(net.near, net.node.ip());
        rig.frontend(net.vip, protocol, &[id]);
        let other = SocketAddr::new(net.client.ip(), 999);
        let used = SocketAddr::new(net.node.ip(), 61_000);
        stack_has(&mut rig, protocol, [other, net.vip, net.near, used], Progress::Established);
        rig.moved();
        let request = Packet::new(protocol, net.client, net.vip);
        assert_eq!(source_port(&request, &rig.xdp(&request.bytes())), 61_001);
        let second = request.between(SocketAddr::new(net.client.ip(), 5), net.vip);
        assert_eq!(rig.xdp(&second.bytes()).verdict, XDP_DROP);
        rig.expect_moved(&[("flow_new", 1), ("transmitted", 1), ("snat_ports_exhausted", 1)]);
        rig.evict(|_| true);
    }
}

/// What else is counted when a packet that begins nothing gets a flow.
fn midstream(protocol: u8) -> Option<(&'static str, u64)> {
    (protocol != IPPROTO_UDP).then_some(("flow_midstream", 1))
}

#[test]
fn what_the_stack_has_long_heard_nothing_of_is_ours() {
    let mut rig = Rig::new();
    for (net, protocol) in every() {
        let request = later(&remote(&mut rig, &net, protocol, Progress::Established));
        let seconds = if protocol == IPPROTO_UDP { 60 } else { 8_000 };
        rig.age(seconds - 1);
        is_left(&mut rig, &request.bytes());
        rig.expect_moved(&FOREIGN);
        rig.age(seconds + 1);
        assert_eq!(rig.xdp(&request.bytes()).verdict, XDP_TX);
        let mut moved = vec![("flow_expired", 1), ("flow_new", 1), ("transmitted", 1)];
        moved.extend(midstream(protocol));
        rig.expect_moved(&moved);
        rig.evict(|_| true);
    }
}

#[test]
fn while_a_node_is_taken_over_only_what_begins_is_ours() {
    let mut rig = Rig::new();
    for (net, protocol) in every() {
        rig.set_mode(Mode::TakingOver);
        let id = rig.remote(net.near, net.node.ip());
        rig.frontend(net.vip, protocol, &[id]);
        let syn = Packet::new(protocol, net.client, net.vip);
        let reply = later(&syn).between(net.near, net.node).over(PEER0, N0);
        let error = icmp_error(
            &syn.between(net.vip, net.client).over(N0, CLIENT),
            (3, 4, [0, 0, 5, 0]),
            (2, 0, [0, 0, 5, 0]),
        );
        for packet in [&later(&syn).bytes(), &error] {
            is_left(&mut rig, packet);
            rig.expect_moved(&LEFT);
        }
        let whole = later(&Packet { payload: vec![7; 400], ..syn.clone() });
        for fragment in whole.fragments(9, 96) {
            is_left(&mut rig, &fragment);
            rig.expect_moved(&LEFT);
        }
        // The node's own ports are nobody's business, now as ever.
        is_left(&mut rig, &reply.bytes());
        rig.expect_moved(&[]);
        if protocol == IPPROTO_UDP {
            is_left(&mut rig, &syn.bytes());
            rig.expect_moved(&LEFT);
        } else {
            assert_eq!(rig.xdp(&syn.bytes()).verdict, XDP_TX);
            assert_eq!(rig.xdp(&later(&syn).bytes()).verdict, XDP_TX);
            rig.expect_moved(&[("flow_new", 1), ("flow_hit", 1), ("transmitted", 2)]);
        }
        rig.evict(|_| true);
        // After that the middle of a connection belongs to where its beginning would have gone.
        rig.set_mode(Mode::Serving);
        assert_eq!(rig.xdp(&later(&syn).bytes()).verdict, XDP_TX);
        let mut moved = vec![("flow_new", 1), ("transmitted", 1)];
        moved.extend(midstream(protocol));
        rig.expect_moved(&moved);
        rig.evict(|_| true);
    }
}

#[test]
fn while_a_node_is_handed_over_flows_go_on_and_none_begins() {
    let mut rig = Rig::new();
    for (net, protocol) in every() {
        let id = rig.remote(net.near, net.node.ip());
        rig.frontend(net.vip, protocol, &[id]);
        let old = Packet::new(protocol, net.client, net.vip);
        let port = source_port(&old, &rig.xdp(&old.bytes()));
        rig.set_mode(Mode::HandingOver);
        rig.moved();
        assert_eq!(rig.xdp(&later(&old).bytes()).verdict, XDP_TX);
        assert_eq!(rig.ingress(&later(&old).bytes()).verdict, TCX_REDIRECT);
        let seen = SocketAddr::new(net.node.ip(), port);
        let reply = later(&old).between(net.near, seen).over(PEER0, N0);
        assert_eq!(rig.xdp(&reply.bytes()).verdict, XDP_TX);
        rig.expect_moved(&[("flow_hit", 3), ("transmitted", 2), ("redirected_neigh", 1)]);

        let new = old.between(SocketAddr::new(net.client.ip(), 5), net.vip);
        let nobodys = SocketAddr::new(net.vip.ip(), 9_999);
        for packet in [&new, &later(&new), &new.between(new.src, nobodys)] {
            is_left(&mut rig, &packet.bytes());
            rig.expect_moved(&LEFT);
        }
        rig.set_mode(Mode::Serving);
        rig.evict(|_| true);
    }
}
