//! What those keep who have addresses.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::super::ledger::Tenant;
use super::super::pool::Admission;
use super::super::report::{Failure, Reason, are};
use super::super::request::{Request, Unanswerable};
use super::claim::Claim;
use super::pass::Pass;
use crate::model::{Family, Protocol};
use crate::problem::quoted;

/// What a Service keeps.
#[derive(Default)]
pub(super) struct Kept {
    pub addresses: Vec<IpAddr>,
    pub pool: Option<String>,
    /// What is wrong with what it asks for.
    pub failure: Option<Failure>,
    /// Whether it gets nothing else for now.
    pub is_final: bool,
}

impl<'a> Pass<'a> {
    /// What a Service keeps of what it has.
    pub(super) fn keep(&mut self, index: usize) -> Kept {
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
        static NOTHING: BTreeSet<(Protocol, u16)> = BTreeSet::new();
        let tenant = Tenant { service: &claim.id, sharing: None, ports: &NOTHING };
        let pool = claim.held.pool.as_deref().unwrap_or_default();
        let mut kept =
            Kept { failure: Some(Failure { reason, message }), is_final: true, ..Kept::default() };
        for addr in &claim.held.addresses {
            if self.ledger.check(*addr, &tenant).is_ok() {
                self.assign(*addr, pool, tenant);
                kept.addresses.push(*addr);
                kept.pool.clone_from(&claim.held.pool);
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
}

fn sorted(addresses: &[IpAddr]) -> Vec<IpAddr> {
    let mut sorted = addresses.to_vec();
    sorted.sort();
    sorted
}
