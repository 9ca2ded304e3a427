//! What a directory of maps says about each of them, and how elements of one shape become
//! elements of another. Fields are the same if their names are.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use lbxdp_common::layout::{Field, Layout, Sets};

/// The largest key or value that is believed.
const LARGEST: usize = 4_096;

/// Where a field is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    offset: usize,
    size: usize,
}

impl Place {
    fn of<'a>(&self, record: &'a [u8]) -> &'a [u8] {
        &record[self.offset..self.offset + self.size]
    }

    fn of_mut<'a>(&self, record: &'a mut [u8]) -> &'a mut [u8] {
        &mut record[self.offset..self.offset + self.size]
    }
}

/// What a key or a value consists of. Integers are little-endian, as the programs are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Bytes.
    pub size: usize,
    fields: BTreeMap<String, Place>,
}

impl Shape {
    fn new(size: usize, fields: &[Field]) -> Self {
        let named = fields.iter().filter(|field| !field.name.starts_with('_'));
        let places = named
            .map(|Field { name, offset, size }| {
                ((*name).to_owned(), Place { offset: *offset, size: *size })
            })
            .collect();
        Self { size, fields: places }
    }

    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_ascii_whitespace();
        let size: usize = words.next()?.parse().ok()?;
        let mut fields = BTreeMap::new();
        for word in words {
            let (name, place) = word.split_once('@')?;
            let (offset, length) = place.split_once('+')?;
            let (offset, length): (usize, usize) = (offset.parse().ok()?, length.parse().ok()?);
            if offset.checked_add(length)? > size {
                return None;
            }
            fields.insert(name.to_owned(), Place { offset, size: length });
        }
        (size <= LARGEST).then_some(Self { size, fields })
    }

    /// The integer in a field of a record of this shape, if there is such a field.
    pub fn number(&self, record: &[u8], field: &str) -> Option<u64> {
        let bytes = self.fields.get(field)?.of(record);
        let mut number = [0; 8];
        number.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(u64::from_le_bytes(number))
    }

    /// Writes an integer to a field; says whether there is such a field that holds it.
    pub fn set_number(&self, record: &mut [u8], field: &str, number: u64) -> bool {
        let Some(place) = self.fields.get(field) else { return false };
        resize(&number.to_le_bytes(), place.of_mut(record))
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.size)?;
        let mut fields: Vec<_> = self.fields.iter().collect();
        fields.sort_by_key(|(_, place)| place.offset);
        for (name, Place { offset, size }) in fields {
            write!(f, " {name}@{offset}+{size}")?;
        }
        Ok(())
    }
}

/// What a map consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    /// Its keys.
    pub key: Shape,
    /// Its values.
    pub value: Shape,
    /// Where entries with such keys and values are in its elements, if they are not the elements.
    pub sets: Option<Sets>,
}

impl Described {
    /// What this build says about a map.
    pub fn new(layout: &Layout) -> Self {
        Self {
            key: Shape::new(layout.key_size, layout.key),
            value: Shape::new(layout.value_size, layout.value),
            sets: layout.sets,
        }
    }

    /// Bytes of key and value of the map itself.
    pub fn element_sizes(&self) -> (usize, usize) {
        match self.sets {
            Some(Sets { ways, stride }) => (size_of::<u32>(), ways * stride),
            None => (self.key.size, self.value.size),
        }
    }

    /// The entries in the bytes of an element.
    pub fn entries<'a>(&'a self, element: &'a [u8]) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        let Sets { stride, .. } = self.sets.unwrap_or(Sets { ways: 0, stride: usize::MAX });
        // Found once: a table has hundreds of thousands of places, most of them empty.
        let check = self.value.fields.get("check");
        element.chunks_exact(stride).filter_map(move |entry| {
            let (key, rest) = entry.split_at_checked(self.key.size)?;
            let value = rest.get(..self.value.size)?;
            (!is_zero(check?.of(value))).then_some((key, value))
        })
    }
}

/// Whether there are only zeroes. Compared as two slices, which is fast without optimisations, too.
pub fn is_zero(bytes: &[u8]) -> bool {
    bytes.split_first().is_none_or(|(first, rest)| *first == 0 && *rest == bytes[..rest.len()])
}

impl fmt::Display for Described {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "key {} value {}", self.key, self.value)?;
        match self.sets {
            Some(Sets { ways, stride }) => write!(f, " ways {ways} stride {stride}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Described {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let shapes = text.strip_prefix("key ").and_then(|text| text.split_once(" value "));
        let (key, value) = shapes.ok_or(())?;
        let (value, sets) = match value.split_once(" ways ") {
            Some((value, sets)) => (value, Some(parse_sets(sets).ok_or(())?)),
            None => (value, None),
        };
        let (key, value) = (Shape::parse(key).ok_or(())?, Shape::parse(value).ok_or(())?);
        let fits = sets.is_none_or(|Sets { stride, .. }| key.size + value.size <= stride);
        if fits { Ok(Self { key, value, sets }) } else { Err(()) }
    }
}

fn parse_sets(text: &str) -> Option<Sets> {
    let (ways, stride) = text.split_once(" stride ")?;
    let sets = Sets { ways: ways.parse().ok()?, stride: stride.parse().ok()? };
    (sets.ways.checked_mul(sets.stride)? <= LARGEST).then_some(sets)
}

/// Copies little-endian bytes into more or fewer; `false` if something is lost.
fn resize(from: &[u8], to: &mut [u8]) -> bool {
    let common = from.len().min(to.len());
    to.fill(0);
    to[..common].copy_from_slice(&from[..common]);
    from[common..].iter().all(|byte| *byte == 0)
}

/// From records of one shape to records of another.
#[derive(Debug)]
pub struct Conversion {
    size: usize,
    moves: Vec<(Place, Place)>,
    /// Fields that the other shape does not have.
    unknown: Vec<Place>,
}

impl Conversion {
    /// From `from` to `to`.
    pub fn new(from: &Shape, to: &Shape) -> Self {
        let (mut moves, mut unknown) = (Vec::new(), Vec::new());
        for (name, place) in &from.fields {
            match to.fields.get(name) {
                Some(target) => moves.push((*place, *target)),
                None => unknown.push(*place),
            }
        }
        Self { size: to.size, moves, unknown }
    }

    /// The record in the other shape; what is new there is zero. `None` if a field is too narrow
    /// for what it should hold.
    pub fn value(&self, from: &[u8]) -> Option<Vec<u8>> {
        let mut to = vec![0; self.size];
        let fits = self.moves.iter().all(|(a, b)| resize(a.of(from), b.of_mut(&mut to)));
        fits.then_some(to)
    }

    /// The same for a key, all of which has to have a place: else two would become one.
    pub fn key(&self, from: &[u8]) -> Option<Vec<u8>> {
        let is_whole =
            self.unknown.iter().all(|place| place.of(from).iter().all(|byte| *byte == 0));
        if is_whole { self.value(from) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use lbxdp_common::layout::MAPS;

    use super::*;

    fn described(text: &str) -> Described {
        text.parse().unwrap()
    }

    #[test]
    fn what_is_written_is_read_back() {
        for layout in &MAPS {
            let ours = Described::new(layout);
            assert_eq!(ours.to_string().parse(), Ok(ours.clone()), "{ours}");
            // The length of a path, which is where it is written.
            assert!(ours.to_string().len() < 1_024, "{ours}");
        }
    }

    #[test]
    fn fields_move_and_grow_and_new_ones_are_zero() {
        let old = described("key 2 id@0+2 value 8 a@0+4 b@4+2 c@6+2");
        let new = described("key 4 id@0+4 value 12 b@0+4 new@4+4 a@8+4");
        let conversion = Conversion::new(&old.value, &new.value);
        let there = conversion.value(&[1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(there, Some(vec![5, 6, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4]));
        let back = Conversion::new(&new.value, &old.value);
        assert_eq!(back.value(&there.unwrap()), Some(vec![1, 2, 3, 4, 5, 6, 0, 0]));
        assert_eq!(Conversion::new(&old.key, &new.key).key(&[1, 2]), Some(vec![1, 2, 0, 0]));
    }

    #[test]
    fn what_finds_no_room_is_not_cut() {
        let wide = described("key 8 id@0+4 zone@4+4 value 4 n@0+4");
        let narrow = described("key 2 id@0+2 value 2 n@0+2");
        let (key, value) =
            (Conversion::new(&wide.key, &narrow.key), Conversion::new(&wide.value, &narrow.value));
        assert_eq!(value.value(&[1, 2, 0, 0]), Some(vec![1, 2]));
        assert_eq!(value.value(&[1, 2, 3, 0]), None);
        assert_eq!(key.key(&[1, 0, 0, 0, 0, 0, 0, 0]), Some(vec![1, 0]));
        assert_eq!(key.key(&[1, 0, 0, 0, 9, 0, 0, 0]), None, "two zones would be one");
    }

    #[test]
    fn numbers_are_read_and_written_by_name() {
        let shape = described("key 4 value 12 a@0+4 b@4+8").value;
        let mut record = [0; 12];
        assert!(shape.set_number(&mut record, "b", 0x0102));
        assert_eq!(record[4..6], [2, 1]);
        assert_eq!(shape.number(&record, "b"), Some(0x0102));
        assert_eq!(shape.number(&record, "c"), None);
        assert!(!shape.set_number(&mut record, "a", 1 << 32), "too large");
    }

    #[test]
    fn entries_are_found_in_their_sets() {
        let sets = described("key 1 id@0+1 value 4 n@0+2 check@2+1 ways 3 stride 8");
        assert_eq!(sets.element_sizes(), (4, 24));
        let mut element = [0; 24];
        element[..5].copy_from_slice(&[1, 2, 3, 0, 5]);
        element[16..21].copy_from_slice(&[6, 7, 8, 9, 10]);
        let entries: Vec<_> = sets.entries(&element).collect();
        assert_eq!(entries, [(&[6][..], &[7, 8, 9, 10][..])], "no check is no entry");
        let plain = described("key 1 id@0+1 value 4 n@0+2 check@2+1");
        assert_eq!(plain.element_sizes(), (1, 4));
        assert_eq!(plain.entries(&element).count(), 0);
    }

    #[test]
    fn zeroes_are_known_wherever_something_else_is() {
        assert!(is_zero(&[]) && is_zero(&[0]) && is_zero(&[0; 9]));
        for place in 0..9 {
            let mut bytes = [0; 9];
            bytes[place] = 1;
            assert!(!is_zero(&bytes), "{place}");
        }
        assert!(!is_zero(&[7; 9]));
    }

    #[test]
    fn nonsense_is_no_description() {
        for text in [
            "",
            "key 4",
            "key 4 value",
            "key 4 value 4 a@1+4",
            "key 4 value 4 a@18446744073709551615+1",
            "key 4 value 99999999",
            "key 4 value 4 a4",
            "key 4 value 4 a@0+4 ways 4",
            "key 4 value 4 a@0+4 ways 4 stride 7",
            "key 4 value 4 a@0+4 ways 4096 stride 64",
        ] {
            assert_eq!(text.parse::<Described>(), Err(()), "{text}");
        }
    }
}
