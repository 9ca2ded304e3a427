//! Who has this address? ARP and neighbour discovery for announced addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{ArpHardwareId, ArpOperation, ArpPacket, EtherType, PacketBuilder};
use lbxdp_common::Device;

use crate::rig::{CLIENT, Fate, N0, N1, Rig, TCX_NEXT, TCX_REDIRECT, XDP_PASS, XDP_TX};

const ALL: [u8; 6] = [0xff; 6];
const VIP: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
const OTHER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 11);
const ASKER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);
const VIP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xff, 0, 0, 0, 0, 0x10);
const OTHER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xff, 0, 0, 0, 0, 0x11);
const ASKER6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 7);
/// The option with the sender's address, and the one with the target's.
const SENDER: u8 = 1;
const TARGET: u8 = 2;

/// A rig that announces both addresses by `n0`.
fn rig() -> Rig {
    let mut rig = Rig::new();
    let n0 = rig.n0;
    rig.announce(VIP.into(), n0);
    rig.announce(VIP6.into(), n0);
    rig.watch(u64::MAX);
    rig
}

fn arp(
    (from, to): ([u8; 6], [u8; 6]),
    operation: ArpOperation,
    sender: ([u8; 6], Ipv4Addr),
    target: ([u8; 6], Ipv4Addr),
) -> Vec<u8> {
    let packet = ArpPacket::new(
        ArpHardwareId::ETHERNET,
        EtherType::IPV4,
        operation,
        &sender.0,
        &sender.1.octets(),
        &target.0,
        &target.1.octets(),
    );
    let mut bytes = Vec::new();
    let builder =
        PacketBuilder::ethernet2(from, to).arp(packet.expect("sizes of Ethernet and IPv4"));
    builder.write(&mut bytes).expect("write to memory");
    bytes
}

fn who_has(target: Ipv4Addr) -> Vec<u8> {
    arp((CLIENT, ALL), ArpOperation::REQUEST, (CLIENT, ASKER), ([0; 6], target))
}

fn is_at(asker: Ipv4Addr) -> Vec<u8> {
    arp((N0, CLIENT), ArpOperation::REPLY, (N0, VIP), (CLIENT, asker))
}

/// The last bytes of a group that nodes with this address are in (RFC 4291, 2.7.1).
fn solicited_node(target: Ipv6Addr) -> ([u8; 6], Ipv6Addr) {
    let [.., a, b, c] = target.octets();
    let group =
        Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]));
    ([0x33, 0x33, 0xff, a, b, c], group)
}

struct Message {
    macs: ([u8; 6], [u8; 6]),
    ips: (Ipv6Addr, Ipv6Addr),
    hop_limit: u8,
    kind: u8,
    flags: u8,
    target: Ipv6Addr,
    option: Option<(u8, [u8; 6])>,
}

impl Message {
    fn bytes(&self) -> Vec<u8> {
        let Self { macs, ips, hop_limit, kind, flags, target, option } = self;
        let mut payload = target.octets().to_vec();
        if let Some((kind, mac)) = option {
            payload.extend([*kind, 1]);
            payload.extend(mac);
        }
        let mut bytes = Vec::new();
        PacketBuilder::ethernet2(macs.0, macs.1)
            .ipv6(ips.0.octets(), ips.1.octets(), *hop_limit)
            .icmpv6_raw(*kind, 0, [*flags, 0, 0, 0])
            .write(&mut bytes, &payload)
            .expect("write to memory");
        bytes
    }
}

/// A question to the group of an address.
fn solicit(target: Ipv6Addr) -> Message {
    let (mac, group) = solicited_node(target);
    Message {
        macs: (CLIENT, mac),
        ips: (ASKER6, group),
        hop_limit: 255,
        kind: 135,
        flags: 0,
        target,
        option: Some((SENDER, CLIENT)),
    }
}

/// The answer to whoever has an address.
fn advertise() -> Message {
    Message {
        macs: (N0, CLIENT),
        ips: (VIP6, ASKER6),
        hop_limit: 255,
        kind: 136,
        // Solicited, override.
        flags: 0x60,
        target: VIP6,
        option: Some((TARGET, N0)),
    }
}

/// Asks at both hooks and compares; frames of the wire are longer than what is in them.
#[track_caller]
fn is_answered(rig: &mut Rig, question: &[u8], answer: &[u8]) {
    let begins = |out: &Fate| out.bytes.starts_with(answer);
    let out = rig.xdp(question);
    assert!(out.verdict == XDP_TX && begins(&out), "XDP: {out:x?} instead of {answer:x?}");
    rig.expect_moved(&[("neighbour_told", 1)]);
    let out = rig.ingress(question);
    assert!(out.verdict == TCX_REDIRECT && begins(&out), "tc: {out:x?} instead of {answer:x?}");
    rig.expect_moved(&[("neighbour_told", 1)]);
}

#[track_caller]
fn is_left_alone(rig: &mut Rig, question: &[u8], why: &str) {
    let out = rig.xdp(question);
    assert_eq!(out, Fate { verdict: XDP_PASS, bytes: question.to_vec() }, "XDP: {why}");
    let out = rig.ingress(question);
    assert_eq!(out, Fate { verdict: TCX_NEXT, bytes: question.to_vec() }, "tc: {why}");
    rig.expect_moved(&[]);
}

#[test]
fn who_asks_for_an_announced_address_is_told() {
    let mut rig = rig();
    is_answered(&mut rig, &who_has(VIP), &is_at(ASKER));
    // A neighbour that makes sure asks the node alone.
    let request = ArpOperation::REQUEST;
    let unicast = arp((CLIENT, N0), request, (CLIENT, ASKER), (N0, VIP));
    is_answered(&mut rig, &unicast, &is_at(ASKER));
    // Who only wants to know whether the address is in use has none himself (RFC 5227).
    let probe = arp((CLIENT, ALL), request, (CLIENT, Ipv4Addr::UNSPECIFIED), ([0; 6], VIP));
    is_answered(&mut rig, &probe, &is_at(Ipv4Addr::UNSPECIFIED));
    // Frames have 60 bytes at least.
    let mut padded = who_has(VIP);
    padded.resize(60, 0);
    is_answered(&mut rig, &padded, &is_at(ASKER));
}

#[test]
fn other_arp_is_the_kernels() {
    let mut rig = rig();
    let (request, reply) = (ArpOperation::REQUEST, ArpOperation::REPLY);
    let group = [1, 0, 0x5e, 0, 0, 1];
    for (frame, why) in [
        (who_has(OTHER), "another address"),
        (is_at(ASKER), "an answer"),
        (arp((CLIENT, ALL), reply, (CLIENT, VIP), (CLIENT, VIP)), "a gratuitous answer"),
        (arp((CLIENT, ALL), request, (CLIENT, VIP), ([0; 6], VIP)), "a gratuitous question"),
        (arp((CLIENT, N1), request, (CLIENT, ASKER), ([0; 6], VIP)), "for another machine"),
        (arp((CLIENT, ALL), request, (group, ASKER), ([0; 6], VIP)), "from a group"),
        (arp((CLIENT, ALL), request, ([0; 6], ASKER), ([0; 6], VIP)), "from nobody"),
        (who_has(VIP)[..40].to_vec(), "cut short"),
    ] {
        is_left_alone(&mut rig, &frame, why);
    }
    let mut other_network = who_has(VIP);
    other_network[15] = 6;
    is_left_alone(&mut rig, &other_network, "not Ethernet");
}

#[test]
fn who_solicits_an_announced_address_gets_an_advertisement() {
    let mut rig = rig();
    let answer = advertise().bytes();
    is_answered(&mut rig, &solicit(VIP6).bytes(), &answer);
    // A neighbour that makes sure asks the address itself, and need not say its own.
    let unicast = Message { macs: (CLIENT, N0), ips: (ASKER6, VIP6), ..solicit(VIP6) };
    is_answered(&mut rig, &unicast.bytes(), &answer);
    is_answered(&mut rig, &Message { option: None, ..unicast }.bytes(), &answer);
    is_answered(&mut rig, &Message { option: None, ..solicit(VIP6) }.bytes(), &answer);
}

#[test]
fn who_looks_for_a_duplicate_is_told_with_all_others() {
    let mut rig = rig();
    let (_, group) = solicited_node(VIP6);
    let ips = (Ipv6Addr::UNSPECIFIED, group);
    let question = Message { ips, option: None, ..solicit(VIP6) };
    let all = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let macs = (N0, [0x33, 0x33, 0, 0, 0, 1]);
    let answer = Message { macs, ips: (VIP6, all), flags: 0x20, ..advertise() };
    is_answered(&mut rig, &question.bytes(), &answer.bytes());
}

#[test]
fn other_neighbour_discovery_is_the_kernels() {
    let mut rig = rig();
    let good = || solicit(VIP6);
    let group = [0x33, 0x33, 0, 0, 0, 1];
    let multicast = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
    let (_, vip_group) = solicited_node(VIP6);
    for (message, why) in [
        (solicit(OTHER6), "another address"),
        (advertise(), "an advertisement"),
        (Message { kind: 133, ..good() }, "for a router"),
        (Message { hop_limit: 254, ..good() }, "from another network"),
        (Message { macs: (group, N0), ..good() }, "from a group"),
        (Message { ips: (multicast, vip_group), ..good() }, "from a group's address"),
        (Message { macs: (CLIENT, N1), ..good() }, "for another machine"),
    ] {
        is_left_alone(&mut rig, &message.bytes(), why);
    }
    let whole = good().bytes();
    is_left_alone(&mut rig, &whole[..whole.len() - 1], "cut short");
    let mut broken = whole;
    let last = broken.len() - 1;
    broken[last] ^= 1;
    is_left_alone(&mut rig, &broken, "a wrong checksum");
}

#[test]
fn nobody_is_told_when_nobody_looks_after_it() {
    let mut rig = rig();
    for until in [0, 1] {
        rig.watch(until);
        is_left_alone(&mut rig, &who_has(VIP), "the agent is gone");
        is_left_alone(&mut rig, &solicit(VIP6).bytes(), "the agent is gone");
    }
    rig.watch(u64::MAX);
    is_answered(&mut rig, &who_has(VIP), &is_at(ASKER));
}

#[test]
fn nobody_is_told_by_another_device() {
    let mut rig = Rig::new();
    let n1 = rig.n1;
    rig.announce(VIP.into(), n1);
    rig.announce(VIP6.into(), n1);
    rig.watch(u64::MAX);
    is_left_alone(&mut rig, &who_has(VIP), "asked for where it is not announced");
    is_left_alone(&mut rig, &solicit(VIP6).bytes(), "asked for where it is not announced");
}

#[test]
fn tc_answers_where_xdp_cannot_transmit() {
    let mut rig = rig();
    let n0 = rig.n0;
    rig.device(n0, Device { mac: N0, flags: Device::XMIT, ..Device::default() });
    for (question, answer) in
        [(who_has(VIP), is_at(ASKER)), (solicit(VIP6).bytes(), advertise().bytes())]
    {
        let out = rig.xdp(&question);
        assert_eq!(out, Fate { verdict: XDP_PASS, bytes: question.clone() });
        let out = rig.ingress(&question);
        assert_eq!(out, Fate { verdict: TCX_REDIRECT, bytes: answer });
        rig.expect_moved(&[("neighbour_told", 1)]);
    }
}

#[test]
fn a_tagged_question_is_about_the_device_above() {
    let mut rig = rig();
    let mut tagged = who_has(VIP);
    tagged.splice(12..12, [0x81, 0, 0, 100]);
    let out = rig.xdp(&tagged);
    assert_eq!(out, Fate { verdict: XDP_PASS, bytes: tagged });
    rig.expect_moved(&[]);
}

#[test]
fn what_was_announced_is_no_more() {
    let mut rig = rig();
    let n0 = rig.n0;
    for address in [IpAddr::from(VIP), VIP6.into()] {
        rig.withdraw(address, n0);
    }
    is_left_alone(&mut rig, &who_has(VIP), "withdrawn");
    is_left_alone(&mut rig, &solicit(VIP6).bytes(), "withdrawn");
}
