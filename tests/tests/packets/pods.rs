//! The device of a pod: what the pod sends and receives, and what others may not have of it. In
//! these tests the client is the pod, and `n0` is the host's side of its device.

use std::net::SocketAddr;

use lbxdp_common::{AddressFlags, DropReason, TablePolicy, TableRef};

use crate::{
    Net, every,
    forwarding::source_port,
    frames::{Packet, icmp_error},
    rig::{CLIENT, Fate, N0, PEER0, Rig, TCX_DROP, TCX_NEXT, TCX_REDIRECT, XDP_PASS},
};

fn fate(verdict: u32, packet: &Packet) -> Fate {
    Fate { verdict, bytes: packet.bytes() }
}

/// A packet as the backend answers it, on its way to the pod.
fn reply_of(request: &Packet, backend: SocketAddr) -> Packet {
    request.between(backend, request.src).over(N0, CLIENT).flags("S.")
}

/// A frontend with a backend here and one with a backend elsewhere.
fn backends(rig: &mut Rig, net: &Net, protocol: u8) -> [(SocketAddr, SocketAddr); 2] {
    let local = rig.local(net.pod);
    rig.frontend(net.vip, protocol, &[local]);
    let remote = rig.remote(net.near, net.node.ip());
    rig.frontend(net.vip2, protocol, &[remote]);
    [(net.vip, net.pod), (net.vip2, net.near)]
}

#[test]
fn every_backend_sees_the_pod_and_the_pod_sees_the_frontend() {
    let mut rig = Rig::new();
    for (net, protocol) in every() {
        for (vip, backend) in backends(&mut rig, &net, protocol) {
            let request = Packet::new(protocol, net.client, vip);
            for (flags, flow) in [("S", "flow_new"), (".", "flow_hit")] {
                let request = request.flags(flags);
                let expected = request.between(net.client, backend);
                assert_eq!(rig.pod_ingress(&request.bytes()), fate(TCX_NEXT, &expected));
                rig.expect_moved(&[(flow, 1), ("passed_local", 1)]);
                // On its way out it is left alone, and so it is at the backend's device.
                assert_eq!(rig.egress(&expected.bytes()), fate(TCX_NEXT, &expected));
                assert_eq!(rig.pod_egress(&expected.bytes()), fate(TCX_NEXT, &expected));
                rig.expect_moved(&[]);
                let reply = reply_of(&request, backend);
                let expected = reply.between(vip, net.client);
                assert_eq!(rig.pod_egress(&reply.bytes()), fate(TCX_NEXT, &expected));
                rig.expect_moved(&[("flow_hit", 1), ("reply_translated", 1)]);
            }
        }
    }
}

#[test]
fn a_reply_is_translated_at_the_pods_device_only() {
    let mut rig = Rig::new();
    for (net, protocol) in every() {
        for (vip, backend) in backends(&mut rig, &net, protocol) {
            let request = Packet::new(protocol, net.client, vip);
            rig.pod_ingress(&request.bytes());
            let reply = reply_of(&request, backend);
            let forged = reply.over(PEER0, N0);
            rig.moved();
            assert_eq!(rig.xdp(&forged.bytes()), fate(XDP_PASS, &forged));
            assert_eq!(rig.ingress(&forged.bytes()), fate(TCX_NEXT, &forged));
            assert_eq!(rig.pod_ingress(&forged.bytes()), fate(TCX_NEXT, &forged));
            assert_eq!(rig.egress(&reply.bytes()), fate(TCX_NEXT, &reply));
            rig.expect_moved(&[]);
            rig.evict(|_| true);
        }
    }
}

#[test]
fn a_pods_device_borrows_nothing_of_flows_from_outside() {
    let mut rig = Rig::new();
    for (net, protocol) in every() {
        let [(vip, pod), (vip2, near)] = backends(&mut rig, &net, protocol);
        let request = Packet::new(protocol, net.client, vip);
        rig.xdp(&request.bytes());
        let far = request.between(net.client, vip2);
        let out = rig.xdp(&far.bytes());
        let snat = SocketAddr::new(net.node.ip(), source_port(&far, &out));
        rig.moved();
        let reply = reply_of(&request, pod);
        assert_eq!(rig.pod_egress(&reply.bytes()), fate(TCX_NEXT, &reply));
        let reply = request.between(near, snat);
        assert_eq!(rig.pod_ingress(&reply.bytes()), fate(TCX_NEXT, &reply));
        assert_eq!(rig.pod_egress(&reply.bytes()), fate(TCX_NEXT, &reply));
        rig.expect_moved(&[]);
        rig.evict(|_| true);
    }
}

#[test]
fn half_a_flow_is_put_back_at_the_same_device() {
    let mut rig = Rig::new();
    for (net, protocol) in every() {
        for (vip, backend) in backends(&mut rig, &net, protocol) {
            let request = Packet::new(protocol, net.client, vip);
            let reply = reply_of(&request, backend);
            rig.pod_ingress(&request.bytes());
            for lost in [true, false] {
                rig.evict(|is_reply| is_reply == lost);
                // A flow that both sides have confirmed is looked at as a whole once a second.
                rig.age(1);
                rig.moved();
                if lost {
                    rig.pod_ingress(&request.flags(".").bytes());
                    rig.expect_moved(&[("flow_hit", 1), ("flow_restored", 1), ("passed_local", 1)]);
                } else {
                    rig.pod_egress(&reply.bytes());
                    rig.expect_moved(&[
                        ("flow_hit", 1),
                        ("flow_restored", 1),
                        ("reply_translated", 1),
                    ]);
                }
                let expected = reply.between(vip, net.client);
                assert_eq!(rig.pod_egress(&reply.bytes()), fate(TCX_NEXT, &expected));
                let more = request.flags(".");
                let expected = more.between(net.client, backend);
                assert_eq!(rig.pod_ingress(&more.bytes()), fate(TCX_NEXT, &expected));
            }
            rig.evict(|_| true);
        }
    }
}

#[test]
fn a_pod_that_calls_itself_is_turned_round_both_ways() {
    let mut rig = Rig::new();
    for (net, protocol) in every() {
        let here = SocketAddr::new(net.client.ip(), 8080);
        let id = rig.local(here);
        rig.frontend(net.vip, protocol, &[id]);
        let request = Packet::new(protocol, net.client, net.vip);
        let out = rig.pod_ingress(&request.bytes());
        let port = source_port(&request, &out);
        assert!(port >= 61_000, "{port} is not in the SNAT range");
        let seen = SocketAddr::new(net.vip.ip(), port);
        let expected = request.between(seen, here).over(N0, CLIENT);
        assert_eq!(out, fate(TCX_REDIRECT, &expected));
        rig.expect_moved(&[("flow_new", 1), ("transmitted", 1)]);
        // What is turned round meets the program at the way out.
        assert_eq!(rig.pod_egress(&expected.bytes()), fate(TCX_NEXT, &expected));
        rig.expect_moved(&[]);

        let reply = request.between(here, seen).flags("S.");
        let expected = reply.between(net.vip, net.client).over(N0, CLIENT);
        assert_eq!(rig.pod_ingress(&reply.bytes()), fate(TCX_REDIRECT, &expected));
        rig.expect_moved(&[("flow_hit", 1), ("transmitted", 1)]);
        assert_eq!(rig.pod_egress(&expected.bytes()), fate(TCX_NEXT, &expected));

        // Either half brings the other back, at the device where both belong.
        for lost in [true, false] {
            rig.evict(|is_reply| is_reply == lost);
            rig.age(1);
            rig.moved();
            let packet = if lost { request.flags(".") } else { reply.clone() };
            assert_eq!(rig.pod_ingress(&packet.bytes()).verdict, TCX_REDIRECT);
            rig.expect_moved(&[("flow_hit", 1), ("flow_restored", 1), ("transmitted", 1)]);
            let packet = if lost { reply.clone() } else { request.flags(".") };
            assert_eq!(rig.pod_ingress(&packet.bytes()).verdict, TCX_REDIRECT);
            rig.expect_moved(&[("flow_hit", 1), ("transmitted", 1)]);
        }

        // From outside, the reply is nothing: no frontend has that port.
        assert_eq!(rig.xdp(&reply.bytes()).bytes, reply.bytes());
        rig.expect_moved(&[("unknown_port", 1)]);
    }
}

#[test]
fn pods_choose_from_the_table_for_clients_on_this_node() {
    let mut rig = Rig::new();
    for (net, protocol) in every() {
        let pod = rig.local(net.pod);
        let id = rig.frontend(net.vip, protocol, &[pod]);
        let nobody = TableRef::verdict(TablePolicy::Drop);
        // The table that `frontend` has just written.
        let table = rig.last_table();
        rig.describe(net.vip.ip(), id, nobody, table);
        let request = Packet::new(protocol, net.client, net.vip);
        let expected = request.between(net.client, net.pod);
        assert_eq!(rig.pod_ingress(&request.bytes()), fate(TCX_NEXT, &expected));
        rig.evict(|_| true);
        rig.moved();
        assert_eq!(rig.ingress(&request.bytes()), fate(TCX_DROP, &request));
        rig.expect_moved(&[(DropReason::NoLocalEndpoint.as_str(), 1)]);

        rig.describe(net.vip.ip(), id, table, nobody);
        assert_eq!(rig.pod_ingress(&request.bytes()), fate(TCX_DROP, &request));
        rig.expect_moved(&[(DropReason::NoLocalEndpoint.as_str(), 1)]);
    }
}

#[test]
fn the_source_port_changes_only_where_replies_would_be_anothers() {
    let mut rig = Rig::new();
    for (net, protocol) in every() {
        for backend in [net.pod, net.near] {
            let id = if backend == net.pod {
                rig.local(backend)
            } else {
                rig.remote(backend, net.node.ip())
            };
            rig.frontend(net.vip, protocol, &[id]);
            rig.frontend(net.vip2, protocol, &[id]);
            let first = Packet::new(protocol, net.client, net.vip);
            let expected = first.between(net.client, backend);
            assert_eq!(rig.pod_ingress(&first.bytes()), fate(TCX_NEXT, &expected));
            // Another pod with the same port is another flow.
            let other = SocketAddr::new(net.unresolved.ip(), net.client.port());
            let packet = first.between(other, net.vip2);
            let expected = packet.between(other, backend);
            assert_eq!(rig.pod_ingress(&packet.bytes()), fate(TCX_NEXT, &expected));
            rig.moved();
            // The same pod and port by the other frontend.
            let second = first.between(net.client, net.vip2);
            let out = rig.pod_ingress(&second.bytes());
            let changed = SocketAddr::new(net.client.ip(), source_port(&second, &out));
            assert!(changed.port() >= 61_000, "{changed}");
            assert_eq!(out, fate(TCX_NEXT, &second.between(changed, backend)));
            rig.expect_moved(&[("flow_new", 1), ("port_changed", 1), ("passed_local", 1)]);
            for (vip, to) in [(net.vip, net.client), (net.vip2, changed)] {
                let reply = first.between(backend, to).over(N0, CLIENT).flags("S.");
                let expected = reply.between(vip, net.client);
                assert_eq!(rig.pod_egress(&reply.bytes()), fate(TCX_NEXT, &expected));
            }
            rig.evict(|_| true);
        }
    }
}

#[test]
fn frames_for_everybody_are_left_alone_and_the_bridges_address_is_as_good() {
    let mut rig = Rig::new();
    for (net, protocol) in every() {
        backends(&mut rig, &net, protocol);
        let request = Packet::new(protocol, net.client, net.vip);
        for group in [[0xff; 6], [0x01, 0, 0x5e, 0, 0, 1], [0x33, 0x33, 0, 0, 0, 1]] {
            let frame = request.over(CLIENT, group);
            assert_eq!(rig.pod_ingress(&frame.bytes()), fate(TCX_NEXT, &frame));
        }
        rig.expect_moved(&[]);
        let frame = request.over(CLIENT, [2, 0, 0, 0, 0, 0x77]);
        let expected = frame.between(net.client, net.pod);
        assert_eq!(rig.pod_ingress(&frame.bytes()), fate(TCX_NEXT, &expected));
        rig.expect_moved(&[("flow_new", 1), ("passed_local", 1)]);
        rig.evict(|_| true);
    }
}

#[test]
fn what_is_not_served_is_refused_dropped_or_left_to_the_node() {
    let mut rig = Rig::new();
    for (net, protocol) in every() {
        rig.verdict(net.vip, protocol, TablePolicy::Reject);
        rig.moved();
        let request = Packet::new(protocol, net.client, net.vip);
        let refusal = |about: &Packet| Fate {
            verdict: TCX_REDIRECT,
            bytes: icmp_error(about, (3, 3, [0; 4]), (1, 4, [0; 4])),
        };
        assert_eq!(rig.pod_ingress(&request.bytes()), refusal(&request));
        rig.expect_moved(&[("no_endpoint", 1), ("icmp_sent", 1)]);

        // A port that nobody has.
        let unknown = request.between(net.client, SocketAddr::new(net.vip.ip(), 9));
        for (flags, verdict) in [
            (AddressFlags::SERVICE, TCX_DROP),
            (AddressFlags::SERVICE | AddressFlags::CLUSTER_IP, TCX_REDIRECT),
            (AddressFlags::SERVICE | AddressFlags::NODE, TCX_NEXT),
        ] {
            rig.address(net.vip.ip(), flags);
            let out = rig.pod_ingress(&unknown.bytes());
            match verdict {
                TCX_REDIRECT => {
                    assert_eq!(out, refusal(&unknown));
                    rig.expect_moved(&[("unknown_port", 1), ("icmp_sent", 1)]);
                }
                TCX_DROP => {
                    assert_eq!(out, fate(TCX_DROP, &unknown));
                    rig.expect_moved(&[("unknown_port", 1)]);
                }
                _ => {
                    assert_eq!(out, fate(TCX_NEXT, &unknown));
                    rig.expect_moved(&[]);
                }
            }
        }

        // A source that no pod can have.
        let id = rig.local(net.pod);
        rig.frontend(net.vip2, protocol, &[id]);
        rig.address(net.vip.ip(), AddressFlags::SERVICE);
        let forged = request.between(net.vip, net.vip2);
        assert_eq!(rig.pod_ingress(&forged.bytes()), fate(TCX_DROP, &forged));
        rig.expect_moved(&[("service_source", 1)]);
    }
}
