//! Addresses that no pool gives out, whatever its ranges say.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::ranges::{AddressSet, Range};

/// Addresses that are never a load balancer's: the index serves no frontend there either.
const SPECIAL: [&str; 10] = [
    "0.0.0.0/8",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "224.0.0.0/4",
    "255.255.255.255/32",
    "::/128",
    "::1/128",
    "::ffff:0:0/96",
    "fe80::/10",
    "ff00::/8",
];

/// What is somebody else's.
#[derive(Clone, Debug, Default)]
pub struct Reserved {
    /// Nodes by their addresses. A node whose address is announced by another one is cut off.
    pub nodes: BTreeMap<IpAddr, String>,
    /// Ranges that ClusterIPs come from.
    pub service_cidrs: Vec<IpNet>,
}

impl Reserved {
    /// All of it.
    pub(super) fn set(&self) -> AddressSet {
        let cidrs = self.service_cidrs.iter().map(|net| Range::from(*net));
        let nodes = self.nodes.keys().map(|addr| Range::from(*addr));
        special().chain(cidrs).chain(nodes).collect()
    }

    /// Whose an address is.
    pub(super) fn owner(&self, addr: IpAddr) -> Option<String> {
        if let Some(node) = self.nodes.get(&addr) {
            return Some(format!("the address of node {node}"));
        }
        if let Some(net) = self.service_cidrs.iter().find(|net| net.contains(&addr)) {
            return Some(format!("in {net}, where ClusterIPs come from"));
        }
        let is_special = special().any(|range| range.contains(addr));
        is_special.then(|| "not an address that a load balancer can have".to_owned())
    }
}

fn special() -> impl Iterator<Item = Range> {
    // A test reads each of them.
    SPECIAL.iter().filter_map(|text| Range::parse(text).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_special_range_is_a_range() {
        assert_eq!(special().count(), SPECIAL.len());
    }

    #[test]
    fn what_is_reserved_says_whose_it_is() {
        let reserved = Reserved {
            nodes: [("192.0.2.9".parse().unwrap(), "n1".to_owned())].into(),
            service_cidrs: vec!["10.96.0.0/12".parse().unwrap()],
        };
        let set = reserved.set();
        for (addr, part) in [
            ("192.0.2.9", Some("node n1")),
            ("10.111.255.255", Some("10.96.0.0/12")),
            ("127.3.0.1", Some("can have")),
            ("ff02::1", Some("can have")),
            ("192.0.2.8", None),
            ("2001:db8::1", None),
        ] {
            let addr = addr.parse().unwrap();
            let owner = reserved.owner(addr);
            assert_eq!(set.contains(addr), part.is_some(), "{addr}");
            assert!(owner.as_deref().unwrap_or("").contains(part.unwrap_or("")), "{owner:?}");
            assert_eq!(owner.is_some(), part.is_some(), "{addr}");
        }
    }
}
