//! The protocol: SWIM with suspicion, by `foca`, tuned to notice a loss within a second.
//!
//! Pure: time and packets come in; packets, the time of the next timer and who is there come out.
//!
//! Every [`PROBE_EVERY`] a member asks one of the others, each once before any twice, and has three more ask
//! it when there is no answer. One that nobody gets an answer from is suspected, which it can refute for
//! [`SUSPECT_FOR`]; after that it is down. How many packets a member sends does not depend on how many
//! members there are.
//!
//! What is not foca's: who suspects somebody tells it so directly and asks again. Nobody is called down by a member that hears nothing from anybody, or that has just
//! slept: it is more likely that something is wrong with itself, and the word of one is believed by
//! all. And those who should be there but are not known are called on, never more than a few at a time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::num::{NonZeroU8, NonZeroUsize};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::BufMut as _;
use foca::{
    Codec as _, Config, Foca, Header, Member, Message, NoCustomBroadcast, Notification,
    OwnedNotification, PeriodicParams, Runtime, State, Timer,
};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::identity::{Identity, Wire};
use super::says::Says;
use super::seal::{LONGEST, OVERHEAD, Refused};

/// One other member is asked this often.
pub(super) const PROBE_EVERY: Duration = Duration::from_millis(50);
/// Without an answer for so long, others are asked to ask.
const ANSWER_WITHIN: Duration = Duration::from_millis(20);
/// Others that are asked to ask.
const HELPERS: usize = 3;
/// A suspicion can be refuted for so long. An agent that gets no processor for longer is called down,
/// and comes back by itself.
const SUSPECT_FOR: Duration = Duration::from_millis(400);
/// And for so long whoever suspects it asks it this often: by the grapevine of a thousand members it would
/// hear of it too late, and be heard too late.
const ASK_SUSPECT_EVERY: Duration = Duration::from_millis(80);
/// News are passed on this often, while there are any,
const GOSSIP_EVERY: Duration = Duration::from_millis(50);
/// to so many.
const GOSSIP_TO: usize = 3;
/// Each member passes a piece of news on so many times: as many arrive at each on average, so that of a
/// thousand members none misses it in a million cases.
const TELL: u8 = 20;
/// Those that are down are called on this often, so that a network that was cut grows together again.
const CALL_DOWN_EVERY: Duration = Duration::from_secs(1);
/// Somebody is asked for all members this often, in case that news were missed.
const COMPARE_EVERY: Duration = Duration::from_secs(5);
/// What is known of members that are down is forgotten after this time.
const FORGET_AFTER: Duration = Duration::from_secs(3_600);
/// Those who should be there and are not known are called on this often, [`CALLS`] at a time,
const CALL_EVERY: Duration = Duration::from_millis(100);
const CALLS: usize = 3;
/// after a look at no more than so many,
const CHECKS: usize = 64;
/// and each of them no more often than this.
const CALL_AGAIN: Duration = Duration::from_secs(5);
/// Who has heard nothing from anybody for so long may be deaf,
const DEAF_AFTER: Duration = Duration::from_millis(250);
/// and who is so late may have slept: either way it calls nobody down for this time.
const LATE: Duration = Duration::from_millis(150);
const DOUBT_SELF_FOR: Duration = Duration::from_secs(1);
/// Then it looks again this often whether it may.
const DOUBT_STEP: Duration = Duration::from_millis(50);

/// What the members say of one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Word {
    /// It answers.
    Alive,
    /// Somebody got no answer; it may refute that.
    Suspect,
    /// It did not, or it said goodbye.
    Down,
}

/// Somebody who is there, or was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    /// What the others say.
    pub word: Word,
    /// Where it hears.
    pub at: SocketAddr,
    /// What it says of itself, or said last.
    pub says: Says,
}

/// What happened.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct News {
    /// Nodes that came.
    pub up: Vec<Arc<str>>,
    /// Nodes that went.
    pub down: Vec<Arc<str>>,
}

/// A member of the cluster: this one.
pub(super) struct Swim {
    foca: Foca<Identity, Wire, StdRng, NoCustomBroadcast>,
    /// The latest epoch that others know of this member.
    latest: Arc<AtomicU64>,
    effects: Effects,
    timers: BTreeMap<(Instant, u64), Timer<Identity>>,
    /// Timers so far.
    count: u64,
    /// Where others should be.
    peers: BTreeSet<SocketAddr>,
    /// When to see whether they have to be called on.
    calls: BTreeSet<(Instant, SocketAddr)>,
    rng: StdRng,
    next_call: Option<Instant>,
    last_heard: Option<Instant>,
    /// Nobody is called down before.
    trust_self: Option<Instant>,
    /// Whom this member suspects, of which incarnation, and when to ask them (again).
    suspects: VecDeque<(Instant, Identity, u16)>,
    /// Writes what foca would not send.
    wire: Wire,
}

/// What foca wants.
#[derive(Default)]
struct Effects {
    packets: Vec<(SocketAddr, Vec<u8>)>,
    timers: Vec<(Duration, Timer<Identity>)>,
    notes: Vec<OwnedNotification<Identity>>,
}

impl Runtime<Identity> for Effects {
    fn notify(&mut self, note: Notification<'_, Identity>) {
        self.notes.push(note.to_owned());
    }

    fn send_to(&mut self, to: Identity, data: &[u8]) {
        self.packets.push((to.at, data.to_owned()));
    }

    fn submit_after(&mut self, timer: Timer<Identity>, after: Duration) {
        self.timers.push((after, timer));
    }
}

fn config() -> Config {
    let some = |count| NonZeroUsize::new(count).expect("not zero");
    let every = |frequency, count| Some(PeriodicParams { frequency, num_members: some(count) });
    Config {
        probe_period: PROBE_EVERY,
        probe_rtt: ANSWER_WITHIN,
        num_indirect_probes: some(HELPERS),
        max_transmissions: NonZeroU8::new(TELL).expect("not zero"),
        suspect_to_down_after: SUSPECT_FOR,
        remove_down_after: Some(FORGET_AFTER),
        max_packet_size: some(LONGEST - OVERHEAD),
        notify_down_members: true,
        periodic_announce: every(COMPARE_EVERY, 1),
        periodic_announce_to_down_members: every(CALL_DOWN_EVERY, 2),
        periodic_gossip: every(GOSSIP_EVERY, GOSSIP_TO),
    }
}

impl Swim {
    /// A member that knows nobody. `epoch` has to be greater than in its earlier lives; if it is not, the
    /// others say so.
    pub(super) fn new(node: &str, at: SocketAddr, epoch: u64, seed: u64) -> Self {
        let own = Identity::new(node, at, epoch);
        let latest = Arc::new(AtomicU64::new(epoch));
        let wire = Wire::new(own.clone(), Arc::clone(&latest));
        Self {
            foca: Foca::new(own, config(), StdRng::seed_from_u64(seed), wire),
            latest,
            effects: Effects::default(),
            timers: BTreeMap::new(),
            count: 0,
            peers: BTreeSet::new(),
            calls: BTreeSet::new(),
            rng: StdRng::seed_from_u64(!seed),
            next_call: None,
            last_heard: None,
            trust_self: None,
            suspects: VecDeque::new(),
            wire: Wire::new(Identity::new(node, at, epoch), Arc::default()),
        }
    }

    /// Where the others should be. Those who are there although they should not are left alone.
    pub(super) fn set_peers(&mut self, mut peers: BTreeSet<SocketAddr>, now: Instant) {
        peers.remove(&self.foca.identity().at);
        for new in peers.difference(&self.peers) {
            // Agents that are started together must not all call on the same ones first.
            let chance = Duration::from_micros(self.rng.random_range(0..1_000));
            self.calls.insert((now + chance, *new));
        }
        self.calls.retain(|(_, at)| peers.contains(at));
        self.peers = peers;
        self.next_call = self.calls.first().map(|(due, _)| *due);
    }

    /// Takes a payload that somebody with the key has sent.
    pub(super) fn receive(&mut self, now: Instant, payload: &[u8]) -> Result<(), Refused> {
        self.last_heard = Some(now);
        self.answer_for_earlier_life(payload);
        let taken = self.foca.handle_data(payload, &mut self.effects);
        let latest = self.latest.load(Ordering::Relaxed);
        let own = self.foca.identity();
        if latest > own.epoch {
            // The predecessor's clock was ahead: nobody listens to a life that was before it.
            let later = own.in_epoch(latest + 1);
            // The only error is that it is the same.
            let _ = self.foca.change_identity(later, &mut self.effects);
        }
        self.settle(now);
        taken.map_err(|error| {
            tracing::debug!(%error, "a packet of a member");
            Refused::Content
        })
    }

    /// Somebody may speak to an earlier life of this member, because what he heard last of it was long on its
    /// way. Foca does not listen to that. He would miss an answer, and call this member down.
    fn answer_for_earlier_life(&mut self, payload: &[u8]) {
        // Foca says what is wrong with it.
        let Ok(Header { src, dst, message, .. }) = self.wire.decode_header(payload) else { return };
        // Foca listens to that, whatever life it is for.
        if message == Message::Announce {
            return;
        }
        if dst.is_earlier_life_of(self.foca.identity())
            && let Err(error) = self.foca.announce(src, &mut self.effects)
        {
            tracing::debug!(%error, "answering for an earlier life");
        }
    }

    /// When [`Self::tick`] has to be called.
    pub(super) fn due(&self) -> Option<Instant> {
        let first = self.timers.first_key_value().map(|((due, _), _)| *due);
        let suspect = self.suspects.front().map(|(due, ..)| *due);
        first.into_iter().chain(self.next_call).chain(suspect).min()
    }

    /// Does what is due. What was received has to be taken first: it may be an answer.
    pub(super) fn tick(&mut self, now: Instant) {
        if self.due().is_some_and(|due| now.saturating_duration_since(due) > LATE) {
            self.trust_self = Some(now + SUSPECT_FOR);
        }
        while let Some(entry) = self.timers.first_entry()
            && entry.key().0 <= now
        {
            let timer = entry.remove();
            if matches!(timer, Timer::ChangeSuspectToDown { .. }) && self.doubts_itself(now) {
                self.schedule(now + DOUBT_STEP, timer);
                continue;
            }
            let is_verdict = matches!(timer, Timer::ChangeSuspectToDown { .. });
            let packets = self.effects.packets.len();
            if let Err(error) = self.foca.handle_timer(timer, &mut self.effects) {
                // A probe that came late; foca begins another one.
                tracing::debug!(%error, "a timer of the membership protocol");
            }
            if is_verdict {
                // Foca tells it, also if it has refuted the suspicion, or has been fine all along and it is
                // this member that is deaf. It would believe that and begin another life. If it is there,
                // it learns when it speaks.
                self.effects.packets.truncate(packets);
            }
            self.settle(now);
        }
        while self.suspects.front().is_some_and(|(due, ..)| *due <= now) {
            let Some((_, id, incarnation)) = self.suspects.pop_front() else { break };
            self.ask_suspect(now, id, incarnation);
        }
        if self.next_call.is_some_and(|due| due <= now) {
            self.call(now);
            self.settle(now);
        }
    }

    /// Whether what looks like the others' silence may be this member's own fault.
    fn doubts_itself(&self, now: Instant) -> bool {
        if self.trust_self.is_some_and(|then| now < then) {
            return true;
        }
        // Of two, one cannot tell.
        self.foca.num_members() >= 2
            && self
                .silence(now)
                .is_some_and(|it| (DEAF_AFTER..DEAF_AFTER + DOUBT_SELF_FOR).contains(&it))
    }

    /// For how long nothing has come from anybody, if something ever has.
    fn silence(&self, now: Instant) -> Option<Duration> {
        self.last_heard.map(|heard| now.saturating_duration_since(heard))
    }

    /// Asks somebody whom this member suspects, and says so: its answer refutes that.
    fn ask_suspect(&mut self, now: Instant, id: Identity, incarnation: u16) {
        let suspicion = Member::new(id.clone(), incarnation, State::Suspect);
        if !self.foca.iter_members().any(|member| *member == suspicion) {
            return;
        }
        let header = Header {
            src: self.foca.identity().clone(),
            // Whoever knows a higher one keeps it.
            src_incarnation: 0,
            dst: id.clone(),
            // Its answer need not be the one that a probe waits for.
            message: Message::Ping(0),
        };
        let mut packet = Vec::new();
        let written = self.wire.encode_header(&header, &mut packet).and_then(|()| {
            packet.put_u16(1);
            self.wire.encode_member(&suspicion, &mut packet)
        });
        if written.is_ok() {
            self.effects.packets.push((id.at, packet));
        }
        self.suspects.push_back((now + ASK_SUSPECT_EVERY, id, incarnation));
    }

    /// Calls on some who should be there and are not known.
    fn call(&mut self, now: Instant) {
        let mut left = CALLS;
        for _ in 0..CHECKS {
            let due = self.calls.first().copied().filter(|(due, _)| left > 0 && *due <= now);
            let Some((due, at)) = due else { break };
            self.calls.remove(&(due, at));
            self.calls.insert((now + CALL_AGAIN, at));
            if self.foca.iter_members().any(|member| member.id().at == at) {
                continue;
            }
            left -= 1;
            if let Err(error) = self.foca.announce(Identity::anybody(at), &mut self.effects) {
                tracing::debug!(%error, "calling on {at}");
            }
        }
        self.next_call = self.calls.first().map(|(due, _)| (*due).max(now + CALL_EVERY));
    }

    /// Says this of itself from now on.
    pub(super) fn say(&mut self, now: Instant, says: Says) {
        let own = self.foca.identity();
        if own.says == says {
            return;
        }
        let other = own.saying(says);
        // The only error is that it is the same.
        let _ = self.foca.change_identity(other, &mut self.effects);
        // Foca would not speak again before it is spoken to by its new name, which nobody may have heard.
        let _ = self.foca.apply_many(std::iter::empty(), false, &mut self.effects);
        self.settle(now);
    }

    /// Says goodbye. Who goes without that was lost.
    pub(super) fn leave(&mut self, now: Instant) {
        self.say(now, Says { is_leaving: true, ..self.foca.identity().says });
        if let Err(error) = self.foca.leave_cluster(&mut self.effects) {
            tracing::debug!(%error, "leaving");
        }
        self.timers.clear();
        self.suspects.clear();
        self.next_call = None;
    }

    /// What is to be sent.
    pub(super) fn packets(&mut self) -> Vec<(SocketAddr, Vec<u8>)> {
        std::mem::take(&mut self.effects.packets)
    }

    /// What happened since the last call, if anything.
    pub(super) fn news(&mut self) -> Option<News> {
        let notes = std::mem::take(&mut self.effects.notes);
        if notes.is_empty() {
            return None;
        }
        let mut news = News::default();
        for note in notes {
            match note {
                OwnedNotification::MemberUp(member) => news.up.push(member.node),
                OwnedNotification::MemberDown(member) => news.down.push(member.node),
                _ => {}
            }
        }
        Some(news)
    }

    /// Knows these without having met them.
    #[cfg(test)]
    pub(super) fn acquaint(&mut self, others: &[(String, SocketAddr, u64)], now: Instant) {
        let others = others.iter();
        let others = others.map(|(node, at, epoch)| Identity::new(node, *at, *epoch));
        let others: Vec<_> = others.map(Member::alive).collect();
        let taken = self.foca.apply_many(others.into_iter(), false, &mut self.effects);
        taken.expect("they are fine");
        self.settle(now);
    }

    /// The others, by the names of their nodes.
    pub(super) fn seen(&self) -> BTreeMap<Arc<str>, Seen> {
        let one = |member: &Member<Identity>| {
            let word = match member.state() {
                State::Alive => Word::Alive,
                State::Suspect => Word::Suspect,
                State::Down => Word::Down,
            };
            let Identity { node, at, says, .. } = member.id();
            (Arc::clone(node), Seen { word, at: *at, says: *says })
        };
        self.foca.iter_membership_state().map(one).collect()
    }

    /// How many others there are.
    #[cfg(test)]
    pub(super) fn others(&self) -> usize {
        self.foca.num_members()
    }

    /// This life.
    pub(super) fn epoch(&self) -> u64 {
        self.foca.identity().epoch
    }

    fn settle(&mut self, now: Instant) {
        for (after, timer) in std::mem::take(&mut self.effects.timers) {
            if let Timer::ProbeRandomMember(current) = &timer {
                // Foca would forget whom this member suspects when it begins another life, and so for ever.
                for pending in self.timers.values_mut() {
                    if let Timer::ChangeSuspectToDown { token, .. } = pending {
                        *token = *current;
                    }
                }
            }
            if let Timer::ChangeSuspectToDown { member_id, incarnation, .. } = &timer {
                self.suspects.push_front((now, member_id.clone(), *incarnation));
            }
            self.schedule(now + after, timer);
        }
    }

    fn schedule(&mut self, due: Instant, timer: Timer<Identity>) {
        self.count += 1;
        self.timers.insert((due, self.count), timer);
    }
}
