//! Next hops that the agent keeps: used while they are valid, and only for requests.

use std::net::SocketAddr;

use lbxdp_common::{Device, Hop};

use crate::{
    Net, every,
    forwarding::source_port,
    frames::Packet,
    nets,
    rig::{
        CLIENT, Fate, N0, N1, PEER0, PEER1, Rig, TCX_REDIRECT, XDP_DROP, XDP_PASS, XDP_REDIRECT,
        XDP_TX,
    },
};

/// A neighbour that the kernel knows nothing of.
const ELSEWHERE: [u8; 6] = [2, 0, 0, 0, 0, 0xee];
const BOTH: u16 = Device::FORWARDS_V4 | Device::FORWARDS_V6;
/// The index of the hop under test.
const ID: u32 = 5;

/// A rig with a hop by `n1`, whose devices forward what `flags` say.
fn rig(flags: u16) -> Rig {
    let mut rig = Rig::new();
    let (n0, n1) = (rig.n0, rig.n1);
    let flags = flags | Device::XMIT | Device::TX;
    rig.device(n0, Device { mac: N0, flags, ..Device::default() });
    rig.device(n1, Device { mac: N1, flags, ..Device::default() });
    rig.set_hop(ID, hop(n1));
    rig
}

fn hop(ifindex: u32) -> Hop {
    Hop {
        dst: ELSEWHERE,
        dst_version: 9,
        src: N1,
        src_version: 9,
        ifindex,
        mtu: 1_500,
        version: 9,
        valid_until: u64::MAX,
    }
}

/// A frontend with a backend behind `n1`, which is reached by the hop.
fn serve(rig: &mut Rig, net: &Net, protocol: u8) -> u32 {
    let id = rig.remote(net.far, net.node1.ip());
    rig.lead(net.far.ip(), id, ID);
    rig.frontend(net.vip, protocol, &[id]);
    id
}

/// The frame that a request became, sent to `peer`.
fn expected(request: &Packet, net: &Net, out: &Fate, peer: [u8; 6]) -> Vec<u8> {
    let snat = SocketAddr::new(net.node1.ip(), source_port(request, out));
    request.between(snat, net.far).over(N1, peer).hop().bytes()
}

/// Where a request of `net` is sent.
#[track_caller]
fn goes_to(rig: &mut Rig, net: &Net, protocol: u8, peer: [u8; 6]) {
    let request = Packet::new(protocol, net.client, net.vip).flags(".");
    let out = rig.xdp(&request.bytes());
    assert_eq!(out.verdict, XDP_REDIRECT);
    assert_eq!(out.bytes, expected(&request, net, &out, peer));
}

#[test]
fn a_request_leaves_by_the_hop_of_its_backend_and_a_reply_by_the_kernels_way() {
    let mut rig = rig(BOTH);
    for (net, protocol) in every() {
        serve(&mut rig, &net, protocol);
        let request = Packet::new(protocol, net.client, net.vip);
        let out = rig.xdp(&request.bytes());
        assert_eq!(out.verdict, XDP_REDIRECT);
        assert_eq!(out.bytes, expected(&request, &net, &out, ELSEWHERE));
        rig.expect_moved(&[("flow_new", 1), ("redirected", 1)]);

        let snat = SocketAddr::new(net.node1.ip(), source_port(&request, &out));
        let reply = request.between(net.far, snat).over(PEER0, N0).flags("S.");
        let back = reply.between(net.vip, net.client).over(N0, CLIENT).hop();
        assert_eq!(rig.xdp(&reply.bytes()), Fate { verdict: XDP_TX, bytes: back.bytes() });
        rig.expect_moved(&[("flow_hit", 1), ("transmitted", 1)]);
        goes_to(&mut rig, &net, protocol, ELSEWHERE);
        rig.expect_moved(&[("flow_hit", 1), ("redirected", 1)]);

        // tc leaves the frame's addresses to the kernel.
        let out = rig.ingress(&request.flags(".").bytes());
        assert_eq!(out.verdict, TCX_REDIRECT);
        rig.expect_moved(&[("flow_hit", 1), ("redirected_neigh", 1)]);
    }
}

#[test]
fn a_hop_that_changes_is_followed_by_the_next_packet() {
    let mut rig = rig(BOTH);
    for (net, protocol) in every() {
        serve(&mut rig, &net, protocol);
        goes_to(&mut rig, &net, protocol, ELSEWHERE);
        let (n0, n1) = (rig.n0, rig.n1);
        rig.set_hop(ID, Hop { dst: PEER0, src: N0, ..hop(n0) });
        let request = Packet::new(protocol, net.client, net.vip).flags(".");
        let out = rig.xdp(&request.bytes());
        let snat = SocketAddr::new(net.node1.ip(), source_port(&request, &out));
        let moved = request.between(snat, net.far).over(N0, PEER0).hop();
        assert_eq!(out, Fate { verdict: XDP_TX, bytes: moved.bytes() });
        rig.set_hop(ID, hop(n1));
        goes_to(&mut rig, &net, protocol, ELSEWHERE);
    }
}

#[test]
fn where_a_hop_is_not_valid_the_kernel_is_asked() {
    let mut rig = rig(BOTH);
    let good = hop(rig.n1);
    let bad = [
        Hop::default(),
        Hop { dst_version: 8, ..good },
        Hop { src_version: 10, ..good },
        Hop { version: 0, ..good },
        Hop { dst_version: 0, src_version: 0, version: 0, ..good },
        Hop { valid_until: 1, ..good },
    ];
    for (net, protocol) in every() {
        let id = serve(&mut rig, &net, protocol);
        for hop in bad {
            rig.set_hop(ID, hop);
            goes_to(&mut rig, &net, protocol, PEER1);
        }
        rig.set_hop(ID, good);
        goes_to(&mut rig, &net, protocol, ELSEWHERE);
        // The id is another backend's by now, or nobody's, or its hop is beyond all hops.
        rig.set_backend_port(net.far.ip(), id, 1);
        goes_to(&mut rig, &net, protocol, PEER1);
        rig.set_backend_port(net.far.ip(), id, net.far.port());
        rig.lead(net.far.ip(), id, 0);
        goes_to(&mut rig, &net, protocol, PEER1);
        rig.lead(net.far.ip(), id, u32::MAX);
        goes_to(&mut rig, &net, protocol, PEER1);
    }
}

#[test]
fn a_device_that_does_not_forward_a_family_is_asked_about_it() {
    let [v4, v6] = nets();
    for (net, flags) in [(v4, Device::FORWARDS_V6), (v6, Device::FORWARDS_V4)] {
        let mut rig = rig(flags);
        serve(&mut rig, &net, 6);
        goes_to(&mut rig, &net, 6, PEER1);
        let family = if net.vip.is_ipv4() { "ipv4" } else { "ipv6" };
        let path = format!("/proc/sys/net/{family}/conf/n0/forwarding");
        std::fs::write(path, "0").expect("a sysctl of the rig's namespace");
        let request = Packet::new(6, net.client, net.vip).flags(".");
        assert_eq!(rig.xdp(&request.bytes()).verdict, XDP_DROP);
        let moved = rig.moved();
        assert!(moved.0.contains(&("forwarding_disabled", 1)), "{moved:?}");
    }
}

#[test]
fn what_is_larger_than_the_hop_takes_is_answered() {
    let mut rig = rig(BOTH);
    let n1 = rig.n1;
    for (net, protocol) in every() {
        serve(&mut rig, &net, protocol);
        let request = Packet::new(protocol, net.client, net.vip).flags(".");
        let len = u16::try_from(request.bytes().len() - 14).expect("short");
        rig.set_hop(ID, Hop { mtu: len, ..hop(n1) });
        goes_to(&mut rig, &net, protocol, ELSEWHERE);
        rig.moved();
        rig.set_hop(ID, Hop { mtu: len - 1, ..hop(n1) });
        let out = rig.xdp(&request.bytes());
        assert_eq!(out.verdict, XDP_TX);
        rig.expect_moved(&[("flow_hit", 1), ("too_big", 1), ("icmp_sent", 1)]);
        let header = if net.vip.is_ipv4() { 20 } else { 40 };
        let icmp = &out.bytes[14 + header..];
        let code = if net.vip.is_ipv4() { [3, 4] } else { [2, 0] };
        assert_eq!((&icmp[..2], &icmp[6..8]), (&code[..], &(len - 1).to_be_bytes()[..]));
    }
}

#[test]
fn a_free_port_of_the_node_is_the_nodes_whatever_there_is() {
    let mut rig = Rig::new();
    for net in nets() {
        let id = rig.remote(net.far, net.node1.ip());
        for protocol in [6, 17, 132] {
            rig.frontend(net.node, protocol, &[id]);
        }
        rig.address(net.node.ip(), lbxdp_common::AddressFlags::NODE | 1);
        let request = |protocol| Packet::new(protocol, net.client, net.node).flags(".");
        for protocol in [6, 17] {
            rig.free_port(net.node.port(), true);
            let bytes = request(protocol).bytes();
            assert_eq!(rig.xdp(&bytes), Fate { verdict: XDP_PASS, bytes: bytes.clone() });
            rig.expect_moved(&[]);
            // Its neighbours' bits are nobody's.
            rig.free_port(net.node.port(), false);
            rig.free_port(net.node.port() + 1, true);
            rig.free_port(net.node.port() - 1, true);
            assert_eq!(rig.xdp(&bytes).verdict, XDP_REDIRECT);
            rig.moved();
        }
        // What SCTP's flows have is not in the map.
        rig.free_port(net.node.port(), true);
        assert_eq!(rig.xdp(&request(132).bytes()).verdict, XDP_REDIRECT);
        rig.moved();
        // At an address that is only a service's, ports are not asked about.
        rig.free_port(net.vip.port(), true);
        rig.frontend(net.vip, 6, &[id]);
        assert_eq!(rig.xdp(&Packet::new(6, net.client, net.vip).bytes()).verdict, XDP_REDIRECT);
        rig.moved();
        rig.free_port(net.vip.port(), false);
    }
}
