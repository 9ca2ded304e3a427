//! What a client's SYN does to the flow that its ports have already.

use lbxdp_common::{IPPROTO_TCP, IPPROTO_UDP};

use crate::{
    Net,
    frames::Packet,
    nets,
    rig::{Rig, TCX_NEXT, XDP_PASS, XDP_TX},
};

/// How a backend stops being one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// No table names it.
    Retired,
    /// Its id is unused.
    Unused,
    /// Its id is another backend's.
    Another,
}

const ENDS: [End; 3] = [End::Retired, End::Unused, End::Another];

impl End {
    fn of(self, rig: &mut Rig, net: &Net, id: u32) {
        match self {
            Self::Retired => rig.retire(net.vip.ip(), id),
            Self::Unused => rig.set_backend_port(net.vip.ip(), id, 0),
            Self::Another => rig.set_backend_port(net.vip.ip(), id, 9),
        }
    }
}

/// A connection to a backend that is on this node or elsewhere; the id of the backend.
fn connected(rig: &mut Rig, net: &Net, protocol: u8, is_local: bool) -> (Packet, u32) {
    let id = if is_local { rig.local(net.pod) } else { rig.remote(net.near, net.node.ip()) };
    rig.frontend(net.vip, protocol, &[id]);
    let request = Packet::new(protocol, net.client, net.vip);
    rig.xdp(&request.bytes());
    rig.xdp(&request.flags(".").bytes());
    rig.expect_moved(&[
        ("flow_new", 1),
        ("flow_hit", 1),
        (if is_local { "passed_local" } else { "transmitted" }, 2),
    ]);
    (request, id)
}

/// Another backend takes over: on the other side, so that a verdict shows which one it is.
fn replace(rig: &mut Rig, net: &Net, protocol: u8, was_local: bool) {
    let id = if was_local { rig.remote(net.near, net.node.ip()) } else { rig.local(net.pod) };
    rig.frontend(net.vip, protocol, &[id]);
}

fn verdict(is_local: bool) -> u32 {
    if is_local { XDP_PASS } else { XDP_TX }
}

fn moved(is_local: bool) -> &'static str {
    if is_local { "passed_local" } else { "transmitted" }
}

fn each(check: impl Fn(&mut Rig, Net, bool, End)) {
    let mut rig = Rig::new();
    for net in nets() {
        for end in ENDS {
            for is_local in [true, false] {
                check(&mut rig, net, is_local, end);
                rig.evict(|_| true);
                rig.moved();
            }
        }
    }
}

#[test]
fn a_syn_to_a_backend_that_is_none_any_more_chooses_again() {
    each(|rig, net, is_local, end| {
        let (request, id) = connected(rig, &net, IPPROTO_TCP, is_local);
        replace(rig, &net, IPPROTO_TCP, is_local);
        end.of(rig, &net, id);
        assert_eq!(rig.xdp(&request.bytes()).verdict, verdict(!is_local), "{end:?}");
        rig.expect_moved(&[("flow_expired", 1), ("flow_new", 1), (moved(!is_local), 1)]);
        let flows = rig.flows_v4().len() + rig.flows_v6().len();
        assert_eq!(flows, 2, "both halves of the old flow are gone");
    });
}

#[test]
fn everything_but_a_syn_stays_with_a_backend_that_is_none_any_more() {
    each(|rig, net, is_local, end| {
        let (request, id) = connected(rig, &net, IPPROTO_TCP, is_local);
        replace(rig, &net, IPPROTO_TCP, is_local);
        end.of(rig, &net, id);
        for flags in [".", "P.", "F.", "S."] {
            let packet = request.flags(flags);
            assert_eq!(rig.xdp(&packet.bytes()).verdict, verdict(is_local), "{end:?} {flags}");
        }
        rig.expect_moved(&[("flow_hit", 4), (moved(is_local), 4)]);
    });
}

#[test]
fn a_datagram_stays_with_a_backend_that_is_none_any_more() {
    // Which datagrams have to move is more than the programs know: the agent ends those flows.
    each(|rig, net, is_local, end| {
        let (request, id) = connected(rig, &net, IPPROTO_UDP, is_local);
        replace(rig, &net, IPPROTO_UDP, is_local);
        end.of(rig, &net, id);
        assert_eq!(rig.xdp(&request.bytes()).verdict, verdict(is_local), "{end:?}");
        rig.expect_moved(&[("flow_hit", 1), (moved(is_local), 1)]);
    });
}

#[test]
fn a_syn_does_not_move_a_connection_whose_backend_lives() {
    let mut rig = Rig::new();
    for net in nets() {
        for is_local in [true, false] {
            let (request, _) = connected(&mut rig, &net, IPPROTO_TCP, is_local);
            // A new client would be served by the other one.
            replace(&mut rig, &net, IPPROTO_TCP, is_local);
            assert_eq!(rig.xdp(&request.bytes()).verdict, verdict(is_local));
            rig.expect_moved(&[("flow_hit", 1), (moved(is_local), 1)]);
            rig.evict(|_| true);
            rig.moved();
        }
    }
}

#[test]
fn a_syn_of_the_backend_ends_no_flow() {
    let mut rig = Rig::new();
    for net in nets() {
        let (request, id) = connected(&mut rig, &net, IPPROTO_TCP, true);
        rig.retire(net.vip.ip(), id);
        let reply = request.between(net.pod, net.client);
        assert_eq!(rig.egress(&reply.bytes()).verdict, TCX_NEXT);
        rig.expect_moved(&[("flow_hit", 1), ("reply_translated", 1)]);
        rig.evict(|_| true);
        rig.moved();
    }
}

#[test]
fn a_syn_without_any_backend_left_is_refused_like_a_new_one() {
    each(|rig, net, is_local, end| {
        let (request, id) = connected(rig, &net, IPPROTO_TCP, is_local);
        rig.verdict(net.vip, IPPROTO_TCP, lbxdp_common::TablePolicy::Drop);
        end.of(rig, &net, id);
        rig.xdp(&request.bytes());
        rig.expect_moved(&[("flow_expired", 1), ("no_local_endpoint", 1)]);
        assert_eq!(rig.flows_v4().len() + rig.flows_v6().len(), 0);
    });
}
