//! What goes wrong behind the node: others send the error, about a packet that the client never
//! sent, and the client hears of its own.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

use lbxdp_tests::PodPath;
use lbxdp_tests::manifests::{Endpoint, Port, Service};
use lbxdp_tests::process::wait_until;
use lbxdp_tests::traffic::socket::{Source, udp};
use lbxdp_tests::traffic::udp as datagram;
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};

use crate::bulk;
use crate::router;
use crate::scene::{self, Frontend, Place, Protocol, Scene, TIMEOUT};

const PLACES: [Place; 2] = [Place::Pod, Place::FarPod];

/// Gives the way to each pod an MTU of 1,300, at its own node.
fn narrow(scene: &Scene) {
    for (node, pod) in scene.cluster.pods() {
        for address in [format!("{}/32", pod.v4), format!("{}/128", pod.v6)] {
            node.netns.route(&format!("{address} dev {} mtu lock 1300", pod.node_device));
        }
    }
}

/// A socket whose datagrams are sent whole or not at all.
fn whole_datagrams(target: SocketAddr) -> UdpSocket {
    let socket = udp(target, Source::ANY, TIMEOUT).expect("a socket");
    let (level, option, value) = if target.is_ipv6() {
        (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DO)
    } else {
        (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO)
    };
    let length = u32::try_from(size_of_val(&value)).expect("small");
    // SAFETY: the option's value is an integer, and `length` is its size.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), length)
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    socket
}

#[track_caller]
fn a_narrow_way_is_found_out(arguments: &[&str]) {
    let scene = Scene::of_node_a(PodPath::SameDevice, arguments);
    narrow(&scene);
    for place in PLACES {
        for v6 in [false, true] {
            let client = &scene.cluster.client;
            let vip = place.target(Frontend::Vip, v6, Protocol::Udp);
            let before = scene.status(0);
            client.run(|| {
                let socket = whole_datagrams(vip);
                let mut refused = None;
                wait_until("a datagram is too large", TIMEOUT, || {
                    refused = socket.send(&[b'x'; 1_400]).err();
                    refused.is_some()
                });
                let code = refused.and_then(|error| error.raw_os_error());
                assert_eq!(code, Some(libc::EMSGSIZE), "{place:?} {vip}");
            });
            let changes = scene.status(0).changes_since(&before);
            assert!(changes["counters.icmp_translated"] >= 1, "{place:?} {vip}: {changes:?}");
            let route = client.ip(&format!("route get {}", vip.ip()));
            assert!(route.contains("mtu 1300"), "{route}");

            // A connection finds out by itself.
            for family in ["-4", "-6"] {
                client.ip(&format!("{family} route flush cache"));
            }
            let before = scene.status(0);
            bulk::transfer(&scene, place, v6, 4 << 20);
            let changes = scene.status(0).changes_since(&before);
            assert!(changes["counters.icmp_translated"] >= 1, "{place:?} {vip}: {changes:?}");
        }
    }
}

#[test]
fn a_client_learns_that_a_backend_is_behind_a_smaller_mtu_further_on() {
    a_narrow_way_is_found_out(&[]);
}

#[test]
fn a_client_learns_through_tc_that_a_backend_is_behind_a_smaller_mtu_further_on() {
    a_narrow_way_is_found_out(&["--xdp-mode", "off"]);
}

#[track_caller]
fn a_narrow_way_back_is_found_out(arguments: &[&str]) {
    let scene = Scene::of_node_a(PodPath::SameDevice, arguments);
    let (cluster, router) = (&scene.cluster, router::attach(&scene.cluster));
    for v6 in [false, true] {
        let (length, gateway) = if v6 { (128, "2001:db8:1::1") } else { (32, "198.51.100.1") };
        let client = format!("{}/{length}", scene::client(v6));
        cluster.node(0).netns.route(&format!("{client} via {gateway}"));
        router.route(&format!("{client} dev {} mtu lock 1300", lbxdp_tests::cluster::UPLINK));
    }
    for place in PLACES {
        for v6 in [false, true] {
            let before = scene.status(0);
            bulk::transfer(&scene, place, v6, 4 << 20);
            let changes = scene.status(0).changes_since(&before);
            assert!(changes["counters.icmp_translated"] >= 1, "{place:?}: {changes:?}");
            let (netns, peer) = match place {
                Place::Pod => (&cluster.node(0).pods[0].netns, scene::client(v6)),
                _ => (&cluster.node(1).pods[0].netns, cluster.node(0).ip(v6)),
            };
            let route = netns.ip(&format!("route get {peer}"));
            assert!(route.contains("mtu 1300"), "{place:?}: {route}");
        }
    }
}

#[test]
fn a_backend_learns_that_its_client_is_behind_a_smaller_mtu() {
    a_narrow_way_back_is_found_out(&[]);
}

#[test]
fn a_backend_learns_through_tc_that_its_client_is_behind_a_smaller_mtu() {
    a_narrow_way_back_is_found_out(&["--xdp-mode", "off"]);
}

#[test]
fn a_hop_behind_the_node_tells_the_client_that_its_packet_lived_too_short() {
    let scene = Scene::of_node_a(PodPath::SameDevice, &[]);
    // The node of the pod is the last hop before it.
    for (place, hops) in [(Place::Pod, 1), (Place::FarPod, 2)] {
        for v6 in [false, true] {
            scene.check(place, Frontend::Vip, v6, Protocol::Udp);
            let target = place.target(Frontend::Vip, v6, Protocol::Udp);
            let before = scene.status(0);
            let error = scene.cluster.client.run(|| {
                let socket = udp(target, Source::ANY, TIMEOUT).expect("a socket");
                if v6 {
                    setsockopt(&socket, sockopt::Ipv6Ttl, &hops).expect("hops");
                    setsockopt(&socket, sockopt::Ipv6RecvErr, &true).expect("errors");
                } else {
                    setsockopt(&socket, sockopt::Ipv4Ttl, &hops).expect("hops");
                    setsockopt(&socket, sockopt::Ipv4RecvErr, &true).expect("errors");
                }
                datagram::ask_on(&socket, "how far").expect_err("too short a life")
            });
            assert_eq!(error.kind(), ErrorKind::HostUnreachable, "{place:?} {target}: {error}");
            let changes = scene.status(0).changes_since(&before);
            assert_eq!(changes["counters.icmp_translated"], 1, "{place:?} {target}: {changes:?}");
        }
    }
}

#[track_caller]
fn a_closed_port_of_a_backend_is_refused(arguments: &[&str]) {
    let cluster = scene::cluster(PodPath::SameDevice);
    let mut objects = scene::places(&cluster);
    let mut targets: Vec<SocketAddr> = Vec::new();
    for (number, (node, _)) in (21..).zip(cluster.pods()) {
        let vips = [format!("203.0.113.{number}"), format!("2001:db8:ff::{number}")];
        let service = Service::new(&format!("closed-{number}"))
            .cluster_ip(&format!("10.96.0.{number}"))
            .cluster_ip(&format!("fd00:10:96::{number}"))
            .vip(&vips[0])
            .vip(&vips[1])
            .port(Port::udp("closed", 54, 9));
        objects.extend(service.with(&Endpoint::pods_of(node)));
        targets
            .extend(vips.iter().map(|vip| SocketAddr::new(vip.parse().expect("an address"), 54)));
    }
    let scene = Scene::start(cluster, PodPath::SameDevice, &objects, arguments, 1);
    for target in targets {
        let before = scene.status(0);
        let error = scene
            .cluster
            .client
            .run(|| datagram::ask(target, Source::ANY, "anybody there", TIMEOUT))
            .expect_err("nobody listens");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{target}: {error}");
        let changes = scene.status(0).changes_since(&before);
        assert_eq!(changes["counters.icmp_translated"], 1, "{target}: {changes:?}");
    }
}

#[test]
fn a_backend_that_does_not_listen_refuses_its_client() {
    a_closed_port_of_a_backend_is_refused(&[]);
}

#[test]
fn a_backend_that_does_not_listen_refuses_its_client_through_tc() {
    a_closed_port_of_a_backend_is_refused(&["--xdp-mode", "off"]);
}
