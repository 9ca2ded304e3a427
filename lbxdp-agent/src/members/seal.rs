//! Packets that only holders of the key can make, each of which is believed once.
//!
//! | bytes | |
//! |---|---|
//! | 1 | version of this layout, [`VERSION`] |
//! | 1 | 0: a greeting, 1: it has a payload |
//! | 8 | session of the sender |
//! | 8 | session of the receiver, as the sender knows it; 0 if it does not |
//! | 8 | number of the packet in the sender's session |
//! | … | payload |
//! | 16 | first half of HMAC-SHA256 over all of the above |
//!
//! All numbers are in network byte order. A session is a random number that an agent chooses at its start.
//!
//! Clocks of nodes may differ, so none is asked. A packet that names the receiver's session was made
//! after the receiver started, and its number says whether it came before: no packet has an effect
//! twice, not after a restart either. Whoever does not know the other's session asks by a greeting, and
//! whoever is called by a wrong one answers with a greeting. Greetings are as short as packets get, so that
//! nobody can have much sent to anybody else.
//!
//! Names and addresses of nodes are not secret, so nothing is encrypted.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

/// Of the layout of packets. Another one is refused.
pub(super) const VERSION: u8 = 1;
/// What a sealed packet is longer than its payload.
pub(super) const OVERHEAD: usize = HEADER + TAG;
/// Longest sealed packet: what IPv6 carries everywhere without fragments (1280), without its header and
/// that of UDP.
pub(super) const LONGEST: usize = 1_232;

const HEADER: usize = 26;
const TAG: usize = 16;
const GREETING: u8 = 0;
const PAYLOAD: u8 = 1;
/// Payloads that wait for a greeting; older ones are given up, as if the network had lost them.
const WAITING: usize = 4;
/// Sessions and addresses that are remembered.
const REMEMBERED: usize = 4_096;

/// Why a packet has no effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refused {
    /// Shorter or longer than packets are.
    Length,
    /// Of another layout.
    Version,
    /// Not made with the key.
    Key,
    /// It was here before, or is too late to tell.
    Replay,
    /// Made for an earlier life of this agent: usual after a restart, once for each peer.
    Session,
    /// Made with the key, but it says nothing that makes sense.
    Content,
}

impl Refused {
    /// Every reason.
    pub const ALL: [Self; 6] =
        [Self::Length, Self::Version, Self::Key, Self::Replay, Self::Session, Self::Content];

    /// As a label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Length => "length",
            Self::Version => "version",
            Self::Key => "key",
            Self::Replay => "replay",
            Self::Session => "session",
            Self::Content => "content",
        }
    }
}

/// A packet and where it is to go.
pub(super) type Outgoing = (SocketAddr, Vec<u8>);

/// What came of a packet.
#[derive(Debug)]
pub(super) struct Opened {
    /// The payload, or why there is none; a greeting that is right is `Ok(None)`.
    pub payload: Result<Option<Vec<u8>>, Refused>,
    /// What is to be sent because of it.
    pub answers: Vec<Outgoing>,
}

/// Seals and opens.
#[derive(Debug)]
pub(super) struct Seal {
    mac: Hmac<Sha256>,
    session: u64,
    /// Number of the next packet.
    next: u64,
    peers: BTreeMap<SocketAddr, Peer>,
    /// What came from each session.
    windows: BTreeMap<u64, Window>,
    /// Packets opened so far: what is oldest is forgotten first.
    opened: u64,
}

/// Somebody at an address.
#[derive(Debug, Default)]
struct Peer {
    session: Option<u64>,
    waiting: VecDeque<Vec<u8>>,
}

impl Seal {
    /// `session` must not be guessable, and not 0.
    pub(super) fn new(key: &[u8], session: u64) -> Self {
        assert_ne!(session, 0, "0 is nobody's");
        let mac = Hmac::new_from_slice(key).expect("a key of any length will do");
        Self { mac, session, next: 1, peers: BTreeMap::new(), windows: BTreeMap::new(), opened: 0 }
    }

    /// What to send so that `payload` arrives at `to`. It may have to wait for a greeting, of which two are
    /// sent: a first contact should not be lost more often than others.
    pub(super) fn seal(&mut self, to: SocketAddr, payload: &[u8]) -> Vec<Outgoing> {
        debug_assert!(payload.len() + OVERHEAD <= LONGEST);
        let peer = self.peer(to);
        let Some(session) = peer.session else {
            if peer.waiting.len() == WAITING {
                peer.waiting.pop_front();
            }
            peer.waiting.push_back(payload.to_owned());
            return (0..2).map(|_| (to, self.packet(GREETING, 0, &[]))).collect();
        };
        vec![(to, self.packet(PAYLOAD, session, payload))]
    }

    /// Has greeted each other already.
    #[cfg(test)]
    pub(super) fn meet(&mut self, at: SocketAddr, session: u64) {
        self.peer(at).session = Some(session);
    }

    /// What a packet says, and what to send for it.
    pub(super) fn open(&mut self, from: SocketAddr, packet: &[u8]) -> Opened {
        let mut answers = Vec::new();
        let payload = self.look(from, packet, &mut answers);
        Opened { payload, answers }
    }

    fn look(
        &mut self,
        from: SocketAddr,
        packet: &[u8],
        answers: &mut Vec<Outgoing>,
    ) -> Result<Option<Vec<u8>>, Refused> {
        if !(OVERHEAD..=LONGEST).contains(&packet.len()) {
            return Err(Refused::Length);
        }
        if packet[0] != VERSION {
            return Err(Refused::Version);
        }
        let (signed, tag) = packet.split_at(packet.len() - TAG);
        let mac = self.mac.clone().chain_update(signed);
        mac.verify_truncated_left(tag).map_err(|_| Refused::Key)?;
        let kind = packet[1];
        let number =
            |at: usize| u64::from_be_bytes(packet[at..at + 8].try_into().expect("8 bytes"));
        let (theirs, ours, count) = (number(2), number(10), number(18));
        if theirs == self.session || theirs == 0 {
            // Somebody plays back what this agent said.
            return Err(Refused::Replay);
        }
        if ours != self.session {
            // Nobody knows how old it is, so it changes nothing here.
            answers.push((from, self.packet(GREETING, theirs, &[])));
            return if kind == GREETING && ours == 0 { Ok(None) } else { Err(Refused::Session) };
        }
        self.opened += 1;
        let opened = self.opened;
        if !self.window(theirs).accept(count, opened) {
            return Err(Refused::Replay);
        }
        let peer = self.peer(from);
        peer.session = Some(theirs);
        for waiting in std::mem::take(&mut peer.waiting) {
            answers.push((from, self.packet(PAYLOAD, theirs, &waiting)));
        }
        match kind {
            GREETING => Ok(None),
            PAYLOAD => Ok(Some(signed[HEADER..].to_owned())),
            _ => Err(Refused::Content),
        }
    }

    fn packet(&mut self, kind: u8, session: u64, payload: &[u8]) -> Vec<u8> {
        let mut packet = Vec::with_capacity(OVERHEAD + payload.len());
        packet.extend([VERSION, kind]);
        for number in [self.session, session, self.next] {
            packet.extend(number.to_be_bytes());
        }
        self.next += 1;
        packet.extend(payload);
        let tag = self.mac.clone().chain_update(&packet).finalize().into_bytes();
        packet.extend(&tag[..TAG]);
        packet
    }

    fn peer(&mut self, at: SocketAddr) -> &mut Peer {
        if self.peers.len() >= REMEMBERED && !self.peers.contains_key(&at) {
            // Whoever is forgotten is greeted again.
            self.peers.clear();
        }
        self.peers.entry(at).or_default()
    }

    fn window(&mut self, session: u64) -> &mut Window {
        if self.windows.len() >= REMEMBERED && !self.windows.contains_key(&session) {
            let oldest = self.windows.iter().min_by_key(|(_, window)| window.used);
            if let Some(oldest) = oldest.map(|(session, _)| *session) {
                self.windows.remove(&oldest);
            }
        }
        self.windows.entry(session).or_default()
    }
}

/// Which packets of a session have come: the highest number, and those just below it. Others of the
/// session go to others, so the numbers that come have gaps.
#[derive(Debug, Default)]
struct Window {
    highest: u64,
    /// Bit n: `highest - n` has come.
    come: u128,
    used: u64,
}

impl Window {
    fn accept(&mut self, number: u64, now: u64) -> bool {
        let bits = u64::from(u128::BITS);
        if number > self.highest {
            let ahead = number - self.highest;
            self.come = if ahead < bits { self.come << ahead } else { 0 } | 1;
            self.highest = number;
        } else {
            let behind = self.highest - number;
            if behind >= bits || self.come & (1 << behind) != 0 {
                return false;
            }
            self.come |= 1 << behind;
        }
        self.used = now;
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: &[u8] = b"a key of sixteen bytes or more";

    fn at(last: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, last], 10_470))
    }

    fn sealed(a: &mut Seal, payload: &[u8]) -> Vec<u8> {
        a.seal(at(2), payload).remove(0).1
    }

    fn two() -> (Seal, Seal) {
        (Seal::new(KEY, 11), Seal::new(KEY, 22))
    }

    /// Lets a send to b, greetings included; what b understood, and every packet that flew.
    fn send(a: &mut Seal, b: &mut Seal, payload: &[u8]) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
        let (mut understood, mut flown) = (Vec::new(), Vec::new());
        let mut to_b: Vec<_> =
            a.seal(at(2), payload).into_iter().map(|(_, packet)| packet).collect();
        while let Some(packet) = to_b.pop() {
            let opened = b.open(at(1), &packet);
            understood.extend(opened.payload.ok().flatten());
            flown.push(packet);
            for (_, answer) in opened.answers {
                let opened = a.open(at(2), &answer);
                flown.push(answer);
                to_b.extend(opened.answers.into_iter().map(|(_, packet)| packet));
            }
        }
        (understood, flown)
    }

    #[test]
    fn strangers_greet_each_other_and_then_talk() {
        let (mut a, mut b) = two();
        let (understood, flown) = send(&mut a, &mut b, b"hello");
        assert_eq!(understood, [b"hello"]);
        assert_eq!(flown.len(), 5, "asked and answered twice, said once");
        for _ in 0..300 {
            let (understood, flown) = send(&mut a, &mut b, b"again");
            assert_eq!((understood.len(), flown.len()), (1, 1));
        }
        assert_eq!(send(&mut b, &mut a, b"and back").0, [b"and back"]);
    }

    #[test]
    fn whoever_was_started_again_is_greeted_and_hears_nothing_old() {
        let (mut a, mut b) = two();
        let (_, old) = send(&mut a, &mut b, b"one");
        let mut b = Seal::new(KEY, 23);
        for packet in old {
            assert!(b.open(at(1), &packet).payload.is_err() || packet.len() == OVERHEAD);
        }
        // The first one after the restart is lost, as if the network had lost it.
        assert!(send(&mut a, &mut b, b"two").0.is_empty());
        assert_eq!(send(&mut a, &mut b, b"three").0, [b"three"]);
    }

    #[test]
    fn nothing_is_heard_twice_whoever_sends_it() {
        let (mut a, mut b) = two();
        let mut all = Vec::new();
        for _ in 0..5 {
            all.extend(send(&mut a, &mut b, b"once").1);
        }
        // The sender is started again, too: its old session is not forgotten.
        let mut a = Seal::new(KEY, 12);
        all.extend(send(&mut a, &mut b, b"anew").1);
        for packet in all {
            for from in [at(1), at(3)] {
                let heard = b.open(from, &packet).payload;
                let is_question = packet[1] == GREETING && packet[10..18] == [0; 8];
                assert!(if is_question {
                    heard == Ok(None)
                } else {
                    heard == Err(Refused::Replay)
                });
                // Its own words are not news either.
                assert!(!matches!(a.open(from, &packet).payload, Ok(Some(_))));
            }
        }
        assert_eq!(send(&mut a, &mut b, b"still").0, [b"still"]);
    }

    #[test]
    fn other_keys_versions_and_lengths_are_refused() {
        let (mut a, mut b) = two();
        send(&mut a, &mut b, b"one");
        let good = sealed(&mut a, b"two");
        let mut other = Seal::new(b"another key of sixteen bytes", 33);
        let mut newer = good.clone();
        newer[0] += 1;
        let long = vec![VERSION; LONGEST + 1];
        for (packet, reason) in [
            (sealed(&mut other, b"x"), Refused::Key),
            (newer, Refused::Version),
            (good[..OVERHEAD - 1].to_owned(), Refused::Length),
            (good[..good.len() - 1].to_owned(), Refused::Key),
            (long, Refused::Length),
            (Vec::new(), Refused::Length),
        ] {
            let opened = b.open(at(9), &packet);
            assert_eq!(opened.payload, Err(reason));
            assert!(opened.answers.is_empty(), "{reason:?} is not worth an answer");
        }
        assert_eq!(b.open(at(1), &good).payload, Ok(Some(b"two".to_vec())));
    }

    #[test]
    fn no_packet_is_longer_than_every_network_takes_and_answers_are_short() {
        let (mut a, mut b) = two();
        let longest = vec![7; LONGEST - OVERHEAD];
        let (understood, flown) = send(&mut a, &mut b, &longest);
        assert_eq!(understood, [longest]);
        assert!(flown.iter().all(|packet| packet.len() <= LONGEST));
        let asked = sealed(&mut Seal::new(KEY, 44), b"x");
        let answers = b.open(at(1), &asked).answers;
        assert!(answers.len() == 1 && answers[0].1.len() <= asked.len());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (_, mut b) = two();
        for session in 100..100 + 2 * REMEMBERED as u64 {
            let mut a = Seal::new(KEY, session);
            send(&mut a, &mut b, b"x");
        }
        assert!(b.windows.len() <= REMEMBERED && b.peers.len() <= REMEMBERED);
    }

    proptest! {
        #[test]
        fn a_changed_packet_is_refused(byte in 0..OVERHEAD + 5, bit in 0_u8..8) {
            let (mut a, mut b) = two();
            send(&mut a, &mut b, b"one");
            let mut packet = sealed(&mut a, b"hello");
            packet[byte] ^= 1 << bit;
            prop_assert!(b.open(at(1), &packet).payload.is_err());
        }

        #[test]
        fn a_window_accepts_each_number_once(numbers in proptest::collection::vec(1_u64..400, 1..200)) {
            let mut window = Window::default();
            let mut accepted = std::collections::BTreeSet::new();
            for number in numbers {
                let highest = accepted.last().copied().unwrap_or(0);
                let is_new = !accepted.contains(&number) && number + 128 > highest;
                prop_assert_eq!(window.accept(number, 0), is_new);
                if is_new {
                    accepted.insert(number);
                }
            }
        }
    }
}
