//! Which address, port and protocol belongs to which Service port.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use lbxdp_common::FrontendKind;

use super::ports::Port;
use super::service::Plan;
use crate::model::{Family, FrontendAddr, Reason};
use crate::problem::Problems;

/// A Service port's wish for a frontend.
#[derive(Clone, Debug)]
pub(super) struct Claim<'a> {
    /// Which kind of address.
    pub kind: FrontendKind,
    /// The Service.
    pub plan: &'a Plan,
    /// Its port.
    pub port: &'a Port,
    /// The field that makes the claim.
    field: String,
}

/// The claims on every frontend.
#[derive(Debug, Default)]
pub(super) struct Claims<'a>(BTreeMap<FrontendAddr, Vec<Claim<'a>>>);

impl<'a> Claims<'a> {
    /// Adds what a Service claims on a node that serves NodePorts on these addresses.
    pub(super) fn add(&mut self, plan: &'a Plan, node: &BTreeSet<IpAddr>) {
        for port in &plan.ports {
            let mut claim = |kind, addr, number, field| {
                let addr = FrontendAddr { addr, port: number, protocol: port.protocol };
                self.0.entry(addr).or_default().push(Claim { kind, plan, port, field });
            };
            for ip in &plan.cluster_ips {
                claim(FrontendKind::ClusterIp, ip.addr, port.port, ip.field.clone());
            }
            for ip in &plan.load_balancer_ips {
                claim(FrontendKind::LoadBalancer, ip.addr, port.port, ip.field.clone());
            }
            for ip in &plan.external_ips {
                claim(FrontendKind::ExternalIp, ip.addr, port.port, ip.field.clone());
            }
            if let Some(node_port) = port.node_port {
                let served = |addr: &&IpAddr| plan.families.contains(&Family::of(**addr));
                for addr in node.iter().filter(served) {
                    let field = format!("spec.ports[{}].nodePort", port.index);
                    claim(FrontendKind::NodePort, *addr, node_port, field);
                }
            }
        }
    }

    /// One claim for each frontend. The others are reported.
    ///
    /// Precedence, so that every node decides alike and whatever the order of events:
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
    pub(super) fn settle(self, problems: &mut Problems) -> BTreeMap<FrontendAddr, Claim<'a>> {
        let settle_one = |(addr, mut claims): (FrontendAddr, Vec<Claim<'a>>)| {
            claims.sort_by(|a, b| a.rank().cmp(&b.rank()));
            let mut claims = claims.into_iter();
            let winner = claims.next()?;
            for loser in claims.filter(|loser| !loser.repeats(&winner)) {
                let report = &mut problems.about(&loser.plan.origin, &loser.plan.id.to_string());
                report
                    .because(Reason::AddressConflict)
                    .error(&loser.field, lost(addr, &loser, &winner));
            }
            Some((addr, winner))
        };
        self.0.into_iter().filter_map(settle_one).collect()
    }
}

fn lost(addr: FrontendAddr, loser: &Claim<'_>, winner: &Claim<'_>) -> String {
    let (is, not) = (winner.kind.as_str(), loser.kind.as_str());
    let owner = match winner.plan.id == loser.plan.id {
        true => format!("port {} of this Service", winner.port.label()),
        false if winner.plan.origin.is_empty() => winner.plan.id.to_string(),
        false => format!("{} ({})", winner.plan.id, winner.plan.origin),
    };
    format!("{addr} is the {is} of {owner} already: not served as {not} here")
}

impl Claim<'_> {
    fn rank(&self) -> impl Ord + '_ {
        (self.kind as u8, self.plan.created, &self.plan.id, self.port.index)
    }

    /// The same wish written twice, which harms nobody: external addresses of every kind are
    /// served alike.
    fn repeats(&self, other: &Self) -> bool {
        let is_internal = |claim: &Self| claim.kind == FrontendKind::ClusterIp;
        is_internal(self) == is_internal(other)
            && self.plan.id == other.plan.id
            && self.port.index == other.port.index
    }
}
