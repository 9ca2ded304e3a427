//! Who a member is, and how that is written into packets.
//!
//! All numbers are in network byte order. An identity is
//!
//! | bytes | |
//! |---|---|
//! | 8 | epoch |
//! | 1 | lower four bits 4 or 6: the family of the address; the others: what the node [`Says`] |
//! | 4 or 16 | address |
//! | 2 | port |
//! | 0 or 8 | names of devices, if the node says which it has |
//! | 1 | length of the name |
//! | ≤ 253 | name of the node |

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Buf, BufMut};
use foca::{Codec, Header, Member, Message, State};

use super::says::{Devices, Says};

/// Longest name of a Kubernetes object.
pub(super) const LONGEST_NAME: usize = 253;

/// The bits with the family,
const FAMILY: u8 = 0x0f;
/// and from where on the others are.
const SAYS: u32 = 4;

/// One life of an agent on a node.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    /// Name of the node; empty for whoever has the address.
    pub node: Arc<str>,
    /// Where it hears.
    pub at: SocketAddr,
    /// Which life: of two with the same name the later one counts. Milliseconds of the epoch at the
    /// start, or more.
    pub epoch: u64,
    /// What it says of itself. Whoever says something else begins another life.
    pub says: Says,
    /// Of the name. Names are compared often: by every packet with every member.
    key: u64,
}

impl Identity {
    /// The life of this epoch.
    pub(super) fn new(node: &str, at: SocketAddr, epoch: u64) -> Self {
        Self { node: node.into(), at, epoch, says: Says::default(), key: key(node) }
    }

    /// Another life of the same.
    pub(super) fn in_epoch(&self, epoch: u64) -> Self {
        Self { epoch, ..self.clone() }
    }

    /// The same that says this from now on.
    pub(super) fn saying(&self, says: Says) -> Self {
        Self { says, ..self.in_epoch(self.epoch + 1) }
    }

    /// Whether it is of the same node, and was before.
    pub(super) fn is_earlier_life_of(&self, later: &Self) -> bool {
        self.key == later.key && self.epoch < later.epoch
    }

    /// Whoever hears there.
    pub(super) fn anybody(at: SocketAddr) -> Self {
        Self::new("", at, 0)
    }
}

/// Names are compared inside one process only, so the hash may be any.
fn key(node: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    node.hash(&mut hasher);
    hasher.finish()
}

/// A life that moved to another address is another one: its epoch says so.
impl PartialEq for Identity {
    fn eq(&self, other: &Self) -> bool {
        (self.key, self.epoch) == (other.key, other.epoch)
    }
}

impl Eq for Identity {}

impl foca::Identity for Identity {
    type Addr = u64;

    fn renew(&self) -> Option<Self> {
        Some(self.in_epoch(self.epoch + 1))
    }

    fn addr(&self) -> u64 {
        self.key
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        self.epoch > adversary.epoch
    }
}

/// Why bytes are not what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadPacket {
    #[error("too short")]
    Short,
    #[error("no room")]
    Full,
    #[error("a number that means nothing")]
    Number,
    #[error("a name that is none")]
    Name,
}

/// Writes and reads what foca says.
#[derive(Debug)]
pub(super) struct Wire {
    own: Identity,
    /// The latest life of this node that anybody has spoken of. An agent whose clock went back does not
    /// know that it has a predecessor from the future.
    latest: Arc<AtomicU64>,
}

impl Wire {
    /// Of this member. What others say of its epochs is kept in `latest`.
    pub(super) fn new(own: Identity, latest: Arc<AtomicU64>) -> Self {
        Self { own, latest }
    }

    fn get(&self, buf: &mut impl Buf) -> Result<Identity, BadPacket> {
        let epoch = take(buf, 8, Buf::get_u64)?;
        let first = take(buf, 1, Buf::get_u8)?;
        let ip = match first & FAMILY {
            4 => IpAddr::V4(Ipv4Addr::from_bits(take(buf, 4, Buf::get_u32)?)),
            6 => IpAddr::V6(Ipv6Addr::from_bits(take(buf, 16, Buf::get_u128)?)),
            _ => return Err(BadPacket::Number),
        };
        let port = take(buf, 2, Buf::get_u16)?;
        let bits = first >> SAYS;
        let mut says = Says::from_bits(bits);
        if Says::have_devices(bits) {
            says.devices = Devices::from_bits(take(buf, Devices::LEN, Buf::get_u64)?);
        }
        let length = usize::from(take(buf, 1, Buf::get_u8)?);
        if buf.remaining() < length {
            return Err(BadPacket::Short);
        }
        if length > LONGEST_NAME {
            return Err(BadPacket::Name);
        }
        let name = buf.copy_to_bytes(length);
        let name = std::str::from_utf8(&name).map_err(|_| BadPacket::Name)?;
        let identity = Identity { says, ..Identity::new(name, SocketAddr::new(ip, port), epoch) };
        if name.is_empty() {
            // It is for whoever reads it.
            return Ok(Identity {
                node: Arc::clone(&self.own.node),
                key: self.own.key,
                ..identity
            });
        }
        if identity.key == self.own.key {
            self.latest.fetch_max(epoch, Ordering::Relaxed);
        }
        Ok(identity)
    }
}

fn put(identity: &Identity, buf: &mut impl BufMut) -> Result<(), BadPacket> {
    let name = identity.node.as_bytes();
    let length = u8::try_from(name.len()).map_err(|_| BadPacket::Name)?;
    let ip_len = if identity.at.is_ipv4() { 4 } else { 16 };
    let bits = identity.says.bits();
    let devices_len = if Says::have_devices(bits) { Devices::LEN } else { 0 };
    room(buf, 8 + 1 + ip_len + 2 + devices_len + 1 + name.len())?;
    buf.put_u64(identity.epoch);
    let says = bits << SAYS;
    match identity.at.ip() {
        IpAddr::V4(ip) => {
            buf.put_u8(4 | says);
            buf.put_u32(ip.to_bits());
        }
        IpAddr::V6(ip) => {
            buf.put_u8(6 | says);
            buf.put_u128(ip.to_bits());
        }
    }
    buf.put_u16(identity.at.port());
    if Says::have_devices(bits) {
        buf.put_u64(identity.says.devices.bits());
    }
    buf.put_u8(length);
    buf.put_slice(name);
    Ok(())
}

fn take<B: Buf, T>(
    buf: &mut B,
    length: usize,
    get: impl FnOnce(&mut B) -> T,
) -> Result<T, BadPacket> {
    if buf.remaining() < length { Err(BadPacket::Short) } else { Ok(get(buf)) }
}

fn room(buf: &impl BufMut, length: usize) -> Result<(), BadPacket> {
    if buf.remaining_mut() < length { Err(BadPacket::Full) } else { Ok(()) }
}

impl Codec<Identity> for Wire {
    type Error = BadPacket;

    fn encode_header(
        &mut self,
        header: &Header<Identity>,
        mut buf: impl BufMut,
    ) -> Result<(), BadPacket> {
        let buf = &mut buf;
        put(&header.src, buf)?;
        put(&header.dst, buf)?;
        room(buf, 4)?;
        buf.put_u16(header.src_incarnation);
        let (tag, other, probe) = match &header.message {
            Message::Ping(probe) => (0, None, Some(*probe)),
            Message::Ack(probe) => (1, None, Some(*probe)),
            Message::PingReq { target, probe_number } => (2, Some(target), Some(*probe_number)),
            Message::IndirectPing { origin, probe_number } => {
                (3, Some(origin), Some(*probe_number))
            }
            Message::IndirectAck { target, probe_number } => (4, Some(target), Some(*probe_number)),
            Message::ForwardedAck { origin, probe_number } => {
                (5, Some(origin), Some(*probe_number))
            }
            Message::Announce => (6, None, None),
            Message::Feed => (7, None, None),
            Message::Gossip => (8, None, None),
            Message::Broadcast => (9, None, None),
            Message::TurnUndead => (10, None, None),
        };
        buf.put_u8(tag);
        if let Some(probe) = probe {
            buf.put_u8(probe);
        }
        other.map_or(Ok(()), |other| put(other, buf))
    }

    fn decode_header(&mut self, mut buf: impl Buf) -> Result<Header<Identity>, BadPacket> {
        let buf = &mut buf;
        let (src, dst) = (self.get(buf)?, self.get(buf)?);
        let src_incarnation = take(buf, 2, Buf::get_u16)?;
        let tag = take(buf, 1, Buf::get_u8)?;
        let message = match tag {
            0..=5 => {
                let probe_number = take(buf, 1, Buf::get_u8)?;
                match tag {
                    0 => Message::Ping(probe_number),
                    1 => Message::Ack(probe_number),
                    2 => Message::PingReq { target: self.get(buf)?, probe_number },
                    3 => Message::IndirectPing { origin: self.get(buf)?, probe_number },
                    4 => Message::IndirectAck { target: self.get(buf)?, probe_number },
                    _ => Message::ForwardedAck { origin: self.get(buf)?, probe_number },
                }
            }
            6 => Message::Announce,
            7 => Message::Feed,
            8 => Message::Gossip,
            9 => Message::Broadcast,
            10 => Message::TurnUndead,
            _ => return Err(BadPacket::Number),
        };
        Ok(Header { src, src_incarnation, dst, message })
    }

    fn encode_member(
        &mut self,
        member: &Member<Identity>,
        mut buf: impl BufMut,
    ) -> Result<(), BadPacket> {
        let buf = &mut buf;
        // All or nothing.
        room(buf, 3 + 28 + member.id().node.len())?;
        buf.put_u16(member.incarnation());
        buf.put_u8(match member.state() {
            State::Alive => 0,
            State::Suspect => 1,
            State::Down => 2,
        });
        put(member.id(), buf)
    }

    fn decode_member(&mut self, mut buf: impl Buf) -> Result<Member<Identity>, BadPacket> {
        let buf = &mut buf;
        let incarnation = take(buf, 2, Buf::get_u16)?;
        let state = match take(buf, 1, Buf::get_u8)? {
            0 => State::Alive,
            1 => State::Suspect,
            2 => State::Down,
            _ => return Err(BadPacket::Number),
        };
        Ok(Member::new(self.get(buf)?, incarnation, state))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wire() -> Wire {
        let own = Identity::new("own", "192.0.2.1:7".parse().unwrap(), 5);
        Wire::new(own, Arc::new(AtomicU64::new(5)))
    }

    fn all_messages() -> Vec<Message<Identity>> {
        let other = Identity::new("c", "[2001:db8::3]:9".parse().unwrap(), u64::MAX);
        let (target, origin) = (other.clone(), other);
        vec![
            Message::Ping(1),
            Message::Ack(2),
            Message::PingReq { target: target.clone(), probe_number: 3 },
            Message::IndirectPing { origin: origin.clone(), probe_number: 4 },
            Message::IndirectAck { target, probe_number: 5 },
            Message::ForwardedAck { origin, probe_number: 6 },
            Message::Announce,
            Message::Feed,
            Message::Gossip,
            Message::Broadcast,
            Message::TurnUndead,
        ]
    }

    #[test]
    fn what_is_written_is_read_and_nothing_shorter() {
        for message in all_messages() {
            let header = Header {
                src: Identity::new("a", "[2001:db8::1]:7946".parse().unwrap(), 3),
                src_incarnation: 4,
                dst: Identity::new(&"b".repeat(LONGEST_NAME), "192.0.2.2:1".parse().unwrap(), 9),
                message,
            };
            let mut bytes = Vec::new();
            wire().encode_header(&header, &mut bytes).unwrap();
            let read = wire().decode_header(&mut &bytes[..]).unwrap();
            assert_eq!(read, header);
            assert_eq!((read.src.at, &*read.dst.node), (header.src.at, &*header.dst.node));
            for length in 0..bytes.len() {
                assert!(wire().decode_header(&mut &bytes[..length]).is_err(), "{length}");
            }
        }
    }

    #[test]
    fn a_member_is_written_whole_or_not_at_all() {
        let id = Identity::new("a", "[2001:db8::1]:7946".parse().unwrap(), 3);
        for state in [State::Alive, State::Suspect, State::Down] {
            let member = Member::new(id.clone(), 77, state);
            let mut bytes = Vec::new();
            wire().encode_member(&member, &mut bytes).unwrap();
            assert_eq!(wire().decode_member(&mut &bytes[..]).unwrap(), member);
            for length in 0..bytes.len() {
                let mut short = Vec::new().limit(length);
                assert!(wire().encode_member(&member, &mut short).is_err());
                assert!(short.get_ref().is_empty());
            }
        }
    }

    #[test]
    fn what_a_node_says_of_itself_comes_along_and_begins_another_life() {
        let quiet = Identity::new("a", "[2001:db8::1]:7946".parse().unwrap(), 3);
        let devices = Devices::of(["eth0"]);
        let says = Says { is_leaving: true, devices, ..Says::default() };
        let leaving = quiet.saying(says);
        assert!(foca::Identity::win_addr_conflict(&leaving, &quiet));
        let length = |id: &Identity| {
            let mut bytes = Vec::new();
            put(id, &mut bytes).unwrap();
            assert_eq!(wire().get(&mut &bytes[..]).unwrap().says, id.says);
            bytes.len()
        };
        assert_eq!(length(&leaving), length(&quiet) + Devices::LEN);
    }

    #[test]
    fn what_is_for_anybody_is_for_the_reader_and_later_lives_of_it_are_noticed() {
        let latest = Arc::new(AtomicU64::new(5));
        let own = Identity::new("own", "192.0.2.1:7".parse().unwrap(), 5);
        let wire = Wire::new(own.clone(), Arc::clone(&latest));
        let read = |id: &Identity| {
            let mut bytes = Vec::new();
            put(id, &mut bytes).unwrap();
            wire.get(&mut &bytes[..]).unwrap()
        };
        let anybody = read(&Identity::anybody("192.0.2.9:7".parse().unwrap()));
        assert_eq!((&*anybody.node, anybody.key), ("own", own.key));
        read(&Identity::new("other", own.at, 900));
        assert_eq!(latest.load(Ordering::Relaxed), 5);
        read(&Identity::new("own", own.at, 9));
        assert_eq!(latest.load(Ordering::Relaxed), 9);
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = wire().decode_header(&mut &bytes[..]);
            let _ = wire().decode_member(&mut &bytes[..]);
        }
    }
}
