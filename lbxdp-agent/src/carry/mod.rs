//! From the maps of one layout to those of another: an upgrade, or the way back.
//!
//! Each directory of maps says what its maps consist of, in links that lead nowhere:
//! `v4/layout/flows_v4` → `key 16 src@0+4 dst@4+4 … value 40 …`. `ls -l` shows it, and a build
//! reads with it what an older or a newer one wrote ([`shape`]). Ids are copied with everything
//! that holds them, so none has to be translated.

mod known;
mod shape;
mod store;

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use lbxdp_common::layout::{Layout, MAPS, Upkeep};
use lbxdp_common::{AddressFlags, PortShare};

use crate::pins::{self, MapSpec};
use crate::sys::raw::{RawMap, Write};
use crate::sys::{self, Access};
use shape::{Conversion, Described, Shape, is_zero};
use store::Store;

/// The directory of descriptions in a directory of maps.
const LAYOUT: &str = "layout";
/// What was written this long before a look began is looked at again: clocks of programs tick
/// every few milliseconds, and a program may write what it read a moment ago.
const OVERLAP_NS: u64 = 1_000_000_000;

/// Says in a directory of maps of this build what they consist of.
pub fn describe(directory: &Path) -> io::Result<()> {
    let layout = directory.join(LAYOUT);
    std::fs::create_dir_all(&layout)?;
    for map in &MAPS {
        let (text, link) = (Described::new(map).to_string(), layout.join(map.name));
        if std::fs::read_link(&link).is_ok_and(|known| known.as_os_str() == text.as_str()) {
            continue;
        }
        match std::fs::remove_file(&link) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        std::os::unix::fs::symlink(text, link)?;
    }
    Ok(())
}

/// What a directory says about one of its maps.
fn description(directory: &Path, map: &str) -> Option<Described> {
    if directory.join(LAYOUT).is_dir() {
        let text = std::fs::read_link(directory.join(LAYOUT).join(map)).ok()?;
        return text.to_str()?.parse().ok();
    }
    known::describe(pins::version_of(directory)?, map)
}

/// Pins in `to` every map of `from` that programs write and that is what `specs` and this build
/// want, so that both generations of programs have one and the same. The maps that the agent
/// writes are each generation's own: another agent could not change them as it likes.
pub fn share(from: &Path, to: &Path, specs: &BTreeMap<String, MapSpec>) -> io::Result<()> {
    for layout in MAPS.iter().filter(|layout| layout.upkeep != Upkeep::Agent) {
        let Some(spec) = specs.get(layout.name) else { continue };
        if description(from, layout.name) == Some(Described::new(layout)) {
            pins::share_map(from, to, layout.name, spec)?;
        }
    }
    Ok(())
}

/// How many elements were copied, and how many could not be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// They are there now.
    pub copied: usize,
    /// They have no place in the other layout, or there was no room.
    pub lost: usize,
}

impl std::ops::AddAssign for Carried {
    fn add_assign(&mut self, Self { copied, lost }: Self) {
        self.copied += copied;
        self.lost += lost;
    }
}

/// A map in both layouts.
#[derive(Debug)]
struct Pair {
    layout: &'static Layout,
    from: RawMap,
    to: Store,
    /// The shapes of `from`.
    old: Described,
    /// The shapes of `to`.
    new: Described,
    key: Conversion,
    value: Conversion,
    /// What counters of `from` are in `to` already, by key, if that is known.
    counted: Option<BTreeMap<Vec<u8>, Vec<u64>>>,
    /// When the last look at `from` began, by the clock of what is in it.
    seen: u64,
}

/// Which elements of a map to copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Everything, before any program uses the new map.
    Fill,
    /// What changed since, while the old programs run and the new ones behind them.
    Join,
    /// What changed since, while programs are replaced.
    Follow,
    /// What changed since, once no program writes the old map any more.
    Finish,
}

impl Step {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Fill => "all there is",
            Self::Join => "what changed since",
            Self::Follow => "what changed while programs are replaced",
            Self::Finish => "the rest",
        }
    }
}

impl Pair {
    /// `None` if there is nothing to copy: one of both has no such map, or both have the same one.
    fn open(layout: &'static Layout, from: &Path, to: &Path) -> anyhow::Result<Option<Self>> {
        if layout.upkeep == Upkeep::Brief {
            return Ok(None);
        }
        let open = |path: &Path| match RawMap::open(&path.join(layout.name), Access::ReadWrite) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            map => map.map(Some),
        };
        let (Some(from_map), Some(to_map)) = (open(from)?, open(to)?) else { return Ok(None) };
        if from_map.info().id == to_map.info().id {
            return Ok(None);
        }
        let Some(old) = description(from, layout.name) else {
            anyhow::bail!("nobody knows what it consists of");
        };
        let info = *from_map.info();
        anyhow::ensure!(
            (info.key_size as usize, info.value_size as usize) == old.element_sizes(),
            "its elements are not of the size that is written beside it"
        );
        anyhow::ensure!(
            layout.sets.is_some() || info.map_type == to_map.info().map_type,
            "it is of another type than the new one"
        );
        let new = Described::new(layout);
        Ok(Some(Self {
            layout,
            key: Conversion::new(&old.key, &new.key),
            value: Conversion::new(&old.value, &new.value),
            from: from_map,
            to: Store::new(layout, to_map, &to.join(layout.name))?,
            old,
            new,
            counted: None,
            seen: 0,
        }))
    }

    fn carry(&mut self, step: Step) -> io::Result<Carried> {
        match (self.layout.upkeep, step) {
            (Upkeep::Agent, Step::Fill) => self.copy(|_| true, Self::put),
            (Upkeep::Latest(clock), _) => self.copy_latest(clock),
            (Upkeep::First, Step::Join) => self.copy(|_| true, Self::put_first),
            (Upkeep::Sum, Step::Fill) => {
                self.counted = Some(BTreeMap::new());
                self.add()
            }
            (Upkeep::Sum, Step::Finish) if self.counted.is_some() => self.add(),
            _ => Ok(Carried::default()),
        }
    }

    /// Converts and puts every element whose value `wanted` wants.
    fn copy(
        &self,
        wanted: impl Fn(&[u8]) -> bool,
        put: impl Fn(&Self, &[u8], &[u8], &[u8]) -> io::Result<bool>,
    ) -> io::Result<Carried> {
        let mut carried = Carried::default();
        let mut failed = None;
        store::for_each(&self.from, &self.old, &mut |key, value| {
            // The elements of an array are there before anybody wrote them, all zero.
            if !wanted(value) || self.from.is_array() && is_zero(value) {
                return;
            }
            let converted = self.key.key(key).zip(self.value.value(value));
            match converted.map(|(new_key, new_value)| put(self, key, &new_key, &new_value)) {
                Some(Ok(is_new)) => carried.copied += usize::from(is_new),
                Some(Err(error)) => {
                    carried.lost += 1;
                    failed = Some(error);
                }
                None => carried.lost += 1,
            }
        })?;
        if let Some(error) = failed {
            tracing::warn!(map = self.layout.name, lost = carried.lost, %error, "elements find no place");
        }
        Ok(carried)
    }

    fn put(&self, _: &[u8], key: &[u8], value: &[u8]) -> io::Result<bool> {
        self.to.update(key, value, Write::Any).map(|()| true)
    }

    /// Puts what is not there. An entry that goes at this moment goes from both maps, if programs of
    /// both are told; if it went before it was put, nobody will remove it.
    fn put_first(&self, old_key: &[u8], key: &[u8], value: &[u8]) -> io::Result<bool> {
        match self.to.update(key, value, Write::New) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
            Err(error) => return Err(error),
        }
        if self.from.lookup(old_key)?.is_none() {
            self.to.remove(key)?;
        }
        Ok(true)
    }

    /// Puts what was used since the last look, unless the new map has it from later.
    fn copy_latest(&mut self, clock: &str) -> io::Result<Carried> {
        // Of when the look begins, not of the latest that it meets: a look takes as long as it takes, and
        // what is written meanwhile may be in a place that it has passed.
        let since = std::mem::replace(&mut self.seen, sys::coarse_ns()).saturating_sub(OVERLAP_NS);
        let is_due =
            |value: &[u8]| self.old.value.number(value, clock).unwrap_or(u64::MAX) >= since;
        self.copy(is_due, |pair, _, key, value| {
            let time = |value: &[u8]| pair.new.value.number(value, clock).unwrap_or_default();
            match pair.to.lookup(key)? {
                Some(there) if time(&there) > time(value) => Ok(false),
                Some(there) if pair.is_known(&there, value) => Ok(false),
                _ => pair.to.update(key, value, Write::Any).map(|()| true),
            }
        })
    }

    /// Whether an element of the new map says all that `value` does.
    fn is_known(&self, there: &[u8], value: &[u8]) -> bool {
        let mut value = value.to_owned();
        if let Some(check) = self.new.value.number(there, "check") {
            // Each table's own affair.
            self.new.value.set_number(&mut value, "check", check);
        }
        there == value
    }

    /// Adds what was counted and not yet added. It goes to the first processor's share, whose
    /// programs may count at the same moment: an event may be lost, none is counted twice.
    fn add(&mut self) -> io::Result<Carried> {
        let mut counted = self.counted.take().unwrap_or_default();
        let mut carried = Carried::default();
        let mut sums = Vec::new();
        self.from.for_each(&mut |key, element| {
            if is_zero(element) {
                return;
            }
            let mut sum = vec![0_u64; self.new.value.size / 8];
            for value in self.from.values(element) {
                let Some(value) = self.value.value(value) else { continue };
                for (sum, word) in sum.iter_mut().zip(words(&value)) {
                    *sum = sum.wrapping_add(word);
                }
            }
            sums.push((key.to_owned(), sum));
        })?;
        for (old_key, sum) in sums {
            let Some(key) = self.key.key(&old_key) else { continue };
            let before = counted.get(&old_key);
            let more =
                |index: usize| sum[index].wrapping_sub(before.map_or(0, |before| before[index]));
            if (0..sum.len()).all(|index| more(index) == 0) {
                continue;
            }
            let added = self.to.lookup(&key).and_then(|element| {
                let mut element = element.ok_or(io::ErrorKind::NotFound)?;
                for index in 0..sum.len() {
                    let place = &mut element[index * 8..][..8];
                    let there = words(place).next().unwrap_or_default();
                    place.copy_from_slice(&there.wrapping_add(more(index)).to_le_bytes());
                }
                self.to.update(&key, &element, Write::Any)
            });
            match added {
                Ok(()) => {
                    carried.copied += 1;
                    counted.insert(old_key, sum);
                }
                Err(_) => carried.lost += 1,
            }
        }
        self.counted = Some(counted);
        Ok(carried)
    }
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u64> {
    bytes.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word))
}

/// The maps of an earlier generation of programs, beside those that take over.
#[derive(Debug)]
pub struct Carry {
    pairs: Vec<Pair>,
    /// The addresses that the old programs look at, and what they know about each.
    addresses: Vec<(RawMap, Shape)>,
    /// Where the old programs, and the new ones, see which source ports they may give out. Earlier
    /// builds have no such map.
    shares: [Option<RawMap>; 2],
}

impl Carry {
    /// From the maps in `from` to those of this build in `to`. A map that cannot be read is left
    /// out, and the log says so.
    pub fn open(from: &Path, to: &Path) -> Self {
        let mut pairs = Vec::new();
        for layout in &MAPS {
            match Pair::open(layout, from, to) {
                Ok(pair) => pairs.extend(pair),
                Err(error) => tracing::warn!(
                    map = layout.name,
                    from = %from.display(),
                    "not carried over: {error:#}"
                ),
            }
        }
        let addresses = ["addresses_v4", "addresses_v6"]
            .into_iter()
            .filter_map(|name| {
                let map = RawMap::open(&from.join(name), Access::ReadWrite).ok()?;
                Some((map, description(from, name)?.value))
            })
            .filter(|(map, shape)| map.info().value_size as usize == shape.size)
            .collect();
        let shares = [from, to]
            .map(|directory| RawMap::open(&directory.join("port_share"), Access::ReadWrite).ok());
        Self { pairs, addresses, shares }
    }

    /// Lets the new programs give out other source ports than the old ones: each of them begins flows
    /// that the other does not know as yet, and of two with one port only one would get its replies.
    /// To be called before the new ones see a packet; what the old ones began with a port of the other
    /// half is to be copied before they are closed.
    pub fn share_ports(&self) {
        self.set_shares([PortShare::Lower, PortShare::Upper]);
    }

    /// Gives the new programs all source ports: they know every flow there is.
    pub fn give_all_ports(&self) {
        self.set_shares([PortShare::Lower, PortShare::All]);
    }

    fn set_shares(&self, shares: [PortShare; 2]) {
        for (map, share) in self.shares.iter().zip(shares) {
            let Some(map) = map else { continue };
            let number = (share as u32).to_ne_bytes();
            if let Err(error) = map.update(&[0; 4], &number, Write::Any) {
                tracing::warn!(share = share.as_str(), %error, "sharing source ports");
            }
        }
    }

    /// Fills maps that no program uses yet.
    pub fn fill(&mut self) {
        self.carry(Step::Fill);
    }

    /// Copies what the old programs have written since, sockets included. Programs of both have to
    /// be attached: each forgets a socket that is closed.
    pub fn join(&mut self) {
        self.carry(Step::Join);
    }

    /// Copies what the old programs have written since.
    pub fn follow(&mut self) {
        self.carry(Step::Follow);
    }

    /// The last look, when no program writes the old maps any more.
    pub fn finish(&mut self) {
        self.carry(Step::Finish);
    }

    fn carry(&mut self, step: Step) {
        let mut all = Carried::default();
        for pair in &mut self.pairs {
            let map = pair.layout.name;
            match pair.carry(step) {
                Ok(carried) => {
                    let Carried { copied, lost } = carried;
                    tracing::debug!(map, copied, lost, "carried over");
                    all += carried;
                }
                Err(error) => tracing::warn!(map, %error, "not carried over"),
            }
        }
        let Carried { copied, lost } = all;
        tracing::info!(copied, lost, "elements of maps carried over: {}", step.as_str());
    }

    /// Lets the programs that use these maps begin nothing new. To them every address becomes one of
    /// the node's own without any Service: what has a flow is translated as before, everything else
    /// is passed on as it came, to the programs that take over. Repeating it changes nothing.
    pub fn close(&self) {
        for (map, shape) in &self.addresses {
            if let Err(error) = close(map, shape) {
                tracing::warn!(%error, "closing the old maps");
            }
        }
    }
}

fn close(map: &RawMap, shape: &Shape) -> io::Result<()> {
    let mut elements = Vec::new();
    map.for_each(&mut |key, value| elements.push((key.to_owned(), value.to_owned())))?;
    for (key, mut value) in elements {
        let Some(flags) = shape.number(&value, "flags") else { continue };
        let closed = closed(AddressFlags { flags: flags as u32 });
        if u64::from(closed.flags) != flags
            && shape.set_number(&mut value, "flags", closed.flags.into())
        {
            map.update(&key, &value, Write::Existing)?;
        }
    }
    Ok(())
}

const fn closed(address: AddressFlags) -> AddressFlags {
    const OURS: u32 = AddressFlags::SERVICE | AddressFlags::NODE | AddressFlags::TOMBSTONE;
    if address.has(OURS) {
        AddressFlags { flags: address.flags & AddressFlags::BACKEND | AddressFlags::NODE }
    } else {
        address
    }
}
