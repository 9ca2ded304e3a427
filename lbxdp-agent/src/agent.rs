//! The running agent: waits for something to change and makes the maps and the devices follow.
//! It decides nothing itself.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use aya_log::EbpfLogger;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep, sleep_until};

use crate::apply::pinned::PinnedMaps;
use crate::apply::sockets::SocketMaps;
use crate::apply::{MapError, Maps as _};
use crate::attach::{self, Config, Dataplane, DeviceStatus, TcKind};
use crate::device::{Pattern, Rules, Why};
use crate::health::listeners::Listeners;
use crate::health::{Health, NoLocalEndpoints};
use crate::index::{self, Index};
use crate::keep;
use crate::lock::Lock;
use crate::model::{Desired, Endpoints, NodeFacts, Problem, Reason, Severity};
use crate::netlink::{Monitor, Network, Routes};
use crate::pins::Pins;
use crate::problem::Problems;
use crate::progress::{Extent, Triggers};
use crate::reconcile::Reconciler;
use crate::serve;
use crate::sockets;
use crate::source::kube::Work;
use crate::source::{self, Change, Delta, Kind, ObjectId, Snapshot, Source};
use crate::sys::{self, Access};
use crate::take_over::TakeOver;
use crate::view;

/// Devices are looked at again at least this often: a refusal may have passed.
const DEVICES_EVERY: Duration = Duration::from_secs(5);
/// Flows are read this often while an address waits for its last flow to end.
const SWEEP_EVERY: Duration = Duration::from_secs(10);
/// Sockets are read this often while some are stale, and once more so long after a change: a call
/// that was under way may have chosen by what was there before.
const SOCKETS_EVERY: Duration = Duration::from_secs(1);

/// What readiness waits for is looked at this often before there is an input.
const WAITING_EVERY: Duration = Duration::from_secs(1);
/// After a reconciliation of a change the next one waits for so many times what it cost, so that a
/// stream of changes takes a fifth of a processor and no more.
const PAUSE_FACTOR: u32 = 4;
/// But no longer than this.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The programs' log is looked into this often.
const LOG_EVERY: Duration = Duration::from_millis(100);

/// What the agent is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where Services come from.
    pub source: source::Options,
    /// Name of this node.
    pub node_name: String,
    /// Which addresses Services may have.
    pub index: index::Config,
    /// Devices by name; detected if empty.
    pub devices: Vec<String>,
    /// Names of pods' devices.
    pub pod_devices: Vec<Pattern>,
    /// Where health and metrics are served, if anywhere.
    pub listen: Option<SocketAddr>,
    /// tc does everything.
    pub without_xdp: bool,
    /// What begins is left to the stack.
    pub hand_over: bool,
    /// The BPF object.
    pub object: Vec<u8>,
    /// What the programs are loaded with.
    pub dataplane: Config,
}

/// Runs until SIGINT or SIGTERM. Pins survive: forwarding goes on.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let Options {
        source,
        node_name,
        index,
        devices,
        pod_devices,
        listen,
        without_xdp,
        hand_over,
        object,
        dataplane,
    } = options;

    Pins::new(&dataplane.pin_path).prepare()?;
    let _lock = Lock::take(&dataplane.pin_path)?;

    let (mut source, first) = Source::start(&source, &node_name).await?;
    let health = Arc::new(Health::new(&dataplane.pin_path, source.kube_status()));
    health.waiting(Some(source.waiting()));
    if let Some(addr) = listen {
        serve::spawn(addr, Arc::clone(&health)).await?;
    }

    let has_packet_log = dataplane.log_level > 0;
    let mut dataplane = Dataplane::load(&object, &dataplane)?;
    if has_packet_log {
        forward_packet_log(&mut dataplane)?;
    }
    let first = match first {
        Some(change) => Some(change),
        // Nothing is programmed, attached or detached for want of an input.
        None => loop {
            tokio::select! {
                change = source.changed() => break Some(change),
                () = sleep(WAITING_EVERY) => {
                    health.turned();
                    health.waiting(Some(source.waiting()));
                }
                _ = interrupt.recv() => break None,
                _ = terminate.recv() => break None,
            }
        },
    };
    let Some(first) = first else { return Ok(()) };
    dataplane.adopt()?;
    let mut maps = dataplane.maps()?;
    let socket_maps = SocketMaps::open(dataplane.pins(), Access::ReadWrite)?;
    let monitor = Monitor::start().context("following the network by netlink")?;
    let mut network = monitor.subscribe();
    let is_attached = !attach::read_status(dataplane.pins(), &monitor.network())?.is_empty();
    let is_new = !dataplane.rebuilt().is_empty();
    let take_over = TakeOver::start(&mut maps, is_attached, is_new, hand_over)?;
    let mut agent = Agent {
        node: ObjectId::new(Kind::Node, None, &node_name),
        index: Index::new(node_name).with_config(index),
        desired: Desired::default(),
        is_undecided: false,
        may_lack: true,
        routes: Routes::open().context("asking for routes by netlink")?,
        sources: BTreeMap::new(),
        sources_version: None,
        reconciler: Reconciler::new(maps, sys::coarse_ns())?,
        socket_maps,
        dataplane,
        take_over,
        rules: Rules {
            named: devices,
            pods: pod_devices,
            node_addresses: BTreeSet::new(),
            without_xdp,
        },
        source_problems: Vec::new(),
        index_problems: Vec::new(),
        reported: BTreeSet::new(),
        is_another: false,
        failed: None,
        events: source.events(),
        statuses: Vec::new(),
        listeners: Listeners::new(Arc::clone(&health)),
        extent: Extent::Full,
        triggers: Triggers::new(SystemTime::now()),
        health,
    };
    agent.take(first);
    agent.health.waiting(None);
    let mut not_before = Instant::now();
    let mut devices_due = Instant::now();
    let mut sweep_due = Instant::now() + SWEEP_EVERY;
    let mut retry_due = Some(Instant::now());
    let mut sockets_due = None;
    let mut sockets_changed = Instant::now();
    loop {
        agent.health.turned();
        let now = Instant::now();
        let mut sweep = false;
        if sweep_due <= now {
            sweep_due = now + SWEEP_EVERY;
            sweep = view::has_tombstones(agent.reconciler.actual());
        }
        if sweep || retry_due.is_some_and(|due| due <= now) {
            let current = Arc::clone(&network.borrow_and_update());
            let start = sys::thread_time();
            retry_due = agent.reconcile(&current, sweep).map(|wait| Instant::now() + wait);
            let cost = sys::thread_time().saturating_sub(start);
            not_before = Instant::now() + (cost * PAUSE_FACTOR).min(LONGEST_PAUSE);
            devices_due = now;
            sockets_changed = Instant::now();
            sockets_due = Some(sockets_changed);
        }
        if devices_due <= now {
            let current = Arc::clone(&network.borrow());
            agent.before_attaching();
            agent.attach(&current);
            let pause = if agent.dataplane.is_behind() { Duration::ZERO } else { DEVICES_EVERY };
            devices_due = Instant::now() + pause;
        }
        if agent.take_over_due().is_some_and(|due| due <= Instant::now()) && agent.take_over() {
            devices_due = now;
        }
        if sockets_due.is_some_and(|due| due <= Instant::now()) {
            let is_settled = sockets_changed.elapsed() >= SOCKETS_EVERY;
            let again = agent.sweep_sockets() || !is_settled;
            sockets_due = again.then(|| Instant::now() + SOCKETS_EVERY);
        }
        let wake = [retry_due, sockets_due, agent.take_over_due()];
        let wake = wake.into_iter().flatten().fold(devices_due, Instant::min);
        let wake = wake.min(sweep_due);
        tokio::select! {
            change = source.changed() => {
                agent.take(change);
                let due = not_before.max(Instant::now());
                retry_due = Some(retry_due.map_or(due, |retry| retry.min(due)));
            }
            changed = network.changed() => {
                changed.context("the netlink thread ended")?;
                agent.health.queued();
                agent.health.progress.queued(0, 0);
                retry_due = Some(Instant::now());
            }
            () = sleep_until(wake) => {}
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
        }
    }
    source.finish().await;
    tracing::info!("stopped; the programs go on forwarding");
    Ok(())
}

struct Agent {
    node: ObjectId,
    index: Index,
    desired: Desired,
    /// The input changed since `desired` followed from it.
    is_undecided: bool,
    /// The input has never been complete since the start.
    may_lack: bool,
    routes: Routes,
    /// SNAT sources by backend address, as the routes of `sources_version` have them.
    sources: BTreeMap<IpAddr, Option<IpAddr>>,
    sources_version: Option<u64>,
    reconciler: Reconciler<PinnedMaps>,
    socket_maps: SocketMaps,
    dataplane: Dataplane,
    take_over: TakeOver,
    rules: Rules,
    source_problems: Vec<Problem>,
    index_problems: Vec<Problem>,
    reported: BTreeSet<Problem>,
    /// Objects came that Events have not been about, under old names perhaps.
    is_another: bool,
    /// That the maps are not what they should be, as Events say it.
    failed: Option<Problem>,
    events: Option<source::kube::Events>,
    statuses: Vec<DeviceStatus>,
    listeners: Listeners,
    /// Of the input that is not programmed yet.
    extent: Extent,
    triggers: Triggers,
    health: Arc<Health>,
}

impl Agent {
    /// Takes the input as it is now. What follows from it is a matter of the next reconciliation.
    fn take(&mut self, change: Change) {
        self.health.queued();
        let (mut services, mut endpoints) = (0, 0);
        let mut count = |kind| match kind {
            Kind::Service => services += 1,
            Kind::EndpointSlice => endpoints += 1,
            Kind::Node => {}
        };
        let problems = match change {
            Change::All(Snapshot { objects, problems }) => {
                objects.iter().for_each(|sourced| count(sourced.object.kind()));
                self.triggers.forget();
                self.extent = Extent::Full;
                self.is_another = true;
                self.index.replace(objects);
                self.is_undecided = true;
                problems
            }
            Change::Some { deltas, problems } => {
                self.is_undecided |= !deltas.is_empty();
                for delta in deltas {
                    match delta {
                        Delta::Apply { object, triggered } => {
                            let id = object.object.id();
                            count(id.kind);
                            let uid = object.object.metadata().uid.as_deref();
                            self.is_another |= self.index.uid(&id) != uid;
                            self.triggers.changed(&id, triggered);
                            self.index.apply(object);
                        }
                        Delta::Delete(id) => {
                            count(id.kind);
                            self.triggers.deleted(&id);
                            self.index.delete(&id);
                        }
                    }
                }
                problems
            }
        };
        self.health.progress.queued(services, endpoints);
        let is_complete = problems.iter().all(|problem| problem.severity != Severity::Error);
        self.source_problems = problems;
        self.rules.node_addresses = self.index.node_addresses();
        self.health.set_node_eligible(self.index.is_node_eligible());
        self.may_lack &= !is_complete;
    }

    /// Asks the index again.
    fn decide(&mut self) {
        let (mut desired, problems) = self.index.desired();
        self.index_problems = problems;
        if self.may_lack {
            let kept = keep::keep(self.reconciler.actual(), &mut desired);
            if kept > 0 {
                tracing::warn!(kept, "input is incomplete since the start: frontends stay");
            }
        }
        self.health.set_no_local_endpoints(NoLocalEndpoints::of(&desired));
        self.desired = desired;
    }

    /// Brings the maps as near to what is desired as they get; when to try again.
    fn reconcile(&mut self, network: &Network, sweep: bool) -> Option<Duration> {
        let start = Instant::now();
        let is_undecided = std::mem::take(&mut self.is_undecided);
        if self.index.set_device_addresses(network.addresses()) || is_undecided {
            self.decide();
        }
        // First, so that nobody is sent here for what is about to go.
        let (unheard, listen_again) = self.listeners.follow(&self.desired);
        let facts = self.facts(network);
        let flows = sweep.then(|| self.reconciler.maps().flow_addresses());
        let flows = match flows.transpose() {
            Ok(flows) => flows,
            Err(error) => {
                tracing::warn!(%error, "reading flows");
                None
            }
        };
        let outcome =
            self.reconciler.reconcile(&self.desired, &facts, flows.as_ref(), sys::coarse_ns());
        if outcome.planned > 0 {
            let (planned, applied) = (outcome.planned, outcome.applied);
            tracing::info!(planned, applied, "programmed");
        }
        if let Some(error) = &outcome.failure {
            tracing::error!(%error, retry = ?outcome.retry_after, "programming");
        }
        let swept = self.reconciler.sweep_udp(sys::coarse_ns());
        if let (Some(looked_at), 1..) = (swept.looked_at, swept.ended) {
            let ended = swept.ended;
            tracing::info!(ended, looked_at, "ended UDP flows whose backend does not serve");
        }
        if let Some(error) = &swept.failure {
            tracing::error!(%error, retry = ?swept.retry_after, "ending UDP flows");
        }
        let mut problems = outcome.problems;
        problems.extend(unheard);
        self.report(problems, outcome.failure.as_ref());
        self.health.programmed(outcome.failure.is_none());
        self.measure(start.elapsed(), outcome.failure.as_ref());
        earliest([outcome.retry_after, swept.retry_after, listen_again])
    }

    /// Notes what came of a reconciliation.
    fn measure(&mut self, took: Duration, failure: Option<&MapError>) {
        let progress = &self.health.progress;
        let is_done = failure.is_none();
        progress.synced(self.extent, took, is_done);
        if let Some(kube) = self.health.kube() {
            let (warnings, errors) = self.health.problem_counts();
            let (last_sync, error) =
                (progress.last_sync().as_secs(), failure.map(ToString::to_string));
            kube.set_work(Work { last_sync, error, warnings, errors });
        }
        progress.set_rooms(self.reconciler.rooms());
        if is_done {
            self.extent = Extent::Partial;
            for latency in self.triggers.programmed(SystemTime::now()) {
                progress.programming.observe(latency.as_secs_f64());
            }
        }
    }

    /// What only this node knows: its addresses, and from where it reaches remote backends.
    fn facts(&mut self, network: &Network) -> NodeFacts {
        if self.sources_version != Some(network.routes_version) {
            self.sources.clear();
            self.sources_version = Some(network.routes_version);
        }
        let mut facts = NodeFacts { addresses: network.addresses(), snat_sources: BTreeMap::new() };
        for frontend in self.desired.frontends.values() {
            for endpoints in [&frontend.external, &frontend.internal] {
                let Endpoints::Serve(backends) = endpoints else { continue };
                for backend in backends.difference(&self.desired.local_backends) {
                    let source = *self.sources.entry(backend.ip()).or_insert_with(|| {
                        let asked = self.routes.route_source(backend.ip());
                        let route = asked.unwrap_or_else(|error| {
                            tracing::warn!(%error, backend = %backend.ip(), "asking for the route");
                            None
                        });
                        route.map(|route| route.source)
                    });
                    if let Some(source) = source {
                        facts.snat_sources.insert(backend.ip(), source);
                    }
                }
            }
        }
        facts
    }

    /// What has to be known of the stack's connections before programs run.
    fn before_attaching(&mut self) {
        let (maps, actual) = self.reconciler.maps_and_actual();
        self.take_over.before_attaching(maps, &actual.frontends);
    }

    /// When there is something to do about the stack's connections.
    fn take_over_due(&self) -> Option<Instant> {
        self.take_over.due().map(Instant::from_std)
    }

    /// Does it; whether the node is taken over by now.
    fn take_over(&mut self) -> bool {
        let (maps, actual) = self.reconciler.maps_and_actual();
        self.take_over.go_on(maps, &actual.frontends)
    }

    /// Puts the programs on the devices they belong to.
    fn attach(&mut self, network: &Network) {
        let maps = self.reconciler.maps_mut();
        match self.dataplane.reconcile(network, &self.rules, maps) {
            Ok(statuses) => {
                for status in &statuses {
                    if !self.statuses.contains(status) {
                        announce(status);
                    }
                }
                // Pods come and go; what the node is for is its way outwards.
                let is_attached = statuses
                    .iter()
                    .any(|status| status.error.is_none() && status.why != Some(Why::Pod));
                if !self.dataplane.is_behind() {
                    self.take_over.attached();
                }
                self.health.attached(is_attached && self.take_over.is_done());
                self.statuses = statuses;
            }
            Err(error) => {
                tracing::error!("attaching: {error:#}");
                self.health.attached(false);
            }
        }
        self.health.sockets(self.dataplane.sockets().error().is_none());
    }

    /// Lets UDP sockets choose anew whose backend serves no more, or fails what they send. Whether
    /// to look again soon.
    fn sweep_sockets(&mut self) -> bool {
        if !self.dataplane.sockets().are_wanted() {
            return false;
        }
        let sockets::Sweep { ops, stale } = match self.socket_maps.udp() {
            Ok(entries) => sockets::sweep(&entries, &self.desired),
            Err(error) => {
                tracing::warn!(%error, "reading sockets");
                return true;
            }
        };
        self.dataplane.set_stale_sockets(stale > 0);
        for op in &ops {
            if let Err(error) = self.socket_maps.apply(op) {
                tracing::warn!(%error, "changing sockets");
            }
        }
        if !ops.is_empty() {
            tracing::info!(changed = ops.len(), stale, "sockets whose backend serves no more");
        }
        stale > 0 || !ops.is_empty()
    }

    /// Logs each problem once while it lasts, and tells the API of all.
    fn report(&mut self, planning: Vec<Problem>, failure: Option<&MapError>) {
        let mut problems: BTreeSet<_> = planning.into_iter().collect();
        problems.extend(self.source_problems.iter().cloned());
        problems.extend(self.index_problems.iter().cloned());
        for problem in problems.difference(&self.reported) {
            match problem.severity {
                Severity::Warning => tracing::warn!("{problem}"),
                Severity::Error => tracing::error!("{problem}"),
            }
        }
        for problem in self.reported.difference(&problems) {
            tracing::info!("no longer: {problem}");
        }
        let count = |severity| problems.iter().filter(|p| p.severity == severity).count();
        self.health.problems(count(Severity::Warning), count(Severity::Error));
        let failed = failure.map(|error| not_programmed(&self.node, error));
        if let Some(events) = &self.events
            && (std::mem::take(&mut self.is_another)
                || self.reported != problems
                || self.failed != failed)
        {
            let uid = |id: &ObjectId| self.index.uid(id).map(str::to_owned);
            events.set(source::kube::reports(problems.iter().chain(&failed), uid));
        }
        self.failed = failed;
        self.reported = problems;
    }
}

/// The node's problem. Not the key, which differs from one attempt to the next.
fn not_programmed(node: &ObjectId, error: &MapError) -> Problem {
    let MapError { map, key: _, source } = error;
    let mut problems = Problems::default();
    let message = format!("changes are not programmed: map {map}: {source}");
    problems.about("", &node.to_string()).because(Reason::SyncFailed).error("", message);
    problems.into_sorted().remove(0)
}

/// The shortest of these waits.
fn earliest<const N: usize>(waits: [Option<Duration>; N]) -> Option<Duration> {
    waits.into_iter().flatten().min()
}

fn announce(status: &DeviceStatus) {
    let DeviceStatus { name, ifindex, why, xdp, tc, error, is_pod_name } = status;
    if let Some(error) = error {
        tracing::warn!(device = name, ifindex, "not served: {error}");
        return;
    }
    if *is_pod_name {
        tracing::warn!(
            device = name,
            ifindex,
            "fits --pod-device, but faces outwards: what comes in by it is served as from outside"
        );
    }
    let why = why.map(|why| why.to_string()).unwrap_or_default();
    let tc = tc.map_or("none", TcKind::as_str);
    match xdp {
        Ok(()) => tracing::info!(device = name, ifindex, why, tc, "serving with native XDP"),
        Err(reason) => {
            tracing::info!(device = name, ifindex, why, tc, "serving with tc alone: {reason}");
        }
    }
}

/// Forwards what the programs log to the agent's own log.
fn forward_packet_log(dataplane: &mut Dataplane) -> anyhow::Result<()> {
    let mut logger = EbpfLogger::init(dataplane.ebpf_mut()).context("opening the programs' log")?;
    let mut tick = tokio::time::interval(LOG_EVERY);
    tokio::spawn(async move {
        loop {
            tick.tick().await;
            logger.flush();
        }
    });
    Ok(())
}
