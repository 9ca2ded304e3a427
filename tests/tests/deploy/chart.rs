//! The chart through Helm, which is built from its Go module.

use std::collections::BTreeSet;

use lbxdp_tests::chart::{
    CHART, FLAT, FLAT_DEFINITIONS, Helm, all_values, flat, flat_definitions, least_values, objects,
};
use lbxdp_tests::go::workspace;
use serde_json::{Value, json};

use crate::manifest::{self, assert_typed};
use crate::settings::{assert_complete, assert_known, settings};

fn helm() -> Helm {
    Helm::get().expect("Helm")
}

fn read(name: &str) -> String {
    std::fs::read_to_string(workspace().join(CHART).join(name)).expect(name)
}

/// The values that the chart has of itself.
fn defaults() -> Value {
    objects(&read("values.yaml")).expect("YAML").remove(0)
}

/// Paths of everything in `value` that holds no object with names of ours.
fn leaves(value: &Value, path: &mut Vec<String>, into: &mut Vec<Vec<String>>) {
    // Users' own names begin here.
    const OPEN: &[&str] = &[
        "affinity",
        "annotations",
        "labels",
        "nodeSelector",
        "podAnnotations",
        "podLabels",
        "resources",
    ];
    match value.as_object() {
        Some(object) if !path.last().is_some_and(|name| OPEN.contains(&name.as_str())) => {
            for (name, value) in object {
                path.push(name.clone());
                leaves(value, path, into);
                path.pop();
            }
        }
        _ => into.push(path.clone()),
    }
}

fn leaves_of(value: &Value) -> Vec<Vec<String>> {
    let mut all = Vec::new();
    leaves(value, &mut Vec::new(), &mut all);
    all
}

fn at<'a>(value: &'a mut Value, path: &[String]) -> &'a mut Value {
    path.iter().fold(value, |value, name| &mut value[name.as_str()])
}

#[test]
#[ignore = "needs Go"]
fn it_renders_with_the_least_and_with_everything() {
    let helm = helm();
    let least = helm.objects(&least_values()).expect("the least");
    assert_typed(&least);
    assert_known(&settings(&least));
    let all = helm.objects(&all_values()).expect("everything");
    assert_typed(&all);
    assert_known(&settings(&all));
    assert_complete(&settings(&all));
    let kinds: BTreeSet<_> = all.iter().map(|object| object["kind"].as_str().unwrap()).collect();
    assert!(kinds.contains("PodMonitor") && kinds.contains("PrometheusRule"), "{kinds:?}");
    let mut without_cgroup = least_values();
    without_cgroup["paths"] = json!({ "cgroup": "" });
    let without = helm.objects(&without_cgroup).expect("no cgroup");
    assert_typed(&without);
    assert_eq!(settings(&without)["LBXDP_CGROUP"], "none");
    assert!(!json!(without).to_string().contains("/host/cgroup"));
    for values in [least_values(), all_values()] {
        helm.lint(&values).expect("lint");
    }
}

#[test]
#[ignore = "needs Go"]
fn the_committed_manifest_is_what_it_gives() {
    let given = flat(&helm()).expect("the flat manifest");
    assert!(given == manifest::text(), "{FLAT} is stale: run `cargo xtask chart`");
}

#[test]
fn the_committed_definitions_are_those_of_the_chart() {
    let committed = std::fs::read_to_string(workspace().join(FLAT_DEFINITIONS));
    let given = flat_definitions().expect("the definitions");
    assert!(
        committed.is_ok_and(|text| text == given),
        "{FLAT_DEFINITIONS} is stale: run `cargo xtask chart`"
    );
}

#[test]
#[ignore = "needs Go"]
fn services_without_a_class_are_adopted_unless_the_values_say_otherwise() {
    let helm = helm();
    let mut values = least_values();
    let adopted = settings(&helm.objects(&values).expect("the least"));
    assert_eq!(adopted.get("LBXDP_ADOPT_CLASSLESS").map(String::as_str), Some("true"));
    values["adoptClassless"] = json!(false);
    let left = settings(&helm.objects(&values).expect("without"));
    assert_eq!(left.get("LBXDP_ADOPT_CLASSLESS"), None);
}

#[test]
#[ignore = "needs Go"]
fn every_value_has_an_effect() {
    let helm = helm();
    let known: BTreeSet<_> = leaves_of(&defaults()).into_iter().collect();
    let used: BTreeSet<_> = leaves_of(&all_values()).into_iter().collect();
    assert_eq!(known, used, "the values of the chart, and those that tests give");
    let mut all = all_values();
    // Wins over the tag.
    let digest = all["image"].as_object_mut().expect("image").remove("digest").expect("digest");
    let with_all = helm.template(&all).expect("everything");
    for path in known {
        let mut values = all.clone();
        let default = at(&mut defaults(), &path).clone();
        *at(&mut values, &path) = match path.last().expect("a name").as_str() {
            "digest" => digest.clone(),
            "apiServers" => least_values()["apiServers"].clone(),
            // Computed from it unless they are given.
            "nodeCpus" => {
                values["resources"] = Value::Null;
                let few = helm.template(&values).expect("few CPUs");
                values["nodeCpus"] = json!(9);
                assert!(
                    helm.template(&values).expect("more CPUs") != few,
                    "nodeCpus has no effect"
                );
                continue;
            }
            "address" => json!("0.0.0.0"),
            // The default is what tests give.
            "adoptClassless" => json!(false),
            // Equal to the default, or merged with it.
            "labels" | "annotations" => json!({ "other": "value" }),
            "affinity" | "nodeSelector" | "resources" | "bpffs" | "type" => change(default, &path),
            _ => default,
        };
        let without = helm.template(&values).unwrap_or_else(|error| panic!("{path:?}: {error:#}"));
        assert!(without != with_all, "{path:?} has no effect");
    }
}

/// Another value than the default where tests give the default, or where Helm merges.
fn change(default: Value, path: &[String]) -> Value {
    match path.last().expect("a name").as_str() {
        "bpffs" => json!("/run/bpf"),
        "type" => json!("OnDelete"),
        "nodeSelector" => json!({ "other": "label" }),
        "affinity" => json!({ "podAffinity": {} }),
        "resources" => json!({ "limits": { "memory": "3Gi" } }),
        name => panic!("{name}: {default}"),
    }
}

#[test]
#[ignore = "needs Go"]
fn values_that_nobody_knows_are_refused() {
    let helm = helm();
    let schema: Value = serde_json::from_str(&read("values.schema.json")).expect("JSON");
    let mut closed = Vec::new();
    close(&schema, &mut Vec::new(), &mut closed);
    assert!(closed.len() >= 10, "{closed:?}");
    for path in closed {
        let mut values = all_values();
        at(&mut values, &path)["nobodyKnows"] = json!(1);
        let error = helm.template(&values).expect_err("accepted").to_string();
        assert!(error.contains("nobodyKnows"), "{path:?}: {error}");
    }
    for (path, wrong) in [
        ("/apiServers", json!(["http://192.0.2.10:6443"])),
        ("/apiServers", json!("https://192.0.2.10:6443")),
        ("/serviceCidrs", json!(["10.96.0.1"])),
        ("/poolNamespaces", json!(["a/b"])),
        ("/snatPorts", json!(61000)),
        ("/listen/address", json!("192.0.2.1")),
        ("/listen/port", json!("10469")),
        ("/nodeCpus", json!(0)),
        ("/image/digest", json!("sha256:12")),
        ("/xdpMode", json!("generic")),
        ("/flows", json!(100_000)),
        ("/frontends", json!(0)),
    ] {
        let mut values = all_values();
        *values.pointer_mut(path).expect(path) = wrong;
        let error = helm.template(&values).expect_err(path).to_string();
        let at = path.trim_start_matches('/');
        assert!(error.contains(at) || error.contains(&at.replace('/', ".")), "{path}: {error}");
    }
}

/// Every object of the schema must be closed, or hold what others define.
fn close(schema: &Value, path: &mut Vec<String>, into: &mut Vec<Vec<String>>) {
    let Some(properties) = schema["properties"].as_object() else { return };
    assert_eq!(schema["additionalProperties"], false, "{path:?}");
    if path.last().is_none_or(|name| name != "resources") {
        into.push(path.clone());
    }
    for (name, schema) in properties {
        path.push(name.clone());
        close(schema, path, into);
        path.pop();
    }
}

#[test]
#[ignore = "needs Go"]
fn what_cannot_work_is_refused_with_a_reason() {
    let helm = helm();
    let error = helm.template(&json!({})).expect_err("no API server").to_string();
    assert!(error.contains("apiServers is empty: say how nodes reach the API server"), "{error}");
    let mut values = least_values();
    values["metrics"] = json!({ "podMonitor": { "enabled": true } });
    let error = helm.template(&values).expect_err("nothing to scrape").to_string();
    assert!(error.contains("set listen.address to 0.0.0.0"), "{error}");
}
