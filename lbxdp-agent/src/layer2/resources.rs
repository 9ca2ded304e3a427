//! What says which addresses are announced from where: pools, advertisements, and the nodes.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Node as Object, NodeCondition};
use serde::{Deserialize, Serialize};

use crate::index;
use crate::problem::Problems;
use crate::source::Sourced;
use crate::vip::resources::{IpAddressPool, L2Advertisement, Read};
use crate::vip::{Advertisements, CLASS, Facts, Labels, Pools};

const NETWORK_UNAVAILABLE: &str = "NetworkUnavailable";
/// Whoever sets it says that load balancers are to leave the node alone; the value is not looked at.
const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// What the object of a node says that is of interest here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeFacts {
    /// Name.
    pub name: String,
    /// Labels.
    pub labels: Labels,
    /// The condition `NetworkUnavailable`.
    pub lacks_network: bool,
    /// It is being deleted.
    pub is_leaving: bool,
}

impl NodeFacts {
    /// Reads an object.
    pub fn read(node: &Object) -> Self {
        let status = node.status.as_ref();
        let conditions = status.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
        let is = |kind: &str| {
            let has = |it: &NodeCondition| it.type_ == kind && it.status == "True";
            conditions.iter().any(has)
        };
        Self {
            name: node.metadata.name.clone().unwrap_or_default(),
            labels: node.metadata.labels.clone().unwrap_or_default(),
            lacks_network: is(NETWORK_UNAVAILABLE),
            is_leaving: !index::is_node_eligible(node),
        }
    }

    /// Whether load balancers are to leave it alone.
    pub fn is_excluded(&self) -> bool {
        self.labels.contains_key(EXCLUDED)
    }
}

/// What somebody has written of all that, and can be written again: for an agent that starts while no
/// API answers, and for those who ask why.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Written {
    /// Whether Services without a class are announced as well.
    pub adopts_classless: bool,
    /// The nodes.
    pub nodes: Vec<NodeFacts>,
    /// Whether nobody knows of other nodes. This one counts then, with or without an object.
    #[serde(default)]
    pub is_alone: bool,
    pools: Vec<IpAddressPool>,
    advertisements: Vec<L2Advertisement>,
    /// Where these have to be, everywhere if empty.
    #[serde(default)]
    namespaces: BTreeSet<String>,
}

impl Written {
    /// Takes what there is. What is reserved matters to those who give addresses.
    pub fn new(facts: &Facts, nodes: Vec<NodeFacts>, adopts_classless: bool) -> Self {
        fn objects<T: Clone>(all: &[Sourced<Read<T>>]) -> Vec<T> {
            all.iter().map(|sourced| sourced.object.object.clone()).collect()
        }
        Self {
            adopts_classless,
            nodes,
            is_alone: false,
            pools: objects(&facts.pools),
            advertisements: objects(&facts.advertisements),
            namespaces: facts.pool_namespaces.clone(),
        }
    }

    fn facts(&self) -> Facts {
        fn read<T: Clone>(all: &[T]) -> Vec<Sourced<Read<T>>> {
            let read = |object: &T| Read { object: object.clone(), unsupported: Vec::new() };
            all.iter().map(|object| Sourced::new("", read(object))).collect()
        }
        Facts {
            pools: read(&self.pools),
            advertisements: read(&self.advertisements),
            pool_namespaces: self.namespaces.clone(),
            ..Facts::default()
        }
    }
}

/// Everything that says from where addresses are announced, checked.
#[derive(Debug, Default)]
pub struct Resources {
    pub(super) pools: Pools,
    pub(super) advertisements: Advertisements,
    pub(super) written: Written,
}

impl From<Written> for Resources {
    /// What is wrong with pools and advertisements is said by those who give addresses.
    fn from(written: Written) -> Self {
        let (pools, advertisements) = written.facts().check(&mut Problems::default());
        Self { pools, advertisements, written }
    }
}

impl Resources {
    /// What follows from these.
    pub fn new(facts: &Facts, nodes: Vec<NodeFacts>, adopts_classless: bool) -> Self {
        Written::new(facts, nodes, adopts_classless).into()
    }

    /// The same where there is no cluster.
    #[must_use]
    pub fn alone(mut self) -> Self {
        self.written.is_alone = true;
        self
    }

    /// What they were made of.
    pub fn written(&self) -> &Written {
        &self.written
    }

    /// Whether Services of this class are announced. Those of others are announced by others.
    pub(super) fn are_ours(&self, class: Option<&str>) -> bool {
        class.map_or(self.written.adopts_classless, |class| class == CLASS)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn facts(node: serde_json::Value) -> NodeFacts {
        NodeFacts::read(&serde_json::from_value(node).unwrap())
    }

    /// L3.
    #[test]
    fn a_node_says_whether_it_has_a_network_and_is_left_alone() {
        let condition = |kind: &str, status: &str| json!({"type": kind, "status": status});
        let node = facts(json!({
            "metadata": {"name": "n1", "labels": {"rack": "1"}},
            "status": {"conditions": [
                condition("Ready", "True"), condition("NetworkUnavailable", "False"),
            ]},
        }));
        assert!(!node.lacks_network && !node.is_leaving && !node.is_excluded());
        assert_eq!((node.name.as_str(), &*node.labels["rack"]), ("n1", "1"));
        let node = facts(json!({
            "metadata": {"name": "n1", "labels": {EXCLUDED: ""}},
            "spec": {"taints": [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]},
            "status": {"conditions": [
                condition("Ready", "Unknown"), condition("NetworkUnavailable", "True"),
            ]},
        }));
        assert!(node.lacks_network && node.is_leaving && node.is_excluded());
    }
}
