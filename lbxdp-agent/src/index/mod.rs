//! From Kubernetes objects to what should be served: pure, synchronous, and the same result
//! whatever the order in which the objects came.
//!
//! `service` and `ports` read a Service, `slices` reads EndpointSlices, `node` this node's
//! addresses; `claims` settles who gets a frontend, `choose` which endpoints serve it. Bad input
//! makes a problem and takes away no more than what it names.

mod address;
mod choose;
mod claims;
mod names;
mod node;
mod ports;
mod service;
mod slices;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use lbxdp_common::FrontendKind;

use self::choose::Lists;
use self::claims::{Claim, Claims};
use self::service::{Plan, Policy};
use self::slices::Slices;
use crate::model::{Desired, Endpoints, Family, Frontend, FrontendAddr, Problem, ServicePortName};
use crate::problem::Problems;
use crate::source::{Kind, Object, ObjectId, Sourced};

type Objects<T> = BTreeMap<ObjectId, Sourced<Arc<T>>>;

/// Every object that is known, and what follows from them for one node.
#[derive(Clone, Debug)]
pub struct Index {
    node_name: String,
    services: Objects<Service>,
    slices: Objects<EndpointSlice>,
    nodes: Objects<Node>,
}

impl Index {
    /// An empty index for the node with this name.
    pub fn new(node_name: impl Into<String>) -> Self {
        Self {
            node_name: node_name.into(),
            services: BTreeMap::new(),
            slices: BTreeMap::new(),
            nodes: BTreeMap::new(),
        }
    }

    /// Forgets everything and takes these objects.
    pub fn replace(&mut self, objects: impl IntoIterator<Item = Sourced<Object>>) {
        let Self { node_name: _, services, slices, nodes } = self;
        services.clear();
        slices.clear();
        nodes.clear();
        for object in objects {
            self.apply(object);
        }
    }

    /// Adds an object, or replaces the one with its id.
    pub fn apply(&mut self, Sourced { origin, object }: Sourced<Object>) {
        let id = object.id();
        match object {
            Object::Service(object) => {
                self.services.insert(id, Sourced { origin, object });
            }
            Object::EndpointSlice(object) => {
                self.slices.insert(id, Sourced { origin, object });
            }
            Object::Node(object) => {
                self.nodes.insert(id, Sourced { origin, object });
            }
        }
    }

    /// Removes an object; one that is not there is no mistake.
    pub fn delete(&mut self, id: &ObjectId) {
        match id.kind {
            Kind::Service => drop(self.services.remove(id)),
            Kind::EndpointSlice => drop(self.slices.remove(id)),
            Kind::Node => drop(self.nodes.remove(id)),
        }
    }

    /// What this node should serve, and everything that is wrong with the objects.
    pub fn desired(&self) -> (Desired, Vec<Problem>) {
        let mut problems = Problems::default();
        let plans = self.plans(&mut problems);
        let slices = self.endpoints(&plans, &mut problems);
        let node = self.node_port_addresses(&plans, &mut problems);
        let mut claims = Claims::default();
        for plan in plans.values() {
            claims.add(plan, &node);
        }
        let claims = claims.settle(&mut problems);
        (desired(&claims, &slices), problems.into_sorted())
    }

    fn plans(&self, problems: &mut Problems) -> BTreeMap<&ObjectId, Plan> {
        let plan = |(id, service)| Some((id, service::plan(id, service, problems)?));
        self.services.iter().filter_map(plan).collect()
    }

    fn endpoints(&self, plans: &BTreeMap<&ObjectId, Plan>, problems: &mut Problems) -> Slices<'_> {
        let mut slices = Slices::default();
        for (id, slice) in &self.slices {
            let find = |service: &ObjectId| {
                let found = self.services.get(service)?;
                Some((found.object.as_ref(), plans.contains_key(service)))
            };
            slices.add(id, slice, &self.node_name, find, problems);
        }
        slices
    }

    /// The node's addresses for NodePorts. Says so when one is missing that a Service needs.
    fn node_port_addresses(
        &self,
        plans: &BTreeMap<&ObjectId, Plan>,
        problems: &mut Problems,
    ) -> BTreeMap<Family, IpAddr> {
        let id = ObjectId::new(Kind::Node, None, &self.node_name);
        let node = self.nodes.get(&id);
        let addresses =
            node.map(|node| node::primary_addresses(&id, node, problems)).unwrap_or_default();
        let origin = node.map_or("", |node| node.origin.as_str());
        let mut report = problems.about(origin, &id.to_string());
        let with_node_ports =
            || plans.values().filter(|plan| plan.ports.iter().any(|port| port.node_port.is_some()));
        if node.is_none() {
            let count = with_node_ports().count();
            if count > 0 {
                let message = format!(
                    "no such Node: NodePorts are not served (Services that want them: {count})"
                );
                report.warning("", message);
            }
            return addresses;
        }
        for family in [Family::V4, Family::V6] {
            let count = with_node_ports().filter(|plan| plan.families.contains(&family)).count();
            if count > 0 && !addresses.contains_key(&family) {
                let message = format!(
                    "no InternalIP of family {family}: its NodePorts are not served (Services that \
                     want them: {count})"
                );
                report.warning("status.addresses", message);
            }
        }
        addresses
    }
}

/// The frontends of settled claims.
fn desired(claims: &BTreeMap<FrontendAddr, Claim<'_>>, slices: &Slices<'_>) -> Desired {
    let mut desired = Desired::default();
    // The frontends of a Service port share their lists.
    let mut lists: BTreeMap<(&ObjectId, usize, Family), Lists> = BTreeMap::new();
    for (addr, Claim { kind, plan, port, .. }) in claims {
        let family = Family::of(addr.addr);
        let lists = lists
            .entry((&plan.id, port.index, family))
            .or_insert_with(|| Lists::of(slices.of(&plan.id, port), family));
        let (external, internal) = policies(*kind, plan);
        let (external, internal) = (lists.choose(external), lists.choose(internal));
        for endpoints in [&external, &internal] {
            if let Endpoints::Serve(named) = endpoints {
                let local: BTreeSet<_> = named.intersection(&lists.local).copied().collect();
                desired.local_backends.extend(local);
            }
        }
        let name = ServicePortName {
            namespace: plan.id.namespace.clone(),
            service: plan.id.name.clone(),
            port: port.label(),
        };
        desired.frontends.insert(*addr, Frontend { kind: *kind, name, external, internal });
    }
    desired
}

/// The policies for clients outside and on this node. The address decides, not the client
/// (kube-proxy): a ClusterIP follows the internal policy whoever asks. Clients on the node always
/// get every endpoint of an external address, as if the load balancer were taken a short cut past.
fn policies(kind: FrontendKind, plan: &Plan) -> (Policy, Policy) {
    match kind {
        FrontendKind::ClusterIp => (plan.internal_policy, plan.internal_policy),
        FrontendKind::LoadBalancer | FrontendKind::ExternalIp | FrontendKind::NodePort => {
            (plan.external_policy, Policy::Cluster)
        }
    }
}
