//! The table that holds flows: entries are found, read, changed, entered and ended, by the rules of
//! [`lbxdp_common::flow_set`].

use lbxdp_common::{
    Flow, FlowKey,
    flow_set::{self, FlowPlace, FlowSet, Room, Status, WAYS},
};

use super::atomic;
use crate::{family::Family, globals, work::Work};

/// How often a lock or a word that others change is tried. They hold it for some hundred
/// nanoseconds.
const TRIES: u32 = 32;
/// The same for a status: others change it a few times in the life of a flow.
const STATUS_TRIES: u32 = 4;

/// What became of an entry that was to be put into the table.
#[derive(Clone, Copy)]
pub struct Entered(pub(super) u64);

impl Entered {
    /// The entry's number: its set, and its place there.
    const NUMBER: u64 = 0xffff_ffff;
    /// An entry of the same flow was there.
    const WAS_MINE: u64 = 1 << 32;
    /// An entry was there whose time was over.
    const WAS_OVER: u64 = 1 << 33;
    /// A live flow has the key.
    const TAKEN: u64 = 1 << 62;
    /// The sets of the key are full of what is needed.
    pub(super) const NO_ROOM: u64 = 1 << 63;

    /// Whether the entry is in the table.
    #[inline(always)]
    pub fn is_there(self) -> bool {
        self.0 & (Self::TAKEN | Self::NO_ROOM) == 0
    }

    /// Whether another flow, a live one, has the key.
    #[inline(always)]
    pub fn is_taken(self) -> bool {
        self.0 & Self::TAKEN != 0
    }

    /// Whether an entry of the same flow was replaced.
    #[inline(always)]
    pub fn was_mine(self) -> bool {
        self.0 & Self::WAS_MINE != 0
    }

    /// Whether an entry of the same key was replaced whose time was over.
    #[inline(always)]
    pub fn was_over(self) -> bool {
        self.0 & Self::WAS_OVER != 0
    }
}

#[inline(always)]
fn place<A>(set: *mut FlowSet<A>, way: u32) -> *mut FlowPlace<A> {
    set.cast::<FlowPlace<A>>().wrapping_add(way as usize)
}

#[inline(always)]
fn status_word<A>(place: *mut FlowPlace<A>) -> *mut u64 {
    // SAFETY: a place of a set of the map; only the address is taken.
    unsafe { (&raw mut (*place).flow.check).cast() }
}

/// What the entry in a place is at this moment.
#[inline(always)]
pub fn status<A>(place: *mut FlowPlace<A>) -> Status {
    // SAFETY: a place of a set of the map. Others write it, so it is read as it is.
    Status(unsafe { status_word(place).read_volatile() })
}

/// Copies words that others may write meanwhile.
///
/// # Safety
/// Both are of `count` words.
#[inline(always)]
unsafe fn copy(from: *const u64, to: *mut u64, count: usize) {
    for word in 0..count {
        // SAFETY: as the caller says.
        unsafe { to.add(word).write_volatile(from.add(word).read_volatile()) };
    }
}

/// Passes a number through memory. The verifier then knows nothing of it, and follows once what it
/// would follow for each value.
#[inline(always)]
fn forget<T: Copy>(value: T, room: &mut T) -> T {
    // SAFETY: a reference.
    unsafe {
        core::ptr::write_volatile(room, value);
        core::ptr::read_volatile(room)
    }
}

/// The way of a set that has an entry of this key; [`WAYS`] if none has.
#[inline(always)]
fn way_of<A>(set: *mut FlowSet<A>, key: &FlowKey<A>, room: &mut u32) -> u32 {
    const { assert!(size_of::<FlowKey<A>>().is_multiple_of(8)) };
    let wanted: *const u64 = (&raw const *key).cast();
    let mut way = WAYS as u32;
    for candidate in 0..WAYS as u32 {
        let place = place(set, candidate);
        let mut differs = 0;
        for word in 0..size_of::<FlowKey<A>>() / 8 {
            // SAFETY: both are keys of that many words. What is wanted is read each time, or it would
            // take half of the stack.
            differs |= unsafe {
                place.cast::<u64>().add(word).read_volatile() ^ wanted.add(word).read_volatile()
            };
        }
        if differs == 0 && status(place).is_some() {
            way = candidate;
            break;
        }
    }
    forget(way, room)
}

/// The entry of a key with this hash.
#[inline(always)]
pub fn find<F: Family>(
    key: &FlowKey<F::Addr>,
    hash: u64,
    room: &mut u32,
) -> Option<*mut FlowPlace<F::Addr>> {
    let mask = globals::flow_mask();
    let set = F::flow_map().get_ptr_mut(flow_set::home(hash, mask))?;
    let way = way_of(set, key, room);
    if way < WAYS as u32 {
        return Some(place(set, way));
    }
    // SAFETY: a set of the map.
    if unsafe { (&raw const (*place(set, 0)).spilled).read_volatile() } == 0 {
        return None;
    }
    let set = F::flow_map().get_ptr_mut(flow_set::second(hash, mask))?;
    let way = way_of(set, key, room);
    (way < WAYS as u32).then(|| place(set, way))
}

/// Reads an entry that was found under a key with this hash. `false` if it has become another one
/// meanwhile; what is in `flow` is worthless then.
#[inline(always)]
pub fn read<F: Family>(
    place: *mut FlowPlace<F::Addr>,
    hash: u64,
    flow: &mut Flow<F::Addr>,
) -> bool {
    // SAFETY: a place of a set of the map, and a flow.
    unsafe {
        let from: *const u64 = (&raw const (*place).flow).cast();
        copy(from, (&raw mut *flow).cast(), size_of::<Flow<F::Addr>>() / 8);
    }
    flow.check == FlowKey::check(hash, flow)
}

/// Tells an entry what was seen in one of its flow's halves. `false` if it is another one by now.
#[inline(always)]
pub fn advance<A>(
    place: *mut FlowPlace<A>,
    check: u32,
    (state, flags): (u8, u8),
    now: u64,
) -> bool {
    for _ in 0..STATUS_TRIES {
        let seen = status(place);
        if seen.check() != check {
            return false;
        }
        let next = seen.advanced(state, flags);
        // SAFETY: a place of a set of the map. Should it become another flow's at this moment, that
        // one's age is off by one packet.
        unsafe {
            if next == seen || atomic::exchange_if(status_word(place), seen.0, next.0) == seen.0 {
                (&raw mut (*place).flow.last_seen).write_volatile(now);
                return true;
            }
        }
    }
    false
}

/// Ends an entry. `false` if it is another one by now.
#[inline(always)]
pub fn end<A>(place: *mut FlowPlace<A>, check: u32) -> bool {
    for _ in 0..STATUS_TRIES {
        let seen = status(place);
        if seen.check() != check {
            return false;
        }
        // SAFETY: a place of a set of the map.
        if unsafe { atomic::exchange_if(status_word(place), seen.0, 0) } == seen.0 {
            return true;
        }
    }
    false
}

/// The place of an entry that was entered.
#[inline(always)]
pub fn at<F: Family>(Entered(entered): Entered) -> Option<*mut FlowPlace<F::Addr>> {
    let number = (entered & Entered::NUMBER) as u32;
    let set = F::flow_map().get_ptr_mut(number / WAYS as u32)?;
    Some(place(set, number % WAYS as u32))
}

#[inline(always)]
fn lock<A>(set: *mut FlowSet<A>, now: u64) -> bool {
    let mine = flow_set::lock_of(now);
    // SAFETY: a set of the map.
    let lock = unsafe { &raw mut (*place(set, 0)).lock };
    for _ in 0..TRIES {
        // SAFETY: as above.
        let other = unsafe { atomic::exchange_half_if(lock, 0, mine) };
        if other == 0 {
            return true;
        }
        if flow_set::is_forsaken(other, now)
            // SAFETY: as above.
            && unsafe { atomic::exchange_half_if(lock, other, mine) } == other
        {
            return true;
        }
    }
    false
}

#[inline(always)]
fn unlock<A>(set: *mut FlowSet<A>, now: u64) {
    // SAFETY: a set of the map. Nothing is done if somebody else took the lock for forsaken.
    unsafe {
        atomic::exchange_half_if(&raw mut (*place(set, 0)).lock, flow_set::lock_of(now), 0);
    }
}

/// What a set has for an entry, and in `way` the place.
#[inline(always)]
fn room_in<A>(
    set: *mut FlowSet<A>,
    now: u64,
    way: &mut u32,
    spare: &mut u64,
    needed: &mut u32,
) -> Room {
    forget(0, spare);
    forget(0, needed);
    forget(0, way);
    for candidate in 0..WAYS as u32 {
        let place = place(set, candidate);
        // SAFETY: a place of a set of the map.
        let last_seen = unsafe { (&raw const (*place).flow.last_seen).read_volatile() };
        let this = status(place).spare(last_seen, now);
        // SAFETY: references.
        unsafe {
            if Room::is_needed(this) {
                forget(core::ptr::read_volatile(needed) + 1, needed);
            }
            if this > core::ptr::read_volatile(spare) {
                forget(this, spare);
                forget(candidate, way);
            }
        }
    }
    // SAFETY: references.
    unsafe {
        Room { spare: core::ptr::read_volatile(spare), needed: core::ptr::read_volatile(needed) }
    }
}

/// Puts [`Work::reply`] under [`Work::reply_key`]. If there is an entry of this key, one that does not
/// undo the packet's and is not over stays if `claims` says so, and everything else is replaced.
///
/// Whoever takes the place of a reply's entry that is confirmed ends the request's first: it is
/// believed without a look at the reply's, which must not become another flow's meanwhile. A
/// request's entry may go alone: the reply's puts it back.
#[inline(always)]
pub(super) fn enter<F: Family>(work: &mut Work<F::Addr>, claims: bool, now: u64) -> Entered {
    let hash = work.reply_key.hash();
    work.reply.check = FlowKey::check(hash, &work.reply);
    let mask = globals::flow_mask();
    let home_index = flow_set::home(hash, mask);
    let second_index = flow_set::second(hash, mask);
    let map = F::flow_map();
    let Some(home) = map.get_ptr_mut(home_index) else { return Entered(Entered::NO_ROOM) };
    let Some(second) = map.get_ptr_mut(second_index) else { return Entered(Entered::NO_ROOM) };
    if !lock(home, now) {
        return Entered(Entered::NO_ROOM);
    }
    let mut locks_second = false;
    let entered = 'entered: {
        // SAFETY: a set of the map.
        let spilled = unsafe { &raw mut (*place(home, 0)).spilled };
        let mut is_there = true;
        let mut is_second = false;
        work.way = way_of(home, &work.reply_key, &mut work.spare_way);
        // SAFETY: as above.
        if work.way >= WAYS as u32 && unsafe { spilled.read_volatile() } != 0 {
            work.way = way_of(second, &work.reply_key, &mut work.spare_way);
            is_second = work.way < WAYS as u32;
        }
        if work.way >= WAYS as u32 {
            is_there = false;
            let mut room = room_in(home, now, &mut work.way, &mut work.spare, &mut work.needed);
            if !room.is_ample() && second_index != home_index && lock(second, now) {
                locks_second = true;
                let other =
                    room_in(second, now, &mut work.spare_way, &mut work.spare, &mut work.needed);
                if room.is_worse_than(&other) {
                    room = other;
                    work.way = work.spare_way;
                    is_second = true;
                    // SAFETY: as above.
                    unsafe { spilled.write_volatile(1) };
                }
            }
            if room.spare == 0 {
                break 'entered Entered::NO_ROOM;
            }
        } else if is_second && second_index != home_index {
            locks_second = lock(second, now);
            if !locks_second {
                break 'entered Entered::NO_ROOM;
            }
        }
        let index = if is_second { second_index } else { home_index };
        let number = forget(index * WAYS as u32 + work.way, &mut work.number);
        replace::<F>(work, number, is_there, claims, now)
    };
    if locks_second {
        unlock(second, now);
    }
    unlock(home, now);
    Entered(entered)
}

/// Puts the entry into a place whose set is locked; `is_there` says that the place has the same key.
#[inline(always)]
fn replace<F: Family>(
    work: &mut Work<F::Addr>,
    number: u32,
    is_there: bool,
    claims: bool,
    now: u64,
) -> u64 {
    let Work { segment, reply, reply_key, other, other_key, number: room, .. } = work;
    let Some(there) = at::<F>(Entered(number.into())) else { return Entered::NO_ROOM };
    let was = status(there);
    let mut result = u64::from(number);
    if was.is_some() {
        // SAFETY: a place of a set of the map; a key and a flow.
        unsafe {
            let from: *const u64 = there.cast();
            copy(from, (&raw mut *other_key).cast(), size_of::<FlowKey<F::Addr>>() / 8);
            let from: *const u64 = (&raw const (*there).flow).cast();
            copy(from, (&raw mut *other).cast(), size_of::<Flow<F::Addr>>() / 8);
        }
        let is_foreign = was.flags() & Flow::<()>::FOREIGN != 0;
        let is_mine = is_there && !is_foreign && other.undoes(&segment.key);
        if is_mine {
            result |= Entered::WAS_MINE;
        } else if is_there && claims {
            if !other.expired(now) {
                return Entered::TAKEN;
            }
            result |= Entered::WAS_OVER;
        }
        // SAFETY: as above.
        if unsafe { atomic::exchange_if(status_word(there), was.0, 0) } != was.0 {
            return Entered::NO_ROOM;
        }
        if was.is_confirmed() && was.flags() & Flow::<()>::REPLY != 0 && !is_mine {
            end_request::<F>(other_key, other, room);
        }
    }
    // SAFETY: a place of a set of the map that holds nothing, which is locked, so that nobody else
    // writes it; a key and a flow. The word that makes an entry of it comes last.
    unsafe {
        let to: *mut u64 = there.cast();
        copy((&raw const *reply_key).cast(), to, size_of::<FlowKey<F::Addr>>() / 8);
        let (from, to) =
            ((&raw const *reply).cast::<u64>(), (&raw mut (*there).flow).cast::<u64>());
        for word in 0..size_of::<Flow<F::Addr>>() / 8 {
            if to.wrapping_add(word) != status_word(there) {
                to.add(word).write_volatile(from.add(word).read());
            }
        }
        atomic::publish(status_word(there), Status::of(reply).0);
    }
    result
}

/// Ends the request's half of a flow whose other half is this.
#[inline(always)]
fn end_request<F: Family>(key: &mut FlowKey<F::Addr>, flow: &mut Flow<F::Addr>, room: &mut u32) {
    let request = flow.sibling_key(key);
    let reply = core::mem::replace(key, request);
    let hash = key.hash();
    if let Some(place) = find::<F>(key, hash, room)
        && read::<F>(place, hash, flow)
        && flow.undoes(&reply)
    {
        end(place, flow.check);
    }
}
