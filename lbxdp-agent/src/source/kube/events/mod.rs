//! Problems as Events on the objects that have them, for those who look at objects and not at logs.
//!
//! `report` says what there is to tell, `board` what is told when, `bucket` how often, `send` puts it
//! into the words of the API; `queue` tells of what was done, once. The agent hands over all problems there
//! are and goes on; whatever the API does, nothing waits for it.
//!
//! Every agent of a cluster sees the same problem of an object. An Event's name follows from the
//! object, the reason and the words, so that only the first one to come creates it: the others are
//! told that it exists. A problem that only this node has is told under a name of its own.

pub(super) mod board;
pub(super) mod bucket;
pub(super) mod queue;
pub(super) mod report;
pub(super) mod send;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kube::Client;
use tokio::sync::watch;
use tokio::time::Instant;

pub use self::report::{Report, reports};

use self::board::{Board, Next};
use self::send::Outcome;
use super::backoff::Backoff;
use super::sleep_until_if;

/// What became of Events.
#[derive(Debug, Default)]
pub struct Counts {
    /// Created here.
    pub created: AtomicU64,
    /// Created by another agent before.
    pub existed: AtomicU64,
    /// One of this agent's was told again.
    pub repeated: AtomicU64,
    /// Not told, because there are too many problems.
    pub overflow: AtomicU64,
    /// Not told, because the problem was over before they could be.
    pub outdated: AtomicU64,
    /// Not taken by the API.
    pub refused: AtomicU64,
}

impl Counts {
    /// What was told, by what the API did with it.
    pub fn sent(&self) -> [(&'static str, u64); 3] {
        let Self { created, existed, repeated, .. } = self;
        [("created", created), ("existed", existed), ("repeated", repeated)].map(read)
    }

    /// What was not, by reason.
    pub fn dropped(&self) -> [(&'static str, u64); 3] {
        let Self { overflow, outdated, refused, .. } = self;
        [("overflow", overflow), ("outdated", outdated), ("refused", refused)].map(read)
    }
}

fn read((name, count): (&'static str, &AtomicU64)) -> (&'static str, u64) {
    (name, count.load(Ordering::Relaxed))
}

pub(super) fn add(count: &AtomicU64, more: usize) {
    count.fetch_add(more as u64, Ordering::Relaxed);
}

/// Where problems are handed over.
#[derive(Clone, Debug)]
pub struct Events {
    all: watch::Sender<Vec<Report>>,
}

impl Events {
    /// And the end that [`run`] needs.
    pub(super) fn new() -> (Self, watch::Receiver<Vec<Report>>) {
        let (all, receiver) = watch::channel(Vec::new());
        (Self { all }, receiver)
    }

    /// These are all problems there are now. Never waits.
    pub fn set(&self, reports: Vec<Report>) {
        self.all.send_replace(reports);
    }
}

/// Tells what there is to tell until the sender is gone.
pub(super) async fn run(
    mut all: watch::Receiver<Vec<Report>>,
    client: Client,
    node: String,
    counts: Arc<Counts>,
) {
    let mut board = Board::new(&node);
    let mut backoff = Backoff::default();
    let mut pause = None;
    loop {
        let now = Instant::now();
        pause = pause.filter(|until| *until > now);
        let wake = match pause.map_or_else(|| board.next(now), |until| Next::Wait(Some(until))) {
            Next::Tell(telling) => {
                let outcome = send::send(&client, &node, &telling).await;
                match &outcome {
                    Outcome::Created => add(&counts.created, 1),
                    Outcome::Exists => add(&counts.existed, 1),
                    Outcome::Repeated => add(&counts.repeated, 1),
                    Outcome::Refused => add(&counts.refused, 1),
                    Outcome::Gone => {}
                    Outcome::Unanswered(failure) => {
                        pause = Some(Instant::now() + backoff.after(*failure));
                        continue;
                    }
                }
                backoff.reset();
                board.told(&telling.name, &outcome, Instant::now());
                continue;
            }
            Next::Wait(wake) => wake,
        };
        tokio::select! {
            changed = all.changed() => {
                if changed.is_err() {
                    return;
                }
                let lost = board.set(all.borrow_and_update().iter().cloned(), Instant::now());
                add(&counts.overflow, lost.overflow);
                add(&counts.outdated, lost.outdated);
            }
            () = sleep_until_if(wake) => {}
        }
    }
}
