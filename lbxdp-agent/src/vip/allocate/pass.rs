//! What a pass knows, and the order in which it goes.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::super::ledger::{Ledger, Tenant};
use super::super::pool::{Pool, Pools};
use super::super::ranges::{AddressSet, Range};
use super::super::report::{Counts, Decision, Event, Listed, PoolCounts, Reason};
use super::super::request::{Role, deprecated};
use super::Outcome;
use super::claim::Claim;
use super::keep::Kept;
use crate::model::Family;

/// A pass under way.
pub(super) struct Pass<'a> {
    pub pools: &'a Pools,
    /// Where to look for those who ask for nothing.
    pub stages: [Vec<&'a Pool>; 2],
    pub claims: &'a [Claim<'a>],
    /// Which claims occupy an address.
    pub occupants: BTreeMap<IpAddr, BTreeSet<usize>>,
    /// Who has which address.
    pub ledger: Ledger<'a>,
    /// What cannot be given out: reserved, or somebody occupies it.
    pub taken: AddressSet,
    /// Addresses that Services have of a pool.
    assigned: BTreeMap<&'a str, BTreeSet<IpAddr>>,
    pub outcome: Outcome,
}

impl<'a> Pass<'a> {
    pub(super) fn new(pools: &'a Pools, claims: &'a [Claim<'a>]) -> Self {
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

    /// Keeps, gives, counts.
    pub(super) fn run(mut self) -> Outcome {
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
            if claim.role == Role::Ours {
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
        let occupants = claim.held.addresses.iter().flat_map(|addr| &self.occupants[addr]);
        let others: Vec<usize> = occupants.copied().filter(|other| *other != index).collect();
        let is_partner = |other: &&usize| own.is_some() && sharing(&self.claims[**other]) == own;
        let partners = others.iter().filter(is_partner).count();
        let has_none = claim.held.addresses.is_empty();
        let is_intruder = !others.is_empty() && own.is_none();
        (has_none, is_intruder, Reverse(partners), claim.created, claim.id.clone())
    }

    /// A Service has an address of a pool.
    pub(super) fn assign(&mut self, addr: IpAddr, pool: &'a str, tenant: Tenant<'a>) {
        self.ledger.add(addr, tenant);
        self.taken.insert(&Range::from(addr));
        self.assigned.entry(pool).or_default().insert(addr);
    }

    /// A Service loses addresses.
    pub(super) fn clear(&mut self, claim: &Claim<'a>, addresses: &[IpAddr], why: String) {
        let message = format!("current IP {} is taken back: {why}", Listed(addresses));
        self.tell(claim, Reason::ClearAssignment, message);
    }

    /// The author of a Service is to know something.
    pub(super) fn tell(&mut self, claim: &Claim<'a>, reason: Reason, message: String) {
        self.outcome.events.push(Event { service: claim.id.clone(), reason, message });
    }

    /// What each pool has.
    fn count(&mut self) {
        for pool in self.pools.iter() {
            let is_named = self.pools.named(&pool.name).is_some_and(|it| std::ptr::eq(it, pool));
            let assigned = self.assigned.get(pool.name.as_str()).filter(|_| is_named);
            let counts = |family| Counts {
                total: pool.available(family, self.pools.reserved()),
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
