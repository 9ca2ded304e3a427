//! The agents as the chart runs them.

use std::fs;

use lbxdp_tests::chart::NAMESPACE;
use lbxdp_tests::lab::{Lab, Node};
use serde_json::Value;

use super::world::share;

/// CAP_NET_ADMIN, CAP_NET_RAW, CAP_PERFMON and CAP_BPF, from capability(7).
const CAPABILITIES: u64 = 1 << 12 | 1 << 13 | 1 << 38 | 1 << 39;

#[test]
#[ignore = "needs root and Go"]
fn every_node_is_ready_and_has_an_agent_with_four_capabilities() {
    let Some(lab) = share() else { return };
    let lab: &Lab = &lab;
    lab.wait_nodes();
    lab.wait_lbxdp();
    let path = "/apis/apps/v1/namespaces/kube-system/daemonsets/lbxdp";
    let daemon = lab.get(path).expect("the DaemonSet");
    assert_eq!(daemon["status"]["numberReady"], lab.nodes.len(), "{}", daemon["status"]);
    let list = "/api/v1/namespaces/kube-system/pods?labelSelector=app.kubernetes.io%2Fname%3Dlbxdp";
    let pods = lab.get(list).expect("the agents' pods");
    for pod in pods["items"].as_array().expect("items") {
        assert_eq!(pod["spec"]["serviceAccountName"], "lbxdp");
    }
    for node in &lab.nodes {
        let status = format!("/proc/{}/status", agent(node).expect("an agent"));
        let status = fs::read_to_string(status).expect("status");
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_else(|| panic!("no {name} in {status}")).trim()
        };
        for set in ["CapPrm:", "CapEff:", "CapBnd:"] {
            let set = u64::from_str_radix(field(set), 16).expect("capabilities");
            assert_eq!(set, CAPABILITIES, "{}", node.name());
        }
        assert_eq!((field("NoNewPrivs:"), field("Seccomp:")), ("1", "2"), "{}", node.name());
    }
}

/// The one agent that runs on a node; none if there is none at the moment.
#[track_caller]
pub fn agent(node: &Node) -> Option<u32> {
    let agents = processes(node.host.cgroup(), "lbxdp-agent");
    assert!(agents.len() <= 1, "{}: {agents:?}", node.name());
    agents.first().copied()
}

/// What the agent of a node answers at its own port, if it does.
pub fn ask_agent(node: &Node, path: &str) -> Option<String> {
    let mut curl = node.host.command("curl");
    curl.args(["--silent", "--fail", "--max-time", "2"])
        .arg(format!("http://127.0.0.1:10469{path}"));
    let output = curl.output().expect("curl");
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// `lbxdp-agent status` of a node, in its agent's pod.
#[track_caller]
pub fn status(lab: &Lab, node: &Node) -> Value {
    let on = format!("spec.nodeName={}", node.name());
    let agents = ["-l", "app.kubernetes.io/name=lbxdp", "--field-selector", &on, "-o", "name"];
    let pods = lab.kubectl(&[&["get", "pods", "-n", NAMESPACE], &agents[..]].concat());
    let pod = pods.lines().next().unwrap_or_else(|| panic!("{}: no agent", node.name()));
    let words = ["--", "lbxdp-agent", "status", "--output", "json"];
    let said = lab.kubectl(&[&["exec", "-n", NAMESPACE, pod], &words[..]].concat());
    serde_json::from_str(&said).unwrap_or_else(|error| panic!("{pod}: {error}: {said}"))
}

/// The processes of this name in a cgroup and below.
pub fn processes(cgroup: &std::path::Path, name: &str) -> Vec<u32> {
    let mut found = Vec::new();
    let pids = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    for pid in pids.lines() {
        let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        if comm.trim() == name {
            found.extend(pid.parse::<u32>());
        }
    }
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            found.extend(processes(&entry.path(), name));
        }
    }
    found
}
