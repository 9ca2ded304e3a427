//! On which processors a benchmark runs.

use anyhow::{Context as _, Result, ensure};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// The processors that the calling thread may use, the last one first: interrupts tend to come to the
/// first. At least one.
pub fn processors() -> Result<Vec<usize>> {
    let allowed = sched_getaffinity(Pid::from_raw(0)).context("the processors allowed")?;
    let all = (0..CpuSet::count()).rev().filter(|cpu| allowed.is_set(*cpu).unwrap_or(false));
    let all: Vec<_> = all.collect();
    ensure!(!all.is_empty(), "no processor is allowed");
    Ok(all)
}

/// Keeps the calling thread, and what it starts from here on, on one processor.
pub fn stay_on(processor: usize) -> Result<()> {
    let mut one = CpuSet::new();
    one.set(processor)?;
    sched_setaffinity(Pid::from_raw(0), &one).context("stay on one processor")
}
