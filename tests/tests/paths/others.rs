//! Programs of others on the same devices, as a CNI has them: they get their turn on every packet
//! that goes up or out.

use std::net::SocketAddr;

use lbxdp_tests::PodPath;
use lbxdp_tests::cluster::UPLINK;
use lbxdp_tests::traffic::socket::Source;

use crate::scene::{Frontend, Place, Protocol, Scene, UDP, ask};
use crate::tail::{Counter, Direction};

#[track_caller]
fn others_see_what_passes(arguments: &[&str]) {
    let scene = Scene::of_node_a(PodPath::SameDevice, arguments);
    // Neighbours get to know each other first.
    scene.check_frontends(Place::FarPod, Protocol::Udp);
    let node = scene.cluster.node(0);
    let counters: Vec<_> = [Direction::Ingress, Direction::Egress]
        .into_iter()
        .flat_map(|direction| {
            let (tcx, clsact) = (Counter::new(), Counter::new());
            tcx.attach_tcx(&node.netns, UPLINK, direction);
            clsact.attach_clsact(&node.netns, UPLINK, direction);
            [(format!("tcx {direction:?}"), tcx), (format!("clsact {direction:?}"), clsact)]
        })
        .collect();
    let counts = || counters.iter().map(|(_, counter)| counter.count()).collect::<Vec<_>>();

    let mut sent = 0;
    let before = counts();
    for v6 in [false, true] {
        // To the pod itself: nothing to translate.
        for _ in 0..3 {
            let pod = SocketAddr::new(node.pods[0].ip(v6), UDP);
            ask(&scene.cluster.client, pod, Source::ANY, Protocol::Udp).expect("an answer");
            sent += 1;
        }
        // Translated on the way up, and back on the way out.
        for place in [Place::Pod, Place::Host] {
            for frontend in Frontend::ALL {
                scene.check(place, frontend, v6, Protocol::Udp);
                sent += 1;
            }
        }
    }
    for (((name, _), before), after) in counters.iter().zip(before).zip(counts()) {
        assert_eq!(after - before, sent, "{name}");
    }

    // What is sent on to another node neither goes up nor comes from above.
    let before = counts();
    for frontend in Frontend::ALL {
        scene.check(Place::FarPod, frontend, false, Protocol::Udp);
    }
    for ((name, _), (before, after)) in counters.iter().zip(before.into_iter().zip(counts())) {
        // A packet that tc redirects leaves by the device's egress like any other; and tcx comes
        // before clsact, so there a tcx program is in front of ours.
        let in_front = arguments.contains(&"clsact") && name == "tcx Ingress";
        let redirected = arguments.contains(&"off") && name.contains("Egress");
        let expected = if in_front || redirected { 6 } else { 0 };
        assert_eq!(after - before, expected, "{name}");
    }
}

#[test]
fn programs_behind_ours_see_every_packet_that_passes() {
    others_see_what_passes(&[]);
}

#[test]
fn programs_behind_ours_see_every_packet_that_tc_passes() {
    others_see_what_passes(&["--xdp-mode", "off"]);
}

#[test]
fn filters_behind_our_clsact_filters_see_every_packet_that_passes() {
    others_see_what_passes(&["--xdp-mode", "off", "--tc-mode", "clsact"]);
}
