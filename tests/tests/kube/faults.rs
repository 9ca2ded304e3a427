//! What a proxy, a network and an API server on a bad day do to watches.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use lbxdp_tests::kube::{Fault, Proxy, Upstream};
use lbxdp_tests::process::wait_until;
use lbxdp_tests::{Agent, AgentOptions};

use crate::world::{CHANGE_WITHIN, LONG, World, is_connected, metric, wait_backends};

const PORT: u16 = 7443;

fn agent_behind(world: &World, proxy: &Proxy) -> Agent {
    let flags = world.with_kubeconfig(&proxy.url);
    Agent::watch(world.cluster.node(0), &flags, AgentOptions::default())
}

#[test]
#[ignore = "needs root"]
fn cuts_and_errors_and_delays_are_survived() {
    let Some(world) = World::start(1) else { return };
    let proxy = Proxy::http(&world.cluster.client, Upstream::first(&world.plane), PORT);
    world.create([1]);
    let agent = agent_behind(&world, &proxy);
    wait_backends(&agent, 1, Some(2), CHANGE_WITHIN);

    let mut last = 1;
    let mut catches_up = |what: &str, within: Duration| {
        last += 1;
        world.create([last]);
        wait_backends(&agent, last, Some(2), within);
        assert!(world.answers(1), "{what}");
    };

    proxy.cut();
    catches_up("after a cut", CHANGE_WITHIN);
    assert!(metric(&agent, "lbxdp_watch_reconnects_total{kind=\"Service\"}") >= Some(1.0));

    // The watch goes on where it was; it does not list again.
    let lists = |proxy: &Proxy| {
        let seen = proxy.seen().into_iter();
        let mut lists: Vec<_> = seen.filter(|line| line.contains("sendInitialEvents")).collect();
        // What is not there is asked for again and again.
        lists.retain(|line| line.ends_with(" 200"));
        lists
    };
    let first = lists(&proxy);
    let all: BTreeSet<_> = first.iter().collect();
    let kinds = all.len();
    assert_eq!(first.len(), kinds, "something was listed twice: {first:#?}");

    for code in [429, 500, 503] {
        proxy.set(Fault::Status { code, percent: 100 });
        proxy.cut();
        wait_until("errors are noticed", LONG, || !is_connected(&agent));
        assert!(world.answers(1), "{code}");
        proxy.set(Fault::None);
        catches_up("after errors", Duration::from_secs(8));
    }
    proxy.set(Fault::Status { code: 500, percent: 50 });
    proxy.cut();
    catches_up("with half of the requests failing", LONG);

    proxy.set(Fault::Delay(Duration::from_secs(1)));
    proxy.cut();
    catches_up("with answers that take a second", Duration::from_secs(20));

    // What a watch wants may be gone: in an answer, and in an answer's stream.
    proxy.set(Fault::None);
    wait_until("connected", LONG, || is_connected(&agent));
    let before = lists(&proxy).len();
    proxy.set(Fault::GoneInStream);
    proxy.cut();
    wait_until("all kinds are listed again", LONG, || lists(&proxy).len() >= before + kinds);
    catches_up("after 410 in a stream", CHANGE_WITHIN);

    proxy.set(Fault::Status { code: 410, percent: 100 });
    proxy.cut();
    wait_until("410 is noticed", LONG, || !is_connected(&agent));
    proxy.set(Fault::None);
    catches_up("after 410", Duration::from_secs(8));

    // A server that has no streaming lists.
    proxy.set(Fault::NoStreaming);
    let mut agent = agent;
    agent.restart();
    wait_backends(&agent, 2, Some(2), CHANGE_WITHIN);
    assert!(proxy.seen().iter().any(|line| line.contains("/services?") && line.contains("limit=")));
}

#[test]
#[ignore = "needs root"]
fn a_connection_that_is_dead_without_saying_so_is_found_out() {
    let Some(world) = World::start(1) else { return };
    let proxy = Proxy::tunnel(&world.cluster.client, Upstream::first(&world.plane), PORT);
    world.create([1]);
    let flags = world.in_pod(&[&proxy.url]);
    let agent = Agent::watch(world.cluster.node(0), &flags, AgentOptions::default());
    wait_backends(&agent, 1, Some(2), CHANGE_WITHIN);

    proxy.set(Fault::Silence);
    let start = Instant::now();
    wait_until("noticed", Duration::from_secs(20), || !is_connected(&agent));
    println!("a silent connection is given up after {:?}", start.elapsed());
    assert!(world.answers(1));
    world.create([2]);
    proxy.set(Fault::None);
    wait_backends(&agent, 2, Some(2), Duration::from_secs(8));

    proxy.set(Fault::Cut);
    wait_until("noticed", CHANGE_WITHIN, || !is_connected(&agent));
    proxy.set(Fault::None);
    wait_until("connected", CHANGE_WITHIN, || is_connected(&agent));
}
