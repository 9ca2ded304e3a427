//! What the announcer has seen, in a file for those who ask: the agent answers nobody.
//!
//! It is what was decided by and not what was decided, which is a place for every node of every Service;
//! whoever reads it decides once more.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::progress::Progress;
use super::resources::{Resources, Written};
use super::seen::Seen;
use super::share::{Balancer, Balancers, Here};
use crate::members::Members;
use crate::source::{Kind, ObjectId, write_atomically};

/// File in the state directory.
const FILE: &str = "layer2.json";
/// Of its content. Another one is not read.
const FORMAT: u32 = 1;
/// It is written no more often,
const PAUSE: Duration = Duration::from_secs(1);
/// for so many times what that took there is a pause,
const PAUSE_FACTOR: u32 = 20;
/// and this many bytes a second are enough, in a cluster of a thousand nodes, too.
const BYTES_PER_SECOND: u32 = 256 << 10;

/// See the module.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    format: u32,
    /// Nothing is announced from here.
    pub is_off: bool,
    /// This node.
    pub here: Here,
    /// Who is alive.
    pub members: Members,
    /// `None` while it is not known what is announced from where.
    written: Option<Written>,
    /// `None` while it is not known what is served.
    services: Option<Vec<Service>>,
    /// What programs of this node answer for.
    pub answered: Vec<Held>,
    /// What fails, by what was tried.
    pub failures: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Service {
    namespace: String,
    name: String,
    #[serde(flatten)]
    balancer: Arc<Balancer>,
}

/// An address, and a device by which programs answer for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The address.
    pub address: IpAddr,
    /// The device.
    pub device: String,
    /// Since when, to a second or so, in seconds of the epoch.
    pub since: u64,
}

impl Report {
    /// What was seen at `now`, in seconds of the epoch, when this was reported before.
    pub fn new(seen: &Seen, before: &Self, now: u64) -> Self {
        let Seen { is_off, here, resources, balancers, members, answered, failures } = seen;
        let service = |(id, balancer): (&ObjectId, &Arc<Balancer>)| Service {
            namespace: id.namespace.to_string(),
            name: id.name.to_string(),
            balancer: Arc::clone(balancer),
        };
        let since: BTreeMap<_, _> =
            before.answered.iter().map(|held| ((held.address, &held.device), held.since)).collect();
        let held = answered.iter().map(|(address, device)| Held {
            address: *address,
            device: device.clone(),
            since: since.get(&(*address, device)).copied().unwrap_or(now),
        });
        let failures = failures.iter().map(|(what, why)| ((*what).to_owned(), why.clone()));
        Self {
            format: FORMAT,
            is_off: *is_off,
            here: here.clone(),
            members: members.clone(),
            written: resources.as_deref().map(|it| it.written().clone()),
            services: balancers.as_deref().map(|all| all.iter().map(service).collect()),
            answered: held.collect(),
            failures: failures.collect(),
        }
    }

    /// What the last agent with this state directory has said.
    pub fn read(state_dir: &Path) -> anyhow::Result<Self> {
        let path = state_dir.join(FILE);
        let text = fs::read(&path).with_context(|| format!("{}", path.display()))?;
        let read = || -> anyhow::Result<Self> {
            let report: Self = serde_json::from_slice(&text)?;
            ensure!(report.format == FORMAT, "format {} instead of {FORMAT}", report.format);
            Ok(report)
        };
        read().with_context(|| format!("{}: by another version of the agent?", path.display()))
    }

    fn text(&self) -> Vec<u8> {
        // Keys are strings and numbers are integers: there is nothing that JSON cannot say.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// From where what is announced, if that is known.
    pub(super) fn resources(&self) -> Option<Resources> {
        self.written.clone().map(Resources::from)
    }

    /// Services of type LoadBalancer, if they are known.
    pub(super) fn balancers(&self) -> Option<Balancers> {
        let service = |it: &Service| {
            let id = ObjectId::new(Kind::Service, Some(&it.namespace), &it.name);
            (id, Arc::clone(&it.balancer))
        };
        Some(self.services.as_ref()?.iter().map(service).collect())
    }
}

fn write(text: &[u8], state_dir: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(state_dir)?;
    write_atomically(&state_dir.join(FILE), |file| Ok(file.write_all(text)?))
}

/// Keeps the file and counts what nobody announces, for ever.
pub async fn keep(
    mut seen: watch::Receiver<Arc<Seen>>,
    state_dir: PathBuf,
    progress: Arc<Progress>,
) {
    // What an earlier agent has said is not true of this one.
    let _ = fs::remove_file(state_dir.join(FILE));
    let state_dir: Arc<Path> = state_dir.into();
    let mut report = Report::default();
    let mut written = Vec::new();
    while seen.changed().await.is_ok() {
        let latest = Arc::clone(&seen.borrow_and_update());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let start = Instant::now();
        report = Report::new(&latest, &report, now);
        progress.set_not_announced(latest.not_announced());
        drop(latest);
        let text = report.text();
        let mut pause = PAUSE;
        if text != written {
            let size = u32::try_from(text.len()).unwrap_or(u32::MAX);
            pause = pause.max(Duration::from_secs(1) * size / BYTES_PER_SECOND);
            written.clone_from(&text);
            let dir = Arc::clone(&state_dir);
            // A disk takes its time.
            let outcome = tokio::task::spawn_blocking(move || write(&text, &dir)).await;
            if let Ok(Err(error)) = outcome {
                tracing::debug!("{}: {error:#}", state_dir.join(FILE).display());
                written.clear();
            }
        }
        tokio::time::sleep(pause.max(start.elapsed() * PAUSE_FACTOR)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer2::NodeFacts;
    use crate::vip::Facts;

    #[test]
    fn a_report_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let error = format!("{:#}", Report::read(&state).unwrap_err());
        assert!(error.contains("layer2.json"), "{error}");
        let nodes = vec![NodeFacts { name: "n1".to_owned(), ..NodeFacts::default() }];
        let balancer = Balancer { addresses: vec![[192, 0, 2, 1].into()], ..Balancer::default() };
        let id = ObjectId::new(Kind::Service, Some("shop"), "web");
        let seen = Seen {
            resources: Some(Arc::new(Resources::new(&Facts::default(), nodes, true))),
            balancers: Some(Arc::new([(id, Arc::new(balancer))].into())),
            failures: [("withdrawing addresses", "it did not work".to_owned())].into(),
            ..Seen::default()
        };
        let report = Report::new(&seen, &Report::default(), 7);
        write(&report.text(), &state).unwrap();
        let again = Report::read(&state).unwrap();
        assert_eq!(serde_json::to_value(&again).unwrap(), serde_json::to_value(&report).unwrap());
        assert_eq!(again.balancers().as_ref(), seen.balancers.as_deref());
        assert_eq!(again.resources().unwrap().written(), seen.resources.unwrap().written());
        fs::write(state.join(FILE), "{}").unwrap();
        let error = format!("{:#}", Report::read(&state).unwrap_err());
        assert!(error.contains("by another version"), "{error}");
    }

    #[test]
    fn what_is_held_still_is_held_since_then() {
        let mut seen = Seen::default();
        let mut at = |all: &[(u8, &str)], before: &Report, now| {
            let entry = |(host, device): &(u8, &str)| ([192, 0, 2, *host].into(), (*device).into());
            seen.answered = all.iter().map(entry).collect();
            Report::new(&seen, before, now)
        };
        let since = |report: &Report| report.answered.iter().map(|it| it.since).collect::<Vec<_>>();
        let first = at(&[(1, "eth0")], &Report::default(), 100);
        let second = at(&[(1, "eth0"), (1, "eth1"), (2, "eth0")], &first, 200);
        assert_eq!(since(&second), [100, 200, 200]);
        let gone = at(&[], &second, 300);
        assert_eq!(since(&at(&[(1, "eth0")], &gone, 400)), [400]);
    }
}
