//! Pools come, go and contradict each other.

use lbxdp_tests::process::wait_until;
use serde_json::json;

use super::{
    GIVEN_WITHIN, POOLS, addresses, adopting, condition_of, events, pool, pool_object, service,
    shows, wait_event, wait_fails, wait_shows, world,
};
use crate::world::{LONG, wait_log};

#[test]
#[ignore = "needs root"]
fn a07_an_edit_that_still_covers_an_address_moves_nobody_and_a_pool_that_goes_does() {
    let Some(world) = world(1) else { return };
    let api = world.plane.api();
    api.apply(&[addresses("a", &["203.0.113.0/30"]), addresses("b", &["198.51.100.0/30"])]);
    let agent = adopting(&world, 0);
    for (name, address) in [("x", "203.0.113.0"), ("y", "203.0.113.1"), ("z", "203.0.113.2")] {
        api.apply(&[service(name, &[], json!({}))]);
        wait_shows(api, name, &format!("{address} of a"));
    }
    // Written otherwise, and without the first address: only its holder moves.
    api.apply(&[addresses("a", &["203.0.113.1-203.0.113.3"])]);
    wait_event(api, ("Service", "x"), "ClearAssignment", "203.0.113.0");
    wait_shows(api, "x", "203.0.113.3 of a");
    assert_eq!(shows(api, "y"), "203.0.113.1 of a");
    assert_eq!(shows(api, "z"), "203.0.113.2 of a");
    let told = events(api, "Service", "y");
    assert_eq!(told.len(), 1, "{told:?}");

    api.delete(&[addresses("a", &[])]);
    for name in ["x", "y", "z"] {
        wait_until(&format!("{name} is of b"), GIVEN_WITHIN, || {
            shows(api, name).ends_with(" of b")
        });
    }
    // That there is none any more is believed after half a minute.
    api.delete(&[addresses("b", &[])]);
    wait_log(&agent, 0, "there are no pools, though Services have addresses", GIVEN_WITHIN);
    assert!(shows(api, "x").ends_with(" of b"));
    for name in ["x", "y", "z"] {
        wait_until(&format!("{name} has none"), LONG, || shows(api, name).is_empty());
    }
}

#[test]
#[ignore = "needs root"]
fn a10_a11_pools_say_what_they_have_and_what_is_wrong_with_them() {
    let Some(world) = world(1) else { return };
    let api = world.plane.api();
    let node = world.cluster.node(0).v4;
    api.apply(&[addresses("a", &["203.0.113.0/31", "2001:db8:ff::/127"])]);
    let _agent = adopting(&world, 0);
    api.apply(&[
        service("x", &[], json!({})),
        service("both", &[], json!({ "ipFamilyPolicy": "RequireDualStack" })),
    ]);
    // A10.
    let counts = json!({
        "assignedIPv4": 2, "availableIPv4": 0, "assignedIPv6": 1, "availableIPv6": 1,
    });
    let status = || pool_object(api, POOLS, "a")["status"].clone();
    wait_until("the pool has counted", GIVEN_WITHIN, || {
        let status = status();
        counts.as_object().expect("counts").iter().all(|(name, count)| status[name] == *count)
    });
    let said = condition_of(&pool_object(api, POOLS, "a"), "lbxdp.io/Accepted");
    assert_eq!((said.0.as_str(), said.1.as_str()), ("True", "Accepted"), "{said:?}");
    api.apply(&[service("one-more", &[], json!({}))]);
    wait_fails(api, "one-more", "no available IPs: pool \"a\" has no free IPv4");

    // A11: the older one wins, and what is somebody else's is not given out.
    let mut elsewhere = addresses("elsewhere", &["198.51.100.0/30"]);
    elsewhere["metadata"]["namespace"] = json!("shop");
    let wrong = [
        (addresses("overlap", &["203.0.113.1-203.0.113.9"]), POOLS, "the older pool a has"),
        (elsewhere, "shop", "pools are read from kube-system, metallb-system"),
        (addresses("text", &["203.0.113.x/33"]), POOLS, "is no range"),
    ];
    for (object, namespace, part) in &wrong {
        api.apply(std::slice::from_ref(object));
        let name = object["metadata"]["name"].as_str().expect("a name");
        wait_until(&format!("{name} is refused: {part}"), GIVEN_WITHIN, || {
            let (status, reason, message) =
                condition_of(&pool_object(api, namespace, name), "lbxdp.io/Accepted");
            status == "False" && reason == "Refused" && message.contains(part)
        });
        let told = || {
            let events = events(api, "IPAddressPool", name);
            events.iter().any(|(kind, _, note)| kind == "Warning" && note.contains(part))
        };
        wait_until(&format!("an Event about {name}"), GIVEN_WITHIN, told);
    }
    let service_range = "10.96.200.0/30";
    api.apply(&[pool("foreign", json!({ "addresses": [format!("{node}/32"), service_range] }))]);
    let parts =
        [format!("the address of node {}", world.cluster.node(0).name), "ClusterIPs".into()];
    wait_until("what it gives out is nothing", GIVEN_WITHIN, || {
        let object = pool_object(api, POOLS, "foreign");
        let (status, _, message) = condition_of(&object, "lbxdp.io/Accepted");
        status == "True"
            && parts.iter().all(|part| message.contains(part))
            && object["status"]["availableIPv4"] == 0
    });
    // Whoever was waiting still is.
    wait_fails(api, "one-more", "no available IPs");
}
