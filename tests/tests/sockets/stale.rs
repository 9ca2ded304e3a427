//! UDP sockets whose backend goes away: no client hangs.

use std::time::{Duration, Instant};

use lbxdp_tests::process::wait_until;
use lbxdp_tests::traffic::puppet::{Kind, Puppet};
use nix::errno::Errno;
use serde_json::Value;

use crate::world::{DNS, Family, World, any, ask_udp, name_in};

/// By when a client must have an answer or an error.
const WITHIN: Duration = Duration::from_secs(5);

fn has_stale(world: &World) -> bool {
    world.agent.status().0["sockets"]["stale"] == Value::Bool(true)
}

/// Sends until it fails.
#[track_caller]
fn wait_failure(puppet: &mut Puppet, id: u32, within: Duration) {
    let start = Instant::now();
    loop {
        match puppet.send(id, "hello") {
            Err(errno) => return assert_eq!(errno, Errno::EPERM),
            Ok(()) => assert!(start.elapsed() < within, "socket {id} sends for ever"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_connected_socket_fails_while_its_backend_does_not_serve() {
    let mut world = World::start();
    let (a, b) = ((world.node(), world.pod(1)), (world.cluster.node(1), world.far_pod()));
    world.serve("dns", 20, &[a]);
    let mut puppet = world.in_pod();
    for (id, family) in (1..).zip(Family::ALL) {
        puppet.open(id, Kind::Udp, family.has_v6_socket());
        assert_eq!(puppet.connect(id, family.cluster_ip(20, DNS)), Ok(()));
        puppet.send(id, "hello").expect("sent");
        assert_eq!(name_in(&puppet.recv(id).expect("an answer")), world.pod(1).name);
    }
    assert!(!has_stale(&world));

    world.serve("dns", 20, &[b]);
    for id in 1..=3 {
        wait_failure(&mut puppet, id, WITHIN);
    }
    assert!(has_stale(&world));
    assert!(world.counter("socket_stale") >= 3);
    // Other sockets go on meanwhile, and other destinations of a stale one too.
    puppet.open(4, Kind::Udp, false);
    let to = Family::V4.cluster_ip(20, DNS);
    assert_eq!(ask_udp(&mut puppet, 4, to), (to, world.far_pod().name.clone()));
    assert_eq!(puppet.send_to(1, to, "hello"), Ok(()));
    puppet.close(4);

    // Another agent knows it too, and no packet gets through meanwhile.
    world.agent.kill9();
    assert_eq!(puppet.send(1, "hello"), Err(Errno::EPERM));
    world.agent.start_again();
    assert_eq!(puppet.send(2, "hello"), Err(Errno::EPERM));

    // It serves again.
    let (a, b) = ((world.node(), world.pod(1)), (world.cluster.node(1), world.far_pod()));
    world.serve("dns", 20, &[a, b]);
    wait_until("the socket sends again", WITHIN, || puppet.send(1, "back").is_ok());
    for id in 2..=3 {
        wait_until("the socket sends again", WITHIN, || puppet.send(id, "back").is_ok());
        assert_eq!(name_in(&puppet.recv(id).expect("an answer")), world.pod(1).name);
    }
    wait_until("nothing is stale", WITHIN, || !has_stale(&world));
}

#[test]
fn a_socket_whose_service_is_gone_fails_until_it_is_closed() {
    let world = World::start();
    world.serve("dns", 20, &[(world.node(), world.pod(1))]);
    let mut puppet = world.on_node();
    puppet.open(1, Kind::Udp, false);
    assert_eq!(puppet.connect(1, Family::V4.cluster_ip(20, DNS)), Ok(()));
    world.manifests.remove("dns.yaml");
    wait_failure(&mut puppet, 1, WITHIN);
    assert!(has_stale(&world));
    puppet.close(1);
    wait_until("nothing is stale", WITHIN, || !has_stale(&world));
    assert_eq!(world.entries(), 0);
}

#[test]
fn an_unconnected_socket_goes_to_another_backend_from_the_same_port() {
    let world = World::start();
    let (a, b) = ((world.node(), world.pod(1)), (world.cluster.node(1), world.far_pod()));
    world.serve("dns", 20, &[a]);
    let mut puppet = world.in_pod();
    for (id, family) in (1..).zip(Family::ALL) {
        puppet.open(id, Kind::Udp, family.has_v6_socket());
        puppet.bind(id, any(family.has_v6_socket(), 46_000 + id as u16));
        let to = family.cluster_ip(20, DNS);
        assert_eq!(ask_udp(&mut puppet, id, to), (to, world.pod(1).name.clone()));
    }
    world.serve("dns", 20, &[b]);
    for (id, family) in (1..).zip(Family::ALL) {
        let to = family.cluster_ip(20, DNS);
        wait_until("the other backend answers", WITHIN, || {
            ask_udp(&mut puppet, id, to) == (to, world.far_pod().name.clone())
        });
        assert_eq!(puppet.local(id).port(), 46_000 + id as u16);
    }
    // What was kept for answers under way is forgotten too.
    wait_until("no entry of the old backend", WITHIN, || world.entries() == 9);
    assert!(!has_stale(&world));

    world.serve("dns", 20, &[]);
    for (id, family) in (1..).zip(Family::ALL) {
        let to = family.cluster_ip(20, DNS);
        wait_until("it is refused", WITHIN, || {
            puppet.send_to(id, to, "hello") == Err(Errno::ECONNREFUSED)
        });
    }
}
