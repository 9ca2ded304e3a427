//! What the allocation does: a world of objects in which decisions are carried out.

mod model;
mod properties;
mod scenarios;

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Service;
use serde_json::{Value, json};

use super::resources::{IpAddressPool, Read, read};
use super::*;
use crate::model::Problem;
use crate::problem::Problems;
use crate::source::{Kind, ObjectId, Sourced};

/// A cluster, as far as it matters here.
#[derive(Default)]
struct World {
    services: BTreeMap<String, Service>,
    pools: BTreeMap<(String, String), Sourced<Read<IpAddressPool>>>,
    namespaces: BTreeMap<String, Labels>,
    reserved: Reserved,
    pool_namespaces: BTreeSet<String>,
    is_exclusive: bool,
    allocator: Allocator,
    clock: i64,
}

pub(super) fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// `namespace/name`, in namespace "default" if only a name is given.
fn key(name: &str) -> (String, String) {
    let (namespace, name) = name.split_once('/').unwrap_or(("default", name));
    (namespace.to_owned(), name.to_owned())
}

fn id(name: &str) -> ObjectId {
    let (namespace, name) = key(name);
    ObjectId::new(Kind::Service, Some(&namespace), &name)
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

impl World {
    /// A world with one pool, "a".
    fn with_pool(addresses: &[&str]) -> Self {
        let mut world = Self::default();
        world.pool("a", json!({"addresses": addresses}));
        world
    }

    fn now(&mut self) -> String {
        self.clock += 1;
        let seconds = self.clock;
        format!(
            "2026-01-01T{:02}:{:02}:{:02}Z",
            seconds / 3600 % 24,
            seconds / 60 % 60,
            seconds % 60
        )
    }

    /// Makes or changes a pool.
    fn pool(&mut self, name: &str, spec: Value) {
        let key =
            if name.contains('/') { key(name) } else { key(&format!("metallb-system/{name}")) };
        let known = self.pools.get(&key);
        let created = known.and_then(|p| p.object.object.metadata.creation_timestamp.clone());
        let created = match created {
            Some(time) => serde_json::to_value(time).unwrap(),
            None => json!(self.now()),
        };
        let pool = json!({
            "metadata": {"namespace": key.0, "name": key.1, "creationTimestamp": created},
            "spec": spec,
        });
        self.pools.insert(key, Sourced::new("", read(&pool).unwrap()));
    }

    fn drop_pool(&mut self, name: &str) {
        self.pools.remove(&key(&format!("metallb-system/{name}"))).unwrap();
    }

    /// Makes or changes a Service: IPv4, port 80, no class. `more` says what is different.
    fn service(&mut self, name: &str, more: Value) {
        let (namespace, short) = key(name);
        let now = self.now();
        let known = self.services.get(name);
        let (uid, created, annotations) = match known {
            Some(Service { metadata, .. }) => (
                json!(metadata.uid),
                serde_json::to_value(&metadata.creation_timestamp).unwrap(),
                // What the allocation has written stays.
                json!(
                    metadata
                        .annotations
                        .iter()
                        .flatten()
                        .filter(|(key, _)| {
                            [POOL_ANNOTATION, OLD_POOL_ANNOTATION].contains(&key.as_str())
                        })
                        .collect::<BTreeMap<_, _>>()
                ),
            ),
            None => (json!(format!("{name}-{now}")), json!(now), json!({})),
        };
        let status = known.map(|service| serde_json::to_value(&service.status).unwrap());
        let mut service = json!({
            "metadata": {
                "namespace": namespace, "name": short, "uid": uid, "creationTimestamp": created,
                "resourceVersion": now, "annotations": annotations,
            },
            "spec": {
                "type": "LoadBalancer", "clusterIP": "10.96.0.1",
                "ports": [{"port": 80}], "selector": {"app": short},
            },
            "status": status,
        });
        merge(&mut service, more);
        self.services.insert(name.to_owned(), serde_json::from_value(service).unwrap());
    }

    fn delete(&mut self, name: &str) {
        self.services.remove(name).unwrap();
    }

    /// The agent starts again, or another one takes over.
    fn restart(&mut self) {
        self.allocator = Allocator::default();
    }

    fn pools(&self) -> (Pools, Vec<Problem>) {
        let mut problems = Problems::default();
        let pools: Vec<_> = self.pools.values().cloned().collect();
        let pools = Pools::new(&pools, self.reserved.clone(), &self.pool_namespaces, &mut problems);
        (pools, problems.into_sorted())
    }

    /// Object, field and message of all problems with pools.
    fn problems(&self) -> Vec<String> {
        self.pools().1.iter().map(Problem::to_string).collect()
    }

    /// One pass. Nothing is carried out.
    fn pass(&mut self) -> Outcome {
        let services: Vec<std::sync::Arc<Service>> =
            self.services.values().cloned().map(Into::into).collect();
        let input = Input {
            services: &services,
            namespaces: &self.namespaces,
            pools: &self.pools().0,
            adopt_classless: !self.is_exclusive,
        };
        self.allocator.run(&input)
    }

    /// Writes what a pass has decided.
    fn carry_out(&mut self, outcome: &Outcome) -> bool {
        let mut is_changed = false;
        for service in self.services.values_mut() {
            let id = ObjectId::of(Kind::Service, &service.metadata);
            let Some(decision) = outcome.services.get(&id).filter(|d| d.must_write) else {
                continue;
            };
            is_changed = true;
            decision.assignment.show(service);
            self.clock += 1;
            service.metadata.resource_version = Some(format!("written-{}", self.clock));
        }
        is_changed
    }

    /// Passes until nothing is left to do; what was told.
    fn settle(&mut self) -> Vec<Event> {
        let mut told = Vec::new();
        for _ in 0..10 {
            let outcome = self.pass();
            let is_changed = self.carry_out(&outcome);
            told.extend(outcome.events);
            if !is_changed {
                told.sort();
                told.dedup();
                return told;
            }
        }
        panic!("no end: {:?}", self.pass());
    }

    /// Settles, and what a Service then has, such as `192.0.2.0 of a`, or nothing.
    fn has(&mut self, name: &str) -> String {
        self.settle();
        self.shows(name)
    }

    fn shows(&self, name: &str) -> String {
        let Assignment { addresses, pool } = Assignment::shown(&self.services[name]);
        let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        match pool {
            Some(pool) => format!("{} of {pool}", addresses.join(",")),
            None => addresses.join(","),
        }
    }

    /// Why a Service has no address.
    fn failure(&mut self, name: &str) -> (&'static str, String) {
        self.settle();
        let outcome = self.pass();
        let decision = &outcome.services[&id(name)];
        let failure = decision.failure.clone().unwrap_or_else(|| panic!("{decision:?}"));
        let message = failure.message.clone();
        let expected = Event { service: id(name), reason: failure.reason, message };
        assert!(outcome.events.contains(&expected), "{outcome:?}");
        assert!(!decision.condition().is_true);
        (failure.reason.as_str(), failure.message)
    }

    fn counts(&mut self, pool: &str) -> PoolCounts {
        self.settle();
        self.pass().pools[&key(&format!("metallb-system/{pool}"))]
    }
}

/// Annotations of a Service, in the new spelling.
fn annotated(pairs: &[(&str, &str)]) -> Value {
    let pairs: BTreeMap<String, &str> =
        pairs.iter().map(|(name, value)| (format!("metallb.io/{name}"), *value)).collect();
    json!({"metadata": {"annotations": pairs}})
}

/// Both of two descriptions.
fn and(mut a: Value, b: Value) -> Value {
    merge(&mut a, b);
    a
}

/// A Service of both families.
fn dual(policy: &str) -> Value {
    let ips = ["10.96.0.1", "fd00::1"];
    json!({"spec": {"clusterIP": ips[0], "clusterIPs": ips, "ipFamilyPolicy": policy}})
}

fn reasons(events: &[Event], name: &str) -> Vec<&'static str> {
    let service = id(name);
    events.iter().filter(|e| e.service == service).map(|e| e.reason.as_str()).collect()
}
