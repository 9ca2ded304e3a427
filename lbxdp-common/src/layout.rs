//! What the elements of each map consist of, by name: what one build says about its maps, so that
//! another one, older or newer, can read them.
//!
//! A name means one thing for ever. A field whose meaning changes gets another name, and a map
//! whose meaning changes as a whole does. A field that a reader knows and a writer does not is zero.

use crate::{
    AddressFlags, Affinity, AffinityKey, Backend, Descriptor, Device, Flow, FlowKey, FragmentKey,
    FragmentPorts, FrontendInfo, FrontendKey, FrontendStats, MemberKey, SocketKey, SocketPeer,
    TableBlock, range::PrefixedRange,
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
    /// What becomes of its elements.
    pub upkeep: Upkeep,
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
        upkeep,
    }
}

type V4 = [u8; 4];
type V6 = [u8; 16];

/// Every pinned map.
pub const MAPS: [Layout; 27] = [
    map::<V4, AddressFlags>("addresses_v4", Upkeep::Agent),
    map::<V6, AddressFlags>("addresses_v6", Upkeep::Agent),
    map::<AffinityKey, Affinity>("affinity", Upkeep::Latest("last_used")),
    map::<u32, Backend<V4>>("backends_v4", Upkeep::Agent),
    map::<u32, Backend<V6>>("backends_v6", Upkeep::Agent),
    map::<u32, u64>("counters", Upkeep::Sum),
    map::<u32, Descriptor>("descriptors_v4", Upkeep::Agent),
    map::<u32, Descriptor>("descriptors_v6", Upkeep::Agent),
    map::<u32, Device>("devices", Upkeep::Agent),
    map::<u32, u64>("drops", Upkeep::Sum),
    map::<FlowKey<V4>, Flow<V4>>("flows_v4", Upkeep::Latest("last_seen")),
    map::<FlowKey<V6>, Flow<V6>>("flows_v6", Upkeep::Latest("last_seen")),
    map::<FragmentKey<V4>, FragmentPorts>("fragments_v4", Upkeep::Brief),
    map::<FragmentKey<V6>, FragmentPorts>("fragments_v6", Upkeep::Brief),
    map::<FrontendKey<V4>, u32>("frontends_v4", Upkeep::Agent),
    map::<FrontendKey<V6>, u32>("frontends_v6", Upkeep::Agent),
    map::<MemberKey, u32>("members", Upkeep::Agent),
    map::<u32, u32>("mode", Upkeep::Agent),
    map::<u32, FrontendInfo>("names_v4", Upkeep::Agent),
    map::<u32, FrontendInfo>("names_v6", Upkeep::Agent),
    map::<PrefixedRange<V4>, u32>("ranges_v4", Upkeep::Agent),
    map::<PrefixedRange<V6>, u32>("ranges_v6", Upkeep::Agent),
    map::<SocketKey<V4>, SocketPeer<V4>>("sockets_v4", Upkeep::First),
    map::<SocketKey<V6>, SocketPeer<V6>>("sockets_v6", Upkeep::First),
    map::<u32, FrontendStats>("stats_v4", Upkeep::Sum),
    map::<u32, FrontendStats>("stats_v6", Upkeep::Sum),
    map::<u32, TableBlock>("tables", Upkeep::Agent),
];
