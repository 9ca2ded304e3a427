//! UDP flows follow their Service. Nothing in a datagram says that a flow is over, so a client that
//! keeps its source port would be sent to a backend that is gone for ever.
//!
//! A flow stays as long as its backend serves its frontend: whether the backend is ready or ends, and
//! what policies and hints say now, does not matter (kube-proxy `conntrack/cleanup.go`, with the
//! fixes for Services without endpoints and for deleted ones). Flows are compared with what should
//! be, not with what has changed, so nothing is missed while no agent runs. Only UDP: a TCP
//! connection ends when the pod does.
//!
//! Time is an input: nanoseconds of any clock that does not go backwards.

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::time::Duration;

use lbxdp_common::{AddressFlags, IPPROTO_UDP};

use crate::apply::{Actual, FlowEntry};
use crate::changes::Changes;
use crate::model::{Desired, EndpointSet, FrontendAddr, Protocol};
use crate::quarantine::QUARANTINE;

/// Between two sweeps, and from a change to the sweep that may be its last.
const PAUSE: u64 = QUARANTINE.as_nanos() as u64;

/// The UDP frontends, and the backends that serve each. `None` where that is not known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Serving(BTreeMap<SocketAddr, Option<EndpointSet>>);

impl Serving {
    /// What the input says.
    pub fn of(desired: &Desired) -> Self {
        let mut serving = Self::default();
        serving.follow(desired, desired.frontends.keys());
        serving
    }

    /// Takes what the input says of some frontends. Whether that forbids a flow that was allowed.
    fn follow<'a>(
        &mut self,
        desired: &Desired,
        frontends: impl Iterator<Item = &'a FrontendAddr>,
    ) -> bool {
        let mut is_less = false;
        for addr in frontends.filter(|addr| addr.protocol == Protocol::Udp) {
            let known = !desired.kept.contains(addr);
            let now = desired.frontends.get(addr);
            let now = now.map(|frontend| known.then(|| frontend.serving.clone()));
            let key = SocketAddr::new(addr.addr, addr.port);
            is_less |= match (self.0.get(&key), &now) {
                (None, _) | (Some(_), Some(None)) => false,
                (Some(Some(before)), Some(Some(now))) => !before.is_subset(now),
                (Some(None), Some(Some(_))) | (Some(_), None) => true,
            };
            match now {
                Some(now) => drop(self.0.insert(key, now)),
                None => drop(self.0.remove(&key)),
            }
        }
        is_less
    }

    /// The entries of UDP flows that are to go. Other protocols' are left alone.
    pub fn stale(&self, flows: impl IntoIterator<Item = FlowEntry>) -> Vec<FlowEntry> {
        flows
            .into_iter()
            .filter(|flow| flow.protocol() == IPPROTO_UDP && !self.allows(flow))
            .collect()
    }

    fn allows(&self, flow: &FlowEntry) -> bool {
        let (frontend, backend) = flow.ends();
        match self.0.get(&frontend) {
            // What the stack masquerades may have nothing to do with a frontend.
            None => flow.is_foreign(),
            Some(None) => true,
            Some(Some(serving)) => serving.contains(&backend),
        }
    }
}

/// Which of the stale entries a first sweep ends: the requests', so that the next request chooses anew. An
/// answer may be under way, whoever gave it; its entry ends with the next sweep. (An answer that needs
/// the request's entry puts it back, to be found again.)
pub fn ending_gently(mut stale: Vec<FlowEntry>) -> Vec<FlowEntry> {
    let requests = stale.iter().filter(|flow| !flow.is_reply());
    let answered_by: HashSet<_> = requests.map(FlowEntry::other_arrives).collect();
    stale.retain(|flow| !(flow.is_reply() && answered_by.contains(&flow.arrives())));
    stale
}

/// When the flow tables are swept: after a start and whenever a backend stops serving, again a
/// moment later (a program that was running may have begun a flow from the old table meanwhile),
/// and on until a sweep finds nothing. At most once a second, and never on a node that has had no
/// UDP frontend.
#[derive(Debug)]
pub struct Sweeps {
    /// What the maps were last made to be, since the start.
    serving: Option<Serving>,
    /// There may be UDP flows.
    is_needed: bool,
    /// Something to look for has not been looked for since.
    is_fresh: bool,
    due: bool,
    last: Option<u64>,
}

impl Sweeps {
    /// For an agent that finds these maps.
    pub fn new(actual: &Actual) -> Self {
        let has_frontend = actual.frontends.keys().any(|addr| addr.protocol == Protocol::Udp);
        // The agent before may have removed frontends and not come to sweep.
        let has_tombstone =
            actual.addresses.values().any(|flags| flags.has(AddressFlags::TOMBSTONE));
        Self {
            serving: None,
            is_needed: has_frontend || has_tombstone,
            is_fresh: false,
            due: false,
            last: None,
        }
    }

    /// The maps are what `desired` says by now, which differs by no more than `changes` from what
    /// they were the last time.
    pub fn published(&mut self, desired: &Desired, changes: &Changes) {
        let is_less = match (&mut self.serving, changes) {
            (Some(serving), Changes::Some(touched)) => {
                serving.follow(desired, touched.frontends.iter())
            }
            (Some(serving), Changes::All) => {
                let before = serving.0.keys().map(|addr| FrontendAddr {
                    addr: addr.ip(),
                    port: addr.port(),
                    protocol: Protocol::Udp,
                });
                let before: Vec<_> = before.collect();
                serving.follow(desired, before.iter().chain(desired.frontends.keys()))
            }
            (none, _) => {
                *none = Some(Serving::of(desired));
                true
            }
        };
        self.is_needed |= self.serving.as_ref().is_some_and(|serving| !serving.0.is_empty());
        if is_less && self.is_needed {
            self.is_fresh = true;
            self.due = true;
        }
    }

    /// What to compare flows with, if now is the time.
    pub fn begin(&self, now: u64) -> Option<&Serving> {
        self.serving.as_ref().filter(|_| self.wait(now) == Some(Duration::ZERO))
    }

    /// Whether what the next sweep looks for has not been looked for before.
    pub const fn is_first(&self) -> bool {
        self.is_fresh
    }

    /// Follows a sweep that began at `now`: whether it was complete and found nothing.
    pub const fn swept(&mut self, now: u64, is_clean: bool) {
        self.due = self.is_fresh || !is_clean;
        self.is_fresh = false;
        self.last = Some(now);
    }

    /// How long until the next sweep, if there is to be one.
    pub fn wait(&self, now: u64) -> Option<Duration> {
        let rested = self.last.map_or(PAUSE, |last| now.saturating_sub(last));
        self.due.then(|| Duration::from_nanos(PAUSE.saturating_sub(rested)))
    }
}

#[cfg(test)]
mod tests;
