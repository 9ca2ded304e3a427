//! How long to wait before the API is asked again.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::time::Duration;

/// What went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// Nobody answered. Asking costs nobody much, and what changed meanwhile should be here soon.
    Silence,
    /// Somebody answered with an error, and may have said when to come back.
    Refusal {
        /// `Retry-After` and the like.
        after: Option<Duration>,
    },
}

/// Longest pause after silence.
const SILENCE_MOST: Duration = Duration::from_secs(2);
/// Longest pause after a refusal.
const REFUSAL_MOST: Duration = Duration::from_secs(5);
/// The pause that a server may ask for.
const ASKED_MOST: Duration = Duration::from_secs(30);

/// Doubles from failure to failure. Silence and refusals are counted apart: a server that comes
/// back refuses a few times first, which must not be the end of a long series.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    silences: u32,
    refusals: u32,
}

impl Backoff {
    /// The pause after another failure. All agents of a cluster lose their watches at the same
    /// moment; half of the pause is left to chance so that they do not come back at the same one.
    pub(super) fn after(&mut self, failure: Failure) -> Duration {
        let pause = self.longest(failure);
        pause / 2 + (pause / 2).mul_f64(chance())
    }

    /// Success.
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }

    fn longest(&mut self, failure: Failure) -> Duration {
        let (count, first, most) = match failure {
            Failure::Silence => (&mut self.silences, Duration::from_millis(100), SILENCE_MOST),
            Failure::Refusal { .. } => {
                (&mut self.refusals, Duration::from_millis(400), REFUSAL_MOST)
            }
        };
        let pause = (first * 2_u32.pow((*count).min(8))).min(most);
        *count += 1;
        match failure {
            // Twice, because half of the pause is certain.
            Failure::Refusal { after: Some(after) } => pause.max(after.min(ASKED_MOST) * 2),
            _ => pause,
        }
    }
}

/// Anything from 0 to 1.
pub(super) fn chance() -> f64 {
    let bits = RandomState::new().build_hasher().finish();
    f64::from((bits >> 32) as u32) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_limit_and_are_never_less_than_half() {
        let mut backoff = Backoff::default();
        let mut longest = 100;
        for _ in 0..20 {
            let pause = backoff.after(Failure::Silence).as_millis();
            assert!(pause >= longest / 2 && pause <= longest, "{pause} {longest}");
            longest = (longest * 2).min(2_000);
        }
        // A refusal after that is the first of its kind.
        let refusal = Failure::Refusal { after: None };
        assert!(backoff.after(refusal) <= Duration::from_millis(400));
        for _ in 0..20 {
            assert!(backoff.after(refusal) <= REFUSAL_MOST);
        }
        backoff.reset();
        assert!(backoff.after(Failure::Silence) <= Duration::from_millis(100));
    }

    #[test]
    fn a_server_is_left_alone_for_as_long_as_it_asks_for_within_reason() {
        for (asked, least) in [(10, 10), (3_600, 30)] {
            let after = Some(Duration::from_secs(asked));
            let pause = Backoff::default().after(Failure::Refusal { after });
            assert!(pause >= Duration::from_secs(least), "{asked} {pause:?}");
        }
    }
}
