//! What is served, in every way to ask for it.

use std::collections::BTreeSet;
use std::time::Duration;

use lbxdp_tests::process::wait_until;
use lbxdp_tests::traffic::puppet::Kind;
use nix::errno::Errno;

use crate::world::{
    DNS, DNS_TARGET, ECHO, EDIT_WITHIN, Family, NODE_PORT_DNS, NODE_PORT_ECHO, WEB, World, any,
    ask_udp, name_in, who_tcp,
};

#[test]
fn tcp_reaches_every_backend_by_every_address_and_sees_the_frontend() {
    let world = World::start();
    for mut puppet in [world.in_pod(), world.on_node()] {
        for family in Family::ALL {
            for to in [
                family.cluster_ip(WEB, ECHO),
                family.vip(WEB, ECHO),
                family.node(world.node(), NODE_PORT_ECHO),
            ] {
                puppet.open(1, Kind::Tcp, family.has_v6_socket());
                assert_eq!(puppet.connect(1, to), Ok(()), "{to}");
                assert_eq!(puppet.peer(1), to);
                name_in(&puppet.recv(1).expect("a banner"));
                puppet.send(1, "hello").expect("sent");
                assert_eq!(puppet.recv(1).as_deref(), Ok("hello"));
                puppet.close(1);

                puppet.open(2, Kind::Tcp, family.has_v6_socket());
                assert_eq!(puppet.connect_nonblocking(2, to), Ok(()), "{to}");
                assert_eq!(puppet.peer(2), to);
                name_in(&puppet.recv(2).expect("a banner"));
                puppet.close(2);
            }
            let to = family.cluster_ip(WEB, ECHO);
            let names: BTreeSet<_> = (0..40).map(|_| who_tcp(&mut puppet, family, to)).collect();
            assert_eq!(names.len(), 3, "{to}: {names:?}");
        }
    }
    assert_eq!(world.agent.status().all_drops(), 0);
    assert_eq!(world.counter("flow_new"), 0, "a packet was translated");
    assert_eq!(world.counter("socket_refused"), 0);
}

#[test]
fn a_bound_socket_keeps_its_address_and_port() {
    let world = World::start();
    let mut puppet = world.in_pod();
    for (family, port) in [(Family::V4, 45_001), (Family::V6, 45_002)] {
        let own = family.pod(world.pod(0), port);
        for kind in [Kind::Tcp, Kind::Udp] {
            puppet.open(1, kind, family.has_v6_socket());
            puppet.bind(1, own);
            let port = if kind == Kind::Tcp { ECHO } else { DNS };
            assert_eq!(puppet.connect(1, family.cluster_ip(WEB, port)), Ok(()));
            if kind == Kind::Udp {
                puppet.send(1, "hello").expect("sent");
            }
            let answer = puppet.recv(1).expect("an answer");
            let seen = format!("peer={} port={}", own.ip(), own.port());
            assert!(answer.contains(&seen), "{answer}");
            assert_eq!(puppet.local(1), own);
            puppet.close(1);
        }
    }
}

#[test]
fn udp_is_answered_by_the_frontend_connected_or_not() {
    let world = World::start();
    for mut puppet in [world.in_pod(), world.on_node()] {
        for family in Family::ALL {
            for to in [
                family.cluster_ip(WEB, DNS),
                family.vip(WEB, DNS),
                family.node(world.node(), NODE_PORT_DNS),
            ] {
                puppet.open(1, Kind::Udp, family.has_v6_socket());
                assert_eq!(puppet.connect(1, to), Ok(()), "{to}");
                assert_eq!(puppet.peer(1), to);
                puppet.send(1, "hello").expect("sent");
                let (from, answer) = puppet.recv_from(1).expect("an answer");
                assert_eq!(from, to, "{answer}");
                puppet.close(1);

                puppet.open(2, Kind::Udp, family.has_v6_socket());
                let (_, first) = ask_udp(&mut puppet, 2, to);
                for _ in 0..10 {
                    let (from, name) = ask_udp(&mut puppet, 2, to);
                    assert_eq!((from, &name), (to, &first), "another backend or sender");
                }
                puppet.close(2);
            }
        }
    }
    assert_eq!(world.counter("flow_new"), 0, "a packet was translated");
}

#[test]
fn one_udp_socket_asks_two_frontends_and_tells_them_apart() {
    let world = World::start();
    world.serve("one", 20, &[(world.node(), world.pod(1))]);
    world.serve("two", 21, &[(world.node(), world.pod(1))]);
    let mut puppet = world.in_pod();
    for family in Family::ALL {
        puppet.open(1, Kind::Udp, family.has_v6_socket());
        for last in [20, 21, 20, 21] {
            let to = family.cluster_ip(last, DNS);
            assert_eq!(ask_udp(&mut puppet, 1, to), (to, world.pod(1).name.clone()));
        }
    }
}

#[test]
fn a_udp_socket_that_connects_again_forgets_its_former_frontend() {
    let world = World::start();
    world.serve("one", 20, &[(world.node(), world.pod(1))]);
    let mut puppet = world.in_pod();
    for family in Family::ALL {
        let (frontend, backend) =
            (family.cluster_ip(20, DNS), family.pod(world.pod(1), DNS_TARGET));
        puppet.open(1, Kind::Udp, family.has_v6_socket());
        for to in [frontend, backend, frontend, backend] {
            assert_eq!(puppet.connect(1, to), Ok(()));
            assert_eq!(puppet.peer(1), to);
            puppet.send(1, "hello").expect("sent");
            assert_eq!(puppet.recv_from(1).expect("an answer").0, to);
        }
        assert_eq!(world.entries(), 0, "{family:?}: connected to a pod's own address");
        // A refused attempt leaves the socket what it was.
        assert_eq!(puppet.connect(1, frontend), Ok(()));
        let unknown = family.cluster_ip(20, 9999);
        assert_eq!(puppet.connect(1, unknown), Err(Errno::ECONNREFUSED));
        puppet.send(1, "hello").expect("sent");
        assert_eq!(puppet.recv_from(1).expect("an answer").0, frontend);
        puppet.close(1);
    }
}

#[test]
fn a_pod_that_calls_its_own_service_reaches_itself() {
    let world = World::start();
    world.serve("me", 20, &[(world.node(), world.pod(0))]);
    let mut puppet = world.in_pod();
    for family in Family::ALL {
        for to in [family.cluster_ip(20, ECHO), family.vip(20, ECHO)] {
            assert_eq!(who_tcp(&mut puppet, family, to), world.pod(0).name);
        }
        puppet.open(1, Kind::Udp, family.has_v6_socket());
        let to = family.cluster_ip(20, DNS);
        assert_eq!(ask_udp(&mut puppet, 1, to), (to, world.pod(0).name.clone()));
    }
}

#[test]
fn what_is_nobodys_and_what_is_no_tcp_or_udp_is_left_alone() {
    let world = World::start();
    let mut puppet = world.in_pod();
    world.pod(0).netns.sysctl("net.ipv4.ping_group_range", "0 2147483647");
    for family in Family::ALL {
        let pod = family.pod(world.far_pod(), ECHO);
        assert_eq!(who_tcp(&mut puppet, family, pod), world.far_pod().name);
        puppet.open(1, Kind::Udp, family.has_v6_socket());
        let pod = family.pod(world.far_pod(), DNS_TARGET);
        assert_eq!(ask_udp(&mut puppet, 1, pod), (pod, world.far_pod().name.clone()));
        // The node's own ports: nobody listens, and it is the kernel that says so.
        puppet.open(2, Kind::Tcp, family.has_v6_socket());
        let node = family.node(world.node(), 9999);
        assert_eq!(puppet.connect(2, node), Err(Errno::ECONNREFUSED));
    }
    for family in [Family::V4, Family::V6] {
        puppet.open(3, Kind::Ping, family.is_v6());
        let to = family.cluster_ip(WEB, ECHO);
        assert_eq!(puppet.connect(3, to), Ok(()));
        assert_eq!(puppet.peer(3).ip(), to.ip());
    }
    for counter in ["socket_connected", "socket_sent", "socket_refused"] {
        assert_eq!(world.counter(counter), 0, "{counter}");
    }
    assert_eq!(world.entries(), 0);
}

#[test]
fn a_process_outside_the_cgroup_is_not_served() {
    let world = World::start();
    let other = lbxdp_tests::Cgroup::new("other");
    let mut puppet = lbxdp_tests::traffic::puppet::Puppet::start(&other, &world.pod(0).netns);
    // Its packets leave the pod untranslated, and no device there is served.
    puppet.open(1, Kind::Udp, false);
    assert_eq!(puppet.connect(1, Family::V4.cluster_ip(20, DNS)), Ok(()));
    assert_eq!(world.counter("socket_connected") + world.counter("socket_refused"), 0);
    assert_eq!(world.entries(), 0);
}

#[test]
fn closed_sockets_leave_nothing_behind() {
    let world = World::start();
    let mut puppet = world.in_pod();
    for family in Family::ALL {
        for (id, kind, port) in [(1, Kind::Tcp, ECHO), (2, Kind::Udp, DNS)] {
            puppet.open(id, kind, family.has_v6_socket());
            assert_eq!(puppet.connect(id, family.cluster_ip(WEB, port)), Ok(()));
        }
        puppet.open(3, Kind::Udp, family.has_v6_socket());
        ask_udp(&mut puppet, 3, family.cluster_ip(WEB, DNS));
        // What a connection has, what a connected socket has, and three for the other.
        assert_eq!(world.entries(), 5, "{family:?}");
        for id in 1..=3 {
            puppet.close(id);
        }
        assert_eq!(world.entries(), 0, "{family:?}");
    }
    // A process that ends closes what it has.
    puppet.open(1, Kind::Udp, true);
    puppet.bind(1, any(true, 0));
    ask_udp(&mut puppet, 1, Family::V6.cluster_ip(WEB, DNS));
    ask_udp(&mut puppet, 1, Family::Mapped.cluster_ip(WEB, DNS));
    assert_eq!(world.entries(), 6);
    drop(puppet);
    wait_until("the entries are gone", Duration::from_secs(2), || world.entries() == 0);
}

#[test]
fn a_tcp_connection_outlives_its_endpoint_and_its_service() {
    let world = World::start();
    world.serve("old", 20, &[(world.node(), world.pod(1))]);
    let mut puppet = world.in_pod();
    for (id, family) in (1..).zip(Family::ALL) {
        puppet.open(id, Kind::Tcp, family.has_v6_socket());
        assert_eq!(puppet.connect(id, family.cluster_ip(20, ECHO)), Ok(()));
        puppet.recv(id).expect("a banner");
    }
    world.serve("old", 20, &[(world.cluster.node(1), world.far_pod())]);
    let use_them = |puppet: &mut lbxdp_tests::traffic::puppet::Puppet| {
        for (id, family) in (1..).zip(Family::ALL) {
            puppet.send(id, "still here").expect("sent");
            assert_eq!(puppet.recv(id).as_deref(), Ok("still here"));
            assert_eq!(puppet.peer(id), family.cluster_ip(20, ECHO));
        }
    };
    use_them(&mut puppet);
    let mut other = world.in_pod();
    assert_eq!(
        who_tcp(&mut other, Family::V4, Family::V4.cluster_ip(20, ECHO)),
        world.far_pod().name
    );
    world.manifests.remove("old.yaml");
    wait_until("the Service is gone", EDIT_WITHIN, || world.agent.status().0["frontends"] == 12);
    use_them(&mut puppet);
}
