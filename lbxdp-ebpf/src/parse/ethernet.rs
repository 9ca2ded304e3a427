//! Ethernet and up to two VLAN tags.

use network_types::{eth::EthHdr, vlan::VlanHdr};

use crate::packet::{Packet, read};

/// EtherType of IPv4.
pub const IPV4: u16 = 0x0800;
/// EtherType of ARP.
pub const ARP: u16 = 0x0806;
/// EtherType of IPv6.
pub const IPV6: u16 = 0x86dd;
const VLAN: u16 = 0x8100;
const SERVICE_VLAN: u16 = 0x88a8;

/// What the link layer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// EtherType of what follows, host order.
    pub ether_type: u16,
    /// Offset of what follows.
    pub l3: usize,
    /// VLAN ids, outermost first; zero where there is no tag.
    pub vlan: [u16; 2],
}

/// Reads the link-layer header; `None` for a frame that is cut short.
#[inline(always)]
pub fn parse<P: Packet>(packet: &P) -> Option<Frame> {
    let ether_type = u16::from_be_bytes(read(packet, EthHdr::LEN - 2)?);
    let mut frame = Frame { ether_type, l3: EthHdr::LEN, vlan: [0; 2] };
    if is_tag(frame.ether_type) {
        frame.vlan[0] = tag(packet, &mut frame)?;
        if is_tag(frame.ether_type) {
            frame.vlan[1] = tag(packet, &mut frame)?;
        }
    }
    Some(frame)
}

#[inline(always)]
fn is_tag(ether_type: u16) -> bool {
    ether_type == VLAN || ether_type == SERVICE_VLAN
}

#[inline(always)]
fn tag<P: Packet>(packet: &P, frame: &mut Frame) -> Option<u16> {
    let header: VlanHdr = read(packet, frame.l3)?;
    frame.ether_type = u16::from_be(header.ether_type);
    frame.l3 += VlanHdr::LEN;
    Some(u16::from_be_bytes(header.tci) & 0x0fff)
}
