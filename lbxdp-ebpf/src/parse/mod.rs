//! From bytes to a flow key. "Not ours" is not an error: the three ways a packet can fail to be
//! parsed lead to three different fates.

pub mod ethernet;
pub mod ipv4;
pub mod ipv6;
mod message;
#[cfg(test)]
mod tests;
pub mod transport;

use lbxdp_common::{FlowKey, Octets};

use crate::packet::Pair;

/// Why there is no [`Segment`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unparsed {
    /// Something the programs do not serve: another protocol.
    NotOurs,
    /// An ICMP or ICMPv6 echo request; [`Segment::l4`] is where it begins.
    Echo,
    /// Headers cut short, or in contradiction to themselves.
    Malformed,
    /// A later fragment whose first one has not passed here. Not for the parser to say.
    Fragment,
}

/// What a [`Segment`] is.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A whole packet.
    Whole = 0,
    /// An ICMP or ICMPv6 error about a packet of another flow direction: [`Segment::key`] is the
    /// key of packets that travel as the error does, against the quoted one.
    Error,
    /// The first of several fragments: it has the transport header.
    First,
    /// Another one: it has no ports, and where its transport header would be is data.
    Later,
}

/// A TCP segment, a UDP datagram or an SCTP packet, a fragment of one, or an error about one. Addresses and `l3` are filled in first; the family's parser
/// fills in the rest, in place, because a program's stack has 512 bytes.
#[derive(Clone, Copy, Debug)]
pub struct Segment<A> {
    /// Addresses, ports, protocol.
    pub key: FlowKey<A>,
    /// Where the packet is from: the source in `key`, unless it is an error, which a router on
    /// the way may have sent. Only set for errors.
    pub sender: A,
    l3: u16,
    l4: u16,
    quoted_l4: u16,
    /// Bytes from the IP header to the end, as the header says; zero for a packet that is larger
    /// than its header can say.
    pub len: usize,
    /// Bytes of IP and transport headers.
    pub header_len: usize,
    /// TTL or hop limit.
    pub ttl: u8,
    /// TCP flags, or those that mean the same for SCTP; zero for UDP, errors and later fragments.
    pub tcp_flags: u8,
    /// What it is.
    pub kind: Kind,
    /// What the fragments of a datagram have in common, host order; only set for fragments.
    pub fragment_id: u32,
    /// What the way onwards takes, once the packet turned out to be larger.
    pub mtu: u32,
}

/// The IP header of a packet that is quoted in an ICMP message.
pub struct Quoted<A> {
    /// Its addresses.
    pub addresses: Pair<A>,
    /// IANA protocol number of what follows it and its extension headers.
    pub protocol: u8,
    /// Offset of that.
    pub l4: usize,
}

impl<A: Octets> Segment<A> {
    /// A packet that begins with its IP header, before anything of it is read.
    #[inline(always)]
    pub const fn new() -> Self {
        let key = FlowKey {
            src: A::UNSPECIFIED,
            dst: A::UNSPECIFIED,
            src_port: 0,
            dst_port: 0,
            protocol: 0,
            _pad: [0; 3],
        };
        Self {
            key,
            sender: A::UNSPECIFIED,
            l3: 0,
            l4: 0,
            quoted_l4: 0,
            len: 0,
            header_len: 0,
            ttl: 0,
            tcp_flags: 0,
            kind: Kind::Whole,
            fragment_id: 0,
            mtu: 0,
        }
    }
}

impl<A> Segment<A> {
    /// Offset of the IP header: behind Ethernet and at most two VLAN tags.
    #[inline(always)]
    pub fn l3(&self) -> usize {
        // What is read back from memory has no bounds in the verifier's eyes; these are ample.
        usize::from(self.l3 & 0x1f)
    }

    /// Offset of the transport or ICMP header: behind IP and at most 256 bytes of extension
    /// headers.
    #[inline(always)]
    pub fn l4(&self) -> usize {
        usize::from(self.l4 & 0x1ff)
    }

    /// Offset of the IP header that an error quotes.
    #[inline(always)]
    pub fn quoted_l3(&self) -> usize {
        self.l4() + ICMP_HEADER
    }

    /// Offset of the transport header that an error quotes.
    #[inline(always)]
    pub fn quoted_l4(&self) -> usize {
        usize::from(self.quoted_l4 & 0x1ff)
    }

    /// Whether RFC 1122 (3.2.2) and RFC 4443 (2.4) allow to answer it with an error.
    #[inline(always)]
    pub fn may_be_answered(&self) -> bool {
        self.kind != Kind::Error && self.kind != Kind::Later
    }

    /// Says where the header behind the IP header is.
    #[inline(always)]
    pub fn set_l4(&mut self, offset: usize) {
        self.l4 = offset as u16;
    }

    /// Says where the IP header is.
    #[inline(always)]
    pub fn set_l3(&mut self, offset: usize) {
        self.l3 = offset as u16;
    }
}

/// Bytes of the ICMP and ICMPv6 header.
pub const ICMP_HEADER: usize = 8;

/// TCP flag.
pub const FIN: u8 = 0x01;
/// TCP flag.
pub const SYN: u8 = 0x02;
/// TCP flag.
pub const RST: u8 = 0x04;
/// TCP flag.
pub const ACK: u8 = 0x10;
