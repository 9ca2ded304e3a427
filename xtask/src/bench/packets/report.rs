//! What came out: a table for people, an object for programs.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Ready;
use super::case::Subject;
use super::machine::Machine;
use super::quiet;
use crate::bench::stats::Quartiles;

/// One run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Where.
    pub machine: Machine,
    /// What the control takes when all is quiet, nanoseconds.
    pub control_ns: f64,
    /// Case by case.
    pub cases: Vec<Row>,
}

/// One case.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Its name.
    pub name: String,
    /// Samples that were taken.
    pub samples: usize,
    /// Those of them that count.
    pub quiet: usize,
    /// What they say, if there are enough.
    pub figures: Option<Figures>,
    /// Of lbxdp, the share of packets that met their flow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hits: Option<f64>,
}

/// What a packet takes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Nanoseconds: informational, since no two machines are the same.
    pub ns: Quartiles,
    /// In terms of the control around each sample.
    pub control: Quartiles,
    /// In terms of a program that does the same, in the same round.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<Reference>,
}

/// A comparison with another case.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reference {
    /// Its name.
    pub name: String,
    /// The ratios of rounds in which both were quiet.
    pub ratio: Quartiles,
}

impl Report {
    pub(super) fn new(ready: &[Ready], floor: f64) -> Self {
        let row = |of: &Ready| {
            let samples = of.samples.iter().flatten().count();
            let (quiet, figures) = match quiet::summary(&of.samples, floor) {
                Err(quiet) => (quiet, None),
                Ok(summary) => {
                    let other = ready
                        .iter()
                        .find(|other| Some(&other.case.name) == of.case.reference.as_ref());
                    let reference = other.and_then(|other| {
                        let ratio = quiet::ratio(&of.samples, &other.samples, floor)?;
                        Some(Reference { name: other.case.name.clone(), ratio: ratio.map(rounded) })
                    });
                    let quiet::Summary { quiet, ns, control } = summary;
                    let (ns, control) = (ns.map(rounded), control.map(rounded));
                    (quiet, Some(Figures { ns, control, reference }))
                }
            };
            let packets = samples as f64 * f64::from(of.case.packets);
            let is_lbxdp = matches!(of.case.subject, Subject::Lbxdp(_));
            Row {
                name: of.case.name.clone(),
                samples,
                quiet,
                figures,
                hits: (is_lbxdp && of.hits > 0).then(|| rounded(of.hits as f64 / packets)),
            }
        };
        let cases = ready.iter().map(row).collect();
        Self { machine: Machine::here(), control_ns: rounded(floor), cases }
    }
}

/// Without digits that nobody could measure.
fn rounded(value: f64) -> f64 {
    (value * 1_000.0).round() / 1_000.0
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { machine, control_ns, cases } = self;
        writeln!(f, "{machine}")?;
        writeln!(f, "control: {control_ns:.1} ns when quiet; median (first to third quartile)\n")?;
        writeln!(
            f,
            "| {:43} | {:>26} | {:>22} | {:>22} | {:19} | {:>7} | {:>7} |",
            "case", "ns", "x control", "x reference", "reference", "hits", "quiet"
        )?;
        writeln!(
            f,
            "|{:-<45}|{:->28}|{:->24}|{:->24}|{:-<21}|{:->9}|{:->9}|",
            "", ":", ":", ":", "", ":", ":"
        )?;
        for Row { name, samples, quiet, figures, hits } in cases {
            let (ns, control) = match figures {
                None => ("inconclusive".to_owned(), String::new()),
                Some(Figures { ns, control, .. }) => (format!("{ns:.1}"), format!("{control:.2}")),
            };
            let other = figures.as_ref().and_then(|figures| figures.reference.as_ref());
            let (ratio, reference) = match other {
                None => (String::new(), ""),
                Some(Reference { name, ratio }) => (format!("{ratio:.2}"), name.as_str()),
            };
            let hits = hits.map_or_else(String::new, |hits| format!("{:.1} %", 100.0 * hits));
            let quiet = format!("{quiet}/{samples}");
            writeln!(
                f,
                "| {name:43} | {ns:>26} | {control:>22} | {ratio:>22} | {reference:19} | {hits:>7} | {quiet:>7} |"
            )?;
        }
        Ok(())
    }
}
