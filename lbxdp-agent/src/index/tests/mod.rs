//! One test for each rule. Every case runs with the objects added in both orders.

mod bad_input;
mod conflicts;
mod dead_nodes;
mod endpoints;
mod facts;
mod properties;
mod services;

use serde_json::{Value, json};

use super::*;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;

use crate::model::{Clients, FrontendAddr, Severity};

const NODE: &str = "node-1";

fn index(objects: impl IntoIterator<Item = Sourced<Object>>) -> Index {
    let mut index = Index::new(NODE);
    index.replace(objects);
    index
}

/// What follows from what an index has by now.
fn decided(index: &mut Index) -> (Desired, Vec<Problem>) {
    index.follow();
    (index.desired().clone(), index.problems().to_vec())
}

/// What follows from the objects, asserted to be the same in both orders.
fn desired(objects: &[Sourced<Object>]) -> (Desired, Vec<Problem>) {
    let forward = decided(&mut index(objects.iter().cloned()));
    let backward = decided(&mut index(objects.iter().rev().cloned()));
    assert_eq!(forward, backward);
    forward
}

/// A line for each frontend: `address kind name external | internal`.
fn frontends(objects: &[Sourced<Object>]) -> Vec<String> {
    lines(&desired(objects).0)
}

fn lines(desired: &Desired) -> Vec<String> {
    let line = |(addr, frontend): (&FrontendAddr, &Frontend)| {
        let Frontend { kind, name, external, internal, .. } = frontend;
        format!("{addr} {} {name} {} | {}", kind.as_str(), choice(external), choice(internal))
    };
    desired.frontends.iter().map(line).collect()
}

fn choice(endpoints: &Endpoints) -> String {
    match endpoints {
        Endpoints::Serve(addrs) => {
            addrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
        }
        Endpoints::Reject => "reject".to_owned(),
        Endpoints::Drop => "drop".to_owned(),
    }
}

/// The problems of all objects: severity, `object: field: message`.
fn problems(objects: &[Sourced<Object>]) -> Vec<String> {
    let show = |problem: Problem| {
        let Problem { severity, reason: _, origin: _, object, field, message } = problem;
        let severity = match severity {
            Severity::Warning => "warning",
            Severity::Error => "error",
        };
        format!("{severity}: {object}: {field}: {message}")
    };
    desired(objects).1.into_iter().map(show).collect()
}

fn object<T: serde::de::DeserializeOwned + Into<Object>>(value: Value) -> Sourced<Object> {
    let name = value.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
    let origin = format!("{name}.yaml");
    Sourced::new(origin, serde_json::from_value::<T>(value).unwrap().into())
}

fn service(name: &str, spec: Value) -> Sourced<Object> {
    object::<Service>(json!({"metadata": {"name": name}, "spec": spec}))
}

fn balanced(name: &str, spec: Value, ingress: Value) -> Sourced<Object> {
    let status = json!({"loadBalancer": {"ingress": ingress}});
    object::<Service>(json!({"metadata": {"name": name}, "spec": spec, "status": status}))
}

/// A Service `web` on 10.96.0.1:80 with fields added or replaced.
fn web(more: Value) -> Sourced<Object> {
    service("web", merge(json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}), more))
}

/// A load balancer `web` with NodePort 30080 and address 192.0.2.1.
fn web_balancer(more: Value) -> Sourced<Object> {
    let spec = json!({
        "type": "LoadBalancer", "clusterIP": "10.96.0.1",
        "ports": [{"port": 80, "nodePort": 30080}],
    });
    balanced("web", merge(spec, more), json!([{"ip": "192.0.2.1"}]))
}

fn slice(name: &str, service: &str, more: Value) -> Sourced<Object> {
    let value = json!({
        "metadata": {"name": name, "labels": {slices::SERVICE_NAME_LABEL: service}},
        "addressType": "IPv4", "ports": [{"port": 8080}],
    });
    object::<EndpointSlice>(merge(value, more))
}

/// A slice of `web` with these endpoints; those with `true` are on this node.
fn web_slice(endpoints: &[(&str, bool)]) -> Sourced<Object> {
    slice("web-1", "web", json!({"endpoints": on_nodes(endpoints)}))
}

fn on_nodes(endpoints: &[(&str, bool)]) -> Value {
    let endpoint = |(addr, local): &(&str, bool)| {
        let node = if *local { NODE } else { "node-2" };
        json!({"addresses": [addr], "nodeName": node})
    };
    endpoints.iter().map(endpoint).collect()
}

fn node(addresses: &[(&str, &str)]) -> Sourced<Object> {
    let addresses: Vec<_> =
        addresses.iter().map(|(kind, addr)| json!({"type": kind, "address": addr})).collect();
    object::<Node>(json!({"metadata": {"name": NODE}, "status": {"addresses": addresses}}))
}

fn this_node() -> Sourced<Object> {
    node(&[("InternalIP", "10.1.0.1")])
}

fn merge(mut value: Value, more: Value) -> Value {
    let (Value::Object(into), Value::Object(more)) = (&mut value, more) else { panic!() };
    into.extend(more);
    value
}
