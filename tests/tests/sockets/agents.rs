//! Agents end and start, and leave.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lbxdp_agent::pins::Pins;
use lbxdp_tests::process::{command, run, wait_until};
use lbxdp_tests::traffic::puppet::Kind;
use lbxdp_tests::{AgentOptions, Cgroup, ServedCgroup};
use serde_json::Value;

use crate::world::{ECHO, EDIT_WITHIN, Family, WEB, World, who_tcp};

/// Where programs are attached at a cgroup.
fn attached(cgroup: &Path) -> BTreeSet<String> {
    let text = run(command("bpftool").args(["-j", "cgroup", "show"]).arg(cgroup));
    if text.trim().is_empty() {
        return BTreeSet::new();
    }
    let list: Vec<Value> = serde_json::from_str(&text).expect("JSON");
    let name = |program: &Value| program["name"].as_str().expect("a name").to_owned();
    let names: BTreeSet<_> = list.iter().map(name).collect();
    assert_eq!(names.len(), list.len(), "one is attached twice: {text}");
    names
}

/// As long as the kernel lets names be.
const PROGRAMS: [&str; 9] = [
    "lbxdp_connect4",
    "lbxdp_connect6",
    "lbxdp_peername4",
    "lbxdp_peername6",
    "lbxdp_recvmsg4",
    "lbxdp_recvmsg6",
    "lbxdp_release",
    "lbxdp_sendmsg4",
    "lbxdp_sendmsg6",
];

fn links(world: &World) -> Vec<(&'static str, u32, u32)> {
    let links = Pins::new(world.agent.pin_path()).cgroup_links().expect("pins are read");
    links.iter().map(|link| (link.point.as_str(), link.info.id, link.info.prog_id)).collect()
}

#[test]
fn sockets_are_served_without_an_agent() {
    let mut world = World::start();
    let mut puppet = world.in_pod();
    world.agent.kill9();
    for family in Family::ALL {
        who_tcp(&mut puppet, family, family.cluster_ip(WEB, ECHO));
    }
    let status = world.agent.status().0;
    let path = world.cgroup.path().to_str().expect("text");
    assert_eq!(status["sockets"]["served"], Value::Bool(true), "{status:#}");
    assert_eq!(status["sockets"]["cgroup"], path);
    assert!(world.agent.cli(&["status"]).contains(&format!("sockets are served in {path}\n")));
}

#[test]
fn no_connection_fails_while_programs_are_replaced() {
    let mut world = World::start();
    let before = links(&world);
    assert_eq!(before.len(), PROGRAMS.len());
    assert_eq!(attached(world.cgroup.path()), PROGRAMS.map(str::to_owned).into());
    let mut puppet = world.in_pod();
    let to = Family::V4.cluster_ip(WEB, ECHO);
    let is_over = Arc::new(AtomicBool::new(false));
    let until = Arc::clone(&is_over);
    let churn = std::thread::spawn(move || {
        let mut sum = (0, 0);
        while !until.load(Ordering::Relaxed) {
            let (count, failed, _) = puppet.connect_for(to, Duration::from_millis(100));
            sum = (sum.0 + count, sum.1 + failed);
        }
        sum
    });
    world.agent.restart();
    world.agent.kill9();
    world.agent.start_again();
    is_over.store(true, Ordering::Relaxed);
    let (count, failed) = churn.join().expect("the thread does not panic");
    assert_eq!(failed, 0, "of {count}");
    assert!(count > 100, "{count}");
    let after = links(&world);
    assert_eq!(after.len(), before.len());
    for ((point, link, program), (_, old_link, old_program)) in after.iter().zip(&before) {
        assert_eq!(link, old_link, "{point}: another link");
        assert_ne!(program, old_program, "{point}: the old program");
    }
    assert_eq!(attached(world.cgroup.path()), PROGRAMS.map(str::to_owned).into());
}

#[test]
fn cleanup_leaves_the_cgroup_without_programs() {
    let mut world = World::start();
    world.agent.stop();
    assert_eq!(attached(world.cgroup.path()).len(), PROGRAMS.len());
    let said = world.agent.cli(&["cleanup"]);
    for point in ["connect4", "recvmsg6", "release"] {
        assert!(said.contains(&format!("detached cgroup {point}\n")), "{said}");
    }
    assert_eq!(attached(world.cgroup.path()), BTreeSet::new());
    assert!(!world.agent.pin_path().exists());
}

#[test]
fn an_agent_that_serves_another_cgroup_or_none_leaves_the_former() {
    let mut world = World::start();
    let other = Cgroup::new("other");
    for (cgroup, here, there) in [
        (ServedCgroup::At(other.path().to_owned()), 0, PROGRAMS.len()),
        (ServedCgroup::At(world.cgroup.path().to_owned()), PROGRAMS.len(), 0),
        (ServedCgroup::None, 0, 0),
    ] {
        world.agent.stop();
        world.agent.set_options(AgentOptions { cgroup: cgroup.clone(), ..AgentOptions::default() });
        world.agent.start_again();
        assert_eq!(attached(world.cgroup.path()).len(), here, "{cgroup:?}");
        assert_eq!(attached(other.path()).len(), there, "{cgroup:?}");
    }
    let status = world.agent.status().0;
    assert_eq!(status["sockets"]["served"], Value::Bool(false), "{status:#}");
    assert!(world.agent.cli(&["status"]).contains("sockets are not served\n"));
    let mut puppet = world.in_pod();
    puppet.open(1, Kind::Udp, false);
    assert_eq!(puppet.connect(1, Family::V4.cluster_ip(WEB, 53)), Ok(()));
    assert_eq!(world.entries(), 0);
}

#[test]
fn a_cgroup_that_is_gone_is_reported_and_one_made_anew_is_served() {
    let mut world = World::start();
    let path = world.cgroup.path().to_owned();
    std::fs::remove_dir(&path).expect("no process is in it");
    let not_ready = "sockets on this node are not served\n";
    wait_until("it is not ready", 2 * EDIT_WITHIN, || {
        world.agent.get("/readyz") == Some((503, not_ready.to_owned()))
    });
    assert!(world.agent.log().contains(&format!("cgroup {}", path.display())));
    std::fs::create_dir(&path).expect("made anew");
    world.agent.wait_ready();
    assert_eq!(attached(&path), PROGRAMS.map(str::to_owned).into());
    let mut puppet = world.in_pod();
    who_tcp(&mut puppet, Family::V4, Family::V4.cluster_ip(WEB, ECHO));
}
