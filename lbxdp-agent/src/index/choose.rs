//! Which endpoints a frontend may use: kube-proxy's `CategorizeEndpoints` (`topology.go`).

use std::net::SocketAddr;

use super::service::Policy;
use super::slices::{self, Endpoint, State};
use super::topology::Level;
use crate::model::{EndpointSet, Endpoints, Family};

/// The two lists of a Service port that every choice is made from. Each is decided for itself:
/// the ready endpoints, or those that still serve while they end if none is ready. One that is
/// neither is in no list, so a terminating pod that fails its readiness probe gets nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Lists {
    /// For policy Cluster, as near as hints say. Not empty exactly when there is any usable
    /// endpoint anywhere, which decides between refusing and silence: hints never leave nothing.
    cluster: EndpointSet,
    /// For policy Local, whatever hints say. It holds every endpoint of the cluster list that is
    /// on this node: a ready one there is a ready one here, and if none is ready there, none is
    /// here.
    pub local: EndpointSet,
    /// All that serve, in whatever list or none: UDP flows to them go on (kube-proxy
    /// `conntrack/cleanup.go`).
    pub serving: EndpointSet,
    /// Ready ones that are in no list because their nodes are dead.
    pub left_out: usize,
}

impl Lists {
    /// Sorts the endpoints of one family. Those on dead nodes are in no list while there are others, as
    /// if they went on serving what they have and were not ready: that is what Kubernetes will say of
    /// them some day.
    pub(super) fn of(endpoints: &slices::Endpoints, family: Family) -> Self {
        let all = endpoints.iter().filter(|(addr, _)| Family::of(addr.ip()) == family);
        let there = all.clone().filter(|(_, endpoint)| !endpoint.is_dead);
        let mut lists = Self::among(there);
        if lists.cluster.is_empty() {
            lists = Self::among(all.clone());
        } else {
            let left_out = |e: &Endpoint| e.is_dead && e.state == State::Ready;
            lists.left_out = all.clone().filter(|(_, endpoint)| left_out(endpoint)).count();
        }
        let serving: EndpointSet = pick(all, |e| e.state != State::Unusable);
        // Nearly always: one set in memory then.
        lists.serving = if serving == lists.cluster { lists.cluster.clone() } else { serving };
        lists
    }

    fn among<'a>(endpoints: impl Iterator<Item = (&'a SocketAddr, &'a Endpoint)> + Clone) -> Self {
        let ready =
            endpoints.clone().map(|(_, endpoint)| endpoint).filter(|e| e.state == State::Ready);
        let level = Level::of(ready);
        let pick = |wanted: &dyn Fn(&Endpoint) -> bool| pick(endpoints.clone(), wanted);
        let mut lists = Self {
            cluster: pick(&|e| e.state == State::Ready && level.allows(&e.hints)),
            local: pick(&|e| e.state == State::Ready && e.local),
            ..Self::default()
        };
        if lists.cluster.is_empty() {
            lists.cluster = pick(&|e| e.state == State::Draining);
        }
        if lists.local.is_empty() {
            lists.local = pick(&|e| e.state == State::Draining && e.local);
        }
        lists
    }

    /// What a policy allows. Without any endpoint clients are refused at once. With endpoints
    /// only elsewhere they hear nothing: an outer load balancer that has not yet noticed should
    /// retry another node, not give up.
    pub(super) fn choose(&self, policy: Policy) -> Endpoints {
        let allowed = match policy {
            Policy::Cluster => &self.cluster,
            Policy::Local => &self.local,
        };
        if !allowed.is_empty() {
            Endpoints::Serve(allowed.clone())
        } else if self.cluster.is_empty() {
            Endpoints::Reject
        } else {
            Endpoints::Drop
        }
    }
}

fn pick<'a>(
    endpoints: impl Iterator<Item = (&'a SocketAddr, &'a Endpoint)>,
    wanted: impl Fn(&Endpoint) -> bool,
) -> EndpointSet {
    endpoints.filter(|(_, endpoint)| wanted(endpoint)).map(|(addr, _)| *addr).collect()
}
