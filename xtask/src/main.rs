//! Project tasks: `cargo xtask COMMAND`.

mod bench;
mod build_ebpf;
mod chart;
mod ci;
mod demo;
mod image;
mod lab;
mod scale;
mod setup;
mod test;
mod util;

use std::process::ExitCode;

use clap::Parser;

#[derive(Parser)]
#[command(bin_name = "cargo xtask", about, disable_help_subcommand = true)]
enum Task {
    /// Install what is missing: rust-src, bpf-linker, Debian packages, the BPF file system.
    Setup,
    /// Build the packet programs into target/bpf/lbxdp-ebpf.
    BuildEbpf,
    /// Build what tests of upgrades need: programs and agent with another layout of maps.
    BuildNext,
    /// Write the container image: a docker-archive with the static agent and nothing else.
    Image(image::Options),
    /// Render deploy/manifests/lbxdp.yaml from the Helm chart.
    Chart(chart::Options),
    /// A client, two nodes and four pods on this machine, and real requests.
    Demo,
    /// A Kubernetes cluster on this machine: real components, nodes as namespaces.
    #[command(subcommand)]
    Lab(lab::Command),
    /// Run every test; the last line is `N passed, N failed, N skipped`.
    Test(test::Options),
    /// Measure: what the XDP program takes for a packet, and clients on a node.
    Bench(bench::Options),
    /// Measure an agent with 10,000 Services of ten endpoints each, from a real API server.
    Scale(scale::Options),
    /// Formatting, lints, demo, packet benchmarks and tests.
    Ci,
}

fn main() -> ExitCode {
    let done = match Task::parse() {
        Task::Setup => setup::run(),
        Task::BuildEbpf => build_ebpf::run(),
        Task::BuildNext => util::build_next(),
        Task::Image(options) => image::run(&options),
        Task::Chart(options) => chart::run(&options),
        Task::Demo => demo::run(),
        Task::Lab(command) => lab::run(&command),
        Task::Test(options) => test::run(&options),
        Task::Bench(options) => bench::run(&options),
        Task::Scale(options) => scale::run(&options),
        Task::Ci => ci::run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
