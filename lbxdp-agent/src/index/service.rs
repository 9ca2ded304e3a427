//! One Service: whether it is served at all, on which addresses, by which policy.

use std::collections::BTreeSet;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Service, ServiceSpec};

use lbxdp_common::FrontendKind;

use super::clients::Rules;
use super::config::Config;
use super::ports::{self, Port};
use super::{address, external, names};
use crate::model::{Clients, Family, Protocol};
use crate::problem::{Problems, Reporter, quoted};
use crate::source::{ObjectId, Sourced};
use crate::vip::Labels;

/// Says that another proxy serves the Service; kube-proxy leaves such objects out of its watch.
pub(super) const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";
/// Says that the Service is headless even if it has a ClusterIP.
pub(super) const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";

/// What the manifests want of one Service.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Plan {
    /// The Service.
    pub id: ObjectId,
    /// Where it comes from.
    pub origin: String,
    /// Seconds since 1970 of its creation. A Service that never met an API server has no such
    /// time and gives way to those that did.
    pub created: i64,
    /// Ports, by position.
    pub ports: Vec<Port>,
    /// Ports that are written and cannot be served. Slices may have them all the same.
    unserved: Vec<(Protocol, String)>,
    /// ClusterIPs.
    pub cluster_ips: Vec<Address>,
    /// Addresses of load balancers.
    pub load_balancer_ips: Vec<Address>,
    /// External addresses that are allowed.
    pub external_ips: Vec<Address>,
    /// Families in which it is served: those it has ClusterIPs of, as kube-proxy runs once for
    /// each family and skips Services without a ClusterIP of it.
    pub families: BTreeSet<Family>,
    /// For NodePorts, load balancer addresses and external ones, from outside the node.
    pub external_policy: Policy,
    /// For ClusterIPs.
    pub internal_policy: Policy,
    /// Where load balancers ask for the health of this node's endpoints. Only a load balancer with
    /// policy Local has it (kube-proxy `NeedsHealthCheck`).
    pub health_check_port: Option<u16>,
    /// For its clients.
    clients: Rules,
    /// What announcing its addresses goes by, if it is of type LoadBalancer.
    pub balancer: Option<Box<Balancer>>,
}

/// See [`Plan::balancer`].
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Balancer {
    /// `spec.loadBalancerClass`.
    pub class: Option<Box<str>>,
    /// Labels.
    pub labels: Labels,
}

impl Plan {
    /// What a frontend of `kind` says about its clients.
    pub(super) fn clients(&self, kind: FrontendKind, family: Family) -> Clients {
        self.clients.clients(kind, family)
    }

    /// Whether something of it is served on the node's addresses of this family.
    pub(super) fn wants_node_ports(&self, family: Family) -> bool {
        let has_port = self.ports.iter().any(|port| port.node_port.is_some());
        self.families.contains(&family) && (has_port || self.health_check_port.is_some())
    }

    /// Whether the Service has a port with this name and protocol, served or not.
    pub(super) fn declares(&self, name: &str, protocol: Protocol) -> bool {
        let mut ports = self.ports.iter().map(|port| (port.protocol, port.name.as_str()));
        let mut unserved = self.unserved.iter().map(|(protocol, name)| (*protocol, name.as_str()));
        ports.any(|port| port == (protocol, name)) || unserved.any(|port| port == (protocol, name))
    }
}

/// An address and the field it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    /// The address.
    pub addr: IpAddr,
    /// Path of the field.
    pub field: String,
}

/// `externalTrafficPolicy` and `internalTrafficPolicy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Policy {
    /// Every endpoint.
    Cluster,
    /// Only endpoints on this node.
    Local,
}

/// What to do for a Service; `None` if nothing. Which Services are left out follows kube-proxy's
/// `ShouldSkipService` and the label selector of its watch.
pub(super) fn plan(
    id: &ObjectId,
    sourced: &Sourced<impl AsRef<Service>>,
    config: &Config,
    problems: &mut Problems,
) -> Option<Plan> {
    let service = sourced.object.as_ref();
    let mut report = problems.about(&sourced.origin, &id.to_string());
    let report = &mut report;
    let labels = service.metadata.labels.iter().flatten();
    if labels.into_iter().any(|(key, _)| key == PROXY_NAME_LABEL || key == HEADLESS_LABEL) {
        return None;
    }
    for (field, name) in [("metadata.namespace", &id.namespace), ("metadata.name", &id.name)] {
        if !names::is_valid(name) {
            let message = format!("{} is not a name: the Service is not served", quoted(name));
            report.error(field, message);
            return None;
        }
    }
    let Some(spec) = &service.spec else {
        report.error("spec", "missing: the Service is not served");
        return None;
    };
    let type_ = Type::of(spec, report)?;
    let cluster_ips = written_cluster_ips(spec, report)?;
    let Some(ports) = spec.ports.as_deref().filter(|ports| !ports.is_empty()) else {
        report.error("spec.ports", "empty: the Service is not served");
        return None;
    };
    let written = ports;
    let ports = ports::check(written, type_ != Type::ClusterIp, report);
    let cluster_ips = addresses(cluster_ips, "ClusterIP", report);
    let families = families(&cluster_ips, spec);
    let mut load_balancer_ips = load_balancer_ips(service, type_, report);
    let mut external_ips = external::allowed_ips(spec, config, report);
    keep_families(&mut load_balancer_ips, &families, "load balancer address", report);
    keep_families(&mut external_ips, &families, "external address", report);
    let external_policy =
        policy(spec.external_traffic_policy.as_deref(), "spec.externalTrafficPolicy", report);
    let clients = Rules::of(spec, config, report);
    let balancer = (type_ == Type::LoadBalancer).then(|| {
        let class = spec.load_balancer_class.as_deref().map(Box::from);
        Box::new(Balancer { class, labels: service.metadata.labels.clone().unwrap_or_default() })
    });
    Some(Plan {
        id: id.clone(),
        origin: sourced.origin.clone(),
        created: service.metadata.creation_timestamp.as_ref().map_or(i64::MAX, |t| t.0.as_second()),
        unserved: ports::unserved(written, &ports),
        ports,
        families,
        cluster_ips,
        load_balancer_ips,
        external_ips,
        health_check_port: health_check_port(spec, type_, external_policy, report),
        external_policy,
        internal_policy: policy(
            spec.internal_traffic_policy.as_deref(),
            "spec.internalTrafficPolicy",
            report,
        ),
        clients,
        balancer,
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Type {
    ClusterIp,
    NodePort,
    LoadBalancer,
}

impl Type {
    fn of(spec: &ServiceSpec, report: &mut Reporter<'_>) -> Option<Self> {
        match spec.type_.as_deref() {
            None | Some("" | "ClusterIP") => Some(Self::ClusterIp),
            Some("NodePort") => Some(Self::NodePort),
            Some("LoadBalancer") => Some(Self::LoadBalancer),
            Some("ExternalName") => None,
            Some(other) => {
                let message = format!("unknown type {}: the Service is not served", quoted(other));
                report.error("spec.type", message);
                None
            }
        }
    }
}

/// Text and field of each ClusterIP; `None` for a Service without one.
fn written_cluster_ips<'a>(
    spec: &'a ServiceSpec,
    report: &mut Reporter<'_>,
) -> Option<Vec<(&'a str, String)>> {
    let list = spec.cluster_ips.as_deref().unwrap_or_default();
    let single = spec.cluster_ip.as_deref().unwrap_or_default();
    if single == "None" || list.iter().any(|ip| ip == "None") {
        return None;
    }
    let Some(first) = list.first() else {
        if single.is_empty() {
            // Not yet assigned by the API server, or a file that nobody will ever assign one for.
            report.warning("spec.clusterIP", "no ClusterIP: the Service is not served");
            return None;
        }
        return Some(vec![(single, "spec.clusterIP".to_owned())]);
    };
    if !single.is_empty() && single != first {
        let message = format!("{} is not the first of spec.clusterIPs: ignored", quoted(single));
        report.error("spec.clusterIP", message);
    }
    let field = |index| format!("spec.clusterIPs[{index}]");
    Some(list.iter().enumerate().map(|(index, ip)| (ip.as_str(), field(index))).collect())
}

/// Those that can be served.
pub(super) fn addresses(
    written: Vec<(&str, String)>,
    what: &str,
    report: &mut Reporter<'_>,
) -> Vec<Address> {
    let mut addresses = Vec::new();
    for (text, field) in written {
        match address::parse(text) {
            Ok(addr) => addresses.push(Address { addr, field }),
            Err(error) => {
                let message = format!("{} {error}: this {what} is not served", quoted(text));
                report.error(field, message);
            }
        }
    }
    addresses
}

/// `status.loadBalancer.ingress[].ip`, unless the mode says that the load balancer itself
/// delivers to nodes or pods (KEP-1860). Entries with only a host name have nothing to serve.
fn load_balancer_ips(service: &Service, type_: Type, report: &mut Reporter<'_>) -> Vec<Address> {
    let ingress = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = ingress.and_then(|balancer| balancer.ingress.as_deref()).unwrap_or_default();
    let mut written = Vec::new();
    for (index, entry) in ingress.iter().enumerate() {
        let field = format!("status.loadBalancer.ingress[{index}]");
        let Some(ip) = entry.ip.as_deref().filter(|ip| !ip.is_empty()) else { continue };
        match entry.ip_mode.as_deref() {
            None | Some("" | "VIP") => written.push((ip, format!("{field}.ip"))),
            Some("Proxy") => {}
            Some(mode) => {
                let message = format!(
                    "{} is neither VIP nor Proxy: {} is not served",
                    quoted(mode),
                    quoted(ip)
                );
                report.error(format!("{field}.ipMode"), message);
            }
        }
    }
    let addresses = addresses(written, "load balancer address", report);
    if addresses.is_empty() {
        return addresses;
    }
    if type_ != Type::LoadBalancer {
        // The API server clears the status when the type changes.
        report.warning(
            "status.loadBalancer.ingress",
            "the Service is not of type LoadBalancer: these addresses are not served",
        );
        return Vec::new();
    }
    addresses
}

/// Leaves out the addresses of a family that the Service has no endpoints of.
fn keep_families(
    addresses: &mut Vec<Address>,
    families: &BTreeSet<Family>,
    what: &str,
    report: &mut Reporter<'_>,
) {
    addresses.retain(|Address { addr, field }| {
        let family = Family::of(*addr);
        let has = families.contains(&family);
        if !has {
            let message = format!(
                "the Service has no ClusterIP of family {family}: this {what} is not served"
            );
            report.warning(field, message);
        }
        has
    });
}

fn families(cluster_ips: &[Address], spec: &ServiceSpec) -> BTreeSet<Family> {
    let written = spec.ip_families.iter().flatten().filter_map(|family| match family.as_str() {
        "IPv4" => Some(Family::V4),
        "IPv6" => Some(Family::V6),
        _ => None,
    });
    cluster_ips.iter().map(|ip| Family::of(ip.addr)).chain(written).collect()
}

fn policy(written: Option<&str>, field: &str, report: &mut Reporter<'_>) -> Policy {
    match written {
        None | Some("" | "Cluster") => Policy::Cluster,
        Some("Local") => Policy::Local,
        Some(other) => {
            let message =
                format!("{} is neither Cluster nor Local: Cluster is used", quoted(other));
            report.error(field, message);
            Policy::Cluster
        }
    }
}

fn health_check_port(
    spec: &ServiceSpec,
    type_: Type,
    policy: Policy,
    report: &mut Reporter<'_>,
) -> Option<u16> {
    let port = spec.health_check_node_port.filter(|port| *port != 0)?;
    if (type_, policy) != (Type::LoadBalancer, Policy::Local) {
        return None;
    }
    let number = ports::number(port);
    if number.is_none() {
        let message = format!("{port}, not in 1..65535: load balancers cannot ask this node");
        report.error("spec.healthCheckNodePort", message);
    }
    number
}
