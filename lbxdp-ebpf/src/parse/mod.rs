//! From bytes to a flow key. "Not ours" is not an error: the three ways a packet can fail to be
//! parsed lead to three different fates.

pub mod ethernet;
pub mod ipv4;
pub mod ipv6;
#[cfg(test)]
mod tests;
pub mod transport;

use lbxdp_common::{FlowKey, Octets};

/// Why there is no [`Segment`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unparsed {
    /// Something the programs do not serve: another protocol.
    NotOurs,
    /// An ICMP or ICMPv6 echo request; [`Segment::l4`] is where it begins.
    Echo,
    /// Headers cut short, or in contradiction to themselves.
    Malformed,
    /// A fragment, whose ports are not (all) here.
    Fragment,
}

/// A TCP segment or a UDP datagram. Addresses and `l3` are filled in first; the family's parser
/// fills in the rest, in place, because a program's stack has 512 bytes.
#[derive(Clone, Copy, Debug)]
pub struct Segment<A> {
    /// Addresses, ports, protocol.
    pub key: FlowKey<A>,
    l3: u16,
    l4: u16,
    /// Bytes from the IP header to the end, as the header says; zero for a packet that is larger
    /// than its header can say.
    pub len: usize,
    /// Bytes of IP and transport headers.
    pub header_len: usize,
    /// TTL or hop limit.
    pub ttl: u8,
    /// TCP flags; zero for UDP.
    pub tcp_flags: u8,
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
        Self { key, l3: 0, l4: 0, len: 0, header_len: 0, ttl: 0, tcp_flags: 0 }
    }
}

impl<A> Segment<A> {
    /// Offset of the IP header: behind Ethernet and at most two VLAN tags.
    #[inline(always)]
    pub fn l3(&self) -> usize {
        // What is read back from memory has no bounds in the verifier's eyes; these are ample.
        usize::from(self.l3 & 0x1f)
    }

    /// Offset of the TCP or UDP header: behind IP and at most 256 bytes of extension headers.
    #[inline(always)]
    pub fn l4(&self) -> usize {
        usize::from(self.l4 & 0x1ff)
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

/// TCP flag.
pub const FIN: u8 = 0x01;
/// TCP flag.
pub const SYN: u8 = 0x02;
/// TCP flag.
pub const RST: u8 = 0x04;
/// TCP flag.
pub const ACK: u8 = 0x10;
