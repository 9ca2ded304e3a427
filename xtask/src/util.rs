//! What the tasks share.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use lbxdp_tests::process::words;

/// The workspace's directory.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is one level down")
}

/// A command in the workspace's directory that finds administrators' tools and cargo's.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = lbxdp_tests::process::command(program);
    let mut path = command
        .get_envs()
        .find_map(|(key, value)| (key == "PATH").then_some(value).flatten())
        .map(OsStr::to_owned)
        .unwrap_or_default();
    if let Some(bin) = cargo_bin() {
        path.push(":");
        path.push(bin);
    }
    command.env("PATH", path).current_dir(root());
    command
}

fn cargo_bin() -> Option<PathBuf> {
    Some(cargo_home()?.join("bin"))
}

/// Where cargo keeps programs and other people's sources.
pub fn cargo_home() -> Option<PathBuf> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")))
}

/// The cargo that runs this task. It is not told what cargo told this one of its package: build scripts
/// that look at that would run again, and everything on top of them be compiled again, each time that
/// builds by a task and others alternate.
pub fn cargo() -> Command {
    let mut cargo = command(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            cargo.env_remove(&*name);
        }
    }
    cargo
}

/// Runs a command with this task's own output; its failure is an error.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| words(command))?;
    ensure!(status.success(), "{}: {status}", words(command));
    Ok(())
}

/// What a command prints, or nothing if it cannot be run or fails.
pub fn output(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Says what comes next.
pub fn step(text: &str) {
    eprintln!("==> {text}");
}

/// Builds the agent and the test programs, after the object that the agent embeds.
pub fn build_programs() -> Result<()> {
    crate::build_ebpf::run()?;
    step("building the agent and the test programs");
    run(cargo().args(["build", "--workspace", "--bins", "--quiet"]))
}

/// The agent to measure: this one, or one that is built as it is used.
pub fn released_agent(given: Option<&Path>) -> Result<PathBuf> {
    if let Some(given) = given {
        return Ok(given.to_owned());
    }
    crate::build_ebpf::run()?;
    step("building the agent with optimisations");
    run(cargo().args(["build", "--release", "--package", "lbxdp-agent", "--quiet"]))?;
    Ok(root().join("target/release/lbxdp-agent"))
}

/// Builds the agent and its programs with the next layout of maps, `lbxdp-agent-next`: what tests
/// of upgrades come from and go back to. Only this workspace's crates are built again.
pub fn build_next() -> Result<()> {
    crate::build_ebpf::run_next()?;
    step("building the agent with the next layout of maps");
    let mut build = cargo();
    // Nobody debugs it. It copies maps as large as any, so it is optimised as the other one is.
    for setting in ["opt-level=1", "debug=false"] {
        build.args(["--config", &format!("profile.dev.package.lbxdp-agent.{setting}")]);
    }
    build.args(["build", "--workspace", "--bin", "lbxdp-agent-next", "--quiet"]);
    run(build.args(["--features", "lbxdp-agent/next-layout"]))
}
