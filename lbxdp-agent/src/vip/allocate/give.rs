//! What those get who lack addresses.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::super::ledger::Tenant;
use super::super::pool::{Admission, Pool};
use super::super::report::{Decision, Failure, Listed, Reason, are};
use super::super::request::{Assignment, Request};
use super::keep::Kept;
use super::pass::Pass;
use crate::model::Family;
use crate::problem::quoted;
use crate::source::ObjectId;

impl<'a> Pass<'a> {
    /// Gets a Service what it lacks, and decides.
    pub(super) fn complete(&mut self, index: usize, kept: Kept) {
        let claim = &self.claims[index];
        let Kept { mut addresses, mut pool, mut failure, is_final } = kept;
        if let (false, Ok(request)) = (is_final, &claim.request) {
            if addresses.is_empty() {
                match self.allocate(index, request) {
                    Ok((from, new)) => {
                        let texts: Vec<_> = new.iter().map(IpAddr::to_string).collect();
                        let message = format!("Assigned IP {texts:?}");
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
            (_, Some(name)) => self.of_named(index, request, name)?,
            _ => self.of_any(index, request)?,
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
    fn of_named(
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
    fn of_any(&self, index: usize, request: &Request) -> Result<(&'a str, Vec<IpAddr>), String> {
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
}
