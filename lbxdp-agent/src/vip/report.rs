//! What a pass tells: to the authors of Services, and to those who watch pools.

use std::fmt;
use std::net::IpAddr;

use super::request::Assignment;
use crate::source::ObjectId;

/// Type of the condition on Services.
pub const CONDITION: &str = "lbxdp.io/AddressAllocated";

/// Reasons of Events, in the words of MetalLB: dashboards and scripts look for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// A Service has got addresses.
    IpAllocated,
    /// A Service gets none.
    AllocationFailed,
    /// A Service loses an address that it may not have.
    ClearAssignment,
    /// A Service that prefers two families stays with one.
    AdditionalAssignFailed,
    /// A Service requires two families and has ClusterIPs of one.
    NotEnoughClusterIps,
    /// A Service's ClusterIPs cannot be read.
    NoClusterIpFamily,
    /// A Service has an address and asks for something that cannot be read.
    LoadBalancerFailed,
    /// A Service has an annotation of the old prefix.
    DeprecatedAnnotation,
}

impl Reason {
    /// The reason as Events have it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::IpAllocated => "IPAllocated",
            Self::AllocationFailed => "AllocationFailed",
            Self::ClearAssignment => "ClearAssignment",
            Self::AdditionalAssignFailed => "AdditionalAssignFailed",
            Self::NotEnoughClusterIps => "not enough clusterips",
            Self::NoClusterIpFamily => "noclusterIPsIPFamily",
            Self::LoadBalancerFailed => "LoadBalancerFailed",
            Self::DeprecatedAnnotation => "deprecatedAnnotation",
        }
    }

    /// The reason as conditions have it: an identifier.
    pub const fn as_identifier(self) -> &'static str {
        match self {
            Self::NotEnoughClusterIps => "NotEnoughClusterIPs",
            Self::NoClusterIpFamily => "NoClusterIPFamily",
            Self::DeprecatedAnnotation => "DeprecatedAnnotation",
            _ => self.as_str(),
        }
    }

    /// Whether something is not as the author wants it.
    pub const fn is_warning(self) -> bool {
        !matches!(self, Self::IpAllocated | Self::ClearAssignment | Self::AdditionalAssignFailed)
    }
}

/// Something that the author of a Service is to know.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Event {
    /// The Service.
    pub service: ObjectId,
    /// What kind of thing.
    pub reason: Reason,
    /// What exactly.
    pub message: String,
}

/// Why a Service does not have what it asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What kind of failure.
    pub reason: Reason,
    /// What exactly.
    pub message: String,
}

/// What a pass decides about one Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// The addresses that it has from now on.
    pub assignment: Assignment,
    /// Whether its status or its annotation shows something else.
    pub must_write: bool,
    /// Why it has none, or not all.
    pub failure: Option<Failure>,
}

/// A condition, without the times that its writer adds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// `True`?
    pub is_true: bool,
    /// Why, as an identifier.
    pub reason: &'static str,
    /// Why, in words.
    pub message: String,
}

impl Decision {
    /// What [`CONDITION`] says about the Service.
    pub fn condition(&self) -> Condition {
        let Assignment { addresses, pool } = &self.assignment;
        match &self.failure {
            Some(Failure { reason, message }) => Condition {
                is_true: false,
                reason: reason.as_identifier(),
                message: message.clone(),
            },
            None => Condition {
                is_true: true,
                reason: Reason::IpAllocated.as_identifier(),
                message: format!(
                    "{} of pool {}",
                    Listed(addresses),
                    pool.as_deref().unwrap_or("?")
                ),
            },
        }
    }
}

/// Addresses of one family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// That could be given out if nobody had any; [`u64::MAX`] if they are more.
    pub total: u64,
    /// That Services have.
    pub assigned: u64,
    /// That Services may still get; [`u64::MAX`] if they are more.
    pub available: u64,
}

/// What a pool has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolCounts {
    /// IPv4.
    pub v4: Counts,
    /// IPv6.
    pub v6: Counts,
}

impl From<PoolCounts> for super::resources::IpAddressPoolStatus {
    fn from(PoolCounts { v4, v6 }: PoolCounts) -> Self {
        let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        Self {
            assigned_ipv4: number(v4.assigned),
            assigned_ipv6: number(v6.assigned),
            available_ipv4: number(v4.available),
            available_ipv6: number(v6.available),
        }
    }
}

/// Things one after the other.
pub(super) struct Listed<'a, T>(pub &'a [T]);

impl<T: fmt::Display> fmt::Display for Listed<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, thing) in self.0.iter().enumerate() {
            let comma = if index > 0 { ", " } else { "" };
            write!(f, "{comma}{thing}")?;
        }
        Ok(())
    }
}

/// "192.0.2.1 is", "192.0.2.1, 2001:db8::1 are".
pub(super) fn are(addresses: &[IpAddr]) -> String {
    let verb = if addresses.len() == 1 { "is" } else { "are" };
    format!("{} {verb}", Listed(addresses))
}
