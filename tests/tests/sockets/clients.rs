//! Who asks: whom backends see, whom source ranges admit, and who keeps a backend.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use lbxdp_tests::manifests::Endpoint;
use lbxdp_tests::process::wait_until;
use lbxdp_tests::traffic::puppet::{Kind, Puppet};
use nix::errno::Errno;
use serde_json::json;

use crate::world::{ECHO, EDIT_WITHIN, Family, WEB, World, name_in, plain, who_tcp};

/// Whom backends saw in 30 connections.
fn seen(
    puppet: &mut Puppet,
    family: Family,
    to: SocketAddr,
) -> (BTreeSet<String>, BTreeSet<IpAddr>) {
    let (mut names, mut peers) = (BTreeSet::new(), BTreeSet::new());
    for _ in 0..30 {
        puppet.open(1, Kind::Tcp, family.has_v6_socket());
        assert_eq!(puppet.connect(1, to), Ok(()), "{to}");
        let banner = puppet.recv(1).expect("a banner");
        let peer = banner.split(' ').find_map(|word| word.strip_prefix("peer="));
        peers.insert(peer.expect("a peer").parse().expect("an address"));
        names.insert(name_in(&banner));
        puppet.close(1);
    }
    (names, peers)
}

#[test]
fn every_backend_sees_the_pod_that_asks() {
    let world = World::start();
    let local = plain("local", 20).external_local();
    world.manifests.write("local.yaml", &local.with(&Endpoint::pods(&world.cluster)));
    wait_until("the Service is served", EDIT_WITHIN, || world.agent.status().0["frontends"] == 20);
    let mut puppet = world.in_pod();
    for family in Family::ALL {
        let own = world.pod(0).ip(family.is_v6());
        for to in [family.cluster_ip(WEB, ECHO), family.vip(WEB, ECHO), family.vip(20, ECHO)] {
            let (names, peers) = seen(&mut puppet, family, to);
            assert_eq!(names.len(), 3, "{to}: {names:?}");
            assert_eq!(peers, BTreeSet::from([own]), "{to}");
        }
    }
}

#[test]
fn a_process_of_the_node_is_seen_as_the_node() {
    let world = World::start();
    let node = world.node();
    // The way to a pod here begins at the gateway that the node is for it.
    let own: BTreeSet<IpAddr> =
        [node.v4.into(), node.v6.into(), IpAddr::from([10, 244, 1, 1])].into();
    let mut puppet = world.on_node();
    for family in Family::ALL {
        let (names, peers) = seen(&mut puppet, family, family.vip(WEB, ECHO));
        assert_eq!(names.len(), 3, "{names:?}");
        assert!(peers.is_subset(&own), "{peers:?}");
    }
}

#[test]
fn the_node_port_of_another_node_is_left_to_that_node() {
    let world = World::start();
    let mut puppet = world.in_pod();
    let elsewhere = world.cluster.node(1);
    for family in Family::ALL {
        // Nobody forwards there in this test, so the node itself refuses.
        puppet.open(1, Kind::Tcp, family.has_v6_socket());
        let to = family.node(elsewhere, crate::world::NODE_PORT_ECHO);
        assert_eq!(puppet.connect(1, to), Err(Errno::ECONNREFUSED), "{to}");
    }
    assert_eq!(world.counter("socket_connected"), 0);
    assert_eq!(world.counter("socket_refused"), 0);
}

/// Serves `ranged` at 30 for these clients only, and waits until the agent says so.
#[track_caller]
fn restrict(world: &World, ranges: &[String]) {
    let service = plain("ranged", 30).spec("loadBalancerSourceRanges", json!(ranges));
    world.manifests.write("ranged.yaml", &service.with(&Endpoint::pods(&world.cluster)));
    wait_until("the ranges are programmed", EDIT_WITHIN, || {
        let list = world.agent.json(&["service", "list"]);
        let rows = list.as_array().expect("a list").iter();
        let mut vips = rows.filter(|row| {
            row["service"].as_str().is_some_and(|name| name.starts_with("default/ranged:"))
                && row["kind"] == "LoadBalancer"
        });
        let in_family = |row: &serde_json::Value| {
            let v6 = row["address"].as_str().is_some_and(|address| address.starts_with('['));
            let all = ranges.iter().filter(|range| range.contains(':') == v6);
            let mut all: Vec<_> = all.cloned().collect();
            all.sort();
            json!(all) == row["source_ranges"]
        };
        vips.clone().count() == 4 && vips.all(in_family)
    });
}

#[test]
fn source_ranges_admit_processes_of_the_node_by_its_addresses() {
    let world = World::start();
    let node = world.node();
    let mut puppet = world.on_node();
    restrict(&world, &[format!("{}/32", node.v4), format!("{}/128", node.v6)]);
    for family in Family::ALL {
        let names: BTreeSet<_> =
            (0..20).map(|_| who_tcp(&mut puppet, family, family.vip(30, ECHO))).collect();
        assert!(names.len() > 1, "{names:?}");
    }
    restrict(&world, &["192.0.2.0/24".to_owned(), "2001:db8:bad::/48".to_owned()]);
    for family in Family::ALL {
        puppet.open(1, Kind::Tcp, family.has_v6_socket());
        assert_eq!(puppet.connect(1, family.vip(30, ECHO)), Err(Errno::EHOSTUNREACH));
        // Ranges are for addresses that lead in from outside.
        who_tcp(&mut puppet, family, family.cluster_ip(30, ECHO));
    }
}

#[test]
fn source_ranges_admit_bound_sockets_of_pods_by_their_address() {
    let world = World::start();
    let (inside, outside) = (world.pod(0), world.pod(1));
    restrict(&world, &[format!("{}/32", inside.v4), format!("{}/128", inside.v6)]);
    for (pod, expected) in [(inside, Ok(())), (outside, Err(Errno::EHOSTUNREACH))] {
        let mut puppet = world.puppet(&pod.netns);
        for family in Family::ALL {
            puppet.open(1, Kind::Tcp, family.has_v6_socket());
            puppet.bind(1, family.pod(pod, 0));
            assert_eq!(puppet.connect(1, family.vip(30, ECHO)), expected, "{}", pod.name);
            puppet.close(1);
        }
    }
}

#[test]
fn clients_of_one_namespace_keep_their_backend() {
    let world = World::start();
    let sticky = plain("sticky", 40).spec("sessionAffinity", json!("ClientIP"));
    world.manifests.write("sticky.yaml", &sticky.with(&Endpoint::pods(&world.cluster)));
    world.wait_backends("default/sticky:", 3);
    let mut chosen = BTreeSet::new();
    for mut puppet in [world.in_pod(), world.puppet(&world.pod(1).netns), world.on_node()] {
        for family in [Family::V4, Family::V6] {
            let mut ask = |to| who_tcp(&mut puppet, family, to);
            let first = ask(family.cluster_ip(40, ECHO));
            for _ in 0..10 {
                assert_eq!(ask(family.cluster_ip(40, ECHO)), first);
                assert_eq!(ask(family.vip(40, ECHO)), first, "one memory for all addresses");
            }
            chosen.insert(first);
        }
    }
    assert!(!chosen.is_empty() && world.counter("affinity_kept") >= 6 * 20);
}
