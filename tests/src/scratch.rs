//! Directories that go away with their handle.

use std::fs;
use std::path::{Path, PathBuf};

use crate::sweep;

/// A directory under the system's temporary one. Dropping the handle removes it.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// A new, empty directory.
    #[track_caller]
    pub fn new(role: &str) -> Self {
        sweep::stale();
        let _creating = sweep::creating();
        let path = std::env::temp_dir().join(sweep::unique(role));
        if let Err(error) = fs::create_dir(&path) {
            panic!("{}: {error}", path.display());
        }
        Self { path }
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path of something in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}
