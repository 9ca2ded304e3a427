//! The shares of nodes, by numbers: 500 addresses and three nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;

use super::{Balancer, Balancers, Here, NodeFacts, Resources, decide, mine, nodes, owners};
use crate::members::Members;
use crate::source::{Kind, ObjectId, Sourced};
use crate::vip::Facts;
use crate::vip::resources::read;

const COUNT: u32 = 500;
const NODES: [&str; 3] = ["node-a", "node-b", "node-c"];

/// One Service for each address, with endpoints everywhere.
fn balancers() -> Balancers {
    let first = u32::from(Ipv4Addr::new(192, 0, 2, 0));
    let balancer = |number: u32| {
        let id = ObjectId::new(Kind::Service, Some("shop"), &format!("s{number:03}"));
        let addresses = vec![Ipv4Addr::from(first + number).into()];
        let endpoints = NODES.map(str::to_owned).into();
        (id, Arc::new(Balancer { addresses, endpoints, ..Balancer::default() }))
    };
    (0..COUNT).map(balancer).collect()
}

fn resources() -> Resources {
    let object = |spec| json!({"metadata": {"name": "a", "namespace": "lb"}, "spec": spec});
    let pool = object(json!({"addresses": ["192.0.2.0/23"]}));
    let facts = Facts {
        pools: vec![Sourced::new("", read(&pool).unwrap())],
        advertisements: vec![Sourced::new("", read(&object(json!({}))).unwrap())],
        ..Facts::default()
    };
    let node = |name: &str| NodeFacts { name: name.to_owned(), ..NodeFacts::default() };
    Resources::new(&facts, NODES.map(node).into(), true)
}

/// What each of these announces, when they are those that are alive.
fn shares(alive: &[&'static str]) -> BTreeMap<&'static str, BTreeSet<IpAddr>> {
    let (balancers, resources) = (balancers(), resources());
    let members =
        Members { alive: alive.iter().map(ToString::to_string).collect(), ..Members::default() };
    let share = |name: &&'static str| {
        let here = Here {
            name: (*name).to_owned(),
            is_healthy: true,
            is_leaving: false,
            devices: ["eth0".to_owned()].into(),
        };
        let nodes = nodes(&resources, &members, &here);
        let share = mine(&owners(&decide(&balancers, &resources, &nodes)), name);
        (*name, share.into_keys().collect())
    };
    alive.iter().map(share).collect()
}

#[test]
fn five_hundred_addresses_are_spread_within_a_fifth() {
    let shares = shares(&NODES);
    let even = f64::from(COUNT) / NODES.len() as f64;
    assert_eq!(shares.values().map(BTreeSet::len).sum::<usize>(), COUNT as usize);
    for (node, share) in &shares {
        let apart = (share.len() as f64 - even).abs() / even;
        assert!(apart <= 0.2, "{node} has {} of {COUNT}", share.len());
    }
}

#[test]
fn a_lost_node_moves_its_own_third_and_both_others_get_some_of_it() {
    let before = shares(&NODES);
    for lost in NODES {
        let alive: Vec<&str> = NODES.into_iter().filter(|name| *name != lost).collect();
        let after = shares(&alive);
        let mut moved = BTreeSet::new();
        for (node, share) in &after {
            assert!(share.is_superset(&before[node]), "{node} gave something up");
            let more: BTreeSet<_> = share.difference(&before[node]).copied().collect();
            assert!(!more.is_empty(), "{node} got nothing");
            moved.extend(more);
        }
        assert_eq!(moved, before[lost]);
    }
}

/// A decision is part of how long a fail-over takes.
#[test]
fn a_decision_about_five_hundred_addresses_takes_a_small_part_of_a_second() {
    let start = Instant::now();
    shares(&NODES);
    // Three nodes decide here, one after the other, in a build that is hardly optimised.
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
}
