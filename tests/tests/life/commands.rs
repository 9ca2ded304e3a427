//! The command line, mostly on the pins of an agent that is gone.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use lbxdp_common::ABI_VERSION;
use lbxdp_tests::AgentOptions;
use lbxdp_tests::process::{command, run, wait_until, workspace_binary};
use lbxdp_tests::traffic::hold::Held;
use lbxdp_tests::traffic::spread::Probe;
use serde_json::Value;

use crate::world::{TIMEOUT, World, pods, target, texts};

fn rows(value: &Value) -> &Vec<Value> {
    value.as_array().unwrap_or_else(|| panic!("no list: {value}"))
}

fn row<'a>(list: &'a Value, address: &str) -> &'a Value {
    let found = rows(list).iter().find(|row| row["address"] == address);
    found.unwrap_or_else(|| panic!("no {address} in {list:#}"))
}

#[test]
fn every_listing_works_from_the_pins_of_a_dead_agent_with_names() {
    let mut world = World::with_pods(1, 1);
    world.ask_both();
    let mut held = [false, true].map(|v6| {
        let target = target(v6, Probe::Echo);
        world.cluster.client.run(|| Held::open(target, 5, 0, TIMEOUT)).expect("connections open")
    });
    world.agent.kill9();
    assert!(held.iter_mut().all(|held| held.ping_all() == 0));

    let status = world.agent.status().0;
    assert_eq!(
        (&status["abi"], &status["frontends"]),
        (&ABI_VERSION.into(), &14.into()),
        "{status:#}"
    );
    assert_eq!(status["pin_path"], world.agent.pin_path().to_str().expect("text"));
    let device = world.device("eth0");
    assert_eq!((&device["xdp"], &device["tc"]), (&"native".into(), &"tcx".into()), "{device}");
    assert!(status["counters"]["flow_new"].as_u64() >= Some(12), "{status:#}");
    let text = world.agent.cli(&["status"]);
    for part in ["14 frontends, 12 backends", "eth0", "native", "tcx", "flow_new"] {
        assert!(text.contains(part), "{part:?} in\n{text}");
    }
    assert!(text.contains("no packet was dropped"), "{text}");

    let services = world.agent.json(&["service", "list"]);
    for (address, name, kind, backends) in [
        ("203.0.113.10:7", "default/web:echo", "LoadBalancer", ["10.244.1.11:7", "10.244.2.11:7"]),
        (
            "[fd00:10:96::10]:80",
            "default/web:http",
            "ClusterIP",
            ["[fd00:10:244:1::11]:8080", "[fd00:10:244:2::11]:8080"],
        ),
        (
            "198.51.100.11:30080",
            "default/web:http",
            "NodePort",
            ["10.244.1.11:8080", "10.244.2.11:8080"],
        ),
    ] {
        let row = row(&services, address);
        assert_eq!((&row["service"], &row["kind"]), (&name.into(), &kind.into()), "{row:#}");
        let listed: Vec<_> = rows(&row["backends"])
            .iter()
            .map(|backend| (backend["address"].as_str(), backend["local"].as_bool()))
            .collect();
        let expected = [(Some(backends[0]), Some(true)), (Some(backends[1]), Some(false))];
        assert_eq!(listed, expected, "{row:#}");
    }
    let echo = row(&services, "203.0.113.10:7");
    assert!(echo["packets"].as_u64() >= Some(20), "{echo:#}");
    let text = world.agent.cli(&["service", "list"]);
    assert!(text.lines().any(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        words.starts_with(&["default/web:echo", "LoadBalancer", "203.0.113.10:7", "TCP"])
            && line.contains("10.244.1.11:7 (local), 10.244.2.11:7")
    }));

    let backends = world.agent.json(&["backend", "list"]);
    assert_eq!(rows(&backends).len(), 12);
    let remote = row(&backends, "[fd00:10:244:2::11]:7");
    assert_eq!(
        (&remote["local"], &remote["snat_source"], &remote["services"]),
        (&false.into(), &"2001:db8:1::11".into(), &["default/web:echo"].as_slice().into())
    );
    let text = world.agent.cli(&["backend", "list"]);
    assert!(text.lines().any(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        words == ["10.244.2.11:7", "remote", "198.51.100.11", "default/web:echo"]
    }));

    let flows = world.agent.json(&["flow", "list"]);
    for frontend in ["203.0.113.10:7", "[2001:db8:ff::10]:7"] {
        let of_it: Vec<_> = rows(&flows)
            .iter()
            .filter(|row| row["frontend"] == frontend && row["state"] == "ESTABLISHED")
            .collect();
        assert_eq!(of_it.len(), 5, "{flows:#}");
        assert!(of_it.iter().all(|row| row["service"] == "default/web:echo"), "{flows:#}");
    }
    let text = world.agent.cli(&["flow", "list"]);
    assert!(text.contains("default/web:echo") && text.contains("ESTABLISHED"), "{text}");
    assert!(held.iter_mut().all(|held| held.ping_all() == 0));
}

/// What there is on the node's uplink beside its addresses.
fn attached(world: &World) -> String {
    let netns = &world.node().netns;
    let qdiscs = netns.exec("tc qdisc show dev eth0");
    let mut lines: Vec<_> = qdiscs.lines().filter(|line| line.contains("clsact")).collect();
    let link = netns.exec("ip -d link show dev eth0");
    lines.extend(link.lines().filter(|line| line.contains("xdp")).map(str::trim));
    lines.join("\n")
}

/// The programs that the kernel has, by id.
fn programs() -> BTreeSet<u64> {
    let list: Vec<Value> =
        serde_json::from_str(&run(command("bpftool").args(["-j", "prog", "show"]))).expect("JSON");
    list.iter().filter_map(|program| program["id"].as_u64()).collect()
}

/// `links` is the number of pinned links that are to be there, beside clsact filters.
fn cleanup_leaves_nothing(options: AgentOptions, links: usize) {
    let mut world = World::start(&pods(1, 1), options);
    world.ask_both();
    let before = attached(&world);
    assert!(before.contains("xdp"), "{before}");
    assert_eq!(before.contains("clsact"), links < 3, "{before}");
    world.agent.kill9();
    assert_eq!(attached(&world), before);
    let pinned: BTreeSet<_> =
        world.links().iter().map(|link| u64::from(link.info.prog_id)).collect();
    assert_eq!(pinned.len(), links);
    assert!(pinned.is_subset(&programs()));

    let text = world.agent.cli(&["cleanup"]);
    assert_eq!(text.lines().filter(|line| line.starts_with("detached eth0")).count(), 3, "{text}");
    assert!(text.contains(&format!("removed {}", world.agent.pin_path().display())), "{text}");
    assert!(!world.agent.pin_path().exists());
    assert_eq!(attached(&world), "");
    wait_until("the programs are gone", Duration::from_secs(5), || programs().is_disjoint(&pinned));
    assert_eq!(world.agent.cli(&["cleanup"]), "nothing to remove\n");
    assert!(!world.answers(target(false, Probe::Http)));

    // And everything comes back.
    world.agent.start_again();
    world.ask_both();
    assert_eq!(attached(&world).lines().count(), before.lines().count());
}

#[test]
fn cleanup_leaves_nothing_and_may_be_repeated() {
    cleanup_leaves_nothing(AgentOptions::default(), 3);
}

#[test]
fn cleanup_removes_clsact_filters_and_their_qdisc() {
    let extra = vec!["--tc-mode".to_owned(), "clsact".to_owned()];
    let options = AgentOptions { extra, ..AgentOptions::default() };
    cleanup_leaves_nothing(options, 1);
}

#[test]
fn cleanup_leaves_other_peoples_pins_and_filters() {
    let mut world = World::with_pods(1, 0);
    world.agent.kill9();
    let foreign = world.pinned("theirs");
    fs::create_dir(&foreign).expect("a directory of somebody else");
    world.node().netns.exec("tc qdisc add dev eth0 clsact");
    world.agent.cli(&["cleanup"]);
    assert!(foreign.is_dir());
    assert!(!world.pins().maps().exists() && !world.pinned("links").exists());
    assert!(attached(&world).contains("clsact"));
}

#[test]
fn commands_without_pins_say_so_and_fail() {
    let path = lbxdp_tests::sweep::unique_pin_path();
    let shown = path.display().to_string();
    let binary = workspace_binary("lbxdp-agent");
    for arguments in [
        ["status"].as_slice(),
        &["service", "list"],
        &["backend", "list", "-o", "json"],
        &["flow", "list"],
    ] {
        let mut agent = command(&binary);
        let output = agent.args(arguments).args(["--pin-path", &shown]).output().expect("started");
        let (stdout, stderr) = texts(&output);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {stderr}");
        assert_eq!(stdout, "");
        let expected =
            format!("lbxdp-agent: no agent of this version has run with pins in {shown}");
        assert!(stderr.starts_with(&expected), "{arguments:?}: {stderr}");
    }
    let output = command(&binary).args(["cleanup", "--pin-path", &shown]).output().expect("run");
    assert_eq!(texts(&output).0, "nothing to remove\n");
    assert!(output.status.success() && !path.exists());
}

#[test]
fn command_lines_that_say_nothing_sensible_exit_with_two() {
    let binary = workspace_binary("lbxdp-agent");
    let start = ["run", "--manifests", "/nowhere", "--node-name", "n"];
    let with = |more: &[&'static str]| [&start, more].concat();
    for (arguments, complaint) in [
        (vec![], "Usage"),
        (vec!["serve"], "unrecognized subcommand 'serve'"),
        (vec!["status", "-o", "yaml"], "invalid value 'yaml'"),
        (vec!["service"], "Usage"),
        (vec!["run", "--node-name", "n"], "--manifests"),
        (vec!["run", "--manifests", "/nowhere"], "--node-name"),
        (with(&["--fast"]), "unexpected argument '--fast'"),
        (with(&["--listen", "here"]), "invalid value 'here'"),
        (with(&["--snat-ports", "61000"]), "expected LO-HI"),
        (with(&["--snat-ports", "61003-61000"]), "61003 is above 61000"),
        (with(&["--snat-ports", "80-90"]), "below 1024"),
        (with(&["--cgroup", "sockets"]), "neither an absolute path nor `none`"),
        (with(&["--xdp-mode", "fast"]), "invalid value 'fast'"),
    ] {
        let output = command(&binary).args(&arguments).output().expect("started");
        let (_, stderr) = texts(&output);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
        assert!(stderr.contains(complaint), "{arguments:?}: {stderr}");
    }
}

/// Starts a second agent, which is to fail with this message.
fn run_fails(world: &World, node: usize, arguments: &[&str], expected: &str) {
    program_fails("lbxdp-agent", world, node, arguments, expected);
}

fn program_fails(program: &str, world: &World, node: usize, arguments: &[&str], expected: &str) {
    let node = world.cluster.node(node);
    // Should it not fail, it would run for ever.
    let mut agent = node.netns.command("timeout");
    agent.arg("10").arg(workspace_binary(program));
    agent.arg("run").arg("--manifests").arg(world.manifests.path());
    agent.args(["--node-name", &node.name, "--cgroup", "none"]).args(arguments);
    let output = agent.output().expect("started");
    let (_, stderr) = texts(&output);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains(expected), "{expected:?} in {stderr}");
}

#[test]
fn a_second_agent_on_the_same_pins_is_refused_and_disturbs_nothing() {
    let mut world = World::with_pods(1, 1);
    let path = world.agent.pin_path().display().to_string();
    let expected = format!("lbxdp-agent: pin path {path} is in use by a running agent");
    // Also from another network namespace, where it would find other devices.
    for node in [0, 1] {
        run_fails(&world, node, &["--pin-path", &path], &expected);
    }
    // And of another version, whose maps would be others.
    program_fails("lbxdp-agent-next", &world, 0, &["--pin-path", &path], &expected);
    let output = world.command(&["cleanup"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(texts(&output).1.starts_with(&expected), "{}", texts(&output).1);
    world.ask_both();
    // The lock ends with its holder, whatever ended that.
    world.agent.kill9();
    world.agent.start_again();
    world.ask_both();
}

#[test]
fn ports_that_the_host_or_node_ports_use_are_refused_unless_they_are_reserved() {
    let mut world = World::with_pods(0, 1);
    world.agent.stop();
    let path = world.agent.pin_path().display().to_string();
    let pins = ["--pin-path", path.as_str(), "--snat-ports"];
    let with = |range| [&pins, [range].as_slice()].concat();
    run_fails(
        &world,
        0,
        &with("60990-61010"),
        "--snat-ports 60990-61010: the host gives port 60990 to its own connections \
         (net.ipv4.ip_local_port_range is 32768-60999)",
    );
    run_fails(
        &world,
        0,
        &with("30000-30100"),
        "--snat-ports 30000-30100 overlaps the NodePort range 30000-32767",
    );
    world.node().netns.sysctl("net.ipv4.ip_local_reserved_ports", "60990-60999");
    world.agent.set_options(AgentOptions {
        snat_ports: Some((60_990, 60_999)),
        ..AgentOptions::default()
    });
    world.agent.start_again();
    for v6 in [false, true] {
        let port = world.ask(v6).peer.port();
        assert!((60_990..=60_999).contains(&port), "{port}");
    }
}
