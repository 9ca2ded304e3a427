//! A cgroup v2 subtree for each node, so that what a test attaches to "its" root reaches nobody
//! else's sockets.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::command;
use crate::sweep;

/// Where cgroup v2 is mounted, if it is.
pub fn root() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let path = fields.next()?;
        (fields.next()? == "cgroup2").then(|| PathBuf::from(path))
    })
}

/// A cgroup v2 directory. Dropping the handle removes it if no process is left in it.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// A new, empty cgroup under the root.
    #[track_caller]
    pub fn new(role: &str) -> Self {
        sweep::stale();
        let _creating = sweep::creating();
        let path = root().expect("cgroup v2 is mounted").join(sweep::unique(role));
        if let Err(error) = fs::create_dir(&path) {
            panic!("{}: {error}", path.display());
        }
        Self { path }
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A command that moves itself into the cgroup before it becomes `program`.
    pub fn command(&self, program: &str) -> Command {
        let mut command = command("sh");
        command.args(["-c", "echo $$ > \"$0/cgroup.procs\" && exec \"$@\""]);
        command.arg(&self.path).arg(program);
        command
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.path);
    }
}
