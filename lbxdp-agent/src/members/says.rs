//! What a node says of itself, besides that it is there.
//!
//! It is part of what its agent is to the others, so whoever knows of the agent knows this, and it costs few
//! bytes: four bits beside the family of its address, and eight bytes for the names of devices.

use serde::{Deserialize, Serialize};

/// What others cannot see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Says {
    /// Its agent ends on purpose; the node lives, and forwards.
    pub is_leaving: bool,
    /// Its programs do not run, or its maps are not what they should be.
    pub lacks_programs: bool,
    /// The devices that face outwards and have programs and a carrier.
    pub devices: Devices,
}

/// Names of devices, by two bytes of each.
///
/// One in 65,535 names is taken for another one; an address that only that one may be announced by is
/// announced by nobody then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Devices([u16; 4]);

impl Devices {
    /// None.
    pub const NONE: Self = Self([0; 4]);
    /// Nothing is known of them, or there are more than four: it may be any.
    pub const ANY: Self = Self([u16::MAX; 4]);
    /// Bytes of what is written.
    pub(super) const LEN: usize = 8;

    /// Those with these names.
    pub fn of<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let mut marks: Vec<u16> = names.into_iter().map(mark).collect();
        marks.sort_unstable();
        marks.dedup();
        let mut devices = Self::NONE;
        match devices.0.get_mut(..marks.len()) {
            Some(room) => room.copy_from_slice(&marks),
            None => return Self::ANY,
        }
        devices
    }

    /// Whether one of them has this name.
    pub fn have(self, name: &str) -> bool {
        self == Self::ANY || self.0.contains(&mark(name))
    }

    /// Whether there is none.
    pub fn is_none(self) -> bool {
        self == Self::NONE
    }

    /// As they are written: in network byte order.
    pub(super) fn bits(self) -> u64 {
        self.0.iter().fold(0, |bits, mark| bits << 16 | u64::from(*mark))
    }

    /// What was written.
    pub(super) fn from_bits(bits: u64) -> Self {
        Self([48, 32, 16, 0].map(|shift| (bits >> shift) as u16))
    }
}

impl Default for Devices {
    /// Whoever has said nothing may have any.
    fn default() -> Self {
        Self::ANY
    }
}

/// Two bytes of a name, the same on every node and neither 0 nor all ones: FNV-1a, folded.
fn mark(name: &str) -> u16 {
    let hash = name
        .bytes()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let folded = (hash >> 16) as u16 ^ hash as u16;
    folded.clamp(1, u16::MAX - 1)
}

const LEAVING: u8 = 1 << 0;
const NO_PROGRAMS: u8 = 1 << 1;
/// The devices follow.
const DEVICES: u8 = 1 << 2;

impl Says {
    /// In the lower four bits.
    pub(super) fn bits(self) -> u8 {
        let Self { is_leaving, lacks_programs, devices } = self;
        let has_devices = devices != Devices::ANY;
        let all = [(is_leaving, LEAVING), (lacks_programs, NO_PROGRAMS), (has_devices, DEVICES)];
        all.into_iter().filter(|(is, _)| *is).map(|(_, bit)| bit).sum()
    }

    /// Bits that mean nothing yet are for later agents. Whether the devices follow is told by
    /// [`Self::have_devices`].
    pub(super) const fn from_bits(bits: u8) -> Self {
        Self {
            is_leaving: bits & LEAVING != 0,
            lacks_programs: bits & NO_PROGRAMS != 0,
            devices: Devices::ANY,
        }
    }

    /// Whether they do.
    pub(super) const fn have_devices(bits: u8) -> bool {
        bits & DEVICES != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_has_a_bit_of_its_own_and_nothing_is_zero() {
        assert_eq!(Says::default().bits(), 0);
        for bits in 0..4 {
            assert_eq!(Says::from_bits(bits).bits(), bits);
        }
        assert_eq!(Says::from_bits(8), Says::default());
        let bits = Says { devices: Devices::NONE, ..Says::default() }.bits();
        assert!(Says::have_devices(bits) && !Says::have_devices(0));
    }

    #[test]
    fn devices_are_known_by_their_names() {
        let some = Devices::of(["eth0", "bond0.7"]);
        assert!(some.have("eth0") && some.have("bond0.7") && !some.have("eth1") && !some.is_none());
        assert_eq!(some, Devices::of(["bond0.7", "eth0", "eth0"]));
        assert!(Devices::of([]).is_none() && !Devices::NONE.have("eth0"));
        let many = ["a", "b", "c", "d", "e"];
        assert!(Devices::of(many[..4].iter().copied()) != Devices::ANY);
        assert!(Devices::of(many) == Devices::ANY && Devices::ANY.have("eth0"));
        for devices in [some, Devices::NONE, Devices::ANY] {
            assert_eq!(Devices::from_bits(devices.bits()), devices);
        }
    }
}
