//! What a node says of itself, besides that it is there.
//!
//! It is part of what its agent is to the others, so whoever knows of the agent knows this, and it costs no
//! byte more: four bits beside the family of its address.

use serde::{Deserialize, Serialize};

/// What others cannot see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Says {
    /// Its agent ends on purpose; the node lives, and forwards.
    pub is_leaving: bool,
    /// Its programs do not run, or its maps are not what they should be.
    pub lacks_programs: bool,
    /// None of its devices that face outwards has programs and a carrier.
    pub lacks_device: bool,
}

const LEAVING: u8 = 1 << 0;
const NO_PROGRAMS: u8 = 1 << 1;
const NO_DEVICE: u8 = 1 << 2;

impl Says {
    /// In the lower four bits.
    pub(super) fn bits(self) -> u8 {
        let Self { is_leaving, lacks_programs, lacks_device } = self;
        let all = [(is_leaving, LEAVING), (lacks_programs, NO_PROGRAMS), (lacks_device, NO_DEVICE)];
        all.into_iter().filter(|(is, _)| *is).map(|(_, bit)| bit).sum()
    }

    /// Bits that mean nothing yet are for later agents.
    pub(super) const fn from_bits(bits: u8) -> Self {
        Self {
            is_leaving: bits & LEAVING != 0,
            lacks_programs: bits & NO_PROGRAMS != 0,
            lacks_device: bits & NO_DEVICE != 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_has_a_bit_of_its_own_and_nothing_is_zero() {
        assert_eq!(Says::default().bits(), 0);
        for bits in 0..8 {
            assert_eq!(Says::from_bits(bits).bits(), bits);
        }
        assert_eq!(Says::from_bits(8), Says::default());
    }
}
