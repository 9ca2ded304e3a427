//! A bucket of tokens. `governor` would bring a clock and a table of its own; here time is an input,
//! and whether a token is taken is known only after the API has answered.

use std::time::Duration;

use tokio::time::Instant;

/// So many at once, and one more each `every`.
#[derive(Clone, Copy, Debug)]
pub(in crate::source::kube) struct Bucket {
    size: u32,
    every: Duration,
    /// When it is full again.
    full: Instant,
}

impl Bucket {
    /// A full one.
    pub(in crate::source::kube) const fn new(size: u32, every: Duration, now: Instant) -> Self {
        Self { size, every, full: now }
    }

    /// When there is a token, now or later.
    pub(in crate::source::kube) fn next(&self, now: Instant) -> Instant {
        // With the last token in it, so much is missing.
        let spare = self.every * (self.size - 1);
        now.max(self.full.checked_sub(spare).unwrap_or(now))
    }

    /// Takes a token.
    pub(in crate::source::kube) fn take(&mut self, now: Instant) {
        self.full = self.full.max(now) + self.every;
    }

    /// Whether nothing is missing.
    pub(in crate::source::kube) fn is_full(&self, now: Instant) -> bool {
        self.full <= now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_and_then_one_each_time() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let mut bucket = Bucket::new(3, second * 10, start);
        for _ in 0..3 {
            assert_eq!(bucket.next(start), start);
            bucket.take(start);
        }
        assert_eq!(bucket.next(start), start + second * 10);
        let later = start + second * 10;
        assert_eq!(bucket.next(later), later);
        bucket.take(later);
        assert_eq!(bucket.next(later), later + second * 10);
        assert!(!bucket.is_full(later + second * 29));
        assert!(bucket.is_full(later + second * 30));
        // It never holds more than its size.
        let much_later = later + second * 1_000;
        for _ in 0..3 {
            assert_eq!(bucket.next(much_later), much_later);
            bucket.take(much_later);
        }
        assert_eq!(bucket.next(much_later), much_later + second * 10);
    }
}
