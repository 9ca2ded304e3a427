//! Which nodes are alive.
//!
//! `swim` is the protocol by which agents watch each other, `identity` what its packets say, `says` what nodes
//! say of themselves and `seal` what makes packets believable; `witness` has the leases' say in it; `lost` is
//! about nodes that are gone and not their agents alone, and `ask` asks them; `task` does it all; `report` is
//! what there is to see of it. Everything but `task` and `ask` is pure.

mod ask;
mod identity;
mod lost;
mod report;
mod says;
mod seal;
mod swim;
mod task;
#[cfg(test)]
mod tests;
mod witness;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

pub use report::{NodeReport, Report, Tally};
pub use says::{Devices, Says};
pub use seal::Refused;
pub use swim::Word;
pub use witness::Record;

/// Where agents hear each other, if nothing else is said: beside the port of health and metrics.
pub const DEFAULT_PORT: u16 = 10_470;

/// What this node knows of the others, at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Members {
    /// Names of nodes that are alive, this one among them.
    pub alive: BTreeSet<String>,
    /// Names of nodes that were lost, and not their agents alone.
    pub dead: BTreeSet<String>,
    /// What nodes say of themselves that are not as they should be.
    pub says: BTreeMap<String, Says>,
    /// Neither the API server nor any peer was heard for too long although there are others: announce nothing.
    pub isolated: bool,
}

/// What the members are told.
#[derive(Clone, Debug)]
pub struct Options {
    /// Name of this node.
    pub node: String,
    /// UDP port.
    pub port: u16,
    /// Where others are, besides those that the API and an earlier agent know of.
    pub peers: Vec<SocketAddr>,
    /// Without it there is no protocol.
    pub key: Option<Key>,
    /// Where the members are kept for the next agent.
    pub state_dir: PathBuf,
    /// No node is ever called dead.
    pub without_dead: bool,
}

/// What all agents of a cluster know, and nobody else.
#[derive(Clone)]
pub struct Key(Arc<[u8]>);

impl Key {
    /// Shortest key, in bytes: nobody finds 128 random bits.
    pub const SHORTEST: usize = 16;

    /// From a file: its bytes, without white space at either end. `None` if there is no file: a Secret
    /// that was not made is no reason to serve nothing.
    pub fn read(path: &Path) -> anyhow::Result<Option<Self>> {
        let bytes = match std::fs::read(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            bytes => bytes.with_context(|| format!("--members-key-file {}", path.display()))?,
        };
        let key = bytes.trim_ascii();
        ensure!(
            key.len() >= Self::SHORTEST,
            "--members-key-file {}: {} bytes are too few, {} is the least",
            path.display(),
            key.len(),
            Self::SHORTEST
        );
        Ok(Some(Self(key.into())))
    }

    fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key")
    }
}

/// What is wanted of who speaks with the API about leases.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ask {
    /// Where this agent hears, to be written into its lease.
    pub at: Option<SocketAddr>,
    /// How often to renew it.
    pub renew_every: Duration,
    /// How long it is to last.
    pub lasts: Duration,
    /// Nodes whose leases matter now, and when to look at them.
    pub look: BTreeMap<String, Instant>,
    /// The agent ends: the own lease is to be given back, so that nobody believes it any more.
    pub give_back: bool,
}

/// What the API said about leases.
#[derive(Clone, Debug)]
pub enum Told {
    /// The own one was renewed.
    Renewed,
    /// The lease of this node is so, or not there.
    Looked(String, Option<Record>),
    /// These are all.
    All(Vec<Record>),
    /// The own one was given back, or cannot be.
    GivenBack,
}

/// To who speaks with the API.
#[derive(Debug)]
pub struct LeaseLink {
    /// What is wanted.
    pub ask: watch::Sender<Ask>,
    /// What came of it.
    pub told: mpsc::Receiver<Told>,
}

/// The running protocol.
#[derive(Debug)]
pub struct Handle {
    members: watch::Receiver<Members>,
    addresses: watch::Sender<BTreeSet<IpAddr>>,
    says: watch::Sender<Says>,
    stop: watch::Sender<bool>,
    tally: Arc<Tally>,
    thread: Option<JoinHandle<()>>,
}

impl Handle {
    /// Begins, on a thread of its own. Without `leases` there is no API.
    pub fn start(options: Options, leases: Option<LeaseLink>) -> anyhow::Result<Self> {
        // Who has only files, and no peers, is alone.
        if options.key.is_none() && (leases.is_some() || !options.peers.is_empty()) {
            let others = if leases.is_some() { "leases alone say" } else { "nobody says" };
            tracing::warn!("no key (--members-key-file): {others} which nodes are alive");
        }
        let (members, alive) = watch::channel(Members::default());
        let (addresses, own) = watch::channel(BTreeSet::new());
        let (says, said) = watch::channel(Says::default());
        let (stop, stopped) = watch::channel(false);
        let tally = Arc::<Tally>::default();
        let thread = task::spawn(
            options,
            task::Channels {
                members,
                addresses: own,
                says: said,
                leases,
                stop: stopped,
                tally: Arc::clone(&tally),
            },
        )?;
        Ok(Self { members: alive, addresses, says, stop, tally, thread: Some(thread) })
    }

    /// Who is alive, whenever that changes.
    pub fn members(&self) -> watch::Receiver<Members> {
        self.members.clone()
    }

    /// What there is to see.
    pub fn tally(&self) -> Arc<Tally> {
        Arc::clone(&self.tally)
    }

    /// Where to say what the others cannot see of this node.
    pub fn says(&self) -> watch::Sender<Says> {
        self.says.clone()
    }

    /// The addresses of this node.
    pub fn set_addresses(&self, addresses: &BTreeSet<IpAddr>) {
        self.addresses.send_if_modified(|known| {
            let is_other = known != addresses;
            if is_other {
                known.clone_from(addresses);
            }
            is_other
        });
    }

    /// Says goodbye to the others, who need not wait then until they miss this node, and gives its lease back.
    pub async fn finish(&mut self) {
        let _ = self.stop.send(true);
        if let Some(thread) = self.thread.take() {
            let joined = tokio::task::spawn_blocking(move || thread.join()).await;
            if !matches!(joined, Ok(Ok(()))) {
                tracing::error!("the thread of the membership protocol has failed");
            }
        }
    }
}

#[cfg(test)]
mod key_tests {
    use super::*;

    #[test]
    fn a_key_is_long_enough_and_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        assert!(Key::read(&path).unwrap().is_none());
        let error = Key::read(dir.path()).unwrap_err().to_string();
        assert!(error.contains("--members-key-file"), "{error}");
        std::fs::write(&path, "  0123456789abcde\n").unwrap();
        let error = Key::read(&path).unwrap_err().to_string();
        assert!(error.contains("15 bytes are too few"), "{error}");
        std::fs::write(&path, "0123456789abcdef\n").unwrap();
        let key = Key::read(&path).unwrap().unwrap();
        assert_eq!((key.bytes(), format!("{key:?}").as_str()), (&b"0123456789abcdef"[..], "Key"));
    }
}
