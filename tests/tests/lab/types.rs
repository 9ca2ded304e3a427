//! A Service becomes one of every type, and back: what it was before answers no more.

use std::collections::BTreeSet;
use std::net::IpAddr;

use lbxdp_tests::lab::{Lab, Origin};
use lbxdp_tests::process::wait_until;
use serde_json::{Value, json};

use super::world::{
    Applied, Pod, SERVED_WITHIN, at_once, pods, pods_by_node, service, share, target, wait_served,
    wait_silent, web,
};

const NUMBER: u8 = 31;

/// What answers.
#[derive(Clone, Copy, Debug)]
struct Served {
    cluster: bool,
    node_port: bool,
    balancer: bool,
}

/// The Service as one of these types.
fn of_type(kind: &str) -> (Value, Served) {
    let mut object = service("edited", NUMBER);
    let served = Served {
        cluster: !matches!(kind, "Headless" | "ExternalName"),
        node_port: matches!(kind, "NodePort" | "LoadBalancer"),
        balancer: kind == "LoadBalancer",
    };
    let spec = object["spec"].as_object_mut().expect("a spec");
    spec.insert("type".to_owned(), json!(kind));
    if !served.node_port {
        spec["ports"][0].as_object_mut().expect("a port").remove("nodePort");
    }
    if kind == "Headless" {
        spec.insert("type".to_owned(), json!("ClusterIP"));
        spec.insert("clusterIP".to_owned(), json!("None"));
        spec.insert("clusterIPs".to_owned(), json!(["None"]));
    } else if kind == "ExternalName" {
        object["spec"] = json!({ "type": kind, "externalName": "nobody.invalid" });
    }
    if !served.balancer {
        object.as_object_mut().expect("an object").remove("status");
    }
    (object, served)
}

#[test]
#[ignore = "needs root and Go"]
fn a_service_becomes_every_type_and_back_and_only_what_it_is_answers() {
    let Some(lab) = share() else { return };
    let (first, _) = of_type("ClusterIP");
    let _applied = Applied::new(&lab, vec![web("edited", 2), first]);
    // Kubernetes lets an address become none by way of ExternalName only.
    let kinds = [
        "ClusterIP",
        "NodePort",
        "LoadBalancer",
        "NodePort",
        "ClusterIP",
        "ExternalName",
        "Headless",
        "ExternalName",
        "LoadBalancer",
        "ClusterIP",
    ];
    for kind in kinds {
        let (object, served) = of_type(kind);
        lab.api().apply(&[object]);
        println!("{kind}: {served:?}");
        expect(&lab, served);
    }
}

/// Waits until this is what answers, in both families.
#[track_caller]
fn expect(lab: &Lab, served: Served) {
    let pod = Origin::Pod(pods(lab, "edited")[0].name.clone());
    let asked = [false, true].into_iter().flat_map(|v6| {
        let [cluster, balancer] =
            if v6 { ["fd00:10:96::31", "2001:db8:ff::31"] } else { ["10.96.0.31", "203.0.113.31"] };
        let node = lab.nodes[1].ip(v6).to_string();
        [
            (served.cluster, target(cluster, 80), [pod.clone(), Origin::Node(0)]),
            (served.node_port, target(&node, 30031), [Origin::Client, Origin::Node(2)]),
            (served.balancer, target(balancer, 80), [Origin::Client, Origin::Node(1)]),
        ]
    });
    at_once(asked.map(|(is_served, target, origins)| {
        move || {
            if is_served {
                wait_served(lab, &origins, target);
            } else {
                wait_silent(lab, &origins, target);
            }
        }
    }));
}

#[test]
#[ignore = "needs root and Go"]
fn a_service_of_one_family_is_served_in_that_one_until_it_has_both() {
    let Some(lab) = share() else { return };
    let families = [("one-v4", 32, ["IPv4", "IPv6"]), ("one-v6", 33, ["IPv6", "IPv4"])];
    let mut objects = vec![web("families", 2)];
    let single = families.map(|(name, number, [first, _])| {
        let mut object = of_families(name, number, &[first]);
        object["spec"]["ipFamilyPolicy"] = json!("SingleStack");
        object
    });
    objects.extend(single.clone());
    let _applied = Applied::new(&lab, objects);
    let both = families.map(|(name, number, families)| of_families(name, number, &families));
    for (number, single, both) in [(32, &single[0], &both[0]), (33, &single[1], &both[1])] {
        let v6_first = number == 33;
        let port = |v6: bool| target(lab.nodes[2].ip(v6).to_string(), 30000 + number);
        let cluster = |v6: bool| {
            let net = if v6 { "fd00:10:96::" } else { "10.96.0." };
            target(format!("{net}{number}"), 80)
        };
        let everywhere = [Origin::Client, Origin::Node(0)];
        let inside = [Origin::Pod("deployment/families".to_owned()), Origin::Node(0)];
        let expect = |v6: bool, is_served: bool| {
            let wait = if is_served { wait_served } else { wait_silent };
            let asked = [(port(v6), everywhere.clone()), (cluster(v6), inside.clone())];
            at_once(asked.map(|(target, origins)| {
                let lab: &Lab = &lab;
                move || wait(lab, &origins, target)
            }));
        };
        expect(v6_first, true);
        expect(!v6_first, false);
        lab.api().apply(std::slice::from_ref(both));
        expect(!v6_first, true);
        expect(v6_first, true);
        lab.api().apply(std::slice::from_ref(single));
        expect(!v6_first, false);
        expect(v6_first, true);
    }
}

/// A NodePort Service of these families for the Deployment of the test.
fn of_families(name: &str, number: u8, families: &[&str]) -> Value {
    let mut object = service(name, number);
    object.as_object_mut().expect("an object").remove("status");
    let ips: Vec<_> = families
        .iter()
        .map(|family| {
            let net = if *family == "IPv6" { "fd00:10:96::" } else { "10.96.0." };
            format!("{net}{number}")
        })
        .collect();
    let spec = object["spec"].as_object_mut().expect("a spec");
    spec.insert("type".to_owned(), json!("NodePort"));
    spec.insert("selector".to_owned(), json!({ "app": "families" }));
    spec.insert("ipFamilies".to_owned(), json!(families));
    spec.insert("clusterIP".to_owned(), json!(ips[0]));
    spec.insert("clusterIPs".to_owned(), json!(ips));
    object
}

#[test]
#[ignore = "needs root and Go"]
fn pods_find_headless_services_and_external_names_by_name() {
    let Some(lab) = share() else { return };
    let named = |name: &str, spec: Value| json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": name }, "spec": spec });
    let headless = json!({
        "clusterIP": "None",
        "selector": { "app": "unaddressed" },
        "ipFamilyPolicy": "RequireDualStack",
        "ports": [{ "port": 8080 }],
    });
    let external = json!({
        "type": "ExternalName", "externalName": "kube-dns.kube-system.svc.cluster.local",
    });
    let objects =
        vec![web("unaddressed", 3), named("unaddressed", headless), named("elsewhere", external)];
    let _applied = Applied::new(&lab, objects);
    let pods = pods_by_node(&lab, "unaddressed");
    let expected: BTreeSet<IpAddr> = pods.iter().flat_map(|pod| pod.ips.clone()).collect();
    assert_eq!(expected.len(), 6, "{pods:?}");
    let dns = ["10.96.0.10", "fd00:10:96::a"].map(|ip| ip.parse().expect("an address"));
    for (name, expected) in [("unaddressed", expected), ("elsewhere", dns.into())] {
        for origin in pods.iter().map(Pod::origin) {
            wait_until(&format!("{name} is {expected:?} to {origin}"), SERVED_WITHIN, || {
                lab.lookup(&origin, name) == expected
            });
        }
    }
}
