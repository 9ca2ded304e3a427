//! `--service-cidr`: the ranges that only Services have, as the programs compare with them.

use anyhow::ensure;
use ipnet::IpNet;
use lbxdp_common::{Cidr, Cidrs, MAX_SERVICE_CIDRS, Octets};

/// The ranges of both families.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceCidrs {
    /// IPv4.
    pub v4: Cidrs,
    /// IPv6.
    pub v6: Cidrs,
}

impl Default for ServiceCidrs {
    fn default() -> Self {
        let none = [Cidr::UNUSED; MAX_SERVICE_CIDRS];
        Self { v4: none, v6: none }
    }
}

impl ServiceCidrs {
    /// Fails for more ranges of a family than the programs have room for, and for a range of
    /// every address: nothing would leave or enter the node any more.
    pub fn new(ranges: &[IpNet]) -> anyhow::Result<Self> {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for range in ranges {
            let len = range.prefix_len();
            ensure!(len > 0, "--service-cidr {range}: not every address is a Service's");
            match range {
                IpNet::V4(range) => v4.push(Cidr::new(&range.network().octets(), len)),
                IpNet::V6(range) => v6.push(Cidr::new(&range.network().octets(), len)),
            }
        }
        Ok(Self { v4: filled::<[u8; 4]>(&v4)?, v6: filled::<[u8; 16]>(&v6)? })
    }
}

fn filled<A: Octets>(ranges: &[Cidr]) -> anyhow::Result<Cidrs> {
    ensure!(
        ranges.len() <= MAX_SERVICE_CIDRS,
        "--service-cidr: {} ranges of IPv{}, at most {MAX_SERVICE_CIDRS} are possible",
        ranges.len(),
        A::VERSION
    );
    let mut cidrs = [Cidr::UNUSED; MAX_SERVICE_CIDRS];
    cidrs[..ranges.len()].copy_from_slice(ranges);
    Ok(cidrs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidrs(ranges: &[&str]) -> anyhow::Result<ServiceCidrs> {
        let ranges: Vec<IpNet> = ranges.iter().map(|range| range.parse().unwrap()).collect();
        ServiceCidrs::new(&ranges)
    }

    #[test]
    fn each_family_has_room_for_four_ranges() {
        let four = ["10.0.0.0/24", "10.0.1.0/24", "10.0.2.0/24", "10.0.3.0/24"];
        let mut ranges = four.to_vec();
        ranges.extend(["fd00:1::/64", "fd00:2::/64", "fd00:3::/64", "fd00:4::/64"]);
        let full = cidrs(&ranges).unwrap();
        assert!(!full.v4.contains(&Cidr::UNUSED) && !full.v6.contains(&Cidr::UNUSED));
        ranges.push("10.0.4.0/24");
        let error = cidrs(&ranges).unwrap_err().to_string();
        assert_eq!(error, "--service-cidr: 5 ranges of IPv4, at most 4 are possible");
        ranges[8] = "fd00:5::/64";
        let error = cidrs(&ranges).unwrap_err().to_string();
        assert_eq!(error, "--service-cidr: 5 ranges of IPv6, at most 4 are possible");
    }

    #[test]
    fn a_range_of_every_address_is_refused() {
        for range in ["0.0.0.0/0", "::/0"] {
            let error = cidrs(&[range]).unwrap_err().to_string();
            assert!(error.contains("not every address"), "{error}");
        }
    }

    #[test]
    fn members_of_a_range_masked_are_its_first_address() {
        fn has<A: Octets>(cidr: &Cidr, addr: A) -> bool {
            let [high, low] = Cidr::words_of(&addr);
            [high & cidr.mask[0], low & cidr.mask[1]] == cidr.first
        }
        let v4 = cidrs(&["10.96.5.1/12"]).unwrap().v4[0];
        for (addr, is) in
            [([10, 96, 0, 0], true), ([10, 111, 255, 255], true), ([10, 112, 0, 0], false)]
        {
            assert_eq!(has(&v4, addr), is, "{addr:?}");
        }
        let v6 = cidrs(&["fd00:10:96::/108"]).unwrap().v6[0];
        for (addr, is) in
            [("fd00:10:96::f:ffff", true), ("fd00:10:96::10:0", false), ("fd00:11:96::1", false)]
        {
            let octets = addr.parse::<std::net::Ipv6Addr>().unwrap().octets();
            assert_eq!(has(&v6, octets), is, "{addr}");
        }
        let all = cidrs(&["192.0.2.1/32", "2001:db8::1/128"]).unwrap();
        assert!(has(&all.v4[0], [192, 0, 2, 1]) && !has(&all.v4[0], [192, 0, 2, 0]));
        let one = std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).octets();
        assert!(has(&all.v6[0], one) && !has(&all.v6[0], [0; 16]));
    }
}
