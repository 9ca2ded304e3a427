//! Which address, port and protocol belongs to which Service port.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use lbxdp_common::FrontendKind;

use super::ports::Port;
use super::service::{Address, Plan};
use crate::model::{Family, FrontendAddr, Reason};
use crate::problem::Problems;
use crate::source::ObjectId;

/// A Service port's wish for a frontend. The first in order gets it, so that every node decides
/// alike and whatever the order of events:
///
/// 1. by kind: ClusterIP, load balancer address, external address, NodePort. ClusterIPs are
///    assigned by the API server; a status that names somebody's ClusterIP must not take it.
///    Nor must `spec.externalIPs`, which any author may write, take what a load balancer's
///    controller has assigned. Each of them beats the NodePort of that number if its address
///    is one of the node's own; the other NodePorts stay,
/// 2. the Service that was created first, so that a newcomer cannot take what is in use;
///    Services without a creation time come last,
/// 3. namespace and name,
/// 4. the position of the port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Claim {
    /// Which kind of address.
    pub kind: FrontendKind,
    /// [`Plan::created`].
    created: i64,
    /// The Service.
    pub service: ObjectId,
    /// Position of the port in [`Plan::ports`].
    pub port: usize,
    /// Position of the address in its list of the plan.
    address: usize,
}

impl Claim {
    /// The field of the Service that makes the claim.
    fn field(&self, plan: &Plan, port: &Port) -> String {
        let of = |list: &[Address]| list[self.address].field.clone();
        match self.kind {
            FrontendKind::ClusterIp => of(&plan.cluster_ips),
            FrontendKind::LoadBalancer => of(&plan.load_balancer_ips),
            FrontendKind::ExternalIp => of(&plan.external_ips),
            FrontendKind::NodePort => format!("spec.ports[{}].nodePort", port.index),
        }
    }

    /// The same wish written twice, which harms nobody: external addresses of every kind are
    /// served alike.
    fn repeats(&self, other: &Self) -> bool {
        let is_internal = |claim: &Self| claim.kind == FrontendKind::ClusterIp;
        is_internal(self) == is_internal(other)
            && self.service == other.service
            && self.port == other.port
    }
}

/// What a Service claims on a node that serves NodePorts on these addresses.
fn wishes(plan: &Plan, node: &BTreeSet<IpAddr>) -> Vec<(FrontendAddr, Claim)> {
    let mut wishes = Vec::new();
    for (position, port) in plan.ports.iter().enumerate() {
        let mut claim = |kind, address, addr, number| {
            let addr = FrontendAddr { addr, port: number, protocol: port.protocol };
            let (created, service) = (plan.created, plan.id.clone());
            wishes.push((addr, Claim { kind, created, service, port: position, address }));
        };
        for (kind, list) in [
            (FrontendKind::ClusterIp, &plan.cluster_ips),
            (FrontendKind::LoadBalancer, &plan.load_balancer_ips),
            (FrontendKind::ExternalIp, &plan.external_ips),
        ] {
            for (index, ip) in list.iter().enumerate() {
                claim(kind, index, ip.addr, port.port);
            }
        }
        if let Some(node_port) = port.node_port {
            let served = |addr: &&IpAddr| plan.families.contains(&Family::of(**addr));
            for (index, addr) in node.iter().filter(served).enumerate() {
                claim(FrontendKind::NodePort, index, *addr, node_port);
            }
        }
    }
    wishes
}

/// The claims on every frontend.
#[derive(Clone, Debug, Default)]
pub(super) struct Claims {
    /// In order, never empty.
    by_addr: BTreeMap<FrontendAddr, Vec<Claim>>,
    of_service: BTreeMap<ObjectId, BTreeSet<FrontendAddr>>,
}

impl Claims {
    /// Forgets what a Service claimed and takes what it claims by now, if it is served. Gives the
    /// addresses of both, and the Services that had them.
    pub(super) fn replace(
        &mut self,
        service: &ObjectId,
        plan: Option<&Plan>,
        node: &BTreeSet<IpAddr>,
    ) -> (BTreeSet<FrontendAddr>, BTreeSet<ObjectId>) {
        let wishes = plan.map(|plan| wishes(plan, node)).unwrap_or_default();
        let mut touched = self.of_service.remove(service).unwrap_or_default();
        touched.extend(wishes.iter().map(|(addr, _)| *addr));
        let before = touched.iter().filter_map(|addr| self.winner(addr));
        let before = before.map(|claim| claim.service.clone()).collect();
        for addr in &touched {
            if let Some(claims) = self.by_addr.get_mut(addr) {
                claims.retain(|claim| claim.service != *service);
                if claims.is_empty() {
                    self.by_addr.remove(addr);
                }
            }
        }
        if !wishes.is_empty() {
            let addresses = wishes.iter().map(|(addr, _)| *addr).collect();
            self.of_service.insert(service.clone(), addresses);
        }
        for (addr, claim) in wishes {
            let claims = self.by_addr.entry(addr).or_default();
            let position = claims.partition_point(|other| *other < claim);
            claims.insert(position, claim);
        }
        (touched, before)
    }

    /// Who has a frontend.
    pub(super) fn winner(&self, addr: &FrontendAddr) -> Option<&Claim> {
        self.by_addr.get(addr)?.first()
    }

    /// The frontends that a Service has.
    pub(super) fn won_by<'a>(
        &'a self,
        service: &'a ObjectId,
    ) -> impl Iterator<Item = (FrontendAddr, &'a Claim)> {
        let addresses = self.of_service.get(service).into_iter().flatten();
        let won = addresses.filter_map(|addr| Some((*addr, self.winner(addr)?)));
        won.filter(move |(_, claim)| claim.service == *service)
    }

    /// Reports the claims on a frontend that came to nothing.
    pub(super) fn report<'a>(
        &self,
        addr: FrontendAddr,
        plan: impl Fn(&ObjectId) -> Option<&'a Plan>,
        problems: &mut Problems,
    ) {
        let with_plan = |claim| {
            let claim: &Claim = claim;
            let plan = plan(&claim.service)?;
            Some((claim, plan, &plan.ports[claim.port]))
        };
        let mut claims = self.by_addr.get(&addr).into_iter().flatten().filter_map(with_plan);
        let Some(winner) = claims.next() else { return };
        for loser in claims.filter(|(loser, ..)| !loser.repeats(winner.0)) {
            let (claim, plan, port) = loser;
            let report = &mut problems.about(&plan.origin, &plan.id.to_string());
            report
                .because(Reason::AddressConflict)
                .error(claim.field(plan, port), lost(addr, claim, winner));
        }
    }
}

fn lost(addr: FrontendAddr, loser: &Claim, winner: (&Claim, &Plan, &Port)) -> String {
    let (winner, plan, port) = winner;
    let (is, not) = (winner.kind.as_str(), loser.kind.as_str());
    let owner = match winner.service == loser.service {
        true => format!("port {} of this Service", port.label()),
        false if plan.origin.is_empty() => plan.id.to_string(),
        false => format!("{} ({})", plan.id, plan.origin),
    };
    format!("{addr} is the {is} of {owner} already: not served as {not} here")
}
