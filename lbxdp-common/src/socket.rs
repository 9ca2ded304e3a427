//! Sockets of clients on this node, translated when they connect or send.

use crate::layout;

/// Key of `sockets_v4` and `sockets_v6`. IPv6 sockets that use IPv4-mapped addresses are in
/// `sockets_v4`.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SocketKey<A> {
    /// Cookie of the socket, never used again while the kernel runs: two words, because one of 8
    /// bytes would have the IPv6 key end with padding.
    cookie: [u32; 2],
    /// A frontend's or a backend's address, network order.
    pub addr: A,
    /// Its port, host order.
    pub port: u16,
    /// IANA protocol number.
    pub protocol: u8,
    /// [`Self::TO_BACKEND`], [`Self::TO_FRONTEND`] or [`Self::LAST`].
    pub way: u8,
}

impl<A> SocketKey<A> {
    /// A key for the socket with this `cookie`, `addr`, `port` (host order) and IANA `protocol`.
    #[inline(always)]
    pub const fn new(cookie: u64, addr: A, port: u16, protocol: u8, way: u8) -> Self {
        Self { cookie: [cookie as u32, (cookie >> 32) as u32], addr, port, protocol, way }
    }

    /// Cookie of the socket.
    #[inline(always)]
    pub const fn cookie(&self) -> u64 {
        self.cookie[0] as u64 | (self.cookie[1] as u64) << 32
    }

    /// `addr` and `port` are a frontend's, the value has the backend that the socket keeps using
    /// for it.
    pub const TO_BACKEND: u8 = 1;
    /// `addr` and `port` are a backend's, the value has the frontend that the socket is shown.
    pub const TO_FRONTEND: u8 = 2;
    /// `addr` and `port` are zero, the value has the frontend for which the socket, not being
    /// connected, last chose a backend: what is to be forgotten when it closes.
    pub const LAST: u8 = 3;
}

/// Value of `sockets_v4` and `sockets_v6`.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketPeer<A> {
    /// Frontend id.
    #[cfg(feature = "next-layout")]
    pub frontend: u32,
    /// Address, network order.
    pub addr: A,
    /// Port, host order.
    pub port: u16,
    /// Union of the constants of this type.
    pub flags: u16,
    /// Frontend id.
    #[cfg(not(feature = "next-layout"))]
    pub frontend: u32,
}

impl<A> SocketPeer<A> {
    /// The socket is connected: the `sendmsg` hook does not see what it sends.
    pub const CONNECTED: u16 = 1;
    /// The backend does not serve the frontend any more: what a connected socket sends fails.
    pub const STALE: u16 = 1 << 1;

    /// Whether any of `flags` is set.
    #[inline(always)]
    pub const fn has(&self, flags: u16) -> bool {
        self.flags & flags != 0
    }
}

layout::record! { SocketKey<A> { cookie, addr, port, protocol, way } }
layout::record! { SocketPeer<A> { addr, port, flags, frontend } }

const _: () = {
    assert!(size_of::<SocketKey<[u8; 4]>>() == 16);
    assert!(size_of::<SocketKey<[u8; 16]>>() == 28);
    assert!(size_of::<SocketPeer<[u8; 4]>>() == 12);
    assert!(size_of::<SocketPeer<[u8; 16]>>() == 24);
};
