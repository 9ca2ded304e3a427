//! The parser on the host: frames that no test run in the kernel accepts, and every truncation.

use etherparse::{IpFragOffset, IpHeaders, IpNumber, Ipv4Header, Ipv4Options, PacketBuilder};
use lbxdp_common::{FlowKey, IPPROTO_SCTP, IPPROTO_TCP, IPPROTO_UDP};
use proptest::prelude::*;

use super::{ACK, Kind, RST, SYN, Segment, Unparsed, ethernet};
use crate::family::{Family, V4, V6};

const CLIENT4: [u8; 4] = [192, 0, 2, 7];
const VIP4: [u8; 4] = [203, 0, 113, 10];
const CLIENT6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];
const VIP6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10];
const PAYLOAD: &[u8] = b"payload";

fn ethernet2() -> etherparse::PacketBuilderStep<etherparse::Ethernet2Header> {
    PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
}

/// Finishes a builder of either transport.
macro_rules! bytes {
    ($builder:expr) => {{
        let builder = $builder;
        let mut frame = Vec::with_capacity(builder.size(PAYLOAD.len()));
        builder.write(&mut frame, PAYLOAD).expect("memory takes every frame");
        frame
    }};
}

fn tcp4() -> Vec<u8> {
    bytes!(ethernet2().ipv4(CLIENT4, VIP4, 17).tcp(40_000, 80, 1, 100).syn())
}

fn udp4() -> Vec<u8> {
    bytes!(ethernet2().ipv4(CLIENT4, VIP4, 17).udp(40_000, 53))
}

fn tcp6() -> Vec<u8> {
    bytes!(ethernet2().ipv6(CLIENT6, VIP6, 17).tcp(40_000, 80, 1, 100).syn())
}

fn udp6() -> Vec<u8> {
    bytes!(ethernet2().ipv6(CLIENT6, VIP6, 17).udp(40_000, 53))
}

fn parse<F: Family>(
    frame: &[u8],
    src: F::Addr,
    dst: F::Addr,
) -> Result<Segment<F::Addr>, Unparsed> {
    let link = ethernet::parse(&frame).ok_or(Unparsed::Malformed)?;
    assert_eq!(link.ether_type, F::ETHER_TYPE);
    let mut segment = Segment {
        key: FlowKey { src, dst, src_port: 0, dst_port: 0, protocol: 0, _pad: [0; 3] },
        sender: src,
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
    };
    segment.set_l3(link.l3);
    F::parse(&frame, &mut segment).map(|()| segment)
}

fn parse4(frame: &[u8]) -> Result<Segment<[u8; 4]>, Unparsed> {
    parse::<V4>(frame, CLIENT4, VIP4)
}

fn parse6(frame: &[u8]) -> Result<Segment<[u8; 16]>, Unparsed> {
    parse::<V6>(frame, CLIENT6, VIP6)
}

/// An IPv6 frame whose payload is `extensions`, in which `next` names the first.
fn with_extensions(next: u8, extensions: &[u8], transport: &[u8]) -> Vec<u8> {
    let mut frame = udp6()[..14 + 40].to_vec();
    frame[14 + 6] = next;
    frame.extend_from_slice(extensions);
    frame.extend_from_slice(transport);
    let payload = u16::try_from(frame.len() - 54).expect("short");
    frame[14 + 4..14 + 6].copy_from_slice(&payload.to_be_bytes());
    frame
}

#[test]
fn tcp_and_udp_of_both_families_are_parsed() {
    let segment = parse4(&tcp4()).expect("TCP over IPv4");
    assert_eq!(segment.key.protocol, IPPROTO_TCP);
    assert_eq!((segment.key.src_port, segment.key.dst_port), (40_000, 80));
    assert_eq!((segment.l3(), segment.l4(), segment.header_len), (14, 34, 40));
    assert_eq!((segment.len, segment.ttl), (40 + PAYLOAD.len(), 17));
    assert_eq!(segment.tcp_flags & (SYN | ACK), SYN);

    let segment = parse4(&udp4()).expect("UDP over IPv4");
    assert_eq!(segment.key.protocol, IPPROTO_UDP);
    assert_eq!((segment.key.dst_port, segment.header_len, segment.tcp_flags), (53, 28, 0));

    let segment = parse6(&tcp6()).expect("TCP over IPv6");
    assert_eq!((segment.l3(), segment.l4(), segment.header_len), (14, 54, 60));
    assert_eq!((segment.len, segment.ttl), (60 + PAYLOAD.len(), 17));

    let segment = parse6(&udp6()).expect("UDP over IPv6");
    assert_eq!((segment.key.src_port, segment.header_len), (40_000, 48));
}

#[test]
fn the_first_chunk_of_sctp_is_read_as_tcp_flags() {
    let mut frame = udp4()[..34].to_vec();
    frame[23] = IPPROTO_SCTP;
    frame.extend_from_slice(&[0x9c, 0x40, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0]);
    frame[16..18].copy_from_slice(&32_u16.to_be_bytes());
    let segment = parse4(&frame).expect("a common header");
    assert_eq!((segment.key.src_port, segment.key.dst_port), (40_000, 80));
    assert_eq!((segment.header_len, segment.tcp_flags), (32, ACK));
    for (chunk, flags) in [(0, ACK), (1, SYN), (2, ACK), (6, RST), (8, ACK), (10, ACK), (14, RST)] {
        let mut frame = frame.clone();
        frame.extend_from_slice(&[chunk, 0, 0, 4]);
        // Padding is no chunk.
        assert_eq!(parse4(&frame).expect("padded").tcp_flags, ACK);
        frame[16..18].copy_from_slice(&36_u16.to_be_bytes());
        assert_eq!(parse4(&frame).expect("a chunk").tcp_flags, flags, "chunk {chunk}");
    }
    for cut in 34..46 {
        assert_eq!(parse4(&frame[..cut]).err(), Some(Unparsed::Malformed), "cut at {cut}");
    }
    frame[16..18].copy_from_slice(&31_u16.to_be_bytes());
    assert_eq!(parse4(&frame).err(), Some(Unparsed::Malformed));
}

#[test]
fn a_frame_cut_at_any_byte_of_its_headers_is_malformed() {
    for cut in 0..14 + 20 + 20 {
        assert_eq!(parse4(&tcp4()[..cut]).err(), Some(Unparsed::Malformed), "TCP/IPv4 at {cut}");
    }
    for cut in 0..14 + 20 + 8 {
        assert_eq!(parse4(&udp4()[..cut]).err(), Some(Unparsed::Malformed), "UDP/IPv4 at {cut}");
    }
    for cut in 0..14 + 40 + 20 {
        assert_eq!(parse6(&tcp6()[..cut]).err(), Some(Unparsed::Malformed), "TCP/IPv6 at {cut}");
    }
    for cut in 0..14 + 40 + 8 {
        assert_eq!(parse6(&udp6()[..cut]).err(), Some(Unparsed::Malformed), "UDP/IPv6 at {cut}");
    }
}

#[test]
fn a_length_that_ends_within_the_headers_is_malformed() {
    let mut frame = tcp4();
    frame[16..18].copy_from_slice(&39_u16.to_be_bytes());
    assert_eq!(parse4(&frame).err(), Some(Unparsed::Malformed));
    let mut frame = udp6();
    frame[18..20].copy_from_slice(&7_u16.to_be_bytes());
    assert_eq!(parse6(&frame).err(), Some(Unparsed::Malformed));
}

#[test]
fn an_ipv4_header_of_fewer_than_five_words_is_malformed() {
    for ihl in 0..5 {
        let mut frame = tcp4();
        frame[14] = 0x40 | ihl;
        assert_eq!(parse4(&frame).err(), Some(Unparsed::Malformed), "IHL {ihl}");
    }
}

#[test]
fn options_move_the_transport_header() {
    for words in 1..=10_u8 {
        let options = vec![1; usize::from(words) * 4];
        let options = Ipv4Options::try_from(options.as_slice()).expect("whole words");
        let mut header =
            Ipv4Header::new(0, 17, IpNumber::UDP, CLIENT4, VIP4).expect("an empty payload fits");
        header.options = options;
        let frame = bytes!(ethernet2().ip(IpHeaders::Ipv4(header, Default::default())).udp(7, 53));
        let segment = parse4(&frame).expect("options");
        assert_eq!(segment.l4(), 34 + usize::from(words) * 4);
        assert_eq!((segment.key.src_port, segment.key.dst_port), (7, 53));
    }
}

#[test]
fn a_tcp_header_of_fewer_than_five_words_is_malformed() {
    for words in 0..5 {
        let mut frame = tcp4();
        frame[14 + 20 + 12] = words << 4;
        assert_eq!(parse4(&frame).err(), Some(Unparsed::Malformed));
    }
}

#[test]
fn one_and_two_vlan_tags_are_skipped_and_a_third_is_not() {
    let plain = udp4();
    let mut frame = plain[..12].to_vec();
    frame.extend_from_slice(&[0x88, 0xa8, 0x20, 0x64]);
    frame.extend_from_slice(&[0x81, 0x00, 0x00, 0xc8]);
    frame.extend_from_slice(&plain[12..]);
    let link = ethernet::parse(&frame.as_slice()).expect("two tags");
    assert_eq!((link.vlan, link.l3), ([100, 200], 22));
    assert_eq!(parse4(&frame).expect("two tags").l4(), 42);

    let mut single = frame[..16].to_vec();
    single.extend_from_slice(&plain[12..]);
    let link = ethernet::parse(&single.as_slice()).expect("one tag");
    assert_eq!((link.vlan, link.l3), ([100, 0], 18));

    let mut triple = frame[..20].to_vec();
    triple.extend_from_slice(&[0x81, 0x00, 0x00, 0x01]);
    triple.extend_from_slice(&plain[12..]);
    assert_eq!(ethernet::parse(&triple.as_slice()).expect("three tags").ether_type, 0x8100);
}

#[test]
fn fragments_of_both_families_are_told_apart() {
    let mut first = udp4();
    first[18..20].copy_from_slice(&[0x12, 0x34]);
    first[20] |= 0x20;
    let segment = parse4(&first).expect("a first fragment has its headers");
    assert_eq!((segment.kind, segment.fragment_id), (Kind::First, 0x1234));
    assert_eq!((segment.key.src_port, segment.key.dst_port), (40_000, 53));
    let mut later = udp4();
    later[18..20].copy_from_slice(&[0x12, 0x34]);
    later[21] = u8::try_from(IpFragOffset::try_new(9).expect("small").value()).expect("small");
    let segment = parse4(&later).expect("a later fragment");
    assert_eq!((segment.kind, segment.fragment_id), (Kind::Later, 0x1234));
    assert_eq!((segment.key.protocol, segment.header_len), (IPPROTO_UDP, 20));
    // However little of it there is.
    later[16..18].copy_from_slice(&21_u16.to_be_bytes());
    assert_eq!(parse4(&later[..35]).expect("one byte of data").kind, Kind::Later);
    later[16..18].copy_from_slice(&19_u16.to_be_bytes());
    assert_eq!(parse4(&later).err(), Some(Unparsed::Malformed));

    let udp = &udp6()[54..];
    let atomic = with_extensions(44, &[IPPROTO_UDP, 0, 0, 0, 1, 2, 3, 4], udp);
    let segment = parse6(&atomic).expect("an atomic fragment is whole");
    assert_eq!((segment.kind, segment.l4()), (Kind::Whole, 62));
    let first = with_extensions(44, &[IPPROTO_UDP, 0, 0, 1, 1, 2, 3, 4], udp);
    let segment = parse6(&first).expect("a first fragment has its headers");
    assert_eq!((segment.kind, segment.fragment_id), (Kind::First, 0x0102_0304));
    assert_eq!((segment.key.dst_port, segment.l4()), (53, 62));
    for more in [0, 1] {
        let later = with_extensions(44, &[IPPROTO_UDP, 0, 0, 8 + more, 1, 2, 3, 4], &[0]);
        let segment = parse6(&later).expect("a later fragment");
        assert_eq!((segment.kind, segment.fragment_id), (Kind::Later, 0x0102_0304));
        assert_eq!((segment.key.protocol, segment.header_len), (IPPROTO_UDP, 48));
    }
    // What a later fragment of such a datagram belongs to cannot be seen.
    let later = with_extensions(44, &[60, 0, 0, 8, 1, 2, 3, 4], udp);
    assert_eq!(parse6(&later).err(), Some(Unparsed::NotOurs));
}

/// An ICMP error to `CLIENT4` or `CLIENT6`, of this type, about `quoted`.
fn about(kind: u8, quoted: &[u8]) -> Vec<u8> {
    let builder = ethernet2();
    let mut frame = Vec::new();
    if quoted[0] >> 4 == 4 {
        let builder = builder.ipv4(VIP4, CLIENT4, 9).icmpv4_raw(kind, 0, [0; 4]);
        builder.write(&mut frame, quoted).expect("memory takes every frame");
    } else {
        let builder = builder.ipv6(VIP6, CLIENT6, 9).icmpv6_raw(kind, 0, [0; 4]);
        builder.write(&mut frame, quoted).expect("memory takes every frame");
    }
    frame
}

#[test]
fn an_error_has_the_key_of_packets_that_travel_as_it_does() {
    // An error to the sender of the quoted packet, about its packet to the VIP.
    for kind in [3, 11, 12] {
        let frame = about(kind, &tcp4()[14..]);
        let segment = parse::<V4>(&frame, [10, 0, 0, 1], CLIENT4).expect("an error");
        assert_eq!(segment.kind, Kind::Error);
        assert_eq!((segment.key.src, segment.key.dst), (VIP4, CLIENT4));
        assert_eq!((segment.key.src_port, segment.key.dst_port), (80, 40_000));
        assert_eq!((segment.sender, segment.key.protocol), ([10, 0, 0, 1], IPPROTO_TCP));
        assert_eq!((segment.l4(), segment.quoted_l3(), segment.quoted_l4()), (34, 42, 62));
    }
    for kind in 1..=4 {
        let quoted = with_extensions(60, &[IPPROTO_UDP, 0, 0, 0, 0, 0, 0, 0], &udp6()[54..]);
        let frame = about(kind, &quoted[14..]);
        let segment = parse::<V6>(&frame, VIP6, CLIENT6).expect("an error");
        assert_eq!((segment.key.src, segment.key.dst), (VIP6, CLIENT6));
        assert_eq!((segment.key.src_port, segment.key.dst_port), (53, 40_000));
        assert_eq!((segment.l4(), segment.quoted_l3(), segment.quoted_l4()), (54, 62, 110));
        for cut in 54..114 {
            assert!(parse::<V6>(&frame[..cut], VIP6, CLIENT6).is_err(), "cut at {cut}");
        }
    }
    // Nobody's packet, and no error.
    let frame = about(3, &tcp4()[14..]);
    assert_eq!(parse::<V4>(&frame, VIP4, [10, 0, 0, 1]).err(), Some(Unparsed::NotOurs));
    for kind in [0, 4, 5, 8, 13] {
        let frame = about(kind, &tcp4()[14..]);
        let unparsed = if kind == 8 { Unparsed::Echo } else { Unparsed::NotOurs };
        assert_eq!(parse::<V4>(&frame, VIP4, CLIENT4).err(), Some(unparsed), "type {kind}");
    }
}

#[test]
fn extension_headers_are_walked() {
    let udp = &udp6()[54..];
    let hop_by_hop = [60, 0, 1, 4, 0, 0, 0, 0];
    let destination = [43, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let routing = [51, 0, 0, 0, 0, 0, 0, 0];
    let authentication = [IPPROTO_UDP, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let all = [&hop_by_hop[..], &destination, &routing, &authentication].concat();
    let frame = with_extensions(0, &all, udp);
    let segment = parse6(&frame).expect("four extension headers");
    assert_eq!(segment.l4(), 54 + 8 + 16 + 8 + 12);
    assert_eq!(segment.key.dst_port, 53);
    for cut in 54..segment.l4() + 8 {
        assert_eq!(parse6(&frame[..cut]).err(), Some(Unparsed::Malformed), "cut at {cut}");
    }
}

#[test]
fn too_many_or_too_long_extension_headers_are_malformed() {
    let udp = &udp6()[54..];
    let six = [[60, 0, 0, 0, 0, 0, 0, 0]; 5].concat();
    let six = [&six[..], &[IPPROTO_UDP, 0, 0, 0, 0, 0, 0, 0]].concat();
    assert_eq!(parse6(&with_extensions(60, &six, udp)).expect("six are walked").l4(), 54 + 48);
    let seven = [&[60, 0, 0, 0, 0, 0, 0, 0][..], &six].concat();
    assert_eq!(parse6(&with_extensions(60, &seven, udp)).err(), Some(Unparsed::Malformed));
    let mut long = vec![0; 264];
    long[0] = IPPROTO_UDP;
    long[1] = 32;
    assert_eq!(parse6(&with_extensions(60, &long, udp)).err(), Some(Unparsed::Malformed));
}

#[test]
fn other_protocols_are_not_ours() {
    for protocol in [IpNumber::ICMP.0, IpNumber::GRE.0] {
        let mut frame = udp4();
        frame[23] = protocol;
        assert_eq!(parse4(&frame).err(), Some(Unparsed::NotOurs));
    }
    assert_eq!(parse6(&with_extensions(58, &[], &[128, 0, 0, 0])).err(), Some(Unparsed::NotOurs));
    assert_eq!(parse6(&with_extensions(59, &[], &[])).err(), Some(Unparsed::NotOurs));
}

proptest! {
    #[test]
    fn noise_never_panics(mut noise in proptest::collection::vec(any::<u8>(), 0..400), tagged: bool) {
        if noise.len() > 14 {
            noise[12..14].copy_from_slice(&if tagged { [0x81, 0x00] } else { [0x08, 0x00] });
            let _any = ethernet::parse(&noise.as_slice());
            noise[12..14].copy_from_slice(&[0x08, 0x00]);
            let _any = parse4(&noise);
            noise[12..14].copy_from_slice(&[0x86, 0xdd]);
            let _any = parse6(&noise);
        }
    }

    #[test]
    fn what_a_builder_writes_is_read_back(
        src in any::<[u8; 16]>(), dst in any::<[u8; 16]>(), ports in any::<(u16, u16)>(), ttl: u8,
    ) {
        let frame = bytes!(ethernet2().ipv6(src, dst, ttl).udp(ports.0, ports.1));
        let segment = parse::<V6>(&frame, src, dst).expect("valid");
        prop_assert_eq!((segment.key.src_port, segment.key.dst_port, segment.ttl), (ports.0, ports.1, ttl));
    }
}
