//! Events on the objects that have problems, made with the rights that a cluster gives the agent.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::time::Duration;

use lbxdp_agent::pins::Pins;
use lbxdp_tests::kube::Api;
use lbxdp_tests::process::{command, run, wait_until};
use lbxdp_tests::{Agent, AgentOptions};
use serde_json::{Value, json};

use crate::world::{ASKED, CHANGE_WITHIN, World, metric, service, wait_backends};

/// Agents take their turns within ten seconds.
const TOLD_WITHIN: Duration = Duration::from_secs(20);

fn get(api: &Api, path: &str) -> Value {
    let answer = api.request("GET", path, None, Duration::from_secs(30));
    serde_json::from_str(&answer.unwrap_or_else(|error| panic!("{error}"))).expect("JSON")
}

/// The agents' Events for this reason.
fn events(api: &Api, reason: &str) -> Vec<Value> {
    let list = get(api, "/apis/events.k8s.io/v1/events");
    let items = list["items"].as_array().expect("items").iter();
    let ours = items.filter(|it| it["reportingController"] == "lbxdp" && it["reason"] == reason);
    ours.cloned().collect()
}

/// How many Events these agents have sent, by what came of it.
fn sent(agents: &[Agent], result: &str) -> f64 {
    let name = format!("lbxdp_events_sent_total{{result=\"{result}\"}}");
    agents.iter().filter_map(|agent| metric(agent, &name)).sum()
}

fn dropped(agent: &Agent, reason: &str) -> Option<f64> {
    metric(agent, &format!("lbxdp_events_dropped_total{{reason=\"{reason}\"}}"))
}

#[test]
#[ignore = "needs root"]
fn what_every_agent_sees_is_told_once() {
    let Some(world) = World::with_pods(1, vec![1, 1]) else { return };
    world.create([1]);
    let agents = [0, 1].map(|node| world.agent_on(node, AgentOptions::default()));
    let api = world.plane.api();
    // Whose address is taken already.
    api.apply(&service(2).vip("203.0.113.1").with(&world.endpoints()));
    for agent in &agents {
        wait_backends(agent, 2, Some(2), CHANGE_WITHIN);
    }
    wait_until("both have told it", TOLD_WITHIN, || {
        sent(&agents, "created") + sent(&agents, "existed") == 2.0
    });
    assert_eq!((sent(&agents, "created"), sent(&agents, "existed")), (1.0, 1.0));

    let events = events(api, "AddressConflict");
    assert_eq!(events.len(), 1, "{events:#?}");
    let uid = get(api, "/api/v1/namespaces/default/services/web-2")["metadata"]["uid"].clone();
    let regarding = json!({
        "apiVersion": "v1", "kind": "Service", "namespace": "default", "name": "web-2", "uid": uid,
    });
    let event = &events[0];
    assert_eq!(event["regarding"], regarding);
    assert_eq!(
        (&event["type"], &event["metadata"]["namespace"]),
        (&json!("Warning"), &json!("default"))
    );
    let note = event["note"].as_str().expect("a note");
    assert!(
        note.contains("203.0.113.1:80/TCP is the LoadBalancer of Service default/web-1"),
        "{note}"
    );
    let instance = event["reportingInstance"].as_str().expect("an instance");
    assert!(agents.iter().any(|agent| agent.node_name() == instance), "{instance}");
    // What `kubectl describe` asks for.
    let uid = uid.as_str().expect("a uid");
    let path =
        format!("/api/v1/namespaces/default/events?fieldSelector=involvedObject.uid%3D{uid}");
    assert_eq!(get(api, &path)["items"].as_array().map(Vec::len), Some(1));

    // A restart forgets what was told; the Event is there.
    let [mut first, second] = agents;
    first.restart();
    wait_until("told again", TOLD_WITHIN, || {
        metric(&first, "lbxdp_events_sent_total{result=\"existed\"}") == Some(1.0)
    });
    assert_eq!(self::events(api, "AddressConflict").len(), 1);
    for agent in [&first, &second] {
        for reason in ["overflow", "outdated", "refused"] {
            assert_eq!(dropped(agent, reason), Some(0.0), "{reason}");
        }
    }
    // The rights were enough, and nothing else was asked for.
    let asked = world.plane.audited();
    let mut expected = BTreeSet::from(ASKED);
    expected.insert("create events");
    assert_eq!(asked.iter().map(String::as_str).collect::<BTreeSet<_>>(), expected);
}

#[test]
#[ignore = "needs root"]
fn what_one_node_has_is_told_by_that_node() {
    let Some(world) = World::with_pods(1, vec![1, 1]) else { return };
    let api = world.plane.api();
    let node = world.cluster.node(0);
    let taken = world.cluster.node(0).netns.run(|| TcpListener::bind((node.v4, 30_555)));
    let agents = [0, 1].map(|node| world.agent_on(node, AgentOptions::default()));
    let local = service(1).node_ports().external_local();
    let local =
        local.spec("type", json!("LoadBalancer")).spec("healthCheckNodePort", json!(30_555));
    api.apply(&local.with(&world.endpoints()));
    wait_until("told", TOLD_WITHIN, || !events(api, "HealthCheckNotServed").is_empty());
    let told = events(api, "HealthCheckNotServed");
    assert_eq!(told.len(), 1, "{told:#?}");
    assert_eq!(told[0]["reportingInstance"], agents[0].node_name());
    assert_eq!(told[0]["regarding"]["name"], "web-1");
    let note = told[0]["note"].as_str().expect("a note");
    assert!(note.contains("cannot listen on") && note.contains(":30555"), "{note}");
    drop(taken);

    // A map that takes nothing any more. There is no way back for it.
    let map = Pins::new(agents[1].pin_path()).map("frontends_v4");
    run(command("bpftool").args(["map", "freeze", "pinned"]).arg(map));
    world.create([2]);
    wait_until("told", TOLD_WITHIN, || !events(api, "SyncFailed").is_empty());
    let told = events(api, "SyncFailed");
    assert_eq!(told.len(), 1, "{told:#?}");
    assert_eq!(told[0]["regarding"]["kind"], "Node");
    assert_eq!(told[0]["regarding"]["name"], agents[1].node_name());
    assert_eq!(told[0]["metadata"]["namespace"], "default");
    let note = told[0]["note"].as_str().expect("a note");
    assert!(note.contains("map frontends_v4"), "{note}");
    assert!(metric(&agents[1], "lbxdp_sync_errors_total") >= Some(1.0));
    assert!(metric(&agents[1], "lbxdp_changes_pending{kind=\"services\"}") >= Some(1.0));
    assert_eq!(metric(&agents[0], "lbxdp_sync_errors_total"), Some(0.0));
    // And `status` has it, while the agent lives and when it does not.
    let [_, mut agent] = agents;
    let dir = agent.state_dir().display().to_string();
    let error = |agent: &Agent| {
        let status = agent.json(&["status", "--state-dir", &dir]);
        status["source"]["work"]["error"].as_str().unwrap_or_default().to_owned()
    };
    wait_until("status has it", CHANGE_WITHIN, || error(&agent).contains("frontends_v4"));
    agent.kill9();
    assert!(error(&agent).contains("frontends_v4"));
}

#[test]
#[ignore = "needs root"]
fn without_the_right_to_tell_everything_is_served_and_what_was_not_told_is_counted() {
    let Some(world) = World::start(1) else { return };
    let api = world.plane.api();
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": { "name": "lbxdp" },
    });
    let path = "/apis/rbac.authorization.k8s.io/v1/clusterroles/lbxdp";
    let mut rules = get(api, path)["rules"].as_array().expect("rules").clone();
    let all = rules.len();
    rules.retain(|rule| rule["resources"] != json!(["events"]));
    assert_eq!(rules.len(), all - 1);
    api.patch(&role, &json!({ "rules": rules }));
    world.create([1]);
    let agent = world.agent();
    api.apply(&service(2).vip("203.0.113.1").with(&world.endpoints()));
    wait_backends(&agent, 2, Some(2), CHANGE_WITHIN);
    wait_until("counted", TOLD_WITHIN, || dropped(&agent, "refused") == Some(1.0));
    assert!(events(api, "AddressConflict").is_empty());
    assert!(agent.log().contains("an Event is refused"), "{}", agent.log());
    assert!(world.answers(1));
}
