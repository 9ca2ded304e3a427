//! Next hops: where packets to remote backends leave, as long as the agent vouches for it.

use crate::layout;

/// Value of `hops`, indexed by [`crate::Backend::hop`]. Index 0 is nobody's: the kernel is asked for
/// the way instead.
///
/// The agent changes a hop while programs read it, and neither waits for the other. So each of the
/// first three words carries the version of what it says, and is stored and read whole: a reader
/// believes words of one version and nothing else. The order of stores and loads does not matter,
/// which is what makes it right on processors that change it.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hop {
    /// Link-layer address of the next hop.
    pub dst: [u8; 6],
    /// Version of `dst`; zero for a hop that nobody may use.
    pub dst_version: u16,
    /// Link-layer address of the device to leave by.
    pub src: [u8; 6],
    /// Version of `src`.
    pub src_version: u16,
    /// Interface index of the device to leave by.
    pub ifindex: u32,
    /// Bytes of the largest IP packet that it takes, 65,535 where it takes any.
    pub mtu: u16,
    /// Version of `ifindex` and `mtu`.
    pub version: u16,
    /// Until when it may be believed, nanoseconds of `CLOCK_MONOTONIC_COARSE`: once the agent is gone,
    /// nobody follows what happens to routes and neighbours.
    pub valid_until: u64,
}

impl Hop {
    /// Whether it is whole, and valid at `now`.
    #[inline(always)]
    pub const fn is_valid(&self, now: u64) -> bool {
        let Self { dst_version, src_version, version, valid_until, .. } = *self;
        let is_whole = version != 0 && version == dst_version && version == src_version;
        is_whole && now <= valid_until
    }
}

layout::record! {
    Hop { dst, dst_version, src, src_version, ifindex, mtu, version, valid_until }
}

const _: () = assert!(size_of::<Hop>() == 32);
