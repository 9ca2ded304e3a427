//! One pass over all Services: who keeps what, who gets what.
//!
//! Everything is decided anew each time, from what the objects show and nothing else, so that a
//! restart, a relist and another agent come to the same end. First those who have addresses keep what
//! they may keep; then those who lack some get what is free. An address that somebody has to give up
//! is free when no object shows it any more, hence in a later pass: were the agent stopped between the
//! two writes, two Services would show it.

mod claim;
mod give;
mod keep;
mod pass;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use self::claim::Claim;
use self::pass::Pass;
use super::pool::Pools;
use super::report::{Decision, Event, PoolCounts};
use super::request::Assignment;
use super::select::Labels;
use crate::source::ObjectId;

/// What a pass looks at.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a, S> {
    /// All Services there are, ours or not.
    pub services: &'a [S],
    /// Labels of all namespaces.
    pub namespaces: &'a BTreeMap<String, Labels>,
    /// All pools.
    pub pools: &'a Pools,
    /// Whether Services without a class are ours.
    pub adopt_classless: bool,
}

/// What a pass decides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// About each Service that is ours, or was.
    pub services: BTreeMap<ObjectId, Decision>,
    /// What each pool has, by namespace and name.
    pub pools: BTreeMap<(String, String), PoolCounts>,
    /// What the authors of Services are to know. Failures are told in every pass; whoever sends them
    /// leaves out what was told before.
    pub events: Vec<Event>,
}

/// Decides, and remembers what its decisions are until the objects show them.
///
/// A status that is written comes back by the watch a little later. A pass in between must not take
/// the Service for one that has nothing. A decision is about one version of an object: its write names
/// that version, and is refused by the API once there is another one.
#[derive(Debug, Default)]
pub struct Allocator {
    decided: BTreeMap<ObjectId, Decided>,
}

#[derive(Debug)]
struct Decided {
    version: Version,
    assignment: Assignment,
}

/// Which object, and which version of it.
#[derive(Debug, PartialEq, Eq)]
struct Version {
    uid: Option<String>,
    resource_version: Option<String>,
}

impl Version {
    fn of(service: &Service) -> Self {
        let ObjectMeta { uid, resource_version, .. } = &service.metadata;
        Self { uid: uid.clone(), resource_version: resource_version.clone() }
    }
}

impl Allocator {
    /// One pass.
    pub fn run<S: AsRef<Service>>(&mut self, input: &Input<'_, S>) -> Outcome {
        let claims: Vec<Claim<'_>> = input
            .services
            .iter()
            .map(|service| Claim::new(service.as_ref(), input, &self.decided))
            .collect();
        let outcome = Pass::new(input.pools, &claims).run();
        self.decided.clear();
        for claim in &claims {
            let Some(decision) = outcome.services.get(&claim.id) else { continue };
            if decision.must_write {
                let version = Version::of(claim.service);
                let decided = Decided { version, assignment: decision.assignment.clone() };
                self.decided.insert(claim.id.clone(), decided);
            }
        }
        outcome
    }
}
