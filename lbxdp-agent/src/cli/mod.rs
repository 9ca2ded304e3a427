//! The command line. `run` is the agent; everything else reads the pins and needs no agent.

mod cleanup;
mod list;
mod members;
mod output;
mod run;
mod source;
mod status;
mod vip;

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory as _, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::pins::{DEFAULT_PIN_PATH, Pins};
use output::Format;

/// Service load balancing in the kernel: kube-proxy's and MetalLB's work in one agent per node.
#[derive(Debug, Parser)]
#[command(name = "lbxdp-agent", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve Services and EndpointSlices until told to stop; forwarding goes on after that.
    Run(Box<run::RunArgs>),
    /// Show devices, counters and drops.
    Status(status::StatusArgs),
    /// Services.
    #[command(subcommand)]
    Service(ListCommand),
    /// Backends.
    #[command(subcommand)]
    Backend(ListCommand),
    /// Flows.
    #[command(subcommand)]
    Flow(ListCommand),
    /// Addresses on the local network: what this node announces, and who announces what.
    #[command(subcommand)]
    Vip(VipCommand),
    /// Detach all programs and remove every pin: forwarding ends.
    Cleanup(PinArgs),
}

#[derive(Debug, Subcommand)]
enum ListCommand {
    /// List them.
    List(ReadArgs),
}

#[derive(Debug, Subcommand)]
enum VipCommand {
    /// List them.
    List(ReadArgs),
    /// Show who announces an address, who would be next, and why not the others.
    Show(vip::AskArgs),
    /// Say why this node announces an address, or why not, and what to do.
    Explain(vip::AskArgs),
}

#[derive(Debug, Args)]
struct PinArgs {
    /// Directory of pins, in a BPF file system.
    #[arg(long, env = "LBXDP_PIN_PATH", value_name = "PATH", default_value = DEFAULT_PIN_PATH)]
    pin_path: PathBuf,
}

#[derive(Debug, Args)]
struct ReadArgs {
    #[command(flatten)]
    pins: PinArgs,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

impl ReadArgs {
    fn pins(&self) -> Pins {
        Pins::new(&self.pins.pin_path)
    }
}

/// The command line, for what documents it or sets it up.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Parses the command line and carries it out. Exit status 0 for success, 1 for failure, 2 for a
/// command line that says nothing sensible.
pub fn main() -> ExitCode {
    let Cli { command } = Cli::parse();
    if let Command::Run(args) = &command
        && let Some(missing) = args.missing()
    {
        Cli::command().error(ErrorKind::MissingRequiredArgument, missing).exit();
    }
    let log = EnvFilter::try_from_env("LBXDP_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(log)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    let result = match command {
        Command::Run(args) => run::run(*args),
        Command::Status(args) => status::status(&args),
        Command::Service(ListCommand::List(args)) => list::services(&args),
        Command::Backend(ListCommand::List(args)) => list::backends(&args),
        Command::Flow(ListCommand::List(args)) => list::flows(&args),
        Command::Vip(VipCommand::List(args)) => vip::list(&args),
        Command::Vip(VipCommand::Show(args)) => vip::show(&args),
        Command::Vip(VipCommand::Explain(args)) => vip::explain(&args),
        Command::Cleanup(args) => cleanup::cleanup(&args.pin_path),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lbxdp-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}
