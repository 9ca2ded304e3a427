//! When an address is announced: at once, five times more because frames get lost and because Linux
//! believes only one change of a neighbour a second (`locktime`), and then every minute, because switches
//! and neighbours forget.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Between two announcements of a burst.
const STEP: Duration = Duration::from_millis(1_100);
/// Announcements of a burst behind the first one.
const REPEATS: u32 = 5;
/// Between two announcements afterwards.
const REFRESH: Duration = Duration::from_secs(60);

/// When each of some things is announced. Times are since any moment that stays the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bursts<K: Ord>(BTreeMap<K, State>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    due: Duration,
    /// How often it will be announced before it is only refreshed.
    left: u32,
}

impl<K: Ord> Default for Bursts<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord + Clone> Bursts<K> {
    /// These and no others are to be announced. New ones are due now.
    pub fn set(&mut self, now: Duration, all: &BTreeSet<K>) {
        self.0.retain(|key, _| all.contains(key));
        for key in all {
            let begin = State { due: now, left: REPEATS };
            self.0.entry(key.clone()).or_insert(begin);
        }
    }

    /// Begins anew for all of `which`: something has happened to their neighbours.
    pub fn again(&mut self, now: Duration, which: impl Fn(&K) -> bool) {
        for (_, state) in self.0.iter_mut().filter(|(key, _)| which(key)) {
            *state = State { due: now, left: REPEATS };
        }
    }

    /// What is to be announced now.
    pub fn due(&mut self, now: Duration) -> Vec<K> {
        let mut due = Vec::new();
        for (key, state) in self.0.iter_mut().filter(|(_, state)| state.due <= now) {
            due.push(key.clone());
            let pause = if state.left > 0 { STEP } else { REFRESH };
            state.left = state.left.saturating_sub(1);
            // From now on: what came late is not made up for.
            state.due = now + pause;
        }
        due
    }

    /// When to look again.
    pub fn next(&self) -> Option<Duration> {
        self.0.values().map(|state| state.due).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(bursts: &mut Bursts<u8>, until: Duration) -> Vec<(u128, Vec<u8>)> {
        let mut all = Vec::new();
        while let Some(now) = bursts.next().filter(|now| *now <= until) {
            all.push((now.as_millis(), bursts.due(now)));
        }
        all
    }

    #[test]
    fn an_address_is_announced_six_times_and_every_minute() {
        let mut bursts = Bursts::default();
        let start = Duration::from_secs(10);
        bursts.set(start, &[1].into());
        let all = times(&mut bursts, start + Duration::from_secs(130));
        let all: Vec<_> = all.into_iter().map(|(at, _)| at - 10_000).collect();
        assert_eq!(all, [0, 1_100, 2_200, 3_300, 4_400, 5_500, 65_500, 125_500]);
    }

    #[test]
    fn what_is_announced_already_goes_on_as_it_was() {
        let mut bursts = Bursts::default();
        bursts.set(Duration::ZERO, &[1].into());
        assert_eq!(bursts.due(Duration::ZERO), [1]);
        bursts.set(Duration::from_millis(500), &[1, 2].into());
        let all = times(&mut bursts, Duration::from_millis(1_700));
        assert_eq!(all, [(500, vec![2]), (1_100, vec![1]), (1_600, vec![2])]);
        bursts.set(Duration::from_secs(2), &[2].into());
        assert_eq!(times(&mut bursts, Duration::from_millis(2_700)), [(2_700, vec![2])]);
        bursts.set(Duration::from_secs(3), &BTreeSet::new());
        assert_eq!(bursts.next(), None);
    }

    #[test]
    fn a_burst_can_begin_anew() {
        let mut bursts = Bursts::default();
        bursts.set(Duration::ZERO, &[1, 2].into());
        times(&mut bursts, Duration::from_secs(6));
        let now = Duration::from_secs(7);
        bursts.again(now, |key| *key == 2);
        let all = times(&mut bursts, now + Duration::from_secs(2));
        assert_eq!(all, [(7_000, vec![2]), (8_100, vec![2])]);
    }

    #[test]
    fn what_was_missed_is_not_made_up_for() {
        let mut bursts = Bursts::default();
        bursts.set(Duration::ZERO, &[1].into());
        let late = Duration::from_secs(30);
        assert_eq!(bursts.due(late), [1]);
        assert_eq!(bursts.due(late), Vec::<u8>::new());
        assert_eq!(bursts.next(), Some(late + STEP));
    }
}
