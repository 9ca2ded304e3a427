//! What differs between one desired state and the next, so that a change of one Service costs what
//! that Service costs.
//!
//! To say too much is no mistake: what is named and did not change is compared and left alone. What
//! is not named is not looked at until the next [`Changes::All`].

use std::collections::BTreeSet;
use std::net::SocketAddr;

use crate::model::{FrontendAddr, Protocol};

/// What may differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changes {
    /// Anything.
    All,
    /// These, and nothing else.
    Some(Touched),
}

/// Parts of a desired state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Frontends that came, went or differ. With one of a Service all of that Service's are here,
    /// before and after, because they share what holds for their clients.
    pub frontends: BTreeSet<FrontendAddr>,
    /// Backends that are on this node by now, or not any more.
    pub backends: BTreeSet<SocketAddr>,
    /// Health checks differ.
    pub health_checks: bool,
}

impl Default for Changes {
    fn default() -> Self {
        Self::Some(Touched::default())
    }
}

impl Changes {
    /// Adds others.
    pub fn merge(&mut self, other: Self) {
        match (&mut *self, other) {
            (Self::All, _) => {}
            (_, Self::All) => *self = Self::All,
            (Self::Some(all), Self::Some(more)) => {
                all.frontends.extend(more.frontends);
                all.backends.extend(more.backends);
                all.health_checks |= more.health_checks;
            }
        }
    }

    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// How many frontends may differ; `None` if that is not known.
    pub fn frontends(&self) -> Option<usize> {
        match self {
            Self::All => None,
            Self::Some(touched) => Some(touched.frontends.len()),
        }
    }

    /// Whether UDP frontends may differ.
    pub fn has_udp(&self) -> bool {
        match self {
            Self::All => true,
            Self::Some(touched) => {
                touched.frontends.iter().any(|addr| addr.protocol == Protocol::Udp)
            }
        }
    }

    /// Whether health checks may differ.
    pub const fn health_checks(&self) -> bool {
        match self {
            Self::All => true,
            Self::Some(touched) => touched.health_checks,
        }
    }
}
