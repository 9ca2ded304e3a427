//! From kube-proxy to lbxdp and back, step by step as docs/take-over.md has it, under load.

use std::time::{Duration, Instant};

use lbxdp_tests::chart::NAMESPACE;
use lbxdp_tests::lab::{Lab, Node};
use lbxdp_tests::process::{run, wait_until};
use serde_json::{Value, json};

use super::agents::status;
use super::loads::{FROM_OUTSIDE, HELD, Loads, ORIGINS};
use super::world::{Applied, Finally, SERVED_WITHIN, alone, service, web};

const NUMBER: u8 = 58;
/// New connections that show whose they are.
const SOME: u64 = 40;
/// A container that ends is started again after ten seconds, and later if that goes on.
const CLEANED_WITHIN: Duration = Duration::from_secs(90);
/// For connections that have ended to be forgotten.
const FORGOTTEN_WITHIN: Duration = Duration::from_secs(90);

#[test]
#[ignore = "needs root and Go"]
fn from_kube_proxy_to_lbxdp_and_back_no_connection_is_lost_and_none_fails() {
    let Some(lab) = alone() else { return };
    let lab: &Lab = &lab;
    let _applied = Applied::new(lab, vec![web("moving", 3), service("moving", NUMBER)]);
    let restored = Finally::new(|| {
        lab.install_lbxdp(&json!({}));
        lab.wait_lbxdp();
        for node in &lab.nodes {
            node.stop_kube_proxy();
            node.clean_up_kube_proxy();
            let _ = node.host.command("nft").args(["delete", "table", "inet", "keep-nat"]).output();
        }
    });
    // It begins with kube-proxy alone.
    start_kube_proxy(lab);
    remove_lbxdp(lab);
    let old = Loads::start(lab, "moving", NUMBER);
    let start = Instant::now();

    // Over, first step: what there was the stack has, and what begins is ours.
    lab.install_lbxdp(&json!({}));
    lab.wait_lbxdp();
    let installed = Seen::now(lab);
    assert_eq!(installed.modes(), ["serving"; 3]);
    let foreign = installed.sum("/take_over/foreign_established");
    assert!(foreign >= u64::from(ORIGINS * HELD), "{foreign} connections are the stack's");
    wait_until("old ones go by the stack, new ones by lbxdp", SERVED_WITHIN, || {
        let now = Seen::now(lab);
        let more = |counter| now.counter(counter) - installed.counter(counter);
        more("flow_new") >= SOME && more("socket_connected") >= SOME && more("foreign_hit") >= SOME
    });

    // Second and third: nobody needs kube-proxy, nor its rules.
    let young = Loads::start(lab, "moving", NUMBER);
    let begun = Instant::now();
    for node in &lab.nodes {
        node.stop_kube_proxy();
        run(node.host.command("nft").arg(
            "table inet keep-nat { chain none { \
             type nat hook input priority 100; ct state invalid; }; }",
        ));
        node.clean_up_kube_proxy();
        let left = run(node.host.command("nft").args(["list", "tables"]));
        assert!(!left.contains("kube-proxy"), "{}: {left}", node.name());
    }
    let alone = Seen::now(lab);
    wait_until("served without kube-proxy's rules", SERVED_WITHIN, || {
        let now = Seen::now(lab);
        ["flow_new", "socket_connected", "foreign_hit"]
            .iter()
            .all(|counter| now.counter(counter) >= alone.counter(counter) + SOME)
    });

    // Back: kube-proxy's rules, then nothing new for lbxdp.
    start_kube_proxy(lab);
    lab.install_lbxdp(&json!({ "handOver": true }));
    lab.wait_lbxdp();
    let handing = Seen::now(lab);
    assert_eq!(handing.modes(), ["handing_over"; 3]);
    let ours = handing.sum("/take_over/established");
    assert!(ours >= u64::from(FROM_OUTSIDE * HELD), "{ours} connections are lbxdp's");
    wait_until("those that there are go on", SERVED_WITHIN, || {
        Seen::now(lab).counter("flow_hit") >= handing.counter("flow_hit") + SOME
    });
    let now = Seen::now(lab);
    for counter in ["flow_new", "socket_connected"] {
        assert_eq!(
            now.counter(counter),
            handing.counter(counter),
            "{counter}: lbxdp takes new ones"
        );
    }
    young.all_went_well(begun.elapsed().as_secs_f64());
    wait_until("nothing of lbxdp's is left", FORGOTTEN_WITHIN, || {
        let now = Seen::now(lab);
        now.sum("/take_over/established") + now.sum("/take_over/udp_sockets") == 0
    });
    remove_lbxdp(lab);

    // It ends with kube-proxy alone.
    Loads::start(lab, "moving", NUMBER).all_went_well(0.5);
    old.all_went_well(start.elapsed().as_secs_f64());
    drop(restored);
}

/// What the agents of all nodes say of themselves.
struct Seen(Vec<Value>);

impl Seen {
    #[track_caller]
    fn now(lab: &Lab) -> Self {
        Self(lab.nodes.iter().map(|node| status(lab, node)).collect())
    }

    fn modes(&self) -> Vec<&str> {
        self.0.iter().filter_map(|status| status["take_over"]["mode"].as_str()).collect()
    }

    #[track_caller]
    fn sum(&self, pointer: &str) -> u64 {
        let values = self.0.iter().map(|status| status.pointer(pointer).and_then(Value::as_u64));
        values.map(|value| value.unwrap_or_else(|| panic!("no {pointer}: {:?}", self.0))).sum()
    }

    #[track_caller]
    fn counter(&self, name: &str) -> u64 {
        self.sum(&format!("/counters/{name}"))
    }
}

/// Starts kube-proxy, and waits until its rules are on every node.
#[track_caller]
fn start_kube_proxy(lab: &Lab) {
    lab.start_kube_proxy();
    for node in &lab.nodes {
        for (table, address) in [
            (["ip", "kube-proxy"], format!("203.0.113.{NUMBER}")),
            (["ip6", "kube-proxy"], format!("2001:db8:ff::{NUMBER}")),
        ] {
            wait_until(&format!("{}: kube-proxy's rules", node.name()), SERVED_WITHIN, || {
                let rules = node.host.command("nft").args(["list", "table"]).args(table).output();
                let rules = rules.expect("nft");
                String::from_utf8_lossy(&rules.stdout).contains(&address)
            });
        }
    }
}

/// Uninstalls lbxdp, after its DaemonSet has removed what is in the kernels: docs/install.md.
#[track_caller]
fn remove_lbxdp(lab: &Lab) {
    let patch = r#"[
        {"op": "replace", "path": "/spec/updateStrategy/rollingUpdate/maxUnavailable", "value": "100%"},
        {"op": "replace", "path": "/spec/template/spec/containers/0/args", "value": ["cleanup"]}]"#;
    lab.kubectl(&["-n", NAMESPACE, "patch", "daemonset", "lbxdp", "--type", "json", "-p", patch]);
    let list = "/api/v1/namespaces/kube-system/pods?labelSelector=app.kubernetes.io%2Fname%3Dlbxdp";
    wait_until("every node is cleaned up", CLEANED_WITHIN, || {
        let pods = lab.get(list).expect("the agents' pods");
        let pods = pods["items"].as_array().expect("items");
        let is_done = |pod: &Value| {
            let restarts = pod["status"]["containerStatuses"][0]["restartCount"].as_u64();
            pod["spec"]["containers"][0]["args"][0] == "cleanup" && restarts >= Some(1)
        };
        pods.len() == lab.nodes.len() && pods.iter().all(is_done)
    });
    lab.uninstall_lbxdp();
    for node in &lab.nodes {
        assert_eq!(pins(node), "", "{}: left in the kernel", node.name());
        run(node.host.command("rm").args(["-r", "/var/lib/lbxdp"]));
    }
}

/// What of lbxdp is in the node's BPF file system.
#[track_caller]
fn pins(node: &Node) -> String {
    run(node.host.command("find").args(["/sys/fs/bpf", "-path", "*lbxdp/*"]))
}
