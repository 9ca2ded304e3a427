//! Ten thousand Services.

use std::fs;
use std::time::{Duration, Instant};

use lbxdp_tests::manifests::{Endpoint, Port, Service};
use lbxdp_tests::{Agent, AgentOptions};
use serde_json::Value;

use crate::world::{World, wait_log};

/// 10,000 Services with ten endpoints each with `--long`, a tenth of that otherwise.
#[test]
#[ignore = "needs root"]
fn a_large_cluster_is_served_seconds_after_its_lists() {
    let Some(world) = World::start(1) else { return };
    let count: u32 = if lbxdp_tests::long() { 10_000 } else { 1_000 };
    let objects: Vec<Value> = (0..count).flat_map(object).collect();
    let start = Instant::now();
    world.plane.api().apply(&objects);
    println!("{count} Services created in {:?}", start.elapsed());

    let options = AgentOptions { do_not_wait: true, ..AgentOptions::default() };
    let url = world.plane.servers[0].url.clone();
    let start = Instant::now();
    let mut agent = Agent::watch(world.cluster.node(0), &world.in_pod(&[&url]), options);
    wait_log(&agent, 0, "kind=EndpointSlice objects=", Duration::from_secs(120));
    let listed = Instant::now();
    agent.wait_ready();
    println!("listed after {:?}, ready {:?} later", start.elapsed(), listed.elapsed());
    // And that of the API itself.
    assert_eq!(agent.status().0["frontends"], count + 1);
    assert!(listed.elapsed() < Duration::from_secs(20), "{:?}", listed.elapsed());
    let pid = agent.process().expect("it runs").pid();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
    let memory = status.lines().find(|line| line.starts_with("VmRSS")).unwrap_or_default();
    println!("{memory}");

    // One change among all of them.
    let offset = agent.log().len();
    let mut slice = object(0)[1].clone();
    slice["endpoints"].as_array_mut().expect("endpoints").pop();
    let start = Instant::now();
    world.plane.api().apply(&[slice]);
    wait_log(&agent, offset, "programmed planned=", Duration::from_secs(10));
    println!("one change, request and look included: {:?}", start.elapsed());
}

/// A thousand sets of ten pods; several Services may have the same one. As many different sets as
/// Services would be more than the maps hold.
fn object(n: u32) -> Vec<Value> {
    let [_, _, high, low] = n.to_be_bytes();
    let [_, _, set_high, set_low] = (n % 1_000).to_be_bytes();
    let endpoint = |e: u8| Endpoint::new([10, 10 + e, set_high, set_low], "elsewhere");
    let endpoints: Vec<_> = (0..10).map(endpoint).collect();
    Service::new(&format!("s-{n}"))
        .cluster_ip(&format!("10.96.{}.{low}", 128 + high))
        .port(Port::tcp("http", 80, 8080))
        .with(&endpoints)
}
