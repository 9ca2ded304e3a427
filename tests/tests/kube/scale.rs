//! A large cluster. How long things take is measured by `cargo xtask scale`; here is what must hold.

use std::time::Duration;

use lbxdp_tests::kube::large::{self, ENDPOINTS};
use lbxdp_tests::process::wait_until;
use lbxdp_tests::{Agent, AgentOptions};
use serde_json::Value;

use crate::world::{World, wait_log};

/// Builds with debug assertions on machines that do other things as well.
const SERVED_WITHIN: Duration = Duration::from_secs(60);
const CHANGE_WITHIN: Duration = Duration::from_secs(10);

/// A tenth of the objects that the limits are made for, all of them with `--long`: no set of
/// endpoints is another's, so nothing is shared.
#[test]
#[ignore = "needs root"]
fn every_service_of_a_large_cluster_has_its_own_endpoints_and_follows_their_changes() {
    let Some(world) = World::start(1) else { return };
    let count: u32 = if lbxdp_tests::long() { 10_000 } else { 1_000 };
    let objects: Vec<Value> = (0..count).flat_map(large::service).collect();
    world.plane.api().apply(&objects);

    let options = AgentOptions { do_not_wait: true, ..AgentOptions::default() };
    let url = world.plane.servers[0].url.clone();
    let mut agent = Agent::watch(world.cluster.node(0), &world.in_pod(&[&url]), options);
    wait_log(&agent, 0, "programmed planned=", SERVED_WITHIN);
    agent.wait_ready();
    // And that of the API itself.
    assert_eq!(agent.status().0["frontends"], count + 1);
    assert_eq!(agent.status().0["backends"], count * ENDPOINTS);
    assert_eq!(backends(&agent), vec![ENDPOINTS as usize; count as usize]);

    // One change among all of them touches one Service.
    let mut slice = large::service(7)[1].clone();
    slice["endpoints"].as_array_mut().expect("endpoints").pop();
    world.plane.api().apply(std::slice::from_ref(&slice));
    wait_until("one endpoint less", CHANGE_WITHIN, || {
        let backends = backends(&agent);
        backends[7] == ENDPOINTS as usize - 1
            && backends.iter().sum::<usize>() == (count * ENDPOINTS) as usize - 1
    });
    // And a Service that goes one other.
    world.plane.api().delete(&large::service(8));
    wait_until("one Service less", CHANGE_WITHIN, || agent.status().0["frontends"] == count);
}

/// How many backends each Service has, by number.
fn backends(agent: &Agent) -> Vec<usize> {
    let list = agent.json(&["service", "list"]);
    let of = |row: &Value| {
        let name = row["service"].as_str()?.strip_prefix("default/s-")?;
        let number: u32 = name.split(':').next()?.parse().ok()?;
        Some((number, row["backends"].as_array()?.len()))
    };
    let mut backends: Vec<_> = list.as_array().expect("rows").iter().filter_map(of).collect();
    backends.sort_unstable();
    backends.into_iter().map(|(_, count)| count).collect()
}
