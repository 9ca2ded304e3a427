//! One agent for each pin path: two would undo each other's work.

use std::fs::File;
use std::io;
use std::path::Path;

use anyhow::{Context as _, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// Held by the one who changes what is pinned. The kernel lets go of it when the process ends,
/// however it ends, so a lock is never stale.
#[derive(Debug)]
pub struct Lock {
    _directory: Flock<File>,
}

impl Lock {
    /// Locks the directory of pins itself: a file to lock cannot be made on a BPF file system, and
    /// the directory is the same for every container and network namespace that sees it. `None` if
    /// there is no such directory.
    pub fn take(pin_path: &Path) -> anyhow::Result<Option<Self>> {
        let shown = pin_path.display();
        let directory = match File::open(pin_path) {
            Ok(directory) => directory,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("pin path {shown}")),
        };
        match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
            Ok(locked) => Ok(Some(Self { _directory: locked })),
            Err((_, Errno::EWOULDBLOCK)) => bail!(
                "pin path {shown} is in use by a running agent: stop that one first, or choose \
                 another --pin-path"
            ),
            Err((_, error)) => Err(error).with_context(|| format!("locking pin path {shown}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_is_refused_until_the_first_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let first = Lock::take(directory.path()).unwrap().unwrap();
        let error = Lock::take(directory.path()).unwrap_err().to_string();
        assert!(error.contains(&directory.path().display().to_string()), "{error}");
        assert!(error.contains("in use by a running agent"), "{error}");
        drop(first);
        assert!(Lock::take(directory.path()).unwrap().is_some());
    }

    #[test]
    fn what_does_not_exist_needs_no_lock() {
        let directory = tempfile::tempdir().unwrap();
        assert!(Lock::take(&directory.path().join("none")).unwrap().is_none());
    }
}
