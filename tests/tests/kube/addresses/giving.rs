//! Who gets which address.

use serde_json::{Value, json};

use super::{
    CLASS, addresses, adopting, condition, events, path, pool, service, shows, wait_event,
    wait_fails, wait_shows, world,
};

fn dual(policy: &str) -> Value {
    json!({ "ipFamilyPolicy": policy })
}

#[test]
#[ignore = "needs root"]
fn a01_a02_a03_addresses_are_given_and_asked_for_and_refused() {
    let Some(world) = world(1) else { return };
    let api = world.plane.api();
    api.apply(&[
        addresses("a", &["203.0.113.0/29", "2001:db8:ff::1-2001:db8:ff::9"]),
        pool("b", json!({ "addresses": ["198.51.100.0/30"], "autoAssign": false })),
    ]);
    let agent = adopting(&world, 0);

    // A1: from a prefix and from a range, of both families.
    api.apply(&[service("v4", &[], json!({}))]);
    wait_shows(api, "v4", "203.0.113.0 of a");
    api.apply(&[
        service("v6", &[], json!({ "ipFamilies": ["IPv6"] })),
        service("both", &[], dual("RequireDualStack")),
    ]);
    for name in ["v6", "both"] {
        wait_event(api, ("Service", name), "IPAllocated", "Assigned IP [");
    }
    assert!(shows(api, "v6").starts_with("2001:db8:ff::"), "{}", shows(api, "v6"));
    assert!(shows(api, "both").starts_with("203.0.113.1,2001:db8:ff::"), "{}", shows(api, "both"));
    let ingress = &api.get(&path("v4")).expect("a Service")["status"]["loadBalancer"]["ingress"];
    assert_eq!(*ingress, json!([{ "ip": "203.0.113.0", "ipMode": "VIP" }]));
    let said = condition(api, "v4");
    assert_eq!((said.0.as_str(), said.1.as_str()), ("True", "IPAllocated"));
    wait_event(api, ("Service", "v4"), "IPAllocated", "Assigned IP [\"203.0.113.0\"]");

    // A2: by the field, by annotation, by pool; such a pool gives nothing else.
    api.apply(&[
        service("field", &[], json!({ "loadBalancerIP": "203.0.113.5" })),
        service("annotated", &[("loadBalancerIPs", "203.0.113.6")], json!({})),
        service(
            "two",
            &[("loadBalancerIPs", "2001:db8:ff::9,203.0.113.7")],
            dual("RequireDualStack"),
        ),
        service("named", &[("address-pool", "b")], json!({})),
    ]);
    wait_shows(api, "field", "203.0.113.5 of a");
    wait_shows(api, "annotated", "203.0.113.6 of a");
    wait_shows(api, "two", "2001:db8:ff::9,203.0.113.7 of a");
    wait_shows(api, "named", "198.51.100.0 of b");

    // A3: what cannot be had leaves the Service pending, with condition and Event.
    let field = json!({ "loadBalancerIP": "203.0.113.4" });
    for (name, annotations, spec, part) in [
        ("x-both", &[("loadBalancerIPs", "203.0.113.4")][..], field, "both metallb.io/load"),
        ("x-family", &[("loadBalancerIPs", "2001:db8:ff::8")], json!({}), "the Service is IPv4"),
        ("x-outside", &[("loadBalancerIPs", "192.0.2.77")], json!({}), "192.0.2.77 is in no pool"),
        ("x-used", &[("loadBalancerIPs", "203.0.113.5")], json!({}), "default/field has it"),
        ("x-pool", &[("address-pool", "nowhere")], json!({}), "unknown pool \"nowhere\""),
    ] {
        api.apply(&[service(name, annotations, spec)]);
        wait_fails(api, name, part);
        wait_event(api, ("Service", name), "AllocationFailed", part);
        assert_eq!(shows(api, name), "", "{name}");
    }
    // Not again while it is the same.
    let told = events(api, "Service", "x-used");
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0].0, "Warning");
    assert_eq!(agent.get("/readyz").map(|(status, _)| status), Some(200));
}

#[test]
#[ignore = "needs root"]
fn a04_a06_addresses_are_given_back_and_shared() {
    let Some(world) = world(1) else { return };
    let api = world.plane.api();
    api.apply(&[addresses("a", &["203.0.113.1/32"])]);
    let _agent = adopting(&world, 0);

    // A4: what a Service gives up the pending one gets.
    api.apply(&[service("first", &[], json!({}))]);
    wait_shows(api, "first", "203.0.113.1 of a");
    api.apply(&[service("second", &[], json!({}))]);
    wait_fails(api, "second", "no available IPs");
    api.patch(&service("first", &[], json!({})), &json!({ "spec": { "type": "ClusterIP" } }));
    wait_shows(api, "second", "203.0.113.1 of a");
    wait_shows(api, "first", "");
    api.patch(&service("first", &[], json!({})), &json!({ "spec": { "type": "LoadBalancer" } }));
    wait_fails(api, "first", "no available IPs");
    api.delete(&[service("second", &[], json!({}))]);
    wait_shows(api, "first", "203.0.113.1 of a");
    api.delete(&[service("first", &[], json!({}))]);

    // A6: the same key and other ports.
    let shared = |name: &str, key: &str, port: u16, more: Value| {
        let mut spec = json!({ "ports": [{ "name": "x", "port": port, "protocol": "TCP" }] });
        for (field, value) in more.as_object().expect("fields") {
            spec[field] = value.clone();
        }
        service(name, &[("allow-shared-ip", key)], spec)
    };
    api.apply(&[shared("s80", "k", 80, json!({}))]);
    wait_shows(api, "s80", "203.0.113.1 of a");
    api.apply(&[shared("s81", "k", 81, json!({}))]);
    wait_shows(api, "s81", "203.0.113.1 of a");
    let local = json!({ "externalTrafficPolicy": "Local" });
    api.apply(&[
        shared("port", "k", 80, json!({})),
        shared("key", "other", 82, json!({})),
        shared("local", "k", 83, local),
    ]);
    for name in ["port", "key", "local"] {
        wait_fails(api, name, "no available IPs");
    }
    // Whoever does not agree any more moves, or waits; the others stay.
    api.apply(&[shared("s81", "another", 81, json!({}))]);
    wait_event(api, ("Service", "s81"), "ClearAssignment", "203.0.113.1");
    wait_fails(api, "s81", "no available IPs");
    wait_shows(api, "s80", "203.0.113.1 of a");
}

#[test]
#[ignore = "needs root"]
fn a08_a09_a12_a13_pools_are_for_somebody_and_services_for_some_class() {
    let Some(world) = world(1) else { return };
    let api = world.plane.api();
    let for_shop = |name: &str, range: &str, allocation: Value| {
        pool(name, json!({ "addresses": [range], "serviceAllocation": allocation }))
    };
    api.apply(&[
        addresses("z-all", &["203.0.113.0/29"]),
        for_shop("late", "192.0.2.64/29", json!({ "priority": 20, "namespaces": ["shop"] })),
        for_shop(
            "early",
            "192.0.2.72/32",
            json!({ "priority": 10, "namespaceSelectors": [{ "matchLabels": { "name": "shop" } }] }),
        ),
    ]);
    let agent = world.agent();
    let of_class = |name: &str, class: &str, namespace: &str| {
        let mut service = service(name, &[], json!({ "loadBalancerClass": class }));
        service["metadata"]["namespace"] = json!(namespace);
        service
    };

    // A12: without the flag, only the own class.
    api.apply(&[
        service("classless", &[], json!({})),
        of_class("foreign", "example.com/other", "default"),
        of_class("own", CLASS, "default"),
    ]);
    wait_shows(api, "own", "203.0.113.0 of z-all");
    assert_eq!((shows(api, "classless"), shows(api, "foreign")), (String::new(), String::new()));
    assert_eq!(condition(api, "classless").0, "");
    assert!(events(api, "Service", "foreign").is_empty());

    // A8: by namespace, by its labels, by priority.
    let shop = |name: &str| {
        let path = format!("/api/v1/namespaces/shop/services/{name}");
        let service = api.get(&path).unwrap_or_default();
        let annotations = &service["metadata"]["annotations"];
        annotations["metallb.io/ip-allocated-from-pool"].as_str().map(str::to_owned)
    };
    for (name, expected) in [("one", "early"), ("two", "late")] {
        api.apply(&[of_class(name, CLASS, "shop")]);
        lbxdp_tests::process::wait_until(expected, super::GIVEN_WITHIN, || {
            shop(name).as_deref() == Some(expected)
        });
    }

    // A9: one family will do until the pool has both.
    let mut prefer = service("prefer", &[], dual("PreferDualStack"));
    prefer["spec"]["loadBalancerClass"] = json!(CLASS);
    api.apply(&[prefer]);
    wait_shows(api, "prefer", "203.0.113.1 of z-all");
    wait_event(api, ("Service", "prefer"), "AdditionalAssignFailed", "no free IPv6");
    api.apply(&[addresses("z-all", &["203.0.113.0/29", "2001:db8:ff::/126"])]);
    wait_shows(api, "prefer", "203.0.113.1,2001:db8:ff:: of z-all");

    // A13: a range that is added is used, and addresses like .0 are left out.
    let mut pending = service("pending", &[("address-pool", "more")], json!({}));
    pending["spec"]["loadBalancerClass"] = json!(CLASS);
    api.apply(&[pending]);
    wait_fails(api, "pending", "unknown pool \"more\"");
    api.apply(&[pool(
        "more",
        json!({ "addresses": ["198.51.100.0/30"], "avoidBuggyIPs": true, "autoAssign": false }),
    )]);
    wait_shows(api, "pending", "198.51.100.1 of more");
    drop(agent);
}
