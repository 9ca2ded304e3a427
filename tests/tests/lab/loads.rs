//! Load from everywhere on one Service while something happens, of which nobody may notice anything.

use std::net::SocketAddr;

use lbxdp_tests::lab::traffic::Load;
use lbxdp_tests::lab::{Lab, Origin};

use super::world::{pods, target, wait_served};

/// New connections each second, of each origin.
const RATE: u32 = 20;
/// Connections of each origin that stay.
pub const HELD: u32 = 5;
/// How many origins there are.
pub const ORIGINS: u32 = 5;
/// How many of them are outside of the cluster.
pub const FROM_OUTSIDE: u32 = 2;

/// Requests from outside, from a node and from a pod, of both families.
pub struct Loads {
    all: Vec<(String, Load)>,
}

impl Loads {
    /// On the Deployment and the Service of this name and number; waits until all are answered.
    #[track_caller]
    pub fn start(lab: &Lab, name: &str, number: u8) -> Self {
        let asked = asked(lab, name, number);
        for (origin, target) in &asked {
            wait_served(lab, std::slice::from_ref(origin), *target);
        }
        let start = |(origin, target): (Origin, SocketAddr)| {
            (format!("{origin} to {target}"), lab.load(&origin, target, RATE, HELD))
        };
        Self { all: asked.into_iter().map(start).collect() }
    }

    /// Ends them: every request was answered, and no connection was lost. `seconds` is how long they
    /// went on at least.
    #[track_caller]
    pub fn all_went_well(self, seconds: f64) {
        let reports = self.all.into_iter().map(|(what, load)| (what, load.stop()));
        let reports: Vec<_> = reports.collect();
        for (what, report) in &reports {
            println!(
                "{what}: {} requests, {} on connections that stay, in {:.0} s; at most {} ms; \
                 {} failed, {} lost",
                report.requests,
                report.held_requests,
                report.seconds,
                report.slowest_ms,
                report.failed,
                report.lost
            );
        }
        for (what, report) in reports {
            assert_eq!((report.failed, report.lost), (0, 0), "{what}: {report:?}");
            assert!(report.seconds >= seconds, "{what}: {report:?}");
            // A machine that does other things may be slow, but not idle.
            assert!(f64::from(report.requests) > 2.0 * seconds, "{what}: {report:?}");
            assert!(f64::from(report.held_requests) > 2.0 * seconds, "{what}: {report:?}");
            assert_eq!(report.backends.len(), 3, "{what}: {report:?}");
        }
    }
}

/// Who asks, and what. Pods are on all nodes, so each address has one here and others elsewhere.
fn asked(lab: &Lab, name: &str, number: u8) -> [(Origin, SocketAddr); ORIGINS as usize] {
    let pod = &pods(lab, name)[0].name;
    let path = format!("/api/v1/namespaces/default/pods/{pod}");
    let node = lab.get(&path).expect("the pod")["spec"]["nodeName"].clone();
    let index = lab.nodes.iter().position(|known| node == known.name()).expect("its node");
    let inside = Origin::Container(index, pod.clone());
    [
        (Origin::Client, target(format!("203.0.113.{number}"), 80)),
        (Origin::Client, target(lab.nodes[1].ip(true).to_string(), 30_000 + u16::from(number))),
        (Origin::Node(2), target(format!("fd00:10:96::{number}"), 80)),
        (inside.clone(), target(format!("10.96.0.{number}"), 80)),
        (inside, target(format!("fd00:10:96::{number}"), 80)),
    ]
}
