//! Nodes that were lost a moment ago: their programs may answer still, until their gate has closed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{GATE, MARGIN};

/// So long after it was called lost a node's addresses are left alone. It was alive until then at the
/// latest, and so its gate has closed.
const HOLD: Duration = Duration::from_millis((GATE.as_millis() + MARGIN.as_millis()) as u64);

/// Who is alive, or was until a moment ago. Times are since some moment.
#[derive(Debug, Default)]
pub struct Fading {
    alive: BTreeSet<String>,
    /// Who was lost, and until when that does not count.
    lost: BTreeMap<String, Duration>,
}

impl Fading {
    /// These are alive now. All that are to be taken for alive.
    pub fn see(&mut self, alive: BTreeSet<String>, now: Duration) -> BTreeSet<String> {
        for name in self.alive.difference(&alive) {
            self.lost.insert(name.clone(), now + HOLD);
        }
        self.lost.retain(|name, until| *until > now && !alive.contains(name));
        let all = alive.iter().chain(self.lost.keys()).cloned().collect();
        self.alive = alive;
        all
    }

    /// When somebody is to be taken for alive no more.
    pub fn next(&self) -> Option<Duration> {
        self.lost.values().min().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &str) -> BTreeSet<String> {
        names.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn a_lost_node_counts_until_its_gate_has_closed() {
        let mut fading = Fading::default();
        let at = Duration::from_millis;
        assert_eq!(fading.see(names("a b c"), at(0)), names("a b c"));
        assert_eq!(fading.next(), None);
        assert_eq!(fading.see(names("a c"), at(1_000)), names("a b c"));
        let until = at(1_000) + HOLD;
        assert_eq!(fading.next(), Some(until));
        // Another one does not make the first one's time longer.
        assert_eq!(fading.see(names("a"), at(1_100)), names("a b c"));
        assert_eq!(fading.next(), Some(until));
        assert_eq!(fading.see(names("a"), until), names("a c"));
        assert_eq!(fading.see(names("a"), until + at(100)), names("a"));
        assert_eq!(fading.next(), None);
    }

    #[test]
    fn who_comes_back_is_alive_and_may_be_lost_again() {
        let mut fading = Fading::default();
        let at = Duration::from_millis;
        fading.see(names("a b"), at(0));
        fading.see(names("a"), at(100));
        assert_eq!(fading.see(names("a b"), at(200)), names("a b"));
        assert_eq!(fading.next(), None);
        fading.see(names("a"), at(5_000));
        assert_eq!(fading.next(), Some(at(5_000) + HOLD));
    }
}
