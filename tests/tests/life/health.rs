//! `/livez`, `/readyz`, `/healthz` and `/metrics`.

use std::collections::BTreeMap;

use lbxdp_common::{Counter, DropReason};

use crate::world::{SHORT, World, vip};

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

#[test]
fn a_running_agent_is_live_and_ready_and_its_metrics_are_what_status_says() {
    let world = World::with_pods(1, 1);
    for path in ["/livez", "/readyz", "/healthz"] {
        assert_eq!(world.agent.get(path), Some((200, "ok\n".to_owned())), "{path}");
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
        let sample = samples[&format!("lbxdp_events_total{{event=\"{name}\"}}")];
        let now = said.counter(name) as f64;
        assert!((now - sample).abs() <= 6.0, "{name}: {sample} and then {now}");
    }
    for reason in DropReason::ALL {
        let name = reason.as_str();
        let sample = samples[&format!("lbxdp_drops_total{{reason=\"{name}\"}}")];
        assert!((said.drops(name) as f64 - sample).abs() <= 1.0, "{name}: {sample}");
    }
    assert!(samples["lbxdp_events_total{event=\"flow_new\"}"] >= 6.0, "{text}");
    assert!(samples["lbxdp_drops_total{reason=\"unknown_port\"}"] >= 1.0, "{text}");
    for (name, value) in [
        // For each family a ClusterIP and a VIP with three ports, and one NodePort.
        ("lbxdp_frontends", 14.0),
        ("lbxdp_backends", 12.0),
        ("lbxdp_problems{severity=\"error\"}", 0.0),
        ("lbxdp_problems{severity=\"warning\"}", 0.0),
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
