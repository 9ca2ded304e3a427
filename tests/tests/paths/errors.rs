//! What is answered with an error, what with silence, and what must not go round in circles.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

use lbxdp_tests::cluster::{UPLINK, VIPS_V4, VIPS_V6};
use lbxdp_tests::traffic::frame::Wire;
use lbxdp_tests::traffic::socket::{Source, udp};
use lbxdp_tests::traffic::udp as datagram;
use lbxdp_tests::{Netns, PodPath};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, sendto, setsockopt,
    socket, sockopt,
};

use crate::router;
use crate::scene::{self, Frontend, Place, Protocol, Scene, TIMEOUT, check_refused};

/// For what is not to be answered.
const PATIENCE: Duration = Duration::from_millis(300);

/// A socket whose datagrams live for `hops`, and that hears of every error.
fn socket_with_hops(target: SocketAddr, hops: i32) -> io::Result<UdpSocket> {
    let socket = udp(target, Source::ANY, TIMEOUT)?;
    if target.is_ipv6() {
        setsockopt(&socket, sockopt::Ipv6Ttl, &hops)?;
        setsockopt(&socket, sockopt::Ipv6RecvErr, &true)?;
    } else {
        setsockopt(&socket, sockopt::Ipv4Ttl, &hops)?;
        setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?;
    }
    Ok(socket)
}

/// Sends a message that nobody serves: an echo reply to no request.
fn send_unserved(target: IpAddr, payload: &[u8]) -> io::Result<()> {
    let (family, protocol, kind) = if target.is_ipv6() {
        (AddressFamily::Inet6, SockProtocol::IcmpV6, 129)
    } else {
        (AddressFamily::Inet, SockProtocol::Icmp, 0)
    };
    let socket = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
    // Whether its checksum is right is nobody's business on the way.
    let message = [&[kind, 0, 0, 0, 0, 1, 0, 1], payload].concat();
    let target = SockaddrStorage::from(SocketAddr::new(target, 0));
    sendto(socket.as_raw_fd(), &message, &target, MsgFlags::empty())?;
    Ok(())
}

#[track_caller]
fn hops_are_counted(scene: &Scene) {
    for v6 in [false, true] {
        scene.check(Place::FarPod, Frontend::Vip, v6, Protocol::Udp);
        let target = Place::FarPod.target(Frontend::Vip, v6, Protocol::Udp);
        let ask = |hops| {
            scene.cluster.client.run(|| {
                let socket = socket_with_hops(target, hops).expect("a socket");
                datagram::ask_on(&socket, "how far")
            })
        };
        let before = scene.status(0);
        let error = ask(1).expect_err("the way ends at the node");
        assert_eq!(error.kind(), ErrorKind::HostUnreachable, "{target}: {error}");
        let changes = scene.status(0).changes_since(&before);
        assert_eq!(changes["drops.ttl_exceeded"], 1, "{target}: {changes:?}");
        assert_eq!(changes["counters.icmp_sent"], 1, "{target}: {changes:?}");
        // node-a takes one, and node-b, a router too, ends what has only one left. Its word goes
        // to node-a, whose packet it was, and from there to the client.
        let error = ask(2).expect_err("the way ends at the other node");
        assert_eq!(error.kind(), ErrorKind::HostUnreachable, "{target}: {error}");
        ask(3).unwrap_or_else(|error| panic!("{target}: {error}"));
    }
}

#[track_caller]
fn errors_end_what_cannot_go_on(arguments: &[&str]) {
    let cluster = scene::cluster(PodPath::SameDevice);
    let router = router::attach(&cluster);
    let objects = scene::places(&cluster);
    let scene = Scene::start(cluster, PodPath::SameDevice, &objects, arguments, 1);
    hops_are_counted(&scene);
    scene.cluster.client.route(&format!("{VIPS_V4} via 198.51.100.1"));
    scene.cluster.client.route(&format!("{VIPS_V6} via 2001:db8:1::1"));
    unknown_ports(&scene, &router);
}

#[track_caller]
fn unknown_ports(scene: &Scene, router: &Netns) {
    let wire = router.run(|| Wire::open(UPLINK).expect("a packet socket"));
    for v6 in [false, true] {
        scene.check(Place::Pod, Frontend::Vip, v6, Protocol::Udp);
        let targets = Protocol::BOTH.map(|protocol| {
            let mut target = Place::Pod.target(Frontend::ClusterIp, v6, protocol);
            target.set_port(4242);
            (target, protocol)
        });
        check_refused(scene, &targets, "unknown_port");

        let mut target = Place::Pod.target(Frontend::Vip, v6, Protocol::Udp);
        target.set_port(4242);
        let before = scene.status(0);
        let silence = scene
            .cluster
            .client
            .run(|| datagram::ask(target, Source::ANY, "nobody there", PATIENCE));
        let error = silence.expect_err("nobody listens");
        assert_eq!(error.kind(), ErrorKind::WouldBlock, "{target}: {error}");
        let changes = scene.status(0).changes_since(&before);
        assert_eq!(changes.get("drops.unknown_port"), Some(&1), "{target}: {changes:?}");
        // Once into the router, once out of it: it does not come back from the node.
        let frames = wire.collect(PATIENCE, |frame| frame.ends_with(b"nobody there"));
        assert_eq!(frames.expect("no error").len(), 2, "{target}");

        let before = scene.status(0);
        scene.cluster.client.run(|| send_unserved(target.ip(), b"whatever").expect("sent"));
        let frames = wire.collect(PATIENCE, |frame| frame.ends_with(b"whatever"));
        assert_eq!(frames.expect("no error").len(), 2, "{target}");
        let changes = scene.status(0).changes_since(&before);
        assert_eq!(changes.get("drops.unknown_protocol"), Some(&1), "{target}: {changes:?}");
    }
}

#[test]
fn the_last_hop_and_an_unknown_port_are_answered_and_nothing_goes_round() {
    errors_end_what_cannot_go_on(&[]);
}

#[test]
fn tc_alone_answers_the_last_hop_and_an_unknown_port() {
    errors_end_what_cannot_go_on(&["--xdp-mode", "off"]);
}

#[test]
fn the_last_hop_is_answered_in_front_of_an_overlay() {
    hops_are_counted(&Scene::of_node_a(PodPath::Vxlan, &[]));
}
