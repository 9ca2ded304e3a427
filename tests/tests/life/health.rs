//! `/livez`, `/readyz`, `/healthz` and `/metrics`.

use std::collections::BTreeMap;

use lbxdp_common::{Counter, DropReason};

use lbxdp_tests::manifests::{Endpoint, node_object};
use lbxdp_tests::process::wait_until;
use serde_json::{Value, json};

use crate::world::{EDIT_WITHIN, SHORT, WEB_FILE, World, vip, web};

/// Every sample of a page of metrics, by name and labels as they are written.
fn samples(text: &str) -> BTreeMap<String, f64> {
    assert!(text.ends_with("# EOF\n"), "{text}");
    let mut samples = BTreeMap::new();
    for line in text.lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            let kind = comment.split(' ').next().expect("a word");
            assert!(["HELP", "TYPE", "UNIT", "EOF"].contains(&kind), "{line}");
            continue;
        }
        let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no value: {line:?}"));
        let value = value.parse().unwrap_or_else(|_| panic!("no number: {line:?}"));
        let bare = name.split('{').next().expect("a name");
        assert!(bare.starts_with("lbxdp_"), "{line}");
        assert!(bare.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'), "{line}");
        assert_eq!(name.contains('{'), name.ends_with('}'), "{line}");
        assert!(samples.insert(name.to_owned(), value).is_none(), "twice: {name}");
    }
    samples
}

/// Status and body of one of the pages about the agent itself.
fn about(world: &World, path: &str) -> (u16, Value) {
    let (status, body) = world.agent.get(path).expect("an answer");
    (status, serde_json::from_str(&body).unwrap_or_else(|error| panic!("{path}: {error}: {body}")))
}

#[test]
fn a_running_agent_is_live_and_ready_and_its_metrics_are_what_status_says() {
    let world = World::with_pods(1, 1);
    assert_eq!(world.agent.get("/readyz"), Some((200, "ok\n".to_owned())));
    for (path, eligible) in [("/livez", Value::Null), ("/healthz", json!(true))] {
        let (status, body) = about(&world, path);
        assert_eq!((status, &body["nodeEligible"]), (200, &eligible), "{path}");
        assert!(body["currentTime"].is_string(), "{body}");
        assert_eq!(body["lastUpdated"], body["currentTime"], "up to date is now");
    }
    assert_eq!(world.agent.get("/nothing").map(|(status, _)| status), Some(404));

    for _ in 0..3 {
        world.ask_both();
    }
    // A port of a service address that nobody serves.
    let closed = vip(false, 10, 81);
    let refused = world.cluster.client.run(|| {
        lbxdp_tests::traffic::socket::tcp(closed, lbxdp_tests::traffic::socket::Source::ANY, SHORT)
    });
    assert!(refused.is_err());

    let (status, text) = world.agent.get("/metrics").expect("metrics");
    assert_eq!(status, 200, "{text}");
    let samples = samples(&text);
    let said = world.agent.status();
    // Nothing is sent meanwhile, but the last packets of a connection may still be on their way.
    for counter in Counter::ALL {
        let name = counter.as_str();
        let sample = samples[&format!("lbxdp_dataplane_events_total{{event=\"{name}\"}}")];
        let now = said.counter(name) as f64;
        assert!((now - sample).abs() <= 6.0, "{name}: {sample} and then {now}");
    }
    for reason in DropReason::ALL {
        let name = reason.as_str();
        let sample = samples[&format!("lbxdp_drops_total{{reason=\"{name}\"}}")];
        assert!((said.drops(name) as f64 - sample).abs() <= 1.0, "{name}: {sample}");
    }
    assert!(samples["lbxdp_dataplane_events_total{event=\"flow_new\"}"] >= 6.0, "{text}");
    let of = |result: &str| samples[&format!("lbxdp_flow_lookups_total{{result=\"{result}\"}}")];
    assert!(of("miss") >= 6.0 && of("hit") > of("miss"), "{text}");
    let flows = samples["lbxdp_map_used_entries{map=\"flows_v4\"}"];
    assert!((1.0..1_000.0).contains(&flows), "{text}");
    let pressure = samples["lbxdp_map_pressure{map=\"flows_v4\"}"];
    assert!((pressure - flows / lbxdp_common::limits::MAX_FLOWS as f64).abs() < 1e-9, "{text}");
    assert!(samples["lbxdp_sync_duration_seconds_count{extent=\"full\"}"] >= 1.0, "{text}");
    let [queued, synced] =
        ["queued", "sync"].map(|what| samples[&format!("lbxdp_last_{what}_timestamp_seconds")]);
    assert!(synced >= queued && queued > 1e9, "{text}");
    assert!(samples["lbxdp_drops_total{reason=\"unknown_port\"}"] >= 1.0, "{text}");
    for (name, value) in [
        // For each family a ClusterIP and a VIP with three ports, and one NodePort.
        ("lbxdp_frontends", 14.0),
        ("lbxdp_backends", 12.0),
        ("lbxdp_map_used_entries{map=\"backends_v4\"}", 6.0),
        ("lbxdp_map_used_entries{map=\"frontends_v6\"}", 7.0),
        ("lbxdp_map_used_entries{map=\"members\"}", 0.0),
        ("lbxdp_changes_pending{kind=\"services\"}", 0.0),
        ("lbxdp_changes_pending{kind=\"endpoints\"}", 0.0),
        ("lbxdp_sync_errors_total", 0.0),
        ("lbxdp_problems{severity=\"error\"}", 0.0),
        ("lbxdp_problems{severity=\"warning\"}", 0.0),
        ("lbxdp_livez_total{code=\"200\"}", 1.0),
        ("lbxdp_livez_total{code=\"503\"}", 0.0),
        ("lbxdp_healthz_total{code=\"200\"}", 1.0),
        ("lbxdp_healthz_total{code=\"503\"}", 0.0),
        ("lbxdp_no_local_endpoints{traffic_policy=\"internal\"}", 0.0),
        ("lbxdp_no_local_endpoints{traffic_policy=\"external\"}", 0.0),
        ("lbxdp_device_attached{device=\"eth0\",hook=\"xdp\"}", 1.0),
        ("lbxdp_device_attached{device=\"eth0\",hook=\"tc\"}", 1.0),
    ] {
        assert_eq!(samples.get(name), Some(&value), "{name}\n{text}");
    }
    assert!(samples.keys().any(|name| name.starts_with("lbxdp_build_info{")), "{text}");
}

#[test]
fn problems_of_the_input_are_counted_and_do_not_make_an_agent_unready() {
    let world = World::with_pods(1, 0);
    let logged = world.agent.log().len();
    world.manifests.write_text("broken.yaml", "kind: [");
    world.wait_log(logged, "broken.yaml", crate::world::EDIT_WITHIN);
    let (_, text) = world.agent.get("/metrics").expect("metrics");
    assert_eq!(samples(&text)["lbxdp_problems{severity=\"error\"}"], 1.0, "{text}");
    assert_eq!(world.agent.get("/readyz").map(|(status, _)| status), Some(200));
}

#[test]
fn a_node_that_is_about_to_go_is_live_and_ready_and_not_healthy() {
    let world = World::with_pods(1, 0);
    let mut node = node_object(world.node());
    let write = |node: &Value| world.manifests.write("nodes.yaml", std::slice::from_ref(node));
    let healthz = |expected| {
        wait_until(&format!("/healthz says {expected}"), EDIT_WITHIN, || {
            about(&world, "/healthz").0 == expected
        });
    };
    node["spec"] = json!({"unschedulable": true});
    write(&node);
    node["spec"]["taints"] =
        json!([{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]);
    write(&node);
    healthz(503);
    assert_eq!(about(&world, "/healthz").1["nodeEligible"], json!(false));
    assert_eq!(about(&world, "/livez").0, 200);
    assert_eq!(world.agent.get("/readyz").map(|(status, _)| status), Some(200));
    world.ask_both();
    let (_, text) = world.agent.get("/metrics").expect("metrics");
    assert!(samples(&text)["lbxdp_healthz_total{code=\"503\"}"] >= 2.0, "{text}");

    node["spec"] = json!({});
    write(&node);
    healthz(200);
    node["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    write(&node);
    healthz(503);
    assert_eq!(about(&world, "/livez").0, 200);
}

#[test]
fn no_source_takes_liveness_away() {
    let world = World::with_pods(1, 0);
    std::fs::remove_dir_all(world.manifests.path()).expect("remove the manifests");
    world.wait_log(0, &world.manifests.path().display().to_string(), EDIT_WITHIN);
    for path in ["/livez", "/healthz"] {
        assert_eq!(about(&world, path).0, 200, "{path}");
    }
    world.ask_both();
}

#[test]
fn services_without_endpoints_on_this_node_are_counted() {
    let world = World::with_pods(1, 1);
    let there = Endpoint::pods_of(world.cluster.node(1));
    let count = |policy: &str| {
        let (_, text) = world.agent.get("/metrics").expect("metrics");
        samples(&text)[&format!("lbxdp_no_local_endpoints{{traffic_policy=\"{policy}\"}}")]
    };
    world.manifests.write(WEB_FILE, &web().external_local().with(&there));
    // Three ports, in both families.
    wait_until("all ports are counted", EDIT_WITHIN, || count("external") == 3.0);
    assert_eq!(count("internal"), 0.0);
    world.manifests.write(WEB_FILE, &web().internal_local().with(&there));
    wait_until("all ports are counted", EDIT_WITHIN, || count("internal") == 3.0);
    assert_eq!(count("external"), 0.0);
}
