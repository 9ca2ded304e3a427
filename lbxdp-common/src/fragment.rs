//! Fragments: only the first has ports, the later ones are found by it.

use crate::layout;

/// Key of `fragments_v4` and `fragments_v6`: what the fragments of one datagram have in common
/// (RFC 791, RFC 8200 section 4.5).
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FragmentKey<A> {
    /// Source address, network order.
    pub src: A,
    /// Destination address, network order.
    pub dst: A,
    /// Identification, host order; 16 bits with IPv4.
    pub id: u32,
    /// IANA protocol number.
    pub protocol: u8,
    /// Always zero.
    pub _pad: [u8; 3],
}

/// Value of `fragments_v4` and `fragments_v6`: the ports, as they arrive in the first fragment.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentPorts {
    /// Source port, host order.
    pub src_port: u16,
    /// Destination port, host order.
    pub dst_port: u16,
}

layout::record! { FragmentKey<A> { src, dst, id, protocol, _pad } }
layout::record! { FragmentPorts { src_port, dst_port } }

const _: () = {
    assert!(size_of::<FragmentKey<[u8; 4]>>() == 16);
    assert!(size_of::<FragmentKey<[u8; 16]>>() == 40);
    assert!(size_of::<FragmentPorts>() == 4);
};
