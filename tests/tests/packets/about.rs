//! ICMP and ICMPv6 errors about translated packets: they go where the packets of their direction
//! go, and quote what their receiver sent.

use std::net::{IpAddr, SocketAddr};

use lbxdp_common::{AddressFlags, IPPROTO_UDP};

use crate::{
    Net, every,
    forwarding::source_port,
    frames::{Code, Message, Packet},
    rig::{
        CLIENT, Fate, N0, N1, PEER0, PEER1, Rig, TCX_DROP, TCX_NEXT, TCX_REDIRECT, XDP_DROP,
        XDP_PASS, XDP_REDIRECT, XDP_TX,
    },
};

/// Errors of every kind that is translated.
const CODES_V4: [Code; 7] = [
    (3, 0, [0; 4]),
    (3, 3, [0; 4]),
    (3, 4, [0, 0, 5, 0x14]),
    (3, 13, [0; 4]),
    (11, 0, [0; 4]),
    (11, 1, [0; 4]),
    (12, 0, [9, 0, 0, 0]),
];
const CODES_V6: [Code; 7] = [
    (1, 0, [0; 4]),
    (1, 4, [0; 4]),
    (2, 0, [0, 0, 5, 0x14]),
    (1, 1, [0; 4]),
    (3, 0, [0; 4]),
    (3, 1, [0; 4]),
    (4, 0, [0, 0, 0, 40]),
];

fn codes(net: &Net) -> [Code; 7] {
    if net.vip.is_ipv4() { CODES_V4 } else { CODES_V6 }
}

/// A router on the client's side.
fn router(net: &Net) -> IpAddr {
    if net.vip.is_ipv4() { "198.18.0.1" } else { "2001:db8:9::1" }.parse().expect("an address")
}

fn fate(verdict: u32, message: &Message) -> Fate {
    Fate { verdict, bytes: message.bytes() }
}

/// Lengths of quotes: ports only, the 8 bytes of RFC 792, within the checksum of TCP, whole.
fn quotes(packet: &Packet) -> Vec<usize> {
    let transport = packet.transport_offset() - 14;
    let whole = packet.ip_bytes().len();
    [4, 8, 16, 18, 20].map(|more| transport + more).into_iter().chain([whole]).collect()
}

/// A packet as `to` sent it and as it met its end, and an error about the latter.
fn error(from: IpAddr, to: IpAddr, code: Code, about: &Packet, length: usize) -> Message {
    let quoted = Packet { ttl: 1, ..about.clone() }.ip_bytes()[..length].to_vec();
    Message { from_mac: CLIENT, to_mac: N0, from, to, ttl: 60, code, quoted }
}

fn requoted(about: &Packet, length: usize) -> Vec<u8> {
    Packet { ttl: 1, ..about.clone() }.ip_bytes()[..length].to_vec()
}

/// A frontend of a backend elsewhere, asked once. Request and reply as they are on either side.
struct Remote {
    snat: SocketAddr,
    backend: SocketAddr,
    request: Packet,
    far: bool,
}

impl Remote {
    fn new(rig: &mut Rig, net: Net, protocol: u8, far: bool) -> Self {
        let (backend, node) = if far { (net.far, net.node1) } else { (net.near, net.node) };
        let id = rig.remote(backend, node.ip());
        rig.frontend(net.vip, protocol, &[id]);
        let request = Packet::new(protocol, net.client, net.vip);
        let snat = SocketAddr::new(node.ip(), source_port(&request, &rig.xdp(&request.bytes())));
        rig.moved();
        Self { snat, backend, request, far }
    }

    /// On its way to a backend or a client.
    fn way(&self, message: &Message, to_backend: bool) -> (Message, u32) {
        match (to_backend, self.far) {
            (true, true) => (message.forwarded(N1, PEER1), XDP_REDIRECT),
            (true, false) => (message.forwarded(N0, PEER0), XDP_TX),
            (false, _) => (message.forwarded(N0, CLIENT), XDP_TX),
        }
    }
}

#[test]
fn an_error_about_a_reply_reaches_the_remote_backend_from_whom_it_sees() {
    let mut rig = Rig::new();
    for (net, protocol) in every() {
        for far in [false, true] {
            for options in [false, true] {
                let remote = Remote::new(&mut rig, net, protocol, far);
                let reply = remote.request.between(net.vip, net.client);
                let reply = Packet { options, ..reply };
                let sent = reply.between(remote.backend, remote.snat);
                for (index, code) in codes(&net).into_iter().enumerate() {
                    for length in quotes(&reply) {
                        let from = [router(&net), net.client.ip()][index % 2];
                        let message = error(from, net.vip.ip(), code, &reply, length);
                        let expected = message
                            .between(remote.snat.ip(), remote.backend.ip())
                            .about(&requoted(&sent, length));
                        let (expected, verdict) = remote.way(&expected, true);
                        assert_eq!(
                            rig.xdp(&message.bytes()),
                            fate(verdict, &expected),
                            "{code:?} with {length} bytes"
                        );
                        assert_eq!(
                            rig.ingress(&message.bytes()).verdict,
                            TCX_REDIRECT,
                            "{code:?} with {length} bytes"
                        );
                        let way = if far { "redirected" } else { "transmitted" };
                        rig.expect_moved(&[
                            ("flow_hit", 2),
                            ("icmp_translated", 2),
                            (way, 1),
                            ("redirected_neigh", 1),
                        ]);
                    }
                }
                rig.evict(|_| true);
            }
        }
    }
}

#[test]
fn an_error_about_a_request_reaches_the_client_from_the_frontend() {
    let mut rig = Rig::new();
    for (net, protocol) in every() {
        for far in [false, true] {
            let remote = Remote::new(&mut rig, net, protocol, far);
            let sent = Packet { options: far, ..remote.request.clone() };
            let forwarded = sent.between(remote.snat, remote.backend);
            for (index, code) in codes(&net).into_iter().enumerate() {
                for length in quotes(&forwarded) {
                    let from = [router(&net), remote.backend.ip()][index % 2];
                    let message = error(from, remote.snat.ip(), code, &forwarded, length);
                    let expected = message
                        .between(net.vip.ip(), net.client.ip())
                        .about(&requoted(&sent, length));
                    let (expected, verdict) = remote.way(&expected, false);
                    assert_eq!(rig.xdp(&message.bytes()), fate(verdict, &expected));
                    // Behind tc the next hop's addresses are still to come.
                    let mut bytes = expected.bytes();
                    bytes[..12].copy_from_slice(&message.bytes()[..12]);
                    assert_eq!(
                        rig.ingress(&message.bytes()),
                        Fate { verdict: TCX_REDIRECT, bytes }
                    );
                    rig.expect_moved(&[
                        ("flow_hit", 2),
                        ("icmp_translated", 2),
                        ("transmitted", 1),
                        ("redirected_neigh", 1),
                    ]);
                }
            }
            rig.evict(|_| true);
        }
    }
}

#[test]
fn errors_of_both_directions_of_a_local_backend_are_translated_where_they_pass() {
    let mut rig = Rig::new();
    for (net, protocol) in every() {
        let pod = rig.local(net.pod);
        rig.address(net.node.ip(), AddressFlags::NODE);
        rig.frontend(net.vip, protocol, &[pod]);
        let request = Packet::new(protocol, net.client, net.vip);
        rig.xdp(&request.bytes());
        rig.moved();
        let inside = request.between(net.client, net.pod);
        let reply = request.between(net.vip, net.client);
        let reply_inside = request.between(net.pod, net.client);
        for code in codes(&net) {
            for length in quotes(&request) {
                // From a router, or from the client itself: the pod sees who it is.
                for from in [router(&net), net.client.ip()] {
                    let message = error(from, net.vip.ip(), code, &reply, length);
                    let expected =
                        message.between(from, net.pod.ip()).about(&requoted(&reply_inside, length));
                    assert_eq!(rig.xdp(&message.bytes()), fate(XDP_PASS, &expected));
                    assert_eq!(rig.ingress(&message.bytes()), fate(TCX_NEXT, &expected));
                    rig.expect_moved(&[
                        ("flow_hit", 2),
                        ("icmp_translated", 2),
                        ("passed_local", 2),
                    ]);
                }
                // From the node, the pod, or a router within the node: the client sees the
                // frontend.
                for from in [net.node.ip(), net.pod.ip(), net.nobody.ip()] {
                    let message = error(from, net.client.ip(), code, &inside, length);
                    let expected = message
                        .between(net.vip.ip(), net.client.ip())
                        .about(&requoted(&request, length));
                    assert_eq!(rig.egress(&message.bytes()), fate(TCX_NEXT, &expected));
                    rig.expect_moved(&[
                        ("flow_hit", 1),
                        ("icmp_translated", 1),
                        ("reply_translated", 1),
                    ]);
                }
            }
        }
    }
}

#[test]
fn an_error_about_a_pod_that_calls_itself_turns_round_like_its_reply() {
    let mut rig = Rig::new();
    for (net, protocol) in every() {
        let pod = SocketAddr::new(net.client.ip(), net.pod.port());
        let id = rig.local(pod);
        rig.frontend(net.vip, protocol, &[id]);
        let request = Packet::new(protocol, net.client, net.vip);
        let port = source_port(&request, &rig.xdp(&request.bytes()));
        rig.moved();
        let inside = request.between(SocketAddr::new(net.vip.ip(), port), pod);
        let length = inside.ip_bytes().len();
        let message = error(pod.ip(), net.vip.ip(), codes(&net)[1], &inside, length);
        let message = Message { from_mac: N0, to_mac: CLIENT, ..message };
        let expected =
            message.between(net.vip.ip(), net.client.ip()).about(&requoted(&request, length));
        let expected = Message { ttl: message.ttl - 1, ..expected };
        assert_eq!(rig.egress(&message.bytes()), fate(TCX_REDIRECT, &expected));
    }
}

#[test]
fn a_datagram_without_a_checksum_is_quoted_without() {
    let mut rig = Rig::new();
    for (net, protocol) in every() {
        if protocol != IPPROTO_UDP || !net.vip.is_ipv4() {
            continue;
        }
        let remote = Remote::new(&mut rig, net, protocol, false);
        let forwarded = remote.request.between(remote.snat, remote.backend);
        let bare = |packet: &Packet| {
            let mut quoted = requoted(packet, packet.ip_bytes().len());
            quoted[26..28].fill(0);
            quoted
        };
        let message = error(router(&net), remote.snat.ip(), CODES_V4[0], &forwarded, 28);
        let message = message.about(&bare(&forwarded));
        let expected = message.between(net.vip.ip(), net.client.ip());
        let expected = expected.about(&bare(&remote.request)).forwarded(N0, CLIENT);
        assert_eq!(rig.xdp(&message.bytes()), fate(XDP_TX, &expected));
    }
}

#[test]
fn an_error_about_no_flow_ends_at_a_service_and_passes_at_the_node() {
    let mut rig = Rig::new();
    for (net, protocol) in every() {
        let remote = Remote::new(&mut rig, net, protocol, false);
        let code = codes(&net)[2];
        let reply = remote.request.between(net.vip, net.client);
        let length = reply.ip_bytes().len();
        let whole = error(router(&net), net.vip.ip(), code, &reply, length);
        let stranger = SocketAddr::new(net.client.ip(), 9);
        let mut strangers = vec![
            whole.about(&reply.between(net.vip, stranger).ip_bytes()),
            // Not even the ports are there.
            whole.about(&whole.quoted[..reply.transport_offset() - 14 + 3]),
            // About a packet that its receiver did not send.
            whole.about(&reply.between(net.vip2, net.client).ip_bytes()),
            // No error, or none that anybody translates.
            Message { code: (5, 0, [0; 4]), ..whole.clone() },
        ];
        // About a later fragment, which has no ports.
        if net.vip.is_ipv4() {
            let mut quoted = whole.quoted.clone();
            quoted[7] = 9;
            strangers.push(whole.about(&quoted));
        } else {
            let mut quoted = whole.quoted[..40].to_vec();
            quoted[6] = 44;
            quoted.extend_from_slice(&[protocol, 0, 0, 8, 0, 0, 0, 9]);
            quoted.extend_from_slice(&whole.quoted[40..]);
            strangers.push(whole.about(&quoted));
        }
        for message in strangers {
            let frame = message.bytes();
            assert_eq!(rig.xdp(&frame).verdict, XDP_DROP, "{message:?}");
            assert_eq!(rig.ingress(&frame).verdict, TCX_DROP, "{message:?}");
            rig.expect_moved(&[("unknown_protocol", 2)]);
            let frame = message.between(router(&net), net.node.ip()).bytes();
            assert_eq!(rig.xdp(&frame), Fate { verdict: XDP_PASS, bytes: frame.clone() });
            assert_eq!(rig.ingress(&frame), Fate { verdict: TCX_NEXT, bytes: frame.clone() });
            let frame = message.between(net.node.ip(), router(&net)).bytes();
            assert_eq!(rig.egress(&frame), Fate { verdict: TCX_NEXT, bytes: frame.clone() });
            rig.expect_moved(&[]);
        }
        // A flow of a remote backend is not for egress.
        let frame = whole.bytes();
        assert_eq!(rig.egress(&frame), Fate { verdict: TCX_NEXT, bytes: frame.clone() });
        rig.expect_moved(&[]);
        rig.evict(|_| true);
    }
}

#[test]
fn an_error_is_not_answered_with_another() {
    let mut rig = Rig::new();
    for (net, protocol) in every() {
        let remote = Remote::new(&mut rig, net, protocol, false);
        let forwarded = remote.request.between(remote.snat, remote.backend);
        let message = error(router(&net), remote.snat.ip(), codes(&net)[0], &forwarded, 46);
        let frame = Message { ttl: 1, ..message }.bytes();
        assert_eq!(rig.xdp(&frame).verdict, XDP_DROP);
        assert_eq!(rig.ingress(&frame).verdict, TCX_DROP);
        rig.expect_moved(&[("flow_hit", 2), ("ttl_exceeded", 2)]);
    }
}

/// State, flags and age of every entry.
fn lives(rig: &mut Rig) -> Vec<(u8, u8, u64)> {
    let v4 = rig.flows_v4().into_iter().map(|(_, flow)| (flow.state, flow.flags, flow.last_seen));
    let mut lives: Vec<_> = v4.collect();
    let v6 = rig.flows_v6().into_iter().map(|(_, flow)| (flow.state, flow.flags, flow.last_seen));
    lives.extend(v6);
    lives.sort_unstable();
    lives
}

#[test]
fn an_error_is_no_sign_of_life_and_believes_no_half_of_a_flow() {
    let mut rig = Rig::new();
    for (net, protocol) in every() {
        let remote = Remote::new(&mut rig, net, protocol, false);
        let forwarded = remote.request.between(remote.snat, remote.backend);
        let message = error(router(&net), remote.snat.ip(), codes(&net)[0], &forwarded, 46);
        rig.age(30);
        let before = lives(&mut rig);
        assert_eq!(rig.xdp(&message.bytes()).verdict, XDP_TX);
        rig.expect_moved(&[("flow_hit", 1), ("icmp_translated", 1), ("transmitted", 1)]);
        assert_eq!(lives(&mut rig), before);

        rig.evict(|is_reply| !is_reply);
        assert_eq!(rig.xdp(&message.bytes()).verdict, XDP_TX);
        rig.expect_moved(&[
            ("flow_hit", 1),
            ("flow_restored", 1),
            ("icmp_translated", 1),
            ("transmitted", 1),
        ]);
        rig.age(60);
        assert_eq!(
            rig.xdp(&message.bytes()),
            Fate { verdict: XDP_PASS, bytes: message.bytes() },
            "over"
        );
        rig.expect_moved(&[("flow_expired", 1)]);
        assert_eq!((rig.flows_v4().len(), rig.flows_v6().len()), (0, 0));
    }
}
