//! Which of the source ports that flows may be given this generation of programs takes: the one
//! element of `port_share`.

use crate::drop_reason::numbered;

numbered! {
    /// While programs on other maps take over, each generation begins flows that the other one does
    /// not know as yet. They never take the same port: a reply is one of either's alone.
    PortShare {
        /// Every port: nobody else gives out any.
        All = 0 "all",
        /// The lower half, for those that are replaced.
        Lower = 1 "lower",
        /// The upper half, for those that take over.
        Upper = 2 "upper",
    }
}

impl PortShare {
    /// The share with this number of `count` ports from `low` upwards, never 0: as first port and
    /// how many. A single port is not shared, and an unknown number shares nothing.
    #[inline(always)]
    pub const fn of(number: u32, low: u16, count: u32) -> (u16, u32) {
        let lower = count / 2;
        if lower == 0 {
            (low, count)
        } else if number == Self::Lower as u32 {
            (low, lower)
        } else if number == Self::Upper as u32 {
            (low.wrapping_add(lower as u16), count - lower)
        } else {
            (low, count)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_halves_are_the_whole_and_have_no_port_in_common() {
        for count in [2, 3, 16, 4_535, 65_535] {
            let (low, lower) = PortShare::of(PortShare::Lower as u32, 1, count);
            let (middle, upper) = PortShare::of(PortShare::Upper as u32, 1, count);
            assert_eq!((low, u32::from(middle), lower + upper), (1, 1 + lower, count));
            assert!(lower.abs_diff(upper) < 2);
        }
        assert_eq!(PortShare::of(PortShare::Upper as u32, 65_534, 2), (65_535, 1));
    }

    #[test]
    fn what_cannot_be_shared_is_not() {
        for share in PortShare::ALL {
            assert_eq!(PortShare::of(*share as u32, 7, 1), (7, 1));
        }
        assert_eq!(PortShare::of(99, 7, 100), (7, 100));
    }
}
