//! Policies of Services whose endpoints are on one node.
//!
//! A Deployment has a pod on every node, and the Service selects the one that has a label.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use lbxdp_tests::cluster::{CLIENT_V4, CLIENT_V6};
use lbxdp_tests::lab::{Lab, Origin};
use lbxdp_tests::process::wait_until;
use lbxdp_tests::traffic::http;
use lbxdp_tests::traffic::socket::Source;
use serde_json::{Value, json};

use super::world::{
    Applied, Pod, SERVED_WITHIN, pods_by_node, service, share, target, wait_answered_by,
    wait_served, wait_silent, web,
};

/// A Service for the labelled pods of a Deployment, with more in its spec.
fn labelled(name: &str, number: u8, more: &[(&str, Value)]) -> Value {
    let mut object = service(name, number);
    object["spec"]["selector"]["serves"] = json!("yes");
    for (field, value) in more {
        object["spec"][*field] = value.clone();
    }
    object
}

/// Gives the label to this pod only.
#[track_caller]
fn serve_by(lab: &Lab, app: &str, pod: &Pod) {
    lab.kubectl(&["label", "pod", &pod.name, "serves=yes", "--overwrite"]);
    let selector = format!("app={app},serves=yes");
    let served = lab.kubectl(&["get", "pods", "-l", &selector, "-o", "name"]);
    for other in served.lines().filter(|name| name.strip_prefix("pod/") != Some(&*pod.name)) {
        lab.kubectl(&["label", other, "serves-"]);
    }
}

fn cluster_ip(v6: bool, number: u8) -> String {
    let net = if v6 { "fd00:10:96::" } else { "10.96.0." };
    format!("{net}{number}")
}

fn balancer(v6: bool, number: u8) -> String {
    let net = if v6 { "2001:db8:ff::" } else { "203.0.113." };
    format!("{net}{number}")
}

#[test]
#[ignore = "needs root and Go"]
fn external_policy_local_keeps_the_client_and_is_silent_on_nodes_without_an_endpoint() {
    let Some(lab) = share() else { return };
    let more = [("externalTrafficPolicy", json!("Local")), ("healthCheckNodePort", json!(31041))];
    let _applied = Applied::new(&lab, vec![web("outer", 3), labelled("outer", 41, &more)]);
    let pods = pods_by_node(&lab, "outer");
    // The client reaches addresses of type LoadBalancer by the first node.
    for here in [1, 0] {
        serve_by(&lab, "outer", &pods[here]);
        let only = BTreeSet::from([pods[here].name.clone()]);
        for v6 in [false, true] {
            let client: IpAddr = if v6 { CLIENT_V6.into() } else { CLIENT_V4.into() };
            let outside = target(balancer(v6, 41), 80);
            let mut kept = Vec::new();
            for (index, node) in lab.nodes.iter().enumerate() {
                let port = target(node.ip(v6).to_string(), 30041);
                if index == here {
                    kept.push(port);
                } else {
                    wait_silent(&lab, &[Origin::Client], port);
                }
            }
            if here == 0 {
                kept.push(outside);
            } else {
                wait_silent(&lab, &[Origin::Client], outside);
            }
            for target in kept {
                wait_answered_by(&lab, &Origin::Client, target, &only);
                let seen = lab.spread(&Origin::Client, target, 5).all_peers();
                assert_eq!(seen, [client].into(), "{target}: the pod sees whom");
            }
            // Clients inside reach every endpoint, wherever they are.
            for origin in [pods[2].origin(), Origin::Node(2), Origin::Node(here)] {
                for target in [outside, target(cluster_ip(v6, 41), 80)] {
                    wait_answered_by(&lab, &origin, target, &only);
                }
            }
        }
        wait_health(&lab, 31041, here);
    }
}

/// Waits until the health check says yes at this node and no at the others.
#[track_caller]
fn wait_health(lab: &Lab, port: u16, here: usize) {
    for (index, node) in lab.nodes.iter().enumerate() {
        for v6 in [false, true] {
            let target = target(node.ip(v6).to_string(), port);
            let expected = if index == here { 200 } else { 503 };
            let what = format!("the health check of {} at {target} says {expected}", node.name());
            wait_until(&what, SERVED_WITHIN, || {
                let get = || http::get(target, Source::ANY, "/healthz", Duration::from_secs(1));
                lab.client.netns.run(get).is_ok_and(|(status, _)| status == expected)
            });
        }
    }
}

#[test]
#[ignore = "needs root and Go"]
fn internal_policy_local_is_for_cluster_ips_and_silent_on_nodes_without_an_endpoint() {
    let Some(lab) = share() else { return };
    let more = [("internalTrafficPolicy", json!("Local"))];
    let _applied = Applied::new(&lab, vec![web("inner", 3), labelled("inner", 42, &more)]);
    let pods = pods_by_node(&lab, "inner");
    for here in [2, 0] {
        serve_by(&lab, "inner", &pods[here]);
        let only = BTreeSet::from([pods[here].name.clone()]);
        for v6 in [false, true] {
            let cluster = target(cluster_ip(v6, 42), 80);
            for (index, pod) in pods.iter().enumerate() {
                for origin in [pod.origin(), Origin::Node(index)] {
                    if index == here {
                        wait_answered_by(&lab, &origin, cluster, &only);
                    } else {
                        wait_silent(&lab, &[origin], cluster);
                    }
                }
            }
            // Nothing else of it has anything to do with that policy.
            for target in
                [target(balancer(v6, 42), 80), target(lab.nodes[1].ip(v6).to_string(), 30042)]
            {
                for origin in [Origin::Client, Origin::Node(1), pods[1].origin()] {
                    wait_answered_by(&lab, &origin, target, &only);
                }
            }
        }
    }
}

#[test]
#[ignore = "needs root and Go"]
fn policies_of_a_service_with_endpoints_everywhere_change_and_change_back() {
    let Some(lab) = share() else { return };
    let object = service("changed", 43);
    let _applied = Applied::new(&lab, vec![web("changed", 3), object.clone()]);
    let pods = pods_by_node(&lab, "changed");
    let all: BTreeSet<_> = pods.iter().map(|pod| pod.name.clone()).collect();
    let near = |index: usize| BTreeSet::from([pods[index].name.clone()]);
    for (external, internal) in
        [("Cluster", "Cluster"), ("Local", "Cluster"), ("Local", "Local"), ("Cluster", "Local")]
    {
        let policies = json!({ "spec": {
            "externalTrafficPolicy": external, "internalTrafficPolicy": internal,
        } });
        lab.api().patch(&object, &policies);
        println!("external {external}, internal {internal}");
        for v6 in [false, true] {
            let cluster = target(cluster_ip(v6, 43), 80);
            let inside = if internal == "Local" { near(1) } else { all.clone() };
            for origin in [pods[1].origin(), Origin::Node(1)] {
                wait_answered_by(&lab, &origin, cluster, &inside);
            }
            let port = target(lab.nodes[2].ip(v6).to_string(), 30043);
            let outside = if external == "Local" { near(2) } else { all.clone() };
            wait_answered_by(&lab, &Origin::Client, port, &outside);
        }
    }
}

#[test]
#[ignore = "needs root and Go"]
fn a_client_stays_with_its_backend_while_the_service_has_affinity() {
    let Some(lab) = share() else { return };
    let mut object = service("sticky", 44);
    object["spec"]["sessionAffinity"] = json!("ClientIP");
    let _applied = Applied::new(&lab, vec![web("sticky", 3), object.clone()]);
    let pods = pods_by_node(&lab, "sticky");
    let all: BTreeSet<_> = pods.iter().map(|pod| pod.name.clone()).collect();
    for v6 in [false, true] {
        let targets = [
            (Origin::Client, target(balancer(v6, 44), 80)),
            (Origin::Client, target(lab.nodes[1].ip(v6).to_string(), 30044)),
            (Origin::Node(2), target(cluster_ip(v6, 44), 80)),
            (pods[0].origin(), target(cluster_ip(v6, 44), 80)),
        ];
        for (origin, target) in &targets {
            wait_served(&lab, std::slice::from_ref(origin), *target);
            let first = lab.spread(origin, *target, 20);
            let second = lab.spread(origin, *target, 20);
            assert_eq!((first.failed, second.failed), (0, 0), "{origin} to {target}: {second:?}");
            assert_eq!(first.backends.len(), 1, "{origin} to {target}: {first:?}");
            assert_eq!(first.backends, second.backends, "{origin} to {target}");
        }
    }
    lab.api().patch(&object, &json!({ "spec": { "sessionAffinity": "None" } }));
    wait_answered_by(&lab, &Origin::Client, target(balancer(false, 44), 80), &all);
    wait_answered_by(&lab, &pods[0].origin(), target(cluster_ip(true, 44), 80), &all);
}
