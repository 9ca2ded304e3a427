//! One agent for each pin path: two would undo each other's work. And one for each state directory.

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// A lock is tried so often before its holder is taken for an agent.
const ATTEMPTS: u32 = 5;
/// And after this long again.
const PAUSE: Duration = Duration::from_millis(10);

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
        Self::directory(pin_path, "pin path", "--pin-path")
    }

    /// Locks a state directory.
    pub fn take_state(state_dir: &Path) -> anyhow::Result<Option<Self>> {
        Self::directory(state_dir, "state directory", "--state-dir")
    }

    /// Whether somebody holds the lock of this directory.
    pub fn is_held(directory: &Path) -> bool {
        let Ok(directory) = File::open(directory) else { return false };
        // Shared: two who look at the same time must not take each other for an agent.
        matches!(Flock::lock(directory, FlockArg::LockSharedNonblock), Err((_, Errno::EWOULDBLOCK)))
    }

    fn directory(path: &Path, what: &str, flag: &str) -> anyhow::Result<Option<Self>> {
        let shown = path.display();
        let mut directory = match File::open(path) {
            Ok(directory) => directory,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("{what} {shown}")),
        };
        for attempt in 1.. {
            match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
                Ok(locked) => return Ok(Some(Self { _directory: locked })),
                // Somebody may just be looking.
                Err((again, Errno::EWOULDBLOCK)) if attempt < ATTEMPTS => {
                    directory = again;
                    std::thread::sleep(PAUSE);
                }
                Err((_, Errno::EWOULDBLOCK)) => break,
                Err((_, error)) => {
                    return Err(error).with_context(|| format!("locking {what} {shown}"));
                }
            }
        }
        bail!(
            "{what} {shown} is in use by a running agent: stop that one first, or choose another \
             {flag}"
        )
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
        assert!(!Lock::is_held(&directory.path().join("none")));
    }

    #[test]
    fn looking_whether_it_is_held_takes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        assert!(!Lock::is_held(directory.path()));
        let held = Lock::take_state(directory.path()).unwrap();
        assert!(Lock::is_held(directory.path()));
        drop(held);
        assert!(!Lock::is_held(directory.path()));
    }
}
