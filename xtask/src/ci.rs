//! What has to hold before a change goes in.

use anyhow::Result;

use crate::util::{cargo, run as run_command, step};
use crate::{bench, test};

/// The command. The tests come last, so that their count is the last line.
pub fn run() -> Result<()> {
    step("formatting");
    run_command(cargo().args(["fmt", "--all", "--check"]))?;
    step("lints");
    let mut clippy = cargo();
    clippy.args(["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"]);
    run_command(&mut clippy)?;
    step("demo");
    // A process of its own: the demo cleans up after itself and ends with an exit code.
    run_command(cargo().args(["run", "--quiet", "--package", "xtask", "--", "demo"]))?;
    step("packet benchmarks against the ratios that were checked in");
    bench::gate()?;
    test::run_default()
}
