//! Many flows over equal backends.

use std::net::IpAddr;

use lbxdp_tests::AgentOptions;
use lbxdp_tests::traffic::spread::{Outcome, Probe, Spread};

use crate::world::{TIMEOUT, World, pods, target};

const FLOWS: u32 = 20_000;
const BACKENDS: usize = 4;
const CLIENTS: u16 = 2;
const FIRST_PORT: u16 = 33_000;

/// From several threads, each with a client address of its own: together every flow differs.
fn open_flows(world: &World, v6: bool, probe: Probe) -> Outcome {
    let addresses = world.cluster.client_addresses(v6, CLIENTS - 1);
    let threads: Vec<_> = addresses.into_iter().map(|addr| part(world, v6, probe, addr)).collect();
    let mut all = Outcome::default();
    for thread in threads {
        all.add(thread.join().expect("the thread does not panic"));
    }
    all
}

fn part(world: &World, v6: bool, probe: Probe, addr: IpAddr) -> std::thread::JoinHandle<Outcome> {
    let count = FLOWS / u32::from(CLIENTS);
    let mut spread = Spread::new(target(v6, probe), probe, count).from_port(FIRST_PORT);
    spread.sources = vec![addr];
    spread.timeout = TIMEOUT;
    world.cluster.client.spawn(move || spread.run())
}

fn is_even(v6: bool, probe: Probe) {
    // Remote backends take a port each, and UDP flows keep theirs for a minute.
    let options = AgentOptions { snat_ports: Some((10_000, 29_999)), ..AgentOptions::default() };
    let world = World::start(&pods(2, 2), options);
    let outcome = open_flows(&world, v6, probe);
    assert_eq!((outcome.answered(), outcome.failed), (FLOWS, 0), "{:?}", outcome.errors);
    let unevenness = outcome.unevenness(BACKENDS);
    println!("{unevenness:.4} {:?}", outcome.backends);
    assert!(unevenness <= 0.05, "{unevenness:.3}: {:?}", outcome.backends);
    assert_eq!(world.counts().counter("flow_new"), u64::from(FLOWS));
}

#[test]
fn twenty_thousand_ipv4_udp_flows_spread_evenly_over_four_backends() {
    is_even(false, Probe::Udp);
}

#[test]
fn twenty_thousand_ipv6_tcp_flows_spread_evenly_over_four_backends() {
    is_even(true, Probe::Echo);
}
