//! A flow table, as [`lbxdp_common::flow_set`] lays it out: the only place of the agent that knows.

use std::io;
use std::mem::offset_of;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use aya::Pod;
use lbxdp_common::flow_set::{self, FlowPlace, FlowSet, Room, Status, WAYS};
use lbxdp_common::{Flow, FlowKey, Octets};

use crate::sys::{self, Access, MmapArray, Sample};

/// How long a lock is waited for. Programs hold one for some hundred nanoseconds, and one of somebody
/// who ended is taken over after two seconds.
const PATIENCE: Duration = Duration::from_secs(5);
/// Sets that a sample reads at once.
const SAMPLE_SETS: u32 = 256;

/// What `insert` does where the key has an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IfThere {
    /// It stays.
    Keep,
    /// It is replaced.
    Replace,
}

/// The key and the value of an entry.
pub type Entry<A> = (FlowKey<A>, Flow<A>);

/// A flow table that programs use at the same time.
#[derive(Debug)]
pub struct FlowTable<A: Octets> {
    sets: u32,
    sets_in: Sets<A>,
}

/// The kernel maps nothing that was opened for reading only.
#[derive(Debug)]
enum Sets<A: Octets> {
    Mapped(MmapArray<FlowSet<A>>),
    Lookups(OwnedFd),
}

/// Where an entry is.
#[derive(Clone, Copy)]
struct Place {
    set: u32,
    way: usize,
}

impl<A: Octets> FlowTable<A> {
    const PLACE: usize = size_of::<FlowPlace<A>>() / 8;
    const KEY: usize = size_of::<FlowKey<A>>() / 8;
    const FLOW: usize = size_of::<Flow<A>>() / 8;
    const STATUS: usize = Self::KEY + offset_of!(Flow<A>, check) / 8;
    /// The word of the lock, and of what is not zero if entries are in other sets than their first.
    const LOCK: usize = Self::KEY + Self::FLOW;
    const SPILLED: u64 = 1 << 32;

    /// The table that `map` is.
    ///
    /// # Errors
    /// It is no table of this family.
    pub fn new(map: OwnedFd, access: Access) -> io::Result<Self> {
        let sets = sys::map_info(map.as_fd())?.max_entries;
        if !sets.is_power_of_two() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{sets} sets are not a power of two"),
            ));
        }
        let sets_in = match access {
            Access::ReadOnly => Sets::Lookups(map),
            Access::ReadWrite => Sets::Mapped(MmapArray::new(map)?),
        };
        Ok(Self { sets, sets_in })
    }

    /// Entries that it has room for.
    pub const fn capacity(&self) -> u64 {
        self.sets as u64 * WAYS as u64
    }

    fn mapped(&self) -> io::Result<&MmapArray<FlowSet<A>>> {
        match &self.sets_in {
            Sets::Mapped(array) => Ok(array),
            Sets::Lookups(_) => Err(io::ErrorKind::PermissionDenied.into()),
        }
    }

    fn range(&self, first: u32, count: u32) -> io::Result<Vec<FlowSet<A>>> {
        match &self.sets_in {
            Sets::Mapped(array) => {
                Ok((first..first + count).filter_map(|set| array.read(set)).collect())
            }
            Sets::Lookups(map) => sys::read_range(map.as_fd(), first, count as usize),
        }
    }

    /// The sets of a range that have an entry: of most tables few do, and looking is a tenth of copying.
    fn used(&self, first: u32, count: u32) -> io::Result<Vec<FlowSet<A>>> {
        let Sets::Mapped(array) = &self.sets_in else { return self.range(first, count) };
        let is_used = |set: &u32| {
            array.words(*set).is_some_and(|words| {
                let mut statuses = words.iter().skip(Self::STATUS).step_by(Self::PLACE);
                statuses.any(|status| status.load(Ordering::Relaxed) != 0)
            })
        };
        Ok((first..first + count).filter(is_used).filter_map(|set| array.read(set)).collect())
    }

    /// Every entry.
    pub fn read(&self) -> io::Result<Vec<Entry<A>>> {
        let mut entries = Vec::new();
        let mut first = 0;
        while first < self.sets {
            let count = (self.sets - first).min(4_096);
            entries.extend(self.used(first, count)?.iter().flat_map(entries_of));
            first += count;
        }
        Ok(entries)
    }

    /// The entries of the first sets, `most` of them or somewhat more. Keys are spread over the sets
    /// by a hash, so this is as good as chance.
    pub fn sample(&self, most: usize) -> io::Result<Sample<FlowKey<A>, Flow<A>>> {
        let mut entries = Vec::new();
        let mut first = 0;
        while first < self.sets && entries.len() < most {
            let count = (self.sets - first).min(SAMPLE_SETS);
            entries.extend(self.used(first, count)?.iter().flat_map(entries_of));
            first += count;
        }
        Ok(Sample { entries, share: f64::from(first) / f64::from(self.sets) })
    }

    /// The entry of a key.
    pub fn get(&self, key: &FlowKey<A>) -> io::Result<Option<Flow<A>>> {
        Ok(self.find(key)?.map(|(_, flow)| flow))
    }

    fn find(&self, key: &FlowKey<A>) -> io::Result<Option<(Place, Flow<A>)>> {
        let (hash, mask) = (key.hash(), self.sets - 1);
        for set in [flow_set::home(hash, mask), flow_set::second(hash, mask)] {
            if let Some(found) = self.find_in(set, key)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    fn find_in(&self, set: u32, key: &FlowKey<A>) -> io::Result<Option<(Place, Flow<A>)>> {
        if let Sets::Mapped(array) = &self.sets_in {
            // Most keys are compared in vain: only what may be the entry is read.
            let words = array.words(set).ok_or(io::ErrorKind::InvalidInput)?;
            let has_key = |place: &[AtomicU64]| {
                place
                    .iter()
                    .zip(words_of(key))
                    .all(|(word, of_key)| word.load(Ordering::Relaxed) == of_key)
            };
            if !words.chunks_exact(Self::PLACE).any(has_key) {
                return Ok(None);
            }
        }
        let there = self.range(set, 1)?.pop().ok_or(io::ErrorKind::InvalidInput)?;
        let way = there.places.iter().position(|place| place.key == *key && is_entry(place));
        Ok(way.map(|way| (Place { set, way }, there.places[way].flow)))
    }

    fn word(&self, Place { set, way }: Place, word: usize) -> io::Result<&AtomicU64> {
        let words = self.mapped()?.words(set).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(&words[way * Self::PLACE + word])
    }

    /// Removes the entry of a key if it is the one that is meant. Whether it was there.
    pub fn remove(
        &self,
        key: &FlowKey<A>,
        is_meant: impl Fn(&Flow<A>) -> bool,
    ) -> io::Result<bool> {
        // Programs change an entry a few times in its life.
        while let Some((place, flow)) = self.find(key)? {
            if !is_meant(&flow) {
                break;
            }
            if self.exchange_status(place, Status::of(&flow), Status(0))? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn exchange_status(&self, place: Place, old: Status, new: Status) -> io::Result<bool> {
        let word = self.word(place, Self::STATUS)?;
        Ok(word.compare_exchange(old.0, new.0, Ordering::SeqCst, Ordering::SeqCst).is_ok())
    }

    /// Makes the table know what is known of a flow elsewhere: an entry of the same flow learns it, in
    /// one that programs may use meanwhile, and one of another flow is replaced.
    ///
    /// # Errors
    /// As for [`FlowTable::insert`].
    pub fn merge(&self, key: &FlowKey<A>, flow: &Flow<A>) -> io::Result<()> {
        let check = FlowKey::check(key.hash(), flow);
        while let Some((place, there)) = self.find(key)? {
            if there.check != check {
                break;
            }
            let status = Status::of(&there);
            if self.exchange_status(place, status, status.advanced(flow.state, flow.flags))? {
                let last_seen = offset_of!(Flow<A>, last_seen) / 8;
                let word = self.word(place, Self::KEY + last_seen)?;
                word.fetch_max(flow.last_seen, Ordering::SeqCst);
                return Ok(());
            }
        }
        self.insert(key, flow, IfThere::Replace).map(drop)
    }

    /// Enters an entry, its check included. Whether it is there now; it is not if there was one that
    /// stays.
    ///
    /// # Errors
    /// [`io::ErrorKind::StorageFull`] if everything that could make room is needed.
    pub fn insert(&self, key: &FlowKey<A>, flow: &Flow<A>, if_there: IfThere) -> io::Result<bool> {
        let hash = key.hash();
        let mut flow = *flow;
        flow.check = FlowKey::check(hash, &flow);
        let home = flow_set::home(hash, self.sets - 1);
        let _home = self.lock(home)?;
        let second = flow_set::second(hash, self.sets - 1);
        let _second = if second == home { None } else { Some(self.lock(second)?) };

        let place = match self.find(key)? {
            Some(_) if if_there == IfThere::Keep => return Ok(false),
            Some((place, _)) => place,
            None => self.choose(home, second)?,
        };
        self.clear(place, flow.check)?;
        if place.set != home {
            let first = Place { set: home, way: 0 };
            self.word(first, Self::LOCK)?.fetch_or(Self::SPILLED, Ordering::SeqCst);
        }
        for (index, word) in words_of(key).enumerate() {
            self.word(place, index)?.store(word, Ordering::Relaxed);
        }
        for (index, word) in words_of(&flow).enumerate() {
            if Self::KEY + index != Self::STATUS {
                self.word(place, Self::KEY + index)?.store(word, Ordering::Relaxed);
            }
        }
        self.word(place, Self::STATUS)?.store(Status::of(&flow).0, Ordering::SeqCst);
        Ok(true)
    }

    fn choose(&self, home: u32, second: u32) -> io::Result<Place> {
        let (mut room, mut place) = self.room_in(home)?;
        if !room.is_ample() {
            let (other, elsewhere) = self.room_in(second)?;
            if room.is_worse_than(&other) {
                (room, place) = (other, elsewhere);
            }
        }
        if room.spare == 0 { Err(io::ErrorKind::StorageFull.into()) } else { Ok(place) }
    }

    fn room_in(&self, set: u32) -> io::Result<(Room, Place)> {
        let now = sys::coarse_ns();
        let last_seen = Self::KEY + offset_of!(Flow<A>, last_seen) / 8;
        let words = self.mapped()?.words(set).ok_or(io::ErrorKind::InvalidInput)?;
        let (mut room, mut best) = (Room { spare: 0, needed: 0 }, 0);
        for (way, place) in words.chunks_exact(Self::PLACE).enumerate() {
            let load = |word: usize| place[word].load(Ordering::Relaxed);
            let spare = Status(load(Self::STATUS)).spare(load(last_seen), now);
            room.needed += u32::from(Room::is_needed(spare));
            if spare > room.spare {
                (room.spare, best) = (spare, way);
            }
        }
        Ok((room, Place { set, way: best }))
    }

    /// Ends the entry in a place whose set is locked, for one with this check; and, as programs do, the
    /// request's half of another flow whose reply's half this is.
    fn clear(&self, place: Place, check: u32) -> io::Result<()> {
        loop {
            let there = self.range(place.set, 1)?.pop().ok_or(io::ErrorKind::InvalidInput)?;
            let FlowPlace { key, flow, .. } = there.places[place.way];
            let status = Status::of(&flow);
            if !status.is_some() {
                return Ok(());
            }
            if self.exchange_status(place, status, Status(0))? {
                let is_reply = flow.has(Flow::<A>::REPLY);
                if is_reply && status.is_confirmed() && flow.check != check {
                    self.remove(&flow.sibling_key(&key), |request| request.undoes(&key))?;
                }
                return Ok(());
            }
        }
    }

    fn lock(&self, set: u32) -> io::Result<Locked<'_>> {
        let word = self.word(Place { set, way: 0 }, Self::LOCK)?;
        let since = Instant::now();
        loop {
            let now = sys::coarse_ns();
            let (seen, mine) = (word.load(Ordering::SeqCst), flow_set::lock_of(now));
            let other = seen as u32;
            if (other == 0 || flow_set::is_forsaken(other, now))
                && word
                    .compare_exchange(
                        seen,
                        seen & !u64::from(u32::MAX) | u64::from(mine),
                        Ordering::SeqCst,
                        Ordering::SeqCst,
                    )
                    .is_ok()
            {
                return Ok(Locked { word, mine });
            }
            if since.elapsed() > PATIENCE {
                return Err(io::ErrorKind::ResourceBusy.into());
            }
            std::thread::yield_now();
        }
    }
}

/// A set that nobody else writes entries to.
struct Locked<'a> {
    word: &'a AtomicU64,
    mine: u32,
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        let mine = self.mine;
        let free = |word: u64| (word as u32 == mine).then_some(word & !u64::from(u32::MAX));
        // Unless somebody took it for forsaken.
        let _ = self.word.fetch_update(Ordering::SeqCst, Ordering::SeqCst, free);
    }
}

/// Whether a place has an entry that was read as a whole.
fn is_entry<A: Octets>(place: &FlowPlace<A>) -> bool {
    Status::of(&place.flow).is_some()
        && place.flow.check == FlowKey::check(place.key.hash(), &place.flow)
}

fn entries_of<A: Octets>(set: &FlowSet<A>) -> impl Iterator<Item = Entry<A>> {
    set.places.into_iter().filter(is_entry).map(|place| (place.key, place.flow))
}

fn words_of<T: Pod>(record: &T) -> impl Iterator<Item = u64> {
    let from = std::ptr::from_ref(record).cast::<u64>();
    // SAFETY: a `Pod` of whole words.
    (0..size_of::<T>() / 8).map(move |word| unsafe { from.add(word).read_unaligned() })
}
