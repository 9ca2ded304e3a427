//! Where entries of flows are kept: a table of sets, each with a place for [`WAYS`] entries.
//!
//! A key has two sets. Its entry is in the first, its home, or, while everything there is needed by
//! others, in the second. An entry is a cache line of its own (IPv6: two).
//!
//! Who writes entries whose home is a set holds the lock of that set, and that of the set in which
//! they are: so a key has one entry at the most. Nobody needs a lock to read an entry, which its
//! [`Flow::check`] makes whole or nothing, to change its state, or to remove it: both are one
//! compare-and-exchange of the word that check and state share.

use crate::{Flow, FlowKey, FlowState, Octets, layout};

/// Places in a set.
pub const WAYS: usize = 8;
/// The most entries of a table: 1 GiB for IPv4.
pub const LARGEST_TABLE: u32 = 1 << 24;

/// A place for an entry. IPv6 leaves sixteen bytes unused at the end.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowPlace<A> {
    /// The packets that the entry is for.
    pub key: FlowKey<A>,
    /// What becomes of them.
    pub flow: Flow<A>,
    /// In the first place of a set: who holds the set's lock, as [`lock_of`] says; zero is nobody.
    pub lock: u32,
    /// In the first place of a set: not zero once an entry whose home is this set was put into
    /// another one.
    pub spilled: u32,
}

/// An element of `flows_v4` or `flows_v6`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowSet<A> {
    /// Its places.
    pub places: [FlowPlace<A>; WAYS],
}

/// What an entry of a flow consists of, for [`layout`].
pub struct Entry<A>(core::marker::PhantomData<A>);

impl<A: Octets> layout::Table for Entry<A> {
    type Key = FlowKey<A>;
    type Value = Flow<A>;
    const WAYS: usize = WAYS;
    const STRIDE: usize = size_of::<FlowPlace<A>>();
}

const _: () = {
    assert!(size_of::<FlowSet<[u8; 4]>>() == WAYS * 64);
    assert!(size_of::<FlowSet<[u8; 16]>>() == WAYS * 128);
    assert!(core::mem::offset_of!(FlowPlace<[u8; 4]>, flow) == size_of::<FlowKey<[u8; 4]>>());
    assert!(core::mem::offset_of!(FlowPlace<[u8; 16]>, flow) == size_of::<FlowKey<[u8; 16]>>());
    // What is exchanged as one has to be one.
    assert!(core::mem::offset_of!(FlowPlace<[u8; 4]>, flow.check).is_multiple_of(8));
    assert!(core::mem::offset_of!(FlowPlace<[u8; 16]>, flow.check).is_multiple_of(8));
};

/// The first set of a key with this [`FlowKey::hash`], in a table of `mask + 1` sets.
#[inline(always)]
pub const fn home(hash: u64, mask: u32) -> u32 {
    hash as u32 & mask
}

/// The second set of such a key. It may be the first.
#[inline(always)]
pub const fn second(hash: u64, mask: u32) -> u32 {
    (hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u32 & mask
}

/// Check, state, hook and flags of an entry, as they are exchanged. Zero is no entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(pub u64);

impl Status {
    /// That of an entry.
    #[inline(always)]
    pub const fn of<A>(flow: &Flow<A>) -> Self {
        Self(
            flow.check as u64
                | (flow.state as u64) << 32
                | (flow.hook as u64) << 40
                | (flow.flags as u64) << 48,
        )
    }

    /// See [`Flow::check`].
    #[inline(always)]
    pub const fn check(self) -> u32 {
        self.0 as u32
    }

    /// See [`Flow::state`].
    #[inline(always)]
    pub const fn state(self) -> u8 {
        (self.0 >> 32) as u8
    }

    /// See [`Flow::flags`].
    #[inline(always)]
    pub const fn flags(self) -> u8 {
        (self.0 >> 48) as u8
    }

    /// Whether there is an entry.
    #[inline(always)]
    pub const fn is_some(self) -> bool {
        self.check() != 0
    }

    /// The same after somebody who saw `state` and `flags` in either half. States and flags only go
    /// forwards, so the order in which halves learn does not matter.
    #[inline(always)]
    pub const fn advanced(self, state: u8, flags: u8) -> Self {
        let state = if state > self.state() { state } else { self.state() };
        let flags = self.flags() | flags & Flow::<()>::SHARED;
        Self(self.0 & !0x00ff_00ff_0000_0000 | (state as u64) << 32 | (flags as u64) << 48)
    }

    /// See [`Flow::is_confirmed`].
    #[inline(always)]
    pub const fn is_confirmed(self) -> bool {
        self.flags() & Flow::<()>::ANSWERED != 0
            && (self.state() == FlowState::Established as u8
                || self.state() == FlowState::Datagram as u8)
    }

    /// How readily a place with this entry is given to another flow, at `now`, if its last packet was
    /// at `last_seen`. Zero is not at all; of several, the largest goes first: no entry, one whose
    /// time is over, one whose client or backend has not been heard yet, a datagram's, and last an
    /// established connection's in which nothing was said for [`SILENCE`]. Of equals the oldest.
    #[inline(always)]
    pub const fn spare(self, last_seen: u64, now: u64) -> u64 {
        if !self.is_some() {
            return u64::MAX;
        }
        let idle = now.wrapping_sub(last_seen).cast_signed();
        let idle = if idle < 0 { 0 } else { idle };
        let rank = if idle > FlowState::timeout_ns(self.state()) {
            OVER
        } else if !self.is_confirmed() {
            UNCONFIRMED
        } else if self.state() == FlowState::Datagram as u8 {
            DATAGRAM
        } else if idle >= SILENCE {
            0
        } else {
            return 0;
        };
        let idle = idle.cast_unsigned();
        rank | if idle < DATAGRAM { idle } else { DATAGRAM - 1 }
    }
}

/// The rank of what is over, in [`Status::spare`].
const OVER: u64 = 1 << 62;
/// The rank of what is not confirmed.
const UNCONFIRMED: u64 = 1 << 61;
/// The rank of datagrams.
const DATAGRAM: u64 = 1 << 60;
/// Nanoseconds without a packet after which an established connection makes room for a new one
/// where nothing else does. Longer than any keep-alive that is meant to keep something alive.
pub const SILENCE: i64 = 600_000_000_000;
/// Nanoseconds within which most handshakes are complete: what is this young is only replaced if
/// neither set has anything older.
const HANDSHAKE: u64 = 250_000_000;

/// Places in a set that are needed from which on the emptier one of a key's two is chosen. With a look at the
/// second only where the first has none to spare, two new flows of a thousand find no place in a table that
/// is half full of connections; so, none of a million.
const CROWDED: u32 = 6;

/// What a set has for an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// The [`Status::spare`] of the place that is spared most readily.
    pub spare: u64,
    /// How many places are needed by flows that are confirmed and not over.
    pub needed: u32,
}

impl Room {
    /// Whether an entry with this [`Status::spare`] needs its place.
    #[inline(always)]
    pub const fn is_needed(spare: u64) -> bool {
        spare < UNCONFIRMED
    }

    /// Whether this is so good that the second set need not be looked at.
    #[inline(always)]
    pub const fn is_ample(&self) -> bool {
        self.needed < CROWDED && self.spare >= UNCONFIRMED | HANDSHAKE
    }

    /// Whether a key whose home this is takes a place of its second set.
    #[inline(always)]
    pub const fn is_worse_than(&self, second: &Self) -> bool {
        if self.needed >= CROWDED && self.needed != second.needed {
            second.needed < self.needed
        } else {
            second.spare > self.spare
        }
    }
}

/// What stands in a lock that was taken at `now`. It says when, because somebody in user space may
/// have ended while he held it.
#[inline(always)]
pub const fn lock_of(now: u64) -> u32 {
    (now >> 29) as u32 | 1
}

/// Whether a lock that was found may be taken from who holds it: he has had it for two seconds, and
/// ends for sure.
#[inline(always)]
pub const fn is_forsaken(lock: u32, now: u64) -> bool {
    let age = lock_of(now).wrapping_sub(lock).cast_signed();
    age > 4 || age < -4
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Hook;

    const SECOND: u64 = 1_000_000_000;
    const NOW: u64 = 1_000_000 * SECOND;
    const ANSWERED: u8 = Flow::<()>::ANSWERED;

    fn key(number: u32) -> FlowKey<[u8; 4]> {
        FlowKey {
            src: number.to_be_bytes(),
            dst: [10, 96, 0, 1],
            src_port: 1_000,
            dst_port: 80,
            protocol: crate::IPPROTO_TCP,
            _pad: [0; 3],
        }
    }

    fn flow() -> Flow<[u8; 4]> {
        Flow {
            src: [192, 0, 2, 1],
            dst: [10, 0, 0, 2],
            src_port: 61_000,
            dst_port: 8_080,
            frontend: 3,
            check: 0,
            state: FlowState::Syn as u8,
            hook: Hook::Ingress as u8,
            flags: Flow::<()>::LOCAL,
            _pad: 0,
            last_seen: NOW,
            backend: 4,
            _pad2: 0,
        }
    }

    fn status(state: FlowState, flags: u8) -> Status {
        Status::of(&Flow { check: 1, state: state as u8, flags, ..flow() })
    }

    #[test]
    fn a_check_is_of_the_key_and_of_everything_that_stays() {
        let check = |key: FlowKey<[u8; 4]>, flow: Flow<[u8; 4]>| FlowKey::check(key.hash(), &flow);
        let of = check(key(1), flow());
        assert_ne!(of, 0);
        for other in [
            Flow { src: [192, 0, 2, 2], ..flow() },
            Flow { dst: [10, 0, 0, 3], ..flow() },
            Flow { src_port: 61_001, ..flow() },
            Flow { dst_port: 8_081, ..flow() },
            Flow { frontend: 4, ..flow() },
            Flow { backend: 5, ..flow() },
            Flow { hook: Hook::Egress as u8, ..flow() },
            Flow { flags: 0, ..flow() },
            Flow { flags: Flow::<()>::LOCAL | Flow::<()>::REPLY, ..flow() },
        ] {
            assert_ne!(of, check(key(1), other), "{other:?}");
        }
        assert_ne!(of, check(key(2), flow()));
        for same in [
            Flow { state: FlowState::Closing as u8, ..flow() },
            Flow { flags: Flow::<()>::LOCAL | ANSWERED | Flow::<()>::CLIENT_FIN, ..flow() },
            Flow { last_seen: 0, ..flow() },
            Flow { check: 77, ..flow() },
        ] {
            assert_eq!(of, check(key(1), same), "{same:?}");
        }
    }

    /// Any mixture of two entries, word by word, is neither.
    #[test]
    fn what_was_written_by_halves_fits_no_check() {
        for number in 0..2_000 {
            let mut one = flow();
            one.check = FlowKey::check(key(number).hash(), &one);
            let mut other =
                Flow { src_port: 61_000 + number as u16, dst: number.to_be_bytes(), ..flow() };
            other.flags = Flow::<()>::REPLY;
            other.check = FlowKey::check(key(number + 1).hash(), &other);
            for mixed in [
                Flow { src: one.src, dst: one.dst, ..other },
                Flow { src_port: one.src_port, dst_port: one.dst_port, ..other },
                Flow { check: one.check, flags: one.flags, ..other },
                other,
            ] {
                let check = FlowKey::check(key(number).hash(), &mixed);
                let is_whole = FlowKey::check(key(number).hash(), &one) == check;
                assert!(check != mixed.check || is_whole, "{number} {mixed:?}");
            }
        }
    }

    #[test]
    fn keys_spread_over_both_choices() {
        const MASK: u32 = 1_023;
        const KEYS: u32 = 64 * (MASK + 1);
        let mut counts = [[0_u32; MASK as usize + 1]; 2];
        for number in 0..KEYS {
            let hash = key(number).hash();
            counts[0][home(hash, MASK) as usize] += 1;
            counts[1][second(hash, MASK) as usize] += 1;
        }
        for choice in counts {
            // Sixty-four on average; six standard deviations either way.
            assert!(choice.iter().all(|count| (16..112).contains(count)), "{choice:?}");
        }
        let same = (0..KEYS)
            .filter(|number| {
                let hash = key(*number).hash();
                home(hash, MASK) == second(hash, MASK)
            })
            .count();
        assert!(same < 128, "{same} keys have one choice");
    }

    /// 60,000 connections in a table of 262,144 places, by the rules that programs follow.
    #[test]
    fn two_choices_leave_few_without_a_place() {
        const MASK: u32 = 32_767;
        let mut needed = [0_u8; MASK as usize + 1];
        let room = |needed: u8| {
            let spare = if usize::from(needed) < WAYS { u64::MAX } else { 0 };
            Room { spare, needed: needed.into() }
        };
        let (mut lost, mut elsewhere) = (0, 0);
        for number in 0..120_000 {
            let hash = key(number).hash();
            let (home, second) = (home(hash, MASK) as usize, second(hash, MASK) as usize);
            let (here, there) = (room(needed[home]), room(needed[second]));
            let chosen = if !here.is_ample() && here.is_worse_than(&there) { second } else { home };
            elsewhere += u32::from(chosen != home);
            if room(needed[chosen]).spare == 0 {
                lost += 1;
            } else {
                needed[chosen] += 1;
            }
        }
        assert_eq!(lost, 0, "of 120,000");
        assert!((2_000..8_000).contains(&elsewhere), "{elsewhere}");
    }

    #[test]
    fn a_status_is_the_bytes_of_its_entry() {
        let mut flow = Flow { check: 0x0403_0201, flags: 0x55, ..flow() };
        flow.state = FlowState::Established as u8;
        let status = Status::of(&flow);
        assert_eq!(status.0.to_le_bytes(), [1, 2, 3, 4, 2, 1, 0x55, 0]);
        assert_eq!(
            (status.check(), status.state(), status.flags(), status.is_confirmed()),
            (flow.check, flow.state, flow.flags, flow.is_confirmed())
        );
    }

    #[test]
    fn both_orders_of_two_advances_end_alike() {
        let begun = status(FlowState::Established, Flow::<()>::REPLY | ANSWERED);
        let (client, backend) = (Flow::<()>::CLIENT_FIN, Flow::<()>::BACKEND_FIN);
        let (closing, established) = (FlowState::Closing as u8, FlowState::Established as u8);
        let one = begun.advanced(established, client).advanced(closing, backend);
        let other = begun.advanced(closing, backend).advanced(established, client);
        assert_eq!(one, other);
        assert_eq!(one.state(), closing);
        assert_eq!(one.flags(), Flow::<()>::REPLY | ANSWERED | client | backend);
        assert_eq!(one.check(), begun.check());
        // The direction is the half's own.
        assert_eq!(begun.advanced(established, 0).flags(), begun.flags());
        assert_eq!(status(FlowState::Syn, 0).advanced(established, Flow::<()>::REPLY).flags(), 0);
    }

    #[test]
    fn room_is_made_where_it_hurts_least() {
        use FlowState::{Closing, Datagram, Established, Syn};
        let ago = |seconds: u64| NOW - seconds * SECOND;
        let order = [
            (Status(0), 0),
            (status(Established, ANSWERED), 8_001),
            (status(Closing, ANSWERED), 11),
            (status(Datagram, 0), 50),
            (status(Syn, ANSWERED), 40),
            // Nobody has answered what looks like the middle of a connection.
            (status(Established, 0), 30),
            (status(Syn, 0), 20),
            (status(Closing, ANSWERED), 5),
            (status(Datagram, ANSWERED), 50),
            (status(Datagram, ANSWERED), 0),
            (status(Established, ANSWERED), 7_000),
            (status(Established, ANSWERED), 600),
            (status(Established, ANSWERED), 599),
        ];
        let spare = order.map(|(status, age)| status.spare(ago(age), NOW));
        for (index, pair) in spare.windows(2).enumerate() {
            assert!(pair[0] > pair[1], "{:?} before {:?}", order[index], order[index + 1]);
        }
        assert_eq!(spare.last(), Some(&0), "never");
        let needed = spare.map(Room::is_needed);
        assert_eq!(needed.iter().position(|needed| *needed), Some(8), "what is confirmed");
        assert!(needed[8..].iter().all(|needed| *needed));
        let room = |spare: u64, needed: u32| Room { spare, needed };
        let (old, young) = (status(Syn, 0).spare(ago(1), NOW), status(Syn, 0).spare(NOW, NOW));
        assert!(room(old, 5).is_ample());
        assert!(!room(young, 5).is_ample(), "a handshake may be under way");
        assert!(!room(u64::MAX, 6).is_ample(), "crowded");
        assert!(room(young, 4).is_worse_than(&room(old, 5)));
        assert!(room(u64::MAX, 6).is_worse_than(&room(old, 5)));
        assert!(!room(old, 6).is_worse_than(&room(0, 8)));
        assert!(room(young, 6).is_worse_than(&room(old, 6)));
        assert!(!room(old, 6).is_worse_than(&room(old, 6)), "home");
        // A clock of another processor may be ahead.
        assert_eq!(status(Established, ANSWERED).spare(NOW + SECOND, NOW), 0);
    }

    #[test]
    fn a_lock_is_not_held_for_ever() {
        let lock = lock_of(NOW);
        assert_ne!(lock, 0);
        assert_ne!(lock_of(0), 0);
        for (age, forsaken) in [(0, false), (SECOND, false), (4 * SECOND, true)] {
            assert_eq!(is_forsaken(lock, NOW + age), forsaken, "{age}");
        }
        assert!(is_forsaken(lock_of(NOW), 0), "from before the machine was started again");
    }
}
