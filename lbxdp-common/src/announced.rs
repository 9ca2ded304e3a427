//! Addresses that this node answers for on a local network.

use crate::layout;

/// Key of `announced_v4` and `announced_v6`: an address and where it is asked for. The value is
/// nothing but a sign that it is there.
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
    assert!(size_of::<Watch>() == 8);
};
