//! Requests to the kernel and their answers, one at a time.

use std::io;
use std::net::IpAddr;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader,
    NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage,
};
use netlink_packet_route::route::{RouteAttribute, RouteHeader, RouteMessage};
use netlink_packet_route::rule::RuleMessage;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::{NETLINK_GENERIC, NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{Socket, SocketAddr};

/// Set on a message of a dump during which the table changed.
const NLM_F_DUMP_INTR: u16 = 0x10;
/// Dumps that are tried again because the table changed meanwhile; the last answer is taken.
const DUMP_ATTEMPTS: usize = 3;
const RECEIVE_BUFFER: usize = 1 << 20;

/// A netlink socket for questions.
#[derive(Debug)]
pub struct Requests {
    socket: Socket,
    sequence: u32,
}

impl Requests {
    /// A socket in the calling thread's network namespace, for links, addresses, routes and tc.
    pub fn route() -> io::Result<Self> {
        let requests = Self::open(NETLINK_ROUTE)?;
        // Makes the kernel honour the table in a request for routes (4.20+; without, it sends all).
        let _ = requests.socket.set_netlink_get_strict_chk(true);
        Ok(requests)
    }

    /// The same for generic netlink.
    pub fn generic() -> io::Result<Self> {
        Self::open(NETLINK_GENERIC)
    }

    /// The same for conntrack. `EPROTONOSUPPORT` where the kernel has no netfilter.
    pub fn netfilter() -> io::Result<Self> {
        Self::open(NETLINK_NETFILTER)
    }

    fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_rx_buf_sz(RECEIVE_BUFFER as u32)?;
        // Errors then do not repeat the request.
        let _ = socket.set_cap_ack(true);
        Ok(Self { socket, sequence: 0 })
    }

    /// Everything in a table.
    pub fn dump<M>(&mut self, message: M) -> io::Result<Vec<M>>
    where
        M: NetlinkSerializable + NetlinkDeserializable + Clone,
    {
        for attempt in 1.. {
            let (answers, interrupted) =
                self.exchange(message.clone(), NLM_F_REQUEST | NLM_F_DUMP)?;
            if !interrupted || attempt == DUMP_ATTEMPTS {
                return Ok(answers);
            }
        }
        unreachable!("the loop returns")
    }

    /// Everything in a table that changes all the time and may be large, message by message.
    pub fn dump_each<M>(&mut self, message: M, each: impl FnMut(M)) -> io::Result<()>
    where
        M: NetlinkSerializable + NetlinkDeserializable,
    {
        self.exchange_each(message, NLM_F_REQUEST | NLM_F_DUMP, each).map(drop)
    }

    /// A question with one answer, or a command with none.
    pub fn ask<M>(&mut self, message: M, flags: u16) -> io::Result<Vec<M>>
    where
        M: NetlinkSerializable + NetlinkDeserializable,
    {
        Ok(self.exchange(message, NLM_F_REQUEST | NLM_F_ACK | flags)?.0)
    }

    fn exchange<M>(&mut self, message: M, flags: u16) -> io::Result<(Vec<M>, bool)>
    where
        M: NetlinkSerializable + NetlinkDeserializable,
    {
        let mut answers = Vec::new();
        let interrupted = self.exchange_each(message, flags, |answer| answers.push(answer))?;
        Ok((answers, interrupted))
    }

    /// Asks, and hands on each answer; whether the table changed meanwhile.
    fn exchange_each<M>(
        &mut self,
        message: M,
        flags: u16,
        mut each: impl FnMut(M),
    ) -> io::Result<bool>
    where
        M: NetlinkSerializable + NetlinkDeserializable,
    {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;

        let mut interrupted = false;
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            for (header, message) in messages::<M>(&datagram) {
                if header.sequence_number != self.sequence {
                    continue;
                }
                interrupted |= header.flags & NLM_F_DUMP_INTR != 0;
                match message {
                    Some(NetlinkPayload::InnerMessage(answer)) => each(answer),
                    Some(NetlinkPayload::Done(done)) if done.code < 0 => {
                        return Err(io::Error::from_raw_os_error(-done.code));
                    }
                    Some(NetlinkPayload::Done(_)) => return Ok(interrupted),
                    Some(NetlinkPayload::Error(error)) => match error.code {
                        Some(code) => return Err(io::Error::from_raw_os_error(-code.get())),
                        None => return Ok(interrupted),
                    },
                    // Something newer than the parser: as if it were not there.
                    _ => {}
                }
            }
        }
    }

    /// What `pick` takes of the answers to a dump.
    fn list<T>(
        &mut self,
        question: RouteNetlinkMessage,
        pick: fn(RouteNetlinkMessage) -> Option<T>,
    ) -> io::Result<Vec<T>> {
        Ok(self.dump(question)?.into_iter().filter_map(pick).collect())
    }

    /// The same for each family. `absent` are the errors by which the kernel says that there is nothing
    /// of one.
    fn list_families<T>(
        &mut self,
        question: impl Fn(AddressFamily) -> RouteNetlinkMessage,
        absent: &[i32],
        pick: fn(RouteNetlinkMessage) -> Option<T>,
    ) -> io::Result<Vec<T>> {
        let mut all = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            match self.list(question(family), pick) {
                Ok(found) => all.extend(found),
                Err(error) if error.raw_os_error().is_some_and(|it| absent.contains(&it)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(all)
    }

    /// Every link.
    pub fn links(&mut self) -> io::Result<Vec<LinkMessage>> {
        let question = RouteNetlinkMessage::GetLink(LinkMessage::default());
        self.list(question, |answer| match answer {
            RouteNetlinkMessage::NewLink(link) => Some(link),
            _ => None,
        })
    }

    /// Every address.
    pub fn addresses(&mut self) -> io::Result<Vec<AddressMessage>> {
        let question = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        self.list(question, |answer| match answer {
            RouteNetlinkMessage::NewAddress(address) => Some(address),
            _ => None,
        })
    }

    /// Every neighbour.
    pub fn neighbours(&mut self) -> io::Result<Vec<NeighbourMessage>> {
        let question = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
        self.list(question, |answer| match answer {
            RouteNetlinkMessage::NewNeighbour(neighbour) => Some(neighbour),
            _ => None,
        })
    }

    /// Has the kernel find out whether a neighbour is where it was, as if a packet were sent to it.
    /// One that is gone meanwhile is no error.
    pub fn use_neighbour(&mut self, ifindex: u32, addr: IpAddr) -> io::Result<()> {
        let mut message = NeighbourMessage::default();
        message.header.ifindex = ifindex;
        message.header.flags = NeighbourFlags::Use;
        let (family, addr) = match addr {
            IpAddr::V4(addr) => (AddressFamily::Inet, NeighbourAddress::Inet(addr)),
            IpAddr::V6(addr) => (AddressFamily::Inet6, NeighbourAddress::Inet6(addr)),
        };
        message.header.family = family;
        message.attributes.push(NeighbourAttribute::Destination(addr));
        let asked = self.ask(RouteNetlinkMessage::NewNeighbour(message), NLM_F_REPLACE);
        match asked {
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => {
                Ok(())
            }
            asked => asked.map(drop),
        }
    }

    /// The rules that say which tables are asked for a route.
    pub fn rules(&mut self) -> io::Result<Vec<RuleMessage>> {
        let question = |family| {
            let mut message = RuleMessage::default();
            message.header.family = family;
            RouteNetlinkMessage::GetRule(message)
        };
        // The kernel has no rules, or not the family.
        let absent = [libc::EAFNOSUPPORT, libc::EOPNOTSUPP];
        self.list_families(question, &absent, |answer| match answer {
            RouteNetlinkMessage::NewRule(rule) => Some(rule),
            _ => None,
        })
    }

    /// The routes of the main table.
    pub fn main_routes(&mut self) -> io::Result<Vec<RouteMessage>> {
        let question = |family| {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            message.attributes.push(RouteAttribute::Table(RouteHeader::RT_TABLE_MAIN.into()));
            RouteNetlinkMessage::GetRoute(message)
        };
        // No such table, or the family is switched off.
        let absent = [libc::ENOENT, libc::EAFNOSUPPORT, libc::EOPNOTSUPP];
        self.list_families(question, &absent, |answer| match answer {
            RouteNetlinkMessage::NewRoute(route) => Some(route),
            _ => None,
        })
    }
}

/// The messages in a datagram. `None` for one that could not be parsed.
pub(super) fn messages<M: NetlinkDeserializable>(
    datagram: &[u8],
) -> impl Iterator<Item = (NetlinkHeader, Option<NetlinkPayload<M>>)> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let length = rest.get(..4).map(|length| {
            u32::from_ne_bytes([length[0], length[1], length[2], length[3]]) as usize
        })?;
        let message = rest.get(..length).filter(|message| message.len() >= 16)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        let (header, payload) = match NetlinkMessage::<M>::deserialize(message) {
            Ok(message) => {
                let (header, payload) = message.into_parts();
                (header, Some(payload))
            }
            Err(error) => {
                tracing::debug!(%error, "netlink message not understood");
                let mut header = NetlinkHeader::default();
                header.length = length as u32;
                header.message_type = u16::from_ne_bytes([message[4], message[5]]);
                header.flags = u16::from_ne_bytes([message[6], message[7]]);
                header.sequence_number =
                    u32::from_ne_bytes([message[8], message[9], message[10], message[11]]);
                (header, None)
            }
        };
        Some((header, payload))
    })
}
