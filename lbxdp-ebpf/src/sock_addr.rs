//! What a socket program is told: `struct bpf_sock_addr`, the address that a system call is about,
//! and `struct bpf_sock`, the socket.
//!
//! The verifier translates each access to a field into one to the kernel's own structures, and
//! knows those of 4 bytes (ports: 2). So each read and write is volatile, which keeps the compiler
//! from joining or splitting them.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{bpf_sock, bpf_sock_addr},
    helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_set_retval},
    programs::{SockAddrContext, SockContext},
};

use crate::{
    family::{Family, V4, V6},
    globals,
};

/// The first three words of an IPv4-mapped address (RFC 4291, 2.5.5.2).
const MAPPED: [u32; 3] = [0, 0, 0xffff_u32.to_be()];

/// An address in a call or in a socket, by what it is rather than by how it is written.
pub enum Known {
    /// IPv4, or IPv4-mapped.
    V4([u8; 4]),
    /// IPv6.
    V6([u8; 16]),
}

impl Known {
    #[inline(always)]
    fn of_words(words: [u32; 4]) -> Self {
        let [a, b, c, d] = words;
        if [a, b, c] == MAPPED {
            return Self::V4(d.to_ne_bytes());
        }
        Self::V6(bytes(words))
    }
}

#[inline(always)]
fn bytes([a, b, c, d]: [u32; 4]) -> [u8; 16] {
    let (a, b, c, d) = (a.to_ne_bytes(), b.to_ne_bytes(), c.to_ne_bytes(), d.to_ne_bytes());
    [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3]]
}

/// How an address is written in a call.
pub trait Form {
    /// What the address is.
    type Family: Family;
    /// Writes an address into the call.
    fn write(call: &Call, addr: &<Self::Family as Family>::Addr);
    /// The address that a socket is bound to; the unspecified one if to none.
    fn bound(sock: &Sock) -> <Self::Family as Family>::Addr;
}

/// IPv4, in a program for `AF_INET`.
pub struct Inet;

/// IPv4-mapped, in a program for `AF_INET6`.
pub struct Mapped;

/// IPv6.
pub struct Inet6;

impl Form for Inet {
    type Family = V4;

    #[inline(always)]
    fn write(call: &Call, addr: &[u8; 4]) {
        let sock_addr = call.ctx.sock_addr;
        // SAFETY: the kernel's own context; the verifier allows the write where it is one.
        unsafe { (&raw mut (*sock_addr).user_ip4).write_volatile(u32::from_ne_bytes(*addr)) };
    }

    #[inline(always)]
    fn bound(sock: &Sock) -> [u8; 4] {
        sock.bound_v4()
    }
}

impl Form for Mapped {
    type Family = V4;

    #[inline(always)]
    fn write(call: &Call, addr: &[u8; 4]) {
        // The words before are what they were: the call's address is mapped.
        call.set_word(3, u32::from_ne_bytes(*addr));
    }

    #[inline(always)]
    fn bound(sock: &Sock) -> [u8; 4] {
        sock.bound_v4()
    }
}

impl Form for Inet6 {
    type Family = V6;

    #[inline(always)]
    fn write(call: &Call, addr: &[u8; 16]) {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *addr;
        call.set_word(0, u32::from_ne_bytes([a, b, c, d]));
        call.set_word(1, u32::from_ne_bytes([e, f, g, h]));
        call.set_word(2, u32::from_ne_bytes([i, j, k, l]));
        call.set_word(3, u32::from_ne_bytes([m, n, o, p]));
    }

    #[inline(always)]
    fn bound(sock: &Sock) -> [u8; 16] {
        sock.bound_v6()
    }
}

/// A system call about an address.
pub struct Call {
    ctx: SockAddrContext,
}

impl Call {
    /// The call that a program was started for.
    #[inline(always)]
    pub const fn new(ctx: SockAddrContext) -> Self {
        Self { ctx }
    }

    #[inline(always)]
    fn field<T>(&self, at: impl FnOnce(*mut bpf_sock_addr) -> *mut T) -> T {
        // SAFETY: `at` names a field of the kernel's own context.
        unsafe { at(self.ctx.sock_addr).read_volatile() }
    }

    /// IANA protocol number; those above 255 (MPTCP) are given as zero.
    #[inline(always)]
    pub fn protocol(&self) -> u8 {
        // SAFETY: only the field's address is taken.
        let protocol = self.field(|call| unsafe { &raw mut (*call).protocol });
        if protocol > 0xff { 0 } else { protocol as u8 }
    }

    /// Port, host order.
    #[inline(always)]
    pub fn port(&self) -> u16 {
        // SAFETY: as above.
        u16::from_be(self.field(|call| unsafe { &raw mut (*call).user_port }) as u16)
    }

    /// The address of a program for `AF_INET`.
    #[inline(always)]
    pub fn v4(&self) -> [u8; 4] {
        // SAFETY: as above.
        self.field(|call| unsafe { &raw mut (*call).user_ip4 }).to_ne_bytes()
    }

    /// The address of a program for `AF_INET6`.
    #[inline(always)]
    pub fn v6(&self) -> Known {
        Known::of_words([self.word(0), self.word(1), self.word(2), self.word(3)])
    }

    #[inline(always)]
    fn word(&self, index: usize) -> u32 {
        // SAFETY: as above; `index` is below 4.
        self.field(|call| unsafe { (&raw mut (*call).user_ip6).cast::<u32>().add(index) })
    }

    #[inline(always)]
    fn set_word(&self, index: usize, word: u32) {
        let sock_addr = self.ctx.sock_addr;
        // SAFETY: the kernel's own context, and `index` is below 4; the verifier allows the write
        // where it is one.
        unsafe {
            (&raw mut (*sock_addr).user_ip6).cast::<u32>().add(index).write_volatile(word);
        }
    }

    /// Makes the call one about this address and port (host order).
    #[inline(always)]
    pub fn rewrite<S: Form>(&self, addr: &<S::Family as Family>::Addr, port: u16) {
        S::write(self, addr);
        let sock_addr = self.ctx.sock_addr;
        // SAFETY: as in `Form::write`.
        unsafe { (&raw mut (*sock_addr).user_port).write_volatile(u32::from(port.to_be())) };
    }

    /// Cookie of the socket.
    #[inline(always)]
    pub fn cookie(&self) -> u64 {
        // SAFETY: the kernel's own context.
        unsafe { bpf_get_socket_cookie(self.ctx.as_ptr()) }
    }

    /// Cookie of the network namespace that the socket is in. Linux 5.7.
    #[inline(always)]
    pub fn netns_cookie(&self) -> u64 {
        // SAFETY: the kernel's own context.
        unsafe { bpf_get_netns_cookie(self.ctx.as_ptr()) }
    }

    /// Whether that is the node's own.
    #[inline(always)]
    pub fn is_of_node(&self) -> bool {
        self.netns_cookie() == globals::node_netns_cookie()
    }

    /// The socket.
    #[inline(always)]
    pub fn sock(&self) -> Sock {
        // SAFETY: only the field's address is taken.
        Sock { sock: self.field(|call| unsafe { &raw mut (*call).__bindgen_anon_1.sk }) }
    }

    /// Says which error the call ends with, where the kernel can be told; `EPERM` elsewhere.
    #[inline(always)]
    pub fn fail(&self, errno: i32) {
        if globals::sets_errno() {
            // SAFETY: an integer only. The helper refuses what is no errno, which these are.
            unsafe { bpf_set_retval(-errno) };
        }
    }
}

/// A socket.
pub struct Sock {
    sock: *mut bpf_sock,
}

impl Sock {
    /// The socket that a program was started for.
    #[inline(always)]
    pub const fn new(ctx: &SockContext) -> Self {
        Self { sock: ctx.sock }
    }

    #[inline(always)]
    fn field<T>(&self, at: impl FnOnce(*mut bpf_sock) -> *mut T) -> T {
        // SAFETY: `at` names a field of a socket that the kernel keeps while the program runs.
        unsafe { at(self.sock).read_volatile() }
    }

    /// Its cookie, if it is what a program was started for.
    #[inline(always)]
    pub fn cookie(&self) -> u64 {
        // SAFETY: the kernel's own context.
        unsafe { bpf_get_socket_cookie(self.sock.cast()) }
    }

    /// IANA protocol number; those above 255 (MPTCP) are given as zero.
    #[inline(always)]
    pub fn protocol(&self) -> u8 {
        // SAFETY: only the field's address is taken.
        let protocol = self.field(|sock| unsafe { &raw mut (*sock).protocol });
        if protocol > 0xff { 0 } else { protocol as u8 }
    }

    /// Whether it is of `AF_INET6`, IPv4-mapped addresses included.
    #[inline(always)]
    pub fn is_inet6(&self) -> bool {
        // SAFETY: as above.
        self.field(|sock| unsafe { &raw mut (*sock).family }) == u32::from(V6::AF)
    }

    /// Whom it is connected to, port in host order.
    #[inline(always)]
    pub fn peer(&self) -> Option<(Known, u16)> {
        // SAFETY: as above.
        let port = u16::from_be(self.field(|sock| unsafe { &raw mut (*sock).dst_port }));
        if port == 0 {
            return None;
        }
        let addr = if self.is_inet6() {
            // SAFETY: as above.
            let word = |index| self.word(index, |sock| unsafe { &raw mut (*sock).dst_ip6 });
            Known::of_words([word(0), word(1), word(2), word(3)])
        } else {
            // SAFETY: as above.
            Known::V4(self.field(|sock| unsafe { &raw mut (*sock).dst_ip4 }).to_ne_bytes())
        };
        Some((addr, port))
    }

    #[inline(always)]
    fn bound_v4(&self) -> [u8; 4] {
        // SAFETY: as above.
        self.field(|sock| unsafe { &raw mut (*sock).src_ip4 }).to_ne_bytes()
    }

    #[inline(always)]
    fn bound_v6(&self) -> [u8; 16] {
        // SAFETY: as above.
        let word = |index| self.word(index, |sock| unsafe { &raw mut (*sock).src_ip6 });
        bytes([word(0), word(1), word(2), word(3)])
    }

    /// A word of the address at `at`; `index` must be below 4.
    #[inline(always)]
    fn word(&self, index: usize, at: impl FnOnce(*mut bpf_sock) -> *mut [u32; 4]) -> u32 {
        // SAFETY: as above.
        self.field(|sock| unsafe { at(sock).cast::<u32>().add(index) })
    }
}
