//! The life of a flow: states, expiry, source ports, and what happens when half of it is gone.

use std::net::SocketAddr;

use lbxdp_common::{AddressFlags, Flow, FlowState, Hook, IPPROTO_TCP, IPPROTO_UDP, PortShare};

use crate::{
    Net, every,
    forwarding::source_port,
    frames::Packet,
    nets,
    rig::{CLIENT, Fate, N0, PEER0, Rig, TCX_NEXT, TCX_REDIRECT, XDP_DROP, XDP_PASS, XDP_TX},
};

fn fate(verdict: u32, packet: &Packet) -> Fate {
    Fate { verdict, bytes: packet.bytes() }
}

/// State, and the other things both halves share, of the only flow there is.
fn state(rig: &mut Rig) -> (u8, u8) {
    let mut seen: Vec<(u8, u8)> = Vec::new();
    for (_, flow) in rig.flows_v4() {
        seen.push((flow.state, flow.flags & Flow::<[u8; 4]>::SHARED));
    }
    for (_, flow) in rig.flows_v6() {
        seen.push((flow.state, flow.flags & Flow::<[u8; 16]>::SHARED));
    }
    assert_eq!(seen.len(), 2, "two halves");
    assert_eq!(seen[0], seen[1], "both halves say the same");
    seen[0]
}

/// A frontend with one remote backend, and the packets of one connection through it.
struct Remote {
    request: Packet,
    net: Net,
}

impl Remote {
    fn new(rig: &mut Rig, net: Net, protocol: u8) -> Self {
        let id = rig.remote(net.near, net.node.ip());
        rig.frontend(net.vip, protocol, &[id]);
        Self { request: Packet::new(protocol, net.client, net.vip), net }
    }

    fn client_on(&self, port: u16) -> Packet {
        let client = SocketAddr::new(self.net.client.ip(), port);
        self.request.between(client, self.net.vip)
    }

    fn reply_to(&self, port: u16) -> Packet {
        let snat = SocketAddr::new(self.net.node.ip(), port);
        self.request.between(self.net.near, snat).over(PEER0, N0).flags("S.")
    }

    fn expected_reply(&self, port: u16) -> Packet {
        let client = SocketAddr::new(self.net.client.ip(), port);
        self.reply_to(0).between(self.net.vip, client).over(N0, CLIENT).hop()
    }
}

#[test]
fn a_tcp_flow_is_established_by_the_clients_answer_to_the_backends() {
    let mut rig = Rig::new();
    for net in nets() {
        let remote = Remote::new(&mut rig, net, IPPROTO_TCP);
        let port = source_port(&remote.request, &rig.xdp(&remote.request.bytes()));
        assert_eq!(state(&mut rig).0, FlowState::Syn as u8);
        // A blind ACK does not establish anything.
        rig.xdp(&remote.request.flags(".").bytes());
        assert_eq!(state(&mut rig).0, FlowState::Syn as u8);
        rig.xdp(&remote.reply_to(port).bytes());
        assert_eq!(state(&mut rig), (FlowState::Syn as u8, Flow::<[u8; 4]>::ANSWERED));
        rig.xdp(&remote.request.flags(".").bytes());
        assert_eq!(state(&mut rig).0, FlowState::Established as u8);

        rig.xdp(&remote.request.flags("F.").bytes());
        assert_eq!(state(&mut rig).0, FlowState::Established as u8, "half closed");
        rig.xdp(&remote.reply_to(port).flags("F.").bytes());
        assert_eq!(state(&mut rig).0, FlowState::Closing as u8);
        rig.evict(|_| true);
        rig.moved();
    }
}

#[test]
fn a_reset_of_either_side_closes_the_flow() {
    let mut rig = Rig::new();
    for net in nets() {
        for from_backend in [false, true] {
            let remote = Remote::new(&mut rig, net, IPPROTO_TCP);
            let port = source_port(&remote.request, &rig.xdp(&remote.request.bytes()));
            let reset = if from_backend { remote.reply_to(port) } else { remote.request.clone() };
            rig.xdp(&reset.flags("R").bytes());
            assert_eq!(state(&mut rig).0, FlowState::Closing as u8);
            rig.evict(|_| true);
        }
    }
}

#[test]
fn a_new_connection_on_a_closed_ones_ports_is_a_new_flow() {
    let mut rig = Rig::new();
    for net in nets() {
        let remote = Remote::new(&mut rig, net, IPPROTO_TCP);
        rig.xdp(&remote.request.bytes());
        rig.xdp(&remote.request.flags("R").bytes());
        rig.moved();
        rig.xdp(&remote.request.bytes());
        rig.expect_moved(&[("flow_expired", 1), ("flow_new", 1), ("transmitted", 1)]);
        assert_eq!(state(&mut rig).0, FlowState::Syn as u8);
        rig.evict(|_| true);
    }
}

#[test]
fn an_answer_to_a_connection_that_passed_the_frontend_by_ends_the_closed_one_on_its_ports() {
    let mut rig = Rig::new();
    for net in nets() {
        let pod = rig.local(net.pod);
        rig.frontend(net.vip, IPPROTO_TCP, &[pod]);
        let request = Packet::new(IPPROTO_TCP, net.client, net.vip);
        let answer = request.between(net.pod, net.client).over(N0, CLIENT).flags("S.");
        rig.xdp(&request.bytes());
        rig.egress(&answer.bytes());
        rig.xdp(&request.flags(".").bytes());
        // A connection that lives is not ended by a copy of its own beginning.
        let back = fate(TCX_NEXT, &answer.between(net.vip, net.client));
        assert_eq!(rig.egress(&answer.bytes()), back);
        assert_eq!(state(&mut rig).0, FlowState::Established as u8);
        rig.xdp(&request.flags("R").bytes());
        rig.moved();

        // The client's next connection is to the pod itself, and nothing here sees it begin.
        assert_eq!(rig.egress(&answer.bytes()), fate(TCX_NEXT, &answer));
        rig.expect_moved(&[("flow_expired", 1)]);
        let data = answer.flags(".");
        assert_eq!(rig.egress(&data.bytes()), fate(TCX_NEXT, &data));
        rig.expect_moved(&[]);
        rig.evict(|_| true);
    }
}

#[test]
fn the_middle_of_an_unknown_connection_is_taken_up_as_established() {
    let mut rig = Rig::new();
    for net in nets() {
        let remote = Remote::new(&mut rig, net, IPPROTO_TCP);
        rig.moved();
        rig.xdp(&remote.request.flags(".").bytes());
        rig.expect_moved(&[("flow_new", 1), ("flow_midstream", 1), ("transmitted", 1)]);
        assert_eq!(state(&mut rig).0, FlowState::Established as u8);
        rig.evict(|_| true);
    }
}

#[test]
fn flows_expire_by_their_state() {
    let mut rig = Rig::new();
    for (net, protocol) in every() {
        let remote = Remote::new(&mut rig, net, protocol);
        rig.xdp(&remote.request.bytes());
        rig.age(59);
        rig.moved();
        rig.xdp(&remote.request.bytes());
        rig.expect_moved(&[("flow_hit", 1), ("transmitted", 1)]);
        rig.age(61);
        rig.xdp(&remote.request.bytes());
        rig.expect_moved(&[("flow_expired", 1), ("flow_new", 1), ("transmitted", 1)]);
        if protocol == IPPROTO_TCP {
            let port = source_port(&remote.request, &rig.xdp(&remote.request.bytes()));
            rig.xdp(&remote.reply_to(port).bytes());
            rig.xdp(&remote.request.flags(".").bytes());
            rig.age(7_999);
            rig.moved();
            rig.xdp(&remote.request.flags(".").bytes());
            rig.expect_moved(&[("flow_hit", 1), ("transmitted", 1)]);
            rig.age(8_001);
            rig.xdp(&remote.request.flags(".").bytes());
            rig.expect_moved(&[
                ("flow_expired", 1),
                ("flow_new", 1),
                ("flow_midstream", 1),
                ("transmitted", 1),
            ]);
            rig.xdp(&remote.request.flags("R").bytes());
            rig.age(11);
            rig.moved();
            rig.xdp(&remote.request.flags(".").bytes());
            rig.expect_moved(&[
                ("flow_expired", 1),
                ("flow_new", 1),
                ("flow_midstream", 1),
                ("transmitted", 1),
            ]);
        }
        rig.evict(|_| true);
        rig.moved();
    }
}

#[test]
fn a_packet_in_one_direction_keeps_both_halves_alive() {
    let mut rig = Rig::new();
    for net in nets() {
        let remote = Remote::new(&mut rig, net, IPPROTO_UDP);
        let port = source_port(&remote.request, &rig.xdp(&remote.request.bytes()));
        for _ in 0..3 {
            rig.age(50);
            rig.xdp(&remote.request.bytes());
        }
        rig.moved();
        assert_eq!(
            rig.xdp(&remote.reply_to(port).bytes()),
            fate(XDP_TX, &remote.expected_reply(net.client.port()))
        );
        rig.expect_moved(&[("flow_hit", 1), ("transmitted", 1)]);
        rig.evict(|_| true);
    }
}

#[test]
fn four_source_ports_serve_four_clients_and_are_free_again_after_expiry() {
    let mut rig = Rig::with_snat_ports(61_000, 61_003);
    for (net, protocol) in every() {
        let remote = Remote::new(&mut rig, net, protocol);
        let mut ports = Vec::new();
        for client in 1..=4 {
            let packet = remote.client_on(client);
            let out = rig.xdp(&packet.bytes());
            assert_eq!(out.verdict, XDP_TX);
            ports.push(source_port(&packet, &out));
        }
        ports.sort_unstable();
        assert_eq!(ports, [61_000, 61_001, 61_002, 61_003]);
        rig.expect_moved(&[("flow_new", 4), ("transmitted", 4)]);

        assert_eq!(rig.xdp(&remote.client_on(5).bytes()).verdict, XDP_DROP);
        rig.expect_moved(&[("snat_ports_exhausted", 1)]);
        // Those who have a port keep it.
        assert_eq!(rig.xdp(&remote.client_on(1).bytes()).verdict, XDP_TX);
        rig.expect_moved(&[("flow_hit", 1), ("transmitted", 1)]);

        rig.age(61);
        let packet = remote.client_on(5);
        let out = rig.xdp(&packet.bytes());
        assert_eq!(out.verdict, XDP_TX);
        rig.expect_moved(&[("flow_expired", 1), ("flow_new", 1), ("transmitted", 1)]);
        let port = source_port(&packet, &out);
        assert_eq!(
            rig.xdp(&remote.reply_to(port).bytes()),
            fate(XDP_TX, &remote.expected_reply(5)),
            "the port is the new client's"
        );
        rig.evict(|_| true);
        rig.moved();
    }
}

#[test]
fn generations_that_share_the_source_ports_give_out_none_in_common() {
    let mut rig = Rig::with_snat_ports(61_000, 61_004);
    let shares = [
        (PortShare::Lower, 61_000..=61_001),
        (PortShare::Upper, 61_002..=61_004),
        (PortShare::All, 61_000..=61_004),
    ];
    for (net, protocol) in every() {
        let remote = Remote::new(&mut rig, net, protocol);
        for (share, expected) in shares.clone() {
            rig.set_port_share(share);
            let mut ports = Vec::new();
            for client in 1..=5 {
                let packet = remote.client_on(client);
                let out = rig.xdp(&packet.bytes());
                if out.verdict == XDP_TX {
                    ports.push(source_port(&packet, &out));
                }
            }
            ports.sort_unstable();
            assert_eq!(ports, expected.collect::<Vec<_>>(), "{share:?}");
            // A flow keeps the port that it has.
            rig.set_port_share(PortShare::Upper);
            let hits = (1..=5)
                .filter(|client| rig.xdp(&remote.client_on(*client).bytes()).verdict == XDP_TX)
                .count();
            assert!(hits >= ports.len(), "{share:?}: {hits}");
            rig.evict(|_| true);
        }
    }
}

#[test]
fn a_lost_reply_half_is_put_back_by_the_next_request() {
    let mut rig = Rig::new();
    for (net, protocol) in every() {
        let remote = Remote::new(&mut rig, net, protocol);
        let port = source_port(&remote.request, &rig.xdp(&remote.request.bytes()));
        rig.evict(|is_reply| is_reply);
        rig.moved();
        let out = rig.xdp(&remote.request.bytes());
        assert_eq!(source_port(&remote.request, &out), port);
        rig.expect_moved(&[("flow_hit", 1), ("flow_restored", 1), ("transmitted", 1)]);
        assert_eq!(
            rig.xdp(&remote.reply_to(port).bytes()),
            fate(XDP_TX, &remote.expected_reply(net.client.port()))
        );
        rig.evict(|_| true);
        rig.moved();
    }
}

#[test]
fn a_lost_request_half_is_put_back_by_the_next_reply() {
    let mut rig = Rig::new();
    for (net, protocol) in every() {
        let remote = Remote::new(&mut rig, net, protocol);
        let port = source_port(&remote.request, &rig.xdp(&remote.request.bytes()));
        rig.evict(|is_reply| !is_reply);
        rig.moved();
        assert_eq!(
            rig.xdp(&remote.reply_to(port).bytes()),
            fate(XDP_TX, &remote.expected_reply(net.client.port()))
        );
        rig.expect_moved(&[("flow_hit", 1), ("flow_restored", 1), ("transmitted", 1)]);
        let out = rig.xdp(&remote.request.flags(".").bytes());
        assert_eq!(source_port(&remote.request, &out), port);
        rig.expect_moved(&[("flow_hit", 1), ("transmitted", 1)]);
        rig.evict(|_| true);
        rig.moved();
    }
}

#[test]
fn a_lost_request_half_finds_its_reply_half_again() {
    let mut rig = Rig::new();
    for (net, protocol) in every() {
        let remote = Remote::new(&mut rig, net, protocol);
        let port = source_port(&remote.request, &rig.xdp(&remote.request.bytes()));
        rig.evict(|is_reply| !is_reply);
        rig.moved();
        let out = rig.xdp(&remote.request.flags(".").bytes());
        assert_eq!(source_port(&remote.request, &out), port);
        let mut moved = vec![("flow_new", 1), ("flow_restored", 1), ("transmitted", 1)];
        if protocol != IPPROTO_UDP {
            moved.push(("flow_midstream", 1));
        }
        rig.expect_moved(&moved);
        rig.evict(|_| true);
        rig.moved();
    }
}

#[test]
fn two_clients_never_share_a_port_after_an_eviction() {
    let mut rig = Rig::with_snat_ports(61_000, 61_000);
    for (net, protocol) in every() {
        let remote = Remote::new(&mut rig, net, protocol);
        rig.xdp(&remote.client_on(1).bytes());
        // The reply's half is evicted, and the port goes to another client.
        rig.evict(|is_reply| is_reply);
        assert_eq!(rig.xdp(&remote.client_on(2).bytes()).verdict, XDP_TX);
        rig.moved();
        // The first client's half finds out with its next packet.
        assert_eq!(rig.xdp(&remote.client_on(1).flags(".").bytes()).verdict, XDP_DROP);
        rig.expect_moved(&[("flow_broken", 1), ("snat_ports_exhausted", 1)]);
        assert_eq!(
            rig.xdp(&remote.reply_to(61_000).bytes()),
            fate(XDP_TX, &remote.expected_reply(2))
        );
        rig.evict(|_| true);
        rig.moved();
    }
}

#[test]
fn two_frontends_of_one_pod_used_from_one_client_port_stay_apart() {
    let mut rig = Rig::new();
    for (net, protocol) in every() {
        let pod = rig.local(net.pod);
        rig.frontend(net.vip, protocol, &[pod]);
        rig.frontend(net.vip2, protocol, &[pod]);
        let first = Packet::new(protocol, net.client, net.vip);
        let second = Packet::new(protocol, net.client, net.vip2);
        assert_eq!(rig.xdp(&first.bytes()), fate(XDP_PASS, &first.between(net.client, net.pod)));
        rig.expect_moved(&[("flow_new", 1), ("passed_local", 1)]);
        let out = rig.xdp(&second.bytes());
        let port = source_port(&second, &out);
        assert_ne!(port, net.client.port());
        let client = SocketAddr::new(net.client.ip(), port);
        assert_eq!(out, fate(XDP_PASS, &second.between(client, net.pod)), "the address stays");
        rig.expect_moved(&[("flow_new", 1), ("passed_local", 1), ("port_changed", 1)]);

        let reply = first.between(net.pod, net.client).over(N0, CLIENT).flags("S.");
        assert_eq!(rig.egress(&reply.bytes()), fate(TCX_NEXT, &reply.between(net.vip, net.client)));
        let reply = reply.between(net.pod, client);
        assert_eq!(
            rig.egress(&reply.bytes()),
            fate(TCX_NEXT, &reply.between(net.vip2, net.client))
        );
        rig.expect_moved(&[("flow_hit", 2), ("reply_translated", 2)]);
    }
}

#[test]
fn a_reply_forged_outside_the_node_borrows_no_translation() {
    let mut rig = Rig::new();
    for (net, protocol) in every() {
        // The client's address is made one that the programs look at, or they would not look.
        rig.address(net.client.ip(), AddressFlags::NODE);
        let pod = rig.local(net.pod);
        rig.frontend(net.vip, protocol, &[pod]);
        let request = Packet::new(protocol, net.client, net.vip);
        rig.xdp(&request.bytes());
        rig.moved();
        let forged = request.between(net.pod, net.client).flags("S.");
        assert_eq!(rig.xdp(&forged.bytes()), fate(XDP_PASS, &forged));
        assert_eq!(rig.ingress(&forged.bytes()), fate(TCX_NEXT, &forged));
        rig.expect_moved(&[]);
        // And the other way round: what comes in is not translated on its way out.
        rig.address(net.client.ip(), AddressFlags::BACKEND);
        assert_eq!(rig.egress(&request.bytes()), fate(TCX_NEXT, &request));
        rig.expect_moved(&[]);
    }
}

#[test]
fn a_backend_that_calls_itself_sees_the_frontend_as_its_client() {
    let mut rig = Rig::new();
    for (net, protocol) in every() {
        // The pod's packet left the node and was routed back, the frontend being nobody's.
        let pod = SocketAddr::new(net.client.ip(), net.pod.port());
        let id = rig.local(pod);
        rig.frontend(net.vip, protocol, &[id]);
        let request = Packet::new(protocol, net.client, net.vip);
        let out = rig.xdp(&request.bytes());
        let port = source_port(&request, &out);
        let source = SocketAddr::new(net.vip.ip(), port);
        assert_eq!(out, fate(XDP_PASS, &request.between(source, pod)));
        rig.expect_moved(&[("flow_new", 1), ("passed_local", 1)]);

        let reply = request.between(pod, source).over(N0, CLIENT).flags("S.");
        let expected = reply.between(net.vip, net.client).hop();
        assert_eq!(rig.egress(&reply.bytes()), fate(TCX_REDIRECT, &expected));
        rig.expect_moved(&[("flow_hit", 1), ("reply_translated", 1), ("redirected_neigh", 1)]);
    }
}

#[test]
fn flows_outlive_their_frontend_and_strangers_pass() {
    let mut rig = Rig::new();
    for (net, protocol) in every() {
        let remote = Remote::new(&mut rig, net, protocol);
        rig.xdp(&remote.request.bytes());
        rig.address(net.vip.ip(), AddressFlags::TOMBSTONE);
        rig.moved();
        assert_eq!(rig.xdp(&remote.request.bytes()).verdict, XDP_TX);
        rig.expect_moved(&[("flow_hit", 1), ("transmitted", 1)]);
        let stranger = remote.client_on(9);
        assert_eq!(rig.xdp(&stranger.bytes()), fate(XDP_PASS, &stranger));
        rig.expect_moved(&[]);
    }
}

#[test]
fn a_dump_of_the_flows_reads_by_eye() {
    let mut rig = Rig::new();
    let [net, _] = nets();
    let remote = Remote::new(&mut rig, net, IPPROTO_TCP);
    rig.xdp(&remote.request.bytes());
    let flows = rig.flows_v4();
    let (key, flow) = flows
        .iter()
        .find(|(_, flow)| !flow.has(Flow::<[u8; 4]>::REPLY))
        .expect("the request's half");
    assert_eq!(key.src, [192, 0, 2, 7]);
    assert_eq!(key.dst, [203, 0, 113, 10]);
    assert_eq!((key.src_port, key.dst_port), (40_000, 80));
    assert_eq!(flow.dst, [192, 0, 2, 8]);
    assert_eq!(flow.dst_port, 8_080);
    assert_eq!(flow.hook, Hook::Ingress as u8);
    let (key, flow) = (*key, *flow);
    rig.set_flow_v4(key, flow);
    assert_eq!(rig.flows_v4().len(), 2);
}
