//! What the agent says of itself, and `healthCheckNodePort`: what load balancers ask of a node
//! before they send to it.
//!
//! [`checks`] decides which listeners there should be and [`answer`] what they say; [`listeners`] has
//! the sockets.

pub mod answer;
pub mod checks;
pub mod listeners;
pub mod liveness;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lbxdp_common::FrontendKind;

use self::liveness::Liveness;
use crate::changes::Changes;
use crate::layer2;
use crate::members;
use crate::model::{Desired, Endpoints, Frontend, FrontendAddr, ServicePortName};
use crate::progress::Progress;
use crate::source::kube;
use crate::sys;
use crate::vip::Tally;

/// What the agent says of itself.
#[derive(Debug)]
pub struct Health {
    pin_path: PathBuf,
    /// The connection to the API, if there is to be one. Readiness does not depend on it.
    kube: Option<Arc<kube::Status>>,
    /// The addresses that Services are given.
    pub addresses: Arc<Tally>,
    /// Which nodes are alive.
    pub members: Arc<members::Tally>,
    /// The addresses that are announced from here.
    pub layer2: Arc<layer2::Progress>,
    /// What the first input waits for.
    waiting: Mutex<Option<String>>,
    liveness: Mutex<Liveness>,
    programmed: AtomicBool,
    attached: AtomicBool,
    sockets: AtomicBool,
    node_eligible: AtomicBool,
    warnings: AtomicUsize,
    errors: AtomicUsize,
    no_local_internal: AtomicUsize,
    no_local_external: AtomicUsize,
    /// Answers of `/healthz`.
    pub healthz: Answers,
    /// Answers of `/livez`.
    pub livez: Answers,
    /// What it has done and has to do.
    pub progress: Progress,
}

/// How often a question was answered in which way.
#[derive(Debug, Default)]
pub struct Answers {
    yes: AtomicU64,
    no: AtomicU64,
}

impl Answers {
    /// One more.
    pub fn count(&self, is_yes: bool) {
        let counter = if is_yes { &self.yes } else { &self.no };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Status codes and how often each was given.
    pub fn by_code(&self) -> [(u16, u64); 2] {
        [(200, self.yes.load(Ordering::Relaxed)), (503, self.no.load(Ordering::Relaxed))]
    }
}

/// Service ports of which a traffic policy `Local` leaves no endpoint on this node, though there
/// are some elsewhere.
#[derive(Clone, Debug, Default)]
pub struct NoLocalEndpoints(BTreeMap<FrontendAddr, (FrontendKind, ServicePortName)>);

/// How many those are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NoLocalCount {
    /// `internalTrafficPolicy`.
    pub internal: usize,
    /// `externalTrafficPolicy`.
    pub external: usize,
}

impl NoLocalEndpoints {
    /// Follows changes of what is desired.
    pub fn follow(&mut self, desired: &Desired, changes: &Changes) {
        let mut look = |addr: &FrontendAddr, frontend: Option<&Frontend>| match frontend {
            Some(Frontend { kind, name, external: Endpoints::Drop, .. }) => {
                self.0.insert(*addr, (*kind, name.clone()));
            }
            _ => drop(self.0.remove(addr)),
        };
        match changes {
            Changes::Some(touched) => {
                touched.frontends.iter().for_each(|addr| look(addr, desired.frontends.get(addr)));
            }
            Changes::All => {
                desired.frontends.iter().for_each(|(addr, frontend)| look(addr, Some(frontend)));
                self.0.retain(|addr, _| desired.frontends.contains_key(addr));
            }
        }
    }

    /// Counts them; a Service port of both families counts once.
    pub fn count(&self) -> NoLocalCount {
        let mut internal = BTreeSet::new();
        let mut external = BTreeSet::new();
        for (addr, (kind, name)) in &self.0 {
            let is_internal = *kind == FrontendKind::ClusterIp;
            let ports = if is_internal { &mut internal } else { &mut external };
            ports.insert((name, addr.protocol));
        }
        NoLocalCount { internal: internal.len(), external: external.len() }
    }
}

impl Health {
    /// An agent that has done nothing yet.
    pub fn new(
        pin_path: &Path,
        kube: Option<Arc<kube::Status>>,
        addresses: Arc<Tally>,
        members: Arc<members::Tally>,
    ) -> Self {
        Self {
            pin_path: pin_path.to_owned(),
            kube,
            addresses,
            members,
            layer2: Arc::default(),
            waiting: Mutex::new(None),
            liveness: Mutex::new(Liveness::new(sys::coarse_ns())),
            programmed: AtomicBool::new(false),
            attached: AtomicBool::new(false),
            sockets: AtomicBool::new(false),
            node_eligible: AtomicBool::new(true),
            warnings: AtomicUsize::new(0),
            errors: AtomicUsize::new(0),
            no_local_internal: AtomicUsize::new(0),
            no_local_external: AtomicUsize::new(0),
            healthz: Answers::default(),
            livez: Answers::default(),
            progress: Progress::default(),
        }
    }

    /// What the first input waits for; `None` when it has come.
    pub fn waiting(&self, reason: Option<String>) {
        *self.waiting.lock().unwrap_or_else(PoisonError::into_inner) = reason;
    }

    /// The connection to the API, if there is to be one.
    pub fn kube(&self) -> Option<&kube::Status> {
        self.kube.as_deref()
    }

    /// Whether the maps are what they should be.
    pub fn programmed(&self, is_done: bool) {
        self.programmed.store(is_done, Ordering::Relaxed);
        self.liveness().programmed(is_done, sys::coarse_ns());
    }

    /// Something has changed that is to be programmed.
    pub fn queued(&self) {
        self.liveness().queued(sys::coarse_ns());
    }

    /// The agent has come round to look what there is to do.
    pub fn turned(&self) {
        self.liveness().turned(sys::coarse_ns());
    }

    /// Whether what changes is programmed. Never depends on where changes come from: a source that
    /// is gone has none.
    pub fn is_live(&self) -> bool {
        self.liveness().is_live(sys::coarse_ns())
    }

    /// Seconds since the maps were last what they should be, zero for an agent that is live.
    pub fn behind_seconds(&self) -> u64 {
        self.liveness().behind_ns(sys::coarse_ns()) / 1_000_000_000
    }

    /// Whether load balancers should send new connections to this node.
    pub fn set_node_eligible(&self, is_eligible: bool) {
        self.node_eligible.store(is_eligible, Ordering::Relaxed);
    }

    /// See [`Self::set_node_eligible`].
    pub fn is_node_eligible(&self) -> bool {
        self.node_eligible.load(Ordering::Relaxed)
    }

    /// Whether some device is served.
    pub fn attached(&self, is_done: bool) {
        self.attached.store(is_done, Ordering::Relaxed);
    }

    /// Whether clients on the node are served, if they should be.
    pub fn sockets(&self, is_done: bool) {
        self.sockets.store(is_done, Ordering::Relaxed);
    }

    /// How many problems the input has.
    pub fn problems(&self, warnings: usize, errors: usize) {
        self.warnings.store(warnings, Ordering::Relaxed);
        self.errors.store(errors, Ordering::Relaxed);
    }

    /// Warnings and errors.
    pub fn problem_counts(&self) -> (usize, usize) {
        (self.warnings.load(Ordering::Relaxed), self.errors.load(Ordering::Relaxed))
    }

    /// How many Service ports lack endpoints here.
    pub fn set_no_local_endpoints(&self, count: NoLocalCount) {
        self.no_local_internal.store(count.internal, Ordering::Relaxed);
        self.no_local_external.store(count.external, Ordering::Relaxed);
    }

    /// See [`Self::set_no_local_endpoints`].
    pub fn no_local_endpoints(&self) -> NoLocalCount {
        NoLocalCount {
            internal: self.no_local_internal.load(Ordering::Relaxed),
            external: self.no_local_external.load(Ordering::Relaxed),
        }
    }

    /// Directory of pins.
    pub fn pin_path(&self) -> &Path {
        &self.pin_path
    }

    /// What readiness waits for, if anything.
    pub fn missing(&self) -> Option<String> {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let reason = if waiting.is_some() {
            return waiting.map(|reason| format!("{reason}\n"));
        } else if !self.programmed.load(Ordering::Relaxed) {
            "the maps are not what they should be\n"
        } else if !self.attached.load(Ordering::Relaxed) {
            "no device is served\n"
        } else if !self.sockets.load(Ordering::Relaxed) {
            "sockets on this node are not served\n"
        } else {
            return None;
        };
        Some(reason.to_owned())
    }

    fn liveness(&self) -> MutexGuard<'_, Liveness> {
        // Three numbers are right whoever panicked.
        self.liveness.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
