//! Services of Deployments, asked from everywhere.

use std::collections::BTreeSet;

use lbxdp_tests::lab::Origin;

use super::world::{Applied, pods, service, share, target, wait_served, web};

/// So many that no pod is left out by chance: (2/3)⁶⁰ is 3 · 10⁻¹¹.
const REQUESTS: u32 = 60;

#[test]
#[ignore = "needs root and Go"]
fn every_type_of_service_answers_everyone_in_both_families() {
    let Some(lab) = share() else { return };
    let _applied = Applied::new(&lab, vec![web("types", 3), service("types", 21)]);
    let pods = pods(&lab, "types");
    assert_eq!(pods.len(), 3, "{pods:?}");
    let names: BTreeSet<_> = pods.iter().map(|pod| pod.name.clone()).collect();
    let inside = Origin::Pod(pods[0].name.clone());
    let everyone = [inside.clone(), Origin::Node(1), Origin::Client];
    for v6 in [false, true] {
        let [cluster, balancer] =
            if v6 { ["fd00:10:96::21", "2001:db8:ff::21"] } else { ["10.96.0.21", "203.0.113.21"] };
        let node = |index: usize| lab.nodes[index].ip(v6).to_string();
        let mut asked =
            vec![(target(cluster, 80), &everyone[..2]), (target(balancer, 80), &everyone[..])];
        // Every node serves the port, the one that asks and those without a word in it too.
        asked.extend((0..3).map(|index| (target(node(index), 30021), &everyone[..])));
        for (target, origins) in asked {
            wait_served(&lab, origins, target);
            for origin in origins {
                let outcome = lab.spread(origin, target, REQUESTS);
                assert_eq!(outcome.failed, 0, "{origin} to {target}: {outcome:?}");
                let answered: BTreeSet<_> = outcome.backends.keys().cloned().collect();
                assert_eq!(answered, names, "{origin} to {target}");
                // Where the destination is chosen in the socket, nothing is translated.
                if *origin == inside && target.port() == 80 {
                    let seen = outcome.all_peers();
                    assert!(seen.is_subset(&pods[0].ips), "{target}: saw {seen:?}");
                }
            }
        }
    }
}

#[test]
#[ignore = "needs root and Go"]
fn a_load_on_a_service_that_does_not_change_loses_nothing() {
    let Some(lab) = share() else { return };
    let _applied = Applied::new(&lab, vec![web("load", 3), service("load", 22)]);
    let origins = [Origin::Client, Origin::Node(0), Origin::Pod("deployment/load".to_owned())];
    let address = target("203.0.113.22", 80);
    wait_served(&lab, &origins, address);
    let loads: Vec<_> = origins.iter().map(|origin| lab.load(origin, address, 50, 5)).collect();
    std::thread::sleep(std::time::Duration::from_secs(5));
    for (load, origin) in loads.into_iter().zip(&origins) {
        let report = load.stop();
        assert_eq!((report.failed, report.lost), (0, 0), "{origin}: {report:?}");
        assert!(report.requests > 100 && report.held_requests > 50, "{origin}: {report:?}");
        assert_eq!(report.backends.len(), 3, "{origin}: {report:?}");
    }
}
