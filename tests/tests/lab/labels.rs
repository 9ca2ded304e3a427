//! Labels: of pods, which make them endpoints; of Services, which say who serves them.

use std::collections::BTreeSet;

use lbxdp_tests::lab::{Lab, Origin};
use serde_json::json;

use super::world::{
    Applied, at_once, pods_by_node, service, share, target, wait_answered_by, wait_silent, web,
};

#[test]
#[ignore = "needs root and Go"]
fn pods_come_and_go_with_their_labels_and_services_with_theirs() {
    let Some(lab) = share() else { return };
    let mut object = service("labels", 51);
    object["spec"]["selector"] = json!({ "group": "labels" });
    let mut deployment = web("labels", 3);
    deployment["spec"]["template"]["metadata"]["labels"]["group"] = json!("labels");
    let _applied = Applied::new(&lab, vec![deployment, object.clone()]);
    let pods = pods_by_node(&lab, "labels");
    let all: BTreeSet<_> = pods.iter().map(|pod| pod.name.clone()).collect();
    let rest: BTreeSet<_> = pods[1..].iter().map(|pod| pod.name.clone()).collect();
    let asked = [
        (Origin::Client, target("203.0.113.51", 80)),
        (Origin::Client, target("2001:db8:ff::51", 80)),
        (pods[0].origin(), target("fd00:10:96::51", 80)),
        (Origin::Node(1), target("10.96.0.51", 80)),
    ];
    let expect = |names: &BTreeSet<String>| {
        at_once(asked.iter().map(|(origin, target)| {
            let lab: &Lab = &lab;
            move || {
                if names.is_empty() {
                    wait_silent(lab, std::slice::from_ref(origin), *target);
                } else {
                    wait_answered_by(lab, origin, *target, names);
                }
            }
        }));
    };
    expect(&all);
    lab.kubectl(&["label", "pod", &pods[0].name, "group-"]);
    expect(&rest);
    lab.kubectl(&["label", "pod", &pods[0].name, "group=labels"]);
    expect(&all);

    lab.api().patch(&object, &json!({ "spec": { "selector": { "group": "others" } } }));
    expect(&BTreeSet::new());
    lab.api().patch(&object, &json!({ "spec": { "selector": { "group": "labels" } } }));
    expect(&all);

    let name = "service.kubernetes.io/service-proxy-name";
    lab.kubectl(&["label", "service", "labels", &format!("{name}=another")]);
    expect(&BTreeSet::new());
    lab.kubectl(&["label", "service", "labels", &format!("{name}-")]);
    expect(&all);
}
