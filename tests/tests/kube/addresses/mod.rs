//! Addresses for Services of type LoadBalancer: what is asked for by objects, and what they show then.
//!
//! Scenarios have numbers: A of allocation, L of the local network, F of failures. Most have tests in several
//! places: `vip` stands for the tests of `lbxdp_agent::vip`, `layer2` and `members` for those of these
//! modules, all without a kernel; `packets`, `life` and `lab` are beside this one.
//!
//! | | is about | tests |
//! |---|---|---|
//! | A1 | addresses from ranges and prefixes | `vip` `a01_…`, `giving` `a01_…` |
//! | A2 | an address or a pool that is asked for | `vip` `a02_…`, `giving` `a01_…` |
//! | A3 | what cannot be had | `vip` `a03_…`, `giving` `a01_…` |
//! | A4 | what is given up somebody else gets | `vip` `a04_…`, `giving` `a04_…` |
//! | A5 | restarts | `vip` `a05_…` and the property test, `holders` `a05_…` |
//! | A6 | sharing | `vip` `a06_…`, `giving` `a04_…`, `layer2` `who_shares_an_address_has_one_owner` |
//! | A7 | pools that go | `vip` `a07_…`, `pools` `a07_…` |
//! | A8 | pools for namespaces and Services | `vip` `a08_…`, `giving` `a08_…` |
//! | A9 | dual stack | `vip` `a09_…`, `giving` `a08_…` |
//! | A10 | counters and exhaustion | `vip` `a10_…`, `pools` `a10_…` |
//! | A11 | overlap and wrong namespaces | `vip` `a11_…`, `pools` `a10_…` |
//! | A12 | classes | `vip` `a12_…`, `giving` `a08_…`, `metallb` `a12_…` |
//! | A13 | ranges that are added, `avoidBuggyIPs` | `vip` `a13_…`, `giving` `a08_…` |
//! | A14 | metrics | `metrics` `a14_…` |
//! | L1 | reachable, both families and policies | `life` `layer2`, `lab` `layer2` |
//! | L2 | ServiceL2Status | `told` `statuses_and_events_…` |
//! | L3 | nodes without a network, or excluded | `layer2` `choice`, `announcing` |
//! | L4 | selected nodes | `layer2` `choice`, `announcing` |
//! | L5 | devices | `layer2` `choice` and `share`, `life` `layer2`, `told` |
//! | L6 | preferred nodes, selected Services | `layer2` `choice` and `share`, `vip` `advertise` |
//! | L7 | frames on the wire | `life` `layer2`, `layer2` `bursts` and `frames` |
//! | L8 | neighbour discovery | `packets` `neighbours`, `layer2` `wire` |
//! | L9 | devices that come and go (not VLANs and bonds) | `life` `layer2` |
//! | L10 | no answers by other devices or nodes | `packets` `neighbours`, `life` `layer2` |
//! | L11 | the last endpoint goes and comes | `layer2` `choice`, `life` `layer2` |
//! | F1 | a lost agent, node, link | `members` `scenarios`, `life` `layer2` and `members`, `announcing`, `lab` `layer2` |
//! | F2 | leases, partitions | `members` `scenarios`, `holders`, `members` beside this one |
//! | F3 | no API | `announcing`, `holders` |
//! | F4 | agents that are replaced | `announcing`, `life` `layer2`, `lab` `layer2`; upgrades are in `life` `upgrade` |
//! | F5 | announced and silent within 2 s | `told` `statuses_and_events_…` |
//! | F6 | never two | `announcing`, `told`: looked at in every step; `lab` `layer2`: all the time |

mod announcing;
mod giving;
mod holders;
mod metallb;
mod metrics;
mod pools;
mod told;

use std::time::Duration;

use lbxdp_tests::chart::definitions;
use lbxdp_tests::kube::Api;
use lbxdp_tests::process::wait_until;
use lbxdp_tests::{Agent, AgentOptions, Spec};
use serde_json::{Value, json};

use crate::world::{LONG, World};

/// The class of Services that are always served.
const CLASS: &str = "lbxdp.io/lbxdp";
/// By when an address is there, the lease included. Other tests keep the machine busy.
const GIVEN_WITHIN: Duration = Duration::from_secs(20);
/// Where pools are.
const POOLS: &str = "metallb-system";

/// An API with the definitions of pools, and so many nodes.
#[track_caller]
fn world(nodes: usize) -> Option<World> {
    world_of(&Spec { pods: vec![1; nodes], ..Spec::default() })
}

/// The same with nodes like these.
#[track_caller]
fn world_of(spec: &Spec) -> Option<World> {
    let world = World::of(1, spec)?;
    let api = world.plane.api();
    api.apply(&definitions().expect("the definitions"));
    for namespace in [POOLS, "shop"] {
        api.apply(&[json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": { "name": namespace, "labels": { "name": namespace } },
        })]);
    }
    for plural in ["ipaddresspools", "l2advertisements"] {
        wait_until("the API knows pools", LONG, || {
            api.get(&format!("/apis/metallb.io/v1beta1/{plural}")).is_some()
        });
    }
    api.apply(&[advertisement()]);
    Some(world)
}

/// An agent that also serves Services without a class.
#[track_caller]
fn adopting(world: &World, node: usize) -> Agent {
    let extra = vec!["--adopt-classless".to_owned()];
    world.agent_on(node, AgentOptions { extra, ..AgentOptions::default() })
}

/// A pool in the usual namespace.
fn pool(name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "metallb.io/v1beta1", "kind": "IPAddressPool",
        "metadata": { "name": name, "namespace": POOLS }, "spec": spec,
    })
}

/// A pool of these addresses and nothing special.
fn addresses(name: &str, addresses: &[&str]) -> Value {
    pool(name, json!({ "addresses": addresses }))
}

/// About every pool.
fn advertisement() -> Value {
    json!({
        "apiVersion": "metallb.io/v1beta1", "kind": "L2Advertisement",
        "metadata": { "name": "all", "namespace": POOLS }, "spec": {},
    })
}

/// A Service of type LoadBalancer in the namespace `default`; annotations are MetalLB's.
fn service(name: &str, annotations: &[(&str, &str)], spec: Value) -> Value {
    let annotations: serde_json::Map<_, _> = annotations
        .iter()
        .map(|(name, value)| (format!("metallb.io/{name}"), json!(value)))
        .collect();
    let mut object = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": name, "namespace": "default", "annotations": annotations },
        "spec": {
            "type": "LoadBalancer", "selector": { "app": name },
            "ports": [{ "name": "http", "port": 80, "protocol": "TCP" }],
        },
    });
    for (field, value) in spec.as_object().expect("fields") {
        object["spec"][field] = value.clone();
    }
    object
}

fn path(name: &str) -> String {
    format!("/api/v1/namespaces/default/services/{name}")
}

/// What a Service shows: `192.0.2.0,2001:db8:: of a`, or nothing.
fn shows(api: &Api, name: &str) -> String {
    let service = api.get(&path(name)).unwrap_or_default();
    let ingress = service.pointer("/status/loadBalancer/ingress").and_then(Value::as_array);
    let addresses = ingress.into_iter().flatten().map(|it| it["ip"].as_str().unwrap_or("?"));
    let addresses = addresses.collect::<Vec<_>>().join(",");
    match service["metadata"]["annotations"]["metallb.io/ip-allocated-from-pool"].as_str() {
        Some(pool) => format!("{addresses} of {pool}"),
        None => addresses,
    }
}

#[track_caller]
fn wait_shows(api: &Api, name: &str, expected: &str) {
    wait_until(&format!("{name} shows {expected:?}"), GIVEN_WITHIN, || {
        shows(api, name) == expected
    });
}

/// Status, reason and message of the condition that says whether a Service has its addresses.
fn condition(api: &Api, name: &str) -> (String, String, String) {
    let service = api.get(&path(name)).unwrap_or_default();
    condition_of(&service, "lbxdp.io/AddressAllocated")
}

fn condition_of(object: &Value, kind: &str) -> (String, String, String) {
    let all = object.pointer("/status/conditions").and_then(Value::as_array);
    let found = all.into_iter().flatten().find(|condition| condition["type"] == kind);
    let text = |field: &str| found.and_then(|it| it[field].as_str()).unwrap_or_default().to_owned();
    (text("status"), text("reason"), text("message"))
}

/// Waits until a Service says that it has no address, for a reason with this part.
#[track_caller]
fn wait_fails(api: &Api, name: &str, part: &str) {
    wait_until(&format!("{name} has none: {part}"), GIVEN_WITHIN, || {
        let (status, _, message) = condition(api, name);
        status == "False" && message.contains(part)
    });
}

/// The object of a pool.
fn pool_object(api: &Api, namespace: &str, name: &str) -> Value {
    let path = format!("/apis/metallb.io/v1beta1/namespaces/{namespace}/ipaddresspools/{name}");
    api.get(&path).unwrap_or_default()
}

/// Type, reason and note of the Events about an object.
fn events(api: &Api, kind: &str, name: &str) -> Vec<(String, String, String)> {
    let list = api.get("/apis/events.k8s.io/v1/events").unwrap_or_default();
    let items = list["items"].as_array().cloned().unwrap_or_default();
    let about = |event: &Value| {
        event["regarding"]["kind"] == kind
            && event["regarding"]["name"] == name
            && event["reportingController"] == "lbxdp"
    };
    let text = |event: &Value, field: &str| event[field].as_str().unwrap_or_default().to_owned();
    let all = items.iter().filter(|event| about(event));
    all.map(|it| (text(it, "type"), text(it, "reason"), text(it, "note"))).collect()
}

/// Waits for an Event about an object, with this reason and this part of a note.
#[track_caller]
fn wait_event(api: &Api, (kind, name): (&str, &str), reason: &str, part: &str) {
    wait_until(&format!("{kind} {name}: {reason}: {part}"), GIVEN_WITHIN, || {
        let events = events(api, kind, name);
        events.iter().any(|(_, found, note)| found == reason && note.contains(part))
    });
}
