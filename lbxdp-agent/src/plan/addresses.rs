//! What each address is.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use lbxdp_common::{AddressFlags, FrontendKind};

use crate::apply::Actual;
use crate::model::{Desired, NodeFacts};

/// The addresses as they should be, given the frontends that are `served` and the local backends
/// that are `staying` in the maps.
///
/// An address whose last frontend goes becomes a tombstone, even if no flow is known to use it: a
/// flow may have begun since the flows were read. A later sweep removes it. Likewise a local
/// backend's address stays as long as the backend has an id or a flow uses it, because the
/// replies of its flows are translated.
pub(super) fn wanted(
    served: impl Iterator<Item = (IpAddr, FrontendKind)>,
    desired: &Desired,
    facts: &NodeFacts,
    staying: impl Iterator<Item = IpAddr>,
    flows: Option<&BTreeSet<IpAddr>>,
    actual: &Actual,
) -> BTreeMap<IpAddr, AddressFlags> {
    let mut wanted: BTreeMap<IpAddr, AddressFlags> = BTreeMap::new();
    let mut add = |addr: IpAddr, flags: u32| wanted.entry(addr).or_default().flags |= flags;

    let mut services = BTreeSet::new();
    for (addr, kind) in served {
        services.insert(addr);
        let cluster_ip = match kind {
            FrontendKind::ClusterIp => AddressFlags::CLUSTER_IP,
            FrontendKind::LoadBalancer | FrontendKind::ExternalIp | FrontendKind::NodePort => 0,
        };
        add(addr, AddressFlags::SERVICE | cluster_ip);
    }
    for addr in &facts.addresses {
        add(*addr, AddressFlags::NODE);
    }
    for backend in &desired.local_backends {
        add(backend.ip(), AddressFlags::BACKEND);
    }
    for addr in staying {
        add(addr, AddressFlags::BACKEND);
    }

    let may_have_flows = |addr: &IpAddr| flows.is_none_or(|flows| flows.contains(addr));
    for (addr, before) in &actual.addresses {
        if !services.contains(addr)
            && (before.has(AddressFlags::SERVICE)
                || before.has(AddressFlags::TOMBSTONE) && may_have_flows(addr))
        {
            add(*addr, AddressFlags::TOMBSTONE);
        }
        if before.has(AddressFlags::BACKEND) && may_have_flows(addr) {
            add(*addr, AddressFlags::BACKEND);
        }
    }
    wanted
}
