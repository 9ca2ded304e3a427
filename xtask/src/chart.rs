//! Renders the flat manifests from the Helm chart.

use std::fs;

use anyhow::{Context as _, Result, bail};
use lbxdp_tests::chart::{FLAT, FLAT_DEFINITIONS, Helm, flat, flat_definitions};

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
    compare(FLAT, &flat(&Helm::get()?)?, options.check)?;
    compare(FLAT_DEFINITIONS, &flat_definitions()?, options.check)
}

fn compare(name: &str, rendered: &str, is_check: bool) -> Result<()> {
    let path = root().join(name);
    let committed = fs::read_to_string(&path).unwrap_or_default();
    if committed == rendered {
        step(&format!("{name} is what the chart gives"));
    } else if is_check {
        bail!("{name} is not what the chart gives: run `cargo xtask chart`");
    } else {
        fs::create_dir_all(path.parent().unwrap_or(root())).context(name.to_owned())?;
        fs::write(&path, rendered).context(name.to_owned())?;
        step(&format!("wrote {name}"));
    }
    Ok(())
}
