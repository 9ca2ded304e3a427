//! How an address goes from one node that lives to another: pure.
//!
//! The next owner asks who has the address, announces it, asks again, and answers for it once nobody says any
//! more that he has it; the one that had it answers until it hears the announcement and knows why. So there is
//! always somebody to whom frames may go, and never two who answer, whatever they believe of each other. Where
//! frames of one of them are not heard, two may answer for [`PATIENCE`]. Who had it is known by then: what
//! connections that began there send is handed back to it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use crate::apply::announced::Entry;

/// For so long an address is kept for want of a word from the next owner.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);
/// Whoever has the address says so within this time after the first question; then it is announced.
const ANNOUNCE_AFTER: Duration = Duration::from_millis(20);
/// A new owner answers when for so long after its first announcement nobody else has said that he has the
/// address,
const ANSWER_AFTER: Duration = Duration::from_millis(200);
/// and until then it asks this often (RFC 5227, 2.1.1; RFC 4862, 5.4).
const ASK_EVERY: Duration = Duration::from_millis(70);
/// What was claimed before this node had learned why counts for so long.
const CLAIM_COUNTS: Duration = Duration::from_secs(5);

/// What fails while somebody else has what is to be answered for from here.
pub(super) const TAKING_OVER: &str = "taking over addresses";

/// Addresses that come and go. Times are since any moment that stays the same.
#[derive(Debug, Default)]
pub(super) struct Handover {
    /// What goes, and until when it is kept at the most.
    going: BTreeMap<Entry, Duration>,
    /// What comes.
    coming: BTreeMap<Entry, Coming>,
    /// What others have announced, and when.
    claimed: BTreeMap<IpAddr, Duration>,
}

/// Something that is to be answered for.
#[derive(Clone, Copy, Debug)]
struct Coming {
    since: Duration,
    /// When it is announced.
    announce: Duration,
    /// When it is answered for.
    due: Duration,
    /// When to ask who has it.
    ask: Duration,
    /// Who said last that he has it,
    holder: Option<Mac>,
    /// and whether he did after it was announced from here.
    is_held: bool,
}

/// What is answered for from now on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Taken {
    /// With the one who had it.
    pub entries: BTreeMap<Entry, Option<Mac>>,
    /// Those of them that he said to have after they were announced from here: the network may have heard
    /// that last.
    pub anew: BTreeSet<Entry>,
}

/// A link-layer address.
type Mac = [u8; 6];

/// How often something went to somebody else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Gone {
    /// Because the next owner was heard.
    pub announced: u64,
    /// For want of patience.
    pub waited: u64,
}

impl Handover {
    /// Somebody else has announced an address, or said when asked that he has it. Whether that changes what is
    /// to be done now.
    pub(super) fn hear(&mut self, addr: IpAddr, holder: Mac, now: Duration) -> bool {
        self.claimed.retain(|_, at| now < *at + CLAIM_COUNTS);
        self.claimed.insert(addr, now);
        let mut is_news = false;
        for (_, coming) in self.coming.iter_mut().filter(|(entry, _)| entry.0 == addr) {
            coming.due = now + ANSWER_AFTER;
            coming.is_held |= coming.announce <= now;
            coming.announce = coming.announce.min(now);
            is_news |= coming.holder.replace(holder) != Some(holder);
        }
        is_news || self.is_going()
    }

    /// These are answered for as yet, and another node is to do it. Which of them stay a while longer.
    pub(super) fn keep(
        &mut self,
        going: BTreeSet<Entry>,
        now: Duration,
    ) -> (BTreeSet<Entry>, Gone) {
        self.going.retain(|entry, _| going.contains(entry));
        let mut gone = Gone::default();
        for entry in going {
            let until = *self.going.entry(entry).or_insert(now + PATIENCE);
            if self.claimed.get(&entry.0).is_some_and(|at| now < *at + CLAIM_COUNTS) {
                gone.announced += 1;
            } else if until <= now {
                gone.waited += 1;
            } else {
                continue;
            }
            self.going.remove(&entry);
        }
        (self.going.keys().copied().collect(), gone)
    }

    /// These are to be answered for from here, and are not yet. Which of them at once: all, if there is nobody
    /// else who may answer.
    pub(super) fn take(
        &mut self,
        coming: BTreeSet<Entry>,
        are_others: bool,
        now: Duration,
    ) -> Taken {
        self.coming.retain(|entry, _| coming.contains(entry));
        let [announce, due] =
            if are_others { [ANNOUNCE_AFTER, ANSWER_AFTER] } else { [Duration::ZERO; 2] };
        for entry in coming {
            if self.coming.contains_key(&entry) {
                continue;
            }
            // Who had it until now said so.
            self.claimed.remove(&entry.0);
            let new = Coming {
                since: now,
                announce: now + announce,
                due: now + due,
                ask: now,
                holder: None,
                is_held: false,
            };
            self.coming.insert(entry, new);
        }
        let due = self.coming.iter().filter(|(_, coming)| coming.due <= now);
        let anew = due.clone().filter(|(_, coming)| coming.is_held);
        let anew = anew.map(|(entry, _)| *entry).collect();
        Taken { entries: due.map(|(entry, coming)| (*entry, coming.holder)).collect(), anew }
    }

    /// What comes and somebody else has, and who that is.
    pub(super) fn holders(&self) -> BTreeMap<Entry, Mac> {
        self.coming.iter().filter_map(|(entry, coming)| Some((*entry, coming.holder?))).collect()
    }

    /// What comes and is announced already.
    pub(super) fn is_announced(&self, entry: &Entry, now: Duration) -> bool {
        self.coming.get(entry).is_some_and(|coming| coming.announce <= now)
    }

    /// Those of which to ask now who has them.
    pub(super) fn ask(&mut self, now: Duration) -> Vec<Entry> {
        let due = self.coming.iter_mut().filter(|(_, it)| it.ask <= now && now < it.due);
        let due = due.map(|(entry, coming)| {
            coming.ask = now + ASK_EVERY;
            *entry
        });
        due.collect()
    }

    /// Something that somebody else has had for long although it is to be answered for from here, and who.
    pub(super) fn held(&self, now: Duration) -> Option<(IpAddr, Mac)> {
        let mut coming = self.coming.iter();
        coming.find_map(|((addr, _), it)| {
            let is_long = it.is_held && it.since + PATIENCE <= now && now < it.due;
            it.holder.filter(|_| is_long).map(|mac| (*addr, mac))
        })
    }

    /// Whether something waits until nobody else has it.
    pub(super) fn is_coming(&self) -> bool {
        !self.coming.is_empty()
    }

    /// Whether this one does.
    pub(super) fn concerns(&self, addr: IpAddr) -> bool {
        self.coming.keys().any(|entry| entry.0 == addr)
    }

    /// Whether something waits for the next owner.
    pub(super) fn is_going(&self) -> bool {
        !self.going.is_empty()
    }

    /// When to look again.
    pub(super) fn next(&self, now: Duration) -> Option<Duration> {
        let coming = self.coming.values().flat_map(|coming| [coming.announce, coming.due]);
        self.going.values().copied().chain(coming).filter(|due| *due > now).min()
    }

    /// When to ask next.
    pub(super) fn next_question(&self) -> Option<Duration> {
        self.coming.values().filter(|it| it.ask < it.due).map(|coming| coming.ask).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Entry = (IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)), 7);
    const B: Entry = (IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2)), 7);
    const MAC: Mac = [2, 0, 0, 0, 0, 9];

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn what_goes_is_kept_until_the_next_owner_is_heard_or_patience_ends() {
        let mut handover = Handover::default();
        let both = BTreeSet::from([A, B]);
        assert_eq!(handover.keep(both.clone(), at(0)), (both.clone(), Gone::default()));
        assert_eq!(handover.next(at(0)), Some(PATIENCE));
        handover.hear(A.0, MAC, at(150));
        let gone = Gone { announced: 1, waited: 0 };
        assert_eq!(handover.keep(both, at(150)), ([B].into(), gone));
        assert!(handover.is_going());
        let gone = Gone { announced: 0, waited: 1 };
        assert_eq!(handover.keep([B].into(), PATIENCE), ([].into(), gone));
        assert!(!handover.is_going());
    }

    #[test]
    fn a_claim_may_come_before_the_reason_for_it_but_not_long_before() {
        let mut handover = Handover::default();
        handover.hear(A.0, MAC, at(0));
        assert!(handover.keep([A].into(), at(1_000)).0.is_empty());
        let mut handover = Handover::default();
        handover.hear(A.0, MAC, at(0));
        assert_eq!(handover.keep([A].into(), CLAIM_COUNTS).0, [A].into());
        // Nor one from before this node had the address.
        let mut handover = Handover::default();
        handover.hear(A.0, MAC, at(0));
        handover.take([A].into(), true, at(100));
        assert_eq!(handover.keep([A].into(), at(1_000)).0, [A].into());
    }

    /// What is answered for at this time.
    fn taken(handover: &mut Handover, coming: &[Entry], now: Duration) -> BTreeSet<Entry> {
        let taken = handover.take(coming.iter().copied().collect(), true, now).entries;
        taken.into_keys().collect()
    }

    #[test]
    fn what_comes_is_answered_for_once_the_others_have_heard() {
        let mut handover = Handover::default();
        assert!(taken(&mut handover, &[A], at(0)).is_empty());
        assert!(!handover.is_announced(&A, at(19)) && handover.is_announced(&A, at(20)));
        assert_eq!(handover.next(at(0)), Some(ANNOUNCE_AFTER));
        assert_eq!(handover.next(at(20)), Some(ANSWER_AFTER));
        // Another one does not make it wait longer.
        assert!(taken(&mut handover, &[A, B], at(50)).is_empty());
        assert_eq!(taken(&mut handover, &[A, B], ANSWER_AFTER), [A].into());
        assert_eq!(taken(&mut handover, &[B], at(250)), [B].into());
        assert!(taken(&mut handover, &[], at(250)).is_empty());
        assert_eq!(handover.next(at(250)), None);
        // Who is alone waits for nobody.
        let alone = handover.take([A].into(), false, at(300));
        assert_eq!(alone, Taken { entries: [(A, None)].into(), anew: BTreeSet::new() });
        assert_eq!(handover.next_question(), None);
    }

    #[test]
    fn what_somebody_has_is_not_answered_for_before_he_is_silent() {
        let mut handover = Handover::default();
        assert!(taken(&mut handover, &[A, B], at(0)).is_empty());
        let mut now = at(0);
        // He says so for as long as he is asked, and the other address does not wait for that.
        for _ in 0..50 {
            now = handover.next_question().unwrap();
            assert!(handover.ask(now).contains(&A));
            handover.hear(A.0, MAC, now);
            assert!(!taken(&mut handover, &[A, B], now).contains(&A));
        }
        assert_eq!(handover.held(now), Some((A.0, MAC)));
        assert!(taken(&mut handover, &[A, B], now).contains(&B));
        let end = now + ANSWER_AFTER;
        assert!(taken(&mut handover, &[A], end - at(1)).is_empty());
        // It has to be announced once more, unlike what nobody had.
        let last = handover.take([A].into(), true, end);
        assert_eq!(last, Taken { entries: [(A, Some(MAC))].into(), anew: [A].into() });
        assert_eq!(handover.held(end), None);
        assert!(handover.ask(end).is_empty());
    }

    #[test]
    fn who_takes_an_address_asks_before_and_twice_after_it_is_announced() {
        let mut handover = Handover::default();
        handover.take([A].into(), true, at(0));
        let mut asked = Vec::new();
        while let Some(now) = handover.next_question() {
            assert_eq!(handover.ask(now), [A]);
            asked.push(now);
        }
        assert_eq!(asked, [at(0), at(70), at(140)]);
        assert_eq!(handover.held(at(150)), None);
    }

    #[test]
    fn an_address_is_announced_when_it_is_known_who_had_it() {
        let mut handover = Handover::default();
        handover.take([A, B].into(), true, at(0));
        assert!(handover.hear(A.0, MAC, at(1)));
        assert!(handover.is_announced(&A, at(1)) && !handover.is_announced(&B, at(1)));
        assert_eq!(handover.holders(), [(A, MAC)].into());
        // He is silent from then on.
        let taken = handover.take([A, B].into(), true, at(201));
        assert_eq!(taken.entries, [(A, Some(MAC)), (B, None)].into());
        assert!(taken.anew.is_empty());
    }

    #[test]
    fn what_comes_back_stays() {
        let mut handover = Handover::default();
        handover.keep([A].into(), at(0));
        assert_eq!(handover.keep(BTreeSet::new(), at(100)), (BTreeSet::new(), Gone::default()));
        assert_eq!(handover.keep([A].into(), at(1_500)).0, [A].into());
        assert_eq!(handover.next(at(1_500)), Some(at(1_500) + PATIENCE));
    }
}
