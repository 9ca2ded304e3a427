//! Bytes that tell their place: a stream that lost, doubled or swapped anything no longer fits.

use std::sync::OnceLock;

/// The pattern repeats after a prime number of bytes, so that no power of two is a period.
const PERIOD: usize = 65_521;

fn table() -> &'static [u8] {
    static TABLE: OnceLock<Vec<u8>> = OnceLock::new();
    TABLE.get_or_init(|| {
        // splitmix64.
        let mut state = 0x1b_5d_90_u64;
        let mut bytes = Vec::with_capacity(PERIOD + 8);
        while bytes.len() < PERIOD {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            bytes.extend_from_slice(&(z ^ (z >> 31)).to_be_bytes());
        }
        bytes.truncate(PERIOD);
        bytes
    })
}

/// The pattern from `offset` on, at most as long as `limit` and as the table reaches.
pub fn at(offset: u64, limit: u64) -> &'static [u8] {
    let table = table();
    let start = usize::try_from(offset % PERIOD as u64).unwrap_or(0);
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    &table[start..PERIOD.min(start.saturating_add(limit))]
}

/// The first place in `data` that does not fit the pattern from `offset` on.
pub fn first_mismatch(offset: u64, data: &[u8]) -> Option<u64> {
    let mut done = 0;
    while done < data.len() {
        let place = offset + done as u64;
        let expected = at(place, (data.len() - done) as u64);
        let chunk = &data[done..done + expected.len()];
        if chunk != expected {
            let within = chunk.iter().zip(expected).position(|(a, b)| a != b).unwrap_or(0);
            return Some(place + within as u64);
        }
        done += expected.len();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_that_fits_fits_and_one_changed_or_missing_byte_does_not() {
        let mut data = Vec::new();
        while data.len() < 200_000 {
            data.extend_from_slice(at(5 + data.len() as u64, 1 << 20));
        }
        assert_eq!(first_mismatch(5, &data), None);
        data[150_000] ^= 1;
        assert_eq!(first_mismatch(5, &data), Some(150_005));
        data[150_000] ^= 1;
        data.remove(70_000);
        assert!(first_mismatch(5, &data).is_some());
    }
}
