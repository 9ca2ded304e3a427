//! IPv4 and IPv6 behind one trait: everything above is written once.

use aya_ebpf::{
    bindings::bpf_fib_lookup,
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap},
};
use lbxdp_common::{
    AddressFlags, Announced, AnnouncedKey, Backend, Cidrs, Descriptor, Device, FragmentKey,
    FragmentPorts, FrontendKey, FrontendStats, Octets, RangeKey,
    limits::{
        MAX_ADDRESSES, MAX_ANNOUNCED, MAX_BACKENDS, MAX_FRAGMENTS, MAX_FRONTENDS, MAX_RANGES,
    },
};
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::{
    globals,
    lookup::{
        flow,
        maps::{self, MMAPABLE},
    },
    packet::{Packet, Wire},
    parse::{Quoted, Segment, Unparsed, ethernet, ipv4, ipv6},
    work::Work,
};

/// What differs between the families.
pub trait Family: flow::call::Calls<Self::Addr> + 'static {
    /// An address.
    type Addr: Octets + Wire;
    /// The fixed part of the IP header.
    type Header: Wire;

    /// `AF_INET` or `AF_INET6`.
    const AF: u8;
    /// Flag of devices by which packets come in that the kernel forwards.
    const FORWARDS: u16;
    /// EtherType.
    const ETHER_TYPE: u16;
    /// Offset of the source address in the IP header; the destination follows it.
    const SRC_OFFSET: usize;
    /// Offset of TTL or hop limit in the IP header.
    const TTL_OFFSET: usize;
    /// Offset of the protocol, or of the first header behind this one, in the IP header.
    const PROTOCOL_OFFSET: usize;
    /// IANA protocol number of ICMP or ICMPv6.
    const ICMP: u8;
    /// Type of the message that asks for an echo.
    const ECHO_REQUEST: u8;
    /// Type of the ICMP or ICMPv6 message that answers an echo request.
    const ECHO_REPLY: u8;
    /// Offset of the header checksum in the IP header, where the family has one.
    const CHECKSUM_OFFSET: Option<usize>;

    /// Parses the packet whose header is at `segment.l3()`.
    fn parse<P: Packet>(packet: &P, segment: &mut Segment<Self::Addr>) -> Result<(), Unparsed>;

    /// Reads the IP header of the packet that an ICMP message quotes from `at` on.
    fn quoted<P: Packet>(
        packet: &P,
        segment: &mut Segment<Self::Addr>,
        at: usize,
    ) -> Result<Quoted<Self::Addr>, Unparsed>;

    /// Whether a message of this type is an error, which quotes the packet it is about.
    fn is_error(kind: u8) -> bool;

    /// Ones' complement sum of an address in the byte order of this machine (RFC 1071, 2 (B)).
    fn sum(addr: &Self::Addr) -> u64;

    /// Whether no wire carries the address.
    fn is_loopback(addr: &Self::Addr) -> bool;

    /// Whether the address is one of many receivers.
    fn is_multicast(addr: &Self::Addr) -> bool;

    /// Fills the addresses of a route lookup.
    fn route_between(params: &mut bpf_fib_lookup, src: &Self::Addr, dst: &Self::Addr);

    /// This CPU's room to work in.
    fn work() -> Option<&'static mut Work<Self::Addr>>;
    /// The `addresses` map.
    fn address_map() -> &'static HashMap<Self::Addr, AddressFlags, MAX_ADDRESSES>;
    /// The `announced` map.
    fn announced_map() -> &'static HashMap<AnnouncedKey<Self::Addr>, Announced, MAX_ANNOUNCED>;
    /// The `frontends` map.
    fn frontend_map() -> &'static HashMap<FrontendKey<Self::Addr>, u32, MAX_FRONTENDS>;
    /// The `descriptors` map.
    fn descriptor_map() -> &'static Array<Descriptor, MAX_FRONTENDS, MMAPABLE>;
    /// The `backends` map.
    fn backend_map() -> &'static Array<Backend<Self::Addr>, MAX_BACKENDS, MMAPABLE>;
    /// The `flows` map.
    fn flow_map() -> &'static maps::FlowMap<Self::Addr>;
    /// The `fragments` map.
    fn fragment_map() -> &'static LruHashMap<FragmentKey<Self::Addr>, FragmentPorts, MAX_FRAGMENTS>;
    /// The `sockets` map.
    fn socket_map() -> &'static maps::SocketMap<Self::Addr>;
    /// The `ranges` map.
    fn range_map() -> &'static LpmTrie<RangeKey<Self::Addr>, u32, MAX_RANGES>;
    /// The `stats` map.
    fn stats_map() -> &'static maps::StatsMap<FrontendStats, MAX_FRONTENDS>;
    /// The Service ranges that the operator has named.
    fn service_cidrs() -> &'static Cidrs;
}

/// IPv4.
pub struct V4;

/// IPv6.
pub struct V6;

#[inline(always)]
fn word(a: u8, b: u8, c: u8, d: u8) -> u64 {
    u64::from(u32::from_ne_bytes([a, b, c, d]))
}

impl Family for V4 {
    type Addr = [u8; 4];
    type Header = Ipv4Hdr;

    const AF: u8 = 2;
    const FORWARDS: u16 = Device::FORWARDS_V4;
    const ETHER_TYPE: u16 = ethernet::IPV4;
    const SRC_OFFSET: usize = 12;
    const TTL_OFFSET: usize = 8;
    const PROTOCOL_OFFSET: usize = 9;
    const ICMP: u8 = 1;
    const ECHO_REQUEST: u8 = 8;
    const ECHO_REPLY: u8 = 0;
    const CHECKSUM_OFFSET: Option<usize> = Some(10);

    #[inline(always)]
    fn parse<P: Packet>(packet: &P, segment: &mut Segment<[u8; 4]>) -> Result<(), Unparsed> {
        ipv4::parse(packet, segment)
    }

    #[inline(always)]
    fn quoted<P: Packet>(
        packet: &P,
        _segment: &mut Segment<[u8; 4]>,
        at: usize,
    ) -> Result<Quoted<Self::Addr>, Unparsed> {
        ipv4::quoted(packet, at)
    }

    /// Destination unreachable, time exceeded, parameter problem (RFC 792). A redirect is for
    /// the next host on the wire, and source quench is obsolete (RFC 6633).
    #[inline(always)]
    fn is_error(kind: u8) -> bool {
        matches!(kind, 3 | 11 | 12)
    }

    #[inline(always)]
    fn sum(addr: &[u8; 4]) -> u64 {
        let [a, b, c, d] = *addr;
        word(a, b, c, d)
    }

    #[inline(always)]
    fn is_loopback(addr: &[u8; 4]) -> bool {
        addr[0] == 127
    }

    #[inline(always)]
    fn is_multicast(addr: &[u8; 4]) -> bool {
        addr[0] & 0xf0 == 0xe0 || *addr == [0xff; 4]
    }

    #[inline(always)]
    fn route_between(params: &mut bpf_fib_lookup, src: &[u8; 4], dst: &[u8; 4]) {
        params.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(*src);
        params.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(*dst);
    }

    #[inline(always)]
    fn work() -> Option<&'static mut Work<[u8; 4]>> {
        crate::work::get(&maps::scratch_v4)
    }

    #[inline(always)]
    fn address_map() -> &'static HashMap<[u8; 4], AddressFlags, MAX_ADDRESSES> {
        &maps::addresses_v4
    }

    #[inline(always)]
    fn announced_map() -> &'static HashMap<AnnouncedKey<[u8; 4]>, Announced, MAX_ANNOUNCED> {
        &maps::announced_v4
    }

    #[inline(always)]
    fn frontend_map() -> &'static HashMap<FrontendKey<[u8; 4]>, u32, MAX_FRONTENDS> {
        &maps::frontends_v4
    }

    #[inline(always)]
    fn descriptor_map() -> &'static Array<Descriptor, MAX_FRONTENDS, MMAPABLE> {
        &maps::descriptors_v4
    }

    #[inline(always)]
    fn backend_map() -> &'static Array<Backend<[u8; 4]>, MAX_BACKENDS, MMAPABLE> {
        &maps::backends_v4
    }

    #[inline(always)]
    fn flow_map() -> &'static maps::FlowMap<[u8; 4]> {
        &maps::flows_v4
    }

    #[inline(always)]
    fn fragment_map() -> &'static LruHashMap<FragmentKey<[u8; 4]>, FragmentPorts, MAX_FRAGMENTS> {
        &maps::fragments_v4
    }

    #[inline(always)]
    fn socket_map() -> &'static maps::SocketMap<[u8; 4]> {
        &maps::sockets_v4
    }

    #[inline(always)]
    fn range_map() -> &'static LpmTrie<RangeKey<[u8; 4]>, u32, MAX_RANGES> {
        &maps::ranges_v4
    }

    #[inline(always)]
    fn stats_map() -> &'static maps::StatsMap<FrontendStats, MAX_FRONTENDS> {
        &maps::stats_v4
    }

    #[inline(always)]
    fn service_cidrs() -> &'static Cidrs {
        &globals::SERVICE_CIDRS_V4
    }
}

impl Family for V6 {
    type Addr = [u8; 16];
    type Header = Ipv6Hdr;

    const AF: u8 = 10;
    const FORWARDS: u16 = Device::FORWARDS_V6;
    const ETHER_TYPE: u16 = ethernet::IPV6;
    const SRC_OFFSET: usize = 8;
    const TTL_OFFSET: usize = 7;
    const PROTOCOL_OFFSET: usize = 6;
    const ICMP: u8 = 58;
    const ECHO_REQUEST: u8 = 128;
    const ECHO_REPLY: u8 = 129;
    const CHECKSUM_OFFSET: Option<usize> = None;

    #[inline(always)]
    fn parse<P: Packet>(packet: &P, segment: &mut Segment<[u8; 16]>) -> Result<(), Unparsed> {
        ipv6::parse(packet, segment)
    }

    #[inline(always)]
    fn quoted<P: Packet>(
        packet: &P,
        segment: &mut Segment<[u8; 16]>,
        at: usize,
    ) -> Result<Quoted<Self::Addr>, Unparsed> {
        ipv6::quoted(packet, segment, at)
    }

    /// Destination unreachable, packet too big, time exceeded, parameter problem (RFC 4443).
    #[inline(always)]
    fn is_error(kind: u8) -> bool {
        matches!(kind, 1..=4)
    }

    #[inline(always)]
    fn sum(addr: &[u8; 16]) -> u64 {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *addr;
        word(a, b, c, d) + word(e, f, g, h) + word(i, j, k, l) + word(m, n, o, p)
    }

    #[inline(always)]
    fn is_loopback(addr: &[u8; 16]) -> bool {
        *addr == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]
    }

    #[inline(always)]
    fn is_multicast(addr: &[u8; 16]) -> bool {
        addr[0] == 0xff
    }

    #[inline(always)]
    fn route_between(params: &mut bpf_fib_lookup, src: &[u8; 16], dst: &[u8; 16]) {
        params.__bindgen_anon_3.ipv6_src = words(src);
        params.__bindgen_anon_4.ipv6_dst = words(dst);
    }

    #[inline(always)]
    fn work() -> Option<&'static mut Work<[u8; 16]>> {
        crate::work::get(&maps::scratch_v6)
    }

    #[inline(always)]
    fn address_map() -> &'static HashMap<[u8; 16], AddressFlags, MAX_ADDRESSES> {
        &maps::addresses_v6
    }

    #[inline(always)]
    fn announced_map() -> &'static HashMap<AnnouncedKey<[u8; 16]>, Announced, MAX_ANNOUNCED> {
        &maps::announced_v6
    }

    #[inline(always)]
    fn frontend_map() -> &'static HashMap<FrontendKey<[u8; 16]>, u32, MAX_FRONTENDS> {
        &maps::frontends_v6
    }

    #[inline(always)]
    fn descriptor_map() -> &'static Array<Descriptor, MAX_FRONTENDS, MMAPABLE> {
        &maps::descriptors_v6
    }

    #[inline(always)]
    fn backend_map() -> &'static Array<Backend<[u8; 16]>, MAX_BACKENDS, MMAPABLE> {
        &maps::backends_v6
    }

    #[inline(always)]
    fn flow_map() -> &'static maps::FlowMap<[u8; 16]> {
        &maps::flows_v6
    }

    #[inline(always)]
    fn fragment_map() -> &'static LruHashMap<FragmentKey<[u8; 16]>, FragmentPorts, MAX_FRAGMENTS> {
        &maps::fragments_v6
    }

    #[inline(always)]
    fn socket_map() -> &'static maps::SocketMap<[u8; 16]> {
        &maps::sockets_v6
    }

    #[inline(always)]
    fn range_map() -> &'static LpmTrie<RangeKey<[u8; 16]>, u32, MAX_RANGES> {
        &maps::ranges_v6
    }

    #[inline(always)]
    fn stats_map() -> &'static maps::StatsMap<FrontendStats, MAX_FRONTENDS> {
        &maps::stats_v6
    }

    #[inline(always)]
    fn service_cidrs() -> &'static Cidrs {
        &globals::SERVICE_CIDRS_V6
    }
}

#[inline(always)]
fn words(addr: &[u8; 16]) -> [u32; 4] {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *addr;
    [
        u32::from_ne_bytes([a, b, c, d]),
        u32::from_ne_bytes([e, f, g, h]),
        u32::from_ne_bytes([i, j, k, l]),
        u32::from_ne_bytes([m, n, o, p]),
    ]
}
