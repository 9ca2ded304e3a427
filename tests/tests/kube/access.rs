//! Who asks, and for what.

use std::time::Duration;

use lbxdp_tests::process::{command, wait_until, workspace_binary};
use lbxdp_tests::{Agent, AgentOptions};

use crate::world::{ASKED, CHANGE_WITHIN, LONG, World, is_connected, wait_backends};

#[test]
#[ignore = "needs root"]
fn what_is_served_and_the_lease_are_all_that_is_asked_for() {
    let Some(world) = World::start(1) else { return };
    world.create([1]);
    let mut agent = world.agent();
    wait_backends(&agent, 1, Some(2), CHANGE_WITHIN);
    agent.restart();
    world.delete([1]);
    wait_backends(&agent, 1, None, CHANGE_WITHIN);
    let asked = world.plane.audited();
    let asked: Vec<_> = asked.iter().map(String::as_str).collect();
    // Without pools nothing is written.
    assert_eq!(asked, ASKED);
}

#[test]
#[ignore = "needs root"]
fn an_account_without_rights_is_told_what_it_lacks() {
    let Some(world) = World::start(1) else { return };
    let role = serde_json::json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": { "name": "lbxdp" },
    });
    world.plane.api().delete(std::slice::from_ref(&role));
    let url = world.plane.servers[0].url.clone();
    let options = AgentOptions { do_not_wait: true, ..AgentOptions::default() };
    let agent = Agent::watch(world.cluster.node(0), &world.in_pod(&[&url]), options);
    wait_until("it says what is missing", CHANGE_WITHIN * 2, || {
        agent.get("/readyz").is_some_and(|(status, text)| {
            status == 503 && text.contains("forbidden") && text.contains("waiting for the first")
        })
    });
    assert_eq!(agent.get("/livez").map(|(status, _)| status), Some(200));
}

/// Tokens are replaced long before they expire; the new one is used with the next request.
#[test]
#[ignore = "needs root"]
fn a_new_token_is_used_at_once() {
    let Some(mut world) = World::start(1) else { return };
    world.create([1]);
    let agent = world.agent();
    wait_backends(&agent, 1, Some(2), CHANGE_WITHIN);
    world.plane.service_account("expired");
    world.plane.servers[0].kill();
    world.plane.servers[0].start();
    world.plane.servers[0].wait_ready();
    wait_until("the old token is refused", LONG, || agent.log().contains("Unauthorized"));
    assert!(!is_connected(&agent));
    let token = world.token();
    world.plane.service_account(&token);
    // The pause after refusals is 5 s at the most.
    wait_until("connected", Duration::from_secs(8), || is_connected(&agent));
}

#[test]
#[ignore = "needs root"]
fn in_a_pod_an_address_is_asked_for_and_never_the_cluster_ip() {
    let agent = workspace_binary("lbxdp-agent");
    let pins = lbxdp_tests::sweep::unique_pin_path();
    let run = |more: &[&str]| {
        let mut command = command(&agent);
        command.args(["run", "--node-name", "n", "--pin-path"]).arg(&pins);
        command.env("KUBERNETES_SERVICE_HOST", "10.96.0.1").args(more);
        let output = command.output().expect("run the agent");
        let _ = std::fs::remove_dir_all(&pins);
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let error = run(&[]);
    assert!(error.contains("--manifests") && error.contains("--api-server"), "{error}");
    let error = run(&["--manifests", "/tmp", "--api-server", "https://192.0.2.1:6443"]);
    assert!(error.contains("cannot be used with"), "{error}");
    let error = run(&["--api-server", "https://192.0.2.1:6443"]);
    assert!(error.contains("not in a pod with a service account"), "{error}");
    let account = lbxdp_tests::Scratch::new("account");
    for file in ["token", "ca.crt", "namespace"] {
        std::fs::write(account.join(file), "x").expect("write");
    }
    let dir = account.path().display().to_string();
    let error = run(&["--service-account", &dir, "--api-server", "https://10.96.0.1"]);
    assert!(error.contains("the API server's ClusterIP"), "{error}");
}
