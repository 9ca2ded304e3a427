//! Packet bytes: the one unsafe accessor, and the contexts it works on.

use core::mem::MaybeUninit;

pub mod sent;
pub mod skb;
#[cfg(test)]
pub mod slice;
pub mod xdp;

/// A packet whose bytes between `start` and `end` can be read in place.
pub trait Packet {
    /// Address of the first byte.
    fn start(&self) -> usize;

    /// Address behind the last byte that can be read in place. More may follow (fragments of an
    /// skb or of an XDP frame): this end is not the packet's end.
    fn end(&self) -> usize;

    /// Bytes of the whole packet, or, where that cannot be told, those that can be read in place.
    fn len(&self) -> usize;

    /// Asks for the first `len` bytes, or as many as the packet has, to be readable in place.
    fn linearize(&self, len: usize);
}

/// Bytes that can be read in place.
#[inline(always)]
pub fn readable<P: Packet>(packet: &P) -> usize {
    // Left to itself the compiler narrows the subtraction to 32 bits, which the verifier does not
    // allow with pointers.
    core::hint::black_box(packet.end() - packet.start())
}

/// A header, valid for any bytes. Its fields are in network order.
///
/// # Safety
///
/// The type must be `repr(C)` without padding and valid for every bit pattern.
pub unsafe trait Wire: Copy {}

// SAFETY: an array of bytes.
unsafe impl<const N: usize> Wire for [u8; N] {}
// SAFETY: `repr(C)` of bytes and byte arrays.
unsafe impl Wire for network_types::ip::Ipv4Hdr {}
// SAFETY: as above.
unsafe impl Wire for network_types::ip::Ipv6Hdr {}
// SAFETY: as above.
unsafe impl Wire for network_types::vlan::VlanHdr {}
// SAFETY: as above.
unsafe impl Wire for network_types::udp::UdpHdr {}

/// Source and destination address as they stand side by side in both IP headers.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Pair<A> {
    /// Source.
    pub src: A,
    /// Destination.
    pub dst: A,
}

// SAFETY: two byte arrays.
unsafe impl<A: Wire> Wire for Pair<A> {}

/// The one place that turns an offset into a pointer: the comparison is what the verifier wants
/// to see before it lets the program touch `T`. The offset must be one that it can bound.
#[inline(always)]
fn locate<T: Wire, P: Packet>(packet: &P, offset: usize) -> Option<*mut T> {
    let at = packet.start() + offset;
    if at + size_of::<T>() > packet.end() {
        return None;
    }
    Some(at as *mut T)
}

/// Copies a header out of the packet; `None` where the bytes are not there.
#[inline(always)]
pub fn read<T: Wire, P: Packet>(packet: &P, offset: usize) -> Option<T> {
    let at = locate::<T, P>(packet, offset)?;
    // SAFETY: `locate` found `size_of::<T>()` bytes there, `T` is valid for any of them, and
    // nothing else holds a reference into the packet: references never leave this module.
    Some(unsafe { at.read_unaligned() })
}

/// Bytes that begin at a multiple of eight: on the stack the verifier wants words aligned, and a key
/// of a map may be there.
#[repr(C, align(8))]
pub struct Aligned<T>(pub T);

/// A word at any address.
#[repr(C, packed)]
#[derive(Clone, Copy)]
struct Word(u64);

/// Copies what consists of words out of the packet, word by word: left to itself, the compiler
/// moves bytes of a type that is not aligned one at a time. `None` where the bytes are not there.
#[inline(always)]
pub fn read_words<T: Wire, P: Packet>(packet: &P, offset: usize) -> Option<Aligned<T>> {
    const { assert!(size_of::<T>().is_multiple_of(8)) };
    let from = locate::<T, P>(packet, offset)?.cast::<Word>().cast_const();
    let mut copy = Aligned(MaybeUninit::<T>::uninit());
    let to = copy.0.as_mut_ptr().cast::<u64>();
    for word in 0..size_of::<T>() / 8 {
        // SAFETY: as in `read`, for each word. Volatile, or the words became bytes again.
        unsafe { to.add(word).write(from.add(word).read_volatile().0) };
    }
    // SAFETY: every word was written, and `T` is valid for any of them.
    Some(Aligned(unsafe { copy.0.assume_init() }))
}

/// Copies a header into the packet; `false` where there is no room for it.
///
/// Only for XDP frames: an skb is changed through helpers, which keep its checksum state.
#[inline(always)]
pub fn write<T: Wire>(packet: &xdp::XdpPacket, offset: usize, value: T) -> bool {
    let Some(at) = locate::<T, _>(packet, offset) else { return false };
    // SAFETY: as in `read`; an XDP frame is this program's alone.
    unsafe { at.write_unaligned(value) };
    true
}
