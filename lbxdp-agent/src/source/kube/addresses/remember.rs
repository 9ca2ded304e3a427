//! What announcing goes by, as the API said it last: for an agent that starts while no API answers.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::ensure;
use serde::{Deserialize, Serialize};

use crate::layer2::Written;
use crate::source::write::write_atomically;

const FILE: &str = "announcing.json";
/// Of the file's content. Another one is not read.
const FORMAT: u32 = 1;

/// The content of the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Known {
    format: u32,
    /// Everything.
    #[serde(flatten)]
    pub written: Written,
}

impl Known {
    /// This is known now.
    pub(super) fn new(written: Written) -> Self {
        Self { format: FORMAT, written }
    }
}

/// The file.
#[derive(Debug)]
pub(super) struct Memory(PathBuf);

impl Memory {
    /// In the state directory.
    pub(super) fn new(state_dir: &Path) -> Self {
        Self(state_dir.join(FILE))
    }

    /// What was known last, if that can be read.
    pub(super) fn read(&self) -> Option<Known> {
        let read = || -> anyhow::Result<Known> {
            let known: Known = serde_json::from_slice(&fs::read(&self.0)?)?;
            ensure!(known.format == FORMAT, "format {} instead of {FORMAT}", known.format);
            Ok(known)
        };
        match read() {
            Ok(known) => Some(known),
            Err(error) => {
                tracing::debug!("{}: {error:#}", self.0.display());
                None
            }
        }
    }

    /// Keeps what is known.
    pub(super) fn write(&self, known: &Known) {
        let written = write_atomically(&self.0, |file| Ok(serde_json::to_writer(file, known)?));
        if let Err(error) = written {
            let path = self.0.display();
            tracing::warn!("{path}: {error:#}: a restart without an API server announces nothing");
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::layer2::NodeFacts;
    use crate::source::Sourced;
    use crate::vip::Facts;
    use crate::vip::resources::read;

    #[test]
    fn what_was_known_is_known_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let memory = Memory::new(dir.path());
        assert_eq!(memory.read(), None);
        let pool = json!({"metadata": {"name": "a", "namespace": "lb"},
                          "spec": {"addresses": ["192.0.2.0/30"], "autoAssign": false}});
        let advertisement = json!({"metadata": {"name": "a", "namespace": "lb"},
                                   "spec": {"interfaces": ["eth1"]}});
        let facts = Facts {
            pools: vec![Sourced::new("", read(&pool).unwrap())],
            advertisements: vec![Sourced::new("", read(&advertisement).unwrap())],
            ..Facts::default()
        };
        let node = NodeFacts { name: "n1".to_owned(), ..NodeFacts::default() };
        let known = Known::new(Written::new(&facts, vec![node], true));
        memory.write(&known);
        assert_eq!(memory.read(), Some(known));
        fs::write(dir.path().join(FILE), "{").unwrap();
        assert_eq!(memory.read(), None);
    }
}
