//! Whether the agent does its work: kube-proxy's `proxy_health.go`, and a loop that does not hang.
//!
//! Time is an input: nanoseconds of any clock that does not go backwards.

use crate::reconcile::LONGEST_BACKOFF;

/// How long a change may wait. Between two attempts to program it lie at the most
/// [`LONGEST_BACKOFF`], so this gives it a second attempt (kube-proxy: twice its sync period, which is
/// 30 seconds as well).
pub const TIMEOUT_NS: u64 = 2 * LONGEST_BACKOFF.as_nanos() as u64;

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct Liveness {
    /// When the oldest change came that is not programmed.
    pending: Option<u64>,
    /// When the agent last looked what there is to do.
    turned: u64,
    /// When everything was last programmed, or else when the agent started.
    updated: u64,
}

impl Liveness {
    /// An agent that starts at `now`, and is live until it proves otherwise.
    pub const fn new(now: u64) -> Self {
        Self { pending: None, turned: now, updated: now }
    }

    /// A change came. An older one that still waits counts.
    pub fn queued(&mut self, now: u64) {
        self.pending.get_or_insert(now);
    }

    /// An attempt was made to program everything.
    pub fn programmed(&mut self, is_done: bool, now: u64) {
        if is_done {
            self.pending = None;
            self.updated = now;
        } else {
            self.queued(now);
        }
    }

    /// The agent looked what there is to do.
    pub const fn turned(&mut self, now: u64) {
        self.turned = now;
    }

    /// Whether neither a change nor the agent itself is stuck.
    pub fn is_live(&self, now: u64) -> bool {
        let oldest = self.pending.map_or(self.turned, |pending| pending.min(self.turned));
        now.saturating_sub(oldest) <= TIMEOUT_NS
    }

    /// How old the maps are: nothing while nothing is stuck.
    pub fn behind_ns(&self, now: u64) -> u64 {
        if self.is_live(now) { 0 } else { now.saturating_sub(self.updated) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_change_that_is_not_programmed_in_time_ends_liveness_until_it_is() {
        let mut liveness = Liveness::new(0);
        liveness.programmed(true, 5 * SECOND);
        liveness.queued(10 * SECOND);
        // A later change or attempt does not make the first one younger.
        liveness.queued(50 * SECOND);
        liveness.programmed(false, 60 * SECOND);
        liveness.turned(71 * SECOND);
        assert!(liveness.is_live(70 * SECOND));
        assert_eq!(liveness.behind_ns(70 * SECOND), 0, "reported as up to date");
        assert!(!liveness.is_live(71 * SECOND));
        assert_eq!(liveness.behind_ns(71 * SECOND), 66 * SECOND);
        liveness.programmed(true, 72 * SECOND);
        assert!(liveness.is_live(72 * SECOND));
    }

    #[test]
    fn an_agent_without_changes_is_live_as_long_as_it_comes_round() {
        let mut liveness = Liveness::new(0);
        assert!(liveness.is_live(60 * SECOND), "while it starts");
        assert!(!liveness.is_live(61 * SECOND), "it hangs");
        for minute in 1..1_000 {
            liveness.turned(minute * 60 * SECOND);
            assert!(liveness.is_live((minute * 60 + 59) * SECOND));
        }
    }

    #[test]
    fn a_failure_without_a_change_counts_from_its_first_attempt() {
        let mut liveness = Liveness::new(0);
        for second in 100..=160 {
            liveness.programmed(false, second * SECOND);
            liveness.turned(second * SECOND);
        }
        assert!(liveness.is_live(160 * SECOND));
        assert!(!liveness.is_live(161 * SECOND));
    }
}
