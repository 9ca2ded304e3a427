//! What there is to say of an address: whose it is, who announces it, who would be next, and who cannot.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::str::FromStr;

use serde::Serialize;

use super::choice::{Choice, Unfit};
use super::report::Report;
use super::resources::Resources;
use super::share::{self, Balancer, Balancers};
use crate::source::{Kind, ObjectId};

/// What somebody asks about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// An address.
    Address(IpAddr),
    /// A Service, all of its addresses.
    Service(ObjectId),
}

impl FromStr for Subject {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(addr) = text.parse() {
            return Ok(Self::Address(addr));
        }
        match text.split_once('/') {
            Some((namespace, name))
                if !namespace.is_empty() && !name.is_empty() && !name.contains('/') =>
            {
                Ok(Self::Service(ObjectId::new(Kind::Service, Some(namespace), name)))
            }
            _ => Err("neither an IP address nor NAMESPACE/NAME of a Service".to_owned()),
        }
    }
}

/// The agent whose report it is, and its programs, as they are now.
#[derive(Clone, Copy, Debug)]
pub struct Agent {
    /// Whether it runs.
    pub is_running: bool,
    /// Whether programs answer at this moment, because it has said lately that it is there.
    pub is_gate_open: bool,
}

/// See the module.
#[derive(Clone, Debug, Serialize)]
pub struct Account {
    /// The Service, `namespace/name`.
    pub service: String,
    /// The address; `None` if the Service has none.
    pub address: Option<IpAddr>,
    /// Other Services with this address.
    pub shared_with: Vec<String>,
    /// `spec.loadBalancerClass`.
    pub class: Option<String>,
    /// Whether Services of this class are announced here.
    pub is_ours: bool,
    /// The pool that has the address.
    pub pool: Option<String>,
    /// What announces it, `namespace/name` each.
    pub advertisements: Vec<String>,
    /// The node that announces it.
    pub owner: Option<String>,
    /// Who would be next, in this order.
    pub next: Vec<String>,
    /// Every other node.
    pub not: Vec<NotThere>,
    /// This node.
    pub here: OfHere,
}

/// A node that cannot announce an address.
#[derive(Clone, Debug, Serialize)]
pub struct NotThere {
    /// Its name.
    pub node: String,
    /// Why, for programs.
    pub reason: Unfit,
    /// Why, for people.
    pub message: String,
}

/// What this node does about an address.
#[derive(Clone, Debug, Serialize)]
pub struct OfHere {
    /// Its name.
    pub node: String,
    /// By which devices it announces the address.
    pub devices: Vec<String>,
    /// Since when, in seconds of the epoch.
    pub since: Option<u64>,
    /// Whether its programs answer for it at this moment.
    pub is_answered: bool,
}

/// One account for each address that somebody asks about; an error if nobody knows of any.
pub fn accounts(report: &Report, subject: &Subject, agent: Agent) -> anyhow::Result<Vec<Account>> {
    let (Some(balancers), Some(resources)) = (report.balancers(), report.resources()) else {
        anyhow::bail!(
            "the agent of node {} does not know yet what there is: see `lbxdp-agent status`",
            report.here.name
        );
    };
    let world = World { report, balancers: &balancers, resources: &resources, agent };
    let all = world.accounts(subject);
    match subject {
        _ if !all.is_empty() => Ok(all),
        Subject::Address(addr) => anyhow::bail!(
            "{addr} is of no Service of type LoadBalancer that the agent of node {} serves{}",
            report.here.name,
            match resources.pools.of(*addr) {
                Some(pool) => format!("; pool {pool} has it, and it may be free"),
                None => ", and no pool has it".to_owned(),
            }
        ),
        Subject::Service(id) => anyhow::bail!(
            "{id} is not there, is not of type LoadBalancer, or cannot be served, of which the log \
             of the agent of node {} would tell",
            report.here.name
        ),
    }
}

struct World<'a> {
    report: &'a Report,
    balancers: &'a Balancers,
    resources: &'a Resources,
    agent: Agent,
}

impl World<'_> {
    fn accounts(&self, subject: &Subject) -> Vec<Account> {
        let mut nodes = share::nodes(self.resources, &self.report.members, &self.report.here);
        if self.report.is_off {
            nodes.clear();
        }
        let decisions = share::decide(self.balancers, self.resources, &nodes);
        let owners = share::owners(&decisions);
        let own: BTreeMap<_, _> = decisions.iter().map(|it| (it.service, it)).collect();
        let mut accounts = Vec::new();
        for (id, balancer) in self.balancers {
            let is_asked = |addr: &&IpAddr| match subject {
                Subject::Address(asked) => *addr == asked,
                Subject::Service(asked) => id == asked,
            };
            let mut addresses: Vec<_> =
                balancer.addresses.iter().filter(is_asked).copied().map(Some).collect();
            if addresses.is_empty() && *subject == Subject::Service(id.clone()) {
                addresses.push(None);
            }
            for addr in addresses {
                let choice = addr.and_then(|addr| {
                    let own = own.get(id).filter(|it| it.addresses.contains(&addr));
                    owners.get(&addr).copied().or_else(|| own.map(|it| &it.choice))
                });
                accounts.push(self.account(id, balancer, addr, choice));
            }
        }
        accounts
    }

    fn account(
        &self,
        id: &ObjectId,
        balancer: &Balancer,
        address: Option<IpAddr>,
        choice: Option<&Choice<'_>>,
    ) -> Account {
        let has = |it: &Balancer| address.is_some_and(|addr| it.addresses.contains(&addr));
        let others = self.balancers.iter().filter(|(other, it)| *other != id && has(it));
        let shared_with: Vec<_> = others.map(|(other, _)| name(other)).collect();
        let Resources { pools, advertisements, .. } = self.resources;
        let pool = address.and_then(|addr| pools.of(addr));
        let about = pool.into_iter().flat_map(|pool| {
            advertisements.of(pool, pools, &balancer.labels, !shared_with.is_empty())
        });
        let advertisements = about.map(|it| it.name.clone()).collect();
        let mut fit = choice.into_iter().flat_map(|choice| &choice.fit);
        let not = choice.into_iter().flat_map(|choice| &choice.unfit);
        let held: Vec<_> =
            self.report.answered.iter().filter(|held| Some(held.address) == address).collect();
        let Agent { is_running, is_gate_open } = self.agent;
        let here = OfHere {
            node: self.report.here.name.clone(),
            devices: held.iter().map(|held| held.device.clone()).collect(),
            since: held.iter().map(|held| held.since).min(),
            is_answered: !held.is_empty() && is_running && is_gate_open,
        };
        Account {
            service: name(id),
            address,
            class: balancer.class.as_deref().map(str::to_owned),
            is_ours: self.resources.are_ours(balancer.class.as_deref()),
            pool: pool.map(str::to_owned),
            advertisements,
            owner: fit.next().map(|(node, _)| (*node).to_owned()),
            next: fit.map(|(node, _)| (*node).to_owned()).collect(),
            not: not
                .map(|(node, reason)| NotThere {
                    node: (*node).to_owned(),
                    reason: *reason,
                    message: reason.to_string(),
                })
                .collect(),
            shared_with,
            here,
        }
    }
}

fn name(id: &ObjectId) -> String {
    format!("{}/{}", id.namespace, id.name)
}
