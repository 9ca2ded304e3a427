//! The packet at XDP: a frame as the driver received it.

use aya_ebpf::{
    EbpfContext as _,
    helpers::generated::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail},
    programs::XdpContext,
};

use super::{Packet, read, readable, write};
use crate::resolve::Resize;

/// A frame and what the programs do to its extent.
pub struct XdpPacket {
    /// The kernel's context.
    pub ctx: XdpContext,
}

impl Packet for XdpPacket {
    #[inline(always)]
    fn start(&self) -> usize {
        self.ctx.data()
    }

    #[inline(always)]
    fn end(&self) -> usize {
        self.ctx.data_end()
    }

    #[inline(always)]
    fn len(&self) -> usize {
        // The length of further buffers is known to a helper from Linux 5.18 on.
        readable(self)
    }

    #[inline(always)]
    fn linearize(&self, _len: usize) {}
}

/// Bytes of the longest link-layer header that is served: Ethernet and two VLAN tags.
const LONGEST_LINK_HEADER: usize = 22;

impl Resize for XdpPacket {
    #[inline(always)]
    fn resize(&self, len: usize) -> bool {
        let delta = len as i32 - readable(self) as i32;
        // SAFETY: as for `make_room`.
        delta == 0 || unsafe { bpf_xdp_adjust_tail(self.ctx.as_ptr().cast(), delta) == 0 }
    }
}

impl XdpPacket {
    /// Cuts the packet behind `keep` bytes and makes `room` bytes between the link-layer header,
    /// which ends at `l3`, and the rest.
    #[inline(always)]
    pub fn make_room(&self, l3: usize, room: usize, keep: usize) -> bool {
        // The bytes behind a shorter link-layer header are about to be overwritten anyway.
        let Some(link) = read::<[u8; LONGEST_LINK_HEADER], _>(self, 0) else { return false };
        let surplus = readable(self) as i32 - (l3 + keep) as i32;
        // SAFETY: the context is the one the kernel gave this program; offsets are re-checked by
        // every later access.
        unsafe {
            if surplus > 0 && bpf_xdp_adjust_tail(self.ctx.as_ptr().cast(), -surplus) != 0 {
                return false;
            }
            if bpf_xdp_adjust_head(self.ctx.as_ptr().cast(), -(room as i32)) != 0 {
                return false;
            }
        }
        write(self, 0, link)
    }
}
