//! Agents that find each other by their leases, and go on without an API.

use std::fs;
use std::time::{Duration, Instant};

use lbxdp_agent::members::Report;
use lbxdp_tests::chart::NAMESPACE;
use lbxdp_tests::process::wait_until;
use lbxdp_tests::scratch::Scratch;
use lbxdp_tests::{Agent, AgentOptions};

use crate::world::{CHANGE_WITHIN, World};

/// A loss is noticed within this time.
const NOTICED_WITHIN: Duration = Duration::from_secs(1);

fn report(agent: &Agent) -> Report {
    Report::read(&agent.state_dir()).unwrap_or_default()
}

#[track_caller]
fn wait_alive(agent: &Agent, count: usize) {
    wait_until(&format!("{} counts {count}", agent.node_name()), CHANGE_WITHIN * 2, || {
        let report = report(agent);
        report.alive() == count && !report.isolated && report.protocol
    });
}

fn renewed(world: &World, node: &str) -> Option<String> {
    let path =
        format!("/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/lbxdp-node-{node}");
    Some(world.plane.api().get(&path)?["spec"]["renewTime"].as_str()?.to_owned())
}

#[test]
#[ignore = "needs root"]
fn leases_bring_agents_together_and_an_api_that_is_away_changes_nothing() {
    let Some(mut world) = World::with_pods(1, vec![1, 1, 1]) else { return };
    let key = Scratch::new("key");
    fs::write(key.join("key"), "a key that nobody else has\n").expect("write the key");
    let extra = vec![format!("--members-key-file={}", key.join("key").display())];
    let options = AgentOptions { extra, ..AgentOptions::default() };
    let mut agents: Vec<Agent> = (0..3).map(|node| world.agent_on(node, options.clone())).collect();
    agents.iter().for_each(|agent| wait_alive(agent, 3));
    let before = renewed(&world, "node-b");
    assert!(before.is_some(), "no lease");
    wait_until("the lease is renewed", CHANGE_WITHIN, || renewed(&world, "node-b") != before);

    // Two renewals would be missed by then, and more.
    world.plane.servers[0].kill();
    std::thread::sleep(Duration::from_secs(8));
    agents.iter().for_each(|agent| wait_alive(agent, 3));
    agents[0].restart();
    wait_alive(&agents[0], 3);
    std::thread::sleep(Duration::from_millis(1_200));
    let since = Instant::now();
    agents[2].kill9();
    wait_until("the others miss it", NOTICED_WITHIN * 4, || {
        agents[..2].iter().all(|agent| report(agent).alive() == 2)
    });
    let time = since.elapsed();
    println!("missed after {time:?} without an API");
    assert!(time <= NOTICED_WITHIN, "{time:?}");
    assert!(agents[..2].iter().all(|agent| !report(agent).isolated));

    world.plane.servers[0].start();
    world.plane.servers[0].wait_ready();
    agents[2].start_again();
    agents.iter().for_each(|agent| wait_alive(agent, 3));
}
