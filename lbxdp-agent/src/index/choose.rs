//! Which endpoints a frontend may use: kube-proxy's `CategorizeEndpoints` (`topology.go`).

use std::collections::BTreeSet;
use std::net::SocketAddr;

use super::service::Policy;
use super::slices;
use crate::model::{Endpoints, Family};

/// The two lists of a Service port that every choice is made from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Lists {
    /// For policy Cluster. Not empty exactly when there is any endpoint anywhere, which decides
    /// between refusing and silence.
    cluster: BTreeSet<SocketAddr>,
    /// For policy Local. Decided apart from the cluster list.
    pub local: BTreeSet<SocketAddr>,
}

impl Lists {
    /// Sorts the endpoints of one family.
    pub(super) fn of(endpoints: &slices::Endpoints, family: Family) -> Self {
        let mut lists = Self::default();
        for (addr, endpoint) in endpoints {
            if Family::of(addr.ip()) != family || !endpoint.ready {
                continue;
            }
            lists.cluster.insert(*addr);
            if endpoint.local {
                lists.local.insert(*addr);
            }
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
