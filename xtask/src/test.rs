//! Runs every test and counts.

use std::fmt;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use lbxdp_tests::go;
use lbxdp_tests::kube::binaries;

use crate::util::{build_next, build_programs, cargo, step};
use crate::{image, setup, util};

/// Options of `cargo xtask test`.
#[derive(clap::Args, Default)]
pub struct Options {
    /// Also the long variants of tests that have one.
    #[arg(long)]
    long: bool,
    /// Only tests whose name contains this.
    filter: Option<String>,
    /// Tests at a time. Most of them wait for packets, so more than there are processors.
    #[arg(long, env = "LBXDP_TEST_THREADS")]
    threads: Option<usize>,
}

/// The command. Fails unless every test ran and passed.
pub fn run(options: &Options) -> Result<()> {
    let Options { long, filter, threads } = options;
    let ready = setup::toolchain()
        .and_then(|()| setup::machine())
        .and_then(|()| build_programs())
        .and_then(|()| build_next())
        .and_then(|()| build_cluster());
    let mut tally = Tally::default();
    let said = Skipped::new()?;
    let ran = match ready {
        Ok(()) => {
            let threads = threads.unwrap_or_else(default_threads);
            let mut test = cargo();
            test.args(["test", "--workspace", "--no-fail-fast"]);
            // `#[ignore]` keeps what needs root out of a plain `cargo test`. Here root was checked,
            // so everything runs.
            test.args(filter).args(["--", "--include-ignored"]);
            test.args(["--test-threads", &threads.to_string()]);
            test.env(go::SKIPPED, &said.path);
            if *long {
                test.env("LBXDP_LONG", "1");
            }
            step(&format!("running the tests, {threads} at a time"));
            stream(&mut test, &mut tally)
        }
        Err(error) => Err(error),
    };
    if let Err(error) = &ran {
        eprintln!("error: {error:#}");
        // A test program that could not be built or ended early has no line of its own.
        tally.failed = tally.failed.max(1);
    }
    // Such a test has returned, and the harness takes that for success.
    for line in said.read() {
        eprintln!("SKIPPED: {line}");
        tally.passed = tally.passed.saturating_sub(1);
        tally.skipped += 1;
    }
    let Tally { passed, failed, skipped, panics } = tally;
    // A failed test's output is long, and the agents' logs in it are longer.
    for panic in panics {
        println!("{panic}\n");
    }
    println!("{passed} passed, {failed} failed, {skipped} skipped");
    // Nothing is printed after that line: the exit code says the rest.
    if ran.is_err() || failed > 0 || skipped > 0 || passed == 0 {
        let _ = std::io::stdout().flush();
        std::process::exit(1);
    }
    Ok(())
}

/// The programs of a cluster and the agent's image, before any test waits for them. Without Go the tests
/// that need them put themselves down as skipped.
fn build_cluster() -> Result<()> {
    match go::missing() {
        None => {
            setup::cluster()?;
            binaries::build_all()?;
            image::run(&image::Options::default())
        }
        Some(reason) => {
            step(&format!("no tests with a Kubernetes API: {reason}"));
            Ok(())
        }
    }
}

/// The file to which tests add their names instead of running.
struct Skipped {
    path: PathBuf,
}

impl Skipped {
    fn new() -> Result<Self> {
        let path = util::root().join("target/skipped-tests");
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(Self { path }),
        }
    }

    fn read(&self) -> Vec<String> {
        let text = fs::read_to_string(&self.path).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(4, |n| n.get().max(4))
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: u64,
    failed: u64,
    skipped: u64,
    /// What the tests that failed had to say.
    panics: Vec<Panic>,
}

/// The message of a panic, without what follows it.
#[derive(Debug, PartialEq, Eq)]
struct Panic {
    lines: Vec<String>,
    is_over: bool,
}

impl Panic {
    /// A value that is compared may be a whole table.
    const LINES: usize = 30;

    fn add(&mut self, line: &str) {
        let ends = line.starts_with("stack backtrace:") || line.starts_with("note: run with");
        self.is_over |= ends || self.lines.len() == Self::LINES;
        if !self.is_over {
            self.lines.push(line.to_owned());
        }
    }
}

impl fmt::Display for Panic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.lines.join("\n"))
    }
}

impl Tally {
    /// Takes from a line what it says: `test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; …`, or
    /// `thread 'upgrade' (17) panicked at …` and what comes after.
    fn add(&mut self, line: &str) {
        if line.starts_with("thread '") && line.contains(" panicked at ") {
            self.panics.push(Panic { lines: Vec::new(), is_over: false });
        }
        if let Some(panic) = self.panics.last_mut() {
            panic.add(line);
        }
        let Some(result) = line.strip_prefix("test result: ") else { return };
        for part in result.split(['.', ';']) {
            let Some((number, what)) = part.trim().split_once(' ') else { continue };
            let Ok(number) = number.parse::<u64>() else { continue };
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.skipped += number,
                _ => {}
            }
        }
    }
}

fn stream(test: &mut Command, tally: &mut Tally) -> Result<()> {
    let mut child = test.stdout(Stdio::piped()).spawn().context("cargo test")?;
    let mut lines = BufReader::new(child.stdout.take().context("cargo's output")?);
    let mut stdout = std::io::stdout().lock();
    let mut line = Vec::new();
    // Bytes, not text: a test may print anything.
    while lines.read_until(b'\n', &mut line)? > 0 {
        stdout.write_all(&line)?;
        stdout.flush()?;
        tally.add(String::from_utf8_lossy(&line).trim_end());
        line.clear();
    }
    drop(stdout);
    let status = child.wait()?;
    ensure!(status.success(), "{}: {status}", lbxdp_tests::process::words(test));
    Ok(())
}

/// The tests as the last step of CI.
pub fn run_default() -> Result<()> {
    util::step("tests");
    run(&Options::default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_add_up_and_other_lines_do_not() {
        let mut tally = Tally::default();
        tally.add("running 4 tests");
        tally.add("test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 9 filtered out; finished in 0.05s");
        tally.add("test result: FAILED. 2 passed; 4 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.10s");
        assert_eq!(tally, Tally { passed: 5, failed: 4, skipped: 1, panics: Vec::new() });
    }

    #[test]
    fn what_a_panic_says_is_kept_and_no_log() {
        let mut tally = Tally::default();
        let first = ["thread 'a::b' (17) panicked at tests/x.rs:1:2:", "left: 1", " right: 2"];
        let second = "thread '<unnamed>' (18) panicked at src/y.rs:3:4:";
        tally.add("---- a::b stdout ----");
        first.iter().for_each(|line| tally.add(line));
        for line in ["stack backtrace:", "   0: std", "--- log of the agent", "INFO", second] {
            tally.add(line);
        }
        (0..100).for_each(|_| tally.add("too much"));
        let said: Vec<_> = tally.panics.iter().map(ToString::to_string).collect();
        assert_eq!(said[0], first.join("\n"));
        assert_eq!(said[1].lines().count(), Panic::LINES);
        assert!(said[1].starts_with(second));
        assert_eq!(said.len(), 2);
    }
}
