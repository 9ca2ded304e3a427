//! What a Service asks for, and what its status shows.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Service, ServiceSpec};
use serde::{Deserialize, Serialize};

use crate::model::{Family, Protocol};
use crate::problem::quoted;

/// The class of Services that are always ours.
pub const CLASS: &str = "lbxdp.io/lbxdp";
/// Annotation that names the pool which a Service has its addresses of. Written here, and by MetalLB.
pub const POOL_ANNOTATION: &str = "metallb.io/ip-allocated-from-pool";
/// What MetalLB wrote before.
pub const OLD_POOL_ANNOTATION: &str = "metallb.universe.tf/ip-allocated-from-pool";

const ADDRESS_POOL: Annotation =
    Annotation { name: "metallb.io/address-pool", old: "metallb.universe.tf/address-pool" };
const ADDRESSES: Annotation =
    Annotation { name: "metallb.io/loadBalancerIPs", old: "metallb.universe.tf/loadBalancerIPs" };
const SHARING: Annotation =
    Annotation { name: "metallb.io/allow-shared-ip", old: "metallb.universe.tf/allow-shared-ip" };

/// An annotation of either prefix.
struct Annotation {
    name: &'static str,
    old: &'static str,
}

impl Annotation {
    /// What it says, if anything. The new prefix counts where both are written.
    fn of<'a>(&self, annotations: &'a BTreeMap<String, String>) -> Option<&'a str> {
        let value = annotations.get(self.name).or_else(|| annotations.get(self.old))?;
        (!value.is_empty()).then_some(value)
    }
}

/// Addresses of a Service and the pool that they are of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// At most one of each family. The first one decides which node announces them.
    pub addresses: Vec<IpAddr>,
    /// Name of the pool; `None` if there are no addresses, or if nobody says.
    pub pool: Option<String>,
}

impl Assignment {
    /// What the status and the annotation of a Service show. What is no address is nothing.
    pub fn shown(service: &Service) -> Self {
        let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
        let ingress = status.and_then(|status| status.ingress.as_deref()).unwrap_or_default();
        let addresses = ingress.iter().filter_map(|ingress| ingress.ip.as_deref()?.parse().ok());
        let annotations = service.metadata.annotations.as_ref();
        let pool = annotations.and_then(|annotations| {
            annotations.get(POOL_ANNOTATION).or_else(|| annotations.get(OLD_POOL_ANNOTATION))
        });
        Self { addresses: addresses.collect(), pool: pool.cloned() }
    }
}

/// What is to be done with a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// It is to have an address.
    Ours,
    /// It had one of ours and is no load balancer any more.
    Left,
    /// Somebody else gives it its addresses.
    Foreign,
    /// It has and wants none.
    None,
}

impl Role {
    /// Of this Service.
    pub(super) fn of(service: &Service, shown: &Assignment, adopt_classless: bool) -> Self {
        if !is_load_balancer(service) {
            return if shown.pool.is_some() { Self::Left } else { Self::None };
        }
        if is_ours(service, adopt_classless) { Self::Ours } else { Self::Foreign }
    }
}

/// Whether a Service has that type.
pub fn is_load_balancer(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    spec.and_then(|spec| spec.type_.as_deref()) == Some("LoadBalancer")
}

/// Whether a Service is to have its addresses from here, going by type and class.
pub fn is_ours(service: &Service, adopt_classless: bool) -> bool {
    let class = service.spec.as_ref().and_then(|spec| spec.load_balancer_class.as_deref());
    is_load_balancer(service) && class.map_or(adopt_classless, |class| class == CLASS)
}

/// What Services have to agree in to share an address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Sharing {
    /// The word in the annotation.
    key: String,
    /// With `externalTrafficPolicy: Local` the selector: what one of them sends away, the other one
    /// must not want.
    backends: String,
}

impl Sharing {
    /// What the two do not agree in.
    pub(super) fn difference(&self, other: &Self) -> Option<&'static str> {
        if self.key != other.key {
            return Some("their sharing keys differ");
        }
        (self.backends != other.backends)
            .then_some("with externalTrafficPolicy Local both need the same policy and selector")
    }
}

/// What a Service asks for.
#[derive(Clone, Debug)]
pub(super) struct Request {
    /// Families of its ClusterIPs, the preferred one first.
    pub families: Vec<Family>,
    /// Whether one address will do although there are two families.
    pub prefers_dual: bool,
    /// The addresses that it wants, none for any; or why nobody knows which.
    pub wanted: Result<Vec<IpAddr>, String>,
    /// The pool that it wants.
    pub pool: Option<String>,
    /// What it serves.
    pub ports: BTreeSet<(Protocol, u16)>,
    /// With whom it shares an address, if with anybody.
    pub sharing: Option<Sharing>,
}

/// Why a Service can have no address, whatever the pools have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unanswerable {
    /// It has no ClusterIP, or not yet: nobody knows which family.
    NoClusterIp,
    /// A ClusterIP is none.
    BadClusterIp(String),
    /// It requires two families and has ClusterIPs of one.
    NotEnoughClusterIps,
}

impl Request {
    /// Of this Service.
    pub(super) fn of(service: &Service) -> Result<Self, Unanswerable> {
        let none = ServiceSpec::default();
        let spec = service.spec.as_ref().unwrap_or(&none);
        let families = families(spec)?;
        let policy = spec.ip_family_policy.as_deref();
        if policy == Some("RequireDualStack") && families.len() < 2 {
            return Err(Unanswerable::NotEnoughClusterIps);
        }
        let no_annotations = BTreeMap::new();
        let annotations = service.metadata.annotations.as_ref().unwrap_or(&no_annotations);
        let written = spec.ports.iter().flatten();
        let ports = written.filter_map(|port| {
            let protocol = match port.protocol.as_deref().unwrap_or("TCP") {
                "TCP" => Protocol::Tcp,
                "UDP" => Protocol::Udp,
                "SCTP" => Protocol::Sctp,
                _ => return None,
            };
            Some((protocol, u16::try_from(port.port).ok()?))
        });
        let sharing = SHARING.of(annotations).map(|key| Sharing {
            key: key.to_owned(),
            backends: match spec.external_traffic_policy.as_deref() {
                Some("Local") => backends(spec),
                _ => String::new(),
            },
        });
        Ok(Self {
            families,
            prefers_dual: policy == Some("PreferDualStack"),
            wanted: wanted(spec, annotations),
            pool: ADDRESS_POOL.of(annotations).map(str::to_owned),
            ports: ports.collect(),
            sharing,
        })
    }
}

/// Annotations of the old prefix that a Service still has, and what they are called now.
pub(super) fn deprecated(service: &Service) -> Vec<(&'static str, &'static str)> {
    let Some(annotations) = &service.metadata.annotations else { return Vec::new() };
    let all = [ADDRESS_POOL, ADDRESSES, SHARING].into_iter();
    let old = all.filter(|annotation| annotations.contains_key(annotation.old));
    old.map(|annotation| (annotation.old, annotation.name)).collect()
}

fn families(spec: &ServiceSpec) -> Result<Vec<Family>, Unanswerable> {
    let list = spec.cluster_ips.as_deref().unwrap_or_default();
    let single = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty());
    let written: Vec<&str> = match list {
        [] => single.into_iter().collect(),
        list => list.iter().map(String::as_str).collect(),
    };
    if written.is_empty() || written.contains(&"None") {
        return Err(Unanswerable::NoClusterIp);
    }
    let mut families = Vec::new();
    for text in written {
        let addr = text.parse().map_err(|_| Unanswerable::BadClusterIp(quoted(text)))?;
        if !families.contains(&Family::of(addr)) {
            families.push(Family::of(addr));
        }
    }
    Ok(families)
}

fn wanted(
    spec: &ServiceSpec,
    annotations: &BTreeMap<String, String>,
) -> Result<Vec<IpAddr>, String> {
    let annotated = ADDRESSES.of(annotations);
    let field = spec.load_balancer_ip.as_deref().filter(|ip| !ip.is_empty());
    let (text, place) = match (annotated, field) {
        (None, None) => return Ok(Vec::new()),
        (Some(_), Some(_)) => {
            return Err(format!("both {} and spec.loadBalancerIP are written", ADDRESSES.name));
        }
        (Some(text), None) => (text, ADDRESSES.name),
        (None, Some(text)) => (text, "spec.loadBalancerIP"),
    };
    let parts = if annotated.is_some() { text.split(',').collect() } else { vec![text] };
    let mut addresses: Vec<IpAddr> = Vec::new();
    for part in parts {
        let Ok(addr) = part.trim().parse::<IpAddr>() else {
            return Err(format!("{place} {} has no IP address", quoted(text)));
        };
        if addresses.iter().any(|other| Family::of(*other) == Family::of(addr)) {
            return Err(format!("{place} {} has two addresses of a family", quoted(text)));
        }
        addresses.push(addr);
    }
    Ok(addresses)
}

/// The selector as text. Services with the same one have the same endpoints.
fn backends(spec: &ServiceSpec) -> String {
    let pairs = spec.selector.iter().flatten();
    pairs.map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn service(annotations: Value, spec: Value) -> Service {
        serde_json::from_value(json!({
            "metadata": {"name": "a", "namespace": "x", "annotations": annotations},
            "spec": spec,
        }))
        .unwrap()
    }

    fn request(annotations: Value, mut spec: Value) -> Request {
        if spec.get("clusterIP").is_none() {
            spec["clusterIP"] = json!("10.96.0.1");
        }
        Request::of(&service(annotations, spec)).unwrap()
    }

    #[test]
    fn families_are_those_of_the_cluster_ips() {
        use Family::{V4, V6};
        use Unanswerable::*;
        for (spec, expected) in [
            (json!({"clusterIP": "10.96.0.1"}), Ok(vec![V4])),
            (
                json!({"clusterIP": "fd00::1", "clusterIPs": ["fd00::1", "10.96.0.1"]}),
                Ok(vec![V6, V4]),
            ),
            (json!({}), Err(NoClusterIp)),
            (json!({"clusterIP": "None"}), Err(NoClusterIp)),
            (json!({"clusterIP": "x"}), Err(BadClusterIp("\"x\"".to_owned()))),
            (
                json!({"clusterIP": "10.96.0.1", "ipFamilyPolicy": "RequireDualStack"}),
                Err(NotEnoughClusterIps),
            ),
        ] {
            let read = Request::of(&service(json!({}), spec.clone()));
            assert_eq!(read.map(|request| request.families), expected, "{spec}");
        }
    }

    #[test]
    fn addresses_are_asked_for_in_two_places() {
        let ips = |texts: &[&str]| -> Result<Vec<IpAddr>, &str> {
            Ok(texts.iter().map(|ip| ip.parse().unwrap()).collect())
        };
        let annotation = |name: &str, value: &str| json!({name: value});
        for (annotations, field, expected) in [
            (json!({}), "", ips(&[])),
            (json!({}), "192.0.2.1", ips(&["192.0.2.1"])),
            (annotation("metallb.io/loadBalancerIPs", ""), "192.0.2.1", ips(&["192.0.2.1"])),
            (
                annotation("metallb.io/loadBalancerIPs", "2001:db8::1, 192.0.2.1"),
                "",
                ips(&["2001:db8::1", "192.0.2.1"]),
            ),
            (
                annotation("metallb.universe.tf/loadBalancerIPs", "192.0.2.1"),
                "",
                ips(&["192.0.2.1"]),
            ),
            (annotation("metallb.io/loadBalancerIPs", "192.0.2.1"), "192.0.2.1", Err("both")),
            (annotation("metallb.io/loadBalancerIPs", "x"), "", Err("no IP address")),
            (annotation("metallb.io/loadBalancerIPs", "192.0.2.1,"), "", Err("no IP address")),
            (json!({}), "192.0.2.1,192.0.2.2", Err("no IP address")),
            (
                annotation("metallb.io/loadBalancerIPs", "192.0.2.1,192.0.2.2"),
                "",
                Err("of a family"),
            ),
        ] {
            let read = request(annotations.clone(), json!({"loadBalancerIP": field})).wanted;
            match (&read, expected) {
                (Ok(read), Ok(expected)) => assert_eq!(read, &expected),
                (Err(error), Err(part)) => assert!(error.contains(part), "{error}"),
                (_, expected) => panic!("{annotations} {field}: {read:?}, not {expected:?}"),
            }
        }
    }

    #[test]
    fn the_new_prefix_counts_and_the_old_one_is_noticed() {
        let annotations = json!({
            "metallb.io/address-pool": "new",
            "metallb.universe.tf/address-pool": "old",
            "metallb.universe.tf/allow-shared-ip": "k",
        });
        let both = request(annotations.clone(), json!({}));
        assert_eq!(both.pool.as_deref(), Some("new"));
        assert_eq!(both.sharing.unwrap().key, "k");
        let names: Vec<_> =
            deprecated(&service(annotations, json!({}))).into_iter().map(|(old, _)| old).collect();
        let expected = ["metallb.universe.tf/address-pool", "metallb.universe.tf/allow-shared-ip"];
        assert_eq!(names, expected);
    }

    #[test]
    fn a_role_follows_type_class_and_what_is_shown() {
        let lb = |class: Value| json!({"type": "LoadBalancer", "loadBalancerClass": class});
        let role = |spec: Value, pool: Option<&str>, adopt| {
            let shown = Assignment { pool: pool.map(str::to_owned), ..Assignment::default() };
            Role::of(&service(json!({}), spec), &shown, adopt)
        };
        for adopt in [false, true] {
            assert_eq!(role(lb(json!(CLASS)), None, adopt), Role::Ours);
            assert_eq!(role(lb(json!("x.io/y")), Some("a"), adopt), Role::Foreign);
            assert_eq!(role(json!({"type": "ClusterIP"}), Some("a"), adopt), Role::Left);
            assert_eq!(role(json!({"type": "ClusterIP"}), None, adopt), Role::None);
            let classless = if adopt { Role::Ours } else { Role::Foreign };
            assert_eq!(role(lb(json!(null)), Some("a"), adopt), classless);
        }
    }

    #[test]
    fn the_status_shows_addresses_and_the_annotation_their_pool() {
        let mut service = service(json!({OLD_POOL_ANNOTATION: "a"}), json!({}));
        service.status = serde_json::from_value(json!({"loadBalancer": {"ingress": [
            {"hostname": "h"}, {"ip": "192.0.2.1", "ipMode": "VIP"}, {"ip": "x"},
        ]}}))
        .unwrap();
        let addresses = vec!["192.0.2.1".parse().unwrap()];
        let expected = Assignment { addresses, pool: Some("a".to_owned()) };
        assert_eq!(Assignment::shown(&service), expected);
    }
}
