//! Who holds the lease: pure, time is an input.
//!
//! Nodes' clocks may differ, so nobody compares the times in the object with the own clock: a holder
//! is gone when the object has not changed for as long as the lease lasts, as seen from here. The
//! holder itself stops a third of that earlier, counted from before its last request.

use std::time::Duration;

use tokio::time::Instant;

/// How long a lease lasts.
pub(super) const DURATION: Duration = Duration::from_secs(15);
/// How long its holder believes in it.
const BELIEVED: Duration = Duration::from_secs(10);
/// It is renewed this often.
pub(super) const RENEW_EVERY: Duration = Duration::from_secs(5);
/// Others look this often, half as long to half as long again. A thousand of them ask no more than
/// kubelets do for the leases of their nodes.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// After the end of a lease not everybody comes at the same moment.
const SPREAD: Duration = Duration::from_secs(1);

/// A lease as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// Who holds it, if anybody.
    pub holder: Option<String>,
    /// How long it lasts for others.
    pub duration: Duration,
    /// When the holder renewed it, in the holder's words.
    pub renewed: String,
}

/// What to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// There is none: make one.
    Create,
    /// It is nobody's (any more).
    Take,
    /// It is ours.
    Renew,
    /// It is somebody else's: look again after this time.
    Wait(Duration),
}

/// One who would hold it.
#[derive(Debug)]
pub(super) struct Candidate {
    identity: String,
    /// What was seen of somebody else's lease, and when first.
    seen: Option<(Record, Instant)>,
}

impl Candidate {
    /// Nobody else may have this name.
    pub(super) fn new(identity: &str) -> Self {
        Self { identity: identity.to_owned(), seen: None }
    }

    /// The name.
    pub(super) fn identity(&self) -> &str {
        &self.identity
    }

    /// What follows from the lease as it is now. `chance` is anything from 0 to 1.
    pub(super) fn look(&mut self, record: Option<Record>, now: Instant, chance: f64) -> Step {
        let Some(record) = record else { return Step::Create };
        let holder = record.holder.as_deref().filter(|holder| !holder.is_empty());
        match holder {
            None => return Step::Take,
            Some(holder) if holder == self.identity => return Step::Renew,
            Some(_) => {}
        }
        let since = match &self.seen {
            Some((seen, since)) if *seen == record => *since,
            _ => now,
        };
        let end = since + record.duration;
        self.seen = Some((record, since));
        if now >= end {
            return Step::Take;
        }
        let regular = LOOK_EVERY.mul_f64(0.5 + chance);
        Step::Wait(regular.min(end - now + SPREAD.mul_f64(chance)))
    }
}

/// Until when a lease is held that was written in answer to a request of this time.
pub(super) fn held_until(asked: Instant) -> Instant {
    asked + BELIEVED
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(holder: &str, renewed: &str) -> Option<Record> {
        let holder = Some(holder.to_owned());
        Some(Record { holder, duration: DURATION, renewed: renewed.to_owned() })
    }

    #[test]
    fn a_lease_that_nobody_holds_is_taken() {
        let now = Instant::now();
        let mut candidate = Candidate::new("a");
        assert_eq!(candidate.look(None, now, 0.5), Step::Create);
        assert_eq!(candidate.look(record("", ""), now, 0.5), Step::Take);
        let fresh = Record { holder: None, duration: DURATION, renewed: String::new() };
        assert_eq!(candidate.look(Some(fresh), now, 0.5), Step::Take);
        assert_eq!(candidate.look(record("a", "1"), now, 0.5), Step::Renew);
    }

    #[test]
    fn the_holder_is_gone_when_nothing_has_changed_for_as_long_as_the_lease_lasts() {
        let start = Instant::now();
        let mut candidate = Candidate::new("a");
        let after = |seconds| start + Duration::from_secs(seconds);
        assert!(matches!(candidate.look(record("b", "1"), start, 0.5), Step::Wait(_)));
        assert!(matches!(candidate.look(record("b", "1"), after(14), 0.5), Step::Wait(_)));
        // Whatever its clock says, it lives.
        assert!(matches!(candidate.look(record("b", "0"), after(15), 0.5), Step::Wait(_)));
        assert!(matches!(candidate.look(record("b", "0"), after(29), 0.5), Step::Wait(_)));
        assert_eq!(candidate.look(record("b", "0"), after(30), 0.5), Step::Take);
        // Another one was faster.
        assert!(matches!(candidate.look(record("c", "0"), after(30), 0.5), Step::Wait(_)));
    }

    #[test]
    fn the_end_of_a_lease_is_not_missed_and_not_everybody_comes_at_once() {
        let start = Instant::now();
        let mut candidate = Candidate::new("a");
        for (chance, expected) in [(0.0, 5), (0.5, 10), (1.0, 15)] {
            let step = candidate.look(record("b", "1"), start, chance);
            assert_eq!(step, Step::Wait(Duration::from_secs(expected)));
        }
        let late = start + Duration::from_secs(13);
        for (chance, expected) in [(0.0, 2_000), (1.0, 3_000)] {
            let step = candidate.look(record("b", "1"), late, chance);
            assert_eq!(step, Step::Wait(Duration::from_millis(expected)));
        }
    }

    #[test]
    fn nobody_takes_over_from_a_holder_that_still_believes_in_it() {
        // The other one sees the write at the earliest when it was asked for.
        let asked = Instant::now();
        let mut other = Candidate::new("b");
        other.look(record("a", "1"), asked, 0.5);
        let until = held_until(asked);
        assert!(matches!(other.look(record("a", "1"), until, 0.5), Step::Wait(_)));
        assert!(RENEW_EVERY < BELIEVED && BELIEVED < DURATION);
    }
}
