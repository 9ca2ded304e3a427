//! What is known of the connection to the API, for metrics and the command line.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::events::Counts;
use crate::progress::Moment;
use crate::source::Kind;
use crate::source::write::write_atomically;

/// File in the state directory with a [`Report`].
const FILE: &str = "source.json";
/// Watches come and go together: a report is written once for all of them.
const SETTLE: Duration = Duration::from_millis(100);
/// What the agent does is looked at this often: it may do something many times a second.
const WORK_EVERY: Duration = Duration::from_secs(2);

/// The connection to the API as it is now.
#[derive(Debug)]
pub struct Status {
    servers: Vec<String>,
    current: AtomicUsize,
    watches: BTreeMap<Kind, Watch>,
    events: Arc<Counts>,
    work: Mutex<Option<Work>>,
    changed: Notify,
}

/// One watch.
#[derive(Debug, Default)]
pub struct Watch {
    /// Connections that deliver events; two for a moment while one takes over.
    open: AtomicUsize,
    starts: AtomicU64,
    last_event: Moment,
    error: Mutex<Option<String>>,
}

impl Watch {
    /// Whether changes arrive.
    pub fn is_connected(&self) -> bool {
        self.open.load(Ordering::Relaxed) > 0
    }

    /// How often the watch was started again.
    pub fn reconnects(&self) -> u64 {
        self.starts.load(Ordering::Relaxed).saturating_sub(1)
    }

    /// When the server last said anything, bookmarks included: seconds of the epoch, 0 for never.
    pub fn last_event(&self) -> f64 {
        self.last_event.get().as_secs_f64()
    }

    /// Why it is not connected.
    pub fn error(&self) -> Option<String> {
        self.error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_error(&self, error: Option<String>) {
        *self.error.lock().unwrap_or_else(PoisonError::into_inner) = error;
    }
}

impl Status {
    pub(super) fn new(servers: Vec<String>) -> Self {
        let watches = Kind::SERVED.map(|kind| (kind, Watch::default())).into();
        Self {
            servers,
            current: AtomicUsize::new(0),
            watches,
            events: Arc::default(),
            work: Mutex::new(None),
            changed: Notify::new(),
        }
    }

    /// What became of Events.
    pub fn events(&self) -> Arc<Counts> {
        Arc::clone(&self.events)
    }

    /// What the agent has made of it all. Whoever reads the report learns it a little later.
    pub fn set_work(&self, work: Work) {
        *self.work.lock().unwrap_or_else(PoisonError::into_inner) = Some(work);
    }

    /// The watches by kind, each kind once.
    pub fn watches(&self) -> &BTreeMap<Kind, Watch> {
        &self.watches
    }

    pub(super) fn watch(&self, kind: Kind) -> &Watch {
        &self.watches[&kind]
    }

    /// Which server is asked first.
    pub(super) fn current(&self) -> usize {
        self.current.load(Ordering::Relaxed)
    }

    pub(super) fn set_current(&self, server: usize) {
        if self.current.swap(server, Ordering::Relaxed) != server {
            self.changed.notify_one();
        }
    }

    pub(super) fn server(&self, server: usize) -> &str {
        &self.servers[server]
    }

    /// Why nothing was listed, if that is known.
    pub(super) fn error(&self) -> Option<String> {
        let error = |(kind, watch): (&Kind, &Watch)| Some(format!("{kind}s: {}", watch.error()?));
        self.watches.iter().find_map(error)
    }

    fn report(&self) -> Report {
        let watch = |(kind, watch): (&Kind, &Watch)| {
            let (connected, reconnects) = (watch.is_connected(), watch.reconnects());
            (kind.to_string(), WatchReport { connected, reconnects, error: watch.error() })
        };
        Report {
            server: self.server(self.current()).to_owned(),
            servers: self.servers.clone(),
            watches: self.watches.iter().map(watch).collect(),
            work: self.work.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}

/// A connection that delivers events of one kind. Dropped with it.
#[derive(Debug)]
pub(super) struct Open {
    status: Arc<Status>,
    kind: Kind,
}

impl Open {
    pub(super) fn new(status: Arc<Status>, kind: Kind) -> Self {
        let watch = status.watch(kind);
        watch.starts.fetch_add(1, Ordering::Relaxed);
        watch.open.fetch_add(1, Ordering::Relaxed);
        watch.set_error(None);
        status.changed.notify_one();
        Self { status, kind }
    }

    /// Something came.
    pub(super) fn received(&self) {
        self.status.watch(self.kind).last_event.is_now();
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.status.watch(self.kind).open.fetch_sub(1, Ordering::Relaxed);
        self.status.changed.notify_one();
    }
}

/// What the running agent leaves for `lbxdp-agent status`, which asks no agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// URL of the API server in use.
    pub server: String,
    /// All that were given.
    pub servers: Vec<String>,
    /// Watches by kind.
    pub watches: BTreeMap<String, WatchReport>,
    /// What the agent has made of it, once there was an input.
    #[serde(default)]
    pub work: Option<Work>,
}

/// What the agent has made of what it knows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Work {
    /// When the maps were last what they should be: seconds of the epoch, 0 for never.
    pub last_sync: u64,
    /// Why they are not, if they are not.
    pub error: Option<String>,
    /// Problems of the input that leave something not served as written.
    pub warnings: usize,
    /// Problems of the input that leave something not served.
    pub errors: usize,
}

/// One watch in a [`Report`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WatchReport {
    /// Whether changes arrive.
    pub connected: bool,
    /// How often it was started again.
    pub reconnects: u64,
    /// Why it is not connected.
    pub error: Option<String>,
}

impl Report {
    /// The report of the last agent that used this state directory, if any did.
    pub fn read(state_dir: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(state_dir.join(FILE)).ok()?).ok()
    }
}

/// Keeps the report in the state directory up to date, until the runtime ends.
pub(super) async fn keep_report(status: Arc<Status>, state_dir: &Path) {
    let path = state_dir.join(FILE);
    let mut written = None;
    loop {
        let report = status.report();
        if written.as_ref() != Some(&report) {
            let result =
                write_atomically(&path, |file| Ok(serde_json::to_writer_pretty(file, &report)?));
            if let Err(error) = result {
                tracing::debug!("{}: {error:#}", path.display());
            }
            written = Some(report);
        }
        tokio::select! {
            () = status.changed.notified() => tokio::time::sleep(SETTLE).await,
            () = tokio::time::sleep(WORK_EVERY) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_is_connected_while_one_of_its_connections_is_open() {
        let status = Arc::new(Status::new(vec!["https://192.0.2.1".to_owned()]));
        let watch = status.watch(Kind::Service);
        assert!(!watch.is_connected());
        watch.set_error(Some("refused".to_owned()));
        assert_eq!(status.error().as_deref(), Some("Services: refused"));
        let first = Open::new(Arc::clone(&status), Kind::Service);
        assert_eq!((watch.is_connected(), watch.reconnects(), watch.error()), (true, 0, None));
        let second = Open::new(Arc::clone(&status), Kind::Service);
        drop(first);
        assert_eq!((watch.is_connected(), watch.reconnects()), (true, 1));
        assert_eq!(watch.last_event(), 0.0);
        second.received();
        assert!(watch.last_event() > 1e9);
        drop(second);
        assert!(!watch.is_connected());
    }

    #[test]
    fn a_report_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Report::read(dir.path()), None);
        let report = Status::new(vec!["https://192.0.2.1".to_owned()]).report();
        let text = serde_json::to_vec(&report).unwrap();
        std::fs::write(dir.path().join(FILE), text).unwrap();
        assert_eq!(Report::read(dir.path()), Some(report));
    }
}
