//! From Kubernetes objects to what should be served: pure, synchronous, and the same result
//! whatever the order in which the objects came.
//!
//! `service`, `ports`, `external` and `clients` read a Service, `slices` and `topology` EndpointSlices, `node`
//! this node's addresses and zone; `claims` settles who gets a frontend, `choose` which endpoints
//! serve it; `locals` counts those on this node, `complaints` keeps what is wrong; `config` is what
//! the operator decides. Bad input makes a problem and takes away no
//! more than what it names.

mod address;
mod choose;
mod claims;
mod clients;
mod complaints;
mod config;
mod external;
mod locals;
mod names;
mod node;
mod ports;
mod service;
mod slices;
mod topology;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use lbxdp_common::FrontendKind;

pub use self::config::{Config, NodePortAddresses, RangeError, range};

pub(crate) use self::node::is_eligible as is_node_eligible;

use self::choose::Lists;
use self::claims::Claims;
use self::complaints::{About, Complaints};
use self::locals::Locals;
use self::service::{Plan, Policy};
use self::slices::{Names, Slice, Slices};
use crate::changes::{Changes, Touched};
use crate::layer2::{Balancer, Balancers};
use crate::model::{
    Desired, Endpoints, Family, Frontend, HealthCheck, Problem, Reason, ServicePortName,
};
use crate::problem::Problems;
use crate::source::{Kind, Object, ObjectId, Sourced};

/// What is known of every object, and what follows from it for one node.
///
/// Each object is read once, when it comes, and not kept. What follows is memory as well:
/// [`Self::follow`] decides anew for the Services that have changed, and for those that share an
/// address with them. A full decision is the same thing for all Services, beginning with nothing.
#[derive(Clone, Debug)]
pub struct Index {
    /// The id of this node's Node.
    node: ObjectId,
    config: Config,
    /// Of this node's devices.
    device_addresses: BTreeSet<IpAddr>,
    /// `None` for those that are not served.
    services: BTreeMap<ObjectId, Option<Plan>>,
    slices: BTreeMap<ObjectId, Sourced<Slice>>,
    /// The slices of a Service, whether or not it exists.
    slices_of: BTreeMap<ObjectId, BTreeSet<ObjectId>>,
    nodes: BTreeMap<ObjectId, Sourced<Arc<Node>>>,
    /// Names that endpoints have in common.
    node_names: Names,
    /// Services of type LoadBalancer, and whether one differs since they were last asked for.
    balancers: (Balancers, bool),
    /// `metadata.uid` of those that have one.
    uids: BTreeMap<ObjectId, Box<str>>,
    /// Names of nodes that are dead.
    dead_nodes: BTreeSet<String>,
    /// Endpoints that Services do without because of that. Never zero.
    left_out: BTreeMap<ObjectId, usize>,

    stale: Stale,
    claims: Claims,
    locals: Locals,
    complaints: Complaints,
    /// Services that want NodePorts, by family; those of both are in each.
    want_node_ports: BTreeMap<Family, BTreeSet<ObjectId>>,
    desired: Desired,
}

/// What [`Index::follow`] has to decide anew.
#[derive(Clone, Debug)]
enum Stale {
    All,
    /// What follows from these Services and their slices.
    Some(BTreeSet<ObjectId>),
}

impl Stale {
    fn service(&mut self, id: &ObjectId) {
        if let Self::Some(services) = self {
            services.insert(id.clone());
        }
    }
}

impl Index {
    /// An empty index for the node with this name.
    pub fn new(node_name: &str) -> Self {
        Self {
            node: ObjectId::new(Kind::Node, None, node_name),
            config: Config::default(),
            device_addresses: BTreeSet::new(),
            services: BTreeMap::new(),
            slices: BTreeMap::new(),
            slices_of: BTreeMap::new(),
            nodes: BTreeMap::new(),
            node_names: Names::default(),
            balancers: (Balancers::new(), true),
            uids: BTreeMap::new(),
            dead_nodes: BTreeSet::new(),
            left_out: BTreeMap::new(),
            stale: Stale::All,
            claims: Claims::default(),
            locals: Locals::default(),
            complaints: Complaints::default(),
            want_node_ports: BTreeMap::new(),
            desired: Desired::default(),
        }
    }

    /// The same, still empty, with these rules.
    pub fn with_config(self, config: Config) -> Self {
        Self { config, ..self }
    }

    /// Takes the addresses of this node's devices.
    pub fn set_device_addresses(&mut self, addresses: BTreeSet<IpAddr>) {
        if self.config.has_node_port_ranges() && self.device_addresses != addresses {
            self.stale = Stale::All;
        }
        self.device_addresses = addresses;
    }

    /// Takes the names of the nodes that are dead; never this one's. Whether endpoints are on one that
    /// was not, or is not any more: what follows is decided anew for their Services alone.
    pub fn set_dead_nodes(&mut self, nodes: &BTreeSet<String>) -> bool {
        let changed = self.node_names.known(self.dead_nodes.symmetric_difference(nodes));
        self.dead_nodes.clone_from(nodes);
        if changed.is_empty() {
            return false;
        }
        let slices = self.slices.values().map(|slice| &slice.object);
        for service in
            slices.filter(|slice| slice.is_on(&changed)).filter_map(|it| it.service.as_ref())
        {
            self.stale.service(service);
        }
        true
    }

    /// Endpoints that are left out because their nodes are dead, counted for each port of a Service.
    pub fn left_out(&self) -> usize {
        self.left_out.values().sum()
    }

    /// Forgets every object and takes these.
    pub fn replace(&mut self, objects: impl IntoIterator<Item = Sourced<Object>>) {
        self.services.clear();
        self.slices.clear();
        self.slices_of.clear();
        self.nodes.clear();
        self.node_names = Names::default();
        self.uids.clear();
        self.complaints = Complaints::default();
        self.stale = Stale::All;
        for object in objects {
            self.apply(object);
        }
    }

    /// Adds an object, or replaces the one with its id.
    pub fn apply(&mut self, Sourced { origin, object }: Sourced<Object>) {
        let id = object.id();
        match object.metadata().uid.as_deref() {
            Some(uid) => drop(self.uids.insert(id.clone(), uid.into())),
            None => drop(self.uids.remove(&id)),
        }
        match object {
            Object::Service(object) => {
                let mut problems = Problems::default();
                let sourced = Sourced { origin, object };
                let plan = service::plan(&id, &sourced, &self.config, &mut problems);
                self.complaints.set(About::Object(id.clone()), problems);
                self.stale.service(&id);
                self.services.insert(id, plan);
            }
            Object::EndpointSlice(object) => {
                self.forget_slice(&id);
                let sourced = Sourced { origin, object };
                let slice = Slice::read(&id, &sourced, &self.node.name, &mut self.node_names);
                match &slice.service {
                    Some(service) => {
                        self.stale.service(service);
                        self.slices_of.entry(service.clone()).or_default().insert(id.clone());
                    }
                    None => {
                        let mut problems = Problems::default();
                        problems.extend(slice.problems.iter().cloned());
                        self.complaints.set(About::Object(id.clone()), problems);
                    }
                }
                self.slices.insert(id, Sourced { origin: sourced.origin, object: slice });
            }
            Object::Node(object) => {
                self.forget_node(&id);
                self.nodes.insert(id, Sourced { origin, object });
            }
        }
    }

    /// Removes an object; one that is not there is no mistake.
    pub fn delete(&mut self, id: &ObjectId) {
        self.uids.remove(id);
        match id.kind {
            Kind::Service => {
                if self.services.remove(id).is_some() {
                    self.complaints.set(About::Object(id.clone()), Problems::default());
                    self.stale.service(id);
                }
            }
            Kind::EndpointSlice => self.forget_slice(id),
            Kind::Node => self.forget_node(id),
            // No source delivers these.
            Kind::Namespace | Kind::ServiceCidr | Kind::IpAddressPool | Kind::L2Advertisement => {}
        }
    }

    fn forget_slice(&mut self, id: &ObjectId) {
        let Some(slice) = self.slices.remove(id) else { return };
        self.complaints.set(About::Object(id.clone()), Problems::default());
        let Some(service) = slice.object.service else { return };
        self.stale.service(&service);
        if let Some(slices) = self.slices_of.get_mut(&service) {
            slices.remove(id);
            if slices.is_empty() {
                self.slices_of.remove(&service);
            }
        }
    }

    /// Everything depends on this node's own Node, nothing on the others.
    fn forget_node(&mut self, id: &ObjectId) {
        self.nodes.remove(id);
        if *id == self.node {
            self.stale = Stale::All;
        }
    }

    /// Makes [`Self::desired`] and [`Self::problems`] follow the objects; what differs.
    pub fn follow(&mut self) -> Changes {
        match std::mem::replace(&mut self.stale, Stale::Some(BTreeSet::new())) {
            Stale::Some(services) if services.is_empty() => Changes::default(),
            Stale::Some(services) => Changes::Some(self.decide(services)),
            Stale::All => {
                self.claims = Claims::default();
                self.locals = Locals::default();
                self.complaints.forget_frontends();
                self.want_node_ports.clear();
                self.left_out.clear();
                let node_port_addresses = self.node_port_addresses();
                self.desired = Desired { node_port_addresses, ..Desired::default() };
                // Services that are gone have nothing to announce either.
                let services = self.services.keys().chain(self.slices_of.keys());
                let services = services.chain(self.balancers.0.keys()).cloned();
                let services = services.collect();
                self.decide(services);
                Changes::All
            }
        }
    }

    /// Has the next [`Self::follow`] decide everything anew.
    pub fn doubt(&mut self) {
        self.stale = Stale::All;
    }

    /// What this node should serve.
    pub const fn desired(&self) -> &Desired {
        &self.desired
    }

    /// Everything that is wrong with the objects.
    pub fn problems(&mut self) -> &[Problem] {
        self.complaints.sorted()
    }

    /// Services of type LoadBalancer, if they differ from when they were last asked for.
    pub fn changed_balancers(&mut self) -> Option<&Balancers> {
        let (balancers, is_changed) = &mut self.balancers;
        std::mem::take(is_changed).then_some(balancers)
    }

    /// The addresses by which others know this node (`InternalIP` and `ExternalIP`); what cannot be
    /// parsed is left out here and reported by [`Self::problems`] where it matters.
    pub fn node_addresses(&self) -> BTreeSet<IpAddr> {
        let node = self.nodes.get(&self.node);
        node.map(|node| node::addresses(&node.object)).unwrap_or_default()
    }

    /// Whether load balancers should send new connections to this node: not while it goes. Yes as
    /// long as nothing is known of it.
    pub fn is_node_eligible(&self) -> bool {
        self.nodes.get(&self.node).is_none_or(|node| node::is_eligible(&node.object))
    }

    /// The `metadata.uid` of an object, if it is known and has one.
    pub fn uid(&self, id: &ObjectId) -> Option<&str> {
        self.uids.get(id).map(|uid| &**uid)
    }

    fn plan(&self, service: &ObjectId) -> Option<&Plan> {
        self.services.get(service)?.as_ref()
    }

    /// Decides for these Services, and for those that had or get one of their addresses.
    fn decide(&mut self, services: BTreeSet<ObjectId>) -> Touched {
        let mut touched = Touched::default();
        let mut affected = BTreeSet::new();
        for id in &services {
            let plan = self.services.get(id).and_then(Option::as_ref);
            let node = &self.desired.node_port_addresses;
            let (addresses, owners) = self.claims.replace(id, plan, node);
            touched.frontends.extend(addresses);
            affected.extend(owners);
            self.note_node_ports(id);
        }
        let owners = touched.frontends.iter().filter_map(|addr| self.claims.winner(addr));
        affected.extend(owners.map(|claim| claim.service.clone()));
        affected.extend(services);
        for id in &affected {
            touched.frontends.extend(self.claims.won_by(id).map(|(addr, _)| addr));
            self.serve(id, &mut touched);
        }
        for addr in &touched.frontends {
            if self.claims.winner(addr).is_none() {
                self.desired.frontends.remove(addr);
                let gone = self.locals.replace(*addr, Vec::new());
                touched.backends.extend(gone);
            }
            let mut problems = Problems::default();
            self.claims.report(*addr, |service| self.plan(service), &mut problems);
            self.complaints.set(About::Frontend(*addr), problems);
            // Where a NodePort is, no health check listens.
            touched.health_checks |= !self.desired.health_checks.is_empty()
                && self.desired.node_port_addresses.contains(&addr.addr);
        }
        for backend in &touched.backends {
            if self.locals.contains(backend) {
                self.desired.local_backends.insert(*backend);
            } else {
                self.desired.local_backends.remove(backend);
            }
        }
        self.report_node();
        touched
    }

    /// The frontends of a Service, its health check, and what is wrong with its slices.
    fn serve(&mut self, id: &ObjectId, touched: &mut Touched) {
        let service = self.services.get(id);
        let node = self.nodes.get(&self.node);
        let zone = node.and_then(|node| node::zone(&node.object));
        let dead = self.node_names.known(self.dead_nodes.iter());
        let mut left_out = 0;
        let mut slices = Slices::default();
        for slice_id in self.slices_of.get(id).into_iter().flatten() {
            let Some(Sourced { origin, object: slice }) = self.slices.get(slice_id) else {
                continue;
            };
            let mut problems = Problems::default();
            match service {
                Some(Some(plan)) => {
                    slices.add(slice, plan, (zone, &dead), &mut problems, (origin, slice_id));
                }
                // What is not served needs no endpoints, and no complaints about them.
                Some(None) => {}
                None => {
                    let mut report = problems.about(origin, &slice_id.to_string());
                    Slice::report_missing(id, &mut report);
                }
            }
            self.complaints.set(About::Object(slice_id.clone()), problems);
        }
        let plan = service.and_then(Option::as_ref);
        let balancer = plan.and_then(|plan| self.balancer(id, plan));
        let (known, is_changed) = &mut self.balancers;
        if known.get(id).map(|known| &**known) != balancer.as_ref() {
            *is_changed = true;
            match balancer {
                Some(balancer) => drop(known.insert(id.clone(), balancer.into())),
                None => drop(known.remove(id)),
            }
        }
        let check = plan.and_then(|plan| health_check(plan, &slices));
        let name = (id.namespace.to_string(), id.name.to_string());
        if self.desired.health_checks.get(&name) != check.as_ref() {
            touched.health_checks = true;
            match check {
                Some(check) => drop(self.desired.health_checks.insert(name, check)),
                None => drop(self.desired.health_checks.remove(&name)),
            }
        }
        self.left_out.remove(id);
        let Some(plan) = plan else { return };
        // The frontends of a Service port share their lists and their name.
        let mut lists: BTreeMap<(usize, Family), (Lists, ServicePortName)> = BTreeMap::new();
        for (addr, claim) in self.claims.won_by(id) {
            let family = Family::of(addr.addr);
            let port = &plan.ports[claim.port];
            let (lists, name) = lists.entry((claim.port, family)).or_insert_with(|| {
                let name = ServicePortName {
                    namespace: id.namespace.clone(),
                    service: id.name.clone(),
                    port: port.label().into(),
                };
                let lists = Lists::of(slices.of(port), family);
                left_out += lists.left_out;
                (lists, name)
            });
            let (external, internal) = policies(claim.kind, plan);
            let (external, internal) = (lists.choose(external), lists.choose(internal));
            let named =
                [&external, &internal].into_iter().filter_map(|endpoints| match endpoints {
                    Endpoints::Serve(named) => Some(named.iter()),
                    Endpoints::Reject | Endpoints::Drop => None,
                });
            let local = named.flatten().filter(|endpoint| lists.local.contains(endpoint));
            touched.backends.extend(self.locals.replace(addr, local.copied().collect()));
            self.desired.frontends.insert(
                addr,
                Frontend {
                    kind: claim.kind,
                    name: name.clone(),
                    external,
                    internal,
                    serving: lists.serving.clone(),
                    clients: plan.clients(claim.kind, family),
                },
            );
        }
        if left_out > 0 {
            self.left_out.insert(id.clone(), left_out);
        }
    }

    /// What announcing the addresses of a Service goes by.
    fn balancer(&self, id: &ObjectId, plan: &Plan) -> Option<Balancer> {
        let service::Balancer { class, labels } = plan.balancer.as_deref()?.clone();
        let slices = self.slices_of.get(id).into_iter().flatten();
        let slices = slices.filter_map(|slice| self.slices.get(slice));
        let endpoints = slices.flat_map(|slice| slice.object.nodes(&self.node_names));
        Some(Balancer {
            uid: self.uids.get(id).cloned(),
            addresses: plan.load_balancer_ips.iter().map(|ip| ip.addr).collect(),
            class,
            labels,
            is_local: plan.external_policy == Policy::Local,
            endpoints: endpoints.map(str::to_owned).collect(),
        })
    }

    /// The node's addresses for NodePorts.
    fn node_port_addresses(&mut self) -> BTreeSet<IpAddr> {
        let id = self.node.clone();
        let mut problems = Problems::default();
        let mut addresses = BTreeSet::new();
        if self.config.has_primary()
            && let Some(node) = self.nodes.get(&id)
        {
            addresses.extend(node::primary_addresses(&id, node, &mut problems).into_values());
        }
        self.complaints.set(About::Object(id), problems);
        let in_range = |addr: &&IpAddr| {
            self.config.has_node_ports(**addr) && node::may_have_node_ports(**addr)
        };
        addresses.extend(self.device_addresses.iter().filter(in_range));
        addresses
    }

    /// Remembers in which families a Service wants NodePorts.
    fn note_node_ports(&mut self, id: &ObjectId) {
        let plan = self.services.get(id).and_then(Option::as_ref);
        for family in [Family::V4, Family::V6] {
            let services = self.want_node_ports.entry(family).or_default();
            if plan.is_some_and(|plan| plan.wants_node_ports(family)) {
                services.insert(id.clone());
            } else {
                services.remove(id);
            }
        }
    }

    /// Says so when a Service needs a NodePort address of a family that has none.
    fn report_node(&mut self) {
        let id = &self.node;
        let node = self.nodes.get(id);
        let origin = node.map_or("", |node| node.origin.as_str());
        let mut problems = Problems::default();
        let mut report = problems.about(origin, &id.to_string());
        let consequence = "NodePorts are not served (Services that want them";
        if !self.config.has_node_port_ranges() && node.is_none() {
            let wanting: BTreeSet<_> = self.want_node_ports.values().flatten().collect();
            if !wanting.is_empty() {
                let count = wanting.len();
                let message = format!("no such Node: {consequence}: {count})");
                report.because(Reason::NodePortsNotServed).warning("", message);
            }
        } else {
            for (family, services) in &self.want_node_ports {
                let mut addresses = self.desired.node_port_addresses.iter();
                let count = services.len();
                if count == 0 || addresses.any(|addr| Family::of(*addr) == *family) {
                    continue;
                }
                let (field, what) = match self.config.has_node_port_ranges() {
                    false => ("status.addresses", "InternalIP"),
                    true => ("", "address in --nodeport-addresses"),
                };
                let message = format!("no {what} of family {family}: its {consequence}: {count})");
                report.because(Reason::NodePortsNotServed).warning(field, message);
            }
        }
        self.complaints.set(About::NodePorts, problems);
    }
}

/// What load balancers are told about this node. Endpoints that terminate do not count, though they
/// serve what comes: the load balancer is to go elsewhere while they end (KEP-1669).
fn health_check(plan: &Plan, slices: &Slices<'_>) -> Option<HealthCheck> {
    let port = plan.health_check_port?;
    let endpoints = plan.ports.iter().flat_map(|port| slices.of(port));
    let local = endpoints.filter(|(_, endpoint)| endpoint.is_local_and_ready());
    let local: BTreeSet<IpAddr> = local.map(|(addr, _)| SocketAddr::ip(addr)).collect();
    let count = |family: &Family| {
        (*family, local.iter().filter(|addr| Family::of(**addr) == *family).count())
    };
    Some(HealthCheck { port, local_endpoints: plan.families.iter().map(count).collect() })
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
