//! What the announcer has decided by, and what came of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::choice::Unfit;
use super::resources::Resources;
use super::share::{self, Balancer, Balancers, Decision, Here};
use crate::members::{Devices, Members};
use crate::source::ObjectId;

/// See the module. Whoever has it comes to the same decision.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Nothing is to be announced from here, whatever the rest says.
    pub is_off: bool,
    /// This node.
    pub here: Here,
    /// `None` while it is not known what is announced from where.
    pub resources: Option<Arc<Resources>>,
    /// `None` while it is not known what is served.
    pub balancers: Option<Arc<Balancers>>,
    /// Who counts as alive, those who were lost a moment ago included.
    pub members: Members,
    /// What programs answer for, and by which devices.
    pub answered: BTreeSet<(IpAddr, String)>,
    /// What fails, by what was tried.
    pub failures: BTreeMap<&'static str, String>,
}

/// How many addresses are announced by nobody, by what would have to be otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NotAnnounced {
    /// They are of no pool.
    pub no_pool: usize,
    /// No advertisement is about their pool and their Service.
    pub no_advertisement: usize,
    /// Their Services have no endpoint.
    pub no_endpoint: usize,
    /// No node can.
    pub no_node: usize,
}

impl NotAnnounced {
    /// All of them, with names.
    pub fn named(self) -> [(&'static str, usize); 4] {
        let Self { no_pool, no_advertisement, no_endpoint, no_node } = self;
        [
            ("no_pool", no_pool),
            ("no_advertisement", no_advertisement),
            ("no_endpoint", no_endpoint),
            ("no_node", no_node),
        ]
    }
}

impl Seen {
    /// What nobody announces of the Services that are announced here, shared addresses once for each.
    pub fn not_announced(&self) -> NotAnnounced {
        let mut count = NotAnnounced::default();
        let (Some(resources), Some(balancers)) = (&self.resources, &self.balancers) else {
            return count;
        };
        if self.is_off {
            return count;
        }
        let nodes = share::nodes(resources, &self.members, &self.here);
        let decisions = share::decide(balancers, resources, &nodes);
        let owners = share::owners(&decisions);
        let decided: BTreeMap<_, _> = decisions.iter().map(|it| (it.service, it)).collect();
        for (id, it) in balancers.iter() {
            if !resources.are_ours(it.class.as_deref()) {
                continue;
            }
            for addr in it.addresses.iter().filter(|addr| !owners.contains_key(addr)) {
                let is_decided = decided.get(id).is_some_and(|it| it.addresses.contains(addr));
                let count = match resources.pools.of(*addr) {
                    None => &mut count.no_pool,
                    Some(_) if !is_decided => &mut count.no_advertisement,
                    Some(_) if it.endpoints.is_empty() => &mut count.no_endpoint,
                    Some(_) => &mut count.no_node,
                };
                *count += 1;
            }
        }
        count
    }

    /// The Services that are announced from here, and by which devices; `None` while that is not known.
    pub fn announced(&self) -> Option<BTreeMap<&ObjectId, (&Balancer, BTreeSet<&str>)>> {
        let (resources, balancers) = (self.resources.as_deref()?, self.balancers.as_deref()?);
        let mut ways = BTreeMap::<IpAddr, BTreeSet<&str>>::new();
        for (addr, device) in &self.answered {
            ways.entry(*addr).or_default().insert(device);
        }
        let ours = balancers.iter().filter(|(_, it)| resources.are_ours(it.class.as_deref()));
        let announced = ours.filter_map(|(id, it)| {
            let devices = it.addresses.iter().filter_map(|addr| ways.get(addr)).flatten();
            let devices: BTreeSet<&str> = devices.copied().collect();
            (!devices.is_empty()).then_some((id, (&**it, devices)))
        });
        Some(announced.collect())
    }

    /// The Services that this node should announce and cannot, and why.
    pub fn failed(&self) -> BTreeMap<ObjectId, String> {
        let mut failed = BTreeMap::new();
        let (Some(resources), Some(balancers)) = (&self.resources, &self.balancers) else {
            return failed;
        };
        if self.is_off || self.members.isolated {
            return failed;
        }
        let this = self.here.name.as_str();
        let nodes = share::nodes(resources, &self.members, &self.here);
        let decisions = share::decide(balancers, resources, &nodes);

        // Where no node has a device that is named, or nobody knows whether the owner has, the one says so
        // that would be the owner otherwise. That there is none at all the others are told.
        let is_unknown = |owner: &str| {
            let said = self.members.says.get(owner).copied().unwrap_or_default();
            said.devices == Devices::ANY && !self.here.devices.is_empty()
        };
        let lacks = |it: &Decision<'_>| {
            it.choice.unfit.contains(&(this, Unfit::NoDevice))
                && it.choice.owner().is_none_or(is_unknown)
        };
        if decisions.iter().any(lacks) {
            let mut nodes = nodes.clone();
            for node in &mut nodes {
                (node.devices, node.said) = (None, Devices::ANY);
            }
            let supposed = share::decide(balancers, resources, &nodes);
            for (it, supposed) in decisions.iter().zip(&supposed) {
                if lacks(it) && supposed.choice.owner() == Some(this) {
                    failed.insert(it.service.clone(), Unfit::NoDevice.to_string());
                }
            }
        }

        let answered: BTreeSet<IpAddr> = self.answered.iter().map(|(addr, _)| *addr).collect();
        let mine = share::mine(&share::owners(&decisions), this);
        let is_missing = |addr: &IpAddr| mine.contains_key(addr) && !answered.contains(addr);
        for it in decisions.iter().filter(|it| it.addresses.iter().any(is_missing)) {
            let why = self.failures.iter().map(|(what, why)| format!("{what}: {why}"));
            failed.insert(it.service.clone(), why.collect::<Vec<_>>().join("; "));
        }
        failed
    }
}
