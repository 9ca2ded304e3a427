//! Benchmarks. Every figure is a ratio of two samples that were taken one after the other in the
//! same run: this machine is never the same twice, but it is much the same for two seconds.

mod packets;
mod sockets;
mod stats;

use anyhow::{Result, anyhow};
use clap::{Args, ValueEnum};
use lbxdp_tests::sweep;
use serde::Serialize;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::setup;
use crate::util::build_programs;
use stats::Quartiles;

/// Options of `cargo xtask bench`.
#[derive(Args)]
pub struct Options {
    /// What to measure.
    #[arg(value_enum, default_values_t = [Bench::Packets, Bench::Sockets])]
    benches: Vec<Bench>,
    /// Pairs of samples for each ratio.
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..))]
    pairs: u32,
    /// Of `packets`, only cases whose name contains this.
    #[arg(long, value_name = "SUBSTRING")]
    case: Option<String>,
    /// One JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Bench {
    /// The XDP program: nanoseconds for each packet, path by path.
    Packets,
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
    setup::toolchain()?;
    setup::machine()?;
    build_programs()?;
    sweep::stale();
    sweep::on_signal();
    let mut comparisons = Vec::new();
    for bench in &options.benches {
        let measure = AssertUnwindSafe(|| match bench {
            Bench::Packets => {
                let wanted = packets::Wanted { case: options.case.as_deref(), rounds: 60, seconds: 60 };
                packets::run(&wanted).map(|()| Vec::new())
            }
            Bench::Sockets => sockets::run(options.pairs),
        });
        let done = catch_unwind(measure);
        sweep::wait_if_stopping();
        sweep::own();
        comparisons.extend(done.unwrap_or_else(|_| Err(anyhow!("the benchmark panicked")))?);
    }
    if options.json {
        println!("{}", serde_json::to_string_pretty(&comparisons)?);
        return Ok(());
    }
    println!("median (first to third quartile)\n");
    for Comparison { name, unit, reference, measured, ratio, pairs } in &comparisons {
        println!("{name}, {pairs} pairs");
        println!("  reference  {reference:.0} {unit}");
        println!("  measured   {measured:.0} {unit}");
        println!("  ratio      {ratio:.3}\n");
    }
    Ok(())
}
