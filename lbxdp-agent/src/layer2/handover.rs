//! How an address goes from one node that lives to another: pure.
//!
//! The next owner announces the address, and answers for it a moment later; the one that had it answers
//! until it hears that. So there is always somebody to whom frames may go, and never two who answer. Where
//! announcements are not heard, two may answer for [`PATIENCE`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use crate::apply::announced::Entry;

/// For so long an address is kept for want of a word from the next owner.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);
/// Between the first announcement of a new owner and its first answer: by then the one before has heard of it,
/// and of why.
const ANSWER_AFTER: Duration = Duration::from_millis(200);
/// What was claimed before this node had learned why counts for so long.
const CLAIM_COUNTS: Duration = Duration::from_secs(5);

/// Addresses that come and go. Times are since any moment that stays the same.
#[derive(Debug, Default)]
pub(super) struct Handover {
    /// What goes, and until when it is kept at the most.
    going: BTreeMap<Entry, Duration>,
    /// What comes, and when it is answered for.
    coming: BTreeMap<Entry, Duration>,
    /// What others have announced, and when.
    claimed: BTreeMap<IpAddr, Duration>,
}

/// How often something went to somebody else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Gone {
    /// Because the next owner was heard.
    pub announced: u64,
    /// For want of patience.
    pub waited: u64,
}

impl Handover {
    /// Somebody else has announced an address.
    pub(super) fn hear(&mut self, addr: IpAddr, now: Duration) {
        self.claimed.retain(|_, at| now < *at + CLAIM_COUNTS);
        self.claimed.insert(addr, now);
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
    ) -> BTreeSet<Entry> {
        self.coming.retain(|entry, _| coming.contains(entry));
        let after = if are_others { ANSWER_AFTER } else { Duration::ZERO };
        for entry in coming {
            if self.coming.contains_key(&entry) {
                continue;
            }
            // Who had it until now said so.
            self.claimed.remove(&entry.0);
            self.coming.insert(entry, now + after);
        }
        self.coming.iter().filter(|(_, due)| **due <= now).map(|(entry, _)| *entry).collect()
    }

    /// Whether something waits for the next owner.
    pub(super) fn is_going(&self) -> bool {
        !self.going.is_empty()
    }

    /// When to look again.
    pub(super) fn next(&self, now: Duration) -> Option<Duration> {
        let all = self.going.values().chain(self.coming.values()).copied();
        all.filter(|due| *due > now).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Entry = (IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)), 7);
    const B: Entry = (IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2)), 7);

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn what_goes_is_kept_until_the_next_owner_is_heard_or_patience_ends() {
        let mut handover = Handover::default();
        let both = BTreeSet::from([A, B]);
        assert_eq!(handover.keep(both.clone(), at(0)), (both.clone(), Gone::default()));
        assert_eq!(handover.next(at(0)), Some(PATIENCE));
        handover.hear(A.0, at(150));
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
        handover.hear(A.0, at(0));
        assert!(handover.keep([A].into(), at(1_000)).0.is_empty());
        let mut handover = Handover::default();
        handover.hear(A.0, at(0));
        assert_eq!(handover.keep([A].into(), CLAIM_COUNTS).0, [A].into());
        // Nor one from before this node had the address.
        let mut handover = Handover::default();
        handover.hear(A.0, at(0));
        handover.take([A].into(), true, at(100));
        assert_eq!(handover.keep([A].into(), at(1_000)).0, [A].into());
    }

    #[test]
    fn what_comes_is_answered_for_once_the_others_have_heard() {
        let mut handover = Handover::default();
        assert!(handover.take([A].into(), true, at(0)).is_empty());
        assert_eq!(handover.next(at(0)), Some(ANSWER_AFTER));
        // Another one does not make it wait longer.
        assert!(handover.take([A, B].into(), true, at(50)).is_empty());
        assert_eq!(handover.take([A, B].into(), true, ANSWER_AFTER), [A].into());
        assert_eq!(handover.take([B].into(), true, at(250)), [B].into());
        assert_eq!(handover.take(BTreeSet::new(), true, at(250)), BTreeSet::new());
        assert_eq!(handover.next(at(250)), None);
        // Who is alone waits for nobody.
        assert_eq!(handover.take([A].into(), false, at(300)), [A].into());
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
