//! A Service, as a pass looks at it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::Service;

use super::super::pool::Asker;
use super::super::request::{Assignment, Request, Role, Unanswerable};
use super::super::select::Labels;
use super::{Decided, Input, Version};
use crate::source::{Kind, ObjectId};

/// A Service, what it asks for and what it has.
pub(super) struct Claim<'a> {
    pub id: ObjectId,
    pub service: &'a Service,
    pub asker: Asker<'a>,
    pub role: Role,
    /// Seconds since 1970; those that do not say when come last.
    pub created: i64,
    /// What the object shows.
    pub shown: Assignment,
    /// What it has: that, or what was decided since.
    pub held: Assignment,
    pub request: Result<Request, Unanswerable>,
}

static NO_LABELS: Labels = Labels::new();

impl<'a> Claim<'a> {
    pub(super) fn new<S>(
        service: &'a Service,
        input: &Input<'a, S>,
        decided: &BTreeMap<ObjectId, Decided>,
    ) -> Self {
        let metadata = &service.metadata;
        let id = ObjectId::of(Kind::Service, metadata);
        let shown = Assignment::shown(service);
        let decided = decided.get(&id).filter(|decided| decided.version == Version::of(service));
        let held = decided.map_or_else(|| shown.clone(), |decided| decided.assignment.clone());
        let namespace = metadata.namespace.as_deref().unwrap_or_default();
        // Without pools nobody has asked for addresses from here: those without a class that name no
        // pool are somebody else's.
        let is_in_use = !input.pools.is_empty() || shown.pool.is_some();
        Self {
            id,
            service,
            asker: Asker {
                namespace,
                namespace_labels: input.namespaces.get(namespace),
                labels: metadata.labels.as_ref().unwrap_or(&NO_LABELS),
            },
            role: Role::of(service, &shown, input.adopt_classless && is_in_use),
            created: metadata.creation_timestamp.as_ref().map_or(i64::MAX, |t| t.0.as_second()),
            shown,
            held,
            request: Request::of(service),
        }
    }

    /// Addresses that it occupies until further notice, whether it may or not.
    pub(super) fn occupied(&self) -> impl Iterator<Item = IpAddr> {
        let all = self.shown.addresses.iter().chain(&self.held.addresses).copied();
        all.filter(|_| self.role != Role::None)
    }
}
