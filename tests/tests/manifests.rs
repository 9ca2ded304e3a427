//! Manifests in, a sorted symbolic dump of the maps and every complaint out, as text that is
//! reviewed like code: each directory under `golden/manifests` is a case, and so is `examples`.
//!
//! Objects are also added one by one, in both orders, and everything is programmed after each:
//! the text must be the same. `UPDATE_GOLDEN=1 cargo test -p lbxdp-tests --test manifests` writes
//! the files anew.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use lbxdp_agent::apply::fake::FakeMaps;
use lbxdp_agent::dump::dump;
use lbxdp_agent::index::{Config, Index, range};
use lbxdp_agent::model::{Desired, Endpoints, NodeFacts, Severity};
use lbxdp_agent::reconcile::Reconciler;
use lbxdp_agent::source::manifests;
use lbxdp_agent::source::{Object, Sourced};

const SECOND: u64 = 1_000_000_000;

/// The node whose maps are shown.
const NODE: &str = "node-a";

/// A node that reaches every remote backend from its one address of that family.
fn facts(desired: &Desired) -> NodeFacts {
    let v4: IpAddr = "198.51.100.11".parse().expect("an address");
    let v6: IpAddr = "2001:db8:1::11".parse().expect("an address");
    let mut facts = NodeFacts { addresses: [v4, v6].into(), ..NodeFacts::default() };
    for frontend in desired.frontends.values() {
        for endpoints in [&frontend.external, &frontend.internal] {
            if let Endpoints::Serve(backends) = endpoints {
                let local = &desired.local_backends;
                for backend in backends.iter().filter(|backend| !local.contains(backend)) {
                    let source = if backend.is_ipv4() { v4 } else { v6 };
                    facts.snat_sources.insert(backend.ip(), source);
                }
            }
        }
    }
    facts
}

/// The maps after each step of a growing index was programmed and every quarantine is over.
fn program(steps: &mut [Index]) -> String {
    let mut reconciler = Reconciler::new(FakeMaps::default(), 0).expect("memory");
    let mut now = 0;
    for index in steps.iter_mut() {
        index.follow();
    }
    let last = steps.last().expect("a step");
    let settled = [last, last, last];
    for (index, flows) in steps
        .iter()
        .map(|step| (step, None))
        .chain(settled.map(|step| (step, Some(BTreeSet::new()))))
    {
        now += SECOND;
        reconciler.maps_mut().now = now;
        let desired = index.desired();
        let outcome = reconciler.reconcile(desired, &facts(desired), flows.as_ref(), now);
        assert!(outcome.failure.is_none());
        assert_eq!(outcome.problems, [], "planning has nothing to complain about");
    }
    dump(&reconciler.maps().actual)
}

fn grow<'a>(empty: &Index, objects: impl Iterator<Item = &'a Sourced<Object>>) -> Vec<Index> {
    let mut index = empty.clone();
    objects
        .map(|object| {
            index.apply(object.clone());
            index.clone()
        })
        .collect()
}

#[track_caller]
fn check(manifests: &Path, golden: &Path, empty: &Index) {
    let snapshot = manifests::load(manifests).expect("the case's directory");
    let mut index = empty.clone();
    index.replace(snapshot.objects.clone());
    let dump = program(std::slice::from_mut(&mut index));
    assert_eq!(program(&mut grow(empty, snapshot.objects.iter())), dump, "one by one");
    assert_eq!(
        program(&mut grow(empty, snapshot.objects.iter().rev())),
        dump,
        "one by one, last first"
    );

    let mut text = dump;
    text.push_str("\nproblems\n");
    for problem in snapshot.problems.iter().chain(index.problems()) {
        let severity = match problem.severity {
            Severity::Warning => "warning",
            Severity::Error => "error",
        };
        writeln!(text, "  {severity}: {problem}").expect("memory");
    }
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(golden, &text).expect("writable");
    }
    let expected = std::fs::read_to_string(golden).unwrap_or_default();
    assert_eq!(text, expected, "{} differs; UPDATE_GOLDEN=1 accepts it", golden.display());
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden")
}

fn check_case(name: &str) {
    check_case_on(name, &Index::new(NODE));
}

/// A case with flags and devices.
fn check_case_on(name: &str, empty: &Index) {
    let dir = golden().join("manifests").join(name);
    check(&dir, &dir.join("maps.txt"), empty);
}

#[test]
fn the_examples_are_served_as_their_comments_say() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    check(&examples, &golden().join("examples.txt"), &Index::new(NODE));
}

#[test]
fn named_ports_are_joined_by_name_and_may_differ_from_pod_to_pod() {
    check_case("named-ports");
}

#[test]
fn source_ranges_and_affinity_are_of_those_that_write_them() {
    check_case("clients");
}

#[test]
fn policies_decide_who_is_served_dropped_and_refused() {
    check_case("policies");
}

#[test]
fn readiness_and_hints_choose_endpoints_and_the_operator_chooses_addresses() {
    let config = Config {
        allow_external_ips: vec![range("192.0.2.0/25").expect("a range")],
        node_port_addresses: vec!["198.51.100.0/24".parse().expect("a range")],
        ..Config::default()
    };
    let devices = ["198.51.100.11", "198.51.100.12", "10.244.1.254"];
    let mut empty = Index::new(NODE).with_config(config);
    empty.set_device_addresses(devices.map(|addr| addr.parse().expect("an address")).into());
    check_case_on("endpoint-selection", &empty);
}

#[test]
fn bad_input_is_named_and_everything_valid_is_served() {
    check_case("bad-input");
}
