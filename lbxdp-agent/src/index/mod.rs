//! From Kubernetes objects to what should be served: pure, synchronous, and the same result
//! whatever the order in which the objects came.
//!
//! `service`, `ports`, `external` and `clients` read a Service, `slices` and `topology` EndpointSlices, `node`
//! this node's addresses and zone; `claims` settles who gets a frontend, `choose` which endpoints
//! serve it; `config` is what the operator decides. Bad input makes a problem and takes away no
//! more than what it names.

mod address;
mod choose;
mod claims;
mod clients;
mod config;
mod external;
mod names;
mod node;
mod ports;
mod service;
mod slices;
mod topology;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use lbxdp_common::FrontendKind;

pub use self::config::{Config, NodePortAddresses, RangeError, range};

use self::choose::Lists;
use self::claims::{Claim, Claims};
use self::service::{Plan, Policy};
use self::slices::Slices;
use self::topology::Here;
use crate::model::{
    Desired, Endpoints, Family, Frontend, FrontendAddr, HealthCheck, Problem, Reason,
    ServicePortName,
};
use crate::problem::Problems;
use crate::source::{Kind, Object, ObjectId, Sourced};

type Objects<T> = BTreeMap<ObjectId, Sourced<Arc<T>>>;

/// Every object that is known, and what follows from them for one node.
#[derive(Clone, Debug)]
pub struct Index {
    node_name: String,
    config: Config,
    /// Of this node's devices.
    device_addresses: BTreeSet<IpAddr>,
    services: Objects<Service>,
    slices: Objects<EndpointSlice>,
    nodes: Objects<Node>,
}

impl Index {
    /// An empty index for the node with this name.
    pub fn new(node_name: impl Into<String>) -> Self {
        Self {
            node_name: node_name.into(),
            config: Config::default(),
            device_addresses: BTreeSet::new(),
            services: BTreeMap::new(),
            slices: BTreeMap::new(),
            nodes: BTreeMap::new(),
        }
    }

    /// The same with these rules.
    pub fn with_config(self, config: Config) -> Self {
        Self { config, ..self }
    }

    /// Takes the addresses of this node's devices; whether [`Self::desired`] may differ now.
    pub fn set_device_addresses(&mut self, addresses: BTreeSet<IpAddr>) -> bool {
        let matters = self.config.has_node_port_ranges() && self.device_addresses != addresses;
        self.device_addresses = addresses;
        matters
    }

    /// Forgets every object and takes these.
    pub fn replace(&mut self, objects: impl IntoIterator<Item = Sourced<Object>>) {
        let Self { node_name: _, config: _, device_addresses: _, services, slices, nodes } = self;
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
        let mut desired = desired(&claims, &slices);
        desired.health_checks = health_checks(plans.values(), &slices);
        desired.node_port_addresses = node;
        (desired, problems.into_sorted())
    }

    /// The addresses by which others know this node (`InternalIP` and `ExternalIP`); what cannot be
    /// parsed is left out here and reported by [`Self::desired`] where it matters.
    pub fn node_addresses(&self) -> BTreeSet<IpAddr> {
        let node = self.nodes.get(&self.node_id());
        node.map(|node| node::addresses(&node.object)).unwrap_or_default()
    }

    /// Whether load balancers should send new connections to this node: not while it goes. Yes as
    /// long as nothing is known of it.
    pub fn is_node_eligible(&self) -> bool {
        self.nodes.get(&self.node_id()).is_none_or(|node| node::is_eligible(&node.object))
    }

    /// The `metadata.uid` of an object, if it is known and has one.
    pub fn uid(&self, id: &ObjectId) -> Option<&str> {
        let metadata = match id.kind {
            Kind::Service => &self.services.get(id)?.object.metadata,
            Kind::EndpointSlice => &self.slices.get(id)?.object.metadata,
            Kind::Node => &self.nodes.get(id)?.object.metadata,
        };
        metadata.uid.as_deref()
    }

    fn node_id(&self) -> ObjectId {
        ObjectId::new(Kind::Node, None, &self.node_name)
    }

    fn plans(&self, problems: &mut Problems) -> BTreeMap<&ObjectId, Plan> {
        let plan = |(id, service)| Some((id, service::plan(id, service, &self.config, problems)?));
        self.services.iter().filter_map(plan).collect()
    }

    fn endpoints(&self, plans: &BTreeMap<&ObjectId, Plan>, problems: &mut Problems) -> Slices<'_> {
        let zone = self.nodes.get(&self.node_id()).and_then(|node| node::zone(&node.object));
        let here = Here { node: &self.node_name, zone };
        let mut slices = Slices::default();
        for (id, slice) in &self.slices {
            let find = |service: &ObjectId| {
                let found = self.services.get(service)?;
                Some((found.object.as_ref(), plans.contains_key(service)))
            };
            slices.add(id, slice, here, find, problems);
        }
        slices
    }

    /// The node's addresses for NodePorts. Says so when a Service needs one of a family that has
    /// none.
    fn node_port_addresses(
        &self,
        plans: &BTreeMap<&ObjectId, Plan>,
        problems: &mut Problems,
    ) -> BTreeSet<IpAddr> {
        let id = self.node_id();
        let node = self.nodes.get(&id);
        let mut addresses = BTreeSet::new();
        if self.config.has_primary()
            && let Some(node) = node
        {
            addresses.extend(node::primary_addresses(&id, node, problems).into_values());
        }
        let in_range = |addr: &&IpAddr| {
            self.config.has_node_ports(**addr) && node::may_have_node_ports(**addr)
        };
        addresses.extend(self.device_addresses.iter().filter(in_range));

        let origin = node.map_or("", |node| node.origin.as_str());
        let mut report = problems.about(origin, &id.to_string());
        let wanted_by = |families: &[Family]| {
            let wants = |plan: &&Plan| {
                let has_port = plan.ports.iter().any(|port| port.node_port.is_some())
                    || plan.health_check_port.is_some();
                has_port && families.iter().any(|family| plan.families.contains(family))
            };
            plans.values().filter(wants).count()
        };
        let families = [Family::V4, Family::V6];
        let consequence = "NodePorts are not served (Services that want them";
        if !self.config.has_node_port_ranges() && node.is_none() {
            let count = wanted_by(&families);
            if count > 0 {
                let message = format!("no such Node: {consequence}: {count})");
                report.because(Reason::NodePortsNotServed).warning("", message);
            }
            return addresses;
        }
        for family in families {
            let count = wanted_by(&[family]);
            if count == 0 || addresses.iter().any(|addr| Family::of(*addr) == family) {
                continue;
            }
            let (field, what) = match self.config.has_node_port_ranges() {
                false => ("status.addresses", "InternalIP"),
                true => ("", "address in --nodeport-addresses"),
            };
            let message = format!("no {what} of family {family}: its {consequence}: {count})");
            report.because(Reason::NodePortsNotServed).warning(field, message);
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
        desired.frontends.insert(
            *addr,
            Frontend {
                kind: *kind,
                name,
                external,
                internal,
                serving: lists.serving.clone(),
                clients: plan.clients(*kind, family),
            },
        );
    }
    desired
}

/// What load balancers are told about this node, by namespace and name of the Service. Endpoints
/// that terminate do not count, though they serve what comes: the load balancer is to go elsewhere
/// while they end (KEP-1669).
fn health_checks<'a>(
    plans: impl Iterator<Item = &'a Plan>,
    slices: &Slices<'_>,
) -> BTreeMap<(String, String), HealthCheck> {
    let mut checks = BTreeMap::new();
    for plan in plans {
        let Some(port) = plan.health_check_port else { continue };
        let endpoints = plan.ports.iter().flat_map(|port| slices.of(&plan.id, port));
        let local = endpoints.filter(|(_, endpoint)| endpoint.is_local_and_ready());
        let local: BTreeSet<IpAddr> = local.map(|(addr, _)| addr.ip()).collect();
        let count = |family: &Family| {
            (*family, local.iter().filter(|addr| Family::of(**addr) == *family).count())
        };
        let local_endpoints = plan.families.iter().map(count).collect();
        let service = (plan.id.namespace.clone(), plan.id.name.clone());
        checks.insert(service, HealthCheck { port, local_endpoints });
    }
    checks
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
