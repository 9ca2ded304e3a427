//! `sessionAffinity: ClientIP`: a client that comes back in time gets the backend it had.

use crate::{Octets, layout};

/// Key of `affinity`: one client of one Service port.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AffinityKey {
    /// The client: an address in network order (an IPv4 address in the first four bytes, the rest
    /// zero), or a network namespace's cookie in the first eight.
    #[cfg(not(feature = "next-layout"))]
    pub client: [u8; 16],
    /// [`crate::Descriptor::service`].
    pub service: u32,
    /// 4 or 6: the family of the frontend. Ids of the families are apart.
    pub family: u8,
    /// [`Self::ADDRESS`] or [`Self::NAMESPACE`].
    pub kind: u8,
    /// Always zero.
    pub _pad: u16,
    /// The client, as above.
    #[cfg(feature = "next-layout")]
    pub client: [u8; 16],
}

impl AffinityKey {
    /// The client is known by its address.
    pub const ADDRESS: u8 = 0;
    /// The client is known by its network namespace: a socket that is not bound has no address
    /// yet when it connects.
    pub const NAMESPACE: u8 = 1;

    /// The client at `addr`, of a Service port of the same family.
    #[inline(always)]
    pub fn of_address<A: Octets>(service: u32, addr: &A) -> Self {
        Self { client: addr.widen(), service, family: A::VERSION, kind: Self::ADDRESS, _pad: 0 }
    }

    /// The clients in the network namespace with this cookie, of a Service port of the family of
    /// `A`.
    #[inline(always)]
    pub fn of_namespace<A: Octets>(service: u32, cookie: u64) -> Self {
        let [a, b, c, d, e, f, g, h] = cookie.to_ne_bytes();
        let client = [a, b, c, d, e, f, g, h, 0, 0, 0, 0, 0, 0, 0, 0];
        Self { client, service, family: A::VERSION, kind: Self::NAMESPACE, _pad: 0 }
    }
}

/// Value of `affinity`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Affinity {
    /// When the client last began a flow, nanoseconds of `CLOCK_MONOTONIC_COARSE`.
    #[cfg(not(feature = "next-layout"))]
    pub last_used: u64,
    /// Backend id.
    pub backend: u32,
    /// Always zero.
    pub _pad: u32,
    /// When the client last began a flow, as above.
    #[cfg(feature = "next-layout")]
    pub last_used: u64,
}

impl Affinity {
    /// Whether it still counts at `now` (the clock of `last_used`), under a time-out in seconds:
    /// from the last use until just before the time-out.
    #[inline(always)]
    pub const fn holds(&self, now: u64, timeout: u32) -> bool {
        // Another CPU may have used it since `now` was read.
        now.wrapping_sub(self.last_used).cast_signed() < timeout as i64 * 1_000_000_000
    }
}

/// Key of `members`: a table and a backend that it has. The affinity to a backend counts only
/// where the table that a packet chooses from has it. Written for tables of frontends with
/// affinity only.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MemberKey {
    /// First block of the table in `tables`: a table belongs to one family, so this says which.
    pub first_block: u32,
    /// Backend id.
    pub backend: u32,
}

layout::record! { AffinityKey { client, service, family, kind, _pad } }
layout::record! { Affinity { last_used, backend, _pad } }
layout::record! { MemberKey { first_block, backend } }

const _: () = {
    assert!(size_of::<AffinityKey>() == 24);
    assert!(size_of::<Affinity>() == 16);
    assert!(size_of::<MemberKey>() == 8);
};
