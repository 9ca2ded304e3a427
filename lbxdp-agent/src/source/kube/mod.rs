//! Services, EndpointSlices and this node's Node from the Kubernetes API.
//!
//! `access` finds out where the API is and who asks, `addresses` gives Services of type LoadBalancer
//! theirs, `announced` tells which of them this node announces, `client` sends requests to one of
//! several servers, `events` tells people of problems, `leases` keeps this node's lease and looks at
//! others', `watch` lists and follows one kind, `backoff` says how long to wait, `trim` what is kept
//! of an object, `brake` doubts lists that lack most of what was there, `store` survives restarts
//! without an API, `status` is what people see of it all.
//!
//! The API not being there changes nothing: what it said last stays.

mod access;
mod addresses;
mod announced;
mod backoff;
mod brake;
mod client;
mod events;
mod leases;
mod packed;
mod status;
mod store;
mod trim;
mod watch;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::api::WatchParams;
use tokio::sync::{mpsc, watch as watch_channel};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

pub use self::access::{Options as AccessOptions, SERVICE_ACCOUNT_DIR};
pub use self::addresses::Options as AddressOptions;
pub use self::events::{Events, reports};
pub use self::status::{Report, Status, Watch, WatchReport, Work};

use self::access::Access;
use self::addresses::Controller;
use self::brake::Known;
use self::client::Servers;
use self::packed::Packed;
use self::store::Store;
use self::trim::{Arrived, Ears, Trim};
use self::watch::Follower;
use super::{Change, Delta, Kind, ObjectId, Snapshot, Sourced};
use crate::layer2::{Resources, Seen};
use crate::lock::Lock;
use crate::members::LeaseLink;
use crate::model::{Problem, Severity};
use crate::problem::Problems;
use crate::vip::Tally;

/// Services and slices that no proxy has to look at, and those for another one.
const FOR_US: &str = "!service.kubernetes.io/headless,!service.kubernetes.io/service-proxy-name";
/// The stored input is used when the API has not listed everything by then.
const PATIENCE: Duration = Duration::from_secs(3);
/// Events on their way from the watches. A full channel makes them wait.
const QUEUE: usize = 1_024;

/// What the source is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// How to reach the API.
    pub access: AccessOptions,
    /// Where the last complete input is kept.
    pub state_dir: PathBuf,
    /// How long a list that lacks more than half of the objects of its kind is not believed.
    pub bulk_removal_hold: Duration,
    /// Which addresses are given to whom.
    pub addresses: AddressOptions,
}

/// The source.
#[derive(Debug)]
pub struct Kube {
    messages: mpsc::Receiver<Message>,
    status: Arc<Status>,
    events: Events,
    kinds: BTreeMap<Kind, Known>,
    phase: Phase,
    /// What came since something was handed on.
    deltas: Vec<Delta>,
    /// The problems changed.
    is_news: bool,
    hold: Duration,
    store: Store,
    controller: Controller,
    leases: Option<LeaseLink>,
    tally: Arc<Tally>,
    announced: watch_channel::Sender<Arc<Seen>>,
    _lock: Option<Lock>,
    _tasks: JoinSet<()>,
}

/// What was handed on.
#[derive(Clone, Copy, Debug)]
enum Phase {
    /// Nothing yet. The stored input will be, if there is one, when the API takes too long.
    Silent(Option<(Instant, SystemTime)>),
    /// The stored input.
    Remembering(SystemTime),
    /// Everything that the API has, and every change since.
    Following,
}

impl Kube {
    /// Begins to watch. Fails if the options make no sense, not if nobody answers.
    pub async fn start(options: &Options, node_name: &str) -> anyhow::Result<Self> {
        let Options { access, state_dir, bulk_removal_hold, addresses } = options;
        let cluster_ip = std::env::var("KUBERNETES_SERVICE_HOST").ok();
        let access = Access::find(access, cluster_ip.as_deref()).await?;
        let urls = access.servers.iter().map(|server| server.cluster_url.to_string()).collect();
        let status = Arc::new(Status::new(urls));
        let store = Store::open(state_dir, node_name);
        let lock = match store.error() {
            None => Lock::take_state(state_dir)?,
            Some(_) => None,
        };
        let servers = Servers::new(&access, Arc::clone(&status))?;

        let (sender, messages) = mpsc::channel(QUEUE);
        let mut tasks = JoinSet::new();
        let selected = WatchParams::default().labels(FOR_US);
        let own = WatchParams::default().fields(&format!("metadata.name={node_name}"));
        let (events, reports) = Events::new();
        let (teller, counts) = (servers.client(), status.events());
        tasks.spawn(events::run(reports, teller, node_name.to_owned(), counts));
        let tally = Arc::<Tally>::default();
        let controller = Controller::start(
            servers.client(),
            (&access.namespace, node_name),
            addresses,
            state_dir,
            *bulk_removal_hold,
            Arc::clone(&tally),
            status.events(),
        );
        let (leases, keeper) = leases::link(servers.client(), &access.namespace, node_name);
        tasks.spawn(keeper);
        let announced = watch_channel::Sender::default();
        tasks.spawn(announced::run(
            servers.client(),
            access.namespace.clone(),
            node_name.to_owned(),
            announced.subscribe(),
            status.events(),
        ));
        let mut follow = Follow { tasks: &mut tasks, servers, sender, status: &status };
        follow.kind::<Service>(selected.clone());
        follow.kind::<EndpointSlice>(selected);
        follow.kind::<Node>(own);
        let report = (Arc::clone(&status), state_dir.clone());
        tasks.spawn(async move { status::keep_report(report.0, &report.1).await });

        let (kinds, phase) = remembered(&store);
        Ok(Self {
            messages,
            status,
            events,
            kinds,
            phase,
            deltas: Vec::new(),
            is_news: false,
            hold: *bulk_removal_hold,
            store,
            controller,
            leases: Some(leases),
            tally,
            announced,
            _lock: lock,
            _tasks: tasks,
        })
    }

    /// What is known of the connection.
    pub fn status(&self) -> Arc<Status> {
        Arc::clone(&self.status)
    }

    /// Where problems are told.
    pub fn events(&self) -> Events {
        self.events.clone()
    }

    /// What there is to see of the addresses that Services are given.
    pub fn tally(&self) -> Arc<Tally> {
        Arc::clone(&self.tally)
    }

    /// Where to say what this node announces.
    pub fn announced(&self) -> watch_channel::Sender<Arc<Seen>> {
        self.announced.clone()
    }

    /// To the leases of nodes; the first call only.
    pub fn leases(&mut self) -> Option<LeaseLink> {
        self.leases.take()
    }

    /// From where which addresses are announced.
    pub fn resources(&self) -> watch_channel::Receiver<Option<Arc<Resources>>> {
        self.controller.resources()
    }

    /// Waits for a change. Cancelling it loses nothing.
    pub async fn changed(&mut self) -> Change {
        loop {
            self.tick(Instant::now());
            if let Some(change) = self.news() {
                return change;
            }
            let due = self.kinds.values().filter_map(Known::due);
            let silent = match self.phase {
                Phase::Silent(stored) => stored.map(|(due, _)| due),
                Phase::Remembering(_) | Phase::Following => None,
            };
            let wake = due.chain(silent).chain(self.store.due()).min();
            tokio::select! {
                // The watches live as long as the source: there is always a sender.
                Some(message) = self.messages.recv() => {
                    self.take(message);
                    // One reconciliation for all that is there.
                    while let Ok(message) = self.messages.try_recv() {
                        self.take(message);
                    }
                }
                is_news = self.store.written() => self.is_news |= is_news,
                () = sleep_until_if(wake) => {}
            }
        }
    }

    /// Writes what is not yet written, before the end.
    pub async fn finish(&mut self) {
        if matches!(self.phase, Phase::Following) {
            self.store.finish(packed(&self.kinds)).await;
        }
        self.controller.finish().await;
    }

    /// Why there is no input yet.
    pub fn waiting(&self) -> String {
        let error = self.status.error().map(|error| format!(" ({error})")).unwrap_or_default();
        let server = self.status.server(self.status.current());
        format!("waiting for the first lists from {server}{error}")
    }

    fn take(&mut self, message: Message) {
        let deltas = match message {
            Message::Listed(kind, list) => {
                self.is_news = true;
                let known = self.kinds.entry(kind).or_default();
                let deltas = known.list(list, Instant::now(), self.hold);
                tracing::info!(%kind, objects = known.len(), "listed");
                deltas
            }
            Message::Applied(arrived) => {
                let known = self.kinds.entry(arrived.id().kind).or_default();
                known.apply(arrived).into_iter().collect()
            }
            Message::Deleted(id) => {
                let known = self.kinds.entry(id.kind).or_default();
                known.delete(id).into_iter().collect()
            }
        };
        self.note(deltas);
    }

    fn note(&mut self, deltas: Vec<Delta>) {
        if matches!(self.phase, Phase::Following) && !deltas.is_empty() {
            self.store.touch();
        }
        self.deltas.extend(deltas);
    }

    fn tick(&mut self, now: Instant) {
        for kind in Kind::SERVED {
            let Some(known) = self.kinds.get_mut(&kind) else { continue };
            if known.due().is_some_and(|due| due <= now) {
                let deltas = known.believe(now);
                tracing::warn!(%kind, removed = deltas.len(), "the list is believed now");
                self.is_news = true;
                self.note(deltas);
            }
        }
        if matches!(self.phase, Phase::Following) {
            self.store.write(packed(&self.kinds));
        }
    }

    /// What to hand on, if anything.
    fn news(&mut self) -> Option<Change> {
        let is_complete =
            Kind::SERVED.iter().all(|kind| self.kinds.get(kind).is_some_and(Known::is_listed));
        match self.phase {
            Phase::Silent(_) | Phase::Remembering(_) if is_complete => {
                self.phase = Phase::Following;
                self.is_news = false;
                self.store.touch();
                self.store.write(packed(&self.kinds));
                return Some(Change::All(self.snapshot()));
            }
            Phase::Silent(Some((due, written))) if due <= Instant::now() => {
                self.phase = Phase::Remembering(written);
                self.is_news = false;
                return Some(Change::All(self.snapshot()));
            }
            Phase::Silent(_) => return None,
            Phase::Remembering(_) | Phase::Following => {}
        }
        let deltas = match self.phase {
            Phase::Following => std::mem::take(&mut self.deltas),
            // What is remembered stays until everything is listed.
            Phase::Silent(_) | Phase::Remembering(_) => Vec::new(),
        };
        if !std::mem::take(&mut self.is_news) && deltas.is_empty() {
            return None;
        }
        Some(Change::Some { deltas, problems: self.problems() })
    }

    fn snapshot(&mut self) -> Snapshot {
        let arrived =
            std::mem::take(&mut self.deltas).into_iter().filter_map(|delta| match delta {
                Delta::Apply { object, .. } => Some((object.object.id(), object.object)),
                Delta::Delete(_) => None,
            });
        let mut arrived: BTreeMap<_, _> = arrived.collect();
        let mut objects = Vec::new();
        for known in self.kinds.values() {
            objects.extend(known.objects(&mut arrived).map(|object| Sourced::new("", object)));
        }
        Snapshot { objects, problems: self.problems() }
    }

    fn problems(&self) -> Vec<Problem> {
        let mut problems = Problems::default();
        if let Phase::Remembering(written) = self.phase {
            let age = SystemTime::now().duration_since(written).unwrap_or_default().as_secs();
            let message = format!(
                "no API server has answered since the start: serving what was known {age} s ago"
            );
            problems.about("API", self.status.server(self.status.current())).error("", message);
        }
        for (kind, known) in &self.kinds {
            if let Some(held) = known.held()
                && !matches!(self.phase, Phase::Silent(_))
            {
                let message = brake::message(*kind, held, self.hold);
                problems.about("API", &format!("{kind}s")).warning("", message);
            }
        }
        if let Some(error) = self.store.error() {
            let message = format!("{error}: a restart without an API server will miss it");
            let dir = self.store.dir().to_string_lossy();
            problems.about("--state-dir", &dir).warning("", message);
        }
        let problems = problems.into_sorted();
        debug_assert!(problems.iter().all(|p| {
            p.severity == Severity::Warning || matches!(self.phase, Phase::Remembering(_))
        }));
        problems
    }
}

/// Sleeps until then, or for ever.
async fn sleep_until_if(wake: Option<Instant>) {
    match wake {
        Some(wake) => sleep_until(wake).await,
        None => std::future::pending().await,
    }
}

/// Every object as it is stored.
fn packed(kinds: &BTreeMap<Kind, Known>) -> impl Iterator<Item = (Kind, &Packed)> {
    kinds.iter().flat_map(|(kind, known)| known.packed().map(|packed| (*kind, packed)))
}

/// What the stored input says, by kind.
fn remembered(store: &Store) -> (BTreeMap<Kind, Known>, Phase) {
    let Some(remembered) = store.read() else { return (BTreeMap::new(), Phase::Silent(None)) };
    let mut objects = BTreeMap::<Kind, Vec<_>>::new();
    for object in remembered.objects {
        objects.entry(object.id().kind).or_default().push(object);
    }
    let kinds = objects.into_iter().map(|(kind, list)| (kind, Known::remembered(list))).collect();
    (kinds, Phase::Silent(Some((Instant::now() + PATIENCE, remembered.written))))
}

/// What a watch tells.
#[derive(Debug)]
enum Message {
    /// Every object of a kind.
    Listed(Kind, BTreeMap<ObjectId, Arrived>),
    /// An object is new or differs.
    Applied(Arrived),
    /// An object is gone.
    Deleted(ObjectId),
}

struct Follow<'a> {
    tasks: &'a mut JoinSet<()>,
    servers: Arc<Servers>,
    sender: mpsc::Sender<Message>,
    status: &'a Arc<Status>,
}

impl Follow<'_> {
    fn kind<K: Trim>(&mut self, params: WatchParams) {
        let api = Api::<K>::all(self.servers.watching(K::KIND));
        let ears = Ears { messages: self.sender.clone(), status: Arc::clone(self.status) };
        self.tasks.spawn(Follower::new(api, params, ears).run());
    }
}
