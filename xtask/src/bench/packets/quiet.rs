//! Which samples count. A neighbour on the same core makes everything twice as slow for seconds at a
//! time, so each sample stands between two runs of the control, its brackets, and counts only if both
//! were as quick as the control can be.

use crate::bench::stats::Quartiles;

/// How much slower than [`floor`] a bracket of a quiet sample may be.
const BAND: f64 = 1.15;
/// Fewer quiet samples than this say nothing.
pub const ENOUGH: usize = 15;

/// A sample and its brackets, nanoseconds for each packet.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// The control just before.
    pub before: f64,
    /// The program under test.
    pub ns: f64,
    /// The control just after.
    pub after: f64,
}

impl Sample {
    /// The sample in terms of the control.
    pub fn ratio(&self) -> f64 {
        self.ns / ((self.before + self.after) / 2.0)
    }

    /// Whether both brackets are quiet, given the floor of all.
    pub fn is_quiet(&self, floor: f64) -> bool {
        self.before <= floor * BAND && self.after <= floor * BAND
    }
}

/// What the control takes on a quiet machine: the second percentile of all its runs, as the quickest
/// of thousands would be an accident.
pub fn floor(brackets: impl Iterator<Item = f64>) -> f64 {
    let mut brackets: Vec<f64> = brackets.collect();
    brackets.sort_by(f64::total_cmp);
    brackets.get(brackets.len() / 50).copied().unwrap_or(f64::NAN)
}

/// What the quiet ones of some samples say.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// Quiet samples.
    pub quiet: usize,
    /// Of these, nanoseconds for each packet.
    pub ns: Quartiles,
    /// And in terms of the control.
    pub control: Quartiles,
}

/// Sums up the quiet ones of `samples`, one for each round, if they are [`ENOUGH`]; otherwise says how
/// many they are.
pub fn summary(samples: &[Option<Sample>], floor: f64) -> Result<Summary, usize> {
    let samples = samples.iter().flatten();
    let quiet: Vec<_> = samples.filter(|sample| sample.is_quiet(floor)).collect();
    if quiet.len() < ENOUGH {
        return Err(quiet.len());
    }
    Ok(Summary {
        quiet: quiet.len(),
        ns: Quartiles::of(&quiet.iter().map(|sample| sample.ns).collect::<Vec<_>>()),
        control: Quartiles::of(&quiet.iter().map(|sample| sample.ratio()).collect::<Vec<_>>()),
    })
}

/// One case in terms of another, round by round, if there are [`ENOUGH`] rounds in which both were
/// quiet. A ratio of two medians would be one of two different times.
pub fn ratio(of: &[Option<Sample>], to: &[Option<Sample>], floor: f64) -> Option<Quartiles> {
    let rounds = of.iter().zip(to).filter_map(|(of, to)| Some(((*of)?, (*to)?)));
    let quiet = rounds.filter(|(of, to)| of.is_quiet(floor) && to.is_quiet(floor));
    let ratios: Vec<_> = quiet.map(|(of, to)| of.ns / to.ns).collect();
    (ratios.len() >= ENOUGH).then(|| Quartiles::of(&ratios))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(before: f64, ns: f64, after: f64) -> Sample {
        Sample { before, ns, after }
    }

    #[test]
    fn the_floor_is_the_second_percentile() {
        assert_eq!(floor((0..100).map(f64::from)), 2.0);
        assert_eq!(floor([3.0, 2.0].into_iter()), 2.0);
        assert!(floor(std::iter::empty()).is_nan());
    }

    #[test]
    fn both_brackets_have_to_be_quiet() {
        assert!(sample(10.0, 50.0, 11.4).is_quiet(10.0));
        assert!(!sample(10.0, 50.0, 11.6).is_quiet(10.0));
        assert!(!sample(20.0, 50.0, 10.0).is_quiet(10.0));
    }

    #[test]
    fn noisy_samples_do_not_count() {
        let mut samples = vec![Some(sample(10.0, 50.0, 10.0)); ENOUGH];
        samples.extend([Some(sample(20.0, 100.0, 20.0)); 40]);
        samples.push(None);
        let summary = summary(&samples, 10.0).expect("enough of them");
        assert_eq!((summary.quiet, summary.ns.q3, summary.control.median), (ENOUGH, 50.0, 5.0));
    }

    #[test]
    fn too_few_quiet_samples_say_nothing() {
        let samples = [Some(sample(10.0, 50.0, 10.0)); ENOUGH - 1];
        assert_eq!(summary(&samples, 10.0), Err(ENOUGH - 1));
    }

    #[test]
    fn cases_are_compared_round_by_round() {
        let quiet = |ns| Some(sample(10.0, ns, 10.0));
        let noisy = Some(sample(20.0, 9.0, 20.0));
        let mut of = vec![quiet(60.0); ENOUGH];
        let mut to = vec![quiet(20.0); ENOUGH];
        of.extend([quiet(1.0), None, noisy]);
        to.extend([noisy, quiet(1.0), quiet(1.0)]);
        assert_eq!(ratio(&of, &to, 10.0).map(|ratio| ratio.q3), Some(3.0));
        assert_eq!(ratio(&of[1..], &to[1..], 10.0), None);
    }
}
