//! What the operator decides about Services, as the flags say it.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

/// The rules that no object can change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// `spec.externalIPs` in these ranges are served (`--allow-external-ips`). None by default:
    /// whoever may write a Service could take any address with them (CVE-2020-8554).
    pub allow_external_ips: Vec<IpNet>,
    /// Where NodePorts are served (`--nodeport-addresses`); on the primary addresses if empty.
    pub node_port_addresses: Vec<NodePortAddresses>,
    /// `spec.loadBalancerSourceRanges` also restricts ClusterIPs and NodePorts
    /// (`--source-ranges-all-frontends`).
    pub source_ranges_all_frontends: bool,
}

impl Config {
    /// Whether `spec.externalIPs` may name this address.
    pub(super) fn allows_external(&self, addr: IpAddr) -> bool {
        self.allow_external_ips.iter().any(|range| range.contains(&addr))
    }

    /// Whether NodePorts are served on the primary addresses.
    pub(super) fn has_primary(&self) -> bool {
        let named = &self.node_port_addresses;
        named.is_empty() || named.contains(&NodePortAddresses::Primary)
    }

    /// Whether NodePorts are served on any of the node's addresses within some range.
    pub(super) fn has_node_port_ranges(&self) -> bool {
        self.node_port_ranges().next().is_some()
    }

    /// Whether a range of NodePort addresses has this one.
    pub(super) fn has_node_ports(&self, addr: IpAddr) -> bool {
        self.node_port_ranges().any(|range| range.contains(&addr))
    }

    fn node_port_ranges(&self) -> impl Iterator<Item = &IpNet> {
        self.node_port_addresses.iter().filter_map(|addresses| match addresses {
            NodePortAddresses::Primary => None,
            NodePortAddresses::In(range) => Some(range),
        })
    }
}

/// One value of `--nodeport-addresses`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// The first `InternalIP` of each family.
    Primary,
    /// The addresses of the node's devices in a range.
    In(IpNet),
}

impl fmt::Display for NodePortAddresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Primary => f.write_str("primary"),
            Self::In(range) => range.fmt(f),
        }
    }
}

impl FromStr for NodePortAddresses {
    type Err = RangeError;

    fn from_str(text: &str) -> Result<Self, RangeError> {
        if text.trim() == "primary" {
            return Ok(Self::Primary);
        }
        let range = range(text)?;
        if range.network().is_loopback() {
            return Err(RangeError::Loopback);
        }
        Ok(Self::In(range))
    }
}

/// Why a range is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// Not a range.
    #[error("not a range of addresses such as 192.0.2.0/24 or 2001:db8::/32")]
    Syntax,
    /// NodePorts on loopback.
    #[error("NodePorts are never served on loopback addresses")]
    Loopback,
}

/// A range of addresses as flags write it.
pub fn range(text: &str) -> Result<IpNet, RangeError> {
    text.trim().parse().map_err(|_| RangeError::Syntax)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_port_addresses_are_primary_or_a_range() {
        for text in ["primary", "10.0.0.0/8", "0.0.0.0/0", "::/0", "2001:db8::/32"] {
            let parsed: NodePortAddresses = format!(" {text} ").parse().unwrap();
            assert_eq!(parsed.to_string(), text);
        }
    }

    #[test]
    fn loopback_and_what_is_no_range_are_refused() {
        for (text, error) in [
            ("127.0.0.0/8", RangeError::Loopback),
            ("127.1.0.0/16", RangeError::Loopback),
            ("::1/128", RangeError::Loopback),
            ("", RangeError::Syntax),
            ("all", RangeError::Syntax),
            ("10.0.0.1", RangeError::Syntax),
            ("10.0.0.0/33", RangeError::Syntax),
        ] {
            assert_eq!(text.parse::<NodePortAddresses>(), Err(error), "{text}");
        }
        assert_eq!(range("192.0.2.1"), Err(RangeError::Syntax));
    }
}
