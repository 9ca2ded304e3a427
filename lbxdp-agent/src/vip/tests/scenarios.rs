//! What users of MetalLB rely on, scenario by scenario.

use super::*;

const V4: &str = "192.0.2.0/30";
const V6: &str = "2001:db8::/126";

fn ip(addresses: &str) -> Value {
    annotated(&[("loadBalancerIPs", addresses)])
}

fn share(key: &str, port: u16) -> Value {
    and(annotated(&[("allow-shared-ip", key)]), json!({"spec": {"ports": [{"port": port}]}}))
}

fn assert_fails(world: &mut World, name: &str, part: &str) {
    assert_eq!(world.has(name), "", "{name}");
    let (reason, message) = world.failure(name);
    assert_eq!(reason, "AllocationFailed");
    assert!(message.starts_with("Failed to allocate IP for \""), "{message}");
    assert!(message.contains(part), "{message}");
}

#[test]
fn a01_addresses_come_from_ranges_and_prefixes_of_both_families() {
    for (addresses, spec, expected) in [
        (&[V4][..], json!({}), "192.0.2.0 of a"),
        (&["192.0.2.7-192.0.2.9"], json!({}), "192.0.2.7 of a"),
        (&[V6], json!({"spec": {"clusterIP": "fd00::1"}}), "2001:db8:: of a"),
        (
            &["2001:db8::7-2001:db8::9"],
            json!({"spec": {"clusterIP": "fd00::1"}}),
            "2001:db8::7 of a",
        ),
        (&[V6, V4], dual("RequireDualStack"), "192.0.2.0,2001:db8:: of a"),
        (&[V6, V4], dual("PreferDualStack"), "192.0.2.0,2001:db8:: of a"),
        (&["198.51.100.9/32", V4], json!({}), "198.51.100.9 of a"),
    ] {
        let mut world = World::with_pool(addresses);
        world.service("x", spec);
        let events = world.settle();
        assert_eq!(world.shows("x"), expected, "{addresses:?}");
        assert_eq!(reasons(&events, "x"), ["IPAllocated"]);
        let condition = world.pass().services[&id("x")].condition();
        assert!(condition.is_true && condition.message.ends_with("of pool a"), "{condition:?}");
    }
}

#[test]
fn a01_an_enormous_range_costs_nothing() {
    let mut world = World::with_pool(&["2001:db8::/32"]);
    world.service("held", and(json!({"spec": {"clusterIP": "fd00::1"}}), ip("2001:db8::")));
    for n in 0..300 {
        world.service(&n.to_string(), json!({"spec": {"clusterIP": "fd00::1"}}));
    }
    assert_eq!(world.has("299"), "2001:db8::12c of a");
}

#[test]
fn a02_an_address_or_a_pool_is_asked_for() {
    for (more, expected) in [
        (json!({"spec": {"loadBalancerIP": "192.0.2.2"}}), "192.0.2.2 of a"),
        (ip("192.0.2.2"), "192.0.2.2 of a"),
        (and(ip("2001:db8::2"), json!({"spec": {"clusterIP": "fd00::1"}})), "2001:db8::2 of a"),
        (and(ip("2001:db8::2,192.0.2.2"), dual("RequireDualStack")), "2001:db8::2,192.0.2.2 of a"),
        (annotated(&[("address-pool", "b")]), "198.51.100.0 of b"),
        (ip("198.51.100.1"), "198.51.100.1 of b"),
        (
            annotated(&[("address-pool", "b"), ("loadBalancerIPs", "198.51.100.1")]),
            "198.51.100.1 of b",
        ),
    ] {
        let mut world = World::with_pool(&[V4, V6]);
        world.pool("b", json!({"addresses": ["198.51.100.0/30"], "autoAssign": false}));
        world.service("x", more.clone());
        assert_eq!(world.has("x"), expected, "{more}");
    }
    let mut world = World::default();
    world.pool("b", json!({"addresses": [V4], "autoAssign": false}));
    world.service("x", json!({}));
    assert_fails(&mut world, "x", "unless it asks for one");
}

#[test]
fn a02_the_old_prefix_is_read_and_told_of() {
    let mut world = World::with_pool(&[V4]);
    let old = json!({"metallb.universe.tf/loadBalancerIPs": "192.0.2.2"});
    world.service("x", json!({"metadata": {"annotations": old}}));
    let events = world.settle();
    assert_eq!(world.shows("x"), "192.0.2.2 of a");
    assert_eq!(reasons(&events, "x"), ["IPAllocated", "deprecatedAnnotation"]);
}

#[test]
fn a02_another_request_moves_the_service() {
    let mut world = World::with_pool(&[V4]);
    world.pool("b", json!({"addresses": ["198.51.100.0/30"], "autoAssign": false}));
    world.service("x", json!({}));
    assert_eq!(world.has("x"), "192.0.2.0 of a");
    world.service("x", ip("192.0.2.3"));
    assert_eq!(reasons(&world.settle(), "x"), ["IPAllocated", "ClearAssignment"]);
    assert_eq!(world.shows("x"), "192.0.2.3 of a");
    world.service("x", annotated(&[("address-pool", "b")]));
    assert_eq!(world.has("x"), "198.51.100.0 of b");
    // Without a request it may stay where it is.
    world.service("x", json!({}));
    assert_eq!(world.has("x"), "198.51.100.0 of b");
}

#[test]
fn a02_two_services_may_swap_their_addresses() {
    let mut world = World::with_pool(&[V4]);
    world.service("x", ip("192.0.2.0"));
    world.service("y", ip("192.0.2.1"));
    world.settle();
    world.service("x", ip("192.0.2.1"));
    world.service("y", ip("192.0.2.0"));
    let outcome = world.pass();
    // Not in one step: until both are written, two objects would show one address.
    assert!(outcome.services.values().all(|decision| decision.assignment.addresses.is_empty()));
    assert_eq!(
        (world.has("x"), world.shows("y")),
        ("192.0.2.1 of a".into(), "192.0.2.0 of a".into())
    );
}

#[test]
fn a03_what_cannot_be_had_leaves_the_service_pending() {
    let mut world = World::with_pool(&[V4, V6]);
    world.pool("b", json!({"addresses": ["198.51.100.0/30"]}));
    world.service("other", ip("192.0.2.1"));
    let field = json!({"spec": {"loadBalancerIP": "192.0.2.2"}});
    for (name, more, part) in [
        ("both", and(ip("192.0.2.2"), field), "both metallb.io/loadBalancerIPs and spec.loadB"),
        ("family", ip("2001:db8::1"), "the Service is IPv4"),
        ("half", and(ip("192.0.2.2"), dual("PreferDualStack")), "the Service is IPv4, IPv6"),
        ("outside", ip("203.0.113.1"), "203.0.113.1 is in no pool"),
        ("used", ip("192.0.2.1"), "default/other has it and does not share it"),
        ("text", ip("x"), "no IP address"),
        ("unknown", annotated(&[("address-pool", "c")]), "unknown pool \"c\""),
        (
            "wrong",
            annotated(&[("address-pool", "b"), ("loadBalancerIPs", "192.0.2.2")]),
            "192.0.2.2 is not in pool \"b\"",
        ),
    ] {
        world.service(name, more);
        assert_fails(&mut world, name, part);
    }
    let mut world = World::default();
    world.service("x", json!({"spec": {"loadBalancerClass": CLASS}}));
    assert_fails(&mut world, "x", "no address pools");
}

#[test]
fn a03_a_request_that_says_nothing_does_not_take_an_address_away() {
    let mut world = World::with_pool(&[V4]);
    world.service("x", json!({}));
    world.settle();
    world.service("x", ip("x"));
    assert_eq!(world.has("x"), "192.0.2.0 of a");
    assert_eq!(world.failure("x").0, "LoadBalancerFailed");
    world.service("x", json!({"spec": {"clusterIP": "x"}}));
    assert_eq!(world.has("x"), "192.0.2.0 of a");
    assert_eq!(world.failure("x").0, "noclusterIPsIPFamily");
    world.service("x", json!({"spec": {"ipFamilyPolicy": "RequireDualStack"}}));
    assert_eq!(world.has("x"), "192.0.2.0 of a");
    assert_eq!(world.failure("x").0, "not enough clusterips");
    world.service("x", json!({"spec": {"clusterIP": "None"}}));
    assert_eq!(world.has("x"), "");
}

#[test]
fn a04_what_a_service_gives_up_a_pending_one_gets() {
    let mut world = World::with_pool(&["192.0.2.1/32"]);
    world.service("x", json!({}));
    world.service("y", json!({}));
    assert_eq!(world.has("x"), "192.0.2.1 of a");
    assert_fails(&mut world, "y", "no available IPs");
    world.service("x", json!({"spec": {"type": "ClusterIP"}}));
    assert_eq!(world.has("x"), "");
    assert_eq!(world.shows("y"), "192.0.2.1 of a");
    world.service("x", json!({}));
    assert_fails(&mut world, "x", "no available IPs");
    world.delete("y");
    assert_eq!(world.has("x"), "192.0.2.1 of a");
}

#[test]
fn a05_a_restart_changes_nothing_whoever_is_pending() {
    let mut world = World::with_pool(&["192.0.2.1-192.0.2.2"]);
    world.service("a-first", json!({}));
    world.service("c", json!({}));
    world.service("b", json!({}));
    world.settle();
    world.delete("a-first");
    world.pool("a", json!({"addresses": ["192.0.2.2/32"]}));
    world.restart();
    assert_eq!(world.has("c"), "192.0.2.2 of a");
    assert_fails(&mut world, "b", "no available IPs");
    // A pool that is gone for a moment and comes back is a pool edit; a restart alone is nothing.
    for _ in 0..3 {
        world.restart();
        assert!(!world.pass().services.values().any(|decision| decision.must_write));
    }
}

#[test]
fn a05_what_is_decided_and_not_yet_shown_counts() {
    let mut world = World::with_pool(&[V4]);
    world.service("x", json!({}));
    world.service("y", json!({}));
    let first = world.pass();
    // The write for x is under way. Its predecessor in the pool becomes free.
    world.delete("x");
    let second = world.pass();
    assert_eq!(first.services[&id("y")].assignment, second.services[&id("y")].assignment);
    assert!(second.services[&id("y")].must_write);
    assert_eq!(world.has("y"), "192.0.2.1 of a");
    // Made again under the same name it is another one.
    world.service("z", ip("192.0.2.3"));
    world.pass();
    world.delete("z");
    world.service("z", json!({}));
    assert_eq!(world.has("z"), "192.0.2.0 of a");
}

#[test]
fn a06_services_share_an_address_if_they_agree() {
    let local =
        |app: &str| json!({"spec": {"externalTrafficPolicy": "Local", "selector": {"app": app}}});
    let request = ip("192.0.2.2");
    for (first, second, refusal) in [
        (share("k", 80), share("k", 81), None),
        (
            share("k", 80),
            and(share("k", 80), json!({"spec": {"ports": [{"port": 80, "protocol": "UDP"}]}})),
            None,
        ),
        (share("k", 80), share("k", 80), Some("serves TCP port 80 there")),
        (share("k", 80), share("l", 81), Some("sharing keys differ")),
        (share("k", 80), json!({}), Some("only shares it")),
        (json!({}), share("k", 80), Some("does not share it")),
        (and(share("k", 80), local("a")), and(share("k", 81), local("a")), None),
        (
            and(share("k", 80), local("a")),
            and(share("k", 81), local("b")),
            Some("policy and selector"),
        ),
        (and(share("k", 80), local("a")), share("k", 81), Some("policy and selector")),
    ] {
        let mut world = World::with_pool(&[V4]);
        world.service("x", and(first, request.clone()));
        world.service("other/y", and(second, request.clone()));
        assert_eq!(world.has("x"), "192.0.2.2 of a");
        match refusal {
            None => assert_eq!(world.has("other/y"), "192.0.2.2 of a"),
            Some(part) => assert_fails(&mut world, "other/y", part),
        }
    }
}

#[test]
fn a06_the_first_address_that_is_free_or_can_be_shared_is_taken() {
    let mut world = World::with_pool(&[V4]);
    world.service("x", share("k", 80));
    world.service("y", share("k", 81));
    world.service("z", share("k", 81));
    assert_eq!(
        (world.has("x"), world.shows("y")),
        ("192.0.2.0 of a".into(), "192.0.2.0 of a".into())
    );
    assert_eq!(world.shows("z"), "192.0.2.1 of a");
}

#[test]
fn a06_an_address_that_somebody_else_shows_as_well_is_not_shared() {
    let mut world = World::with_pool(&[V4]);
    world.service("x", share("k", 80));
    world.service("foreign", json!({"spec": {"loadBalancerClass": "example.com/other"}}));
    world.settle();
    let same = Assignment { addresses: vec!["192.0.2.0".parse().unwrap()], pool: None };
    same.show(world.services.get_mut("foreign").unwrap());
    world.service("y", share("k", 81));
    assert_eq!(world.has("y"), "192.0.2.1 of a");
    assert_eq!(world.shows("x"), "192.0.2.0 of a");
}

#[test]
fn a06_who_does_not_agree_any_more_moves_and_the_others_stay() {
    for changed in ["x", "y", "z"] {
        let mut world = World::with_pool(&[V4]);
        for (name, port) in [("x", 80), ("y", 81), ("z", 82)] {
            world.service(name, share("k", port));
        }
        world.settle();
        world.service(changed, json!({}));
        assert_eq!(reasons(&world.settle(), changed), ["IPAllocated", "ClearAssignment"]);
        for name in ["x", "y", "z"] {
            let expected = if name == changed { "192.0.2.1 of a" } else { "192.0.2.0 of a" };
            assert_eq!(world.shows(name), expected, "{name}, {changed} changed");
        }
        // Alone on an address it may change its key in place.
        world.service(changed, share("l", 80));
        assert_eq!(world.has(changed), "192.0.2.1 of a");
    }
}

#[test]
fn a07_pools_come_and_go() {
    let mut world = World::with_pool(&[V4]);
    world.service("x", json!({}));
    assert_eq!(world.settle()[0].message, "Assigned IP [\"192.0.2.0\"]");
    world.pool("b", json!({"addresses": ["198.51.100.0/30"]}));
    assert_eq!(world.has("x"), "192.0.2.0 of a");
    world.drop_pool("a");
    assert_eq!(reasons(&world.settle(), "x"), ["IPAllocated", "ClearAssignment"]);
    assert_eq!(world.shows("x"), "198.51.100.0 of b");
    world.drop_pool("b");
    assert_eq!(world.has("x"), "");
}

#[test]
fn a07_a_pool_that_still_covers_an_address_does_not_take_it_away() {
    let mut world = World::with_pool(&[V4]);
    for name in ["x", "y"] {
        world.service(name, json!({}));
    }
    assert_eq!(world.has("x"), "192.0.2.0 of a");
    for spec in [
        json!({"addresses": ["198.51.100.0/24", "192.0.2.0/31"]}),
        json!({"addresses": ["192.0.2.0/24"], "avoidBuggyIPs": true}),
        json!({"addresses": ["192.0.2.0/24"], "autoAssign": false}),
        json!({"addresses": ["192.0.2.0/24"], "serviceAllocation": {"priority": 3}}),
        // Nobody knows what was meant.
        json!({"addresses": ["192.0.2.0/240"]}),
        json!({"addresses": ["192.0.2.0/24"], "serviceAllocation": {"serviceSelectors": [
            {"matchExpressions": [{"key": "x", "operator": "In"}]},
        ]}}),
    ] {
        world.pool("a", spec.clone());
        assert_eq!(world.has("x"), "192.0.2.0 of a", "{spec}");
        assert_eq!(world.has("y"), "192.0.2.1 of a", "{spec}");
    }
    // Another pool takes the range over.
    world.drop_pool("a");
    world.pool("b", json!({"addresses": ["192.0.0.0/16"]}));
    world.restart();
    assert_eq!(
        (world.has("x"), world.shows("y")),
        ("192.0.2.0 of b".into(), "192.0.2.1 of b".into())
    );
    world.pool("b", json!({"addresses": ["192.0.2.1/32"]}));
    assert_fails(&mut world, "x", "no available IPs");
    assert_eq!(world.has("y"), "192.0.2.1 of b");
}

#[test]
fn a08_pools_are_for_namespaces_and_services() {
    let labels = json!({"metadata": {"labels": {"tier": "web"}}});
    let team = json!([{"matchLabels": {"team": "red"}}]);
    let web = json!([{"matchLabels": {"tier": "web"}}]);
    for (allocation, name, more, expected) in [
        (json!({"namespaces": ["shop"]}), "shop/x", json!({}), "a"),
        (json!({"namespaces": ["shop"]}), "other/x", json!({}), "z"),
        (json!({"namespaceSelectors": team}), "shop/x", json!({}), "a"),
        (json!({"namespaceSelectors": team}), "other/x", json!({}), "z"),
        (json!({"namespaces": ["other"], "namespaceSelectors": team}), "other/x", json!({}), "a"),
        (json!({"namespaces": ["other"], "namespaceSelectors": team}), "shop/x", json!({}), "a"),
        (json!({"namespaces": ["other"], "namespaceSelectors": team}), "third/x", json!({}), "z"),
        (json!({"serviceSelectors": web}), "shop/x", labels.clone(), "a"),
        (json!({"serviceSelectors": web}), "shop/x", json!({}), "z"),
        (json!({"namespaces": ["shop"], "serviceSelectors": web}), "shop/x", labels.clone(), "a"),
        (json!({"namespaces": ["shop"], "serviceSelectors": web}), "other/x", labels, "z"),
        (json!({"namespaces": ["shop"], "serviceSelectors": web}), "shop/x", json!({}), "z"),
        (json!({"priority": 5}), "shop/x", json!({}), "a"),
        (json!({}), "shop/x", json!({}), "a"),
    ] {
        let mut world = World::default();
        world.pool("z", json!({"addresses": ["198.51.100.0/30"]}));
        world.pool("a", json!({"addresses": [V4], "serviceAllocation": allocation}));
        for (namespace, team) in [("shop", "red"), ("other", "blue"), ("third", "blue")] {
            let labels = Labels::from([("team".to_owned(), team.to_owned())]);
            world.namespaces.insert(namespace.to_owned(), labels);
        }
        world.service(name, more);
        let shown = world.has(name);
        assert!(shown.ends_with(expected), "{allocation} {name}: {shown}");
        // Asking for it by name does not help.
        world.service(
            name,
            and(
                annotated(&[("address-pool", "a")]),
                json!({"metadata": {
                    "labels": world.services[name].metadata.labels.clone(),
                }}),
            ),
        );
        match expected {
            "a" => assert_eq!(world.has(name), "192.0.2.0 of a"),
            _ => assert_fails(&mut world, name, "pool \"a\" is for other Services"),
        }
    }
}

#[test]
fn a08_pools_are_tried_by_priority_then_name_and_always_in_the_same_order() {
    let mut world = World::default();
    let one = |n: u8, priority: Value| {
        json!({
            "addresses": [format!("192.0.2.{n}/32")],
            "serviceAllocation": {"priority": priority},
        })
    };
    world.pool("e", json!({"addresses": ["198.51.100.1/32"]}));
    world.pool("d", json!({"addresses": ["198.51.100.2/32"]}));
    world.pool("a", one(1, json!(0)));
    world.pool("b", one(2, json!(20)));
    world.pool("f", one(3, json!(10)));
    world.pool("c", one(4, json!(10)));
    world.pool("g", one(5, json!(null)));
    let order = ["c", "f", "b", "a", "g", "d", "e"];
    for name in 0..order.len() {
        world.service(&name.to_string(), json!({}));
    }
    for (name, pool) in order.iter().enumerate() {
        assert!(world.has(&name.to_string()).ends_with(pool), "{}", world.shows(&name.to_string()));
    }
}

#[test]
fn a08_who_is_not_meant_any_more_moves_but_not_because_a_namespace_was_not_seen() {
    let mut world = World::default();
    let team = json!([{"matchLabels": {"team": "red"}}]);
    world.pool("a", json!({"addresses": [V4], "serviceAllocation": {"namespaceSelectors": team}}));
    world.pool("z", json!({"addresses": ["198.51.100.0/30"]}));
    world.service("shop/x", json!({}));
    assert_fails(&mut world, "shop/x", "namespace shop was not seen yet");
    let red = Labels::from([("team".to_owned(), "red".to_owned())]);
    world.namespaces.insert("shop".to_owned(), red);
    assert_eq!(world.has("shop/x"), "192.0.2.0 of a");
    world.namespaces.clear();
    world.restart();
    assert_eq!(world.has("shop/x"), "192.0.2.0 of a");
    world.namespaces.insert("shop".to_owned(), Labels::new());
    assert_eq!(world.has("shop/x"), "198.51.100.0 of z");
}

#[test]
fn a09_prefer_dual_stack() {
    let prefer = || dual("PreferDualStack");
    let v6_first = || {
        let ips = ["fd00::1", "10.96.0.1"];
        and(prefer(), json!({"spec": {"clusterIP": ips[0], "clusterIPs": ips}}))
    };
    // Only one family to be had.
    let mut world = World::with_pool(&[V4]);
    world.service("x", prefer());
    let events = world.settle();
    assert_eq!(world.shows("x"), "192.0.2.0 of a");
    assert!(reasons(&events, "x").contains(&"AdditionalAssignFailed"), "{events:?}");
    assert!(world.pass().services[&id("x")].condition().is_true);
    // A pool of both is better than the first one of one; it does not move there later.
    world.pool("b", json!({"addresses": ["198.51.100.0/30", V6]}));
    world.service("y", prefer());
    assert_eq!(world.has("y"), "198.51.100.0,2001:db8:: of b");
    assert_eq!(world.has("x"), "192.0.2.0 of a");
    // Its own pool gets the other family.
    world.pool("a", json!({"addresses": [V4, "2001:db8:1::/64"]}));
    assert_eq!(reasons(&world.settle(), "x"), ["IPAllocated"]);
    assert_eq!(world.shows("x"), "192.0.2.0,2001:db8:1:: of a");
    // And loses the first one: what is still covered stays.
    world.pool("a", json!({"addresses": ["2001:db8:1::/64"]}));
    assert_eq!(world.has("x"), "2001:db8:1:: of a");
    world.pool("a", json!({"addresses": [V4, "2001:db8:1::/64"]}));
    assert_eq!(world.has("x"), "2001:db8:1::,192.0.2.0 of a");
    // Of pools of one family that of the first one.
    let mut world = World::with_pool(&[V4]);
    world.pool("b", json!({"addresses": [V6]}));
    world.service("x", prefer());
    world.service("y", v6_first());
    assert_eq!(
        (world.has("x"), world.shows("y")),
        ("192.0.2.0 of a".into(), "2001:db8:: of b".into())
    );
    // If the pool of the first one is empty, the other one will do.
    world.pool("a", json!({"addresses": ["192.0.2.0/32"]}));
    world.service("z", prefer());
    assert_eq!(world.has("z"), "2001:db8::1 of b");
    // Of a cluster with one family it is as any other Service.
    world.service(
        "single",
        json!({"spec": {"clusterIP": "fd00::1", "ipFamilyPolicy": "PreferDualStack"}}),
    );
    assert_eq!(world.has("single"), "2001:db8::2 of b");
    // From the pool that is asked for one family will do as well.
    world.service("asked", and(prefer(), annotated(&[("address-pool", "b")])));
    assert_eq!(world.has("asked"), "2001:db8::3 of b");
}

#[test]
fn a09_require_dual_stack() {
    let require = || dual("RequireDualStack");
    let mut world = World::with_pool(&[V4]);
    world.pool("b", json!({"addresses": [V6]}));
    world.service("x", require());
    // Not one of each pool.
    assert_fails(&mut world, "x", "no free IPv4 and IPv6 address");
    world.pool("b", json!({"addresses": [V6, "198.51.100.0/32"]}));
    assert_eq!(world.has("x"), "198.51.100.0,2001:db8:: of b");
    // What it has and may keep stays, even if it is not enough.
    world.pool("b", json!({"addresses": [V6]}));
    assert_eq!(world.has("x"), "2001:db8:: of b");
    assert_eq!(world.failure("x").0, "AllocationFailed");
    world.restart();
    assert_eq!(world.has("x"), "2001:db8:: of b");
    // A Service that comes to require both keeps what it has, and gives back what it needs no more.
    let mut world = World::with_pool(&[V4, V6]);
    world.service("other", json!({}));
    world.service("x", json!({}));
    assert_eq!(world.has("x"), "192.0.2.1 of a");
    world.delete("other");
    world.service("x", require());
    assert_eq!(world.has("x"), "192.0.2.1,2001:db8:: of a");
    world.service("x", json!({"spec": {"clusterIP": "fd00::1"}}));
    assert_eq!(world.has("x"), "2001:db8:: of a");
}

#[test]
fn a10_pools_count_what_they_have() {
    let mut world = World::with_pool(&[V4, "2001:db8::/64"]);
    let counts = |total, assigned, available| Counts { total, assigned, available };
    let enormous = counts(u64::MAX, 0, u64::MAX);
    assert_eq!(world.counts("a"), PoolCounts { v4: counts(4, 0, 4), v6: enormous });
    world.service("x", share("k", 80));
    world.service("y", share("k", 81));
    world.service("z", dual("RequireDualStack"));
    let counted = world.counts("a");
    assert_eq!(counted, PoolCounts { v4: counts(4, 2, 2), v6: counts(u64::MAX, 1, u64::MAX) });
    let status = resources::IpAddressPoolStatus::from(counted);
    assert_eq!((status.assigned_ipv4, status.available_ipv6), (2, i64::MAX));
    // What is not given out is not available.
    world.reserved.nodes.insert("192.0.2.3".parse().unwrap(), "n1".to_owned());
    assert_eq!(world.counts("a").v4, counts(3, 2, 1));
    world.pool("a", json!({"addresses": [V4], "avoidBuggyIPs": true}));
    assert_eq!(world.counts("a").v4, counts(2, 2, 1));
    // Exhaustion is told.
    world.service("last", json!({}));
    world.service("one-more", json!({}));
    assert_fails(&mut world, "one-more", "no available IPs: pool \"a\" has no free IPv4");
    assert_eq!(world.counts("a").v4, counts(2, 3, 0));
}

#[test]
fn a11_overlapping_pools_and_wrong_namespaces_are_refused() {
    let mut world = World::with_pool(&[V4]);
    world.pool("b", json!({"addresses": ["192.0.2.3-192.0.2.9", "198.51.100.0/30"]}));
    world.service("x", annotated(&[("address-pool", "b")]));
    assert_fails(&mut world, "x", "pool \"b\" is refused: the older pool a has 192.0.2.3");
    world.service("x", ip("198.51.100.1"));
    assert_fails(&mut world, "x", "pool \"b\" is refused");
    let expected = "IPAddressPool metallb-system/b: spec.addresses: the older pool a has 192.0.2.3 \
                    as well: nothing is given out of this pool";
    assert_eq!(world.problems(), [expected]);
    assert_eq!(world.counts("b").v4.available, 0);
    // A pool that comes to overlap gives nothing out any more, and takes nothing away.
    world.pool("b", json!({"addresses": ["198.51.100.0/30"]}));
    assert_eq!(world.has("x"), "198.51.100.1 of b");
    world.pool("a", json!({"addresses": ["192.0.2.0/24", "198.51.100.0/24"]}));
    assert_eq!(world.has("x"), "198.51.100.1 of b");
    world.restart();
    assert_eq!(world.has("x"), "198.51.100.1 of b");

    let mut world =
        World { pool_namespaces: ["metallb-system".to_owned()].into(), ..World::default() };
    world.pool("shop/a", json!({"addresses": [V4]}));
    world.service("x", json!({}));
    assert_fails(&mut world, "x", "no pool gives");
    let expected = "IPAddressPool shop/a: metadata.namespace: pools are read from metallb-system: \
                    nothing is given out of this pool";
    assert_eq!(world.problems(), [expected]);
    // It is not in the way of one that is where it should be.
    world.pool("a", json!({"addresses": ["192.0.2.0/31"]}));
    world.service("x", annotated(&[("address-pool", "a"), ("loadBalancerIPs", "192.0.2.1")]));
    assert_eq!(world.has("x"), "192.0.2.1 of a");
    assert_eq!(world.problems(), [expected]);
    // Two of one name: nobody knows which one is asked for.
    let mut world = World::with_pool(&[V4]);
    world.pool("shop/a", json!({"addresses": ["198.51.100.0/30"]}));
    assert!(world.problems()[0].contains("shop/a: metadata.name: namespace metallb-system has"));
}

#[test]
fn a11_addresses_of_nodes_and_of_the_service_range_are_not_given_out() {
    let mut world = World::with_pool(&["192.0.2.0/30", "10.96.0.0/30", "127.0.0.0/30"]);
    world.reserved.nodes.insert("192.0.2.0".parse().unwrap(), "n1".to_owned());
    world.reserved.nodes.insert("192.0.2.1".parse().unwrap(), "n2".to_owned());
    world.reserved.service_cidrs.push("10.96.0.0/12".parse().unwrap());
    world.service("x", json!({}));
    assert_eq!(world.has("x"), "192.0.2.2 of a");
    for (addr, part) in [
        ("192.0.2.1", "192.0.2.1 is the address of node n2"),
        ("10.96.0.1", "10.96.0.1 is in 10.96.0.0/12, where ClusterIPs come from"),
        ("127.0.0.1", "127.0.0.1 is not an address that a load balancer can have"),
    ] {
        world.service("y", ip(addr));
        assert_fails(&mut world, "y", part);
    }
    let problems = world.problems();
    let parts = ["10.96.0.0/12, where", "127.0.0.0, which is not", "node n1, and 1 more"];
    assert_eq!(problems.len(), parts.len(), "{problems:?}");
    for (problem, part) in problems.iter().zip(parts) {
        assert!(problem.contains(part), "{problem}");
    }
    // A node that comes to have an address which is announced may have it from the announcement.
    world.reserved.nodes.insert("192.0.2.2".parse().unwrap(), "n3".to_owned());
    world.restart();
    assert_eq!(world.has("x"), "192.0.2.2 of a");
}

#[test]
fn a11_what_is_written_wrongly_is_named() {
    let mut world = World::default();
    world.pool(
        "a",
        json!({
            "addresses": ["192.0.2.1", "192.0.2.0/30", "192.0.2.2/32"], "protocol": "layer2",
            "serviceAllocation": {"namespaceSelectors": [
                {"matchExpressions": [{"key": "a", "operator": "Like", "values": ["b"]}]},
            ]},
        }),
    );
    world.pool("b", json!({}));
    let problems = world.problems();
    let parts = [
        "a: spec.addresses[0]: \"192.0.2.1\" is one address",
        "a: spec.addresses[2]: has 192.0.2.2, which is written above as well",
        "a: spec.protocol: unsupported",
        "a: spec.serviceAllocation.namespaceSelectors[0]: ",
        "b: spec.addresses: empty",
    ];
    assert_eq!(problems.len(), parts.len(), "{problems:?}");
    for (problem, part) in problems.iter().zip(parts) {
        assert!(problem.contains(part), "{problem}");
    }
    // A selector that cannot be read must not open the pool to everybody.
    world.drop_pool("b");
    world.service("x", json!({}));
    world.namespaces.insert("default".to_owned(), Labels::new());
    assert_fails(&mut world, "x", "unless it asks for one");
}

#[test]
fn a12_the_class_decides_whose_service_it_is() {
    let class = |class: &str| json!({"spec": {"loadBalancerClass": class}});
    let mut world = World::with_pool(&[V4]);
    world.service("own", class(CLASS));
    world.service("foreign", class("example.com/other"));
    world.service("classless", json!({}));
    world.is_exclusive = true;
    assert_eq!(world.has("own"), "192.0.2.0 of a");
    assert_eq!((world.shows("foreign"), world.shows("classless")), ("".into(), "".into()));
    // What somebody else has assigned is neither touched nor given out.
    let taken = Assignment { addresses: vec!["192.0.2.1".parse().unwrap()], pool: None };
    taken.show(world.services.get_mut("foreign").unwrap());
    world.service("next", class(CLASS));
    assert_eq!(world.has("next"), "192.0.2.2 of a");
    assert_eq!(world.shows("foreign"), "192.0.2.1");
    world.service("same", and(class(CLASS), ip("192.0.2.1")));
    assert_fails(&mut world, "same", "default/foreign still shows 192.0.2.1");
    // Adopted with the address that it has.
    let theirs =
        Assignment { addresses: vec!["192.0.2.3".parse().unwrap()], pool: Some("old".to_owned()) };
    theirs.show(world.services.get_mut("classless").unwrap());
    assert_eq!(world.has("classless"), "192.0.2.3 of old");
    world.is_exclusive = false;
    world.restart();
    assert_eq!(world.has("classless"), "192.0.2.3 of a");
}

#[test]
fn a12_without_pools_nothing_is_adopted() {
    let mut world = World::default();
    world.service("x", json!({}));
    let clouds = Assignment { addresses: vec!["203.0.113.1".parse().unwrap()], pool: None };
    clouds.show(world.services.get_mut("x").unwrap());
    assert_eq!(world.has("x"), "203.0.113.1");
    assert!(world.pass().services.is_empty());
    // Whoever makes a pool means it.
    world.pool("a", json!({"addresses": [V4]}));
    assert_eq!(world.has("x"), "192.0.2.0 of a");
    // And the last pool that goes takes its addresses with it.
    world.drop_pool("a");
    assert_eq!(world.has("x"), "");
}

#[test]
fn a13_a_range_that_is_added_is_used() {
    let mut world = World::with_pool(&["192.0.2.0/32"]);
    for name in ["x", "y"] {
        world.service(name, json!({}));
    }
    assert_fails(&mut world, "y", "no available IPs");
    world.pool("a", json!({"addresses": ["192.0.2.0/32", "198.51.100.0/30"]}));
    assert_eq!(world.has("y"), "198.51.100.0 of a");
    assert_eq!(world.has("x"), "192.0.2.0 of a");
}

#[test]
fn a13_addresses_that_confuse_some_routers_are_left_out() {
    let mut world = World::default();
    let addresses = ["192.0.2.255-192.0.3.1", "192.0.5.254-192.0.6.1", V6];
    world.pool("a", json!({"addresses": addresses, "avoidBuggyIPs": true}));
    for name in ["x", "y", "z", "none"] {
        world.service(name, json!({}));
    }
    for (name, addr) in [("x", "192.0.3.1"), ("y", "192.0.5.254"), ("z", "192.0.6.1")] {
        assert_eq!(world.has(name), format!("{addr} of a"));
    }
    assert_fails(&mut world, "none", "no available IPs");
    world.service("none", ip("192.0.3.0"));
    assert_fails(&mut world, "none", "avoids addresses like 192.0.3.0");
    world.service("v6", json!({"spec": {"clusterIP": "fd00::1"}}));
    assert_eq!(world.has("v6"), "2001:db8:: of a");
}

#[test]
fn decisions_are_written_as_the_api_wants_them() {
    let now = |n: i64| serde_json::from_value(json!(format!("2026-01-01T00:00:{n:02}Z"))).unwrap();
    let mut world = World::with_pool(&["192.0.2.1/32"]);
    world.service(
        "x",
        json!({"metadata": {
            "resourceVersion": "7", "generation": 2, "annotations": {OLD_POOL_ANNOTATION: "z"},
        }, "status": {"conditions": [{
            "type": "example.com/Other", "status": "True", "reason": "R", "message": "",
            "lastTransitionTime": "2025-01-01T00:00:00Z",
        }]}}),
    );
    world.service("y", json!({}));
    let outcome = world.pass();
    let [x, y] = ["x", "y"].map(|name| outcome.services[&id(name)].clone());
    let written = patch(&world.services["x"], &x, true, &now(1)).unwrap();
    assert_eq!(written["metadata"]["resourceVersion"], "7");
    let annotations = json!({POOL_ANNOTATION: "a", OLD_POOL_ANNOTATION: null});
    assert_eq!(written["metadata"]["annotations"], annotations);
    let ingress = json!([{"ip": "192.0.2.1", "ipMode": "VIP"}]);
    assert_eq!(written["status"]["loadBalancer"]["ingress"], ingress);
    let conditions = written["status"]["conditions"].as_array().unwrap();
    assert_eq!(conditions.len(), 2);
    assert_eq!(
        conditions[1],
        json!({
            "type": CONDITION, "status": "True", "reason": "IPAllocated", "observedGeneration": 2,
            "message": "192.0.2.1 of pool a", "lastTransitionTime": "2026-01-01T00:00:01Z",
        })
    );
    // Without an address only the condition is to be said, and not twice.
    let pending = patch(&world.services["y"], &y, true, &now(1)).unwrap();
    assert_eq!(pending["status"]["loadBalancer"]["ingress"], Value::Null);
    assert_eq!(pending["status"]["conditions"][0]["status"], "False");
    let mut said = serde_json::to_value(&world.services["y"]).unwrap();
    merge(&mut said, json!({"status": pending["status"], "metadata": {"generation": 3}}));
    let said: Service = serde_json::from_value(said).unwrap();
    assert_eq!(patch(&said, &y, true, &now(2)), None);
    // The time is that of the change.
    let other = Decision { failure: None, ..y };
    let written = patch(&said, &other, true, &now(3)).unwrap();
    let time = &written["status"]["conditions"][0]["lastTransitionTime"];
    assert_eq!(time, "2026-01-01T00:00:03Z");
    // A Service that has left loses the condition.
    let gone = Decision { must_write: true, ..Decision::default() };
    let written = patch(&said, &gone, false, &now(4)).unwrap();
    assert_eq!(written["status"]["conditions"], json!([]));
    assert_eq!(written["metadata"]["annotations"][POOL_ANNOTATION], Value::Null);
}

#[test]
fn without_an_api_a_file_remembers() {
    let mut world = World::with_pool(&["192.0.2.1-192.0.2.2"]);
    for name in ["x", "y", "z"] {
        world.service(name, json!({}));
    }
    let mut state = State::default();
    assert!(state.update(&world.pass()));
    let file = serde_json::to_string(&state).unwrap();
    let mut state: State = serde_json::from_str(&file).unwrap();
    // What others have got is not lost although one that came before them is gone.
    world.delete("x");
    world.restart();
    for service in world.services.values_mut() {
        state.show(service);
    }
    assert_eq!((world.shows("y"), world.shows("z")), ("192.0.2.2 of a".into(), "".into()));
    assert!(state.update(&world.pass()));
    for service in world.services.values_mut() {
        state.show(service);
    }
    assert_eq!(
        (world.shows("y"), world.shows("z")),
        ("192.0.2.2 of a".into(), "192.0.2.1 of a".into())
    );
    assert!(!state.update(&world.pass()));
}
