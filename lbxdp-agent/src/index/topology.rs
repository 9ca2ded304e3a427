//! Hints: which endpoints are meant for this node or its zone.
//!
//! Hints are all there is. `spec.trafficDistribution` and the topology annotations tell the
//! controller which hints to write, and nobody else (KEP-3015, KEP-4444).

use k8s_openapi::api::discovery::v1::EndpointHints;

use super::slices::Endpoint;

/// What `forNodes` says to the node with this name.
pub(super) fn for_node(hints: Option<&EndpointHints>, node: &str) -> Hint {
    let nodes = hints.and_then(|hints| hints.for_nodes.as_deref()).unwrap_or_default();
    Hint::of(nodes.iter().map(|node| node.name.as_str()), Some(node))
}

/// The zones of `forZones`.
pub(super) fn zones(hints: Option<&EndpointHints>) -> impl Iterator<Item = &str> {
    let zones = hints.and_then(|hints| hints.for_zones.as_deref()).unwrap_or_default();
    zones.iter().map(|zone| zone.name.as_str())
}

/// What the hints of an endpoint say of one level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Hint {
    /// Nothing.
    #[default]
    Absent,
    /// It is meant for others.
    Elsewhere,
    /// It is meant for this node, or for its zone.
    Here,
}

impl Hint {
    /// What these names say to one who has the name `here`.
    pub(super) fn of<'a>(mut names: impl Iterator<Item = &'a str>, here: Option<&str>) -> Self {
        let Some(first) = names.next() else { return Self::Absent };
        if here.is_some_and(|here| first == here || names.any(|name| name == here)) {
            Self::Here
        } else {
            Self::Elsewhere
        }
    }
}

/// The hints of an endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Hints {
    /// `forNodes`.
    pub node: Hint,
    /// `forZones`.
    pub zone: Hint,
}

impl Hints {
    /// Of two that say different things the one that allows more.
    pub(super) fn merge(self, other: Self) -> Self {
        Self { node: self.node.max(other.node), zone: self.zone.max(other.zone) }
    }
}

/// How near the endpoints of a Service port have to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    /// Those meant for this node.
    Node,
    /// Those meant for this zone.
    Zone,
    /// All of them.
    Anywhere,
}

impl Level {
    /// All or nothing: one endpoint without a hint turns a level off for the whole Service port,
    /// because whoever wrote the hints has not thought of it; so does a level that would leave
    /// nothing (kube-proxy `topologyModeFromHints`).
    pub(super) fn of<'a>(ready: impl Iterator<Item = &'a Endpoint> + Clone) -> Self {
        let applies = |hint: fn(&Hints) -> Hint| {
            let mut hints = ready.clone().map(|endpoint| hint(&endpoint.hints));
            hints.clone().all(|hint| hint != Hint::Absent) && hints.any(|hint| hint == Hint::Here)
        };
        if applies(|hints| hints.node) {
            Self::Node
        } else if applies(|hints| hints.zone) {
            Self::Zone
        } else {
            Self::Anywhere
        }
    }

    /// Whether an endpoint is near enough.
    pub(super) fn allows(self, hints: &Hints) -> bool {
        match self {
            Self::Node => hints.node == Hint::Here,
            Self::Zone => hints.zone == Hint::Here,
            Self::Anywhere => true,
        }
    }
}
