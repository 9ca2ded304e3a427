//! The container image: a docker-archive with one layer, in which there is the static agent, its BPF
//! object embedded, and nothing else. Equal programs give equal bytes.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use lbxdp_tests::go::hex;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

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

/// The command.
pub fn run(options: &Options) -> Result<()> {
    let agent = build_agent(&root().join("target"))?;
    let agent = fs::read(&agent).with_context(|| agent.display().to_string())?;
    let archive = archive(&agent, &options.tag)?;
    let output = match &options.output {
        Some(output) => output.clone(),
        None => root().join("target/lbxdp.tar"),
    };
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
    util::run(&mut build)?;
    Ok(target_dir.join(target).join("image").join(AGENT))
}

/// The archive of an image with this agent.
fn archive(agent: &[u8], tag: &str) -> Result<Vec<u8>> {
    ensure!(
        !tag.is_empty() && tag.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c)),
        "--tag {tag:?}: letters, digits, `_`, `.` and `-` only"
    );
    let mut layer = Builder::new(Vec::new());
    for directory in MOUNT_POINTS {
        append(&mut layer, directory, EntryType::Directory, 0o755, &[])?;
    }
    append(&mut layer, AGENT, EntryType::Regular, 0o755, agent)?;
    let layer = layer.into_inner()?;

    let config = serde_json::to_vec(&json!({
        "architecture": architecture()?,
        "os": "linux",
        // Neither time nor place of the build: they are no property of the image.
        "created": "1970-01-01T00:00:00Z",
        "config": {
            "Entrypoint": [format!("/{AGENT}")],
            "Env": ["PATH=/"],
            "Labels": {
                "org.opencontainers.image.title": "lbxdp",
                "org.opencontainers.image.description": DESCRIPTION,
                "org.opencontainers.image.version": env!("CARGO_PKG_VERSION"),
                "org.opencontainers.image.licenses": "(Apache-2.0 OR MIT) AND GPL-2.0-only",
            },
            "WorkingDir": "/",
        },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", sha256(&layer))] },
        "history": [{ "created": "1970-01-01T00:00:00Z", "created_by": "cargo xtask image" }],
    }))?;
    let config_name = format!("{}.json", sha256(&config));
    let manifest = serde_json::to_vec(&json!([{
        "Config": config_name,
        "RepoTags": [format!("{NAME}:{tag}")],
        "Layers": ["layer.tar"],
    }]))?;

    let mut image = Builder::new(Vec::new());
    append(&mut image, &config_name, EntryType::Regular, 0o644, &config)?;
    append(&mut image, "layer.tar", EntryType::Regular, 0o644, &layer)?;
    append(&mut image, "manifest.json", EntryType::Regular, 0o644, &manifest)?;
    Ok(image.into_inner()?)
}

/// Adds a file or directory that is root's and as old as time.
fn append(
    tar: &mut Builder<impl Write>,
    path: &str,
    kind: EntryType,
    mode: u32,
    bytes: &[u8],
) -> Result<()> {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(bytes.len() as u64);
    tar.append_data(&mut header, path, bytes).with_context(|| path.to_owned())
}

/// This machine's, in the words of container images.
fn architecture() -> Result<&'static str> {
    match std::env::consts::ARCH {
        "x86_64" => Ok("amd64"),
        "aarch64" => Ok("arm64"),
        other => anyhow::bail!("no image can be made on {other}: x86_64 and aarch64 are known"),
    }
}

fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}
