//! Addresses for Services of type LoadBalancer: the agent that holds the lease decides and writes.
//!
//! `lease` says who holds it, `elect` asks the API; `hear` follows what addresses are given by and
//! `inputs` keeps it; what is decided is [`crate::vip`]'s business; `carry_out` and `states` write it,
//! `tell` makes Events. `metallb` says whether MetalLB's own controller is there.
//!
//! The other agents write nothing of this. What says from where addresses are announced, all follow:
//! `announce`.

mod announce;
mod carry_out;
mod elect;
mod hear;
mod inputs;
mod lease;
mod metallb;
mod raw;
mod remember;
mod states;
mod tell;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use kube::Client;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use self::announce::Told;
use self::carry_out::Writer;
use self::elect::Elector;
use self::inputs::Inputs;
use self::metallb::MetalLb;
use self::remember::Memory;
use self::tell::Teller;
use super::events::{self, Counts, Events, queue};
use super::{reports, sleep_until_if};
use crate::layer2::Resources;
use crate::model::Problem;
use crate::problem;
use crate::vip::{Allocator, Tally, View};

/// On their way from the watches.
const QUEUE: usize = 1_024;
/// What belongs together comes together: a pass waits so long for more,
const SETTLE: Duration = Duration::from_millis(50);
/// and for so many times what the last one took.
const PAUSE_FACTOR: u32 = 4;
/// But no longer than this.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Before the end.
const RELEASE: Duration = Duration::from_secs(2);

/// What is given to whom.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Whether Services without a class get addresses.
    pub adopt_classless: bool,
    /// Where pools have to be, besides the agent's own namespace and MetalLB's usual one if empty.
    pub pool_namespaces: Vec<String>,
    /// Ranges of ClusterIPs, besides those that the API knows.
    pub service_cidrs: Vec<IpNet>,
}

/// MetalLB's namespace, where it was installed as its documentation says.
const METALLB: &str = "metallb-system";

/// The task that does it. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Controller {
    stop: watch::Sender<bool>,
    task: JoinSet<()>,
    told: Told,
    _announcing: JoinSet<()>,
}

impl Controller {
    /// Begins.
    pub(super) fn start(
        client: Client,
        (namespace, node): (&str, &str),
        options: &Options,
        state_dir: &Path,
        hold: Duration,
        tally: Arc<Tally>,
        counts: Arc<Counts>,
    ) -> Self {
        let named = &options.pool_namespaces;
        let pool_namespaces: BTreeSet<String> = match named.is_empty() {
            true => [namespace.to_owned(), METALLB.to_owned()].into(),
            false => named.iter().cloned().collect(),
        };
        let told: Told = watch::channel(None).0;
        let mut announcing = JoinSet::new();
        announcing.spawn(announce::run(
            client.clone(),
            pool_namespaces.clone(),
            options.adopt_classless,
            hold,
            told.clone(),
            Memory::new(state_dir),
        ));
        let mut elector = Elector::new(client.clone(), namespace, node);
        let (all, problems) = Events::new();
        let mut term = Term {
            client: client.clone(),
            options: options.clone(),
            pool_namespaces,
            hold,
            tally,
            events: all,
            counts: Arc::clone(&counts),
        };
        let (stop, mut stopped) = watch::channel(false);
        let node = node.to_owned();
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut held = elector.held();
            tokio::select! {
                () = elector.run() => {}
                () = term.serve(&mut held, &node) => {}
                () = events::run(problems, client, node.clone(), counts) => {}
                _ = stopped.changed() => {}
            }
            elector.release().await;
        });
        Self { stop, task, told, _announcing: announcing }
    }

    /// From where which addresses are announced.
    pub(super) fn resources(&self) -> watch::Receiver<Option<Arc<Resources>>> {
        self.told.subscribe()
    }

    /// Ends it, and lets another agent go on at once.
    pub(super) async fn finish(&mut self) {
        let _ = self.stop.send(true);
        if timeout(RELEASE, self.task.join_next()).await.is_err() {
            tracing::warn!("the lease was not released: another agent gets it when it has run out");
        }
    }
}

/// What a holder of the lease needs.
struct Term {
    client: Client,
    options: Options,
    pool_namespaces: BTreeSet<String>,
    hold: Duration,
    tally: Arc<Tally>,
    /// Where problems of pools and advertisements are told.
    events: Events,
    counts: Arc<Counts>,
}

impl Term {
    /// Gives addresses whenever the lease is held, for ever.
    async fn serve(&mut self, held: &mut watch::Receiver<Option<Instant>>, node: &str) {
        loop {
            // The elector lives as long as this.
            if held.wait_for(Option::is_some).await.is_err() {
                return;
            }
            let (teller, queue) = Teller::new(Arc::clone(&self.counts));
            let (client, counts) = (self.client.clone(), Arc::clone(&self.counts));
            tokio::select! {
                () = self.hold(held, teller) => {}
                () = queue::run(queue, client, node, &counts) => {}
            }
            self.events.set(Vec::new());
            self.tally.show(View::default());
            tracing::info!("another agent gives addresses to Services");
        }
    }

    /// Gives addresses while the lease is held.
    async fn hold(&mut self, held: &mut watch::Receiver<Option<Instant>>, mut teller: Teller) {
        let (sender, mut heard) = mpsc::channel(QUEUE);
        let _watches = hear::follow(&self.client, &sender);
        let mut inputs = Inputs::new(self.hold, Instant::now());
        let mut office = Office {
            allocator: Allocator::default(),
            writer: Writer::new(self.client.clone()),
            metallb: MetalLb::default(),
            reported: BTreeSet::new(),
            waiting: None,
        };
        self.tally.show(View { is_giving: true, ..View::default() });
        let mut not_before = Instant::now();
        let mut due = None;
        loop {
            let Some(until) = *held.borrow_and_update() else { return };
            let now = Instant::now();
            if until <= now {
                // The elector is about to say so.
                if held.changed().await.is_err() {
                    return;
                }
                continue;
            }
            inputs.tick(now);
            if due.is_some_and(|due| due <= now) {
                let start = crate::sys::thread_time();
                due = office.pass(self, &inputs, until, &mut teller).await;
                let cost = crate::sys::thread_time().saturating_sub(start);
                not_before = Instant::now() + (cost * PAUSE_FACTOR).clamp(SETTLE, LONGEST_PAUSE);
            }
            let now = Instant::now();
            let doubts = [inputs.due(now), office.metallb.due().filter(|due| *due > now)];
            let wake = doubts.into_iter().flatten().chain(due).min();
            tokio::select! {
                Some(first) = heard.recv() => {
                    inputs.take(first, Instant::now());
                    while let Ok(more) = heard.try_recv() {
                        inputs.take(more, Instant::now());
                    }
                    due = earliest(due, not_before.max(Instant::now() + SETTLE));
                }
                changed = held.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                () = sleep_until_if(wake) => due = earliest(due, Instant::now()),
            }
        }
    }
}

fn earliest(due: Option<Instant>, other: Instant) -> Option<Instant> {
    Some(due.map_or(other, |due| due.min(other)))
}

/// What is known while the lease is held.
struct Office {
    allocator: Allocator,
    writer: Writer,
    metallb: MetalLb,
    /// Problems that were logged.
    reported: BTreeSet<Problem>,
    /// Why nothing is decided, as it was logged.
    waiting: Option<String>,
}

impl Office {
    /// Decides and writes; when to do it again if nothing changes.
    async fn pass(
        &mut self,
        term: &Term,
        inputs: &Inputs,
        until: Instant,
        teller: &mut Teller,
    ) -> Option<Instant> {
        let now = Instant::now();
        let waiting = inputs.waiting(now);
        if self.waiting != waiting {
            match &waiting {
                Some(why) => tracing::info!("no address is given or taken yet: {why}"),
                None => tracing::info!("everything that addresses are given by is known"),
            }
            self.waiting.clone_from(&waiting);
        }
        if waiting.is_some() {
            return None;
        }
        let adopts = self.adopts(term, inputs, now);
        let Options { service_cidrs, adopt_classless, .. } = &term.options;
        let (facts, mut problems) = inputs.facts(&term.pool_namespaces, service_cidrs);
        let services: Vec<_> = inputs.services().cloned().collect();
        let mut decided = facts.decide(&services, adopts, &mut self.allocator);
        problems.extend(std::mem::take(&mut decided.problems));
        decided.problems = problems.into_sorted();
        self.report(term, inputs, &decided.problems);
        term.tally.show(View {
            is_giving: true,
            is_adoption_refused: *adopt_classless && !adopts,
            pools: decided.counts(),
            pending: decided.pending(),
        });
        let result = self.writer.carry_out(&decided, inputs, until, &term.tally).await;
        teller.tell(&decided.outcome.events, &result.written, inputs);
        result.retry
    }

    /// Whether Services without a class are ours.
    fn adopts(&mut self, term: &Term, inputs: &Inputs, now: Instant) -> bool {
        let was_alive = self.metallb.is_alive();
        self.metallb.look(inputs.metallb(), now);
        let is_alive = self.metallb.is_alive();
        if term.options.adopt_classless && was_alive != is_alive {
            if is_alive {
                tracing::error!(
                    "--adopt-classless: refused while a controller of MetalLB runs: Services \
                     without a class are left to it"
                );
            } else {
                tracing::info!("no controller of MetalLB: Services without a class are adopted");
            }
        }
        term.options.adopt_classless && !is_alive
    }

    /// Logs each problem once while it lasts, and makes Events of all.
    fn report(&mut self, term: &Term, inputs: &Inputs, problems: &[Problem]) {
        let problems: BTreeSet<Problem> = problems.iter().cloned().collect();
        if problems == self.reported {
            return;
        }
        problem::log_changes(&self.reported, &problems);
        let uid = |id: &_| {
            let mut all = inputs.resources();
            all.find(|(other, _, _)| *other == id).map(|(_, uid, _)| uid.to_owned())
        };
        term.events.set(reports(&problems, uid));
        self.reported = problems;
    }
}
