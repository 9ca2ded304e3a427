//! Waiting out the readers: what was visible to the kernel programs is not used for something
//! else until no program run can still hold it.
//!
//! Time is an input: nanoseconds of any clock that does not go backwards.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How long something that was unpublished stays unused. A program run takes microseconds and
/// an RCU grace period milliseconds; a second is beyond both and still short for people.
pub const QUARANTINE: Duration = Duration::from_secs(1);

const QUARANTINE_NS: u64 = QUARANTINE.as_nanos() as u64;

/// Things that were unpublished, until they may be used again.
///
/// Nothing here knows when an operation on a map was carried out, only that it was before the next
/// [`Quarantine::tick`]; the wait counts from there, so that it is never too short.
#[derive(Debug)]
pub struct Quarantine<T> {
    leaving: BTreeSet<T>,
    resting: BTreeMap<T, u64>,
}

impl<T> Default for Quarantine<T> {
    fn default() -> Self {
        Self { leaving: BTreeSet::new(), resting: BTreeMap::new() }
    }
}

impl<T: Copy + Ord> Quarantine<T> {
    /// Takes in what was just unpublished; what is inside already goes on waiting.
    pub fn enter(&mut self, thing: T) {
        if !self.resting.contains_key(&thing) {
            self.leaving.insert(thing);
        }
    }

    /// Lets go of what is in use again as what it was.
    pub fn cancel(&mut self, thing: T) {
        self.leaving.remove(&thing);
        self.resting.remove(&thing);
    }

    /// Starts the wait of what came in since the last call.
    pub fn tick(&mut self, now: u64) {
        for thing in std::mem::take(&mut self.leaving) {
            self.resting.insert(thing, now);
        }
    }

    /// Whether `thing` is inside and its wait is over.
    pub fn is_over(&self, thing: T, now: u64) -> bool {
        self.resting.get(&thing).is_some_and(|since| now.saturating_sub(*since) >= QUARANTINE_NS)
    }

    /// What has waited long enough.
    pub fn over(&self, now: u64) -> impl Iterator<Item = T> {
        self.resting.keys().copied().filter(move |thing| self.is_over(*thing, now))
    }

    /// Takes out what has waited long enough.
    pub fn drain_over(&mut self, now: u64) -> Vec<T> {
        let over: Vec<T> = self.over(now).collect();
        for thing in &over {
            self.resting.remove(thing);
        }
        over
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.leaving.is_empty() && self.resting.is_empty()
    }
}

/// Ids of one kind, lowest first.
#[derive(Debug)]
pub struct IdPool {
    capacity: u32,
    /// No id from here on was ever in use.
    untouched: u32,
    free: BTreeSet<u32>,
    quarantine: Quarantine<u32>,
}

impl IdPool {
    /// A pool of the ids below `capacity`, all free.
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity: u32::try_from(capacity).unwrap_or(u32::MAX),
            untouched: 0,
            free: BTreeSet::new(),
            quarantine: Quarantine::default(),
        }
    }

    /// How many ids there are.
    pub const fn capacity(&self) -> usize {
        self.capacity as usize
    }

    /// Marks an id that a map holds as used. Says whether it was free: otherwise it is beyond the
    /// capacity, or somebody else's.
    pub fn reserve(&mut self, id: u32) -> bool {
        if id >= self.capacity {
            return false;
        }
        if id >= self.untouched {
            self.free.extend(self.untouched..id);
            self.untouched = id + 1;
            return true;
        }
        self.free.remove(&id)
    }

    /// An unused id, or none: all are used or in quarantine.
    pub fn take(&mut self) -> Option<u32> {
        self.free.pop_first().or_else(|| {
            let id = self.untouched;
            (id < self.capacity).then(|| {
                self.untouched += 1;
                id
            })
        })
    }

    /// Returns an id that no kernel program has seen.
    pub fn give_back(&mut self, id: u32) {
        self.free.insert(id);
    }

    /// Returns an id that was just unpublished.
    pub fn release(&mut self, id: u32) {
        self.quarantine.enter(id);
    }

    /// Moves time on.
    pub fn tick(&mut self, now: u64) {
        self.quarantine.tick(now);
        self.free.extend(self.quarantine.drain_over(now));
    }

    /// How many ids are used or in quarantine.
    pub fn used(&self) -> usize {
        (self.untouched as usize).saturating_sub(self.free.len())
    }

    /// Whether ids will become free by waiting.
    pub fn is_waiting(&self) -> bool {
        !self.quarantine.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = QUARANTINE_NS;

    #[test]
    fn ids_are_given_out_lowest_first() {
        let mut pool = IdPool::new(10);
        assert!(pool.reserve(1));
        assert!(!pool.reserve(1), "taken twice");
        assert!(!pool.reserve(10), "beyond the capacity");
        assert_eq!([pool.take(), pool.take(), pool.take()], [Some(0), Some(2), Some(3)]);
        assert_eq!(pool.used(), 4);
    }

    #[test]
    fn a_released_id_rests_for_a_second_after_the_next_tick() {
        let mut pool = IdPool::new(1);
        let id = pool.take().unwrap();
        pool.release(id);
        assert_eq!((pool.take(), pool.used()), (None, 1));
        pool.tick(5 * SECOND);
        pool.tick(6 * SECOND - 1);
        assert_eq!(pool.take(), None);
        assert!(pool.is_waiting());
        pool.tick(6 * SECOND);
        assert_eq!(pool.take(), Some(id));
        assert!(!pool.is_waiting());
    }

    #[test]
    fn an_id_nobody_saw_is_free_at_once() {
        let mut pool = IdPool::new(1);
        let id = pool.take().unwrap();
        pool.give_back(id);
        assert_eq!(pool.take(), Some(id));
    }

    #[test]
    fn what_is_in_use_again_leaves_the_quarantine() {
        let mut quarantine = Quarantine::default();
        quarantine.enter('a');
        quarantine.tick(0);
        quarantine.cancel('a');
        assert!(quarantine.is_empty());
        assert!(!quarantine.is_over('a', 2 * SECOND));
    }
}
