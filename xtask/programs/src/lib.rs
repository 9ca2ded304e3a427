//! What the benchmark's programs and the benchmark share: what is in their maps.
//!
//! The wrapper sends the same packet through a program again and again. Only the client, or of a
//! reply the backend, differs from one to the next: a *flow* is a number, and [`Flow::of`] says
//! which address and port stand for it.
#![no_std]

/// Bytes of the packet's beginning that the wrapper puts back each time: Ethernet, IPv6 and TCP
/// headers fit.
pub const TEMPLATE: usize = 80;
/// Most flows whose addresses are listed ([`Choice::Listed`]).
pub const MAX_LISTED: usize = 1 << 20;

/// What the wrapper is to do, the one element of the map `config`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// The packet's beginning.
    pub template: [u64; TEMPLATE / 8],
    /// How often the wrapper is run: the second stamp is taken at the beginning of the last time.
    pub repeat: u32,
    /// Length of the frame.
    pub length: u32,
    /// Bytes that the program puts in front of a frame where it changes its length.
    pub pushed: u32,
    /// A [`Choice`] number.
    pub choice: u32,
    /// How many flows there are to choose from.
    pub flows: u32,
    /// Where the flow is written: a [`Place`] number.
    pub place: u32,
    /// The last four bytes of flow 0's address, host order.
    pub address: u32,
    /// Where the flows begin in the map `listed`.
    pub first_listed: u32,
}

/// How the wrapper chooses the flow of a packet.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The template's own.
    One = 0,
    /// Each in turn, from the first after the last; where it stopped is kept in [`State::next`].
    Sequential = 1,
    /// Any (xorshift).
    Random = 2,
    /// As [`Self::Random`], from the map `listed`: a reply's addresses cannot be computed, because
    /// the program under test has chosen its port.
    Listed = 3,
}

/// Where in a packet the flow is.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Source address and source port of an IPv4 packet without options.
    SourceV4 = 0,
    /// Source address (its last four bytes) and source port of an IPv6 packet.
    SourceV6 = 1,
    /// Source address and destination port of an IPv4 packet: a reply's.
    ReplyV4 = 2,
    /// Source address and destination port of an IPv6 packet.
    ReplyV6 = 3,
}

/// Where the generator sends its packets, the one element of the map `traffic`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// IPv4 address of the first Service, host order. The others follow it.
    pub first_service: u32,
    /// How many there are. Each flow has the one of its number, over and over.
    pub services: u32,
    /// Index of the device that transmits.
    pub ifindex: u32,
}

/// What the wrapper knows from one packet to the next, the one element of the map `state`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Packets so far.
    pub iteration: u64,
    /// When the first one began, nanoseconds of `CLOCK_MONOTONIC`.
    pub first: u64,
    /// When the last one began.
    pub last: u64,
    /// The flow that comes next in turn.
    pub next: u64,
    /// The random generator; not zero.
    pub random: u64,
}

/// What stands for a flow in a packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// The last four bytes of the address, host order.
    pub address: u32,
    /// The port, host order.
    pub port: u32,
}

/// The port of flow 0, below those that are given to translated flows.
const FIRST_PORT: u32 = 16_384;

impl Flow {
    /// Flows that share an address, as the connections of one client do.
    pub const PORTS: u32 = 64;

    /// The flow with this number, where `address` is flow 0's.
    #[inline(always)]
    pub const fn of(number: u32, address: u32) -> Self {
        Self {
            address: address.wrapping_add(number / Self::PORTS),
            port: FIRST_PORT + number % Self::PORTS,
        }
    }
}

/// What a reference program knows of a frontend. Everything is as it stands in a packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Frontend {
    /// Destination address.
    pub address: [u8; 4],
    /// Destination port.
    pub port: [u8; 2],
    /// Always zero.
    pub _pad: [u8; 2],
}

/// What a reference program knows of a backend. Everything is as it stands in a packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backend {
    /// Its address.
    pub address: [u8; 4],
    /// Its port.
    pub port: [u8; 2],
    /// Destination and source of the frame to it.
    pub macs: [u8; 12],
    /// Always zero.
    pub _pad: [u8; 2],
}

/// Backends of the reference programs.
pub const BACKENDS: usize = 32;
/// Slots of their ring.
pub const RING: usize = 65_536;
/// Flows in each of their tables.
pub const FLOWS: usize = 262_144;

#[cfg(feature = "user")]
mod pod {
    // SAFETY: integers without padding, so every bit pattern is a value.
    unsafe impl aya::Pod for super::Config {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Traffic {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::State {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Flow {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Frontend {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Backend {}
}

const _: () = {
    assert!(size_of::<Config>() == TEMPLATE + 32);
    assert!(size_of::<Traffic>() == 12);
    assert!(size_of::<State>() == 40);
    assert!(size_of::<Flow>() == 8);
    assert!(size_of::<Frontend>() == 8);
    assert!(size_of::<Backend>() == 20);
};
