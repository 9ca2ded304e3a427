//! A lab's cgroups. Everything that runs in it is below one cgroup v2 directory, which is how all of
//! it is found at the end, whatever it has become.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::cgroup;

const EMPTY_WITHIN: Duration = Duration::from_secs(20);

/// The cgroup of a host, made if it is not there, in version 2 and in every controller of version 1.
#[track_caller]
pub fn make(lab: &str, host: &str) -> PathBuf {
    let root = cgroup::root().expect("cgroup v2 is mounted");
    for root in version_1().into_iter().chain([root.clone()]) {
        let mut dir = root;
        for name in [lab, host] {
            let parent = dir.clone();
            dir.push(name);
            if dir.is_dir() {
                continue;
            }
            if let Err(error) = fs::create_dir(&dir) {
                panic!("{}: {error}", dir.display());
            }
            // In version 1 a new one has no processor and no memory, and takes no process.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if let Ok(value) = fs::read(parent.join(file)) {
                    let _ = fs::write(dir.join(file), value);
                }
            }
        }
    }
    root.join(lab).join(host)
}

/// Kills what is in a cgroup and below, and waits for its end.
pub fn kill(dir: &Path) {
    let _ = fs::write(dir.join("cgroup.kill"), "1");
    let deadline = Instant::now() + EMPTY_WITHIN;
    let is_populated = || {
        let events = fs::read_to_string(dir.join("cgroup.events")).unwrap_or_default();
        events.lines().any(|line| line == "populated 1")
    };
    while is_populated() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Kills everything of a lab and removes its cgroups.
pub fn remove(lab: &str) {
    if let Some(root) = cgroup::root() {
        kill(&root.join(lab));
        remove_tree(&root.join(lab));
    }
    for root in version_1() {
        remove_tree(&root.join(lab));
    }
}

/// Where the controllers of version 1 are mounted.
fn version_1() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mounts = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let point = fields.next()?;
        (fields.next()? == "cgroup").then(|| PathBuf::from(point))
    });
    mounts.collect()
}

/// Only directories can be removed from a cgroup, from below upwards.
fn remove_tree(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    let _ = fs::remove_dir(dir);
}
