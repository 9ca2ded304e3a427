//! Makes the maps what they should be. The only place that retries.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use crate::apply::{Actual, MapError, Maps};
use crate::changes::Changes;
use crate::model::{Desired, NodeFacts, Problem};
use crate::plan::{Plan, Planner};
use crate::progress::Room;
use crate::quarantine::QUARANTINE;
use crate::udp::{self, Sweeps};

/// The wait after a first failure; it doubles with each further one.
pub const FIRST_BACKOFF: Duration = Duration::from_millis(100);
/// The longest wait.
pub const LONGEST_BACKOFF: Duration = Duration::from_secs(30);

/// What came of an attempt.
#[derive(Debug)]
pub struct Outcome {
    /// How many operations the maps needed.
    pub planned: usize,
    /// How many were carried out.
    pub applied: usize,
    /// Why the rest was not.
    pub failure: Option<MapError>,
    /// What is not served as desired.
    pub problems: Vec<Problem>,
    /// When to reconcile again at the latest, even if nothing changes: after a failure, or because
    /// something waits for its quarantine to end.
    pub retry_after: Option<Duration>,
}

/// What came of looking for UDP flows that have to end.
#[derive(Debug, Default)]
pub struct Swept {
    /// How many were looked at, in halves; `None` if it was not the time to look.
    pub looked_at: Option<usize>,
    /// How many ended.
    pub ended: usize,
    /// Why others did not.
    pub failure: Option<MapError>,
    /// When to look again at the latest, even if nothing changes.
    pub retry_after: Option<Duration>,
}

/// The maps and the picture of them.
#[derive(Debug)]
pub struct Reconciler<M> {
    maps: M,
    planner: Planner,
    sweeps: Sweeps,
    failures: u32,
}

impl<M: Maps> Reconciler<M> {
    /// Reads what the maps hold.
    pub fn new(maps: M, now: u64) -> Result<Self, MapError> {
        let planner = Planner::new(&maps.read()?, maps.frontends(), now);
        let sweeps = Sweeps::new(planner.actual());
        Ok(Self { maps, planner, sweeps, failures: 0 })
    }

    /// Brings the maps as near to `desired` as they get. A failure loses nothing: what was carried
    /// out is remembered, and the next attempt plans from there. `now` is in nanoseconds of a
    /// clock that does not go backwards; `flows` as for [`Planner::plan`].
    pub fn reconcile(
        &mut self,
        desired: &Desired,
        facts: &NodeFacts,
        flows: Option<&BTreeSet<IpAddr>>,
        now: u64,
    ) -> Outcome {
        let plan = self.planner.plan(desired, facts, flows, now);
        self.carry_out(plan, desired, &Changes::All)
    }

    /// The same where nothing but `changes` differs from what was reconciled before.
    pub fn reconcile_some(
        &mut self,
        desired: &Desired,
        facts: &NodeFacts,
        changes: &Changes,
        now: u64,
    ) -> Outcome {
        let plan = match changes {
            Changes::Some(touched) => self.planner.plan_some(desired, facts, touched, now),
            Changes::All => self.planner.plan(desired, facts, None, now),
        };
        self.carry_out(plan, desired, changes)
    }

    fn carry_out(&mut self, plan: Plan, desired: &Desired, changes: &Changes) -> Outcome {
        let Plan { ops, problems } = plan;
        let (applied, failure) = self.maps.apply(&ops);
        self.planner.commit(&ops[..applied]);
        // What a failed attempt changed is looked at again with everything.
        match &failure {
            None if self.failures > 0 => self.sweeps.published(desired, &Changes::All),
            None => self.sweeps.published(desired, changes),
            Some(_) => {}
        }

        self.failures = match (&failure, applied) {
            (None, _) => 0,
            (Some(_), 0) => self.failures.saturating_add(1),
            // It gets on, if slowly.
            (Some(_), _) => 1,
        };
        let retry_after = if failure.is_some() {
            Some(backoff(self.failures))
        } else {
            self.planner.is_waiting().then_some(QUARANTINE)
        };
        Outcome { planned: ops.len(), applied, failure, problems, retry_after }
    }

    /// Ends the UDP flows to backends that do not serve any more, if that is due. `now` as for
    /// [`Self::reconcile`], after which this belongs: a flow that is ended while the old table is
    /// still published begins again from there.
    pub fn sweep_udp(&mut self, now: u64) -> Swept {
        let mut swept = Swept::default();
        if let Some(serving) = self.sweeps.begin(now) {
            let mut is_clean = false;
            match self.maps.udp_flows() {
                Ok(flows) => {
                    swept.looked_at = Some(flows.len());
                    let stale = serving.stale(flows);
                    is_clean = stale.is_empty();
                    let is_first = self.sweeps.is_first();
                    let ending = if is_first { udp::ending_gently(stale) } else { stale };
                    for half in ending {
                        match self.maps.end_half(&half) {
                            Ok(ended) => swept.ended += usize::from(ended && !half.is_reply()),
                            Err(error) => swept.failure = Some(error),
                        }
                    }
                }
                Err(error) => swept.failure = Some(error),
            }
            self.sweeps.swept(now, is_clean && swept.failure.is_none());
        }
        swept.retry_after = self.sweeps.wait(now);
        swept
    }

    /// How full the maps are that only the agent fills.
    pub fn rooms(&self) -> Vec<Room> {
        self.planner.rooms()
    }

    /// What the maps hold, without the contents of tables.
    pub const fn actual(&self) -> &Actual {
        self.planner.actual()
    }

    /// The maps.
    pub const fn maps(&self) -> &M {
        &self.maps
    }

    /// The maps, to change how they behave.
    pub const fn maps_mut(&mut self) -> &mut M {
        &mut self.maps
    }

    /// The same, and what they hold.
    pub const fn maps_and_actual(&mut self) -> (&mut M, &Actual) {
        (&mut self.maps, self.planner.actual())
    }
}

/// The wait after so many failures in a row.
pub fn backoff(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    (FIRST_BACKOFF * (1 << doublings)).min(LONGEST_BACKOFF)
}

#[cfg(test)]
mod tests {
    use lbxdp_common::FrontendKind;

    use super::*;
    use crate::apply::fake::FakeMaps;
    use crate::apply::faulty::FaultyMaps;
    use crate::model::{EndpointSet, Endpoints, Frontend, FrontendAddr, Protocol, ServicePortName};

    const SECOND: u64 = 1_000_000_000;

    fn input() -> (Desired, NodeFacts) {
        let mut desired = Desired::default();
        let mut facts = NodeFacts::default();
        facts.addresses.insert("192.0.2.1".parse().unwrap());
        for service in 0..20_u8 {
            let endpoints: EndpointSet =
                (0..=service % 4).map(|i| ([10, 1, service % 7, i + 1], 8080).into()).collect();
            for endpoint in &endpoints {
                facts.snat_sources.insert(endpoint.ip(), "192.0.2.1".parse().unwrap());
            }
            let addr = FrontendAddr {
                addr: [10, 96, 0, service].into(),
                port: 80,
                protocol: Protocol::Tcp,
            };
            let name = ServicePortName {
                namespace: "default".into(),
                service: format!("service-{service}").into(),
                port: "http".into(),
            };
            let endpoints = Endpoints::Serve(endpoints);
            let frontend =
                Frontend::new(FrontendKind::ClusterIp, name, endpoints.clone(), endpoints);
            desired.frontends.insert(addr, frontend);
        }
        (desired, facts)
    }

    #[test]
    fn maps_that_fail_hold_the_same_in_the_end() {
        let (desired, facts) = input();
        let mut right = Reconciler::new(FakeMaps::default(), 0).unwrap();
        let outcome = right.reconcile(&desired, &facts, None, 0);
        assert!(outcome.failure.is_none());
        assert_eq!(outcome.applied, outcome.planned);

        for seed in 1..6 {
            let maps = FaultyMaps::new(FakeMaps::default(), 200, seed);
            let mut failing = Reconciler::new(maps, 0).unwrap();
            let mut failures = 0;
            for attempt in 0..1_000 {
                let now = attempt * SECOND / 4;
                failing.maps_mut().inner.now = now;
                let outcome = failing.reconcile(&desired, &facts, None, now);
                failures += usize::from(outcome.failure.is_some());
                if outcome.planned == 0 {
                    break;
                }
            }
            assert!(failures > 3, "seed {seed}: {failures} failures prove nothing");
            // Not assert_eq: nobody reads megabytes of slots.
            let maps = &failing.maps().inner.actual;
            assert!(*maps == right.maps().actual, "seed {seed}: other maps");
            assert!(*failing.actual() == maps.without_tables(), "seed {seed}: a wrong picture");
        }
    }

    #[test]
    fn failures_without_progress_wait_longer_each_time() {
        let (desired, facts) = input();
        let mut reconciler =
            Reconciler::new(FaultyMaps::new(FakeMaps::default(), 1_000, 1), 0).unwrap();
        let waits: Vec<u128> = (0..12)
            .map(|_| {
                reconciler.reconcile(&desired, &facts, None, 0).retry_after.unwrap().as_millis()
            })
            .collect();
        assert_eq!(waits[..4], [100, 200, 400, 800]);
        assert_eq!(waits[11], LONGEST_BACKOFF.as_millis());
        reconciler.maps_mut().per_mille = 0;
        assert_eq!(reconciler.reconcile(&desired, &facts, None, 0).retry_after, None);
    }

    #[test]
    fn what_waits_for_its_quarantine_asks_to_come_back() {
        let (desired, facts) = input();
        let mut reconciler = Reconciler::new(FakeMaps::default(), 0).unwrap();
        reconciler.reconcile(&desired, &facts, None, 0);
        let mut rounds = 0;
        let mut outcome = reconciler.reconcile(&Desired::default(), &facts, None, SECOND);
        while let Some(wait) = outcome.retry_after {
            rounds += 1;
            assert!(rounds < 5, "it ends");
            let now = (rounds + 1) * SECOND + wait.as_nanos() as u64;
            reconciler.maps_mut().now = now;
            outcome = reconciler.reconcile(&Desired::default(), &facts, None, now);
        }
        assert!(reconciler.actual().backends.is_empty());
    }
}
