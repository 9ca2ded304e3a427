//! Whether Services without a class are left to MetalLB: two who give addresses to the same Services
//! would take turns.

use std::time::Duration;

use tokio::time::Instant;

/// A controller that is replaced is away for a while.
const AWAY: Duration = Duration::from_secs(30);

/// What was seen of its controller.
#[derive(Debug, Default)]
pub(super) struct MetalLb {
    /// Since when it is installed without being ready.
    away: Option<Instant>,
    is_alive: bool,
}

impl MetalLb {
    /// Takes what there is now: whether it is installed, and whether it is ready. Whoever has removed
    /// it need not wait; one that is merely not ready is gone after half a minute.
    pub(super) fn look(&mut self, (is_installed, is_ready): (bool, bool), now: Instant) {
        self.away = match (is_installed, is_ready) {
            (true, false) => self.away.or(Some(now)),
            _ => None,
        };
        self.is_alive = is_ready || self.due().is_some_and(|due| now < due);
    }

    /// Whether Services are left to it.
    pub(super) fn is_alive(&self) -> bool {
        self.is_alive
    }

    /// When [`Self::look`] may say something else although nothing has changed.
    pub(super) fn due(&self) -> Option<Instant> {
        self.away.map(|away| away + AWAY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_controller_that_is_replaced_is_waited_for_and_one_that_is_removed_is_not() {
        let now = Instant::now();
        let mut metallb = MetalLb::default();
        metallb.look((false, false), now);
        assert!(!metallb.is_alive() && metallb.due().is_none());
        metallb.look((true, true), now);
        assert!(metallb.is_alive());
        for seconds in [0, 10, 29] {
            metallb.look((true, false), now + Duration::from_secs(seconds));
            assert!(metallb.is_alive(), "{seconds}");
        }
        assert_eq!(metallb.due(), Some(now + AWAY));
        metallb.look((true, false), now + AWAY);
        assert!(!metallb.is_alive());
        metallb.look((true, true), now + AWAY);
        metallb.look((true, false), now + AWAY);
        assert!(metallb.is_alive());
        metallb.look((false, false), now + AWAY);
        assert!(!metallb.is_alive());
        // Whoever starts sees it away for the first time.
        let mut metallb = MetalLb::default();
        metallb.look((true, false), now);
        assert!(metallb.is_alive());
    }
}
