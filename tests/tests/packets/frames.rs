//! Frames, built by etherparse: an implementation that shares nothing with the programs.

use std::net::{IpAddr, SocketAddr};

use etherparse::{
    EtherType, Ethernet2Header, IpHeaders, IpNumber, Ipv4Header, Ipv4Options, Ipv6Header,
    PacketBuilder, SingleVlanHeader, TcpHeader, UdpHeader, VlanId,
};
use lbxdp_common::{IPPROTO_SCTP, IPPROTO_TCP, IPPROTO_UDP};

use crate::rig::{CLIENT, N0};

/// One packet, as its sender means it.
#[derive(Clone, Debug)]
pub struct Packet {
    pub from_mac: [u8; 6],
    pub to_mac: [u8; 6],
    pub vlan: Vec<u16>,
    pub src: SocketAddr,
    pub dst: SocketAddr,
    pub protocol: u8,
    pub ttl: u8,
    pub flags: &'static str,
    /// IPv4 options or IPv6 extension headers in front of the transport header.
    pub options: bool,
    pub payload: Vec<u8>,
}

impl Packet {
    /// A packet from the client to the node.
    pub fn new(protocol: u8, src: SocketAddr, dst: SocketAddr) -> Self {
        Self {
            from_mac: CLIENT,
            to_mac: N0,
            vlan: Vec::new(),
            src,
            dst,
            protocol,
            ttl: 64,
            flags: "S",
            options: false,
            payload: b"to be or not to be".to_vec(),
        }
    }

    /// The same packet with other addresses.
    pub fn between(&self, src: SocketAddr, dst: SocketAddr) -> Self {
        Self { src, dst, ..self.clone() }
    }

    /// The same packet on its way from one host to another.
    pub fn over(&self, from_mac: [u8; 6], to_mac: [u8; 6]) -> Self {
        Self { from_mac, to_mac, ..self.clone() }
    }

    /// The same packet with one hop less to live.
    pub fn hop(&self) -> Self {
        Self { ttl: self.ttl - 1, ..self.clone() }
    }

    /// The same packet with other TCP flags (letters of tcpdump).
    pub fn flags(&self, flags: &'static str) -> Self {
        Self { flags, ..self.clone() }
    }

    /// Bytes with valid checksums.
    pub fn bytes(&self) -> Vec<u8> {
        let Self { from_mac, to_mac, vlan, src, dst, protocol, ttl, flags, options, payload } =
            self;
        let mut transport = Vec::new();
        match *protocol {
            IPPROTO_TCP => {
                let mut header = TcpHeader::new(src.port(), dst.port(), 7, 1_000);
                header.syn = flags.contains('S');
                header.ack = flags.contains('.');
                header.fin = flags.contains('F');
                header.rst = flags.contains('R');
                header.checksum = match (src.ip(), dst.ip()) {
                    (IpAddr::V4(src), IpAddr::V4(dst)) => {
                        header.calc_checksum_ipv4_raw(src.octets(), dst.octets(), payload)
                    }
                    (IpAddr::V6(src), IpAddr::V6(dst)) => {
                        header.calc_checksum_ipv6_raw(src.octets(), dst.octets(), payload)
                    }
                    _ => panic!("one family"),
                }
                .expect("short");
                header.write(&mut transport).expect("memory");
            }
            IPPROTO_UDP => {
                let header = match (src.ip(), dst.ip()) {
                    (IpAddr::V4(from), IpAddr::V4(to)) => {
                        let ip =
                            Ipv4Header::new(0, *ttl, IpNumber::UDP, from.octets(), to.octets());
                        let ip = ip.expect("short");
                        UdpHeader::with_ipv4_checksum(src.port(), dst.port(), &ip, payload)
                    }
                    (IpAddr::V6(from), IpAddr::V6(to)) => {
                        let ip = Ipv6Header {
                            source: from.octets(),
                            destination: to.octets(),
                            ..Ipv6Header::default()
                        };
                        UdpHeader::with_ipv6_checksum(src.port(), dst.port(), &ip, payload)
                    }
                    _ => panic!("one family"),
                };
                header.expect("short").write(&mut transport).expect("memory");
            }
            IPPROTO_SCTP => {
                transport.extend_from_slice(&src.port().to_be_bytes());
                transport.extend_from_slice(&dst.port().to_be_bytes());
                transport.extend_from_slice(&[0, 0, 0, 7, 0, 0, 0, 0]);
            }
            other => panic!("protocol {other}"),
        }
        transport.extend_from_slice(payload);
        if *protocol == IPPROTO_SCTP {
            let sum = crc32c::crc32c(&transport).to_le_bytes();
            transport[8..12].copy_from_slice(&sum);
        }

        let mut frame = Vec::new();
        let ether_type = if src.is_ipv4() { EtherType::IPV4 } else { EtherType::IPV6 };
        let first = if vlan.is_empty() { ether_type } else { EtherType::VLAN_TAGGED_FRAME };
        Ethernet2Header { source: *from_mac, destination: *to_mac, ether_type: first }
            .write(&mut frame)
            .expect("memory");
        for (index, id) in vlan.iter().enumerate() {
            let is_last = index + 1 == vlan.len();
            SingleVlanHeader {
                pcp: etherparse::VlanPcp::ZERO,
                drop_eligible_indicator: false,
                vlan_id: VlanId::try_new(*id).expect("twelve bits"),
                ether_type: if is_last { ether_type } else { EtherType::VLAN_TAGGED_FRAME },
            }
            .write(&mut frame)
            .expect("memory");
        }
        match (src.ip(), dst.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let length = u16::try_from(transport.len()).expect("short");
                let number = IpNumber(*protocol);
                let mut header = Ipv4Header::new(length, *ttl, number, from.octets(), to.octets())
                    .expect("short");
                if *options {
                    header.options = Ipv4Options::from([1, 1, 1, 1, 1, 1, 1, 0]);
                }
                header.set_payload_len(transport.len()).expect("short");
                header.header_checksum = header.calc_header_checksum();
                header.write_raw(&mut frame).expect("memory");
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                // Hop-by-hop and destination options of pad bytes (RFC 8200, 4.2).
                let extensions: &[u8] = if *options {
                    &[
                        60, 0, 1, 4, 0, 0, 0, 0, *protocol, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
                        0, 0,
                    ]
                } else {
                    &[]
                };
                let length = u16::try_from(extensions.len() + transport.len()).expect("short");
                Ipv6Header {
                    payload_length: length,
                    next_header: IpNumber(if *options { 0 } else { *protocol }),
                    hop_limit: *ttl,
                    source: from.octets(),
                    destination: to.octets(),
                    ..Ipv6Header::default()
                }
                .write(&mut frame)
                .expect("memory");
                frame.extend_from_slice(extensions);
            }
            _ => panic!("one family"),
        }
        frame.extend_from_slice(&transport);
        frame
    }

    /// The packet without its link-layer header.
    pub fn ip_bytes(&self) -> Vec<u8> {
        self.bytes()[14 + 4 * self.vlan.len()..].to_vec()
    }

    /// The packet in pieces of `size` bytes, a multiple of eight.
    pub fn fragments(&self, id: u16, size: usize) -> Vec<Vec<u8>> {
        let whole = self.bytes();
        let (headers, data) = whole.split_at(self.transport_offset());
        let l3 = 14 + 4 * self.vlan.len();
        let short = |length: usize| u16::try_from(length).expect("short").to_be_bytes();
        let mut fragments = Vec::new();
        for (index, piece) in data.chunks(size).enumerate() {
            let offset = index * size;
            let has_more = offset + piece.len() < data.len();
            let mut frame = headers.to_vec();
            if self.src.is_ipv4() {
                let field = (offset / 8) | (usize::from(has_more) << 13);
                let total = short(frame.len() - l3 + piece.len());
                frame[l3 + 2..l3 + 4].copy_from_slice(&total);
                frame[l3 + 4..l3 + 6].copy_from_slice(&id.to_be_bytes());
                frame[l3 + 6..l3 + 8].copy_from_slice(&short(field));
                let (header, _) = Ipv4Header::from_slice(&frame[l3..]).expect("a header");
                let sum = header.calc_header_checksum().to_be_bytes();
                frame[l3 + 10..l3 + 12].copy_from_slice(&sum);
            } else {
                let next = if self.options { l3 + 40 + 8 } else { l3 + 6 };
                frame[next] = 44;
                frame.extend_from_slice(&[self.protocol, 0]);
                frame.extend_from_slice(&short(offset | usize::from(has_more)));
                frame.extend_from_slice(&[0, 0]);
                frame.extend_from_slice(&id.to_be_bytes());
                let payload = short(frame.len() - l3 - 40 + piece.len());
                frame[l3 + 4..l3 + 6].copy_from_slice(&payload);
            }
            frame.extend_from_slice(piece);
            fragments.push(frame);
        }
        fragments
    }

    /// Offset of the transport header.
    pub fn transport_offset(&self) -> usize {
        let ip = match (self.src.is_ipv4(), self.options) {
            (true, false) => 20,
            (true, true) => 28,
            (false, false) => 40,
            (false, true) => 64,
        };
        14 + 4 * self.vlan.len() + ip
    }
}

/// An ICMP or ICMPv6 error: type, code and the four bytes behind the checksum.
pub type Code = (u8, u8, [u8; 4]);

/// The ICMP error that the node sends about `about`: headers of another library's making, the
/// head of the offending packet quoted as its sender sent it.
pub fn icmp_error(about: &Packet, v4: Code, v6: Code) -> Vec<u8> {
    let quoted = about.ip_bytes();
    let message = Message {
        from_mac: about.to_mac,
        to_mac: about.from_mac,
        from: about.dst.ip(),
        to: about.src.ip(),
        ttl: 64,
        code: if about.src.is_ipv4() { v4 } else { v6 },
        quoted: quoted[..quoted.len().min(128) & !3].to_vec(),
    };
    message.bytes()
}

/// An ICMP or ICMPv6 error on its way.
#[derive(Clone, Debug)]
pub struct Message {
    pub from_mac: [u8; 6],
    pub to_mac: [u8; 6],
    pub from: IpAddr,
    pub to: IpAddr,
    pub ttl: u8,
    pub code: Code,
    pub quoted: Vec<u8>,
}

impl Message {
    /// The same between other hosts.
    pub fn between(&self, from: IpAddr, to: IpAddr) -> Self {
        Self { from, to, ..self.clone() }
    }

    /// The same over another wire, with one hop less to live.
    pub fn forwarded(&self, from_mac: [u8; 6], to_mac: [u8; 6]) -> Self {
        Self { from_mac, to_mac, ttl: self.ttl - 1, ..self.clone() }
    }

    /// The same about another packet.
    pub fn about(&self, quoted: &[u8]) -> Self {
        Self { quoted: quoted.to_vec(), ..self.clone() }
    }

    /// Bytes with valid checksums.
    pub fn bytes(&self) -> Vec<u8> {
        let Self { from_mac, to_mac, from, to, ttl, code: (kind, code, rest), quoted } = self;
        let mut frame = Vec::new();
        let builder = PacketBuilder::ethernet2(*from_mac, *to_mac);
        match (from, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let mut header =
                    Ipv4Header::new(0, *ttl, IpNumber::ICMP, from.octets(), to.octets())
                        .expect("short");
                header.dont_fragment = false;
                builder
                    .ip(IpHeaders::Ipv4(header, etherparse::Ipv4Extensions::default()))
                    .icmpv4_raw(*kind, *code, *rest)
                    .write(&mut frame, quoted)
                    .expect("memory");
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                builder
                    .ipv6(from.octets(), to.octets(), *ttl)
                    .icmpv6_raw(*kind, *code, *rest)
                    .write(&mut frame, quoted)
                    .expect("memory");
            }
            _ => panic!("one family"),
        }
        frame
    }
}
