//! What is not served ends at once, with an errno that says why.

use lbxdp_tests::manifests::Endpoint;
use lbxdp_tests::process::wait_until;
use lbxdp_tests::traffic::puppet::{Kind, Puppet};
use nix::errno::Errno;

use crate::world::{DNS, ECHO, EDIT_WITHIN, Family, WEB, World, any, plain};

/// `connect` of both kinds, and `sendto`.
#[track_caller]
fn assert_fails(puppet: &mut Puppet, family: Family, last: u8, ports: (u16, u16), errno: Errno) {
    let (tcp, udp) = ports;
    for vip in [false, true] {
        let to = |port| if vip { family.vip(last, port) } else { family.cluster_ip(last, port) };
        // An unknown port is the one thing about which the two kinds of address differ.
        let errno = if vip && tcp != ECHO { Errno::EHOSTUNREACH } else { errno };
        puppet.open(1, Kind::Tcp, family.has_v6_socket());
        assert_eq!(puppet.connect(1, to(tcp)), Err(errno), "TCP {}", to(tcp));
        puppet.open(2, Kind::Tcp, family.has_v6_socket());
        assert_eq!(puppet.connect_nonblocking(2, to(tcp)), Err(errno), "TCP {}", to(tcp));
        puppet.open(3, Kind::Udp, family.has_v6_socket());
        assert_eq!(puppet.connect(3, to(udp)), Err(errno), "UDP {}", to(udp));
        puppet.open(4, Kind::Udp, family.has_v6_socket());
        puppet.bind(4, any(family.has_v6_socket(), 0));
        assert_eq!(puppet.send_to(4, to(udp), "hello"), Err(errno), "sendto {}", to(udp));
    }
}

#[test]
fn no_endpoint_anywhere_is_refused() {
    let world = World::start();
    world.serve("empty", 20, &[]);
    for mut puppet in [world.in_pod(), world.on_node()] {
        for family in Family::ALL {
            let before = world.counter("socket_refused");
            assert_fails(&mut puppet, family, 20, (ECHO, DNS), Errno::ECONNREFUSED);
            assert_eq!(world.counter("socket_refused") - before, 8);
        }
    }
    assert_eq!(world.entries(), 0);
}

#[test]
fn no_endpoint_that_the_policy_allows_is_unreachable() {
    let world = World::start();
    let far = Endpoint::pods_of(world.cluster.node(1));
    world.manifests.write("far.yaml", &plain("far", 20).internal_local().with(&far));
    wait_until("the Service is served", EDIT_WITHIN, || world.agent.status().0["frontends"] == 20);
    for mut puppet in [world.in_pod(), world.on_node()] {
        for family in Family::ALL {
            for to in [family.cluster_ip(20, ECHO), family.cluster_ip(20, DNS)] {
                let kind = if to.port() == ECHO { Kind::Tcp } else { Kind::Udp };
                puppet.open(1, kind, family.has_v6_socket());
                assert_eq!(puppet.connect(1, to), Err(Errno::EHOSTUNREACH), "{to}");
            }
            puppet.open(2, Kind::Udp, family.has_v6_socket());
            let to = family.cluster_ip(20, DNS);
            assert_eq!(puppet.send_to(2, to, "hello"), Err(Errno::EHOSTUNREACH));
        }
    }
}

#[test]
fn an_unknown_port_is_refused_or_unreachable_as_for_packets() {
    let world = World::start();
    let mut puppet = world.in_pod();
    for family in Family::ALL {
        assert_fails(&mut puppet, family, WEB, (9999, 9999), Errno::ECONNREFUSED);
    }
}

#[test]
fn an_address_of_a_service_range_that_no_service_has_is_unreachable() {
    let world = World::start_with(&["--service-cidr=10.96.0.0/16,fd00:10:96::/112"]);
    let mut puppet = world.in_pod();
    for family in Family::ALL {
        puppet.open(1, Kind::Tcp, family.has_v6_socket());
        let nobodys = family.cluster_ip(99, ECHO);
        assert_eq!(puppet.connect(1, nobodys), Err(Errno::EHOSTUNREACH), "{nobodys}");
        puppet.open(2, Kind::Udp, family.has_v6_socket());
        puppet.bind(2, any(family.has_v6_socket(), 0));
        assert_eq!(puppet.send_to(2, nobodys, "hello"), Err(Errno::EHOSTUNREACH), "{nobodys}");
        puppet.open(3, Kind::Tcp, family.has_v6_socket());
        assert_eq!(puppet.connect(3, family.cluster_ip(WEB, ECHO)), Ok(()), "a Service's");
    }
    assert_eq!(world.counter("socket_refused"), 6);
}
