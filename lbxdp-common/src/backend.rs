//! Backends: where packets go.

use crate::layout;

/// Value of `backends_v4` and `backends_v6`, indexed by backend id. Ids are stable over agent
/// restarts.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend<A> {
    /// Address of the backend, network order.
    #[cfg(not(feature = "next-layout"))]
    pub addr: A,
    /// Source of packets to a remote backend: the preferred source of the route to it. Unused
    /// for a local one.
    pub snat_addr: A,
    /// Address of the backend, network order.
    #[cfg(feature = "next-layout")]
    pub addr: A,
    /// Port, host order; zero when the id is unused.
    pub port: u16,
    /// Union of the constants of this type.
    pub flags: u16,
    /// Index in `hops` of the way to a remote backend, zero where the kernel is to be asked. In one
    /// word with port and flags: a change of the way is one store.
    pub hop: u32,
}

impl<A> Backend<A> {
    /// The backend is on this node: its packets go up the stack and keep their source.
    pub const LOCAL: u16 = 1;
    /// No table names it any more: flows to it go on, but nothing new begins.
    pub const RETIRED: u16 = 1 << 1;

    /// Whether no table names the backend any more.
    #[inline(always)]
    pub const fn is_retired(&self) -> bool {
        self.flags & Self::RETIRED != 0
    }

    /// Whether the backend is on this node.
    #[inline(always)]
    pub const fn is_local(&self) -> bool {
        self.flags & Self::LOCAL != 0
    }
}

layout::record! { Backend<A> { addr, snat_addr, port, flags, hop } }

const _: () = {
    assert!(size_of::<Backend<[u8; 4]>>() == 16);
    assert!(size_of::<Backend<[u8; 16]>>() == 40);
};
