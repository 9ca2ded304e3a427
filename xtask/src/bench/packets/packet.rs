//! One packet, as its sender means it and as the program under test should leave it.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, bail};
use etherparse::{NetHeaders, PacketBuilder, PacketHeaders, TransportHeader};
use lbxdp_bench_ebpf::TEMPLATE;

/// A hardware address.
pub type Mac = [u8; 6];

/// What a packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP: the beginning of a connection.
    Syn,
    /// TCP: the middle of one.
    Ack,
    /// UDP.
    Datagram,
}

/// A packet of [`TEMPLATE`] bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// From which device.
    pub from: Mac,
    /// To which device.
    pub to: Mac,
    /// Sender.
    pub src: SocketAddr,
    /// Receiver.
    pub dst: SocketAddr,
    /// TTL or hop limit.
    pub ttl: u8,
    /// What is in it.
    pub transport: Transport,
}

impl Packet {
    /// The bytes, with valid checksums.
    pub fn bytes(&self) -> Result<[u8; TEMPLATE]> {
        let Self { from, to, src, dst, ttl, transport } = self;
        let link = PacketBuilder::ethernet2(*from, *to);
        let ip = match (src.ip(), dst.ip()) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => link.ipv4(src.octets(), dst.octets(), *ttl),
            (IpAddr::V6(src), IpAddr::V6(dst)) => link.ipv6(src.octets(), dst.octets(), *ttl),
            _ => bail!("a packet from {src} to {dst}"),
        };
        let mut bytes = Vec::with_capacity(TEMPLATE);
        let (src, dst) = (src.port(), dst.port());
        let payload = |size: usize| vec![0x2a; TEMPLATE - size];
        match transport {
            Transport::Datagram => {
                let udp = ip.udp(src, dst);
                let payload = payload(udp.size(0));
                udp.write(&mut bytes, &payload)
            }
            Transport::Syn | Transport::Ack => {
                let tcp = ip.tcp(src, dst, 7, 1_000);
                let tcp = if *transport == Transport::Syn { tcp.syn() } else { tcp.ack(7) };
                let payload = payload(tcp.size(0));
                tcp.write(&mut bytes, &payload)
            }
        }
        .context("write to memory")?;
        bytes.as_slice().try_into().context("the length of a packet")
    }

    /// Bytes of a packet as the wrapper and the generator have them.
    pub fn words(bytes: [u8; TEMPLATE]) -> [u64; TEMPLATE / 8] {
        let (words, _) = bytes.as_chunks();
        std::array::from_fn(|word| u64::from_ne_bytes(words[word]))
    }

    /// Reads what [`Self::bytes`] wrote, checksums and payload aside.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let headers = PacketHeaders::from_ethernet_slice(bytes)?;
        let link = headers.link.and_then(|link| link.ethernet2()).context("no Ethernet header")?;
        let (src, dst, ttl): (IpAddr, IpAddr, u8) = match headers.net {
            Some(NetHeaders::Ipv4(ip, _)) => {
                (ip.source.into(), ip.destination.into(), ip.time_to_live)
            }
            Some(NetHeaders::Ipv6(ip, _)) => {
                (ip.source.into(), ip.destination.into(), ip.hop_limit)
            }
            _ => bail!("not IP"),
        };
        let (src_port, dst_port, transport) = match headers.transport {
            Some(TransportHeader::Tcp(tcp)) => {
                let transport = if tcp.syn { Transport::Syn } else { Transport::Ack };
                (tcp.source_port, tcp.destination_port, transport)
            }
            Some(TransportHeader::Udp(udp)) => {
                (udp.source_port, udp.destination_port, Transport::Datagram)
            }
            _ => bail!("neither TCP nor UDP"),
        };
        Ok(Self {
            from: link.source,
            to: link.destination,
            src: (src, src_port).into(),
            dst: (dst, dst_port).into(),
            ttl,
            transport,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read() {
        for (src, dst) in [("192.0.2.1:5", "192.0.2.2:6"), ("[2001:db8::1]:5", "[2001:db8::2]:6")] {
            for transport in [Transport::Syn, Transport::Ack, Transport::Datagram] {
                let packet = Packet {
                    from: [2, 0, 0, 0, 0, 1],
                    to: [2, 0, 0, 0, 0, 2],
                    src: src.parse().expect("an address"),
                    dst: dst.parse().expect("an address"),
                    ttl: 64,
                    transport,
                };
                let bytes = packet.bytes().expect("a packet");
                assert_eq!(Packet::parse(&bytes).expect("a packet"), packet);
            }
        }
    }
}
