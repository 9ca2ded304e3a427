//! How decisions are written: into objects, for the API and for a file.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{LoadBalancerIngress, LoadBalancerStatus, Service, ServiceStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{self as meta, Time};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::allocate::Outcome;
use super::report::{CONDITION, Condition, Decision};
use super::request::{Assignment, OLD_POOL_ANNOTATION, POOL_ANNOTATION};
use crate::source::{Kind, ObjectId};

impl Assignment {
    /// Makes a Service show it, as it does when the API has taken it.
    pub fn show(&self, service: &mut Service) {
        let load_balancer = LoadBalancerStatus { ingress: self.ingress() };
        service.status.get_or_insert_default().load_balancer = Some(load_balancer);
        let annotations = service.metadata.annotations.get_or_insert_default();
        annotations.remove(OLD_POOL_ANNOTATION);
        match &self.pool {
            Some(pool) => annotations.insert(POOL_ANNOTATION.to_owned(), pool.clone()),
            None => annotations.remove(POOL_ANNOTATION),
        };
    }

    /// Packets reach the node with these addresses, whence the mode.
    fn ingress(&self) -> Option<Vec<LoadBalancerIngress>> {
        let ingress = self.addresses.iter().map(|addr| LoadBalancerIngress {
            ip: Some(addr.to_string()),
            ip_mode: Some("VIP".to_owned()),
            ..LoadBalancerIngress::default()
        });
        Some(ingress.collect()).filter(|ingress: &Vec<_>| !ingress.is_empty())
    }
}

/// The merge patch of `services/status` that carries a decision out; `None` if the Service shows all
/// of it. Refused by the API if the Service has changed meanwhile: the decision may be another one
/// then.
pub fn patch(service: &Service, decision: &Decision, is_ours: bool, now: &Time) -> Option<Value> {
    let none = ServiceStatus::default();
    let shown = service.status.as_ref().unwrap_or(&none).conditions.as_deref().unwrap_or_default();
    let old = shown.iter().find(|condition| condition.type_ == CONDITION);
    let new = is_ours.then(|| condition(service, &decision.condition(), old, now));
    if !decision.must_write && old == new.as_ref() {
        return None;
    }
    let others = shown.iter().filter(|condition| condition.type_ != CONDITION);
    let conditions: Vec<_> = others.cloned().chain(new).collect();
    Some(json!({
        "metadata": {
            "resourceVersion": service.metadata.resource_version,
            "annotations": {POOL_ANNOTATION: decision.assignment.pool, OLD_POOL_ANNOTATION: null},
        },
        "status": {
            "loadBalancer": {"ingress": decision.assignment.ingress()},
            "conditions": conditions,
        },
    }))
}

/// The condition with the time since when it is so.
fn condition(
    service: &Service,
    new: &Condition,
    old: Option<&meta::Condition>,
    now: &Time,
) -> meta::Condition {
    let status = if new.is_true { "True" } else { "False" };
    let since = old.filter(|old| old.status == status).map(|old| &old.last_transition_time);
    let message = new.message.clone();
    // Only what is said counts: a new generation alone is not worth a write.
    let is_same = |old: &&meta::Condition| {
        (old.status.as_str(), old.reason.as_str(), &old.message) == (status, new.reason, &message)
    };
    let generation =
        old.filter(is_same).map_or(service.metadata.generation, |old| old.observed_generation);
    meta::Condition {
        last_transition_time: since.unwrap_or(now).clone(),
        message,
        observed_generation: generation,
        reason: new.reason.to_owned(),
        status: status.to_owned(),
        type_: CONDITION.to_owned(),
    }
}

/// What all Services have, where no API remembers it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// By `namespace/name`.
    services: BTreeMap<String, Assignment>,
}

impl State {
    /// Whether nobody has anything.
    pub fn is_empty(&self) -> bool {
        self.services.is_empty()
    }

    /// Makes a Service show what it has. Whatever its file says of that is a copy from elsewhere.
    pub fn show(&self, service: &mut Service) {
        let none = Assignment::default();
        let id = ObjectId::of(Kind::Service, &service.metadata);
        self.services.get(&key(&id)).unwrap_or(&none).show(service);
    }

    /// Takes decisions over; `false` if they change nothing.
    pub fn update(&mut self, outcome: &Outcome) -> bool {
        let mut services = BTreeMap::new();
        for (id, decision) in &outcome.services {
            if !decision.assignment.addresses.is_empty() {
                services.insert(key(id), decision.assignment.clone());
            }
        }
        let is_changed = services != self.services;
        self.services = services;
        is_changed
    }
}

fn key(ObjectId { namespace, name, .. }: &ObjectId) -> String {
    format!("{namespace}/{name}")
}
