//! The checksum of SCTP, CRC32c (RFC 9260, appendix A), after a change of four bytes.
//!
//! A CRC is linear: the CRCs of two messages of one length differ by what their difference leaves
//! in a register that starts with zero. The difference of two packets whose ports differ is four
//! bytes and then zeros; and four bytes at the start of a message are four bytes in the register
//! and then zeros, too. So the change is what as many zero bytes as the message is long make of
//! the difference: a matrix for each bit of the length, looked up by four bits of the register at
//! a time.

/// The polynomial 0x1EDC6F41, the lowest bit for the highest power.
const POLYNOMIAL: u32 = 0x82f6_3b78;
/// An IP packet has fewer than 2 to the power of this many bytes.
const LOG2_LENGTHS: usize = 16;
/// Groups of four bits in the register.
const NIBBLES: usize = 8;

/// What zeros make of each value of each group of four bits.
type Matrix = [[u32; 16]; NIBBLES];

/// Entry k: 2 to the power of k zero bytes.
static ZEROS: [Matrix; LOG2_LENGTHS] = powers();

/// One zero bit.
const fn zero_bit(register: u32) -> u32 {
    (register >> 1) ^ (POLYNOMIAL & (register & 1).wrapping_neg())
}

const fn powers() -> [Matrix; LOG2_LENGTHS] {
    let mut powers = [[[0; 16]; NIBBLES]; LOG2_LENGTHS];
    let mut at = 0;
    while at < LOG2_LENGTHS * NIBBLES * 16 {
        let (power, nibble, value) = (at / (NIBBLES * 16), at / 16 % NIBBLES, at % 16);
        let mut register = (value as u32) << (4 * nibble);
        if power == 0 {
            let mut zeros = 0;
            while zeros < 8 {
                register = zero_bit(register);
                zeros += 1;
            }
        } else {
            let half = &powers[power - 1];
            register = apply(half, apply(half, register));
        }
        powers[power][nibble][value] = register;
        at += 1;
    }
    powers
}

/// Product of a matrix and a register.
#[inline(always)]
const fn apply(matrix: &Matrix, register: u32) -> u32 {
    let mut product = 0;
    let mut nibble = 0;
    while nibble < NIBBLES {
        product ^= matrix[nibble][(register >> (4 * nibble)) as usize & 15];
        nibble += 1;
    }
    product
}

/// What is to be added (by exclusive or) to the CRC32c of a message of `length` bytes when its
/// first four change; `difference` is the exclusive or of the old and the new ones.
#[inline(always)]
pub fn change(difference: [u8; 4], length: u16) -> u32 {
    let mut register = u32::from_le_bytes(difference);
    for (power, matrix) in ZEROS.iter().enumerate() {
        // All or nothing without a branch: the verifier would follow every combination of bits.
        let is_set = core::hint::black_box((u32::from(length) >> power & 1).wrapping_neg());
        register ^= (apply(matrix, register) ^ register) & is_set;
    }
    register
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(message: &mut [u8], ports: [u8; 4]) {
        let before = crc32c::crc32c(message);
        let mut difference = ports;
        for (new, old) in difference.iter_mut().zip(message.iter_mut()) {
            *new ^= *old;
            *old ^= *new;
        }
        let length = u16::try_from(message.len()).expect("an IP packet");
        assert_eq!(before ^ change(difference, length), crc32c::crc32c(message));
    }

    /// RFC 3720, appendix B.4: 32 bytes of zeros.
    #[test]
    fn the_independent_implementation_has_the_same_polynomial() {
        assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
    }

    #[test]
    fn a_change_of_any_bit_is_taken_in_at_every_length() {
        for length in (12..=1_500).chain([9_000, 65_515]) {
            let mut message: Vec<u8> = (0..=255).cycle().take(length).collect();
            for bit in 0..32 {
                let mut ports = [message[0], message[1], message[2], message[3]];
                ports[bit / 8] ^= 1 << (bit % 8);
                check(&mut message, ports);
            }
        }
    }

    proptest! {
        #[test]
        fn an_update_equals_a_recomputation(
            mut message in proptest::collection::vec(any::<u8>(), 12..=1_500),
            ports: [u8; 4],
        ) {
            check(&mut message, ports);
        }
    }
}
