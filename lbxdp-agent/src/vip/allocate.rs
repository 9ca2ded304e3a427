//! One pass over all Services: who keeps what, who gets what.
//!
//! Everything is decided anew each time, from what the objects show and nothing else, so that a
//! restart, a relist and another agent come to the same end. First those who have addresses keep what
//! they may keep; then those who lack some get what is free. An address that somebody has to give up
//! is free when no object shows it any more, hence in a later pass: were the agent stopped between the
//! two writes, two Services would show it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use k8s_openapi::api::core::v1::Service;

use super::ledger::{Ledger, Tenant};
use super::pool::{Admission, Asker, Pool, Pools};
use super::ranges::{AddressSet, Range};
use super::report::{Counts, Decision, Event, Failure, Listed, PoolCounts, Reason};
use super::request::{Assignment, Request, Role, Unanswerable, deprecated};
use super::select::Labels;
use crate::model::Family;
use crate::problem::quoted;
use crate::source::{Kind, ObjectId};

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
/// the Service for one that has nothing.
#[derive(Debug, Default)]
pub struct Allocator {
    decided: BTreeMap<ObjectId, Decided>,
}

#[derive(Debug)]
struct Decided {
    /// Of the Service: one that was deleted and made again is another one.
    uid: Option<String>,
    assignment: Assignment,
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
                let uid = claim.service.metadata.uid.clone();
                let decided = Decided { uid, assignment: decision.assignment.clone() };
                self.decided.insert(claim.id.clone(), decided);
            }
        }
        outcome
    }

    /// A decision was not carried out and will not be.
    pub fn forget(&mut self, service: &ObjectId) {
        self.decided.remove(service);
    }
}

/// A Service, as a pass looks at it.
struct Claim<'a> {
    id: ObjectId,
    service: &'a Service,
    asker: Asker<'a>,
    role: Role,
    /// Seconds since 1970; those that do not say when come last.
    created: i64,
    /// What the object shows.
    shown: Assignment,
    /// What it has: that, or what was decided since.
    held: Assignment,
    request: Result<Request, Unanswerable>,
}

static NO_LABELS: Labels = Labels::new();

impl<'a> Claim<'a> {
    fn new<S>(
        service: &'a Service,
        input: &Input<'a, S>,
        decided: &BTreeMap<ObjectId, Decided>,
    ) -> Self {
        let metadata = &service.metadata;
        let id = ObjectId::of(Kind::Service, metadata);
        let shown = Assignment::shown(service);
        let decided = decided.get(&id).filter(|decided| decided.uid == metadata.uid);
        let held = decided.map_or_else(|| shown.clone(), |decided| decided.assignment.clone());
        let namespace = metadata.namespace.as_deref().unwrap_or_default();
        Self {
            id,
            service,
            asker: Asker {
                namespace,
                namespace_labels: input.namespaces.get(namespace),
                labels: metadata.labels.as_ref().unwrap_or(&NO_LABELS),
            },
            role: Role::of(service, &shown, input.adopt_classless),
            created: metadata.creation_timestamp.as_ref().map_or(i64::MAX, |t| t.0.as_second()),
            shown,
            held,
            request: Request::of(service),
        }
    }

    /// Addresses that it occupies until further notice, whether it may or not.
    fn occupied(&self) -> impl Iterator<Item = IpAddr> {
        let all = self.shown.addresses.iter().chain(&self.held.addresses).copied();
        all.filter(|_| self.role != Role::None)
    }
}

struct Pass<'a> {
    pools: &'a Pools,
    stages: [Vec<&'a Pool>; 2],
    claims: &'a [Claim<'a>],
    /// Which claims occupy an address.
    occupants: BTreeMap<IpAddr, BTreeSet<usize>>,
    ledger: Ledger<'a>,
    /// What cannot be given out: reserved, or somebody occupies it.
    taken: AddressSet,
    /// Addresses that Services have of a pool.
    assigned: BTreeMap<&'a str, BTreeSet<IpAddr>>,
    outcome: Outcome,
}

/// What a Service keeps.
#[derive(Default)]
struct Kept {
    addresses: Vec<IpAddr>,
    pool: Option<String>,
    failure: Option<Failure>,
    /// Whether it gets nothing else for now.
    is_final: bool,
}

impl<'a> Pass<'a> {
    fn new(pools: &'a Pools, claims: &'a [Claim<'a>]) -> Self {
        let mut occupants = BTreeMap::<_, BTreeSet<_>>::new();
        let mut taken = pools.reserved().clone();
        for (index, claim) in claims.iter().enumerate() {
            for addr in claim.occupied() {
                occupants.entry(addr).or_default().insert(index);
                taken.insert(&addr.into());
            }
        }
        Self {
            pools,
            stages: pools.stages(),
            claims,
            occupants,
            ledger: Ledger::default(),
            taken,
            assigned: BTreeMap::new(),
            outcome: Outcome::default(),
        }
    }

    fn run(mut self) -> Outcome {
        let ours = self.claims.iter().enumerate().filter(|(_, claim)| claim.role == Role::Ours);
        let mut order: Vec<usize> = ours.map(|(index, _)| index).collect();
        order.sort_by_cached_key(|index| self.rank(*index));
        let kept: Vec<Kept> = order.iter().map(|index| self.keep(*index)).collect();
        for (index, kept) in order.into_iter().zip(kept) {
            self.complete(index, kept);
        }
        for claim in self.claims {
            if claim.role == Role::Left {
                let gone = Decision { must_write: true, ..Decision::default() };
                self.outcome.services.insert(claim.id.clone(), gone);
            }
            if matches!(claim.role, Role::Ours) {
                for (old, new) in deprecated(claim.service) {
                    let message = format!("annotation {old} is deprecated, write {new}");
                    self.tell(claim, Reason::DeprecatedAnnotation, message);
                }
            }
        }
        self.count();
        self.outcome
    }

    /// The order in which Services keep what they have and get what they lack: those that have an
    /// address, those that do not; the oldest first. Of several that have one address and do not
    /// agree (any more), those come first who share it with most others: it was somebody else who
    /// changed.
    fn rank(&self, index: usize) -> impl Ord + use<> {
        let claim = &self.claims[index];
        let sharing = |claim: &'a Claim<'a>| claim.request.as_ref().ok()?.sharing.as_ref();
        let own = sharing(claim);
        let neighbours = claim.held.addresses.iter().flat_map(|addr| &self.occupants[addr]);
        let neighbours = neighbours.filter(|other| **other != index).count();
        let partners = claim.held.addresses.iter().flat_map(|addr| &self.occupants[addr]);
        let partners = partners
            .filter(|other| **other != index && own.is_some())
            .filter(|other| sharing(&self.claims[**other]) == own)
            .count();
        let has_none = claim.held.addresses.is_empty();
        let is_intruder = neighbours > 0 && own.is_none();
        (has_none, is_intruder, Reverse(partners), claim.created, claim.id.clone())
    }

    /// What a Service keeps of what it has.
    fn keep(&mut self, index: usize) -> Kept {
        let claim = &self.claims[index];
        let request = match &claim.request {
            Ok(request) => request,
            Err(why) => return self.keep_unanswerable(claim, why),
        };
        let mut kept = Kept::default();
        if claim.held.addresses.is_empty() {
            return kept;
        }
        match &request.wanted {
            Err(why) => {
                let reason = Reason::LoadBalancerFailed;
                kept.failure = Some(Failure { reason, message: why.clone() });
            }
            Ok(wanted) if !wanted.is_empty() && sorted(wanted) != sorted(&claim.held.addresses) => {
                self.clear(claim, &claim.held.addresses, format!("{} asked for", are(wanted)));
                return kept;
            }
            Ok(_) => {}
        }
        let tenant = Tenant::new(&claim.id, request);
        let mut families = request.families.clone();
        let Some((pool, covered)) = self.pool_of(claim, request) else {
            let why = match &request.pool {
                Some(pool) => format!("not of pool {}, which is asked for", quoted(pool)),
                None => "of no pool that it may have addresses of".to_owned(),
            };
            self.clear(claim, &claim.held.addresses, why);
            return kept;
        };
        for addr in &claim.held.addresses {
            let family = Family::of(*addr);
            let verdict = if !families.contains(&family) {
                Err(format!("the Service needs no {family} address of this kind"))
            } else if !covered.contains(addr) {
                Err(format!("not of pool {}", quoted(pool)))
            } else {
                self.ledger.check(*addr, &tenant)
            };
            match verdict {
                Ok(()) => {
                    families.retain(|other| *other != family);
                    kept.addresses.push(*addr);
                }
                Err(why) => self.clear(claim, &[*addr], why),
            }
        }
        if !kept.addresses.is_empty() {
            kept.pool = Some(pool.to_owned());
        }
        for addr in &kept.addresses {
            self.assign(*addr, pool, tenant);
        }
        kept
    }

    /// What a Service keeps that can get nothing.
    fn keep_unanswerable(&mut self, claim: &'a Claim<'a>, why: &Unanswerable) -> Kept {
        let (reason, message) = match why {
            Unanswerable::NoClusterIp => {
                if !claim.held.addresses.is_empty() {
                    self.clear(claim, &claim.held.addresses, "it has no ClusterIP".to_owned());
                }
                let message = "it has no ClusterIP: its family is not known".to_owned();
                let failure = Some(Failure { reason: Reason::NoClusterIpFamily, message });
                return Kept { failure, is_final: true, ..Kept::default() };
            }
            Unanswerable::BadClusterIp(text) => {
                (Reason::NoClusterIpFamily, format!("ClusterIP {text} is no IP address"))
            }
            Unanswerable::NotEnoughClusterIps => (
                Reason::NotEnoughClusterIps,
                "it requires both families and has ClusterIPs of one".to_owned(),
            ),
        };
        static NOTHING: BTreeSet<(crate::model::Protocol, u16)> = BTreeSet::new();
        let tenant = Tenant { service: &claim.id, sharing: None, ports: &NOTHING };
        let pool = claim.held.pool.as_deref().unwrap_or_default();
        let mut kept = Kept {
            pool: claim.held.pool.clone(),
            failure: Some(Failure { reason, message }),
            is_final: true,
            ..Kept::default()
        };
        for addr in &claim.held.addresses {
            if self.ledger.check(*addr, &tenant).is_ok() {
                self.assign(*addr, pool, tenant);
                kept.addresses.push(*addr);
            }
        }
        kept
    }

    /// The pool that a Service has its addresses of, and those of them that are of it. The pool that
    /// it asks for, the one that it was given them of, else the oldest one.
    fn pool_of(&self, claim: &Claim<'a>, request: &Request) -> Option<(&'a str, Vec<IpAddr>)> {
        let noted = claim.held.pool.as_deref();
        let mut best: Option<(&str, Vec<IpAddr>)> = None;
        let (first, others): (Vec<_>, Vec<_>) =
            self.pools.iter().partition(|pool| Some(pool.name.as_str()) == noted);
        for pool in first.into_iter().chain(others) {
            let is_asked_for = request.pool.as_deref().is_none_or(|name| name == pool.name);
            if !is_asked_for || pool.admits(claim.asker) == Admission::No {
                continue;
            }
            let noted_here = noted == Some(pool.name.as_str());
            let mut covered = claim.held.addresses.clone();
            covered.retain(|addr| {
                let may_cover = noted_here && pool.is_unclear && self.is_uncovered(*addr);
                pool.covers(*addr) || may_cover
            });
            if covered.len() > best.as_ref().map_or(0, |(_, addresses)| addresses.len()) {
                best = Some((&pool.name, covered));
            }
        }
        best
    }

    fn is_uncovered(&self, addr: IpAddr) -> bool {
        !self.pools.iter().any(|pool| pool.covers(addr))
    }

    /// Gets a Service what it lacks, and decides.
    fn complete(&mut self, index: usize, kept: Kept) {
        let claim = &self.claims[index];
        let Kept { mut addresses, mut pool, mut failure, is_final } = kept;
        if let (false, Ok(request)) = (is_final, &claim.request) {
            if addresses.is_empty() {
                match self.allocate(index, request) {
                    Ok((from, new)) => {
                        let message = format!("Assigned IP {new:?}");
                        self.tell(claim, Reason::IpAllocated, message);
                        (addresses, pool, failure) = (new, Some(from.to_owned()), None);
                    }
                    Err(why) => {
                        let ObjectId { namespace, name, .. } = &claim.id;
                        let message =
                            format!("Failed to allocate IP for \"{namespace}/{name}\": {why}");
                        failure = Some(Failure { reason: Reason::AllocationFailed, message });
                    }
                }
            } else if addresses.len() < request.families.len() {
                match self.extend(index, request, &addresses, pool.as_deref()) {
                    Ok(new) => {
                        let message = format!("Assigned additional IP \"{new}\"");
                        self.tell(claim, Reason::IpAllocated, message);
                        addresses.push(new);
                    }
                    Err(why) if request.prefers_dual => {
                        let message = format!("cannot assign additional IP: {why}");
                        self.tell(claim, Reason::AdditionalAssignFailed, message);
                    }
                    Err(message) => {
                        let reason = Reason::AllocationFailed;
                        failure = failure.or(Some(Failure { reason, message }));
                    }
                }
            }
        }
        if let Some(Failure { reason, message }) = &failure {
            self.tell(claim, *reason, message.clone());
        }
        let assignment = Assignment { addresses, pool };
        let must_write = assignment != claim.shown;
        let decision = Decision { assignment, must_write, failure };
        self.outcome.services.insert(claim.id.clone(), decision);
    }

    /// Addresses for a Service that has none.
    fn allocate(
        &mut self,
        index: usize,
        request: &'a Request,
    ) -> Result<(&'a str, Vec<IpAddr>), String> {
        if self.pools.is_empty() {
            return Err("there are no address pools".to_owned());
        }
        let (pool, addresses) = match (&request.wanted, &request.pool) {
            (Err(why), _) => return Err(why.clone()),
            (Ok(wanted), _) if !wanted.is_empty() => self.exactly(index, request, wanted)?,
            (_, Some(name)) => self.from_named(index, request, name)?,
            _ => self.from_any(index, request)?,
        };
        let tenant = Tenant::new(&self.claims[index].id, request);
        for addr in &addresses {
            self.assign(*addr, pool, tenant);
        }
        Ok((pool, addresses))
    }

    /// The addresses that are asked for, or none.
    fn exactly(
        &self,
        index: usize,
        request: &Request,
        wanted: &[IpAddr],
    ) -> Result<(&'a str, Vec<IpAddr>), String> {
        let families: BTreeSet<Family> = wanted.iter().map(|addr| Family::of(*addr)).collect();
        if families != request.families.iter().copied().collect() {
            let families = Listed(&request.families);
            return Err(format!("{} asked for, the Service is {families}", are(wanted)));
        }
        let covering: Vec<&Pool> =
            self.pools.iter().filter(|pool| wanted.iter().all(|addr| pool.covers(*addr))).collect();
        let asked_for = |pool: &&&Pool| request.pool.as_deref().is_none_or(|n| n == pool.name);
        let Some(pool) = covering.iter().find(asked_for) else {
            return Err(match (&request.pool, covering.is_empty()) {
                (Some(name), false) => {
                    format!("{} not in pool {}, which is asked for", are(wanted), quoted(name))
                }
                _ => format!("{} in no pool", are(wanted)),
            });
        };
        self.check_admission(index, pool)?;
        let tenant = Tenant::new(&self.claims[index].id, request);
        for addr in wanted {
            if let Some(why) = pool.withholds(*addr) {
                return Err(why);
            }
            if let Some(owner) = self.pools.owner(*addr) {
                return Err(format!("{addr} is {owner}"));
            }
            self.ledger.check(*addr, &tenant).map_err(|why| format!("{addr}: {why}"))?;
            if let Some(other) = self.leaving(index, *addr) {
                let ObjectId { namespace, name, .. } = &self.claims[other].id;
                return Err(format!("{namespace}/{name} still shows {addr}"));
            }
        }
        Ok((&pool.name, wanted.to_vec()))
    }

    /// Addresses of the pool that is asked for.
    fn from_named(
        &self,
        index: usize,
        request: &Request,
        name: &str,
    ) -> Result<(&'a str, Vec<IpAddr>), String> {
        let pool =
            self.pools.named(name).ok_or_else(|| format!("unknown pool {}", quoted(name)))?;
        self.check_admission(index, pool)?;
        if let Some(why) = &pool.refused {
            return Err(format!("pool {} is refused: {why}", quoted(name)));
        }
        let found = self.find(index, request, pool, &request.families);
        let is_enough = found.len() == request.families.len() || request.prefers_dual;
        if found.is_empty() || !is_enough {
            return Err(self.lacks(&[pool], request));
        }
        Ok((&pool.name, found))
    }

    /// Addresses of the first pool that has them.
    fn from_any(&self, index: usize, request: &Request) -> Result<(&'a str, Vec<IpAddr>), String> {
        let asker = self.claims[index].asker;
        let mut asked = Vec::new();
        for stage in &self.stages {
            let mut best: Option<(&Pool, Vec<IpAddr>)> = None;
            for pool in stage {
                match pool.admits(asker) {
                    Admission::Yes => {}
                    Admission::Unclear if asker.namespace_labels.is_none() => {
                        return Err(format!("namespace {} was not seen yet", asker.namespace));
                    }
                    Admission::Unclear | Admission::No => continue,
                }
                asked.push(*pool);
                let found = self.find(index, request, pool, &request.families);
                if found.len() == request.families.len() {
                    return Ok((&pool.name, found));
                }
                // One family will do if it has to, the first one rather than the other.
                let is_better = |found: &[IpAddr]| {
                    let is_first = |found: &[IpAddr]| Family::of(found[0]) == request.families[0];
                    !found.is_empty()
                        && best.as_ref().is_none_or(|(_, best)| !is_first(best) && is_first(found))
                };
                if request.prefers_dual && is_better(&found) {
                    best = Some((pool, found));
                }
            }
            if let Some((pool, found)) = best {
                return Ok((&pool.name, found));
            }
        }
        Err(self.lacks(&asked, request))
    }

    /// An address of the family that a Service lacks, of the pool that it has the other one of.
    fn extend(
        &mut self,
        index: usize,
        request: &'a Request,
        addresses: &[IpAddr],
        pool: Option<&str>,
    ) -> Result<IpAddr, String> {
        let pool = pool.and_then(|name| self.pools.named(name));
        let pool = pool.ok_or_else(|| "its pool is gone".to_owned())?;
        self.check_admission(index, pool)?;
        if let Some(why) = &pool.refused {
            return Err(format!("pool {} is refused: {why}", quoted(&pool.name)));
        }
        let has = |family: &Family| addresses.iter().any(|addr| Family::of(*addr) == *family);
        let missing: Vec<_> = request.families.iter().copied().filter(|f| !has(f)).collect();
        let found = self.find(index, request, pool, &missing);
        let addr = *found.first().ok_or_else(|| {
            format!("pool {} has no free {} address", quoted(&pool.name), Listed(&missing))
        })?;
        self.assign(addr, &pool.name, Tenant::new(&self.claims[index].id, request));
        Ok(addr)
    }

    /// One address of each family, as far as the pool has them.
    fn find(
        &self,
        index: usize,
        request: &Request,
        pool: &Pool,
        families: &[Family],
    ) -> Vec<IpAddr> {
        let claim = &self.claims[index];
        let tenant = Tenant::new(&claim.id, request);
        let mut also = self.ledger.shareable(&tenant);
        also.extend(claim.occupied());
        also.retain(|addr| {
            !self.pools.reserved().contains(*addr)
                && self.leaving(index, *addr).is_none()
                && self.ledger.check(*addr, &tenant).is_ok()
        });
        families.iter().filter_map(|family| pool.first_free(*family, &self.taken, &also)).collect()
    }

    /// Somebody else who shows an address without having it.
    fn leaving(&self, index: usize, addr: IpAddr) -> Option<usize> {
        let occupants = self.occupants.get(&addr).into_iter().flatten().copied();
        occupants
            .filter(|other| *other != index)
            .find(|other| !self.ledger.has(addr, &self.claims[*other].id))
    }

    fn check_admission(&self, index: usize, pool: &Pool) -> Result<(), String> {
        let asker = self.claims[index].asker;
        match pool.admits(asker) {
            Admission::Yes => Ok(()),
            Admission::Unclear if asker.namespace_labels.is_none() => {
                Err(format!("namespace {} was not seen yet", asker.namespace))
            }
            Admission::Unclear | Admission::No => {
                Err(format!("pool {} is for other Services", quoted(&pool.name)))
            }
        }
    }

    /// Why pools do not have what is asked for.
    fn lacks(&self, asked: &[&Pool], request: &Request) -> String {
        let names: Vec<&str> = asked.iter().map(|pool| pool.name.as_str()).collect();
        let families: Vec<_> = request.families.iter().map(Family::to_string).collect();
        let families = families.join(" and ");
        match names.as_slice() {
            [] => "no pool gives addresses to it unless it asks for one".to_owned(),
            [name] => {
                format!("no available IPs: pool {} has no free {families} address", quoted(name))
            }
            names => format!("no available IPs: no free {families} address in {}", Listed(names)),
        }
    }

    fn assign(&mut self, addr: IpAddr, pool: &'a str, tenant: Tenant<'a>) {
        self.ledger.add(addr, tenant);
        self.taken.insert(&Range::from(addr));
        self.assigned.entry(pool).or_default().insert(addr);
    }

    fn clear(&mut self, claim: &Claim<'a>, addresses: &[IpAddr], why: String) {
        let message = format!("current IP {} is taken back: {why}", Listed(addresses));
        self.tell(claim, Reason::ClearAssignment, message);
    }

    fn tell(&mut self, claim: &Claim<'a>, reason: Reason, message: String) {
        self.outcome.events.push(Event { service: claim.id.clone(), reason, message });
    }

    fn count(&mut self) {
        for pool in self.pools.iter() {
            let is_named = self.pools.named(&pool.name).is_some_and(|it| std::ptr::eq(it, pool));
            let assigned = self.assigned.get(pool.name.as_str()).filter(|_| is_named);
            let counts = |family| Counts {
                assigned: assigned
                    .into_iter()
                    .flatten()
                    .filter(|addr| Family::of(**addr) == family)
                    .count() as u64,
                available: pool.available(family, &self.taken),
            };
            let counts = PoolCounts { v4: counts(Family::V4), v6: counts(Family::V6) };
            let key = (pool.namespace.clone(), pool.name.clone());
            self.outcome.pools.insert(key, counts);
        }
    }
}

fn sorted(addresses: &[IpAddr]) -> Vec<IpAddr> {
    let mut sorted = addresses.to_vec();
    sorted.sort();
    sorted
}

/// "192.0.2.1 is", "192.0.2.1, 2001:db8::1 are".
fn are(addresses: &[IpAddr]) -> String {
    let verb = if addresses.len() == 1 { "is" } else { "are" };
    format!("{} {verb}", Listed(addresses))
}
