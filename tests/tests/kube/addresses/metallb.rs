//! Beside MetalLB.

use lbxdp_tests::process::wait_until;
use serde_json::{Value, json};

use super::{
    CLASS, GIVEN_WITHIN, POOLS, addresses, adopting, condition, service, shows, wait_shows, world,
};
use crate::world::metric;

/// A slice of the webhook's Service, which MetalLB's controller answers.
fn webhook(is_ready: bool) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": "metallb-webhook-service-x", "namespace": POOLS,
            "labels": { "kubernetes.io/service-name": "metallb-webhook-service" },
        },
        "addressType": "IPv4", "ports": [{ "name": "", "port": 9443, "protocol": "TCP" }],
        "endpoints": [{ "addresses": ["10.244.77.7"], "conditions": { "ready": is_ready } }],
    })
}

#[test]
#[ignore = "needs root"]
fn a12_services_without_a_class_are_left_to_metallb_while_it_is_there() {
    let Some(world) = world(1) else { return };
    let api = world.plane.api();
    api.apply(&[addresses("a", &["203.0.113.0/29"]), webhook(true)]);
    // As MetalLB leaves it.
    let mut theirs = service("theirs", &[("ip-allocated-from-pool", "a")], json!({}));
    theirs["status"] = json!({ "loadBalancer": { "ingress": [{ "ip": "203.0.113.3" }] } });
    api.apply(&[theirs, service("waiting", &[], json!({}))]);
    let agent = adopting(&world, 0);
    api.apply(&[service("own", &[], json!({ "loadBalancerClass": CLASS }))]);
    wait_shows(api, "own", "203.0.113.0 of a");
    assert!(agent.log().contains("--adopt-classless: refused while"), "{}", agent.log());
    assert_eq!(metric(&agent, "lbxdp_adoption_refused"), Some(1.0));
    assert_eq!(shows(api, "waiting"), "");
    assert_eq!(condition(api, "waiting").0, "");

    // Not ready is not gone: it may be about to be replaced.
    api.apply(&[webhook(false), service("next", &[], json!({ "loadBalancerClass": CLASS }))]);
    wait_shows(api, "next", "203.0.113.1 of a");
    assert_eq!(shows(api, "waiting"), "");

    // Removed: what it gave stays, and what waits is served.
    api.delete(&[webhook(false)]);
    wait_shows(api, "waiting", "203.0.113.2 of a");
    wait_until("it is adopted", GIVEN_WITHIN, || condition(api, "theirs").0 == "True");
    assert_eq!(shows(api, "theirs"), "203.0.113.3 of a");
    assert_eq!(metric(&agent, "lbxdp_adoption_refused"), Some(0.0));
}
