//! Alerts and dashboard ask for what the agent says.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lbxdp_common::{Counter, DropReason};
use lbxdp_tests::chart::{CHART, objects};
use lbxdp_tests::go::workspace;
use lbxdp_tests::process::wait_until;
use lbxdp_tests::{Agent, AgentOptions, Cluster, Scratch, Spec};
use serde_json::Value;

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

/// A metric as the documentation describes it and as the agent shows it: type and labels by name.
type Described = BTreeMap<String, (String, BTreeSet<String>)>;

/// What a page of metrics has, by the names that queries use for what is counted.
fn described(text: &str) -> Described {
    let mut types = BTreeMap::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').expect("a type");
        types.insert(name, kind);
    }
    let mut all = Described::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (sample, _) = line.rsplit_once(' ').expect("a value");
        let (name, labels) = sample.split_once('{').unwrap_or((sample, ""));
        let suffixes = ["", "_total", "_bucket", "_sum", "_count"];
        let family = suffixes.iter().find_map(|suffix| {
            let family = name.strip_suffix(suffix)?;
            Some((family, *types.get(family)?))
        });
        let (family, kind) = family.unwrap_or_else(|| panic!("no type: {line}"));
        let name = if kind == "counter" { name } else { family };
        let (_, labels_of) =
            all.entry(name.to_owned()).or_insert_with(|| (kind.to_owned(), BTreeSet::new()));
        let names = labels.trim_end_matches('}').split("\",").filter_map(|it| it.split_once('='));
        labels_of.extend(names.map(|(name, _)| name.to_owned()).filter(|name| name != "le"));
    }
    all
}

/// What `docs/metrics.md` says, from the rows of its tables.
fn documented() -> Described {
    let page = std::fs::read_to_string(workspace().join("docs/metrics.md")).expect("the page");
    let mut all = Described::new();
    for row in page.lines().filter(|line| line.starts_with("| `lbxdp_")) {
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        let [_, name, kind, labels, meaning, _] = cells[..] else {
            panic!("not four cells: {row}")
        };
        assert!(!meaning.is_empty(), "{row}");
        let name = name.trim_matches('`').to_owned();
        let labels = labels.split(", ").map(|label| label.trim_matches('`').to_owned());
        let labels = labels.filter(|label| !label.is_empty()).collect();
        assert!(all.insert(name, (kind.to_owned(), labels)).is_none(), "twice: {row}");
    }
    all
}

/// A pool, and a Service for which it has no address.
const POOL: &str = "\
apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: {name: a, namespace: lb}
spec: {addresses: [203.0.113.0/30], autoAssign: false}
---
apiVersion: v1
kind: Service
metadata: {name: pending}
spec: {type: LoadBalancer, loadBalancerClass: lbxdp.io/lbxdp, clusterIP: 10.96.0.7, ports: [{port: 80}]}
";

/// Everything that an agent shows with manifests, and with an API, which may be silent.
fn shown() -> Described {
    let cluster = Cluster::new(&Spec::default());
    let manifests = Scratch::new("manifests");
    std::fs::write(manifests.join("pool.yaml"), POOL).expect("write");
    // Some things are only shown by an agent that hands over.
    let handing_over =
        AgentOptions { extra: vec!["--hand-over".into()], ..AgentOptions::default() };
    let stand_alone = Agent::start(&cluster.nodes[0], manifests.path(), handing_over);
    let page = |agent: &Agent| {
        // Before there are maps there is nothing to show.
        agent.get("/metrics").filter(|(status, _)| *status == 200).map(|(_, text)| text)
    };
    let mut all = described(&page(&stand_alone).expect("metrics"));
    drop(stand_alone);
    let kubeconfig = manifests.join("kubeconfig");
    let text = "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
        contexts: [{name: c, context: {cluster: k, user: u}}]\n\
        clusters: [{name: k, cluster: {server: 'https://127.0.0.1:1'}}]\n\
        users: [{name: u, user: {token: t}}]\n";
    std::fs::write(&kubeconfig, text).expect("write");
    let flags = ["--kubeconfig".to_owned(), kubeconfig.display().to_string()];
    let options = AgentOptions { do_not_wait: true, ..AgentOptions::default() };
    let agent = Agent::watch(&cluster.nodes[0], &flags, options);
    let mut text = None;
    wait_until("metrics", Duration::from_secs(20), || {
        text = page(&agent);
        text.is_some()
    });
    for (name, (kind, labels)) in described(&text.expect("metrics")) {
        let (_, known) = all.entry(name).or_insert_with(|| (kind, BTreeSet::new()));
        known.extend(labels);
    }
    all
}

#[test]
#[ignore = "needs root"]
fn the_agent_has_every_metric_that_is_asked_for_or_documented_and_no_others() {
    let (shown, documented) = (shown(), documented());
    for (name, metric) in &shown {
        assert_eq!(documented.get(name), Some(metric), "docs/metrics.md about {name}");
    }
    for name in documented.keys() {
        assert!(shown.contains_key(name), "docs/metrics.md: the agent has no {name}");
    }
    for (place, expression) in expressions() {
        for metric in metrics(&expression) {
            let histogram = metric.strip_suffix("_bucket").map(|name| shown.get(name));
            let is_known = match histogram {
                Some(metric) => metric.is_some_and(|(kind, _)| kind == "histogram"),
                None => shown.contains_key(&metric),
            };
            assert!(is_known, "{place}: the agent has no {metric}");
        }
    }
}
