//! The programs of a control plane, built from the Go modules under `tests/kube` and kept.

use std::collections::hash_map::DefaultHasher;
use std::fs::{self, File};
use std::hash::{Hash as _, Hasher as _};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};

use crate::process::{command, words};

/// What `go.mod` asks for.
const MINIMUM_GO: (u32, u32) = (1, 26);
/// Where Go's own installer puts it.
const GO_DIR: &str = "/usr/local/go/bin";
/// File to which a test adds its name instead of running. `cargo xtask test` counts the lines.
pub const SKIPPED: &str = "LBXDP_SKIPPED";
/// Progress is said this often.
const PROGRESS_EVERY: Duration = Duration::from_secs(10);

/// A program: its name, its module's directory, its package in it, and what the linker is told.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    name: &'static str,
    module: &'static str,
    package: &'static str,
    variables: &'static str,
}

/// etcd.
pub const ETCD: Program = Program { name: "etcd", module: "etcd", package: ".", variables: "" };
/// The API server.
pub const API_SERVER: Program = Program {
    name: "kube-apiserver",
    module: "kubernetes",
    package: "./kube-apiserver",
    // What it calls itself; the module's version.
    variables: "-X k8s.io/component-base/version.gitVersion=v1.36.3",
};
/// Makes the key that signs service accounts' tokens.
pub const SERVICE_ACCOUNT_KEY: Program = Program {
    name: "service-account-key",
    module: "kubernetes",
    package: "./service-account-key",
    variables: "",
};
/// All of them.
pub const PROGRAMS: [Program; 3] = [ETCD, SERVICE_ACCOUNT_KEY, API_SERVER];

/// Go, if it is there and new enough; or why not.
pub fn go() -> Result<PathBuf, String> {
    let (major, minor) = MINIMUM_GO;
    let wanted = format!("Go {major}.{minor} or newer (https://go.dev/dl)");
    let mut found = None;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain([PathBuf::from(GO_DIR)]);
    for go in dirs.map(|dir| dir.join("go")).filter(|go| go.is_file()) {
        let output = command(&go).args(["env", "GOVERSION"]).output();
        let version = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        let version = version.unwrap_or_default().trim().to_owned();
        if is_new_enough(&version) {
            return Ok(go);
        }
        found.get_or_insert(format!("{} is {version:?}", go.display()));
    }
    Err(match found {
        Some(found) => format!("{wanted} is needed, {found}"),
        None => format!("{wanted} is needed, there is none"),
    })
}

fn is_new_enough(version: &str) -> bool {
    let mut numbers = version.trim_start_matches("go").split(['.', 'r', 'b', '-', ' ']);
    let mut number = || numbers.next().and_then(|n| n.parse::<u32>().ok()).unwrap_or(0);
    (number(), number()) >= MINIMUM_GO
}

/// Whether the control plane can be built here. If not, the calling test is put down as skipped
/// for `cargo xtask test`, and has to return; without somebody who counts, it fails.
#[track_caller]
pub fn is_possible() -> bool {
    let Err(reason) = go() else { return true };
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

/// Builds what is missing and says how far it is: the first time takes minutes.
pub fn build_all() -> Result<(), String> {
    PROGRAMS.iter().try_for_each(|program| find(program).map(drop))
}

/// The path of a program, built now if it was not before.
pub fn find(program: &Program) -> Result<PathBuf, String> {
    let Program { name, module, package, variables } = program;
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("kube").join(module);
    let cache = cache();
    fs::create_dir_all(&cache).map_err(|error| format!("{}: {error}", cache.display()))?;
    // One build at a time, of all processes.
    let lock = File::create(cache.join("lock")).map_err(|error| error.to_string())?;
    let _lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, e)| e.to_string())?;

    let go = go();
    let path = cache.join(format!("{name}-{:016x}", key(program, &source)?));
    if path.is_file() {
        return Ok(path);
    }
    let draft = cache.join(format!("{name}.draft"));
    let mut build = command(go?);
    build.current_dir(&source).env("CGO_ENABLED", "0").args(["build", "-v", "-trimpath"]);
    build.args(["-mod=readonly", "-ldflags", &format!("-s -w {variables}")]);
    build.arg("-o").arg(&draft).arg(package);
    say(&format!("==> building {name} from its Go module; the first time takes minutes"));
    let start = Instant::now();
    let mut child = build.stderr(Stdio::piped()).spawn().map_err(|error| error.to_string())?;
    let (mut packages, mut said, mut tail) = (0, start, Vec::new());
    let stderr = child.stderr.take().ok_or("no output")?;
    for line in BufReader::new(stderr).lines().map_while(Result::ok) {
        packages += 1;
        if said.elapsed() > PROGRESS_EVERY {
            said = Instant::now();
            say(&format!("    {name}: {packages} packages, {:?}", start.elapsed()));
        }
        if tail.len() == 20 {
            tail.remove(0);
        }
        tail.push(line);
    }
    let status = child.wait().map_err(|error| error.to_string())?;
    if !status.success() {
        return Err(format!("{}: {status}\n{}", words(&build), tail.join("\n")));
    }
    fs::rename(&draft, &path).map_err(|error| error.to_string())?;
    remove_older(&cache, name, &path);
    Ok(path)
}

/// To the terminal, past the capture of a test's output.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// `$LBXDP_CACHE`, or a directory in cargo's.
fn cache() -> PathBuf {
    if let Some(dir) = std::env::var_os("LBXDP_CACHE") {
        return PathBuf::from(dir);
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let target = target.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"));
    target.join("kube")
}

/// Of everything that the program is made of, the compiler aside: one that is newer makes nothing
/// that a test could notice.
fn key(program: &Program, source: &Path) -> Result<u64, String> {
    let mut hasher = DefaultHasher::new();
    program.variables.hash(&mut hasher);
    let package = source.join(program.package);
    for path in [source.join("go.mod"), source.join("go.sum"), package.join("main.go")] {
        let text = fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        text.hash(&mut hasher);
    }
    Ok(hasher.finish())
}

fn remove_older(cache: &Path, name: &str, newest: &Path) {
    for entry in fs::read_dir(cache).into_iter().flatten().flatten() {
        let path = entry.path();
        let file = entry.file_name();
        let suffix = file.to_str().and_then(|file| file.strip_prefix(name)?.strip_prefix('-'));
        if path != newest && suffix.is_some_and(|key| key.len() == 16) {
            let _ = fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("kube/etcd");
        let other = Program { variables: "-X a.b=c", ..ETCD };
        let first = key(&ETCD, &source).unwrap();
        assert_eq!(key(&ETCD, &source).unwrap(), first);
        assert_ne!(key(&other, &source).unwrap(), first);
    }
}
