//! Alerts and dashboard ask for what the agent says.

use std::collections::{BTreeMap, BTreeSet};

use lbxdp_common::{Counter, DropReason};
use lbxdp_tests::chart::{CHART, objects};
use lbxdp_tests::go::workspace;
use lbxdp_tests::{Agent, AgentOptions, Cluster, Scratch, Spec};
use serde_json::Value;

/// Metrics that the agent has not got yet. Each must go from here when it comes.
const PENDING: &[&str] = &[
    "lbxdp_changes_pending",
    "lbxdp_last_queued_timestamp_seconds",
    "lbxdp_last_sync_timestamp_seconds",
    "lbxdp_map_pressure",
    "lbxdp_network_programming_duration_seconds_bucket",
    "lbxdp_sync_duration_seconds_bucket",
    "lbxdp_watch_connected",
];

fn read(name: &str) -> String {
    std::fs::read_to_string(workspace().join(CHART).join("files").join(name)).expect(name)
}

fn dashboard() -> Value {
    serde_json::from_str(&read("dashboard.json")).expect("JSON")
}

fn alerts() -> Vec<Value> {
    let groups = objects(&read("alerts.yaml")).expect("YAML").remove(0);
    let groups = groups["groups"].as_array().expect("groups").clone();
    groups.iter().flat_map(|group| group["rules"].as_array().expect("rules").clone()).collect()
}

/// Every PromQL expression, by where it is.
fn expressions() -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for alert in alerts() {
        let name = alert["alert"].as_str().expect("name").to_owned();
        let expression = alert["expr"].as_str().expect("expr").to_owned();
        assert!(all.insert(name.clone(), expression).is_none(), "twice: {name}");
    }
    for panel in dashboard()["panels"].as_array().expect("panels") {
        let title = panel["title"].as_str().expect("title");
        for (number, target) in panel["targets"].as_array().into_iter().flatten().enumerate() {
            let expression = target["expr"].as_str().expect("expr").to_owned();
            let name = format!("{title} {number}");
            assert!(all.insert(name.clone(), expression).is_none(), "twice: {name}");
        }
    }
    assert!(all.len() > 20, "{all:?}");
    all
}

/// Words of ours in an expression.
fn metrics(expression: &str) -> BTreeSet<String> {
    expression
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.starts_with("lbxdp_"))
        .map(str::to_owned)
        .collect()
}

/// What `label="…"` and `label=~"…|…"` name in an expression.
fn matched<'a>(expression: &'a str, label: &str) -> Vec<&'a str> {
    let mut all = Vec::new();
    for operator in ["=\"", "=~\""] {
        for part in expression.split(&format!("{label}{operator}")).skip(1) {
            all.extend(part.split('"').next().expect("a value").split('|'));
        }
    }
    all
}

#[test]
fn brackets_are_balanced() {
    for (place, expression) in expressions() {
        let mut open = Vec::new();
        let mut quoted = false;
        for c in expression.chars() {
            match c {
                '"' => quoted = !quoted,
                _ if quoted => {}
                '(' => open.push(')'),
                '{' => open.push('}'),
                '[' => open.push(']'),
                ')' | '}' | ']' => assert_eq!(open.pop(), Some(c), "{place}: {expression}"),
                _ => {}
            }
        }
        assert!(open.is_empty() && !quoted, "{place}: {expression}");
    }
}

#[test]
fn reasons_and_events_are_those_of_the_programs() {
    let reasons: BTreeSet<_> = DropReason::ALL.iter().map(|reason| reason.as_str()).collect();
    let events: BTreeSet<_> = Counter::ALL.iter().map(|counter| counter.as_str()).collect();
    let mut seen = 0;
    for (place, expression) in expressions() {
        for reason in matched(&expression, "reason") {
            assert!(reasons.contains(reason), "{place}: no reason {reason}");
            seen += 1;
        }
        for event in matched(&expression, "event") {
            let prefix = event.strip_suffix(".*");
            let is_known = match prefix {
                Some(prefix) => events.iter().any(|event| event.starts_with(prefix)),
                None => events.contains(event),
            };
            assert!(is_known, "{place}: no event {event}");
            seen += 1;
        }
    }
    assert!(seen > 10, "{seen}");
}

#[test]
fn every_alert_says_what_it_means() {
    for alert in alerts() {
        assert!(alert["alert"].as_str().is_some_and(|name| name.starts_with("Lbxdp")), "{alert}");
        assert!(alert["annotations"]["summary"].is_string(), "{alert}");
        assert!(alert["for"].is_string(), "{alert}");
        let severity = alert["labels"]["severity"].as_str();
        assert!(severity.is_some_and(|it| ["critical", "warning"].contains(&it)), "{alert}");
    }
}

#[test]
fn panels_do_not_overlap_and_have_ids_of_their_own() {
    let dashboard = dashboard();
    let panels = dashboard["panels"].as_array().expect("panels");
    let (mut ids, mut taken) = (BTreeSet::new(), BTreeSet::new());
    for panel in panels {
        assert!(ids.insert(panel["id"].as_u64().expect("id")), "{}", panel["title"]);
        let [x, y, w, h] =
            ["x", "y", "w", "h"].map(|name| panel["gridPos"][name].as_u64().expect("a number"));
        assert!(x + w <= 24, "{}", panel["title"]);
        for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
            assert!(taken.insert(cell), "{} overlaps", panel["title"]);
        }
    }
}

#[test]
#[ignore = "needs root"]
fn the_agent_has_every_metric_that_is_asked_for() {
    let cluster = Cluster::new(&Spec::default());
    let manifests = Scratch::new("manifests");
    let agent = Agent::start(&cluster.nodes[0], manifests.path(), AgentOptions::default());
    let (status, text) = agent.get("/metrics").expect("metrics");
    assert_eq!(status, 200, "{text}");
    let known: BTreeSet<_> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split(['{', ' ']).next())
        .collect();
    let come: Vec<_> = PENDING.iter().filter(|name| known.contains(**name)).collect();
    assert!(come.is_empty(), "no longer pending: {come:?}");
    for (place, expression) in expressions() {
        for metric in metrics(&expression) {
            let is_known = known.contains(metric.as_str()) || PENDING.contains(&metric.as_str());
            assert!(is_known, "{place}: the agent has no {metric}");
        }
    }
}
