//! Container images of one layer, as docker-archives. Equal files give equal bytes.

use std::io::Write;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

use crate::go::hex;

/// Neither time nor place of the build: they are no property of an image.
const CREATED: &str = "1970-01-01T00:00:00Z";

/// What is in an image.
#[derive(Clone, Debug, Default)]
pub struct Image<'a> {
    /// Its name, without a tag.
    pub name: &'a str,
    /// Its tag.
    pub tag: &'a str,
    /// Directories, each with a slash at its end, parents first.
    pub directories: &'a [&'a str],
    /// Paths without a slash in front, and what is in them. All are executable.
    pub files: &'a [(&'a str, &'a [u8])],
    /// The command.
    pub entrypoint: &'a [&'a str],
    /// Annotations.
    pub labels: &'a [(&'a str, &'a str)],
    /// Who made it.
    pub created_by: &'a str,
}

impl Image<'_> {
    /// The archive.
    pub fn archive(&self) -> Result<Vec<u8>> {
        let Self { name, tag, directories, files, entrypoint, labels, created_by } = self;
        ensure!(
            !tag.is_empty() && tag.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c)),
            "tag {tag:?}: letters, digits, `_`, `.` and `-` only"
        );
        let mut layer = Builder::new(Vec::new());
        for directory in *directories {
            append(&mut layer, directory, EntryType::Directory, 0o755, &[])?;
        }
        for (path, bytes) in *files {
            append(&mut layer, path, EntryType::Regular, 0o755, bytes)?;
        }
        let layer = layer.into_inner()?;
        let labels: serde_json::Map<String, serde_json::Value> =
            labels.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
        let config = serde_json::to_vec(&json!({
            "architecture": architecture()?,
            "os": "linux",
            "created": CREATED,
            "config": {
                "Entrypoint": entrypoint,
                "Env": ["PATH=/"],
                "Labels": labels,
                "WorkingDir": "/",
            },
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", sha256(&layer))] },
            "history": [{ "created": CREATED, "created_by": created_by }],
        }))?;
        let config_name = format!("{}.json", sha256(&config));
        let manifest = serde_json::to_vec(&json!([{
            "Config": config_name,
            "RepoTags": [format!("{name}:{tag}")],
            "Layers": ["layer.tar"],
        }]))?;

        let mut image = Builder::new(Vec::new());
        append(&mut image, &config_name, EntryType::Regular, 0o644, &config)?;
        append(&mut image, "layer.tar", EntryType::Regular, 0o644, &layer)?;
        append(&mut image, "manifest.json", EntryType::Regular, 0o644, &manifest)?;
        Ok(image.into_inner()?)
    }
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
        other => bail!("no image can be made on {other}: x86_64 and aarch64 are known"),
    }
}

/// A digest as image formats write it, without the algorithm.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}
