//! The addresses on which this node serves NodePorts.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use k8s_openapi::api::core::v1::Node;

use super::address;
use crate::model::Family;
use crate::problem::{Problems, quoted};
use crate::source::{ObjectId, Sourced};

/// The zone of a node.
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// Put on a node that the cluster autoscaler is about to delete.
const DELETION_TAINT: &str = "ToBeDeletedByClusterAutoscaler";

/// The primary addresses of a node: the first `InternalIP` of each family. That is kube-proxy's
/// `--nodeport-addresses=primary`, the default of its nftables mode (KEP-3866); `ExternalIP` is
/// usually the outside of somebody else's NAT.
pub(super) fn primary_addresses(
    id: &ObjectId,
    node: &Sourced<impl AsRef<Node>>,
    problems: &mut Problems,
) -> BTreeMap<Family, IpAddr> {
    let mut report = problems.about(&node.origin, &id.to_string());
    let status = node.object.as_ref().status.as_ref();
    let mut primary = BTreeMap::new();
    let addresses = status.and_then(|status| status.addresses.as_deref()).unwrap_or_default();
    for (index, written) in addresses.iter().enumerate() {
        if written.type_ != "InternalIP" {
            continue;
        }
        match address::parse(&written.address) {
            Ok(addr) => {
                primary.entry(Family::of(addr)).or_insert(addr);
            }
            Err(error) => report.error(
                format!("status.addresses[{index}].address"),
                format!("{} {error}: NodePorts are not served on it", quoted(&written.address)),
            ),
        }
    }
    primary
}

/// The zone of a node, if it is labelled with one.
pub(super) fn zone(node: &Node) -> Option<&str> {
    let zone = node.metadata.labels.as_ref()?.get(ZONE_LABEL)?;
    Some(zone.as_str()).filter(|zone| !zone.is_empty())
}

/// Whether a node is to get new connections: it is not being deleted, neither by a person nor by the
/// cluster autoscaler (kube-proxy `proxy_health.go`, KEP-3836). `unschedulable` is about new pods.
pub(crate) fn is_eligible(node: &Node) -> bool {
    let mut taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    node.metadata.deletion_timestamp.is_none() && !taints.any(|taint| taint.key == DELETION_TAINT)
}

/// Whether NodePorts may be served on a device's address at all. On loopback they would be within
/// reach of the neighbours on a link (CVE-2020-8558).
pub(super) fn may_have_node_ports(addr: IpAddr) -> bool {
    address::check(addr).is_ok()
}

/// Every address by which others know the node.
pub(super) fn addresses(node: &Node) -> BTreeSet<IpAddr> {
    let status = node.status.as_ref();
    let addresses = status.and_then(|status| status.addresses.as_deref()).unwrap_or_default();
    addresses
        .iter()
        .filter(|written| matches!(written.type_.as_str(), "InternalIP" | "ExternalIP"))
        .filter_map(|written| address::parse(&written.address).ok())
        .collect()
}
