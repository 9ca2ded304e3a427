//! A Kubernetes cluster on this machine, to try and to test.

use std::io::IsTerminal as _;
use std::os::unix::process::CommandExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use clap::{Args, Subcommand, ValueEnum};
use lbxdp_tests::go;
use lbxdp_tests::kube::binaries;
use lbxdp_tests::lab::{Host, Lab, Place, Proxy};

use crate::image;
use crate::setup;
use crate::util::{build_programs, step};

/// Directory of the lab; `lab` in cargo's target directory if not set.
const DIRECTORY: &str = "LBXDP_LAB";

/// Commands of `cargo xtask lab`.
#[derive(Subcommand)]
pub enum Command {
    /// Bring it up; the first time takes minutes, for building.
    Up(Up),
    /// End and remove everything, half a lab too.
    Down,
    /// Nodes, pods, processes, and what each agent says of itself.
    Status,
    /// kubectl as an administrator.
    Kubectl {
        /// What kubectl is told.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// A shell on a host of the lab.
    Shell {
        /// `node-1`, `client` or `control-plane`.
        host: String,
        /// A command instead.
        #[arg(last = true)]
        command: Vec<String>,
    },
}

/// Options of `cargo xtask lab up`.
#[derive(Args)]
pub struct Up {
    /// How many nodes.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=32))]
    nodes: u8,
    /// Who serves Services.
    #[arg(long, value_enum, default_value = "lbxdp")]
    proxy: Server,
}

/// Who serves Services.
#[derive(Clone, Copy, ValueEnum)]
enum Server {
    /// lbxdp, from its chart.
    Lbxdp,
    /// kube-proxy in nftables mode.
    KubeProxy,
    /// Nobody.
    None,
}

/// The command.
pub fn run(command: &Command) -> Result<()> {
    match command {
        Command::Up(options) => up(options),
        Command::Down => {
            let dir = directory()?;
            match Place::read(&dir) {
                Some(place) => place.remove(),
                None => step(&format!("no lab in {}", dir.display())),
            }
            Ok(())
        }
        Command::Status => status(&open()?),
        Command::Kubectl { arguments } => Err(open()?
            .kubectl_command()
            .args(arguments)
            .stdin(std::process::Stdio::inherit())
            .exec())
        .context("kubectl"),
        Command::Shell { host, command } => shell(&open()?, host, command),
    }
}

fn directory() -> Result<PathBuf> {
    let dir = std::env::var_os(DIRECTORY).map_or_else(|| go::target().join("lab"), PathBuf::from);
    std::path::absolute(&dir).with_context(|| dir.display().to_string())
}

fn open() -> Result<Lab> {
    let dir = directory()?;
    let place = Place::read(&dir).filter(|place| place.is_complete);
    let place =
        place.with_context(|| format!("no lab in {}: cargo xtask lab up", dir.display()))?;
    let lab = Lab::open(&place);
    ensure!(lab.client.exists(), "{}: its namespaces are gone: lab down, then up", dir.display());
    Ok(lab)
}

fn up(options: &Up) -> Result<()> {
    setup::toolchain()?;
    setup::machine()?;
    setup::cluster()?;
    if let Some(reason) = go::missing() {
        bail!("{reason}");
    }
    build_programs()?;
    binaries::build_all()?;
    image::run(&image::Options::default())?;
    let proxy = match options.proxy {
        Server::Lbxdp => Proxy::Lbxdp,
        Server::KubeProxy => Proxy::KubeProxy,
        Server::None => Proxy::None,
    };
    let place = Place::new(&directory()?, options.nodes.into(), proxy);
    if is_up(&place) {
        step("it is up");
        return Ok(());
    }
    catch_unwind(AssertUnwindSafe(|| Lab::up(&place))).map_err(|_| {
        anyhow!("the lab did not come up; `cargo xtask lab down` removes what there is of it")
    })?;
    step("cargo xtask lab status | kubectl … | shell node-1 | down");
    Ok(())
}

/// Whether all of this lab is up and runs.
fn is_up(place: &Place) -> bool {
    let complete = Place { is_complete: true, ..place.clone() };
    Place::read(&place.dir) == Some(complete)
        && Lab::open(place).daemons().iter().all(lbxdp_tests::lab::Daemon::is_running)
}

fn status(lab: &Lab) -> Result<()> {
    println!("{} in {}", lab.place.name, lab.place.dir.display());
    for daemon in lab.daemons().iter().filter(|daemon| !daemon.is_running()) {
        println!("{} does not run", daemon.name());
    }
    println!("\n{}", lab.kubectl(&["get", "nodes", "-o", "wide"]).trim_end());
    println!("\n{}", lab.kubectl(&["get", "pods", "-A", "-o", "wide"]).trim_end());
    if lab.place.proxy != Proxy::Lbxdp {
        return Ok(());
    }
    println!();
    for node in &lab.nodes {
        let mut curl = node.host.command("curl");
        curl.args(["--silent", "--max-time", "2", "http://127.0.0.1:10469/readyz"]);
        let output = curl.output().context("curl")?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let said = if output.status.success() { said } else { "no answer".to_owned() };
        println!("lbxdp on {}: {}", node.name(), said.trim());
    }
    Ok(())
}

fn shell(lab: &Lab, host: &str, command: &[String]) -> Result<()> {
    let hosts: Vec<&Host> = lab.hosts().collect();
    let found = hosts.iter().find(|known| known.name == host);
    let names: Vec<_> = hosts.iter().map(|host| host.name.as_str()).collect();
    let host = found.with_context(|| format!("no host {host}: there are {}", names.join(", ")))?;
    let mut shell = match command {
        [] => host.command(std::env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into())),
        [program, arguments @ ..] => {
            let mut command = host.command(program);
            command.args(arguments);
            command
        }
    };
    shell.stdin(std::process::Stdio::inherit());
    if command.is_empty() && std::io::stdin().is_terminal() {
        shell.env("PS1", format!("{}# ", host.name));
    }
    Err(shell.exec()).context("a shell")
}
