//! The running agent: waits for something to change and makes the maps and the devices follow.
//! It decides nothing itself.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use aya_log::EbpfLogger;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use crate::apply::pinned::PinnedMaps;
use crate::apply::sockets::SocketMaps;
use crate::apply::{BackendEntry, MapError, Maps as _};
use crate::attach::{self, Config, Dataplane, DeviceStatus, TcKind};
use crate::changes::Changes;
use crate::device::{Pattern, Rules, Why};
use crate::health::listeners::Listeners;
use crate::health::{Health, NoLocalEndpoints};
use crate::hops::{Hops, NextHop};
use crate::index::{self, Index};
use crate::keep;
use crate::layer2::{self, Announcer, Balancers};
use crate::lock::Lock;
use crate::members::{self, Devices, Says};
use crate::model::{Desired, Family, Frontend, NodeFacts, Problem, Reason, Severity};
use crate::netlink::{Monitor, Network, Routes};
use crate::pins::Pins;
use crate::problem::{self, Problems};
use crate::progress::{Extent, Triggers};
use crate::publish::publish;
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

/// Everything is decided anew and compared with what the maps hold this often, whatever has changed:
/// a mistake about what a change touches lasts no longer.
const EVERYTHING_EVERY: Duration = Duration::from_secs(60);

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
    /// How to learn which nodes are alive.
    pub members: members::Options,
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
    /// Addresses are announced on the local network.
    pub layer2: bool,
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
        members,
        source,
        node_name,
        index,
        devices,
        pod_devices,
        listen,
        without_xdp,
        hand_over,
        layer2,
        object,
        dataplane,
    } = options;

    Pins::new(&dataplane.pin_path).prepare()?;
    let _lock = Lock::take(&dataplane.pin_path)?;

    let (mut source, first) = Source::start(&source, &node_name).await?;
    let state_dir = members.state_dir.clone();
    let members = members::Handle::start(members, source.leases())?;
    // Until it is known that it can.
    members.says().send_replace(Says { devices: Devices::NONE, ..Says::default() });
    let (kube, tally) = (source.kube_status(), source.tally());
    let health = Arc::new(Health::new(&dataplane.pin_path, kube, tally, members.tally()));
    health.waiting(Some(source.waiting()));
    if let Some(addr) = listen {
        serve::spawn(addr, Arc::clone(&health)).await?;
    }

    let has_packet_log = dataplane.log_level > 0;
    let snat_ports = dataplane.snat_ports.clone();
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
    let hops = Arc::new(Hops::open(dataplane.pins(), maps.hops()?).context("map hops")?);
    // Before the programs come that use them.
    maps.occupy_ports(snat_ports.clone())?;
    let monitor =
        Monitor::start_with(Arc::clone(&hops)).context("following the network by netlink")?;
    let mut network = monitor.subscribe();
    let mut alive = members.members();
    let is_attached = !attach::read_status(dataplane.pins(), &monitor.network())?.is_empty();
    let is_new = !dataplane.rebuilt().is_empty();
    let (balancers, balanced) = watch::channel(None);
    let (served, serving) = watch::channel(BTreeSet::new());
    let seen = source.announced();
    let mut tellers = JoinSet::new();
    tellers.spawn(layer2::keep(seen.subscribe(), state_dir, Arc::clone(&health.layer2)));
    let announced = layer2::Inputs {
        node: node_name.clone(),
        balancers: balanced,
        resources: source.resources(),
        members: members.members(),
        says: members.says(),
        network: monitor.subscribe(),
        served: serving,
        health: Arc::clone(&health),
        is_on: layer2,
        seen,
    };
    let announcer =
        Announcer::start(dataplane.pins(), announced).context("announcing addresses")?;
    let take_over = TakeOver::start(&mut maps, is_attached, is_new, hand_over)?;
    let mut agent = Agent {
        node: ObjectId::new(Kind::Node, None, &node_name),
        index: Index::new(&node_name).with_config(index),
        kept: None,
        may_lack: true,
        changes: Changes::All,
        is_udp_changed: false,
        spent: Duration::ZERO,
        sweeping: Duration::ZERO,
        hops,
        snat_ports,
        are_ports_known: false,
        routes: Routes::open().context("asking for routes by netlink")?,
        facts: NodeFacts::default(),
        unreachable: BTreeSet::new(),
        routes_version: None,
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
        problems: Found::default(),
        reported: BTreeSet::new(),
        is_another: false,
        failed: None,
        events: source.events(),
        statuses: Vec::new(),
        listeners: Listeners::new(Arc::clone(&health)),
        triggers: Triggers::new(SystemTime::now()),
        listen_again: None,
        no_local: NoLocalEndpoints::default(),
        members,
        balancers,
        served,
        health,
    };
    agent.reconciler.maps_mut().let_go();
    agent.take(first);
    agent.health.waiting(None);
    let mut not_before = Instant::now();
    let mut devices_due = Instant::now();
    let mut sweep_due = Instant::now() + SWEEP_EVERY;
    let mut everything_due = Instant::now() + EVERYTHING_EVERY;
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
        if everything_due <= now {
            everything_due = now + EVERYTHING_EVERY;
            agent.doubt();
            retry_due = Some(now);
        }
        if sweep || retry_due.is_some_and(|due| due <= now) {
            let current = Arc::clone(&network.borrow_and_update());
            let start = sys::thread_time();
            retry_due = agent.reconcile(&current, sweep).map(|wait| Instant::now() + wait);
            // Sweeps have a pause of their own.
            let cost = sys::thread_time().saturating_sub(start);
            let cost = cost.saturating_sub(std::mem::take(&mut agent.sweeping));
            not_before = Instant::now() + (cost * PAUSE_FACTOR).min(LONGEST_PAUSE);
            if std::mem::take(&mut agent.is_udp_changed) {
                sockets_changed = Instant::now();
                sockets_due = Some(sockets_changed);
            }
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
        agent.reconciler.maps_mut().let_go_of_flows();
        let wake = [retry_due, sockets_due, agent.take_over_due()];
        let wake = wake.into_iter().flatten().fold(devices_due, Instant::min);
        let wake = wake.min(sweep_due).min(everything_due);
        tokio::select! {
            change = source.changed() => {
                if agent.take(change) {
                    devices_due = Instant::now();
                }
                let due = not_before.max(Instant::now());
                retry_due = Some(retry_due.map_or(due, |retry| retry.min(due)));
            }
            changed = network.changed() => {
                changed.context("the netlink thread ended")?;
                agent.health.queued();
                agent.health.progress.queued(0, 0);
                retry_due = Some(Instant::now());
                devices_due = Instant::now();
            }
            Ok(()) = alive.changed() => {
                // A source that sends change upon change must not keep a dead node in the tables.
                if agent.index.set_dead_nodes(&alive.borrow_and_update().dead) {
                    retry_due = Some(Instant::now());
                }
            }
            () = sleep_until(wake) => {}
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
        }
    }
    // First, so that others answer while this node still forwards.
    announcer.hand_over().await;
    agent.members.finish().await;
    source.finish().await;
    tracing::info!("stopped; the programs go on forwarding");
    Ok(())
}

struct Agent {
    node: ObjectId,
    index: Index,
    /// What is desired while the input has never been complete since the start: what the index says,
    /// and what the maps have.
    kept: Option<Desired>,
    may_lack: bool,
    /// What may differ from what the maps were made to be.
    changes: Changes,
    /// UDP frontends were among the changes.
    is_udp_changed: bool,
    /// Time that the changes have cost so far.
    spent: Duration,
    /// Processor time that the last reconciliation took for a sweep of UDP flows.
    sweeping: Duration,
    hops: Arc<Hops>,
    /// Source ports of translated flows.
    snat_ports: RangeInclusive<u16>,
    /// The programs know which ports are the node's alone.
    are_ports_known: bool,
    routes: Routes,
    facts: NodeFacts,
    /// Backends without a route.
    unreachable: BTreeSet<IpAddr>,
    /// Of the routes that the facts follow from.
    routes_version: Option<u64>,
    reconciler: Reconciler<PinnedMaps>,
    socket_maps: SocketMaps,
    dataplane: Dataplane,
    take_over: TakeOver,
    rules: Rules,
    problems: Found,
    reported: BTreeSet<Problem>,
    /// Objects came that Events have not been about, under old names perhaps.
    is_another: bool,
    /// That the maps are not what they should be, as Events say it.
    failed: Option<Problem>,
    events: Option<source::kube::Events>,
    statuses: Vec<DeviceStatus>,
    listeners: Listeners,
    triggers: Triggers,
    /// Some listener could not be opened.
    listen_again: Option<Duration>,
    no_local: NoLocalEndpoints,
    /// Which nodes are alive.
    members: members::Handle,
    /// What of that is to be announced, if it is served.
    balancers: watch::Sender<Option<Arc<Balancers>>>,
    /// Devices by which it may be.
    served: watch::Sender<BTreeSet<u32>>,
    health: Arc<Health>,
}

/// What is wrong, by who says so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Found {
    source: Vec<Problem>,
    index: Vec<Problem>,
    planning: Vec<Problem>,
    listening: Vec<Problem>,
}

impl Agent {
    /// Takes the input as it is now. What follows from it is a matter of the next reconciliation.
    /// Whether the addresses of the node are others.
    fn take(&mut self, change: Change) -> bool {
        let start = Instant::now();
        self.health.queued();
        let (mut services, mut endpoints) = (0, 0);
        let mut count = |kind| match kind {
            Kind::Service => services += 1,
            Kind::EndpointSlice => endpoints += 1,
            _ => {}
        };
        let problems = match change {
            Change::All(Snapshot { objects, problems }) => {
                objects.iter().for_each(|sourced| count(sourced.object.kind()));
                self.triggers.forget();
                self.is_another = true;
                self.index.replace(objects);
                problems
            }
            Change::Some { deltas, problems } => {
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
        self.problems.source = problems;
        self.may_lack &= !is_complete;
        self.health.set_node_eligible(self.index.is_node_eligible());
        let addresses = self.index.node_addresses();
        let is_elsewhere = self.rules.node_addresses != addresses;
        self.members.set_addresses(&addresses);
        self.rules.node_addresses = addresses;
        self.spent += start.elapsed();
        is_elsewhere
    }

    /// Has the next reconciliation decide and compare everything.
    fn doubt(&mut self) {
        self.index.doubt();
        self.changes = Changes::All;
    }

    /// What should be served.
    fn desired(&self) -> &Desired {
        desired(self.kept.as_ref(), &self.index)
    }

    /// Has the index follow the objects.
    fn decide(&mut self) -> Result<(), MapError> {
        let changes = self.index.follow();
        if self.may_lack && !changes.is_empty() {
            let actual = self.reconciler.maps().read().inspect_err(|_| self.index.doubt())?;
            let mut desired = self.index.desired().clone();
            let kept = keep::keep(&actual, &mut desired);
            if kept > 0 {
                tracing::warn!(kept, "input is incomplete since the start: frontends stay");
            }
            self.kept = Some(desired);
            self.changes = Changes::All;
        } else if !self.may_lack && self.kept.take().is_some() {
            self.changes = Changes::All;
        }
        self.changes.merge(changes);
        self.health.members.set_left_out(self.index.left_out());
        if self.problems.index != self.index.problems() {
            self.problems.index = self.index.problems().to_vec();
        }
        Ok(())
    }

    /// Brings the maps as near to what is desired as they get; when to try again.
    fn reconcile(&mut self, network: &Network, sweep: bool) -> Option<Duration> {
        let start = Instant::now();
        self.index.set_device_addresses(network.addresses());
        if let Err(error) = self.decide() {
            // Without knowing what is there nothing may go.
            tracing::error!(%error, "reading what the maps have");
            self.health.programmed(false);
            return Some(LONGEST_PAUSE);
        }
        self.look_around(network);
        let mut changes = std::mem::take(&mut self.changes);
        if sweep {
            changes = Changes::All;
        }
        let desired = desired(self.kept.as_ref(), &self.index);
        self.is_udp_changed |= changes.has_udp();
        self.no_local.follow(desired, &changes);
        self.health.set_no_local_endpoints(self.no_local.count());
        // First, so that nobody is sent here for what is about to go.
        if changes.health_checks() || self.listen_again.is_some() {
            (self.problems.listening, self.listen_again) = self.listeners.follow(desired);
        }
        let flows = sweep.then(|| self.reconciler.maps().flow_addresses());
        let flows = match flows.transpose() {
            Ok(flows) => flows,
            Err(error) => {
                tracing::warn!(%error, "reading flows");
                None
            }
        };
        let now = sys::coarse_ns();
        let outcome = match &flows {
            Some(flows) => self.reconciler.reconcile(desired, &self.facts, Some(flows), now),
            None => self.reconciler.reconcile_some(desired, &self.facts, &changes, now),
        };
        if outcome.failure.is_some() {
            self.changes = Changes::All;
        } else {
            if changes == Changes::All {
                let backends = self.reconciler.actual().backends.values().map(BackendEntry::hop);
                let in_use = backends.chain(self.facts.hops.values().copied()).collect();
                self.hops.confirm(network.routes_version, &in_use);
            } else {
                // Ways are forgotten with a look at everything, which other routes ask for, too.
                self.hops.go_on();
            }
            if let Some(balancers) = self.index.changed_balancers() {
                let _ = self.balancers.send(Some(Arc::new(balancers.clone())));
            }
        }
        let spent = std::mem::take(&mut self.spent) + start.elapsed();
        if outcome.planned > 0 {
            let (planned, applied) = (outcome.planned, outcome.applied);
            let micros = spent.as_micros();
            let touched = changes.frontends();
            tracing::info!(planned, applied, touched, micros, "programmed");
        } else if changes == Changes::All {
            tracing::debug!(micros = spent.as_micros(), "compared everything");
        }
        if let Some(error) = &outcome.failure {
            tracing::error!(%error, retry = ?outcome.retry_after, "programming");
        }
        let begin = sys::thread_time();
        let swept = self.reconciler.sweep_udp(sys::coarse_ns());
        self.sweeping = sys::thread_time().saturating_sub(begin);
        if let (Some(looked_at), 1..) = (swept.looked_at, swept.ended) {
            let ended = swept.ended;
            tracing::info!(ended, looked_at, "ended UDP flows whose backend does not serve");
        }
        if let Some(error) = &swept.failure {
            tracing::error!(%error, retry = ?swept.retry_after, "ending UDP flows");
        }
        self.problems.planning = outcome.problems;
        self.report(outcome.failure.as_ref());
        self.health.programmed(outcome.failure.is_none());
        let extent = if changes == Changes::All { Extent::Full } else { Extent::Partial };
        self.measure(extent, spent, outcome.failure.as_ref());
        earliest([outcome.retry_after, swept.retry_after, self.listen_again])
    }

    /// Notes what came of a reconciliation.
    fn measure(&mut self, extent: Extent, took: Duration, failure: Option<&MapError>) {
        let progress = &self.health.progress;
        let is_done = failure.is_none();
        progress.synced(extent, took, is_done);
        if let Some(kube) = self.health.kube() {
            let (warnings, errors) = self.health.problem_counts();
            let (last_sync, error) =
                (progress.last_sync().as_secs(), failure.map(ToString::to_string));
            kube.set_work(Work { last_sync, error, warnings, errors });
        }
        progress.set_rooms(self.reconciler.rooms());
        if is_done {
            for latency in self.triggers.programmed(SystemTime::now()) {
                progress.programming.observe(latency.as_secs_f64());
            }
        }
    }

    /// What only this node knows: its addresses, and from where it reaches remote backends. Asked is
    /// for what the changes name alone, unless routes or addresses are others.
    fn look_around(&mut self, network: &Network) {
        let addresses = network.addresses();
        if self.facts.addresses != addresses {
            self.facts.addresses = addresses;
            self.changes = Changes::All;
        }
        if self.routes_version != Some(network.routes_version) {
            self.facts.snat_sources.clear();
            self.facts.hops.clear();
            self.unreachable.clear();
            if let Err(error) = self.routes.renew(&network.by_rule) {
                tracing::debug!(%error, "listing routes; each address is asked for");
            }
            self.routes_version = Some(network.routes_version);
            self.changes = Changes::All;
        }
        let desired = desired(self.kept.as_ref(), &self.index);
        let frontends: Box<dyn Iterator<Item = &Frontend>> = match &self.changes {
            Changes::All => Box::new(desired.frontends.values()),
            Changes::Some(touched) => {
                let frontends = touched.frontends.iter();
                Box::new(frontends.filter_map(|addr| desired.frontends.get(addr)))
            }
        };
        let named = frontends.flat_map(Frontend::choices);
        let moved = match &self.changes {
            Changes::All => None,
            Changes::Some(touched) => Some(&touched.backends),
        };
        let backends = named.flatten().chain(moved.into_iter().flatten());
        // Backends that nobody names any more are forgotten with the next look at everything.
        let mut seen = BTreeSet::new();
        for backend in backends.filter(|backend| !desired.local_backends.contains(backend)) {
            let ip = backend.ip();
            if matches!(self.changes, Changes::All) {
                seen.insert(ip);
            }
            if self.facts.snat_sources.contains_key(&ip) || self.unreachable.contains(&ip) {
                continue;
            }
            let route = self.routes.route_source(ip).unwrap_or_else(|error| {
                tracing::warn!(%error, backend = %ip, "asking for the route");
                None
            });
            match route {
                Some(route) => {
                    self.facts.snat_sources.insert(ip, route.source);
                    let family = Family::of(ip);
                    let next_hop = route.next_hop.filter(|_| !network.by_rule.contains(&family));
                    if let Some(addr) = next_hop {
                        let next = NextHop { ifindex: route.ifindex, family, addr };
                        self.facts.hops.insert(ip, self.hops.id(next, ip));
                    }
                }
                None => drop(self.unreachable.insert(ip)),
            }
        }
        if matches!(self.changes, Changes::All) {
            self.facts.snat_sources.retain(|ip, _| seen.contains(ip));
            self.facts.hops.retain(|ip, _| seen.contains(ip));
            self.unreachable.retain(|ip| seen.contains(ip));
        }
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
                    if statuses.iter().all(|status| status.error.is_none()) {
                        self.free_ports();
                    }
                }
                self.health.attached(is_attached && self.take_over.is_done());
                self.set_served(&statuses);
                self.statuses = statuses;
            }
            Err(error) => {
                tracing::error!("attaching: {error:#}");
                self.health.attached(false);
            }
        }
        self.health.sockets(self.dataplane.sockets().error().is_none());
    }

    /// Says by which devices addresses may be announced: those that lead to a network of hosts.
    fn set_served(&self, statuses: &[DeviceStatus]) {
        let is_outward =
            |why: &Why| matches!(why, Why::Named | Why::DefaultRoute | Why::NodeAddress);
        let served = statuses.iter().filter(|status| {
            status.error.is_none()
                && status.tc.is_some()
                && status.why.as_ref().is_some_and(is_outward)
        });
        publish(&self.served, served.map(|status| status.ifindex).collect());
    }

    /// Tells the programs which ports are the node's alone. Once: from then on, each port is taken
    /// before something can be found there, and what is not given back costs a lookup.
    fn free_ports(&mut self) {
        if self.are_ports_known {
            return;
        }
        let frontends = self.reconciler.actual().frontends.keys().map(|addr| addr.port);
        match self.reconciler.maps().free_other_ports(frontends, self.snat_ports.clone()) {
            Ok(()) => self.are_ports_known = true,
            Err(error) => tracing::warn!(%error, "telling programs the node's own ports"),
        }
    }

    /// Lets UDP sockets choose anew whose backend serves no more, or fails what they send. Whether
    /// to look again soon.
    fn sweep_sockets(&mut self) -> bool {
        if !self.dataplane.sockets().are_wanted() {
            return false;
        }
        let sockets::Sweep { ops, stale } = match self.socket_maps.udp() {
            Ok(entries) => sockets::sweep(&entries, self.desired()),
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
    fn report(&mut self, failure: Option<&MapError>) {
        let Found { source, index, planning, listening } = &self.problems;
        let all = || source.iter().chain(index).chain(planning).chain(listening);
        if all().count() == 0
            && self.reported.is_empty()
            && failure.is_none()
            && self.failed.is_none()
        {
            return;
        }
        let problems: BTreeSet<Problem> = all().cloned().collect();
        problem::log_changes(&self.reported, &problems);
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

/// What is kept as long as the input may lack something, and else what the index says.
fn desired<'a>(kept: Option<&'a Desired>, index: &'a Index) -> &'a Desired {
    kept.unwrap_or_else(|| index.desired())
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
