//! Programs built from pinned Go modules: `go.mod` and `go.sum` say which source, byte by byte, and
//! the result is kept by what it was built from, in `$LBXDP_CACHE` or `target/kube`.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};

use crate::process::{command, words};

/// What the modules ask for.
const MINIMUM_GO: (u32, u32) = (1, 26);
/// Where Go's own instructions install it.
const GO_DIR: &str = "/usr/local/go/bin";
/// File to which a test adds its name instead of running. `cargo xtask test` counts the lines.
pub const SKIPPED: &str = "LBXDP_SKIPPED";
/// Progress is said this often.
const PROGRESS_EVERY: Duration = Duration::from_secs(10);
/// Lines of a failed build that are shown.
const TAIL: usize = 20;
/// Digits of the key in a program's file name.
const KEY_DIGITS: usize = 16;

/// A program of a Go module.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    /// What it is called.
    pub name: &'static str,
    /// Directory of the module in the workspace.
    pub module: &'static str,
    /// Its package: a tool of the module, or a directory in it that begins with `./`.
    pub package: &'static str,
    /// Variables that the linker sets, `-X package.name=value`.
    pub variables: &'static str,
    /// Build tags, separated by commas.
    pub tags: &'static str,
    /// Whether parts of it are in C. Other programs are static: they run anywhere, in an image
    /// with nothing else included.
    pub cgo: bool,
}

impl Program {
    /// A static program without variables and tags.
    pub const fn new(name: &'static str, module: &'static str, package: &'static str) -> Self {
        Self { name, module, package, variables: "", tags: "", cgo: false }
    }

    /// Its path, after it was built if it was not before. The first time takes minutes.
    pub fn find(&self) -> Result<PathBuf> {
        let cache = cache()?;
        // One build at a time, of all processes: each of them uses all processors.
        let lock = cache.join("lock");
        let lock = File::create(&lock).with_context(|| lock.display().to_string())?;
        lock.lock().context("waiting for another build")?;
        let path = cache.join(format!("{}-{}", self.name, self.key()?));
        if !path.is_file() {
            let draft = cache.join(format!("{}.draft", self.name));
            self.build(&draft)?;
            fs::rename(&draft, &path).with_context(|| path.display().to_string())?;
            remove_older(&cache, self.name, &path);
        }
        Ok(path)
    }

    fn build(&self, output: &Path) -> Result<()> {
        let Self { name, module, package, variables, tags, cgo } = self;
        let mut build = go()?;
        build.current_dir(workspace().join(module));
        build.env("CGO_ENABLED", if *cgo { "1" } else { "0" });
        build.args(["build", "-v", "-trimpath", "-mod=readonly", "-tags", tags]);
        build.arg(format!("-ldflags=-s -w {variables}"));
        build.arg("-o").arg(output).arg(package);
        say(&format!("==> building {name} from its Go module; the first time takes minutes"));
        let start = Instant::now();
        let mut child = build.stderr(Stdio::piped()).spawn().with_context(|| words(&build))?;
        let (mut packages, mut said, mut tail) = (0, start, Vec::new());
        let stderr = child.stderr.take().context("the compiler's output")?;
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            packages += 1;
            if said.elapsed() > PROGRESS_EVERY {
                said = Instant::now();
                say(&format!("    {name}: {packages} packages, {:?}", start.elapsed()));
            }
            if tail.len() == TAIL {
                tail.remove(0);
            }
            tail.push(line);
        }
        let status = child.wait().with_context(|| words(&build))?;
        if !status.success() {
            bail!("{} in {module}: {status}\n{}", words(&build), tail.join("\n"));
        }
        Ok(())
    }

    /// Of everything that the program is made of, the compiler aside: one that is newer makes
    /// nothing that a test could notice.
    fn key(&self) -> Result<String> {
        let Self { name: _, module, package, variables, tags, cgo } = self;
        let directory = workspace().join(module);
        let mut files = vec![directory.join("go.mod"), directory.join("go.sum")];
        if package.starts_with("./") {
            let own = directory.join(package);
            let entries = fs::read_dir(&own).with_context(|| own.display().to_string())?;
            let mut own = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
            own.sort();
            files.extend(own);
        }
        let mut hash = Sha256::new();
        hash.update(format!("{package} {variables:?} {tags:?} {cgo}"));
        for file in files {
            let bytes = fs::read(&file).with_context(|| file.display().to_string())?;
            hash.update(bytes.len().to_le_bytes());
            hash.update(bytes);
        }
        Ok(hex(&hash.finalize())[..KEY_DIGITS].to_owned())
    }
}

/// The workspace's directory.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests is one level down")
}

/// Bytes in hexadecimal, as digests are written.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Go itself, from `PATH` or where its own instructions install it; or why it cannot be used.
fn go() -> Result<Command> {
    let (major, minor) = MINIMUM_GO;
    let wanted = format!("Go {major}.{minor} or newer (https://go.dev/dl) is needed");
    let mut found = None;
    let mut path = std::env::var_os("PATH").unwrap_or_else(|| OsString::from("/usr/bin:/bin"));
    path.push(":");
    path.push(GO_DIR);
    for go in std::env::split_paths(&path).map(|dir| dir.join("go")).filter(|go| go.is_file()) {
        let output = command(&go).env("GOTOOLCHAIN", "local").args(["env", "GOVERSION"]).output();
        let version = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        let version = version.unwrap_or_default().trim().to_owned();
        if is_new_enough(&version) {
            let mut go = command(go);
            // A toolchain that comes over the network is not pinned.
            go.env("GOTOOLCHAIN", "local").env("GOWORK", "off").env_remove("GOFLAGS");
            return Ok(go);
        }
        found.get_or_insert(format!("{} is {version:?}", go.display()));
    }
    bail!("{wanted}, {}", found.as_deref().unwrap_or("there is none"))
}

/// Why no Go program can be built here, if so.
pub fn missing() -> Option<String> {
    go().err().map(|error| error.to_string())
}

/// Whether Go programs can be built here. If not, the calling test is put down as skipped for
/// `cargo xtask test`, and has to return; without somebody who counts, it fails.
#[track_caller]
pub fn is_possible() -> bool {
    let Some(reason) = missing() else { return true };
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("a test").to_owned();
    let Some(list) = std::env::var_os(SKIPPED) else {
        panic!("{reason}");
    };
    let mut list = File::options().append(true).create(true).open(list).expect("list of skipped");
    // One write: other tests add their names at the same time.
    list.write_all(format!("{name}: {reason}\n").as_bytes()).expect("list of skipped");
    false
}

fn is_new_enough(version: &str) -> bool {
    let mut numbers = version.trim_start_matches("go").split(['.', 'r', 'b', '-', ' ']);
    let mut number = || numbers.next().and_then(|n| n.parse::<u32>().ok()).unwrap_or(0);
    (number(), number()) >= MINIMUM_GO
}

/// To the terminal, past the capture of a test's output.
pub(crate) fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// `$LBXDP_CACHE`, or a directory in cargo's.
fn cache() -> Result<PathBuf> {
    let cache =
        std::env::var_os("LBXDP_CACHE").map_or_else(|| target().join("kube"), PathBuf::from);
    fs::create_dir_all(&cache).with_context(|| cache.display().to_string())?;
    Ok(cache)
}

/// Where cargo puts what it builds.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}

fn remove_older(cache: &Path, name: &str, newest: &Path) {
    for entry in fs::read_dir(cache).into_iter().flatten().flatten() {
        let path = entry.path();
        let file = entry.file_name();
        let suffix = file.to_str().and_then(|file| file.strip_prefix(name)?.strip_prefix('-'));
        if path != newest && suffix.is_some_and(|key| key.len() == KEY_DIGITS) {
            let _ = fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kube::binaries::ETCD;

    #[test]
    fn versions_compare_as_numbers() {
        for (version, expected) in [
            ("go1.26", true),
            ("go1.26.8", true),
            ("go1.100rc1", true),
            ("go2.0", true),
            ("go1.25.9", false),
            ("go1.3", false),
            ("", false),
            ("devel", false),
        ] {
            assert_eq!(is_new_enough(version), expected, "{version}");
        }
    }

    #[test]
    fn a_program_is_known_by_what_it_is_made_of() {
        let other = Program { variables: "-X a.b=c", ..ETCD };
        let first = ETCD.key().unwrap();
        assert_eq!(ETCD.key().unwrap(), first);
        assert_ne!(other.key().unwrap(), first);
    }
}
