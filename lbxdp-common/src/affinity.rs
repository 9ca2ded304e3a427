//! `sessionAffinity: ClientIP`: a client that comes back in time gets the backend it had.

/// Key of `affinity`: one client of one Service port.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AffinityKey {
    /// The client: an address in network order (an IPv4 address in the first four bytes, the rest
    /// zero), or a network namespace's cookie in the first eight.
    pub client: [u8; 16],
    /// [`crate::Descriptor::service`].
    pub service: u32,
    /// 4 or 6: the family of the frontend. Ids of the families are apart.
    pub family: u8,
    /// [`Self::ADDRESS`] or [`Self::NAMESPACE`].
    pub kind: u8,
    /// Always zero.
    pub _pad: u16,
}

impl AffinityKey {
    /// The client is known by its address.
    pub const ADDRESS: u8 = 0;
    /// The client is known by its network namespace: a socket that is not bound has no address
    /// yet when it connects.
    pub const NAMESPACE: u8 = 1;
}

/// Value of `affinity`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Affinity {
    /// When the client last began a flow, nanoseconds of `CLOCK_MONOTONIC_COARSE`.
    pub last_used: u64,
    /// Backend id.
    pub backend: u32,
    /// Always zero.
    pub _pad: u32,
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

const _: () = {
    assert!(size_of::<AffinityKey>() == 24);
    assert!(size_of::<Affinity>() == 16);
    assert!(size_of::<MemberKey>() == 8);
};
