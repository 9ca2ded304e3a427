//! Who has which address.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::request::{Request, Sharing};
use crate::model::Protocol;
use crate::source::ObjectId;

/// A Service that has an address, and what it has it for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tenant<'a> {
    /// The Service.
    pub service: &'a ObjectId,
    /// With whom it shares.
    pub sharing: Option<&'a Sharing>,
    /// What it serves.
    pub ports: &'a BTreeSet<(Protocol, u16)>,
}

impl<'a> Tenant<'a> {
    /// A Service with this request.
    pub(super) fn new(service: &'a ObjectId, request: &'a Request) -> Self {
        Self { service, sharing: request.sharing.as_ref(), ports: &request.ports }
    }

    /// Whether both may have one address, and why not.
    fn check(&self, other: &Self) -> Result<(), String> {
        let ObjectId { namespace, name, .. } = other.service;
        let no = |why: &str| Err(format!("{namespace}/{name} has it and {why}"));
        let (Some(own), Some(their)) = (self.sharing, other.sharing) else {
            let who = if other.sharing.is_none() { "does not share it" } else { "only shares it" };
            return no(who);
        };
        if let Some(why) = own.difference(their) {
            return no(why);
        }
        match self.ports.intersection(other.ports).next() {
            Some((protocol, port)) => no(&format!("serves {protocol} port {port} there")),
            None => Ok(()),
        }
    }
}

/// The addresses that Services have.
#[derive(Debug, Default)]
pub(super) struct Ledger<'a> {
    tenants: BTreeMap<IpAddr, Vec<Tenant<'a>>>,
    shared: BTreeMap<&'a Sharing, BTreeSet<IpAddr>>,
}

impl<'a> Ledger<'a> {
    /// Whether a Service can have an address, and why not.
    pub(super) fn check(&self, addr: IpAddr, tenant: &Tenant<'a>) -> Result<(), String> {
        let others = self.tenants.get(&addr).into_iter().flatten();
        others.filter(|other| other.service != tenant.service).try_for_each(|o| tenant.check(o))
    }

    /// Addresses that a Service can share with those who have them.
    pub(super) fn shareable(&self, tenant: &Tenant<'a>) -> BTreeSet<IpAddr> {
        let shared = tenant.sharing.and_then(|sharing| self.shared.get(sharing));
        let all = shared.into_iter().flatten().copied();
        all.filter(|addr| self.check(*addr, tenant).is_ok()).collect()
    }

    /// Whether a Service has an address.
    pub(super) fn has(&self, addr: IpAddr, service: &ObjectId) -> bool {
        self.tenants.get(&addr).into_iter().flatten().any(|tenant| tenant.service == service)
    }

    /// A Service has an address now.
    pub(super) fn add(&mut self, addr: IpAddr, tenant: Tenant<'a>) {
        self.tenants.entry(addr).or_default().push(tenant);
        if let Some(sharing) = tenant.sharing {
            self.shared.entry(sharing).or_default().insert(addr);
        }
    }
}
