//! Programs built from pinned Go modules: `go.mod` and `go.sum` say which source, byte by byte, and
//! the result is kept under `target/tools` by what it was built from.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use sha2::{Digest as _, Sha256};

use crate::process::{command, words};

/// The workspace's directory.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests is one level down")
}

/// Go itself, from `PATH` or where its own instructions install it.
fn go() -> Command {
    let mut path = std::env::var_os("PATH").unwrap_or_else(|| OsString::from("/usr/bin:/bin"));
    path.push(":/usr/local/go/bin");
    let program = std::env::split_paths(&path).map(|dir| dir.join("go")).find(|go| go.is_file());
    let mut go = command(program.unwrap_or_else(|| "go".into()));
    // What `go.mod` asks for must be there: a toolchain that comes over the network is not pinned.
    // Static programs run anywhere, a node's empty file system included.
    go.env("PATH", path).env("GOTOOLCHAIN", "local").env("CGO_ENABLED", "0").env("GOWORK", "off");
    go
}

/// What `go version` says, or why Go cannot be used.
pub fn version() -> Result<String> {
    let mut version = go();
    version.arg("version");
    let output = version.output().context("Go 1.26 or newer is needed")?;
    ensure!(output.status.success(), "{}: {}", words(&version), output.status);
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The program `package` of the module in the directory `module` of the workspace, built unless that
/// was done before. `progress` is told before a build, which may take minutes.
pub fn tool(module: &str, package: &str, progress: impl FnOnce(&str)) -> Result<PathBuf> {
    let directory = workspace().join(module);
    let name = package.rsplit('/').next().unwrap_or(package);
    let program = cache()?.join(format!("{name}-{}", key(&directory, package)?));
    // Held while building: tests run side by side, and the second one finds the program made.
    let lock = program.with_extension("lock");
    let lock = File::create(&lock).with_context(|| lock.display().to_string())?;
    lock.lock().context("waiting for another build")?;
    if program.is_file() {
        return Ok(program);
    }
    progress(&format!("building {package} (minutes, the first time)"));
    let draft = program.with_extension("draft");
    let mut build = go();
    build.current_dir(&directory).args(["build", "-trimpath", "-mod=readonly", "-ldflags=-s -w"]);
    build.arg("-o").arg(&draft).arg(package);
    let output = build.output().with_context(|| words(&build))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{} in {module}: {}\n{said}", words(&build), output.status);
    }
    fs::rename(&draft, &program).with_context(|| program.display().to_string())?;
    Ok(program)
}

fn cache() -> Result<PathBuf> {
    let cache = workspace().join("target/tools");
    fs::create_dir_all(&cache).with_context(|| cache.display().to_string())?;
    Ok(cache)
}

/// What the program is made of: compiler, versions, sums, and the module's own sources.
fn key(directory: &Path, package: &str) -> Result<String> {
    let mut hash = Sha256::new();
    hash.update(version()?);
    hash.update(package);
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| directory.display().to_string())? {
        files.push(entry?.path());
    }
    files.sort();
    for file in files.iter().filter(|file| file.is_file()) {
        let bytes = fs::read(file).with_context(|| file.display().to_string())?;
        hash.update(file.file_name().unwrap_or_default().as_encoded_bytes());
        hash.update(bytes.len().to_le_bytes());
        hash.update(bytes);
    }
    Ok(hex(&hash.finalize())[..16].to_owned())
}

/// Bytes in hexadecimal, as digests are written.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
