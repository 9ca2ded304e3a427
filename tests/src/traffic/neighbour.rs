//! A host that asks who has an address, and listens to those who say it unasked.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use etherparse::{ArpHardwareId, ArpOperation, ArpPacket, EtherType, PacketBuilder};
use serde_json::Value;

use super::frame::{Wire, parse_mac};
use crate::cluster::{CLIENT_V4, CLIENT_V6, UPLINK};
use crate::netns::Netns;

/// A link-layer address.
pub type Mac = [u8; 6];

/// Whoever answers does so at once.
pub const ANSWER_WITHIN: Duration = Duration::from_millis(150);

/// Announcements to everybody, by address and form (the operation of ARP or the type of ICMPv6): from
/// whom, and when.
pub type Announcements = BTreeMap<(IpAddr, u8), Vec<(Mac, Instant)>>;

/// The client of a cluster.
#[derive(Debug)]
pub struct Neighbour {
    wire: Wire,
    mac: Mac,
}

impl Neighbour {
    /// From here on it hears everything.
    #[track_caller]
    pub fn new(client: &Netns) -> Self {
        let wire = client.run(|| Wire::open(UPLINK)).expect("a packet socket");
        Self { wire, mac: mac(client) }
    }

    /// Everybody who says within a moment that he has an address.
    #[track_caller]
    pub fn who_has(&self, addr: IpAddr) -> BTreeSet<Mac> {
        self.ask(addr).expect("frames come and go")
    }

    fn ask(&self, addr: IpAddr) -> io::Result<BTreeSet<Mac>> {
        self.wire.send(&self.question(addr)?)?;
        let is_told = |frame: &[u8]| frame[..6] == self.mac && claim(frame) == Some(addr);
        let frames = self.wire.collect(ANSWER_WITHIN, is_told)?;
        Ok(frames.iter().map(|frame| sender(frame)).collect())
    }

    /// Whether all these addresses are had by them, and by nobody else.
    #[track_caller]
    pub fn are_had(&self, addrs: &[IpAddr], owners: &[Mac]) -> bool {
        let owners: BTreeSet<_> = owners.iter().copied().collect();
        addrs.iter().all(|addr| self.who_has(*addr) == owners)
    }

    /// That now.
    #[track_caller]
    pub fn expect(&self, addr: IpAddr, owners: &[Mac]) {
        let owners: BTreeSet<_> = owners.iter().copied().collect();
        assert_eq!(self.who_has(addr), owners, "who has {addr}?");
    }

    fn question(&self, addr: IpAddr) -> io::Result<Vec<u8>> {
        let mut frame = Vec::new();
        let written = match addr {
            IpAddr::V4(addr) => {
                let packet = ArpPacket::new(
                    ArpHardwareId::ETHERNET,
                    EtherType::IPV4,
                    ArpOperation::REQUEST,
                    &self.mac,
                    &CLIENT_V4.octets(),
                    &[0; 6],
                    &addr.octets(),
                );
                PacketBuilder::ethernet2(self.mac, [0xff; 6])
                    .arp(packet.map_err(io::Error::other)?)
                    .write(&mut frame)
            }
            IpAddr::V6(addr) => {
                let [.., a, b, c] = addr.octets();
                let mut group = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 0];
                group[13..].copy_from_slice(&[a, b, c]);
                let payload = [&addr.octets()[..], &[1, 1], &self.mac].concat();
                PacketBuilder::ethernet2(self.mac, [0x33, 0x33, 0xff, a, b, c])
                    .ipv6(CLIENT_V6.octets(), group, 255)
                    .icmpv6_raw(135, 0, [0; 4])
                    .write(&mut frame, &payload)
            }
        };
        written.map_err(io::Error::other)?;
        Ok(frame)
    }

    /// What comes unasked about these addresses.
    #[track_caller]
    pub fn announcements(&self, addrs: &[IpAddr], time: Duration) -> Announcements {
        let mut all = Announcements::new();
        let end = Instant::now() + time;
        let is_one = |frame: &[u8]| {
            let is_to_all = frame[0] & 1 != 0;
            is_to_all && claim(frame).is_some_and(|addr| addrs.contains(&addr))
        };
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            let frame = self.wire.receive(left, is_one).expect("frames are read");
            let Some(frame) = frame else { break };
            let addr = claim(&frame).expect("it was wanted for that");
            let form = if addr.is_ipv4() { frame[21] } else { frame[54] };
            all.entry((addr, form)).or_default().push((sender(&frame), Instant::now()));
        }
        all
    }
}

/// The link-layer address of a host's [`UPLINK`].
#[track_caller]
pub fn mac(netns: &Netns) -> Mac {
    let links = netns.ip(&format!("-j link show {UPLINK}"));
    let links: Vec<Value> = serde_json::from_str(&links).expect("JSON");
    links[0]["address"].as_str().and_then(parse_mac).expect("a link-layer address")
}

fn sender(frame: &[u8]) -> Mac {
    frame[6..12].try_into().expect("six bytes")
}

/// The address of which a frame says where it is: an answer, or ARP from an address about itself.
fn claim(frame: &[u8]) -> Option<IpAddr> {
    match frame.get(12..14)? {
        [8, 6] => {
            let (from, to) = (frame.get(28..32)?, frame.get(38..42)?);
            let is_claim = frame[21] == 2 || from == to;
            let from: [u8; 4] = from.try_into().ok()?;
            is_claim.then_some(from.into())
        }
        [0x86, 0xdd] if frame.get(20) == Some(&58) && frame.get(54) == Some(&136) => {
            let target: [u8; 16] = frame.get(62..78)?.try_into().ok()?;
            Some(target.into())
        }
        _ => None,
    }
}
