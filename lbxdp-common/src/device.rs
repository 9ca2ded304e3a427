//! Network devices as the programs need to know them.

use crate::layout;

/// Value of `devices`, keyed by interface index, and of `near_devices`, indexed by it: the latter has
/// every device whose index is below [`crate::limits::NEAR_DEVICES`], and zeroes for all others.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// Hardware address: only frames to it are translated, because a flooding switch shows a
    /// frame to every node.
    pub mac: [u8; 6],
    /// Union of the constants of this type.
    pub flags: u16,
    /// Interface index of the physical device under a VLAN device, else zero.
    pub parent: u32,
    /// VLAN ids of frames for this device on `parent`, outermost first; zero where there is none.
    pub vlan: [u16; 2],
}

impl Device {
    /// XDP programs of other devices may redirect to it (`NETDEV_XDP_ACT_NDO_XMIT`, 6.3+; before,
    /// devices that carry the native program).
    pub const XMIT: u16 = 1;
    /// Its own XDP program may transmit on it. A veth needs NAPI on its peer for that.
    pub const TX: u16 = 1 << 1;
    /// The kernel forwards IPv4 packets that come in by it (`net.ipv4.conf.*.forwarding`).
    pub const FORWARDS_V4: u16 = 1 << 2;
    /// The kernel forwards IPv6 packets that come in by it (`net.ipv6.conf.*.forwarding`).
    pub const FORWARDS_V6: u16 = 1 << 3;

    /// Whether any of `flags` is set.
    #[inline(always)]
    pub const fn has(&self, flags: u16) -> bool {
        self.flags & flags != 0
    }
}

layout::record! { Device { mac, flags, parent, vlan } }

const _: () = assert!(size_of::<Device>() == 16);
