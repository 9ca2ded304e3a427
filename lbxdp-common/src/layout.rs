//! What the elements of each map consist of, by name: what one build says about its maps, so that
//! another one, older or newer, can read them.
//!
//! A name means one thing for ever. A field whose meaning changes gets another name, and a map
//! whose meaning changes as a whole does. A field that a reader knows and a writer does not is zero.

use crate::{
    AddressFlags, Affinity, AffinityKey, Announced, AnnouncedKey, Backend, Descriptor, Device,
    FragmentKey, FragmentPorts, FrontendInfo, FrontendKey, FrontendStats, Hop, MemberKey,
    SocketKey, SocketPeer, TableBlock, Watch, flow_set::Entry, range::PrefixedRange,
};

/// A field of a key or a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name. One that starts with `_` is room, always zero.
    pub name: &'static str,
    /// Bytes in front of it.
    pub offset: usize,
    /// Its bytes.
    pub size: usize,
}

/// A key or a value. [`record!`] implements it.
pub trait Record: Sized {
    /// Every field.
    const FIELDS: &'static [Field];
}

/// A map whose elements are sets of entries, each of which has a key and a value.
pub trait Table {
    /// The start of an entry.
    type Key: Record;
    /// What follows its key.
    type Value: Record;
    /// Entries in an element.
    const WAYS: usize;
    /// Bytes from one entry to the next.
    const STRIDE: usize;
}

/// The size of what a function returns.
pub(crate) const fn size_of_field<T, F>(_: fn(&T) -> &F) -> usize {
    size_of::<F>()
}

/// Implements [`Record`] for a type, given the names of its fields.
macro_rules! record {
    ($record:ident $(<$family:ident>)? { $($field:ident),+ $(,)? }) => {
        impl $(<$family: $crate::Octets>)? $crate::layout::Record for $record $(<$family>)? {
            const FIELDS: &'static [$crate::layout::Field] = &[$($crate::layout::Field {
                name: stringify!($field),
                offset: core::mem::offset_of!(Self, $field),
                size: $crate::layout::size_of_field(|record: &Self| &record.$field),
            }),+];
        }
    };
}
pub(crate) use record;

macro_rules! scalar {
    ($($scalar:ty: $name:literal),+ $(,)?) => {$(
        impl Record for $scalar {
            const FIELDS: &'static [Field] =
                &[Field { name: $name, offset: 0, size: size_of::<$scalar>() }];
        }
    )+};
}

scalar! { u32: "value", u64: "value", [u8; 4]: "addr", [u8; 16]: "addr" }

/// What becomes of a map's elements when maps of another layout take over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upkeep {
    /// The agent writes them: they are copied once, before any program uses the new map.
    Agent,
    /// The programs write them, and note the time in this field: of two, the later one counts.
    Latest(&'static str),
    /// The programs write them once: what is there stays.
    First,
    /// The programs count in them: what was counted is added.
    Sum,
    /// The programs write them for the moment: they are not copied.
    Brief,
}

/// A map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Its name.
    pub name: &'static str,
    /// Bytes in a key.
    pub key_size: usize,
    /// What a key consists of.
    pub key: &'static [Field],
    /// Bytes in a value.
    pub value_size: usize,
    /// What a value consists of.
    pub value: &'static [Field],
    /// Where entries with such keys and values are, if not each in an element of its own.
    pub sets: Option<Sets>,
    /// What becomes of its elements.
    pub upkeep: Upkeep,
}

/// How the elements of an array consist of entries. An entry whose `check` is zero is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sets {
    /// Entries in an element.
    pub ways: usize,
    /// Bytes from one to the next.
    pub stride: usize,
}

/// Checks that fields are all of a record: they lie in it, do not overlap, and leave nothing out.
const fn check<R: Record>() {
    let (mut index, mut sum) = (0, 0);
    while index < R::FIELDS.len() {
        let Field { offset, size, .. } = R::FIELDS[index];
        assert!(offset + size <= size_of::<R>(), "a field lies in its record");
        let mut other = 0;
        while other < index {
            let before = R::FIELDS[other];
            assert!(
                before.offset + before.size <= offset || offset + size <= before.offset,
                "no field overlaps another"
            );
            other += 1;
        }
        sum += size;
        index += 1;
    }
    assert!(sum == size_of::<R>(), "a record has no padding, and every field is named");
}

const fn map<K: Record, V: Record>(name: &'static str, upkeep: Upkeep) -> Layout {
    const { check::<K>() };
    const { check::<V>() };
    Layout {
        name,
        key_size: size_of::<K>(),
        key: K::FIELDS,
        value_size: size_of::<V>(),
        value: V::FIELDS,
        sets: None,
        upkeep,
    }
}

const fn table<T: Table>(name: &'static str, upkeep: Upkeep) -> Layout {
    let sets = Some(Sets { ways: T::WAYS, stride: T::STRIDE });
    Layout { sets, ..map::<T::Key, T::Value>(name, upkeep) }
}

type V4 = [u8; 4];
type V6 = [u8; 16];

/// Every pinned map.
pub const MAPS: [Layout; 34] = [
    map::<V4, AddressFlags>("addresses_v4", Upkeep::Agent),
    map::<V6, AddressFlags>("addresses_v6", Upkeep::Agent),
    map::<AffinityKey, Affinity>("affinity", Upkeep::Latest("last_used")),
    map::<AnnouncedKey<V4>, Announced>("announced_v4", Upkeep::Agent),
    map::<AnnouncedKey<V6>, Announced>("announced_v6", Upkeep::Agent),
    map::<u32, Backend<V4>>("backends_v4", Upkeep::Agent),
    map::<u32, Backend<V6>>("backends_v6", Upkeep::Agent),
    map::<u32, u64>("counters", Upkeep::Sum),
    map::<u32, Descriptor>("descriptors_v4", Upkeep::Agent),
    map::<u32, Descriptor>("descriptors_v6", Upkeep::Agent),
    map::<u32, Device>("devices", Upkeep::Agent),
    map::<u32, u64>("drops", Upkeep::Sum),
    table::<Entry<V4>>("flows_v4", Upkeep::Latest("last_seen")),
    table::<Entry<V6>>("flows_v6", Upkeep::Latest("last_seen")),
    map::<FragmentKey<V4>, FragmentPorts>("fragments_v4", Upkeep::Brief),
    map::<FragmentKey<V6>, FragmentPorts>("fragments_v6", Upkeep::Brief),
    map::<u32, u64>("free_ports", Upkeep::Agent),
    map::<FrontendKey<V4>, u32>("frontends_v4", Upkeep::Agent),
    map::<FrontendKey<V6>, u32>("frontends_v6", Upkeep::Agent),
    map::<u32, Hop>("hops", Upkeep::Agent),
    map::<MemberKey, u32>("members", Upkeep::Agent),
    map::<u32, u32>("mode", Upkeep::Agent),
    map::<u32, FrontendInfo>("names_v4", Upkeep::Agent),
    map::<u32, FrontendInfo>("names_v6", Upkeep::Agent),
    map::<u32, Device>("near_devices", Upkeep::Agent),
    map::<u32, u32>("port_share", Upkeep::Agent),
    map::<PrefixedRange<V4>, u32>("ranges_v4", Upkeep::Agent),
    map::<PrefixedRange<V6>, u32>("ranges_v6", Upkeep::Agent),
    map::<SocketKey<V4>, SocketPeer<V4>>("sockets_v4", Upkeep::First),
    map::<SocketKey<V6>, SocketPeer<V6>>("sockets_v6", Upkeep::First),
    map::<u32, FrontendStats>("stats_v4", Upkeep::Sum),
    map::<u32, FrontendStats>("stats_v6", Upkeep::Sum),
    map::<u32, TableBlock>("tables", Upkeep::Agent),
    map::<u32, Watch>("watch", Upkeep::Agent),
];
