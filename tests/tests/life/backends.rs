//! Backends come and go; connections stay.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use lbxdp_agent::quarantine::QUARANTINE;
use lbxdp_tests::AgentOptions;
use lbxdp_tests::traffic::echo::Client;
use lbxdp_tests::traffic::hold::Held;
use lbxdp_tests::traffic::socket::Source;
use lbxdp_tests::traffic::spread::{Outcome, Probe, Spread};

use crate::world::{TIMEOUT, WEB_FILE, World, pods, target, web};

const CONNECTIONS: u16 = 400;
const BACKENDS: usize = 10;

/// Connections that are used all the time.
struct Busy {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Held>,
}

impl Busy {
    fn start(mut held: Held) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                held.ping_all();
                std::thread::sleep(Duration::from_millis(20));
            }
            held
        });
        Self { stop, thread }
    }

    fn stop(self) -> Held {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the thread does not panic")
    }
}

fn new_flows(world: &World, v6: bool, count: u32) -> Outcome {
    let spread = Spread::new(target(v6, Probe::Echo), Probe::Echo, count);
    let outcome = world.cluster.client.run(|| spread.run());
    assert_eq!((outcome.answered(), outcome.failed), (count, 0), "{:?}", outcome.errors);
    outcome
}

fn removing_a_backend_breaks_nothing(v6: bool) {
    // No test of ours sends so much from one client that ports could run out.
    let world = World::start(&pods(5, 5), AgentOptions::default());
    let held = world.cluster.client.run(|| {
        Held::open(target(v6, Probe::Echo), CONNECTIONS, 0, TIMEOUT).expect("connections open")
    });
    let before = held.report().open;
    assert_eq!(before.len(), BACKENDS, "{before:?}");
    let busy = Busy::start(held);

    for gone in ["pod-a-2", "pod-b-3"] {
        world.serve_without(&[gone]);
        world.wait_backends(BACKENDS - 1);
        let outcome = new_flows(&world, v6, 200);
        assert!(!outcome.backends.contains_key(gone), "{:?}", outcome.backends);
        assert_eq!(outcome.backends.len(), BACKENDS - 1, "{:?}", outcome.backends);

        world.serve_without(&[]);
        world.wait_backends(BACKENDS);
        let outcome = new_flows(&world, v6, 200);
        assert!(outcome.backends.contains_key(gone), "{:?}", outcome.backends);
    }

    let mut held = busy.stop();
    assert_eq!(held.ping_all(), 0);
    let report = held.report();
    assert!(report.broken.is_empty(), "{:?}", report.broken);
    assert_eq!(report.open, before);
    assert!(report.pings > 10 * u64::from(CONNECTIONS), "{} pings", report.pings);
    assert_eq!(world.counts().all_drops(), 0);
}

#[test]
fn removing_and_adding_a_backend_breaks_no_ipv4_connection() {
    removing_a_backend_breaks_nothing(false);
}

#[test]
fn removing_and_adding_a_backend_breaks_no_ipv6_connection() {
    removing_a_backend_breaks_nothing(true);
}

/// Connections to a pod here and to one elsewhere, of both families.
fn held(world: &World) -> Vec<(bool, Client)> {
    let mut held = Vec::new();
    for v6 in [false, true] {
        let mut seen = BTreeSet::new();
        while seen.len() < 2 {
            let target = target(v6, Probe::Echo);
            let client = world.cluster.client.run(|| Client::connect(target, Source::ANY, TIMEOUT));
            let client = client.expect("a connection");
            if seen.insert(client.answer().name.clone()) {
                held.push((v6, client));
            }
        }
    }
    held
}

#[test]
fn connections_outlive_their_endpoint_and_their_service() {
    let world = World::start(&pods(1, 1), AgentOptions::default());
    let mut held = held(&world);
    let mut ping_all = |when: &str| {
        for (_, client) in &mut held {
            let name = client.answer().name.clone();
            client.ping(when).unwrap_or_else(|error| panic!("{when}: {name}: {error}"));
        }
    };
    // Longer than ids and addresses rest.
    let rest = || std::thread::sleep(2 * QUARANTINE + QUARANTINE / 2);
    world.manifests.write(WEB_FILE, &web().with(&[]));
    world.wait_backends(0);
    ping_all("without endpoints");
    rest();
    ping_all("long without endpoints");
    world.manifests.remove(WEB_FILE);
    rest();
    ping_all("without the Service");
    for v6 in [false, true] {
        assert!(!world.answers(target(v6, Probe::Http)), "nothing new is served");
    }
    ping_all("and still");
}
