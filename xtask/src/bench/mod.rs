//! Benchmarks. Every figure is a ratio of two samples that were taken one after the other in the
//! same run: this machine is never the same twice, but it is much the same for two seconds.

mod bulk;
mod forwarding;
mod packets;
mod processors;
mod requests;
mod sockets;
mod stats;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, ensure};
use clap::{Args, ValueEnum};
use lbxdp_tests::sweep;
use serde::{Deserialize, Serialize};

use crate::setup;
use crate::util::{build_programs, released_agent, root, step};
use packets::Wanted;
use stats::Quartiles;

/// Options of `cargo xtask bench`.
#[derive(Args)]
pub struct Options {
    /// What to measure.
    #[arg(value_enum, default_values_t = [Bench::Packets, Bench::Forwarding, Bench::Requests, Bench::Bulk, Bench::Sockets])]
    benches: Vec<Bench>,
    /// Pairs of samples for each ratio, and rounds of `forwarding` and `requests`.
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..))]
    pairs: u32,
    /// Of `packets`, only cases whose name contains this.
    #[arg(long, value_name = "SUBSTRING")]
    case: Option<String>,
    /// Of `packets`, only the cases that CI looks at.
    #[arg(long)]
    short: bool,
    /// Of `packets`, compares with what an earlier run said with --json; fails if a case is slower.
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,
    /// Of `forwarding` and `requests`, numbers of Services. nft takes two minutes to load the rules of 10,000.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 1_000],
          value_parser = clap::value_parser!(u32).range(1..=30_000))]
    services: Vec<u32>,
    /// Of `requests`, measures this agent instead of building one with optimisations.
    #[arg(long, value_name = "PATH")]
    agent: Option<PathBuf>,
    /// One JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

/// The ratios that CI compares with: of each kind of machine a file of what
/// `cargo xtask bench packets --short --json` said there.
const RATIOS: &str = "xtask/bench-ratios";

/// What `--json` says.
#[derive(Default, Serialize, Deserialize)]
struct Results {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    packets: Option<packets::Report>,
    #[serde(default, skip_serializing_if = "Option::is_none", skip_deserializing)]
    forwarding: Option<forwarding::Report>,
    #[serde(default, skip_serializing_if = "Option::is_none", skip_deserializing)]
    requests: Option<requests::Report>,
    #[serde(default, skip_serializing_if = "Vec::is_empty", skip_deserializing)]
    bulk: Vec<Comparison>,
    #[serde(default, skip_serializing_if = "Vec::is_empty", skip_deserializing)]
    sockets: Vec<Comparison>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Bench {
    /// The XDP program: nanoseconds for each packet, path by path.
    Packets,
    /// Packets a second through a node, against kube-proxy's rules.
    Forwarding,
    /// Connections a second of clients outside, and how long answers take, against kube-proxy's rules.
    Requests,
    /// Bulk TCP of clients outside to a pod of the node.
    Bulk,
    /// Clients on the node: connections and bulk through a ClusterIP against the same directly.
    Sockets,
}

/// One quantity, measured in two ways in turn.
#[derive(Debug, Serialize)]
struct Comparison {
    /// What.
    name: String,
    /// Of what.
    unit: &'static str,
    /// The way of comparison.
    reference: Quartiles,
    /// The way in question.
    measured: Quartiles,
    /// One by the other, pair by pair.
    ratio: Quartiles,
    /// Pairs.
    pairs: usize,
}

impl Comparison {
    /// Takes the two samples in turn, each first every other time.
    fn run(
        name: &str,
        unit: &'static str,
        pairs: u32,
        mut reference: impl FnMut() -> Result<f64>,
        mut measured: impl FnMut() -> Result<f64>,
    ) -> Result<Self> {
        let mut samples = Vec::new();
        for pair in 0..pairs {
            sweep::wait_if_stopping();
            samples.push(if pair % 2 == 0 {
                let first = reference()?;
                (first, measured()?)
            } else {
                let first = measured()?;
                (reference()?, first)
            });
        }
        let of = |pick: fn(&(f64, f64)) -> f64| {
            Quartiles::of(&samples.iter().map(pick).collect::<Vec<_>>())
        };
        Ok(Self {
            name: name.to_owned(),
            unit,
            reference: of(|(reference, _)| *reference),
            measured: of(|(_, measured)| *measured),
            ratio: of(|(reference, measured)| measured / reference),
            pairs: samples.len(),
        })
    }
}

/// The command. Leaves nothing behind, like the demo.
pub fn run(options: &Options) -> Result<()> {
    let earlier = options.compare.as_deref().map(read).transpose()?;
    let mut results = Results::default();
    begin()?;
    for bench in &options.benches {
        match bench {
            Bench::Packets => {
                let wanted = Wanted { case: options.case.as_deref(), is_short: options.short };
                results.packets = Some(cleanly(|| packets::run(&wanted))?);
            }
            Bench::Forwarding => {
                let run = || forwarding::run(options.pairs, &options.services);
                results.forwarding = Some(cleanly(run)?);
            }
            Bench::Requests => {
                let agent = released_agent(options.agent.as_deref())?;
                let run = || requests::run(options.pairs, &options.services, &agent);
                results.requests = Some(cleanly(run)?);
            }
            Bench::Bulk => results.bulk = cleanly(|| bulk::run(options.pairs))?,
            Bench::Sockets => results.sockets = cleanly(|| sockets::run(options.pairs))?,
        }
    }
    if options.json {
        println!("{}", serde_json::to_string_pretty(&results)?);
    } else {
        print(&results);
    }
    match (earlier, &results.packets) {
        (Some(earlier), Some(now)) => compare(&earlier, now),
        _ => Ok(()),
    }
}

/// The short form against the ratios that were checked in, as a step of CI. On a kind of machine that
/// has none, they are only shown.
pub fn gate() -> Result<()> {
    begin()?;
    let measure = || cleanly(|| packets::run(&Wanted { is_short: true, ..Wanted::default() }));
    let now = measure()?;
    eprintln!("{now}");
    let Some(earlier) = checked_in(&now)? else {
        eprintln!("{RATIOS} has no machine like this one: nothing to compare with");
        return Ok(());
    };
    let first = packets::Comparison::of(&earlier, &now);
    eprintln!("{first}");
    let suspects = first.regressions();
    if suspects.is_empty() {
        return Ok(());
    }
    // A change stays when it is measured again; a neighbour that was busy all along may not.
    step(&format!("measuring again: {}", suspects.join(", ")));
    let second = packets::Comparison::of(&earlier, &measure()?);
    eprintln!("{second}");
    let mut worse = second.regressions();
    worse.retain(|name| suspects.contains(name));
    ensure!(worse.is_empty(), "worse than before, twice: {}", worse.join(", "));
    Ok(())
}

/// The ratios of a machine like this one.
fn checked_in(now: &packets::Report) -> Result<Option<packets::Report>> {
    let dir = root().join(RATIOS);
    for entry in fs::read_dir(&dir).with_context(|| dir.display().to_string())? {
        let earlier = read(&entry?.path())?;
        if earlier.machine.is_like(&now.machine) {
            return Ok(Some(earlier));
        }
    }
    Ok(None)
}

fn begin() -> Result<()> {
    setup::toolchain()?;
    setup::machine()?;
    build_programs()?;
    sweep::stale();
    sweep::on_signal();
    Ok(())
}

/// Runs a benchmark and removes what it made, whatever becomes of it.
fn cleanly<T>(measure: impl FnOnce() -> Result<T>) -> Result<T> {
    let done = catch_unwind(AssertUnwindSafe(measure));
    sweep::wait_if_stopping();
    sweep::own();
    done.unwrap_or_else(|_| Err(anyhow!("the benchmark panicked")))
}

fn read(file: &Path) -> Result<packets::Report> {
    let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let results: Results =
        serde_json::from_str(&text).with_context(|| file.display().to_string())?;
    results.packets.with_context(|| format!("{}: nothing about packets", file.display()))
}

fn compare(earlier: &packets::Report, now: &packets::Report) -> Result<()> {
    let comparison = packets::Comparison::of(earlier, now);
    eprintln!("{comparison}");
    let regressions = comparison.regressions();
    ensure!(regressions.is_empty(), "worse than before: {}", regressions.join(", "));
    Ok(())
}

fn print(results: &Results) {
    if let Some(packets) = &results.packets {
        println!("{packets}");
    }
    if let Some(forwarding) = &results.forwarding {
        println!("{forwarding}\n");
    }
    if let Some(requests) = &results.requests {
        println!("{requests}\n");
    }
    let comparisons: Vec<_> = results.bulk.iter().chain(&results.sockets).collect();
    if !comparisons.is_empty() {
        println!("median (first to third quartile)\n");
    }
    for Comparison { name, unit, reference, measured, ratio, pairs } in comparisons {
        println!("{name}, {pairs} pairs");
        println!("  reference  {reference:.0} {unit}");
        println!("  measured   {measured:.0} {unit}");
        println!("  ratio      {ratio:.3}\n");
    }
}
