//! What there is to see of the members: for metrics, for `status`, and for the next agent on this node,
//! which may find no API to tell it where the others are.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::says::Says;
use super::seal::Refused;
use super::swim::Word;
use crate::source::write_atomically;

/// File in the state directory with a [`Report`].
const FILE: &str = "members.json";

/// What this node knows of the nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Whether the members talk to each other, or have leases only.
    pub protocol: bool,
    /// Whether this node keeps quiet.
    pub isolated: bool,
    /// Endpoints of dead nodes that get nothing new, counted for each port of a Service.
    #[serde(default)]
    pub left_out: usize,
    /// The other nodes, by name.
    pub nodes: BTreeMap<String, NodeReport>,
}

/// What this node knows of another one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeReport {
    /// Whether it counts as alive.
    pub alive: bool,
    /// What the members say of it, if anything.
    pub word: Option<Word>,
    /// Where its agent hears, as far as that is known.
    pub address: Option<SocketAddr>,
    /// What it says of itself, or said last.
    #[serde(default)]
    pub says: Says,
    /// Whether the node itself was lost, and not its agent alone: its endpoints get nothing new.
    #[serde(default)]
    pub dead: bool,
}

impl Report {
    /// The report of the last agent that used this state directory, if any did.
    pub fn read(state_dir: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(state_dir.join(FILE)).ok()?).ok()
    }

    /// Writes it.
    pub(super) fn write(&self, state_dir: &Path) -> anyhow::Result<()> {
        std::fs::create_dir_all(state_dir)?;
        let path = state_dir.join(FILE);
        write_atomically(&path, |file| Ok(serde_json::to_writer_pretty(file, self)?))
    }

    /// Nodes that count as alive, this one among them.
    pub fn alive(&self) -> usize {
        1 + self.nodes.values().filter(|node| node.alive).count()
    }

    /// Nodes that count as dead.
    pub fn dead(&self) -> usize {
        self.nodes.values().filter(|node| node.dead).count()
    }
}

/// What metrics show.
#[derive(Debug, Default)]
pub struct Tally {
    report: Mutex<Report>,
    refused: [AtomicU64; Refused::ALL.len()],
    received: AtomicU64,
    sent: AtomicU64,
    lost: AtomicU64,
    left_out: AtomicUsize,
}

impl Tally {
    /// What is known now.
    pub fn report(&self) -> Report {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Packets that had no effect, by reason.
    pub fn refused(&self) -> impl Iterator<Item = (Refused, u64)> {
        let counts = self.refused.iter().map(|count| count.load(Ordering::Relaxed));
        Refused::ALL.into_iter().zip(counts)
    }

    /// Packets that came, went, and could not go.
    pub fn packets(&self) -> [(&'static str, u64); 3] {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        [("received", get(&self.received)), ("sent", get(&self.sent)), ("unsent", get(&self.lost))]
    }

    /// So many endpoints are left out, because their nodes are dead.
    pub fn set_left_out(&self, count: usize) {
        self.left_out.store(count, Ordering::Relaxed);
    }

    /// See [`Report::left_out`].
    pub fn left_out(&self) -> usize {
        self.left_out.load(Ordering::Relaxed)
    }

    pub(super) fn show(&self, report: Report) {
        *self.report.lock().unwrap_or_else(PoisonError::into_inner) = report;
    }

    pub(super) fn refuse(&self, reason: Refused) {
        let at = Refused::ALL.iter().position(|it| *it == reason);
        if let Some(count) = at.and_then(|at| self.refused.get(at)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn receive(&self) {
        self.received.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn send(&self, is_sent: bool) {
        let count = if is_sent { &self.sent } else { &self.lost };
        count.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("state");
        assert_eq!(Report::read(&dir), None);
        let address = Some("[2001:db8::2]:10470".parse().unwrap());
        let says = Says { is_leaving: true, ..Says::default() };
        let word = Some(Word::Suspect);
        let node = NodeReport { alive: true, word, address, says, ..NodeReport::default() };
        let gone = NodeReport { dead: true, ..NodeReport::default() };
        let nodes = [("b".to_owned(), node), ("c".to_owned(), gone)].into();
        let report = Report { protocol: true, isolated: false, left_out: 7, nodes };
        report.write(&dir).unwrap();
        assert_eq!((report.alive(), report.dead()), (2, 1));
        assert_eq!(Report::read(&dir), Some(report));
    }

    #[test]
    fn every_reason_has_a_count_of_its_own() {
        let tally = Tally::default();
        for (count, reason) in Refused::ALL.into_iter().enumerate() {
            (0..=count).for_each(|_| tally.refuse(reason));
        }
        let counts: Vec<u64> = tally.refused().map(|(_, count)| count).collect();
        assert_eq!(counts, [1, 2, 3, 4, 5, 6]);
    }
}
