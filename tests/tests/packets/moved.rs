//! An announced address came here from another node: what connections that began there send goes on there.

use lbxdp_common::{Announced, Device, IPPROTO_TCP, IPPROTO_UDP};

use crate::{
    Net,
    frames::Packet,
    nets,
    rig::{Fate, N0, Rig, TCX_REDIRECT, XDP_DROP, XDP_PASS, XDP_TX},
};

/// The node that had the address.
const BEFORE: [u8; 6] = [2, 0, 0, 0, 0, 0xbe];

/// A frontend whose address came from there by `n0`.
fn came(rig: &mut Rig, net: &Net) {
    let backend = rig.local(net.pod);
    for protocol in [IPPROTO_TCP, IPPROTO_UDP] {
        rig.frontend(net.vip, protocol, &[backend]);
    }
    let n0 = rig.n0;
    rig.set_announced(net.vip.ip(), n0, Announced { before: BEFORE, ..Announced::default() });
    rig.moved();
}

/// A packet from the middle of a connection is that of a flow of this node.
#[track_caller]
fn is_taken_up_here(rig: &mut Rig, packet: &Packet) {
    assert_eq!(rig.xdp(&packet.bytes()).verdict, XDP_PASS);
    rig.expect_moved(&[("flow_new", 1), ("flow_midstream", 1), ("passed_local", 1)]);
    rig.evict(|_| true);
}

#[test]
fn what_is_unknown_here_is_handed_back_and_what_begins_here_stays() {
    let mut rig = Rig::new();
    for net in nets() {
        came(&mut rig, &net);
        let begin = Packet::new(IPPROTO_TCP, net.client, net.vip);
        for flags in [".", "P.", "F.", "R"] {
            let packet = begin.flags(flags);
            let bytes = packet.hop().over(N0, BEFORE).bytes();
            let fate = Fate { verdict: XDP_TX, bytes: bytes.clone() };
            assert_eq!(rig.xdp(&packet.bytes()), fate, "{flags}");
            let fate = Fate { verdict: TCX_REDIRECT, bytes };
            assert_eq!(rig.ingress(&packet.bytes()), fate, "{flags}");
        }
        rig.expect_moved(&[("transmitted", 8), ("handed_back", 8)]);

        for packet in [&begin, &begin.flags("."), &Packet::new(IPPROTO_UDP, net.client, net.vip)] {
            assert_eq!(rig.xdp(&packet.bytes()).verdict, XDP_PASS);
        }
        rig.expect_moved(&[("flow_new", 2), ("flow_hit", 1), ("passed_local", 3)]);
        rig.evict(|_| true);
    }
}

#[test]
fn nothing_goes_round_between_two_nodes() {
    let mut rig = Rig::new();
    for net in nets() {
        came(&mut rig, &net);
        let packet = Packet::new(IPPROTO_TCP, net.client, net.vip).flags(".");
        // It was handed back itself.
        is_taken_up_here(&mut rig, &packet.over(BEFORE, N0));
        let last = Packet { ttl: 1, ..packet };
        assert_eq!(rig.xdp(&last.bytes()).verdict, XDP_DROP);
        rig.expect_moved(&[("ttl_exceeded", 1)]);
    }
}

#[test]
fn an_address_that_is_handed_back_is_not_answered_for_and_may_stay_by_other_devices() {
    let mut rig = Rig::new();
    let (n0, n1) = (rig.n0, rig.n1);
    for net in nets() {
        came(&mut rig, &net);
        rig.withdraw(net.vip.ip(), n0);
        rig.set_announced(net.vip.ip(), n1, Announced { before: BEFORE, ..Announced::default() });
        let packet = Packet::new(IPPROTO_TCP, net.client, net.vip).flags(".");
        is_taken_up_here(&mut rig, &packet);
    }
}

/// tc does it for a device that XDP cannot send by.
#[test]
fn a_device_without_transmission_leaves_it_to_tc() {
    let mut rig = Rig::new();
    let n0 = rig.n0;
    for net in nets() {
        came(&mut rig, &net);
        rig.device(n0, Device { mac: N0, ..Device::default() });
        let packet = Packet::new(IPPROTO_TCP, net.client, net.vip).flags(".");
        assert_eq!(rig.xdp(&packet.bytes()).verdict, XDP_PASS);
        rig.expect_moved(&[("deferred", 1)]);
        assert_eq!(rig.ingress(&packet.bytes()).verdict, TCX_REDIRECT);
        rig.expect_moved(&[("transmitted", 1), ("handed_back", 1)]);
    }
}
