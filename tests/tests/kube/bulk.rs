//! A list that lacks most of what was there.

use std::time::{Duration, Instant};

use lbxdp_tests::kube::{Fault, Proxy, Upstream};
use lbxdp_tests::process::wait_until;
use lbxdp_tests::{Agent, AgentOptions};

use crate::world::{CHANGE_WITHIN, LONG, World, backends, is_connected, wait_backends, wait_log};

const HOLD: Duration = Duration::from_secs(6);

#[test]
#[ignore = "needs root"]
fn most_services_missing_from_a_list_stay_for_a_while() {
    let Some(world) = World::start(1) else { return };
    let proxy = Proxy::http(&world.cluster.client, Upstream::first(&world.plane), 7443);
    world.create(1..=5);
    let flags = world.with_kubeconfig(&proxy.url);
    let extra = vec!["--bulk-removal-hold".to_owned(), HOLD.as_secs().to_string()];
    let options = AgentOptions { extra, ..AgentOptions::default() };
    let agent = Agent::watch(world.cluster.node(0), &flags, options);
    wait_backends(&agent, 5, Some(2), CHANGE_WITHIN);

    let lose = |numbers: std::ops::RangeInclusive<u8>| {
        proxy.set(Fault::Cut);
        wait_until("cut", LONG, || !is_connected(&agent));
        world.delete(numbers);
        world.create([9]);
        // Nobody can say what happened since: a list is all there is.
        proxy.set(Fault::GoneInStream);
    };

    // Four of five come back in time, and nothing was ever gone.
    let offset = agent.log().len();
    lose(1..=4);
    wait_backends(&agent, 9, Some(2), LONG);
    wait_log(&agent, offset, "the API's list lacks 4 of", CHANGE_WITHIN);
    assert!((1..=5).all(|last| world.answers(last)));
    world.create(1..=4);
    wait_log(&agent, offset, "no longer: API: Services", CHANGE_WITHIN);
    assert!((1..=5).all(|last| backends(&agent, last) == Some(2)));
    proxy.set(Fault::None);
    world.delete([9]);
    wait_backends(&agent, 9, None, CHANGE_WITHIN);

    // They stay away: their time is up.
    let offset = agent.log().len();
    lose(1..=4);
    wait_log(&agent, offset, "the API's list lacks 4 of 7 known Services", LONG);
    let held = Instant::now();
    assert!((1..=4).all(|last| world.answers(last)));
    for last in 1..=4 {
        wait_backends(&agent, last, None, HOLD + CHANGE_WITHIN);
    }
    let elapsed = held.elapsed();
    assert!(elapsed > HOLD / 2, "held for {elapsed:?} only");
    assert!(world.answers(5) && world.answers(9));
}
