//! Renders the flat manifest from the Helm chart.

use std::fs;

use anyhow::{Context as _, Result, bail};
use lbxdp_tests::chart::{FLAT, Helm, flat};

use crate::util::{root, step};

/// Options of `cargo xtask chart`.
#[derive(clap::Args)]
pub struct Options {
    /// Write nothing; fail if the committed manifest is not what the chart gives.
    #[arg(long)]
    check: bool,
}

/// The command.
pub fn run(options: &Options) -> Result<()> {
    let rendered = flat(&Helm::get()?)?;
    let path = root().join(FLAT);
    let committed = fs::read_to_string(&path).unwrap_or_default();
    if committed == rendered {
        step(&format!("{FLAT} is what the chart gives"));
    } else if options.check {
        bail!("{FLAT} is not what the chart gives: run `cargo xtask chart`");
    } else {
        fs::create_dir_all(path.parent().unwrap_or(root())).context(FLAT)?;
        fs::write(&path, rendered).context(FLAT)?;
        step(&format!("wrote {FLAT}"));
    }
    Ok(())
}
