//! Medians and quartiles of samples that were taken in pairs.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Median and quartiles, linearly interpolated.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Quartiles {
    /// A quarter of the samples is below.
    pub q1: f64,
    /// Half of them is.
    pub median: f64,
    /// A quarter is above.
    pub q3: f64,
}

impl Quartiles {
    /// Of at least one sample.
    pub fn of(samples: &[f64]) -> Self {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |quarters: usize| {
            let place = (sorted.len() - 1) as f64 * quarters as f64 / 4.0;
            let (low, high) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
            low + (high - low) * place.fract()
        };
        Self { q1: at(1), median: at(2), q3: at(3) }
    }

    /// Each of them after `change`.
    pub fn map(self, change: impl Fn(f64) -> f64) -> Self {
        Self { q1: change(self.q1), median: change(self.median), q3: change(self.q3) }
    }
}

impl fmt::Display for Quartiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = f.precision().unwrap_or(3);
        let Self { q1, median, q3 } = self;
        write!(f, "{median:.digits$} ({q1:.digits$} to {q3:.digits$})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_are_interpolated() {
        let of = |samples: &[f64]| {
            let Quartiles { q1, median, q3 } = Quartiles::of(samples);
            [q1, median, q3]
        };
        assert_eq!(of(&[7.0]), [7.0; 3]);
        assert_eq!(of(&[5.0, 1.0, 4.0, 2.0, 3.0]), [2.0, 3.0, 4.0]);
        assert_eq!(of(&[4.0, 1.0, 3.0, 2.0]), [1.75, 2.5, 3.25]);
    }

    #[test]
    fn quartiles_are_shown_with_the_median_first() {
        let shown = format!("{:.2}", Quartiles::of(&[1.0, 2.0, 3.0]));
        assert_eq!(shown, "2.00 (1.50 to 2.50)");
    }
}
