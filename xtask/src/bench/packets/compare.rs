//! A report against an earlier one.
//!
//! A case is slower if its median is more than [`BAND`] beyond the earlier *third quartile*: within
//! the quartiles, the earlier run did not know better itself. Where both runs compared it with the
//! same reference program, that ratio has to say so, too: a machine whose memory is busier makes
//! everything slower that meets many flows, in terms of a control that meets none.

use std::fmt;

use super::report::{Figures, Report, Row};
use crate::bench::stats::Quartiles;

/// How much beyond the earlier third quartile a median may be.
const BAND: f64 = 0.10;
/// How much smaller the share of packets that meet their flow may be, where it was next to all.
const FEWER_HITS: f64 = 0.005;

/// What became of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// No case to be compared with, or no longer there.
    Unmatched,
    /// One of both has too few quiet samples.
    Inconclusive,
    /// Within the band.
    Same,
    /// As far below the earlier first quartile.
    Faster,
    /// Beyond the band.
    Slower,
    /// Fewer packets met their flow.
    FewerHits,
}

impl Change {
    /// Whether it may not go in.
    pub const fn is_regression(self) -> bool {
        matches!(self, Self::Slower | Self::FewerHits)
    }
}

/// Two reports, case by case.
#[derive(Debug)]
pub struct Comparison {
    /// Name, × control earlier and now, and what became of it.
    pub lines: Vec<(String, Option<f64>, Option<f64>, Change)>,
}

impl Comparison {
    /// Compares what both have.
    pub fn of(earlier: &Report, now: &Report) -> Self {
        let lines = now.cases.iter().map(|now| {
            let earlier = earlier.cases.iter().find(|earlier| earlier.name == now.name);
            let median = |row: &Row| row.figures.as_ref().map(|figures| figures.control.median);
            let change = earlier.map_or(Change::Unmatched, |earlier| change(earlier, now));
            (now.name.clone(), earlier.and_then(median), median(now), change)
        });
        Self { lines: lines.collect() }
    }

    /// Names of cases that may not stay as they are.
    pub fn regressions(&self) -> Vec<&str> {
        let lines = self.lines.iter().filter(|(.., change)| change.is_regression());
        lines.map(|(name, ..)| name.as_str()).collect()
    }
}

fn change(earlier: &Row, now: &Row) -> Change {
    if let (Some(earlier), Some(now)) = (earlier.hits, now.hits)
        && now < earlier - FEWER_HITS
        // What is left beside a flood is a matter of chance.
        && earlier > 1.0 - FEWER_HITS
    {
        return Change::FewerHits;
    }
    let (Some(earlier), Some(now)) = (&earlier.figures, &now.figures) else {
        return Change::Inconclusive;
    };
    let all = |says: fn(&Quartiles, &Quartiles) -> bool| {
        says(&earlier.control, &now.control)
            && references(earlier, now).is_none_or(|(a, b)| says(a, b))
    };
    if all(|earlier, now| now.median > earlier.q3 * (1.0 + BAND)) {
        Change::Slower
    } else if all(|earlier, now| now.median < earlier.q1 / (1.0 + BAND)) {
        Change::Faster
    } else {
        Change::Same
    }
}

/// The ratios to the reference program, where it is the same.
fn references<'a>(
    earlier: &'a Figures,
    now: &'a Figures,
) -> Option<(&'a Quartiles, &'a Quartiles)> {
    let (earlier, now) = (earlier.reference.as_ref()?, now.reference.as_ref()?);
    (earlier.name == now.name).then_some((&earlier.ratio, &now.ratio))
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |ratio: &Option<f64>| {
            ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"))
        };
        writeln!(f, "x control, earlier and now:")?;
        for (name, earlier, now, change) in &self.lines {
            let change = match change {
                Change::Unmatched => "not compared",
                Change::Inconclusive => "inconclusive",
                Change::Same => "",
                Change::Faster => "faster",
                Change::Slower => "SLOWER",
                Change::FewerHits => "FEWER HITS",
            };
            writeln!(f, "  {name:43} {:>8} {:>8}  {change}", shown(earlier), shown(now))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::Reference;
    use super::*;

    fn around(median: f64) -> Quartiles {
        Quartiles { q1: median * 0.95, median, q3: median * 1.05 }
    }

    fn row(control: f64, reference: Option<f64>) -> Row {
        let reference =
            reference.map(|ratio| Reference { name: "ref".to_owned(), ratio: around(ratio) });
        let figures = Figures { ns: around(1.0), control: around(control), reference };
        Row { name: "case".to_owned(), samples: 20, quiet: 20, figures: Some(figures), hits: None }
    }

    #[test]
    fn the_band_begins_at_the_quartiles() {
        let earlier = row(10.0, None);
        for (now, expected) in [
            (11.5, Change::Same),
            (11.6, Change::Slower),
            (8.7, Change::Same),
            (8.6, Change::Faster),
        ] {
            assert_eq!(change(&earlier, &row(now, None)), expected, "{now}");
        }
    }

    #[test]
    fn both_rulers_have_to_say_so() {
        let earlier = row(10.0, Some(2.0));
        assert_eq!(change(&earlier, &row(20.0, Some(2.0))), Change::Same);
        assert_eq!(change(&earlier, &row(20.0, Some(3.0))), Change::Slower);
        // Compared with nothing else, the control decides.
        assert_eq!(change(&earlier, &row(20.0, None)), Change::Slower);
    }

    #[test]
    fn too_few_samples_are_no_regression() {
        let inconclusive = Row { figures: None, ..row(10.0, None) };
        assert_eq!(change(&inconclusive, &row(99.0, None)), Change::Inconclusive);
        assert_eq!(change(&row(10.0, None), &inconclusive), Change::Inconclusive);
    }

    #[test]
    fn lost_flows_are_a_regression() {
        let hits = |hits| Row { hits: Some(hits), ..row(10.0, None) };
        assert_eq!(change(&hits(1.0), &hits(0.996)), Change::Same);
        assert_eq!(change(&hits(1.0), &hits(0.99)), Change::FewerHits);
        assert_eq!(change(&hits(0.6), &hits(0.5)), Change::Same);
    }
}
