//! The DaemonSet is updated node by node, under load.

use std::time::Instant;

use lbxdp_common::ABI_VERSION;
use lbxdp_tests::lab::Node;
use lbxdp_tests::lab::images::{NEXT_TAG, make_next};
use lbxdp_tests::{long, process::wait_until};
use serde_json::json;

use super::agents::{agent, ask_agent};
use super::loads::Loads;
use super::world::{Applied, Finally, SERVED_WITHIN, alone, service, web};

/// How often each is done.
fn rounds() -> u32 {
    if long() { 3 } else { 1 }
}

#[test]
#[ignore = "needs root and Go"]
fn a_rolling_update_under_load_loses_nothing() {
    let Some(lab) = alone() else { return };
    let _applied = Applied::new(&lab, vec![web("rolling", 3), service("rolling", 56)]);
    let loads = Loads::start(&lab, "rolling", 56);
    let start = Instant::now();
    for _ in 0..rounds() {
        let update = Instant::now();
        let before: Vec<_> = lab.nodes.iter().map(agent).collect();
        lab.restart_lbxdp();
        println!("a rolling update took {:?}", update.elapsed());
        for (node, before) in lab.nodes.iter().zip(before) {
            assert_ne!(agent(node), before, "{}: the same agent", node.name());
        }
    }
    loads.all_went_well(start.elapsed().as_secs_f64());
}

#[test]
#[ignore = "needs root and Go"]
fn an_update_to_another_map_layout_and_back_under_load_loses_nothing() {
    let Some(lab) = alone() else { return };
    let next = make_next(&lab.place.join("images"));
    for node in &lab.nodes {
        node.import(&next);
    }
    let _applied = Applied::new(&lab, vec![web("layouts", 3), service("layouts", 57)]);
    let loads = Loads::start(&lab, "layouts", 57);
    let start = Instant::now();
    let back = Finally::new(|| {
        lab.install_lbxdp(&json!({}));
        lab.wait_lbxdp();
    });
    for _ in 0..rounds() {
        for (tag, abi) in [(NEXT_TAG, ABI_VERSION + 1), (env!("CARGO_PKG_VERSION"), ABI_VERSION)] {
            let update = Instant::now();
            lab.install_lbxdp(&json!({ "image": { "tag": tag } }));
            lab.wait_lbxdp();
            println!("the update to layout {abi} took {:?}", update.elapsed());
            for node in &lab.nodes {
                let label = format!("abi=\"{abi}\"");
                wait_until(&format!("{}: layout {abi}", node.name()), SERVED_WITHIN, || {
                    build_info(node).is_some_and(|line| line.contains(&label))
                });
            }
        }
    }
    loads.all_went_well(start.elapsed().as_secs_f64());
    drop(back);
}

/// What the agent of a node says that it is.
fn build_info(node: &Node) -> Option<String> {
    let metrics = ask_agent(node, "/metrics")?;
    metrics.lines().find(|line| line.starts_with("lbxdp_build_info{")).map(str::to_owned)
}
