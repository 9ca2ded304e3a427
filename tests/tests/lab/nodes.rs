//! A node leaves the cluster, and comes back.

use std::collections::BTreeSet;
use std::time::Duration;

use lbxdp_tests::lab::{Lab, Origin};
use lbxdp_tests::process::wait_until;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::agents::processes;
use super::world::{
    Applied, SERVED_WITHIN, alone, pods_by_node, service, target, wait_answered_by, wait_served,
    web,
};

/// Until controllers have removed pods whose node is none any more, and made others.
const COLLECTED_WITHIN: Duration = Duration::from_secs(180);
/// The node that leaves. Not the one by which the client reaches the cluster.
const GONE: usize = 2;

#[test]
#[ignore = "needs root and Go"]
fn a_removed_node_takes_its_endpoints_along_and_no_request_fails() {
    let Some(lab) = alone() else { return };
    let _applied = Applied::new(&lab, vec![web("removed", 3), service("removed", 71)]);
    let pods = pods_by_node(&lab, "removed");
    let asked = [
        (Origin::Client, target("203.0.113.71", 80)),
        (Origin::Node(1), target("fd00:10:96::71", 80)),
        (pods[0].origin(), target("10.96.0.71", 80)),
    ];
    let mut loads = Vec::new();
    for (origin, target) in &asked {
        wait_served(&lab, std::slice::from_ref(origin), *target);
        loads.push((origin, lab.load(origin, *target, 20, 3)));
    }

    let node = &lab.nodes[GONE];
    let back = Back(&lab);
    node.kubelet().kill();
    for agent in processes(node.host.cgroup(), "lbxdp-agent") {
        let agent = i32::try_from(agent).expect("process ids are positive");
        kill(Pid::from_raw(agent), Signal::SIGKILL).expect("kill the agent");
    }
    lab.kubectl(&["delete", "node", node.name()]);
    // Controllers look for pods without a node every minute.
    if !lbxdp_tests::long() {
        lab.kubectl(&["delete", "pod", &pods[GONE].name, "--wait=false"]);
    }
    // They run on and answer whoever still knows them, so nothing is lost meanwhile.
    let mut rest = BTreeSet::new();
    wait_until("the other nodes have all pods", COLLECTED_WITHIN, || {
        let pods = super::world::pods(&lab, "removed").into_iter();
        rest = pods.filter(|pod| pod.node != node.name()).map(|pod| pod.name).collect();
        rest.len() == lab.nodes.len()
    });
    for (origin, target) in &asked {
        wait_answered_by(&lab, origin, *target, &rest);
    }
    for (origin, load) in loads {
        let report = load.stop();
        assert_eq!((report.failed, report.lost), (0, 0), "{origin}: {report:?}");
        assert!(report.requests > 20, "{origin}: {report:?}");
    }

    drop(back);
    // So many that every node has one, the one that was gone too, which serves again.
    lab.kubectl(&["scale", "deployment/removed", "--replicas=6"]);
    lab.kubectl(&["rollout", "status", "deployment/removed", "--timeout=120s"]);
    let mut all = Vec::new();
    wait_until("six pods, and no others", SERVED_WITHIN, || {
        all = super::world::pods(&lab, "removed");
        all.len() == 6
    });
    assert!(all.iter().any(|pod| pod.node == node.name()), "{all:?}");
    let all: BTreeSet<_> = all.into_iter().map(|pod| pod.name).collect();
    for v6 in [false, true] {
        let port = target(node.ip(v6).to_string(), 30071);
        wait_answered_by(&lab, &Origin::Client, port, &all);
    }
}

/// Brings the node back, whatever happens.
struct Back<'a>(&'a Lab);

impl Drop for Back<'_> {
    fn drop(&mut self) {
        let Self(lab) = self;
        lab.nodes[GONE].start_kubelet();
        lab.wait_nodes();
        lab.wait_lbxdp();
    }
}
