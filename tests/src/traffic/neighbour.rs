//! A host that asks who has an address, and listens to those who say it unasked.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
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

/// Whose addresses a question has.
type Asker = (Ipv4Addr, Ipv6Addr);

const CLIENT: Asker = (CLIENT_V4, CLIENT_V6);
/// Nobody's.
const NOBODY: Asker = (Ipv4Addr::UNSPECIFIED, Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0xffff));

/// A host on the network of the nodes.
#[derive(Debug)]
pub struct Neighbour {
    asker: Asker,
    wire: Wire,
    mac: Mac,
}

impl Neighbour {
    /// The client of a cluster. From here on it hears everything.
    #[track_caller]
    pub fn new(client: &Netns) -> Self {
        Self::at(client, CLIENT)
    }

    /// Any host on the network of the nodes, which tells nobody anything by its questions.
    #[track_caller]
    pub fn unknown(host: &Netns) -> Self {
        Self::at(host, NOBODY)
    }

    #[track_caller]
    fn at(host: &Netns, asker: Asker) -> Self {
        let wire = host.run(|| Wire::open(UPLINK)).expect("a packet socket");
        Self { asker, wire, mac: mac(host) }
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
        let (v4, v6) = self.asker;
        let mut frame = Vec::new();
        let written = match addr {
            IpAddr::V4(addr) => {
                let packet = ArpPacket::new(
                    ArpHardwareId::ETHERNET,
                    EtherType::IPV4,
                    ArpOperation::REQUEST,
                    &self.mac,
                    &v4.octets(),
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
                    .ipv6(v6.octets(), group, 255)
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

/// A host that asks all the time who has some addresses, and notes each answer.
#[derive(Debug)]
pub struct RollCall {
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<io::Result<Answers>>,
}

/// Who answered, by address and in the order of time.
pub type Answers = BTreeMap<IpAddr, Vec<(Mac, Instant)>>;

/// Somebody who answered for an address, while nobody else did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reign {
    /// Who.
    pub mac: Mac,
    /// His first answer.
    pub from: Instant,
    /// His last one.
    pub to: Instant,
    /// How many.
    pub answers: u32,
}

impl RollCall {
    /// Asks for each of them this often, as [`Neighbour::unknown`].
    #[track_caller]
    pub fn start(host: &Netns, addrs: Vec<IpAddr>, every: Duration) -> Self {
        let neighbour = Neighbour::unknown(host);
        let is_over = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&is_over);
        let thread = host.spawn(move || {
            let mut answers = Answers::new();
            while !until.load(Ordering::Relaxed) {
                for addr in &addrs {
                    neighbour.wire.send(&neighbour.question(*addr)?)?;
                }
                let end = Instant::now() + every;
                let is_told = |frame: &[u8]| {
                    frame[..6] == neighbour.mac
                        && claim(frame).is_some_and(|addr| addrs.contains(&addr))
                };
                while let Some(left) = end.checked_duration_since(Instant::now())
                    && let Some(frame) = neighbour.wire.receive(left, is_told)?
                {
                    if let Some(addr) = claim(&frame) {
                        answers.entry(addr).or_default().push((sender(&frame), Instant::now()));
                    }
                }
            }
            Ok(answers)
        });
        Self { is_over, thread }
    }

    /// Ends it. Who answered for each address, one after the other: where two answer at the same time,
    /// many reigns are short.
    #[track_caller]
    pub fn stop(self) -> BTreeMap<IpAddr, Vec<Reign>> {
        self.is_over.store(true, Ordering::Relaxed);
        let answers = self.thread.join().expect("the thread does not panic");
        let answers = answers.expect("frames come and go");
        answers.into_iter().map(|(addr, answers)| (addr, reigns(&answers))).collect()
    }
}

fn reigns(answers: &[(Mac, Instant)]) -> Vec<Reign> {
    let mut reigns: Vec<Reign> = Vec::new();
    for &(mac, at) in answers {
        match reigns.last_mut() {
            Some(reign) if reign.mac == mac => {
                reign.to = at;
                reign.answers += 1;
            }
            _ => reigns.push(Reign { mac, from: at, to: at, answers: 1 }),
        }
    }
    reigns
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_answers_in_between_makes_three_reigns_of_one() {
        let start = Instant::now();
        let [one, other] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];
        let at = |mac, seconds| (mac, start + Duration::from_secs(seconds));
        let found = reigns(&[at(one, 0), at(one, 1), at(other, 2), at(one, 3)]);
        let reign = |mac, from, to, answers| {
            let [from, to] = [from, to].map(|seconds| start + Duration::from_secs(seconds));
            Reign { mac, from, to, answers }
        };
        assert_eq!(found, [reign(one, 0, 1, 2), reign(other, 2, 2, 1), reign(one, 3, 3, 1)]);
    }
}
