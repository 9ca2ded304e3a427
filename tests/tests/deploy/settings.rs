//! The chart sets what the agent knows, and offers what the agent has.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// Settings of the chart that the agent has not got yet. Each must go from here when it comes.
const PENDING: &[&str] = &[];

/// What the agent reads without a flag.
const WITHOUT_FLAG: &[&str] = &["LBXDP_LOG"];

/// What the chart deliberately does not offer: another input, a place that is mounted, what costs
/// time with each packet.
const NOT_OFFERED: &[&str] = &[
    "LBXDP_KUBECONFIG",
    "LBXDP_MANIFESTS",
    "LBXDP_PACKET_LOG",
    "LBXDP_PEERS",
    "LBXDP_PIN_PATH",
    "LBXDP_SERVICE_ACCOUNT",
];

/// Every setting in these objects: of the ConfigMap, and of the container.
pub fn settings(objects: &[Value]) -> BTreeMap<String, String> {
    let mut settings = BTreeMap::new();
    for object in objects {
        if object["kind"] == "ConfigMap" && object["metadata"]["name"] == "lbxdp" {
            for (name, value) in object["data"].as_object().expect("data") {
                settings.insert(name.clone(), value.as_str().expect("text").to_owned());
            }
        }
        let containers = &object["spec"]["template"]["spec"]["containers"];
        for variable in containers[0]["env"].as_array().into_iter().flatten() {
            let name = variable["name"].as_str().expect("name").to_owned();
            settings.insert(name, variable["value"].as_str().unwrap_or("node-a").to_owned());
        }
    }
    settings
}

/// Flags of `run` by the variable that sets them.
fn flags() -> BTreeMap<String, clap::Arg> {
    let mut command = lbxdp_agent::cli::command();
    command.build();
    let run = command.find_subcommand("run").expect("run");
    let variable = |arg: &clap::Arg| Some(arg.get_env()?.to_str()?.to_owned());
    run.get_arguments().filter_map(|arg| Some((variable(arg)?, arg.clone()))).collect()
}

/// Panics unless the agent knows each setting and takes its value.
#[track_caller]
pub fn assert_known(settings: &BTreeMap<String, String>) {
    let flags = flags();
    let mut line = vec!["lbxdp-agent".to_owned(), "run".to_owned()];
    for (name, value) in settings {
        if WITHOUT_FLAG.contains(&name.as_str()) || PENDING.contains(&name.as_str()) {
            continue;
        }
        let flag = flags.get(name).unwrap_or_else(|| panic!("the agent knows no {name}"));
        let long = flag.get_long().expect("a long flag");
        if flag.get_action().takes_values() {
            line.push(format!("--{long}={value}"));
        } else {
            assert_eq!(value, "true", "{name}");
            line.push(format!("--{long}"));
        }
    }
    if flags["LBXDP_MANIFESTS"].is_required_set() {
        line.push("--manifests=d".to_owned());
    }
    let parsed = lbxdp_agent::cli::command().try_get_matches_from(&line);
    assert!(parsed.is_ok(), "{line:?}: {}", parsed.unwrap_err());
}

#[test]
fn what_is_pending_has_not_come() {
    let flags = flags();
    let come: Vec<_> = PENDING.iter().filter(|name| flags.contains_key(**name)).collect();
    assert!(come.is_empty(), "no longer pending: {come:?}");
}

/// Panics unless these settings are all that the agent has.
#[track_caller]
pub fn assert_complete(settings: &BTreeMap<String, String>) {
    let missing: BTreeSet<_> = flags()
        .into_keys()
        .filter(|name| !settings.contains_key(name) && !NOT_OFFERED.contains(&name.as_str()))
        .collect();
    assert!(missing.is_empty(), "neither in the chart nor deliberately not: {missing:?}");
}
