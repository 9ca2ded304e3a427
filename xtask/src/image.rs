//! The container image: a docker-archive with one layer, in which there is the static agent, its BPF
//! object embedded, and nothing else. Equal programs give equal bytes.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use lbxdp_tests::image::{Image, sha256};

use crate::util::{self, cargo, root, step};
use crate::{build_ebpf, setup};

#[cfg(test)]
mod tests;

/// The agent in the image.
const AGENT: &str = "lbxdp-agent";
const NAME: &str = "localhost/lbxdp";
const DESCRIPTION: &str = "Kubernetes Services in the kernel: the agent of a node";
/// Where the chart mounts something: a read-only root lets a runtime create nothing.
const MOUNT_POINTS: &[&str] = &[
    "dev/",
    "etc/",
    "etc/lbxdp/",
    "etc/lbxdp/members/",
    "host/",
    "host/cgroup/",
    "proc/",
    "run/",
    "sys/",
    "tmp/",
    "var/",
    "var/lib/",
    "var/lib/lbxdp/",
    "var/run/",
];

/// Options of `cargo xtask image`.
#[derive(clap::Args)]
pub struct Options {
    /// The archive; target/lbxdp.tar if not given.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Tag of the image `localhost/lbxdp`.
    #[arg(long, value_name = "TAG", default_value = env!("CARGO_PKG_VERSION"))]
    tag: String,
}

impl Default for Options {
    fn default() -> Self {
        Self { output: None, tag: env!("CARGO_PKG_VERSION").to_owned() }
    }
}

/// The command.
pub fn run(options: &Options) -> Result<()> {
    let agent = build_agent(&root().join("target"))?;
    let agent = fs::read(&agent).with_context(|| agent.display().to_string())?;
    let archive = archive(&agent, &options.tag)?;
    let output = options.output.clone().unwrap_or_else(lbxdp_tests::lab::agent_image);
    if let Some(directory) = output.parent() {
        fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    }
    // By rename: who imports the image at the same time gets the old one or the new one.
    let mut draft = output.clone().into_os_string();
    draft.push(format!(".{}", std::process::id()));
    fs::write(&draft, &archive).with_context(|| Path::new(&draft).display().to_string())?;
    fs::rename(&draft, &output).with_context(|| output.display().to_string())?;
    step(&format!(
        "wrote {NAME}:{} to {}: {:.1} MiB, sha256:{}",
        options.tag,
        output.display(),
        archive.len() as f64 / f64::from(1 << 20),
        sha256(&archive)
    ));
    Ok(())
}

/// Builds the static agent in a directory of cargo's.
fn build_agent(target_dir: &Path) -> Result<PathBuf> {
    build_ebpf::run()?;
    let target = setup::musl_target()?;
    step(&format!("building the agent for {target}"));
    let mut build = cargo();
    build.args(["build", "--locked", "--quiet", "--package", AGENT, "--bin", AGENT]);
    build.args(["--profile", "image", "--target", &target]).arg("--target-dir").arg(target_dir);
    // Panics name source files: not those of whoever happened to build.
    let mut flags = vec!["-Ctarget-feature=+crt-static".to_owned()];
    let home = util::cargo_home().context("neither CARGO_HOME nor HOME is set")?;
    for (from, to) in [(root(), "lbxdp"), (home.as_path(), "cargo")] {
        flags.push(format!("--remap-path-prefix={}={to}", from.display()));
    }
    build.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    build.env_remove("RUSTFLAGS");
    // An incremental build is twice as large, and other bytes each time.
    build.env("CARGO_INCREMENTAL", "0");
    util::run(&mut build)?;
    Ok(target_dir.join(target).join("image").join(AGENT))
}

/// The archive of an image with this agent.
fn archive(agent: &[u8], tag: &str) -> Result<Vec<u8>> {
    Image {
        name: NAME,
        tag,
        directories: MOUNT_POINTS,
        files: &[(AGENT, agent)],
        entrypoint: &[&format!("/{AGENT}")],
        labels: &[
            ("org.opencontainers.image.title", "lbxdp"),
            ("org.opencontainers.image.description", DESCRIPTION),
            ("org.opencontainers.image.version", env!("CARGO_PKG_VERSION")),
            (
                "org.opencontainers.image.licenses",
                "(Apache-2.0 OR MIT) AND MPL-2.0 AND GPL-2.0-only",
            ),
        ],
        created_by: "cargo xtask image",
    }
    .archive()
}
