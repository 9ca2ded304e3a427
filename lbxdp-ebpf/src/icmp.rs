//! ICMP and ICMPv6 errors, made out of the packet they are about: its head is quoted, the rest is
//! cut, and it goes back the way it came (RFC 792, RFC 4443).

use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::{
    family::{Family, V4, V6},
    packet::{Pair, read, readable, skb::SkbPacket, xdp::XdpPacket},
    parse::{ICMP_HEADER, Segment},
    rewrite::{
        Rewriter,
        csum::{Difference, fold16},
        with_ttl,
    },
};

/// What the error says. No variant has a field: what is undefined in one variant and not in the
/// other is spilled all the same, and the verifier objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// Nobody listens.
    PortUnreachable,
    /// TTL or hop limit ended here.
    TimeExceeded,
    /// Larger than the way onwards, which takes [`Segment::mtu`] bytes.
    TooBig,
}

/// Bytes of the packet that are quoted at the most: all headers a sender needs to find its socket
/// (RFC 792 wants the IP header and 8 bytes). A multiple of four.
const QUOTE: usize = 128;
const TTL: u8 = 64;

/// A packet that can be turned into an answer.
pub trait Answer: Rewriter {
    /// Cuts the packet behind `keep` bytes of its network layer at `l3`, and makes `room` bytes
    /// in front of that.
    fn make_room(&self, l3: usize, room: usize, keep: usize) -> bool;
}

impl Answer for XdpPacket {
    #[inline(always)]
    fn make_room(&self, l3: usize, room: usize, keep: usize) -> bool {
        XdpPacket::make_room(self, l3, room, keep)
    }
}

impl Answer for SkbPacket {
    #[inline(always)]
    fn make_room(&self, l3: usize, room: usize, keep: usize) -> bool {
        SkbPacket::make_room(self, l3, room, keep)
    }
}

/// What differs between ICMP and ICMPv6.
pub trait Protocol: Family {
    /// Type, code and the four bytes behind the checksum; `mtu` is for [`Error::TooBig`].
    fn code(error: Error, mtu: u32) -> (u8, u8, [u8; 4]);
    /// Ones' complement sum of what the checksum covers besides the message of `len` bytes.
    fn pseudo(src: &Self::Addr, dst: &Self::Addr, len: usize) -> u64;
    /// An IP header for a message of `len` bytes.
    fn header(src: &Self::Addr, dst: &Self::Addr, len: usize) -> Self::Header;
}

impl Protocol for V4 {
    #[inline(always)]
    fn code(error: Error, mtu: u32) -> (u8, u8, [u8; 4]) {
        match error {
            Error::PortUnreachable => (3, 3, [0; 4]),
            Error::TimeExceeded => (11, 0, [0; 4]),
            Error::TooBig => {
                let [_, _, c, d] = mtu.to_be_bytes();
                (3, 4, [0, 0, c, d])
            }
        }
    }

    #[inline(always)]
    fn pseudo(_src: &[u8; 4], _dst: &[u8; 4], _len: usize) -> u64 {
        0
    }

    #[inline(always)]
    fn header(src: &[u8; 4], dst: &[u8; 4], len: usize) -> Ipv4Hdr {
        let tot_len = ((Ipv4Hdr::LEN + len) as u16).to_be_bytes();
        let words = u64::from(u16::from_ne_bytes([0x45, 0]))
            + u64::from(u16::from_ne_bytes(tot_len))
            + u64::from(u16::from_ne_bytes([TTL, V4::ICMP]));
        let check = (!fold16(words + V4::sum(src) + V4::sum(dst))).to_ne_bytes();
        Ipv4Hdr {
            vihl: 0x45,
            tos: 0,
            tot_len,
            id: [0; 2],
            frags: [0; 2],
            ttl: TTL,
            proto: V4::ICMP,
            check,
            src_addr: *src,
            dst_addr: *dst,
        }
    }
}

impl Protocol for V6 {
    #[inline(always)]
    fn code(error: Error, mtu: u32) -> (u8, u8, [u8; 4]) {
        match error {
            Error::PortUnreachable => (1, 4, [0; 4]),
            Error::TimeExceeded => (3, 0, [0; 4]),
            Error::TooBig => (2, 0, mtu.to_be_bytes()),
        }
    }

    #[inline(always)]
    fn pseudo(src: &[u8; 16], dst: &[u8; 16], len: usize) -> u64 {
        V6::sum(src)
            + V6::sum(dst)
            + u64::from((len as u32).to_be())
            + u64::from(u32::from(V6::ICMP).to_be())
    }

    #[inline(always)]
    fn header(src: &[u8; 16], dst: &[u8; 16], len: usize) -> Ipv6Hdr {
        Ipv6Hdr {
            vcf: [0x60, 0, 0, 0],
            payload_len: (len as u16).to_be_bytes(),
            next_hdr: V6::ICMP,
            hop_limit: TTL,
            src_addr: *src,
            dst_addr: *dst,
        }
    }
}

/// Turns the packet of `segment` into an error about it, addressed to its sender and from whom it
/// was addressed to. `false` if that failed, after which the packet is fit for nothing.
#[inline(always)]
pub fn answer<F: Protocol, P: Answer>(
    packet: &P,
    segment: &Segment<F::Addr>,
    error: Error,
) -> bool {
    let l3 = segment.l3();
    let Some(available) = readable(packet).checked_sub(l3) else { return false };
    let mut quote = if available < QUOTE { available } else { QUOTE };
    if segment.len != 0 && segment.len < quote {
        quote = segment.len;
    }
    // Padding of a sum to whole words would be needed otherwise, and nobody misses three bytes.
    quote &= !3;
    let header_len = size_of::<F::Header>();
    if !packet.make_room(l3, header_len + ICMP_HEADER, quote) {
        return false;
    }

    let (src, dst) = (&segment.key.dst, &segment.key.src);
    let len = ICMP_HEADER + quote;
    let (kind, code, [m, n, o, p]) = F::code(error, segment.mtu);
    let icmp = l3 + header_len;
    let mut sum = F::pseudo(src, dst, len)
        + u64::from(u32::from_ne_bytes([kind, code, 0, 0]))
        + u64::from(u32::from_ne_bytes([m, n, o, p]));
    for word in 0..QUOTE / 4 {
        if word * 4 >= quote {
            break;
        }
        let Some(bytes) = read::<[u8; 4], _>(packet, icmp + ICMP_HEADER + word * 4) else {
            return false;
        };
        sum += u64::from(u32::from_ne_bytes(bytes));
    }
    let [x, y] = (!fold16(sum)).to_ne_bytes();
    turn_frame(packet)
        && packet.put(l3, &F::header(src, dst, len))
        && packet.put(icmp, &[kind, code, x, y, m, n, o, p])
}

/// Sends a frame back to its sender.
#[inline(always)]
pub fn turn_frame<P: Answer>(packet: &P) -> bool {
    let Some([a, b, c, d, e, f, g, h, i, j, k, l]) = read::<[u8; 12], _>(packet, 0) else {
        return false;
    };
    packet.put(0, &[g, h, i, j, k, l, a, b, c, d, e, f])
}

/// Turns the echo request at `segment` into its reply.
#[inline(always)]
pub fn echo<F: Family, P: Answer>(packet: &P, segment: &Segment<F::Addr>) -> bool {
    let l4 = segment.l4();
    let Some([kind, code, x, y]) = read::<[u8; 4], _>(packet, l4) else { return false };
    let reply = F::ECHO_REPLY;
    let mut difference = Difference::default();
    difference
        .replace(u16::from_ne_bytes([kind, code]).into(), u16::from_ne_bytes([reply, code]).into());
    let [x, y] = difference.apply([x, y]);
    // The same addresses in the other order leave every sum as it is.
    let addresses = Pair { src: segment.key.dst, dst: segment.key.src };
    let Some((offset, word, difference)) = with_ttl::<F, _>(packet, segment, TTL) else {
        return false;
    };
    if let Some(checksum) = F::CHECKSUM_OFFSET {
        let at = segment.l3() + checksum;
        let Some(old) = read::<[u8; 2], _>(packet, at) else { return false };
        if !packet.put(at, &difference.apply(old)) {
            return false;
        }
    }
    packet.put(offset, &word)
        && packet.put(segment.l3() + F::SRC_OFFSET, &addresses)
        && packet.put(l4, &[reply, code, x, y])
        && turn_frame(packet)
}
