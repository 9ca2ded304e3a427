//! Two API servers stand in for each other.

use std::time::Instant;

use lbxdp_tests::process::wait_until;
use lbxdp_tests::{Agent, AgentOptions};
use nix::sys::signal::Signal;

use crate::world::{
    BACK_WITHIN, CHANGE_WITHIN, LONG, World, is_connected, service, wait_backends, wait_source,
};

#[test]
#[ignore = "needs root"]
fn one_of_two_api_servers_is_enough() {
    let Some(mut world) = World::start(2) else { return };
    world.create([1]);
    let urls: Vec<_> = world.plane.servers.iter().map(|server| server.url.clone()).collect();
    let flags = world.in_pod(&[&urls[0], &urls[1]]);
    let agent = Agent::watch(world.cluster.node(0), &flags, AgentOptions::default());
    wait_backends(&agent, 1, Some(2), CHANGE_WITHIN);
    wait_source(&agent, "server", format!("{}/", urls[0]));

    // The first one dies.
    world.plane.servers[0].kill();
    let endpoints = world.endpoints();
    let start = Instant::now();
    world.plane.servers[1].api().apply(&service(2).with(&endpoints));
    wait_backends(&agent, 2, Some(2), BACK_WITHIN);
    println!("at the second server after {:?}", start.elapsed());
    wait_source(&agent, "server", format!("{}/", urls[1]));
    world.plane.servers[0].start();
    world.plane.servers[0].wait_ready();

    // The second one hangs. Nobody says so: pings go unanswered.
    world.plane.servers[1].signal(Signal::SIGSTOP);
    let start = Instant::now();
    world.plane.servers[0].api().apply(&service(3).with(&endpoints));
    wait_backends(&agent, 3, Some(2), LONG);
    println!("away from a server that hangs after {:?}", start.elapsed());
    wait_until("connected", LONG, || is_connected(&agent));
    wait_source(&agent, "server", format!("{}/", urls[0]));
    world.plane.servers[1].signal(Signal::SIGCONT);
    assert!([1, 2, 3].into_iter().all(|last| world.answers(last)));
}
