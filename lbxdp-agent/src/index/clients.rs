//! What a Service says about its clients: `loadBalancerSourceRanges` and `sessionAffinity`.

use std::collections::BTreeSet;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::ServiceSpec;
use lbxdp_common::FrontendKind;

use super::config::Config;
use crate::model::{Clients, Family, Reason};
use crate::problem::{Reporter, quoted};

/// The time-out that the API server writes where none is given.
const DEFAULT_TIMEOUT: u32 = 10_800;
/// The longest time-out that the API server takes: a day.
const LONGEST_TIMEOUT: u32 = 86_400;

/// What holds for the clients of all ports of a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Rules {
    ranges: BTreeSet<IpNet>,
    /// Something in the list is no range, so a family without one may have been meant to have it.
    has_unreadable: bool,
    /// They hold for every kind of address.
    for_all_frontends: bool,
    affinity: u32,
}

impl Rules {
    /// Reads them.
    pub(super) fn of(spec: &ServiceSpec, config: &Config, report: &mut Reporter<'_>) -> Self {
        let mut rules = Self {
            for_all_frontends: config.source_ranges_all_frontends,
            affinity: affinity(spec, report),
            ..Self::default()
        };
        let written = spec.load_balancer_source_ranges.as_deref().unwrap_or_default();
        for (index, text) in written.iter().enumerate() {
            // Padding is accepted, so white space alone is no range.
            let text = text.trim();
            if text.is_empty() {
                continue;
            }
            if let Some(range) = range(text) {
                rules.ranges.insert(range);
                continue;
            }
            rules.has_unreadable = true;
            report.because(Reason::InvalidSourceRange).error(
                format!("spec.loadBalancerSourceRanges[{index}]"),
                format!(
                    "{} is not a range of addresses such as 192.0.2.0/24: nobody is admitted by it",
                    quoted(text)
                ),
            );
        }
        rules
    }

    /// What a frontend says about its clients.
    pub(super) fn clients(&self, kind: FrontendKind, family: Family) -> Clients {
        let is_restricted = match kind {
            FrontendKind::LoadBalancer | FrontendKind::ExternalIp => true,
            FrontendKind::ClusterIp | FrontendKind::NodePort => self.for_all_frontends,
        };
        let source_ranges = if is_restricted { self.source_ranges(family) } else { None };
        Clients { affinity: self.affinity, source_ranges }
    }

    /// The ranges of a family. None is written for a family that everybody may use. If that cannot
    /// be told, nobody may: open to everybody is the one thing that the author did not want.
    fn source_ranges(&self, family: Family) -> Option<BTreeSet<IpNet>> {
        let is_of_family = |range: &&IpNet| Family::of(range.addr()) == family;
        let ranges: BTreeSet<IpNet> = self.ranges.iter().filter(is_of_family).copied().collect();
        (self.has_unreadable || !ranges.is_empty()).then_some(ranges)
    }
}

/// A range as Go's `net.ParseCIDR` reads it: bits behind the prefix do not count. Not an IPv4
/// range written as IPv6, as it is not clear which family is meant.
fn range(text: &str) -> Option<IpNet> {
    let range = text.parse::<IpNet>().ok()?.trunc();
    match range {
        IpNet::V6(v6) if v6.network().to_ipv4_mapped().is_some() => None,
        range => Some(range),
    }
}

/// Seconds for which a client keeps its backend, or zero.
fn affinity(spec: &ServiceSpec, report: &mut Reporter<'_>) -> u32 {
    match spec.session_affinity.as_deref() {
        None | Some("" | "None") => return 0,
        Some("ClientIP") => {}
        Some(other) => {
            let message = format!("{} is neither None nor ClientIP: None is used", quoted(other));
            report.error("spec.sessionAffinity", message);
            return 0;
        }
    }
    let config = spec.session_affinity_config.as_ref();
    let timeout = config.and_then(|config| config.client_ip.as_ref()?.timeout_seconds);
    let Some(timeout) = timeout else { return DEFAULT_TIMEOUT };
    match u32::try_from(timeout) {
        Ok(timeout @ 1..=LONGEST_TIMEOUT) => timeout,
        _ => {
            report.error(
                "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
                format!("{timeout} is not in 1..={LONGEST_TIMEOUT}: {DEFAULT_TIMEOUT} is used"),
            );
            DEFAULT_TIMEOUT
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_go_reads_them() {
        for (text, expected) in [
            ("10.0.0.0/8", Some("10.0.0.0/8")),
            ("10.1.2.3/8", Some("10.0.0.0/8")),
            ("0.0.0.0/0", Some("0.0.0.0/0")),
            ("192.0.2.1/32", Some("192.0.2.1/32")),
            ("2001:DB8::1/32", Some("2001:db8::/32")),
            ("::/0", Some("::/0")),
            ("10.0.0.1", None),
            ("2001:db8::1", None),
            ("10.0.0.0/33", None),
            ("10.0.0.0/-1", None),
            ("10.0.0/8", None),
            ("10.0.0.0/8/8", None),
            ("::ffff:10.0.0.0/104", None),
            ("all", None),
        ] {
            assert_eq!(range(text).map(|range| range.to_string()).as_deref(), expected, "{text}");
        }
    }
}
