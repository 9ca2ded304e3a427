//! Which connections of the stack the programs must leave to it, and which of the programs' the stack
//! must know of. Two translators of one node may neither take each other's packets nor use each other's
//! source ports.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use lbxdp_common::{Flow, FlowKey, FlowState, Hook, IPPROTO_UDP, Octets};

use crate::apply::FlowEntry;
use crate::model::{FrontendAddr, Protocol};
use crate::netlink::conntrack::{Connection, Direction, Progress};

/// The id of no frontend and of no backend.
pub const NONE: u32 = u32::MAX;

/// Both halves of the flow that keeps a connection with the stack; `None` where the programs have
/// nothing to do with it. They do if the connection is translated and one of its sides sends to a
/// frontend: the client does, or the answers to a source port that a NodePort's frontend has as well.
pub fn flow(
    connection: &Connection,
    frontends: &BTreeMap<FrontendAddr, u32>,
    now: u64,
) -> Option<[FlowEntry; 2]> {
    let Connection { protocol, original, reply, progress } = connection;
    if !connection.is_translated() {
        return None;
    }
    let named = Protocol::from_number(*protocol)?;
    let listener = |to: SocketAddr| {
        let frontend = FrontendAddr { addr: to.ip(), port: to.port(), protocol: named };
        frontends.get(&frontend).copied()
    };
    let id = match (listener(original.to), listener(reply.to)) {
        (Some(id), _) => id,
        (None, Some(_)) => NONE,
        (None, None) => return None,
    };
    let state = match progress {
        _ if *protocol == IPPROTO_UDP => FlowState::Datagram,
        Progress::Beginning => FlowState::Syn,
        Progress::Established => FlowState::Established,
        Progress::Closing => FlowState::Closing,
    };
    let half = |is_reply| {
        let (here, there) = if is_reply { (reply, original) } else { (original, reply) };
        half(*protocol, here, there, id, state, is_reply, now)
    };
    Some([half(false)?, half(true)?])
}

/// The half that packets of `here` meet.
fn half(
    protocol: u8,
    here: &Direction,
    there: &Direction,
    frontend: u32,
    state: FlowState,
    is_reply: bool,
    now: u64,
) -> Option<FlowEntry> {
    let entry = Half { protocol, frontend, state, is_reply, now };
    let ends = [here.from, here.to, there.to, there.from];
    let v4 = ends.map(|end| match end.ip() {
        IpAddr::V4(ip) => Some((ip.octets(), end.port())),
        IpAddr::V6(_) => None,
    });
    let v6 = ends.map(|end| match end.ip() {
        IpAddr::V6(ip) => Some((ip.octets(), end.port())),
        IpAddr::V4(_) => None,
    });
    match (v4, v6) {
        ([Some(a), Some(b), Some(c), Some(d)], _) => {
            let (key, flow) = entry.of([a, b, c, d]);
            Some(FlowEntry::V4(key, flow))
        }
        (_, [Some(a), Some(b), Some(c), Some(d)]) => {
            let (key, flow) = entry.of([a, b, c, d]);
            Some(FlowEntry::V6(key, flow))
        }
        // From one family to the other: the programs have no such frontend.
        _ => None,
    }
}

/// What a half is made of, but for its addresses.
struct Half {
    protocol: u8,
    frontend: u32,
    state: FlowState,
    is_reply: bool,
    now: u64,
}

impl Half {
    /// The half of packets between the first two, which become packets between the others.
    fn of<A: Octets>(
        &self,
        [from, to, become_from, become_to]: [(A, u16); 4],
    ) -> (FlowKey<A>, Flow<A>) {
        let Self { protocol, frontend, state, is_reply, now } = *self;
        let key = FlowKey {
            src: from.0,
            dst: to.0,
            src_port: from.1,
            dst_port: to.1,
            protocol,
            _pad: [0; 3],
        };
        let flow = Flow {
            src: become_from.0,
            dst: become_to.0,
            src_port: become_from.1,
            dst_port: become_to.1,
            frontend,
            check: 0,
            state: state as u8,
            // Of no hook: programs that do not know the flag translate nothing by it.
            hook: 0,
            // The client's next packet without SYN is its answer to the backend's: what came in
            // between is not known.
            flags: Flow::<A>::FOREIGN
                | Flow::<A>::ANSWERED
                | if is_reply { Flow::<A>::REPLY } else { 0 },
            _pad: 0,
            last_seen: now,
            backend: NONE,
            _pad2: 0,
        };
        (key, flow)
    }
}

/// A port is reserved for so long at least: a flow of datagrams may go on, and is told of only now and
/// then.
const RESERVED_SECONDS: u32 = 2_000;

/// A source port that the stack must give to nobody else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// IANA protocol number.
    pub protocol: u8,
    /// As packets leave this node.
    pub sent: Direction,
    /// For how long: the flow may be silent as long, and the stack is told again before that is over.
    pub seconds: u32,
}

/// What the stack must know of a flow: that of one which leaves the node again under an address of the
/// node, behind conntrack's back. `None` for all others: what goes through the stack it sees.
pub fn reservation(entry: &FlowEntry, now: u64) -> Option<Reservation> {
    fn of<A>(key: &FlowKey<A>, flow: &Flow<A>, now: u64) -> Option<Reservation>
    where
        A: Octets + Into<IpAddr>,
    {
        let is_hidden = flow.is_live_request(now)
            && !flow.has(Flow::<A>::LOCAL | Flow::<A>::FOREIGN)
            && flow.hook == Hook::Ingress as u8;
        let end = |addr: A, port| SocketAddr::new(addr.into(), port);
        is_hidden.then(|| Reservation {
            protocol: key.protocol,
            sent: Direction {
                from: end(flow.src, flow.src_port),
                to: end(flow.dst, flow.dst_port),
            },
            seconds: u32::try_from(FlowState::timeout_ns(flow.state) / 1_000_000_000)
                .unwrap_or(u32::MAX)
                .max(RESERVED_SECONDS),
        })
    }
    match entry {
        FlowEntry::V4(key, flow) => of(key, flow, now),
        FlowEntry::V6(key, flow) => of(key, flow, now),
    }
}

#[cfg(test)]
mod tests {
    use lbxdp_common::IPPROTO_TCP;

    use super::*;

    fn direction(from: &str, to: &str) -> Direction {
        Direction { from: from.parse().unwrap(), to: to.parse().unwrap() }
    }

    fn frontends(addresses: &[&str]) -> BTreeMap<FrontendAddr, u32> {
        let tcp = Protocol::Tcp;
        let ids = (7..).zip(addresses).map(|(id, text)| {
            let socket: SocketAddr = text.parse().unwrap();
            (FrontendAddr { addr: socket.ip(), port: socket.port(), protocol: tcp }, id)
        });
        ids.collect()
    }

    /// A client's connection to a load balancer, translated to a pod elsewhere, both families.
    fn connections() -> [(Connection, &'static str); 2] {
        let of = |original, reply| Connection {
            protocol: IPPROTO_TCP,
            original,
            reply,
            progress: Progress::Established,
        };
        [
            (
                of(
                    direction("192.0.2.7:40000", "203.0.113.10:80"),
                    direction("10.244.2.5:8080", "192.0.2.1:61234"),
                ),
                "203.0.113.10:80",
            ),
            (
                of(
                    direction("[2001:db8::7]:40000", "[2001:db8:ff::10]:80"),
                    direction("[fd00:244::5]:8080", "[2001:db8::1]:61234"),
                ),
                "[2001:db8:ff::10]:80",
            ),
        ]
    }

    #[test]
    fn the_halves_are_each_others_inverse_and_known_by_what_arrives() {
        for (connection, frontend) in connections() {
            let Connection { original, reply, .. } = connection;
            let halves = flow(&connection, &frontends(&[frontend]), 5).unwrap();
            for half in halves {
                assert_eq!(half.ends(), (original.to, reply.from));
                assert!(half.is_foreign());
            }
            match halves {
                [FlowEntry::V4(key, request), FlowEntry::V4(reply_key, reply)] => {
                    assert_eq!(request.sibling_key(&key), reply_key);
                    assert!(reply.undoes(&key) && request.undoes(&reply_key));
                    assert_eq!((request.frontend, request.last_seen), (7, 5));
                    assert!(!request.has(Flow::<()>::REPLY) && reply.has(Flow::<()>::REPLY));
                }
                [FlowEntry::V6(key, request), FlowEntry::V6(reply_key, reply)] => {
                    assert_eq!(request.sibling_key(&key), reply_key);
                    assert!(reply.undoes(&key) && request.undoes(&reply_key));
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn only_what_is_translated_and_meets_a_frontend_matters() {
        let [(connection, frontend), _] = connections();
        assert_eq!(flow(&connection, &frontends(&["203.0.113.11:80"]), 0), None);
        let udp = Connection { protocol: IPPROTO_UDP, ..connection };
        assert_eq!(flow(&udp, &frontends(&[frontend]), 0), None, "another protocol");
        let Direction { from, to } = connection.original;
        let plain = Connection { reply: Direction { from: to, to: from }, ..connection };
        assert_eq!(flow(&plain, &frontends(&[frontend]), 0), None);
        // A pod masqueraded to a port of the node that is a NodePort, too.
        let [FlowEntry::V4(_, request), _] =
            flow(&connection, &frontends(&["192.0.2.1:61234"]), 0).unwrap()
        else {
            panic!("IPv4");
        };
        assert_eq!(request.frontend, NONE);
    }

    #[test]
    fn states_follow_from_the_stacks() {
        let [(connection, frontend), _] = connections();
        for (progress, state) in [
            (Progress::Beginning, FlowState::Syn),
            (Progress::Established, FlowState::Established),
            (Progress::Closing, FlowState::Closing),
        ] {
            let connection = Connection { progress, ..connection };
            let [FlowEntry::V4(_, request), FlowEntry::V4(_, reply)] =
                flow(&connection, &frontends(&[frontend]), 0).unwrap()
            else {
                panic!("IPv4");
            };
            assert_eq!((request.state, reply.state), (state as u8, state as u8));
        }
    }

    #[test]
    fn what_leaves_again_is_reserved_and_nothing_else() {
        let [(connection, frontend), _] = connections();
        let [FlowEntry::V4(key, foreign), FlowEntry::V4(reply_key, reply)] =
            flow(&connection, &frontends(&[frontend]), 0).unwrap()
        else {
            panic!("IPv4");
        };
        assert_eq!(reservation(&FlowEntry::V4(key, foreign), 0), None);
        let remote = Flow { flags: 0, hook: Hook::Ingress as u8, ..foreign };
        let expected = Reservation {
            protocol: IPPROTO_TCP,
            sent: direction("192.0.2.1:61234", "10.244.2.5:8080"),
            seconds: 8_000,
        };
        assert_eq!(reservation(&FlowEntry::V4(key, remote), 0), Some(expected));
        for other in [
            Flow { flags: Flow::<()>::LOCAL, ..remote },
            Flow { hook: Hook::PodIngress as u8, ..remote },
            Flow { last_seen: 0, state: FlowState::Closing as u8, ..remote },
        ] {
            assert_eq!(reservation(&FlowEntry::V4(key, other), 11_000_000_000), None);
        }
        let reply = Flow { flags: Flow::<()>::REPLY, hook: Hook::Ingress as u8, ..reply };
        assert_eq!(reservation(&FlowEntry::V4(reply_key, reply), 0), None);
    }
}
