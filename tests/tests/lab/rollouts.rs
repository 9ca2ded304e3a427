//! Deployments that scale and roll while they are asked.

use std::collections::BTreeSet;

use lbxdp_tests::lab::traffic::Load;
use lbxdp_tests::lab::{Lab, Origin};
use lbxdp_tests::process::{run, wait_until, workspace_binary};
use lbxdp_tests::traffic::load::Report;
use serde_json::{Value, json};

use super::world::{
    Applied, SERVED_WITHIN, alone, at_once, pods, service, share, target, wait_answered_by,
    wait_served, wait_silent, web,
};

#[test]
#[ignore = "needs root and Go"]
fn a_deployment_is_scaled_up_to_nothing_and_up_again() {
    let Some(lab) = share() else { return };
    let mut scaled = web("scaled", 1);
    // Fifty of them have to find room.
    scaled["spec"]["template"]["spec"]["containers"][0]["resources"]["requests"]["cpu"] =
        json!("20m");
    let _applied = Applied::new(&lab, vec![scaled, service("scaled", 61)]);
    let asked = [
        (Origin::Client, target("203.0.113.61", 80)),
        (Origin::Client, target("2001:db8:ff::61", 80)),
        (Origin::Node(1), target("10.96.0.61", 80)),
        (Origin::Pod("deployment/scale-client".to_owned()), target("fd00:10:96::61", 80)),
    ];
    // A pod that stays, to ask from.
    let _client = Applied::new(&lab, vec![web("scale-client", 1)]);
    let many = if lbxdp_tests::long() { 50 } else { 12 };
    for replicas in [1, many, 0, 5] {
        lab.kubectl(&["scale", "deployment/scaled", &format!("--replicas={replicas}")]);
        lab.kubectl(&["rollout", "status", "deployment/scaled", "--timeout=300s"]);
        let mut names = BTreeSet::new();
        wait_until(&format!("{replicas} pods, and no others"), SERVED_WITHIN, || {
            names = pods(&lab, "scaled").into_iter().map(|pod| pod.name).collect();
            names.len() == replicas
        });
        at_once(asked.iter().map(|(origin, target)| {
            let (lab, names): (&Lab, _) = (&lab, &names);
            move || {
                if names.is_empty() {
                    wait_silent(lab, std::slice::from_ref(origin), *target);
                } else {
                    wait_answered_by(lab, origin, *target, names);
                }
            }
        }));
    }
}

/// Loads from everywhere in both families, 200 new connections each second.
struct Loads(Vec<(String, Load)>);

impl Loads {
    /// To the Service with this number; `pod` asks too.
    #[track_caller]
    fn start(lab: &Lab, pod: &str, number: u8) -> Self {
        let [cluster, balancer] = ["10.96.0.", "203.0.113."].map(|net| format!("{net}{number}"));
        let [cluster_v6, balancer_v6] =
            ["fd00:10:96::", "2001:db8:ff::"].map(|net| format!("{net}{number}"));
        let pod = Origin::Pod(pod.to_owned());
        let all = [
            (Origin::Client, balancer, 50),
            (Origin::Client, balancer_v6, 50),
            (Origin::Node(1), cluster_v6, 50),
            (pod, cluster, 50),
        ];
        let all = all.map(|(origin, address, rate)| (origin, target(address, 80), rate));
        for (origin, target, _) in &all {
            wait_served(lab, std::slice::from_ref(origin), *target);
        }
        let loads = all.map(|(origin, target, rate)| {
            (format!("{origin} to {target}"), lab.load(&origin, target, rate, 5))
        });
        Self(loads.into())
    }

    fn stop(self) -> Vec<(String, Report)> {
        self.0.into_iter().map(|(what, load)| (what, load.stop())).collect()
    }
}

/// A Deployment whose pods go on for so many seconds after they were told to end.
fn with_pre_stop(name: &str, seconds: u32) -> Value {
    let mut deployment = web(name, 3);
    let pod = &mut deployment["spec"]["template"]["spec"];
    pod["terminationGracePeriodSeconds"] = json!(seconds + 5);
    pod["containers"][0]["lifecycle"] = json!({ "preStop": { "sleep": { "seconds": seconds } } });
    deployment
}

/// Replaces all pods, and waits until the last of the old ones is gone.
#[track_caller]
fn roll(lab: &Lab, name: &str) {
    let old: BTreeSet<_> = pods(lab, name).into_iter().map(|pod| pod.name).collect();
    let deployment = format!("deployment/{name}");
    lab.kubectl(&["rollout", "restart", &deployment]);
    lab.kubectl(&["rollout", "status", &deployment, "--timeout=180s"]);
    wait_until(&format!("the old pods of {name} are gone"), SERVED_WITHIN, || {
        pods(lab, name).iter().all(|pod| !old.contains(&pod.name))
    });
}

#[test]
#[ignore = "needs root and Go"]
fn pods_that_wait_before_they_end_are_replaced_without_a_failed_request() {
    // The load is part of what is measured, so nothing else is to be slow meanwhile.
    let Some(lab) = alone() else { return };
    let objects = vec![with_pre_stop("rolled", 5), web("roll-client", 1), service("rolled", 62)];
    let _applied = Applied::new(&lab, objects);
    let loads = Loads::start(&lab, "deployment/roll-client", 62);
    for _ in 0..if lbxdp_tests::long() { 5 } else { 1 } {
        roll(&lab, "rolled");
    }
    for (what, report) in loads.stop() {
        println!("{what}: {report:?}");
        assert_eq!((report.failed, report.lost), (0, 0), "{what}: {report:?}");
        assert!(report.backends.len() >= 6, "{what}: {report:?}");
        assert!(report.requests > 100, "{what}: {report:?}");
    }
}

/// Failed requests and lost connections of several rolling updates of pods that end at once.
#[track_caller]
fn failures(lab: &Lab, rounds: u32, who: &str) -> u32 {
    let mut all = 0;
    for round in 0..rounds {
        let loads = Loads::start(lab, "deployment/hasty-client", 63);
        roll(lab, "hasty");
        for (what, report) in loads.stop() {
            println!("{who}, round {round}, {what}: {report:?}");
            assert!(report.requests > 100, "{who}, {what}: {report:?}");
            all += report.failed + report.lost;
        }
    }
    all
}

/// It takes the cluster from lbxdp and gives it back.
#[test]
#[ignore = "needs root and Go"]
fn pods_that_end_at_once_lose_no_more_requests_than_with_kube_proxy() {
    let Some(lab) = alone() else { return };
    let objects = vec![web("hasty", 3), web("hasty-client", 1), service("hasty", 63)];
    let _applied = Applied::new(&lab, objects);
    let rounds = if lbxdp_tests::long() { 3 } else { 1 };
    let ours = failures(&lab, rounds, "lbxdp");

    let _back = Back(&lab);
    lab.uninstall_lbxdp();
    let agent = workspace_binary("lbxdp-agent");
    for node in &lab.nodes {
        println!("{}", run(node.host.command(&agent).arg("cleanup")));
    }
    wait_silent(&lab, &[Origin::Client, Origin::Node(1)], target("203.0.113.63", 80));
    lab.start_kube_proxy();
    let theirs = failures(&lab, rounds, "kube-proxy");
    println!("lbxdp {ours}, kube-proxy {theirs} failures in {rounds} rolling updates each");
    assert!(ours <= theirs, "lbxdp {ours}, kube-proxy {theirs}");
}

/// Makes lbxdp serve again, whatever happens.
struct Back<'a>(&'a Lab);

impl Drop for Back<'_> {
    fn drop(&mut self) {
        let Self(lab) = self;
        lab.install_lbxdp(&json!({}));
        for node in &lab.nodes {
            node.stop_kube_proxy();
            node.clean_up_kube_proxy();
        }
        lab.wait_lbxdp();
    }
}
