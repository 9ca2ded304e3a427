//! Which endpoints a frontend may use: kube-proxy's `CategorizeEndpoints` (`topology.go`).

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
}

impl Lists {
    /// Sorts the endpoints of one family.
    pub(super) fn of(endpoints: &slices::Endpoints, family: Family) -> Self {
        let endpoints = endpoints.iter().filter(|(addr, _)| Family::of(addr.ip()) == family);
        let ready =
            endpoints.clone().map(|(_, endpoint)| endpoint).filter(|e| e.state == State::Ready);
        let level = Level::of(ready);
        let pick = |wanted: &dyn Fn(&Endpoint) -> bool| -> EndpointSet {
            let picked = endpoints.clone().filter(|(_, endpoint)| wanted(endpoint));
            picked.map(|(addr, _)| *addr).collect()
        };
        let mut lists = Self {
            cluster: pick(&|e| e.state == State::Ready && level.allows(&e.hints)),
            local: pick(&|e| e.state == State::Ready && e.local),
            serving: pick(&|e| e.state != State::Unusable),
        };
        if lists.serving == lists.cluster {
            // Nearly always: one set in memory then.
            lists.serving = lists.cluster.clone();
        }
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
