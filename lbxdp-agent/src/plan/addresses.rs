//! What each address is.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use lbxdp_common::{AddressFlags, FrontendKind};

use crate::apply::Actual;
use crate::model::{Desired, FrontendAddr, NodeFacts, Protocol};

/// Who may say something about an address.
pub(super) struct Addresses<'a> {
    pub desired: &'a Desired,
    pub facts: &'a NodeFacts,
    /// Ids of backends.
    pub ids: &'a BTreeMap<SocketAddr, u32>,
    /// Addresses that live flows use, if that is known.
    pub flows: Option<&'a BTreeSet<IpAddr>>,
    pub actual: &'a Actual,
}

impl Addresses<'_> {
    /// What an address should be, given which frontends are served and which backends stay in the
    /// maps as local ones.
    ///
    /// An address whose last frontend goes becomes a tombstone, even if no flow is known to use it: a
    /// flow may have begun since the flows were read. A later sweep removes it. Likewise a local
    /// backend's address stays as long as the backend has an id or a flow uses it, because the
    /// replies of its flows are translated.
    pub(super) fn flags(
        &self,
        addr: IpAddr,
        is_served: impl Fn(&FrontendAddr) -> bool,
        stays: impl Fn(&SocketAddr, &u32) -> bool,
    ) -> AddressFlags {
        let mut flags = 0;
        let frontends = self.desired.frontends.range(frontends_at(addr));
        for (_, frontend) in frontends.filter(|(addr, _)| is_served(addr)) {
            flags |= AddressFlags::SERVICE;
            flags |= match frontend.kind {
                FrontendKind::ClusterIp => AddressFlags::CLUSTER_IP,
                FrontendKind::LoadBalancer | FrontendKind::ExternalIp | FrontendKind::NodePort => 0,
            };
        }
        let is_service = flags & AddressFlags::SERVICE != 0;
        if self.facts.addresses.contains(&addr) {
            flags |= AddressFlags::NODE;
        }
        let sockets = SocketAddr::new(addr, 0)..=SocketAddr::new(addr, u16::MAX);
        let is_backend = self.desired.local_backends.range(sockets.clone()).next().is_some();
        if is_backend || self.ids.range(sockets).any(|(addr, id)| stays(addr, id)) {
            flags |= AddressFlags::BACKEND;
        }

        let before = self.actual.addresses.get(&addr).copied().unwrap_or_default();
        let may_have_flows = self.flows.is_none_or(|flows| flows.contains(&addr));
        let is_tombstone = before.has(AddressFlags::SERVICE)
            || before.has(AddressFlags::TOMBSTONE) && may_have_flows;
        if !is_service && is_tombstone {
            flags |= AddressFlags::TOMBSTONE;
        }
        if before.has(AddressFlags::BACKEND) && may_have_flows {
            flags |= AddressFlags::BACKEND;
        }
        AddressFlags { flags }
    }
}

fn frontends_at(addr: IpAddr) -> RangeInclusive<FrontendAddr> {
    FrontendAddr { addr, port: 0, protocol: Protocol::Tcp }..=FrontendAddr {
        addr,
        port: u16::MAX,
        protocol: Protocol::Sctp,
    }
}
