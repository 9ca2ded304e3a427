//! Addresses that this node answers for on a local network.

use crate::layout;

/// Key of `announced_v4` and `announced_v6`: an address and where it is asked for.
///
/// One entry for each device, because a host that answers by whichever device it is asked through
/// answers for networks on which the address is not.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnnouncedKey<A> {
    /// The address, network order.
    pub addr: A,
    /// Interface index of the device.
    pub ifindex: u32,
}

layout::record! { AnnouncedKey<A> { addr, ifindex } }

/// Value of `announced_v4` and `announced_v6`: what becomes of packets for the address there.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Announced {
    /// The link-layer address of the node that had the address before, and lives; zero if there is none.
    /// Connections that began there go on there: a packet of one that is unknown here is handed back.
    pub before: [u8; 6],
    /// Whether questions for the address are answered, 0 or 1. They are not before the other node has
    /// stopped, but packets may come already.
    pub is_answered: u8,
    /// Zero.
    pub unused: u8,
}

layout::record! { Announced { before, is_answered, unused } }

/// The one element of `watch`: whether anybody looks after what is announced.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Watch {
    /// Until when addresses are answered for, nanoseconds of `CLOCK_MONOTONIC_COARSE`. Once the agent
    /// is gone, another node takes them over, and two must not answer.
    pub valid_until: u64,
}

layout::record! { Watch { valid_until } }

const _: () = {
    assert!(size_of::<AnnouncedKey<[u8; 4]>>() == 8);
    assert!(size_of::<AnnouncedKey<[u8; 16]>>() == 20);
    assert!(size_of::<Announced>() == 8);
    assert!(size_of::<Watch>() == 8);
};
