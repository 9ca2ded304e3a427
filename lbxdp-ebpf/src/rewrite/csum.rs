//! Internet checksum arithmetic (RFC 1071, RFC 1624) in the byte order of this machine: a ones'
//! complement sum may be taken in either order as long as it is stored in the same.

/// What a checksum must take in when words change: a sum of new words and of the complements of
/// the old ones.
#[derive(Clone, Copy, Default)]
pub struct Difference(u64);

impl Difference {
    /// Replaces words that sum up to `old` by words that sum up to `new`; at most 2³² words in
    /// all.
    #[inline(always)]
    pub fn replace(&mut self, old: u64, new: u64) {
        self.0 = fold32(self.0) + fold32(!fold32(old) & 0xffff_ffff) + fold32(new);
    }

    /// Takes in another difference.
    #[inline(always)]
    pub fn add(&mut self, other: Self) {
        self.0 = fold32(self.0) + fold32(other.0);
    }

    /// The difference as the kernel's helpers take it: a 32-bit ones' complement sum.
    #[inline(always)]
    pub fn word(self) -> u32 {
        fold32(fold32(self.0)) as u32
    }

    /// `checksum` (as it stands in the header, network order bytes) after the change.
    #[inline(always)]
    pub fn apply(self, checksum: [u8; 2]) -> [u8; 2] {
        let sum = u64::from(!u16::from_ne_bytes(checksum)) + fold32(self.0);
        (!fold16(sum)).to_ne_bytes()
    }
}

/// Sums the halves, so that nothing of the sum is lost and it fits 33 bits.
#[inline(always)]
const fn fold32(sum: u64) -> u64 {
    (sum >> 32) + (sum & 0xffff_ffff)
}

/// The 16-bit ones' complement sum.
#[inline(always)]
pub const fn fold16(sum: u64) -> u16 {
    let sum = fold32(fold32(sum));
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    ((sum >> 16) + (sum & 0xffff)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn full(words: &[u16]) -> u16 {
        !fold16(words.iter().map(|word| u64::from(*word)).sum())
    }

    /// RFC 1071, section 3: the sum of 0001 f203 f4f5 f6f7 is ddf2.
    #[test]
    fn the_example_of_rfc_1071_holds() {
        assert_eq!(fold16(0x0001 + 0xf203 + 0xf4f5 + 0xf6f7), 0xddf2);
    }

    /// RFC 1624, section 4: 5555 becomes 3285, the checksum dd2f becomes 0000.
    #[test]
    fn the_example_of_rfc_1624_holds() {
        let mut difference = Difference::default();
        difference.replace(0x5555, 0x3285);
        assert_eq!(u16::from_ne_bytes(difference.apply(0xdd2f_u16.to_ne_bytes())), 0x0000);
    }

    proptest! {
        #[test]
        fn an_update_equals_a_recomputation(
            mut words in proptest::collection::vec(any::<u16>(), 8..40),
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u16>()), 1..6),
        ) {
            // A packet of zeros only has two valid checksums; no IP packet is one.
            words[0] |= 1;
            let before = full(&words);
            let mut difference = Difference::default();
            for (index, new) in changes {
                let at = 1 + index.index(words.len() - 1);
                difference.replace(words[at].into(), new.into());
                words[at] = new;
            }
            let after = u16::from_ne_bytes(difference.apply(before.to_ne_bytes()));
            prop_assert_eq!(after, full(&words));
            let by_word = !fold16(u64::from(!before) + u64::from(difference.word()));
            prop_assert_eq!(by_word, full(&words));
        }
    }
}
