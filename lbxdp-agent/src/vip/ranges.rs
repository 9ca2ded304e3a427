//! Ranges and sets of addresses, whatever their size.
//!
//! Nothing here looks at one address after the other: a pool may be a /64.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use ipnet::IpNet;
use range_set_blaze::RangeSetBlaze;

use crate::model::Family;
use crate::problem::quoted;

/// `::ffff:0:0/96`. As IPv6 no address of it is ever given out, which is why IPv4 can stand there.
const MAPPED: RangeInclusive<u128> = 0xffff_0000_0000..=0xffff_ffff_ffff;

/// An address as a number that no address of the other family has.
fn number(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

fn address(number: u128) -> IpAddr {
    if MAPPED.contains(&number) {
        return Ipv4Addr::from_bits((number & 0xffff_ffff) as u32).into();
    }
    Ipv6Addr::from_bits(number).into()
}

/// Whether some home routers take it for a broadcast address and drop what comes from it: IPv4
/// with a last octet of 0 or 255.
pub(super) fn is_buggy(addr: IpAddr) -> bool {
    matches!(addr, IpAddr::V4(v4) if matches!(v4.octets()[3], 0 | 255))
}

/// One entry of `spec.addresses`: consecutive addresses of one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Range {
    first: IpAddr,
    last: IpAddr,
}

impl Range {
    /// Reads `192.0.2.0/24` or `192.0.2.10-192.0.2.20`. Bits of the host are ignored, as MetalLB
    /// does.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let bad = |why: &str| format!("{} {why}", quoted(text));
        let Some((first, last)) = text.split_once('-') else {
            let net: IpNet = text.trim().parse().map_err(|_| {
                let one = text.trim().parse::<IpAddr>().is_ok();
                bad(match one {
                    true => "is one address: a range is written as a/b or a-b",
                    false => "is no range: neither a/b nor a-b",
                })
            })?;
            return Ok(Self::from(net));
        };
        let end = |text: &str| text.trim().parse::<IpAddr>();
        let (Ok(first), Ok(last)) = (end(first), end(last)) else {
            return Err(bad("is no range: one of its ends is no IP address"));
        };
        if Family::of(first) != Family::of(last) {
            return Err(bad("has ends of two families"));
        }
        if first > last {
            return Err(bad("ends before it begins"));
        }
        Ok(Self { first, last })
    }

    /// The family.
    pub(super) fn family(&self) -> Family {
        Family::of(self.first)
    }

    /// Whether an address lies in it.
    pub(super) fn contains(&self, addr: IpAddr) -> bool {
        Family::of(addr) == self.family() && self.first <= addr && addr <= self.last
    }

    /// The first address that is neither `taken` nor, if those are to be left out, a buggy one.
    pub(super) fn first_free(&self, taken: &AddressSet, avoid_buggy: bool) -> Option<IpAddr> {
        let last = number(self.last);
        let mut next = number(self.first);
        while next <= last {
            let (range, is_taken) = taken.0.range_or_gap_at(next);
            if is_taken {
                next = range.end().checked_add(1)?;
            } else if avoid_buggy && is_buggy(address(next)) {
                // Never more than two in a row.
                next += 1;
            } else {
                return Some(address(next));
            }
        }
        None
    }

    fn numbers(&self) -> RangeInclusive<u128> {
        number(self.first)..=number(self.last)
    }
}

impl From<IpNet> for Range {
    fn from(net: IpNet) -> Self {
        Self { first: net.network(), last: net.broadcast() }
    }
}

impl From<IpAddr> for Range {
    fn from(addr: IpAddr) -> Self {
        Self { first: addr, last: addr }
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// Addresses of both families.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct AddressSet(RangeSetBlaze<u128>);

impl AddressSet {
    /// Adds a range. The IPv6 spelling of IPv4 addresses is never part of a set.
    pub(super) fn insert(&mut self, range: &Range) {
        match range.family() {
            Family::V4 => {
                self.0.ranges_insert(range.numbers());
            }
            Family::V6 => {
                let mut set = RangeSetBlaze::from_iter([range.numbers()]);
                if !set.is_disjoint(&mapped()) {
                    set = &set - &mapped();
                }
                self.0 |= set;
            }
        }
    }

    /// Whether it has an address.
    pub(super) fn contains(&self, addr: IpAddr) -> bool {
        self.0.contains(number(addr))
    }

    /// What both have.
    pub(super) fn and(&self, other: &Self) -> Self {
        Self(&self.0 & &other.0)
    }

    /// What the other does not have.
    pub(super) fn without(&self, other: &Self) -> Self {
        Self(&self.0 - &other.0)
    }

    /// The lowest address, IPv4 or not.
    pub(super) fn first(&self) -> Option<IpAddr> {
        self.0.first().map(address)
    }

    /// How many addresses of a family it has, and without the buggy ones if those are to be left
    /// out. As large as it gets where it is more.
    pub(super) fn count(&self, family: Family, avoid_buggy: bool) -> u64 {
        let of_family = match family {
            Family::V4 => &self.0 & &mapped(),
            Family::V6 => &self.0 - &mapped(),
        };
        let mut count = 0u128;
        for range in of_family.ranges() {
            let (first, last) = range.into_inner();
            let buggy = match (family, avoid_buggy) {
                (Family::V4, true) => {
                    buggy_up_to(last) - first.checked_sub(1).map_or(0, buggy_up_to)
                }
                _ => 0,
            };
            count = count.saturating_add((last - first).saturating_add(1) - buggy);
        }
        count.try_into().unwrap_or(u64::MAX)
    }
}

impl FromIterator<Range> for AddressSet {
    fn from_iter<I: IntoIterator<Item = Range>>(ranges: I) -> Self {
        let mut set = Self::default();
        ranges.into_iter().for_each(|range| set.insert(&range));
        set
    }
}

fn mapped() -> RangeSetBlaze<u128> {
    RangeSetBlaze::from_iter([MAPPED])
}

/// How many numbers up to this one end in an octet of 0 or 255.
fn buggy_up_to(number: u128) -> u128 {
    number / 256 * 2 + if number % 256 == 255 { 2 } else { 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> Range {
        Range::parse(text).unwrap()
    }

    fn set(ranges: &[&str]) -> AddressSet {
        ranges.iter().map(|text| range(text)).collect()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn ranges_are_written_in_two_ways() {
        for (text, expected) in [
            ("192.0.2.0/30", "192.0.2.0-192.0.2.3"),
            ("192.0.2.7/30", "192.0.2.4-192.0.2.7"),
            (" 192.0.2.5 - 192.0.2.9", "192.0.2.5-192.0.2.9"),
            ("192.0.2.5/32", "192.0.2.5-192.0.2.5"),
            ("2001:db8::/127", "2001:db8::-2001:db8::1"),
            ("2001:db8::1-2001:db8::ff", "2001:db8::1-2001:db8::ff"),
        ] {
            assert_eq!(range(text).to_string(), expected, "{text}");
        }
        for (text, part) in [
            ("192.0.2.1", "one address"),
            ("", "no range"),
            ("192.0.2.0/33", "no range"),
            ("192.0.2.1-x", "no IP address"),
            ("192.0.2.1-2001:db8::1", "two families"),
            ("192.0.2.2-192.0.2.1", "ends before"),
        ] {
            let error = Range::parse(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn a_family_is_not_mistaken_for_the_other() {
        let all = set(&["::/0"]);
        assert!(all.contains(ip("2001:db8::1")) && !all.contains(ip("192.0.2.1")));
        assert!(!all.contains(ip("0.0.0.0")) && !range("::/0").contains(ip("192.0.2.1")));
        let all = set(&["0.0.0.0/0"]);
        assert!(all.contains(ip("255.255.255.255")) && !all.contains(ip("::1")));
    }

    #[test]
    fn the_first_free_address_is_found_at_once_in_any_range() {
        let taken = set(&["2001:db8::/65", "192.0.2.0-192.0.2.9", "192.0.2.11-192.0.2.255"]);
        let first = |text, avoid| range(text).first_free(&taken, avoid).map(|a| a.to_string());
        assert_eq!(first("2001:db8::/64", false).unwrap(), "2001:db8:0:0:8000::");
        assert_eq!(first("2001:db8::/65", false), None);
        assert_eq!(first("192.0.2.0/24", false).unwrap(), "192.0.2.10");
        assert_eq!(first("192.0.2.11-192.0.3.9", false).unwrap(), "192.0.3.0");
        assert_eq!(first("192.0.2.11-192.0.3.9", true).unwrap(), "192.0.3.1");
        assert_eq!(first("198.51.100.255-198.51.101.0", true), None);
        let ends = set(&["ffff::/16", "255.0.0.0/8"]);
        for text in ["ffff::/16", "255.255.0.0/16"] {
            assert_eq!(range(text).first_free(&ends, false), None);
        }
    }

    #[test]
    fn counts_are_exact_until_they_are_too_large() {
        let count = |ranges: &[&str], family, avoid| set(ranges).count(family, avoid);
        let (v4, v6) = (Family::V4, Family::V6);
        assert_eq!(count(&["192.0.2.0/24"], v4, false), 256);
        assert_eq!(count(&["192.0.2.0/24"], v4, true), 254);
        assert_eq!(count(&["192.0.2.0/24"], v6, false), 0);
        assert_eq!(count(&["192.0.2.1-192.0.2.254", "192.0.2.9/32"], v4, true), 254);
        assert_eq!(count(&["192.0.2.255-192.0.3.0"], v4, true), 0);
        assert_eq!(count(&["10.0.0.0/8"], v4, true), (1 << 24) - (1 << 17));
        assert_eq!(count(&["0.0.0.0/0"], v4, false), 1 << 32);
        assert_eq!(count(&["2001:db8::/112", "192.0.2.0/24"], v6, true), 1 << 16);
        assert_eq!(count(&["2001:db8::/65"], v6, false), 1 << 63);
        assert_eq!(count(&["2001:db8::/64"], v6, false), u64::MAX);
        assert_eq!(count(&["::/0"], v6, false), u64::MAX);
    }
}
