//! The packet as a socket of a cgroup sends it: an skb that begins with its IP header, and that
//! cannot be changed.

use aya_ebpf::{
    bindings::__sk_buff, helpers::generated::bpf_get_socket_cookie, programs::SkBuffContext,
};

use super::Packet;

/// An skb on its way from a socket.
pub struct SentPacket {
    /// The kernel's context.
    pub ctx: SkBuffContext,
}

impl Packet for SentPacket {
    #[inline(always)]
    fn start(&self) -> usize {
        self.field(|skb| skb.data) as usize
    }

    #[inline(always)]
    fn end(&self) -> usize {
        self.field(|skb| skb.data_end) as usize
    }

    #[inline(always)]
    fn len(&self) -> usize {
        self.field(|skb| skb.len) as usize
    }

    /// Nothing: the kernel has no helper for it here, and has the headers that it has just made
    /// at the start.
    #[inline(always)]
    fn linearize(&self, _len: usize) {}
}

impl SentPacket {
    #[inline(always)]
    fn raw(&self) -> *mut __sk_buff {
        self.ctx.skb.skb
    }

    #[inline(always)]
    fn field<T>(&self, get: impl FnOnce(&__sk_buff) -> T) -> T {
        // SAFETY: the kernel's context outlives the program; fields are read through the
        // verifier's own translation.
        get(unsafe { &*self.raw() })
    }

    /// EtherType of the packet.
    #[inline(always)]
    pub fn protocol(&self) -> u16 {
        u16::from_be(self.field(|skb| skb.protocol) as u16)
    }

    /// Cookie of the socket.
    #[inline(always)]
    pub fn cookie(&self) -> u64 {
        // SAFETY: the kernel's own context.
        unsafe { bpf_get_socket_cookie(self.raw().cast()) }
    }
}
