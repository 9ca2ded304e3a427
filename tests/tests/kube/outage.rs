//! The API goes and comes back.

use std::time::{Duration, Instant};

use lbxdp_tests::process::wait_until;
use nix::sys::signal::Signal;

use crate::world::{
    BACK_WITHIN, CHANGE_WITHIN, LONG, World, is_connected, wait_backends, wait_source,
};

/// Changes that an agent has to catch up on: one Service more, one less.
fn change(world: &World) {
    world.create([3]);
    world.delete([2]);
}

#[test]
#[ignore = "needs root"]
fn a_stopped_api_server_takes_nothing_away_and_what_changed_is_there_soon() {
    let Some(world) = World::start(2) else { return };
    world.create([1, 2]);
    let agent = world.agent();
    wait_backends(&agent, 2, Some(2), CHANGE_WITHIN);

    world.plane.servers[0].signal(Signal::SIGSTOP);
    // Through the other one: this one is the agent's.
    let endpoints = world.endpoints();
    let other = world.plane.servers[1].api();
    other.apply(&crate::world::service(3).with(&endpoints));
    other.delete(&crate::world::service(2).with(&endpoints));
    wait_until("the silence is noticed", LONG, || !is_connected(&agent));
    assert!(world.answers(1) && world.answers(2), "{}", agent.log());
    assert_eq!(agent.get("/readyz").map(|(status, _)| status), Some(200));
    wait_source(&agent, "connected", false);

    world.plane.servers[0].signal(Signal::SIGCONT);
    let back = Instant::now();
    wait_backends(&agent, 3, Some(2), BACK_WITHIN);
    wait_backends(&agent, 2, None, BACK_WITHIN);
    println!("caught up {:?} after SIGCONT", back.elapsed());
    assert!(world.answers(1) && world.answers(3));
}

#[test]
#[ignore = "needs root"]
fn an_agent_that_starts_while_the_api_is_down_serves_what_was_known() {
    let Some(mut world) = World::start(1) else { return };
    world.create([1, 2]);
    let mut agent = world.agent();
    wait_backends(&agent, 2, Some(2), CHANGE_WITHIN);

    world.plane.servers[0].kill();
    wait_until("the end is noticed", LONG, || !is_connected(&agent));
    assert!(world.answers(1) && world.answers(2));
    // With its pins, and with nothing but the state.
    agent.restart();
    assert!(world.answers(1) && world.answers(2));
    assert!(agent.log().contains("serving what was known"), "{}", agent.log());
    agent.stop();
    agent.cli(&["cleanup"]);
    assert!(!world.answers(1));
    agent.start_again();
    wait_until("served from the state", CHANGE_WITHIN, || world.answers(1) && world.answers(2));
    wait_backends(&agent, 2, Some(2), CHANGE_WITHIN);

    world.plane.servers[0].start();
    world.plane.servers[0].wait_ready();
    let back = Instant::now();
    change(&world);
    wait_backends(&agent, 3, Some(2), BACK_WITHIN);
    wait_backends(&agent, 2, None, BACK_WITHIN);
    println!("caught up {:?} after the API server was ready", back.elapsed());
    assert!(world.answers(1) && !world.answers(2));

    // The state does not bring back what the API has deleted.
    agent.restart();
    wait_backends(&agent, 3, Some(2), CHANGE_WITHIN);
    wait_backends(&agent, 2, None, CHANGE_WITHIN);
}

#[test]
#[ignore = "needs root"]
fn a_first_start_without_an_api_is_not_ready_and_programs_nothing() {
    let Some(mut world) = World::start(1) else { return };
    world.create([1]);
    let url = world.plane.servers[0].url.clone();
    let flags = world.in_pod(&[&url]);
    world.plane.servers[0].kill();
    let options =
        lbxdp_tests::AgentOptions { do_not_wait: true, ..lbxdp_tests::AgentOptions::default() };
    let mut agent = lbxdp_tests::Agent::watch(world.cluster.node(0), &flags, options);
    wait_until("it says why", LONG, || {
        agent.get("/readyz").is_some_and(|(status, text)| status == 503 && text.contains("refused"))
    });
    wait_until("its maps are there", LONG, || agent.can(&["status"]));
    assert_eq!(agent.status().0["frontends"], 0);
    world.plane.servers[0].start();
    world.plane.servers[0].wait_ready();
    agent.wait_ready();
    wait_backends(&agent, 1, Some(2), Duration::from_secs(1));
    assert!(world.answers(1));
}
