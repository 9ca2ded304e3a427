//! What tells a network where an address is now: gratuitous ARP in both forms, because some listen to one
//! and some to the other (RFC 5944, 4.6), and an unsolicited neighbour advertisement (RFC 4861, 7.2.6). And
//! what asks whether somebody has it, without saying that the asker does: a probe (RFC 5227, 2.1.1), and a
//! solicitation from nobody (RFC 4862, 5.4.2).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{ArpHardwareId, ArpOperation, ArpPacket, EtherType, PacketBuilder};

/// A link-layer address.
type Mac = [u8; 6];

const EVERYBODY: Mac = [0xff; 6];
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: Mac = [0x33, 0x33, 0, 0, 0, 1];
/// Of a message that no router has forwarded.
const HOP_LIMIT: u8 = 255;
/// The type of a neighbour solicitation among messages of ICMPv6,
const SOLICITATION: u8 = 135;
/// and that of an advertisement.
pub const ADVERTISEMENT: u8 = 136;
/// The operation of an answer of ARP.
pub const ANSWER: u16 = ArpOperation::REPLY.0;
/// What the receiver knew before is over.
const OVERRIDE: u8 = 0x20;
/// The option with the target's link-layer address, of eight bytes: the first of an advertisement that is
/// unsolicited.
pub const TARGET_MAC: [u8; 2] = [2, 1];

/// An address and the device that has it now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Announced {
    /// The address.
    pub address: IpAddr,
    /// The device's link-layer address.
    pub mac: Mac,
}

/// The frames that announce it, to be sent by its device.
pub fn announcements(announced: &Announced) -> Vec<Vec<u8>> {
    match announced.address {
        IpAddr::V4(address) => [ArpOperation::REQUEST, ArpOperation::REPLY]
            .into_iter()
            .filter_map(|operation| gratuitous(operation, address, announced.mac))
            .collect(),
        IpAddr::V6(address) => advertisement(address, announced.mac).into_iter().collect(),
    }
}

/// The frame that asks whether somebody has it, to be sent by the device with this link-layer address. It
/// changes nothing that anybody knows.
pub fn question(&Announced { address, mac }: &Announced) -> Option<Vec<u8>> {
    match address {
        IpAddr::V4(address) => {
            let nobody = Ipv4Addr::UNSPECIFIED;
            arp(ArpOperation::REQUEST, (mac, nobody), ([0; 6], address))
        }
        IpAddr::V6(asked) => {
            let group = solicited_node(address)?;
            let [.., a, b, c, d] = group.octets();
            let to = (group, [0x33, 0x33, a, b, c, d]);
            neighbours(SOLICITATION, 0, (Ipv6Addr::UNSPECIFIED, mac), to, &asked.octets())
        }
    }
}

/// The group in which those are that have this address (RFC 4291, 2.7.1). Neighbours ask there, and a
/// switch that follows memberships, or a card that filters, hands on nothing for a group without members.
pub fn solicited_node(address: IpAddr) -> Option<Ipv6Addr> {
    let IpAddr::V6(address) = address else { return None };
    let [.., a, b, c] = address.octets();
    let (high, low) = (0xff00 | u16::from(a), u16::from_be_bytes([b, c]));
    Some(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, high, low))
}

/// ARP from an address about itself.
fn gratuitous(operation: ArpOperation, address: Ipv4Addr, mac: Mac) -> Option<Vec<u8>> {
    let target = if operation == ArpOperation::REQUEST { [0; 6] } else { mac };
    arp(operation, (mac, address), (target, address))
}

/// ARP to everybody. A buffer in memory takes everything, and the sizes are right.
fn arp(
    operation: ArpOperation,
    sender: (Mac, Ipv4Addr),
    target: (Mac, Ipv4Addr),
) -> Option<Vec<u8>> {
    let (hardware, protocol) = (ArpHardwareId::ETHERNET, EtherType::IPV4);
    let [(sender, sender_address), (target, target_address)] =
        [sender, target].map(|(mac, address)| (mac, address.octets()));
    let packet = ArpPacket::new(
        hardware,
        protocol,
        operation,
        &sender,
        &sender_address,
        &target,
        &target_address,
    );
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(sender, EVERYBODY).arp(packet.ok()?).write(&mut frame).ok()?;
    Some(frame)
}

fn advertisement(address: Ipv6Addr, mac: Mac) -> Option<Vec<u8>> {
    let mut payload = address.octets().to_vec();
    payload.extend(TARGET_MAC);
    payload.extend(mac);
    neighbours(ADVERTISEMENT, OVERRIDE, (address, mac), (ALL_NODES, ALL_NODES_MAC), &payload)
}

/// A message of neighbour discovery.
fn neighbours(
    kind: u8,
    flags: u8,
    from: (Ipv6Addr, Mac),
    to: (Ipv6Addr, Mac),
    payload: &[u8],
) -> Option<Vec<u8>> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(from.1, to.1)
        .ipv6(from.0.octets(), to.0.octets(), HOP_LIMIT)
        .icmpv6_raw(kind, 0, [flags, 0, 0, 0])
        .write(&mut frame, payload)
        .ok()?;
    Some(frame)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = [2, 0, 0, 0, 0, 1];

    #[test]
    fn an_ipv4_address_is_announced_by_a_question_and_by_an_answer() {
        let address = Ipv4Addr::new(192, 0, 2, 1).into();
        let frames = announcements(&Announced { address, mac: MAC });
        let head = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 8, 6];
        let sender = [2, 0, 0, 0, 0, 1, 192, 0, 2, 1];
        let of = |operation: u8, target: Mac| {
            let kind = [0, 1, 8, 0, 6, 4, 0, operation];
            [&head[..], &kind, &sender, &target, &[192, 0, 2, 1]].concat()
        };
        assert_eq!(frames, [of(1, [0; 6]), of(2, MAC)]);
    }

    /// The sum over pseudo-header and message is that of a right checksum (RFC 4443, 2.3).
    #[test]
    fn an_ipv6_address_is_advertised_to_all_nodes() {
        let address: Ipv6Addr = "2001:db8::1".parse().unwrap();
        let frames = announcements(&Announced { address: address.into(), mac: MAC });
        let [frame] = frames.as_slice() else { panic!("{frames:?}") };
        assert_eq!(frame[..14], [0x33, 0x33, 0, 0, 0, 1, 2, 0, 0, 0, 0, 1, 0x86, 0xdd]);
        assert_eq!(frame[14..22], [0x60, 0, 0, 0, 0, 32, 58, 255]);
        assert_eq!(frame[22..38], address.octets());
        assert_eq!(frame[38..54], ALL_NODES.octets());
        assert_eq!(frame[54..56], [136, 0]);
        assert_eq!(frame[58..62], [0x20, 0, 0, 0]);
        assert_eq!(frame[62..78], address.octets());
        assert_eq!(frame[78..], [2, 1, 2, 0, 0, 0, 0, 1]);
        let words =
            frame[22..].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
        let mut sum = words.sum::<u32>() + 32 + 58;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        assert_eq!(sum, 0xffff);
    }

    #[test]
    fn who_asks_does_not_say_that_he_has_it() {
        let ask = |address| question(&Announced { address, mac: MAC }).unwrap();
        let frame = ask(Ipv4Addr::new(192, 0, 2, 1).into());
        assert_eq!(frame[..6], EVERYBODY);
        assert_eq!(frame[12..22], [8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        assert_eq!(frame[22..32], [2, 0, 0, 0, 0, 1, 0, 0, 0, 0]);
        assert_eq!(frame[32..], [0, 0, 0, 0, 0, 0, 192, 0, 2, 1]);

        let address: Ipv6Addr = "2001:db8::1:203:405".parse().unwrap();
        let frame = ask(address.into());
        assert_eq!(frame[..6], [0x33, 0x33, 0xff, 3, 4, 5]);
        assert_eq!(frame[14..22], [0x60, 0, 0, 0, 0, 24, 58, 255]);
        assert_eq!(frame[22..38], [0; 16]);
        assert_eq!(frame[38..54], "ff02::1:ff03:405".parse::<Ipv6Addr>().unwrap().octets());
        assert_eq!((&frame[54..56], &frame[58..62]), (&[135, 0][..], &[0; 4][..]));
        assert_eq!(frame[62..], address.octets());
    }

    #[test]
    fn a_group_has_the_last_bytes_of_the_address() {
        let group = solicited_node("2001:db8::1:203:405".parse().unwrap());
        assert_eq!(group, Some("ff02::1:ff03:405".parse().unwrap()));
        assert_eq!(solicited_node([192, 0, 2, 1].into()), None);
    }
}
