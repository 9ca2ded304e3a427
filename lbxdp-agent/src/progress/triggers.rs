//! From the event that changed endpoints to the maps that have the change: the SLI "network
//! programming latency" of Kubernetes (sig-scalability), with kube-proxy's rules for what counts.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use crate::source::{Kind, ObjectId};

/// Changes that are remembered while nothing can be programmed. Later ones are not measured.
const MOST: usize = 10_000;

/// The changes of EndpointSlices that are not programmed yet.
#[derive(Debug)]
pub struct Triggers {
    /// What happened before is not this agent's latency.
    started: SystemTime,
    pending: BTreeMap<ObjectId, Vec<Trigger>>,
    count: usize,
}

#[derive(Clone, Copy, Debug)]
struct Trigger {
    /// When the endpoints changed, if the slice says so.
    at: Option<SystemTime>,
    /// When the agent heard of it.
    heard: Instant,
}

impl Triggers {
    /// None yet; `started` is when the agent did.
    pub const fn new(started: SystemTime) -> Self {
        Self { started, pending: BTreeMap::new(), count: 0 }
    }

    /// An object changed because of what happened at `at`, if it says when. Only EndpointSlices
    /// matter.
    pub fn changed(&mut self, id: &ObjectId, at: Option<SystemTime>) {
        if id.kind == Kind::EndpointSlice && self.count < MOST {
            let at = at.filter(|at| *at > self.started);
            self.count += 1;
            self.pending.entry(id.clone()).or_default().push(Trigger { at, heard: Instant::now() });
        }
    }

    /// An object is gone. Its time is that of its last change and not of its end, so there is
    /// nothing to measure.
    pub fn deleted(&mut self, id: &ObjectId) {
        self.count -= self.pending.remove(id).map_or(0, |triggers| triggers.len());
    }

    /// Everything comes anew: how old that is says nothing about the agent.
    pub fn forget(&mut self) {
        self.pending.clear();
        self.count = 0;
    }

    /// Everything is programmed at `now`: how long each change took that says when it began.
    pub fn programmed(&mut self, now: SystemTime) -> Vec<Duration> {
        let mut latencies = Vec::new();
        for (slice, triggers) in std::mem::take(&mut self.pending) {
            for Trigger { at, heard } in triggers {
                // The clock of whoever wrote the slice may be ahead of ours.
                let since = |at| now.duration_since(at).unwrap_or(Duration::ZERO);
                let since_change = at.map(since);
                latencies.extend(since_change);
                tracing::trace!(%slice, ?since_change, since_heard = ?heard.elapsed(), "programmed");
            }
        }
        self.count = 0;
        latencies
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(name: &str) -> ObjectId {
        ObjectId::new(Kind::EndpointSlice, None, name)
    }

    fn second(n: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(n)
    }

    #[test]
    fn each_change_after_the_start_is_measured_once() {
        let mut triggers = Triggers::new(second(100));
        triggers.changed(&slice("a"), Some(second(103)));
        triggers.changed(&slice("a"), Some(second(105)));
        triggers.changed(&slice("b"), Some(second(99)));
        triggers.changed(&slice("c"), None);
        triggers.changed(&ObjectId::new(Kind::Service, None, "a"), Some(second(104)));
        assert_eq!(triggers.programmed(second(106)), [3, 1].map(Duration::from_secs));
        assert!(triggers.programmed(second(107)).is_empty());
    }

    #[test]
    fn a_clock_that_is_ahead_makes_no_negative_time() {
        let mut triggers = Triggers::new(second(100));
        triggers.changed(&slice("a"), Some(second(110)));
        assert_eq!(triggers.programmed(second(106)), [Duration::ZERO]);
    }

    #[test]
    fn what_is_gone_or_comes_anew_is_not_measured() {
        let mut triggers = Triggers::new(second(100));
        for name in ["a", "a", "b"] {
            triggers.changed(&slice(name), Some(second(103)));
        }
        triggers.deleted(&slice("a"));
        triggers.deleted(&slice("never"));
        assert_eq!(triggers.count, 1);
        triggers.forget();
        assert_eq!((triggers.programmed(second(106)), triggers.count), (vec![], 0));
    }

    #[test]
    fn while_nothing_can_be_programmed_not_everything_is_remembered() {
        let mut triggers = Triggers::new(second(100));
        for n in 0..MOST + 10 {
            triggers.changed(&slice(&format!("s-{}", n % 7)), Some(second(103)));
        }
        assert_eq!(triggers.count, MOST);
        assert_eq!((triggers.programmed(second(104)).len(), triggers.count), (MOST, 0));
    }
}
