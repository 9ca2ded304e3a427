//! Connections that the stack tracks, and translates where their two directions are not each other's
//! inverse. `CAP_NET_ADMIN` is enough for all of it.

use std::io;
use std::net::{IpAddr, SocketAddr};

use lbxdp_common::{IPPROTO_SCTP, IPPROTO_TCP, IPPROTO_UDP};
use netlink_packet_core::NLM_F_CREATE;
use netlink_packet_core::Nla as _;
use netlink_packet_netfilter::conntrack::{
    ConntrackAttribute, ConntrackMessage, IPTuple, ProtoInfo, ProtoInfoTCP, ProtoTuple, Status,
    Tuple,
};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};

use super::request::Requests;

/// `CTA_ZONE`: the connection is of another table than the one that rules without zones use.
const ZONE: u16 = 18;

/// `enum tcp_conntrack`, which the kernel exports.
const TCP_ESTABLISHED: u8 = 3;
const TCP_LAST_ACK: u8 = 6;
const TCP_CLOSE: u8 = 8;

/// A packet's addresses and ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Direction {
    /// Who sends.
    pub from: SocketAddr,
    /// To whom.
    pub to: SocketAddr,
}

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Not established: one side has not been heard, or its handshake is not complete.
    Beginning,
    /// Established, half-closed included. UDP: both sides were heard for a while.
    Established,
    /// TCP: both sides are done.
    Closing,
}

/// A connection of TCP, UDP or SCTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// IANA protocol number.
    pub protocol: u8,
    /// Its packets as they come from the one who began it.
    pub original: Direction,
    /// The answers as they come from the other side: to what the packets were translated to.
    pub reply: Direction,
    /// How far it is.
    pub progress: Progress,
}

impl Connection {
    /// Whether the stack changes addresses or ports.
    pub fn is_translated(&self) -> bool {
        self.original.from != self.reply.to || self.original.to != self.reply.from
    }
}

/// Conntrack of a network namespace.
#[derive(Debug)]
pub struct Conntrack {
    requests: Requests,
}

impl Conntrack {
    /// That of the calling thread. Fails where the kernel has no netfilter, in which case there are no
    /// connections either; where only conntrack's netlink is missing, questions fail.
    pub fn open() -> io::Result<Self> {
        Ok(Self { requests: Requests::netfilter()? })
    }

    /// Every connection, one after the other: there may be hundreds of thousands. One that begins
    /// or ends meanwhile may be missing.
    pub fn each(&mut self, mut each: impl FnMut(Connection)) -> io::Result<()> {
        let question = message(NetfilterProtoFamily::Unspec, ConntrackMessage::Get(Vec::new()));
        self.requests.dump_each(question, |answer| {
            if let Some(connection) = connection(&answer) {
                each(connection);
            }
        })
    }

    /// Whether there is a connection with packets of this direction.
    pub fn has(&mut self, protocol: u8, direction: &Direction) -> io::Result<bool> {
        let tuple = ConntrackAttribute::CtaTupleOrig(tuple(protocol, direction));
        let question = message(family(direction), ConntrackMessage::Get(vec![tuple]));
        match self.requests.ask(question, 0) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Enters a connection that the stack does not see, so that it gives its source port to no other
    /// towards the same destination; one that is there lives for `seconds` from now on.
    pub fn reserve(&mut self, protocol: u8, sent: &Direction, seconds: u32) -> io::Result<()> {
        let answered = Direction { from: sent.to, to: sent.from };
        let mut attributes = vec![
            ConntrackAttribute::CtaTupleOrig(tuple(protocol, sent)),
            ConntrackAttribute::CtaTupleReply(tuple(protocol, &answered)),
            // Assured: a table that is full throws others out.
            ConntrackAttribute::CtaStatus(Status::Confirmed | Status::SeenReply | Status::Assured),
            ConntrackAttribute::CtaTimeout(seconds),
        ];
        if protocol == IPPROTO_TCP {
            let state = ProtoInfoTCP::State(TCP_ESTABLISHED);
            attributes.push(ConntrackAttribute::CtaProtoInfo(vec![ProtoInfo::TCP(vec![state])]));
        }
        let command = message(family(sent), ConntrackMessage::New(attributes));
        self.requests.ask(command, NLM_F_CREATE).map(drop)
    }
}

fn message(family: NetfilterProtoFamily, inner: ConntrackMessage) -> NetfilterMessage {
    NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), inner)
}

const fn family(direction: &Direction) -> NetfilterProtoFamily {
    match direction.to {
        SocketAddr::V4(_) => NetfilterProtoFamily::IPv4,
        SocketAddr::V6(_) => NetfilterProtoFamily::IPv6,
    }
}

fn tuple(protocol: u8, direction: &Direction) -> Vec<Tuple> {
    let Direction { from, to } = direction;
    vec![
        Tuple::Ip(vec![IPTuple::SourceAddress(from.ip()), IPTuple::DestinationAddress(to.ip())]),
        Tuple::Proto(vec![
            ProtoTuple::Protocol(protocol.into()),
            ProtoTuple::SourcePort(from.port()),
            ProtoTuple::DestinationPort(to.port()),
        ]),
    ]
}

/// What a message says; `None` for other protocols, other zones and what lacks something.
fn connection(message: &NetfilterMessage) -> Option<Connection> {
    let NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) = &message.inner else {
        return None;
    };
    let (mut original, mut reply, mut status, mut tcp) = (None, None, Status::empty(), None);
    for attribute in attributes {
        match attribute {
            ConntrackAttribute::CtaTupleOrig(parts) => original = direction(parts),
            ConntrackAttribute::CtaTupleReply(parts) => reply = direction(parts),
            ConntrackAttribute::CtaStatus(is) => status = *is,
            ConntrackAttribute::CtaProtoInfo(infos) => tcp = tcp_state(infos),
            ConntrackAttribute::Other(other) if other.kind() == ZONE => return None,
            _ => {}
        }
    }
    let ((protocol, original), (_, reply)) = (original?, reply?);
    let progress = match tcp {
        Some(TCP_LAST_ACK..=TCP_CLOSE) => Progress::Closing,
        _ if status.contains(Status::Assured) => Progress::Established,
        _ => Progress::Beginning,
    };
    let is_served = [IPPROTO_TCP, IPPROTO_UDP, IPPROTO_SCTP].contains(&protocol);
    is_served.then_some(Connection { protocol, original, reply, progress })
}

fn direction(parts: &[Tuple]) -> Option<(u8, Direction)> {
    let (mut src, mut dst): (Option<IpAddr>, Option<IpAddr>) = (None, None);
    let (mut protocol, mut src_port, mut dst_port) = (None, None, None);
    for part in parts {
        match part {
            Tuple::Ip(parts) => {
                for part in parts {
                    match part {
                        IPTuple::SourceAddress(addr) => src = Some(*addr),
                        IPTuple::DestinationAddress(addr) => dst = Some(*addr),
                        _ => {}
                    }
                }
            }
            Tuple::Proto(parts) => {
                for part in parts {
                    match part {
                        ProtoTuple::Protocol(number) => protocol = Some(u8::from(*number)),
                        ProtoTuple::SourcePort(port) => src_port = Some(*port),
                        ProtoTuple::DestinationPort(port) => dst_port = Some(*port),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    let from = SocketAddr::new(src?, src_port?);
    Some((protocol?, Direction { from, to: SocketAddr::new(dst?, dst_port?) }))
}

fn tcp_state(infos: &[ProtoInfo]) -> Option<u8> {
    let parts = infos.iter().filter_map(|info| match info {
        ProtoInfo::TCP(parts) => Some(parts),
        _ => None,
    });
    parts.flatten().find_map(|part| match part {
        ProtoInfoTCP::State(state) => Some(*state),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::{
        DefaultNla, Emitable, NetlinkSerializable, ParseableParametrized as _,
    };

    use super::*;

    fn direction(from: &str, to: &str) -> Direction {
        Direction { from: from.parse().unwrap(), to: to.parse().unwrap() }
    }

    /// What the agent makes of a message after it has been written and read.
    fn read(attributes: Vec<ConntrackAttribute>) -> Option<Connection> {
        let sent = message(NetfilterProtoFamily::Unspec, ConntrackMessage::New(attributes));
        let mut bytes = vec![0; Emitable::buffer_len(&sent)];
        sent.emit(&mut bytes);
        let kind = NetlinkSerializable::message_type(&sent);
        let received = NetfilterMessage::parse_with_param(&bytes[..], kind).unwrap();
        connection(&received)
    }

    fn attributes(protocol: u8, state: u8, status: Status) -> Vec<ConntrackAttribute> {
        let original = direction("192.0.2.7:40000", "203.0.113.10:80");
        let reply = direction("10.244.1.5:8080", "192.0.2.1:61234");
        let mut attributes = vec![
            ConntrackAttribute::CtaTupleOrig(tuple(protocol, &original)),
            ConntrackAttribute::CtaTupleReply(tuple(protocol, &reply)),
            ConntrackAttribute::CtaStatus(status),
        ];
        if protocol == IPPROTO_TCP {
            let parts = vec![ProtoInfoTCP::State(state)];
            attributes.push(ConntrackAttribute::CtaProtoInfo(vec![ProtoInfo::TCP(parts)]));
        }
        attributes
    }

    #[test]
    fn both_directions_and_how_far_it_is() {
        for (protocol, state, status, progress) in [
            (IPPROTO_TCP, 1, Status::empty(), Progress::Beginning),
            (IPPROTO_TCP, 2, Status::SeenReply, Progress::Beginning),
            (IPPROTO_TCP, 3, Status::SeenReply | Status::Assured, Progress::Established),
            (IPPROTO_TCP, 4, Status::SeenReply | Status::Assured, Progress::Established),
            (IPPROTO_TCP, 7, Status::SeenReply | Status::Assured, Progress::Closing),
            (IPPROTO_UDP, 0, Status::SeenReply, Progress::Beginning),
            (IPPROTO_UDP, 0, Status::SeenReply | Status::Assured, Progress::Established),
            (IPPROTO_SCTP, 0, Status::SeenReply | Status::Assured, Progress::Established),
        ] {
            let connection = read(attributes(protocol, state, status)).unwrap();
            assert_eq!((connection.protocol, connection.progress), (protocol, progress));
            assert_eq!(connection.original, direction("192.0.2.7:40000", "203.0.113.10:80"));
            assert_eq!(connection.reply, direction("10.244.1.5:8080", "192.0.2.1:61234"));
            assert!(connection.is_translated());
        }
    }

    #[test]
    fn other_protocols_other_zones_and_half_messages_are_left_out() {
        assert_eq!(read(attributes(47, 0, Status::Assured)), None);
        let mut zoned = attributes(IPPROTO_UDP, 0, Status::Assured);
        zoned.push(ConntrackAttribute::Other(DefaultNla::new(ZONE, vec![0, 7])));
        assert_eq!(read(zoned), None);
        let mut half = attributes(IPPROTO_UDP, 0, Status::Assured);
        half.remove(1);
        assert_eq!(read(half), None);
    }

    #[test]
    fn answers_to_what_was_sent_mean_no_translation() {
        let original = direction("[2001:db8::7]:40000", "[fd00::1]:80");
        let reply = Direction { from: original.to, to: original.from };
        let connection =
            Connection { protocol: 6, original, reply, progress: Progress::Established };
        assert!(!connection.is_translated());
        let reply = direction("[fd00::1]:80", "[2001:db8::7]:40001");
        assert!(Connection { reply, ..connection }.is_translated());
    }
}
