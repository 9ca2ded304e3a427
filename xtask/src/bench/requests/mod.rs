//! Requests of a client outside that are answered: connections a second, and how long answers take while
//! the path has little to do, and much.

mod open_loop;
mod place;

use std::fmt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use lbxdp_tests::sweep;
use serde::Serialize;

use self::place::Place;
use super::forwarding::Dataplane;
use super::forwarding::services::Services;
use super::stats::Quartiles;
use crate::util::step;

/// Of one sample.
const TIME: Duration = Duration::from_secs(1);
/// Datagrams a second, in hundredths of what the path answers at most without a Service.
const LOADS: [u32; 3] = [10, 50, 80];
/// Changes of Services a second, in the case that has some.
const CHANGES: u32 = 1_000;
/// Thousandths of the datagrams that are answered within the times in question.
const SHARES: [usize; 3] = [500, 990, 999];

/// What was measured.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Datagrams a second that the path answers at most without a Service.
    at_most: f64,
    cases: Vec<Line>,
    rounds: usize,
}

/// One way through the node.
#[derive(Debug, Serialize)]
struct Line {
    /// `None`: to the pod itself, the node is a router.
    dataplane: Option<Dataplane>,
    services: u32,
    /// Changes of Services a second meanwhile, as many as there were.
    changes: u32,
    /// Connections a second.
    connections: Quartiles,
    /// As a multiple of those to the pod itself, round by round.
    direct: Quartiles,
    /// Packets that lbxdp itself dropped, in all samples.
    dropped: Option<u64>,
    /// For each of [`LOADS`].
    answers: Vec<Answered>,
}

/// Datagrams at a rate.
#[derive(Debug, Serialize)]
struct Answered {
    /// In hundredths of `at_most`.
    load: u32,
    /// Microseconds within which the share of each of [`SHARES`] was answered. `None` where more was lost
    /// than that leaves.
    within: [Option<Quartiles>; 3],
    /// Of a million.
    lost: f64,
}

/// A place and what was measured there, a value for each round.
struct Case {
    dataplane: Option<Dataplane>,
    services: u32,
    place: Place,
    connections: Vec<f64>,
    /// Of each load, for each share.
    within: [[Vec<Option<f64>>; 3]; 3],
    /// Sent and lost, with each load.
    lost: [(u64, u64); 3],
}

/// Measures this agent with each of these numbers of Services.
pub fn run(rounds: u32, services: &[u32], agent: &Path) -> Result<Report> {
    let mut cases = Vec::new();
    let mut add = |dataplane: Option<Dataplane>, services: u32, changes: u32| -> Result<()> {
        sweep::wait_if_stopping();
        let name = name(dataplane, services, changes);
        step(&name);
        let both = Services::of_both(services);
        let place = Place::new(dataplane, both, changes, agent).context(name)?;
        let (connections, within, lost) = Default::default();
        cases.push(Case { dataplane, services, place, connections, within, lost });
        Ok(())
    };
    add(None, 0, 0)?;
    for count in services {
        for dataplane in [Dataplane::Lbxdp, Dataplane::Nftables, Dataplane::Iptables] {
            add(Some(dataplane), *count, 0)?;
        }
    }
    let most = services.iter().max().context("no number of Services")?;
    add(Some(Dataplane::Lbxdp), *most, CHANGES)?;
    step("measuring");
    let at_most = (0..5).map(|_| cases[0].place.at_most(TIME)).collect::<Result<Vec<_>>>()?;
    let at_most = Quartiles::of(&at_most).median;
    for _ in 0..rounds {
        for case in &mut cases {
            sweep::wait_if_stopping();
            case.sample(at_most)?;
        }
    }
    Ok(Report::new(at_most, &cases))
}

/// As tables show it.
fn name(dataplane: Option<Dataplane>, services: u32, changes: u32) -> String {
    let name = dataplane.map_or("a router", Dataplane::name);
    match (dataplane, changes) {
        (None, _) => name.to_owned(),
        (Some(_), 0) => format!("{name}, {services} Services"),
        (Some(_), _) => format!("{name}, {services} Services, {changes} changes/s"),
    }
}

impl Case {
    fn sample(&mut self, at_most: f64) -> Result<()> {
        self.connections.push(self.place.connections()?);
        for (place, load) in LOADS.into_iter().enumerate() {
            let answers = self.place.at_rate(at_most * f64::from(load) / 100.0, TIME)?;
            for (within, share) in self.within[place].iter_mut().zip(SHARES) {
                within.push(answers.within(share).map(|time| time.as_secs_f64() * 1e6));
            }
            let (sent, lost) = &mut self.lost[place];
            *sent += answers.took.len() as u64 + u64::from(answers.lost);
            *lost += u64::from(answers.lost);
        }
        Ok(())
    }

    fn answered(&self, place: usize) -> Answered {
        let within = std::array::from_fn(|share| {
            let all: Option<Vec<_>> = self.within[place][share].iter().copied().collect();
            all.map(|all| Quartiles::of(&all))
        });
        let (sent, lost) = self.lost[place];
        Answered { load: LOADS[place], within, lost: lost as f64 * 1e6 / sent as f64 }
    }
}

impl Report {
    fn new(at_most: f64, cases: &[Case]) -> Self {
        let direct = &cases[0].connections;
        let line = |case: &Case| {
            let ratios = case.connections.iter().zip(direct).map(|(of, by)| of / by);
            Line {
                dataplane: case.dataplane,
                services: case.services,
                changes: case.place.changes_each_second(),
                connections: Quartiles::of(&case.connections),
                direct: Quartiles::of(&ratios.collect::<Vec<_>>()),
                dropped: case.place.dropped(),
                answers: (0..LOADS.len()).map(|place| case.answered(place)).collect(),
            }
        };
        Self { at_most, cases: cases.iter().map(line).collect(), rounds: direct.len() }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |line: &Line| name(line.dataplane, line.services, line.changes);
        writeln!(f, "| through | connections/s | router × | dropped |")?;
        writeln!(f, "|---|--:|--:|--:|")?;
        for line in &self.cases {
            let Line { connections, direct, dropped, .. } = line;
            let dropped = dropped.map_or(String::new(), |dropped| dropped.to_string());
            writeln!(f, "| {} | {connections:.0} | {direct:.3} | {dropped} |", name(line))?;
        }
        writeln!(f, "\nµs to the answer of a datagram; 100 % are {:.0} a second\n", self.at_most)?;
        writeln!(f, "| load | through | 50 % | 99 % | 99.9 % | lost of a million |")?;
        writeln!(f, "|--:|---|--:|--:|--:|--:|")?;
        for (place, load) in LOADS.into_iter().enumerate() {
            for line in &self.cases {
                let Answered { within, lost, .. } = &line.answers[place];
                write!(f, "| {load} % | {} ", name(line))?;
                for within in within {
                    let within = within.map_or("-".to_owned(), |within| format!("{within:.0}"));
                    write!(f, "| {within} ")?;
                }
                writeln!(f, "| {lost:.0} |")?;
            }
        }
        write!(f, "\n{} rounds, median (first to third quartile)", self.rounds)
    }
}
