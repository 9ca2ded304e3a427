//! Endpoints on nodes that are dead.

use super::*;

const THERE: &str = "10.0.0.1";
const LOST: &str = "10.0.0.2";

fn endpoint(addr: &str, node: &str, more: Value) -> Value {
    merge(json!({"addresses": [addr], "nodeName": node}), more)
}

fn of_web(endpoints: &[Value]) -> Sourced<Object> {
    slice("web-1", "web", json!({ "endpoints": endpoints }))
}

fn dead(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(ToString::to_string).collect()
}

/// The external and internal choice of the only frontend, and how many endpoints are left out.
#[track_caller]
fn choices(index: &mut Index) -> (String, usize) {
    index.follow();
    let frontends: Vec<_> = index.desired().frontends.values().collect();
    let [frontend] = frontends.as_slice() else { panic!("{frontends:?}") };
    let text = format!("{} | {}", choice(&frontend.external), choice(&frontend.internal));
    (text, index.left_out())
}

#[test]
fn endpoints_of_a_dead_node_get_nothing_new_and_keep_what_they_have() {
    let endpoints = [endpoint(THERE, "node-2", json!({})), endpoint(LOST, "node-3", json!({}))];
    let mut index = index([web(json!({})), of_web(&endpoints)]);
    let both = format!("{THERE}:8080,{LOST}:8080");
    assert_eq!(choices(&mut index), (format!("{both} | {both}"), 0));

    assert!(index.set_dead_nodes(&dead(&["node-3"])));
    let one = format!("{THERE}:8080");
    assert_eq!(choices(&mut index), (format!("{one} | {one}"), 1));
    let frontend = index.desired().frontends.values().next().unwrap();
    assert_eq!(frontend.serving.iter().count(), 2, "UDP flows to it go on");

    // Read anew, it is left out still.
    index.apply(of_web(&endpoints));
    assert_eq!(choices(&mut index), (format!("{one} | {one}"), 1));
    assert!(!index.set_dead_nodes(&dead(&["node-3"])));
    assert!(index.set_dead_nodes(&dead(&[])));
    assert_eq!(choices(&mut index), (format!("{both} | {both}"), 0));
}

#[test]
fn the_last_endpoints_stay_whatever_is_dead() {
    let not_ready = json!({"conditions": {"ready": false}});
    for other in [None, Some(endpoint(THERE, "node-2", not_ready))] {
        let lost = endpoint(LOST, "node-3", json!({}));
        let endpoints: Vec<_> = [lost].into_iter().chain(other).collect();
        let mut index = index([web(json!({})), of_web(&endpoints)]);
        index.set_dead_nodes(&dead(&["node-3"]));
        let one = format!("{LOST}:8080");
        assert_eq!(choices(&mut index), (format!("{one} | {one}"), 0));
    }
}

/// What Kubernetes will say of the dead one some day has the same effect.
#[test]
fn terminating_ones_serve_if_all_that_are_ready_are_dead() {
    let ending = json!({"conditions": {"ready": false, "serving": true, "terminating": true}});
    let endpoints = [endpoint(THERE, "node-2", ending), endpoint(LOST, "node-3", json!({}))];
    let mut index = index([web(json!({})), of_web(&endpoints)]);
    index.set_dead_nodes(&dead(&["node-3"]));
    let one = format!("{THERE}:8080");
    assert_eq!(choices(&mut index), (format!("{one} | {one}"), 1));
}

/// Hints of a zone are for those that are there: where they name nobody else, all serve.
#[test]
fn hints_that_lead_to_the_dead_alone_are_not_followed() {
    let hint = |zone: &str| json!({"hints": {"forZones": [{"name": zone}]}});
    let this = object::<Node>(json!({
        "metadata": {"name": NODE, "labels": {"topology.kubernetes.io/zone": "a"}},
    }));
    let endpoints = [endpoint(THERE, "node-2", hint("b")), endpoint(LOST, "node-3", hint("a"))];
    let mut index = index([this, web(json!({})), of_web(&endpoints)]);
    let lost = format!("{LOST}:8080");
    assert_eq!(choices(&mut index), (format!("{lost} | {lost}"), 0));
    index.set_dead_nodes(&dead(&["node-3"]));
    let there = format!("{THERE}:8080");
    assert_eq!(choices(&mut index), (format!("{there} | {there}"), 1));
}

/// Local lists are this node's, which is alive; whoever has none there is not refused because of the dead.
#[test]
fn a_policy_local_sees_no_difference() {
    let policy = json!({"internalTrafficPolicy": "Local"});
    let lost = endpoint(LOST, "node-3", json!({}));
    for (first, expected) in [(NODE, format!("{THERE}:8080")), ("node-2", "drop".to_owned())] {
        let endpoints = [endpoint(THERE, first, json!({})), lost.clone()];
        let mut index = index([web(policy.clone()), of_web(&endpoints)]);
        index.set_dead_nodes(&dead(&["node-3"]));
        assert_eq!(choices(&mut index).0, format!("{expected} | {expected}"));
    }
}

#[test]
fn only_services_with_endpoints_on_the_node_are_decided_anew() {
    let endpoints = [endpoint(THERE, "node-2", json!({})), endpoint(LOST, "node-3", json!({}))];
    let other = service("other", json!({"clusterIP": "10.96.0.2", "ports": [{"port": 80}]}));
    let elsewhere = json!({"endpoints": [endpoint("10.0.0.3", "node-2", json!({}))]});
    let others = slice("other-1", "other", elsewhere);
    let mut index = index([web(json!({})), of_web(&endpoints), other, others]);
    index.follow();
    assert!(!index.set_dead_nodes(&dead(&["node-9"])), "nothing is there");
    assert_eq!(index.follow(), Changes::default());
    index.set_dead_nodes(&dead(&["node-3", "node-9"]));
    let Changes::Some(touched) = index.follow() else { panic!("everything") };
    let named: Vec<_> = touched.frontends.iter().map(|addr| addr.addr.to_string()).collect();
    assert_eq!(named, ["10.96.0.1"]);

    // A Service that is gone leaves nothing out.
    index.delete(&ObjectId::new(Kind::Service, Some("default"), "web"));
    index.follow();
    assert_eq!(index.left_out(), 0);
}
