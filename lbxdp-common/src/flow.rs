//! Flows: one entry for each direction of a translated connection.

use crate::{Octets, layout};

/// A packet's addresses and ports as it arrives, the key of an entry of `flows_v4` and `flows_v6`.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FlowKey<A> {
    /// Source address, network order.
    pub src: A,
    /// Destination address, network order.
    pub dst: A,
    /// Source port, host order.
    pub src_port: u16,
    /// Destination port, host order.
    pub dst_port: u16,
    /// IANA protocol number.
    pub protocol: u8,
    /// Always zero.
    pub _pad: [u8; 3],
}

impl<A> FlowKey<A> {
    /// Says which protocol it is. One store: bytes one by one would be a call for the compiler of
    /// the packet programs.
    #[inline(always)]
    pub fn set_protocol(&mut self, protocol: u8) {
        let word = (&raw mut self.protocol).cast::<[u8; 4]>().cast::<u32>();
        // SAFETY: the number and the three bytes behind it, which begin at a multiple of four.
        unsafe { word.write(u32::from_ne_bytes([protocol, 0, 0, 0])) };
    }
}

/// Where an entry may be used. A packet that meets an entry at another hook passes untouched, so
/// that a reply forged outside the node cannot borrow the translation of a local backend's.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// XDP or tc ingress: packets that come from outside the node.
    Ingress = 1,
    /// tc egress: packets that leave the node.
    Egress = 2,
    /// tc ingress of a pod's device: packets that a pod sends.
    PodIngress = 3,
    /// tc egress of a pod's device: packets that a pod receives.
    PodEgress = 4,
}

impl Hook {
    /// The hook with this number.
    #[inline(always)]
    pub const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Ingress,
            2 => Self::Egress,
            3 => Self::PodIngress,
            4 => Self::PodEgress,
            _ => return None,
        })
    }
}

/// Life of a flow; both entries carry the same.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowState {
    /// TCP, the client's handshake is not complete.
    Syn = 1,
    /// TCP, established.
    Established = 2,
    /// TCP, both sides sent FIN or one sent RST.
    Closing = 3,
    /// UDP.
    Datagram = 4,
}

impl FlowState {
    /// Nanoseconds without a packet after which a flow in this state is over.
    #[inline(always)]
    pub const fn timeout_ns(state: u8) -> i64 {
        const SECOND: i64 = 1_000_000_000;
        if state == Self::Established as u8 {
            8_000 * SECOND
        } else if state == Self::Closing as u8 {
            10 * SECOND
        } else {
            60 * SECOND
        }
    }

    /// The name users see.
    pub const fn name(state: u8) -> &'static str {
        match state {
            1 => "SYN",
            2 => "ESTABLISHED",
            3 => "CLOSING",
            4 => "DATAGRAM",
            _ => "UNKNOWN",
        }
    }
}

/// What a packet of the key becomes, the value of an entry of `flows_v4` and `flows_v6`.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow<A> {
    /// Last packet of either direction, as below.
    #[cfg(feature = "next-layout")]
    pub last_seen: u64,
    /// Source address after translation, network order.
    pub src: A,
    /// Destination address after translation, network order.
    pub dst: A,
    /// Source port after translation, host order.
    pub src_port: u16,
    /// Destination port after translation, host order.
    pub dst_port: u16,
    /// Frontend id, for statistics.
    pub frontend: u32,
    /// A [`FlowKey::check`] of the key and everything here that does not change; zero is an entry
    /// that is none. With the four bytes behind it one word, which changes at once.
    pub check: u32,
    /// A [`FlowState`] number.
    pub state: u8,
    /// A [`Hook`] number: where this entry is valid.
    pub hook: u8,
    /// Union of the constants of this type.
    pub flags: u8,
    /// Always zero.
    pub _pad: u8,
    /// Last packet of either direction, nanoseconds of `CLOCK_MONOTONIC_COARSE`; refreshed at
    /// most once a second.
    #[cfg(not(feature = "next-layout"))]
    pub last_seen: u64,
    /// Backend id that was chosen.
    pub backend: u32,
    /// Always zero.
    pub _pad2: u32,
}

impl<A> Flow<A> {
    /// The entry translates replies, towards the client.
    pub const REPLY: u8 = 1;
    /// The backend is on this node: the translated packet goes up the stack.
    pub const LOCAL: u8 = 1 << 1;
    /// The client has sent FIN.
    pub const CLIENT_FIN: u8 = 1 << 2;
    /// The backend has sent FIN.
    pub const BACKEND_FIN: u8 = 1 << 3;
    /// The backend has answered.
    pub const ANSWERED: u8 = 1 << 4;
    /// The stack translates the flow, and had it before the programs came: its packets are left
    /// alone, at every hook. Both entries are made by the agent, which has them from conntrack, and
    /// keep others off the source port that the stack uses.
    pub const FOREIGN: u8 = 1 << 5;
    /// Flags that both entries of a flow share.
    pub const SHARED: u8 =
        Self::LOCAL | Self::CLIENT_FIN | Self::BACKEND_FIN | Self::ANSWERED | Self::FOREIGN;
    /// Flags that an entry keeps for its life.
    pub const FIXED: u8 = Self::REPLY | Self::LOCAL | Self::FOREIGN;

    /// Whether any of `flags` is set.
    #[inline(always)]
    pub const fn has(&self, flags: u8) -> bool {
        self.flags & flags != 0
    }

    /// Nanoseconds since the last packet at `now` (the clock of `last_seen`); negative where
    /// another CPU has seen one since `now` was read.
    #[inline(always)]
    pub const fn idle_ns(&self, now: u64) -> i64 {
        now.wrapping_sub(self.last_seen).cast_signed()
    }

    /// Whether this is the half that clients' packets meet, of a flow that is not over at `now`:
    /// the half by which flows are listed and counted.
    #[inline(always)]
    pub const fn is_live_request(&self, now: u64) -> bool {
        !self.has(Self::REPLY) && !self.expired(now)
    }

    /// Whether both sides have spoken and neither has ended it: the client has completed its
    /// handshake, or the backend has answered a datagram.
    #[inline(always)]
    pub const fn is_confirmed(&self) -> bool {
        self.has(Self::ANSWERED)
            && (self.state == FlowState::Established as u8
                || self.state == FlowState::Datagram as u8)
    }

    /// Whether the flow was over at `now`.
    #[inline(always)]
    pub const fn expired(&self, now: u64) -> bool {
        self.idle_ns(now) > FlowState::timeout_ns(self.state)
    }
}

impl<A: Octets> Flow<A> {
    /// The key of the opposite direction: the reply to what a packet of `key` became.
    #[inline(always)]
    pub fn sibling_key(&self, key: &FlowKey<A>) -> FlowKey<A> {
        FlowKey {
            src: self.dst,
            dst: self.src,
            src_port: self.dst_port,
            dst_port: self.src_port,
            protocol: key.protocol,
            _pad: [0; 3],
        }
    }

    /// Where the opposite direction of this entry, found under `key`, is valid: a flow that goes
    /// through the stack is translated in and out of one device, one that turns round at its
    /// device only on the way in.
    #[inline(always)]
    pub fn opposite_hook(&self, key: &FlowKey<A>) -> Hook {
        match Hook::from_number(self.hook) {
            Some(Hook::Ingress) if self.has(Self::LOCAL) => Hook::Egress,
            Some(Hook::Ingress | Hook::Egress) | None => Hook::Ingress,
            Some(Hook::PodIngress) if self.goes_back(key) => Hook::PodIngress,
            Some(Hook::PodIngress) => Hook::PodEgress,
            Some(Hook::PodEgress) => Hook::PodIngress,
        }
    }

    /// Whether a packet of `key` goes back to where it came from: a backend calls itself.
    #[inline(always)]
    pub fn goes_back(&self, key: &FlowKey<A>) -> bool {
        self.dst == key.src
    }

    /// Whether `self`, found under the sibling key of `key`, really undoes the translation of
    /// `key`, and is not an entry that another flow put there since.
    #[inline(always)]
    pub fn undoes(&self, key: &FlowKey<A>) -> bool {
        self.src == key.dst
            && self.dst == key.src
            && self.src_port == key.dst_port
            && self.dst_port == key.src_port
    }
}

/// The finaliser of MurmurHash3: every input bit reaches every output bit.
#[inline(always)]
pub(crate) const fn mix(mut word: u64) -> u64 {
    word ^= word >> 33;
    word = word.wrapping_mul(0xff51_afd7_ed55_8ccd);
    word ^= word >> 33;
    word = word.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    word ^ (word >> 33)
}

impl<A: Octets> FlowKey<A> {
    /// Hash of a packet. It has no seed, so that it is the same on each node and after each start.
    #[inline(always)]
    pub fn hash(&self) -> u64 {
        let ports =
            (self.src_port as u64) << 48 | (self.dst_port as u64) << 32 | self.protocol as u64;
        mix(mix(self.src.fold().wrapping_add(ports)).wrapping_add(self.dst.fold()))
    }

    /// What [`Flow::check`] has to be for an entry of the key with this [`FlowKey::hash`]. Never zero.
    ///
    /// An entry is read while others write: one that was read half before and half after it was
    /// written fits its check by chance only, once in two thousand millions.
    #[inline(always)]
    pub fn check(hash: u64, flow: &Flow<A>) -> u32 {
        // Odd numbers without pattern, one for each word: the products do not wait for each other.
        const SRC: u64 = 0x9e37_79b9_7f4a_7c15;
        const DST: u64 = 0xbf58_476d_1ce4_e5b9;
        const PORTS: u64 = 0x94d0_49bb_1331_11eb;
        const REST: u64 = 0xd6e8_feb8_6659_fd93;
        let ports =
            (flow.src_port as u64) << 48 | (flow.dst_port as u64) << 32 | flow.frontend as u64;
        let rest = (flow.backend as u64) << 32
            | (flow.hook as u64) << 8
            | (flow.flags & Flow::<A>::FIXED) as u64;
        let mut word = hash
            .wrapping_add(flow.src.fold().wrapping_mul(SRC))
            .wrapping_add(flow.dst.fold().wrapping_mul(DST))
            .wrapping_add(ports.wrapping_mul(PORTS))
            .wrapping_add(rest.wrapping_mul(REST));
        word ^= word >> 32;
        word = word.wrapping_mul(SRC);
        (word >> 32) as u32 | 1
    }
}

/// Hash of a packet for the choice of a slot: any node makes the same choice, so a flow survives the
/// loss of the node it entered by.
#[inline(always)]
pub fn flow_hash<A: Octets>(key: &FlowKey<A>) -> u32 {
    (key.hash() >> 32) as u32
}

layout::record! { FlowKey<A> { src, dst, src_port, dst_port, protocol, _pad } }
layout::record! {
    Flow<A> {
        src, dst, src_port, dst_port, frontend, check, state, hook, flags, _pad, last_seen, backend,
        _pad2,
    }
}

const _: () = {
    assert!(size_of::<FlowKey<[u8; 4]>>() == 16);
    assert!(size_of::<FlowKey<[u8; 16]>>() == 40);
    assert!(size_of::<Flow<[u8; 4]>>() == 40);
    assert!(size_of::<Flow<[u8; 16]>>() == 64);
};

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: [u8; 4] = [10, 0, 0, 1];
    const FRONTEND: [u8; 4] = [10, 96, 0, 1];
    const BACKEND: [u8; 4] = [10, 0, 0, 2];

    /// The entry of a request to `backend` that arrived at `hook`, and its key.
    fn request(hook: Hook, backend: [u8; 4], flags: u8) -> (FlowKey<[u8; 4]>, Flow<[u8; 4]>) {
        let key = FlowKey {
            src: CLIENT,
            dst: FRONTEND,
            src_port: 1_000,
            dst_port: 80,
            protocol: crate::IPPROTO_TCP,
            _pad: [0; 3],
        };
        let flow = Flow {
            src: if backend == CLIENT { FRONTEND } else { CLIENT },
            dst: backend,
            src_port: 2_000,
            dst_port: 8_080,
            frontend: 1,
            check: 0,
            state: FlowState::Syn as u8,
            hook: hook as u8,
            flags,
            _pad: 0,
            last_seen: 0,
            backend: 1,
            _pad2: 0,
        };
        (key, flow)
    }

    #[test]
    fn each_hook_has_its_opposite() {
        let local = Flow::<[u8; 4]>::LOCAL;
        for (hook, backend, flags, opposite) in [
            (Hook::Ingress, BACKEND, 0, Hook::Ingress),
            (Hook::Ingress, BACKEND, local, Hook::Egress),
            (Hook::Ingress, CLIENT, local, Hook::Egress),
            (Hook::PodIngress, BACKEND, 0, Hook::PodEgress),
            (Hook::PodIngress, BACKEND, local, Hook::PodEgress),
            (Hook::PodIngress, CLIENT, local, Hook::PodIngress),
        ] {
            let (key, flow) = request(hook, backend, flags);
            assert_eq!(flow.opposite_hook(&key), opposite, "{hook:?} {backend:?} {flags}");
            let reply_key = flow.sibling_key(&key);
            let reply = Flow {
                src: key.dst,
                dst: key.src,
                src_port: key.dst_port,
                dst_port: key.src_port,
                hook: opposite as u8,
                flags: flags | Flow::<[u8; 4]>::REPLY,
                ..flow
            };
            assert!(reply.undoes(&key));
            assert_eq!(reply.opposite_hook(&reply_key), hook, "{opposite:?} back");
            assert_eq!(Hook::from_number(hook as u8), Some(hook));
        }
    }
}
