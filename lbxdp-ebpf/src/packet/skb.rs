//! The packet at tc: an skb, of which only the linear part can be read in place, and which may
//! carry a checksum that is not computed yet (`CHECKSUM_PARTIAL`) or computed by the device over
//! everything (`CHECKSUM_COMPLETE`). It is changed only through helpers that know about both.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{__sk_buff, BPF_F_RECOMPUTE_CSUM, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC},
    helpers::generated::{
        bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_skb_adjust_room, bpf_skb_change_tail,
        bpf_skb_pull_data, bpf_skb_store_bytes,
    },
    programs::TcContext,
};

use super::{Packet, Wire};
use crate::resolve::Resize;

/// `PACKET_HOST` of `linux/if_packet.h`: the frame was for this device's own address.
const PACKET_HOST: u32 = 0;
/// `PACKET_BROADCAST`: the frame was for everybody.
const PACKET_BROADCAST: u32 = 1;
/// `PACKET_MULTICAST`: the frame was for a group.
const PACKET_MULTICAST: u32 = 2;

/// An skb.
pub struct SkbPacket {
    /// The kernel's context.
    pub ctx: TcContext,
}

impl Packet for SkbPacket {
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
        self.ctx.len() as usize
    }

    #[inline(always)]
    fn linearize(&self, len: usize) {
        let whole = self.len();
        let len = if len < whole { len } else { whole };
        if self.start() + len > self.end() {
            // SAFETY: the context is the kernel's own. A failure leaves the packet as it was, and
            // the accessor then finds the bytes missing.
            unsafe { bpf_skb_pull_data(self.raw(), len as u32) };
        }
    }
}

impl Resize for SkbPacket {
    #[inline(always)]
    fn resize(&self, len: usize) -> bool {
        // SAFETY: integers only; the helper checks them against the packet.
        self.len() == len || unsafe { bpf_skb_change_tail(self.raw(), len as u32, 0) == 0 }
    }
}

impl SkbPacket {
    #[inline(always)]
    fn raw(&self) -> *mut __sk_buff {
        self.ctx.as_ptr().cast()
    }

    #[inline(always)]
    fn field<T>(&self, get: impl FnOnce(&__sk_buff) -> T) -> T {
        // SAFETY: the kernel's context outlives the program; fields are read through the
        // verifier's own translation.
        get(unsafe { &*self.raw() })
    }

    /// Whether the frame was sent to this device's own address.
    #[inline(always)]
    pub fn is_for_host(&self) -> bool {
        self.field(|skb| skb.pkt_type) == PACKET_HOST
    }

    /// Whether the frame was sent to everybody or to a group.
    #[inline(always)]
    pub fn is_for_many(&self) -> bool {
        matches!(self.field(|skb| skb.pkt_type), PACKET_BROADCAST | PACKET_MULTICAST)
    }

    /// Whether a VLAN tag travels beside the packet. The VLAN device's own program serves it.
    #[inline(always)]
    pub fn has_vlan_tag(&self) -> bool {
        self.field(|skb| skb.vlan_present) != 0
    }

    /// Interface index of the device whose program runs.
    #[inline(always)]
    pub fn ifindex(&self) -> u32 {
        self.field(|skb| skb.ifindex)
    }

    /// Interface index of the device that the packet came in by, zero if it was made here.
    #[inline(always)]
    pub fn ingress_ifindex(&self) -> u32 {
        self.field(|skb| skb.ingress_ifindex)
    }

    /// Bytes of payload in each packet the device will make of this one; zero if it is one.
    #[inline(always)]
    pub fn gso_size(&self) -> u32 {
        self.field(|skb| skb.gso_size)
    }

    /// Overwrites bytes that a checksum helper has accounted for.
    #[inline(always)]
    pub fn store<T: Wire>(&self, offset: usize, value: &T) -> bool {
        self.store_flags(offset, value, 0)
    }

    /// Overwrites bytes and takes the difference into a device's whole-packet checksum.
    #[inline(always)]
    pub fn store_accounted<T: Wire>(&self, offset: usize, value: &T) -> bool {
        self.store_flags(offset, value, u64::from(BPF_F_RECOMPUTE_CSUM))
    }

    #[inline(always)]
    fn store_flags<T: Wire>(&self, offset: usize, value: &T, flags: u64) -> bool {
        let from = core::ptr::from_ref(value).cast();
        // SAFETY: `value` is readable for its size; the helper checks the offset.
        unsafe {
            bpf_skb_store_bytes(self.raw(), offset as u32, from, size_of::<T>() as u32, flags) == 0
        }
    }

    /// Adds `difference` (a ones' complement sum) to the IPv4 header checksum at `offset`.
    #[inline(always)]
    pub fn l3_checksum(&self, offset: usize, difference: u32) -> bool {
        // SAFETY: integers only; the helper checks the offset.
        unsafe { bpf_l3_csum_replace(self.raw(), offset as u32, 0, u64::from(difference), 0) == 0 }
    }

    /// Adds `difference` to the TCP or UDP checksum at `offset`.
    #[inline(always)]
    pub fn l4_checksum(&self, offset: usize, difference: u32, flags: u64) -> bool {
        // SAFETY: integers only; the helper checks the offset.
        unsafe {
            bpf_l4_csum_replace(self.raw(), offset as u32, 0, u64::from(difference), flags) == 0
        }
    }

    /// Cuts the packet behind `keep` bytes and makes `room` bytes between the link-layer header,
    /// which ends at `l3`, and the rest.
    #[inline(always)]
    pub fn make_room(&self, l3: usize, room: usize, keep: usize) -> bool {
        // SAFETY: integers only; the helpers check them against the packet.
        unsafe {
            bpf_skb_change_tail(self.raw(), (l3 + keep) as u32, 0) == 0
                && bpf_skb_adjust_room(self.raw(), room as i32, BPF_ADJ_ROOM_MAC, 0) == 0
        }
    }
}
