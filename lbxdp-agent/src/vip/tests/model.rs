//! What the allocation should do, said once more and as simply as it can be: pools are lists of
//! addresses, and everything is compared with everything.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Assignment;

/// How many addresses of each family there are.
pub const ADDRESSES: u8 = 10;

/// Two of those of IPv4 end in 255 and 0.
pub fn address(is_v6: bool, n: u8) -> IpAddr {
    match is_v6 {
        false => Ipv4Addr::from_bits(0xc000_02fb + u32::from(n)).into(),
        true => Ipv6Addr::from_bits((0x2001_0db8 << 96) + u128::from(n)).into(),
    }
}

fn is_buggy(addr: IpAddr) -> bool {
    addr.to_string().ends_with(".255") || addr.to_string().ends_with(".0")
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    Ours,
    Foreign,
    /// Of type ClusterIP.
    Plain,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Families {
    V4,
    V6,
    Prefer,
    PreferV6First,
    Require,
}

impl Families {
    /// Whether each of them is IPv6.
    pub fn list(self) -> Vec<bool> {
        match self {
            Self::V4 => vec![false],
            Self::V6 => vec![true],
            Self::Prefer | Self::Require => vec![false, true],
            Self::PreferV6First => vec![true, false],
        }
    }

    pub fn prefers(self) -> bool {
        matches!(self, Self::Prefer | Self::PreferV6First)
    }
}

/// What a Service wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    pub whose: Whose,
    pub families: Families,
    pub wanted: Vec<IpAddr>,
    pub pool: Option<usize>,
    pub key: Option<u8>,
    pub port: u16,
    /// The selector of one with externalTrafficPolicy Local.
    pub local: Option<u8>,
}

impl Wish {
    /// Whether both may have one address.
    pub fn agrees(&self, other: &Self) -> bool {
        self.key.is_some()
            && (self.key, self.local) == (other.key, other.local)
            && self.port != other.port
    }
}

/// What a pool says.
#[derive(Clone, Debug)]
pub struct PoolWish {
    /// Whether IPv6, first and last.
    pub ranges: Vec<(bool, u8, u8)>,
    pub auto_assign: bool,
    pub avoid_buggy: bool,
    /// Priority, and the namespaces that it is for.
    pub audience: Option<(i32, Vec<usize>)>,
}

impl PoolWish {
    pub fn addresses(&self) -> Vec<IpAddr> {
        let ranges = self.ranges.iter();
        ranges.flat_map(|(v6, a, b)| (*a..=*b).map(|n| address(*v6, n))).collect()
    }

    pub fn admits(&self, service: usize) -> bool {
        let namespace = namespace_of(service);
        let audience = self.audience.as_ref();
        audience.is_none_or(|(_, names)| names.is_empty() || names.contains(&namespace))
    }
}

/// The namespace that a Service is in.
pub fn namespace_of(service: usize) -> usize {
    service % 2
}

/// Whether a Service says that it is ours. Others are ours once there is a pool.
pub fn has_class(service: usize) -> bool {
    service.is_multiple_of(2)
}

/// Everything there is.
#[derive(Debug, Default)]
pub struct Model {
    /// In the order in which they were made.
    pub services: Vec<(usize, Wish)>,
    /// In the order in which they were made.
    pub pools: Vec<(usize, PoolWish)>,
    /// Addresses of nodes.
    pub nodes: BTreeSet<IpAddr>,
    /// What was decided in the last pass, since the agent started, and is not shown yet.
    pub decided: BTreeMap<usize, Assignment>,
}

impl Model {
    pub fn wish(&self, service: usize) -> &Wish {
        &self.services.iter().find(|(n, _)| *n == service).unwrap().1
    }

    pub fn pool(&self, pool: usize) -> Option<&PoolWish> {
        self.pools.iter().find(|(n, _)| *n == pool).map(|(_, pool)| pool)
    }

    /// What a Service has: what was decided, else what it shows.
    pub fn held(&self, service: usize, shown: &BTreeMap<usize, Assignment>) -> Assignment {
        self.decided.get(&service).unwrap_or(&shown[&service]).clone()
    }

    pub fn is_refused(&self, pool: usize) -> bool {
        let mut accepted: Vec<IpAddr> = Vec::new();
        for (n, wish) in &self.pools {
            let overlaps = wish.addresses().iter().any(|addr| accepted.contains(addr));
            if *n == pool {
                return overlaps;
            }
            if !overlaps {
                accepted.extend(wish.addresses());
            }
        }
        unreachable!()
    }

    /// What each Service that is ours should have.
    pub fn decide(&self, shown: &BTreeMap<usize, Assignment>) -> BTreeMap<usize, Assignment> {
        let held: BTreeMap<usize, Assignment> =
            shown.keys().map(|n| (*n, self.held(*n, shown))).collect();
        // Who shows or has an address, whether he may or not.
        let occupies = |n: usize, addr: IpAddr| {
            let is_none = self.wish(n).whose == Whose::Plain && shown[&n].pool.is_none();
            !is_none && (shown[&n].addresses.contains(&addr) || held[&n].addresses.contains(&addr))
        };
        let occupants = |addr| shown.keys().copied().filter(move |n| occupies(*n, addr));
        let mut order: Vec<(_, usize)> = Vec::new();
        for (age, (n, wish)) in self.services.iter().enumerate() {
            let is_in_use = has_class(*n) || !self.pools.is_empty() || shown[n].pool.is_some();
            if wish.whose != Whose::Ours || !is_in_use {
                continue;
            }
            let others: Vec<usize> = held[n]
                .addresses
                .iter()
                .flat_map(|addr| occupants(*addr))
                .filter(|other| other != n)
                .collect();
            let same = |other: &&usize| {
                let other = self.wish(**other);
                wish.key.is_some() && (other.key, other.local) == (wish.key, wish.local)
            };
            let partners = others.iter().filter(same).count();
            let is_intruder = !others.is_empty() && wish.key.is_none();
            let rank = (held[n].addresses.is_empty(), is_intruder, usize::MAX - partners, age);
            order.push((rank, *n));
        }
        order.sort();
        let order: Vec<usize> = order.into_iter().map(|(_, n)| n).collect();

        let mut result: BTreeMap<usize, Assignment> = BTreeMap::new();
        for n in &order {
            let kept = self.keep(*n, &held[n], &result);
            result.insert(*n, kept);
        }
        for n in &order {
            // What somebody shows or has without keeping it is not free, except for himself; what
            // somebody keeps can be had by those who agree with him.
            let can_have = |addr: IpAddr, is_new: bool, result: &BTreeMap<usize, Assignment>| {
                let keeps = |m: &usize| result.get(m).is_some_and(|a| a.addresses.contains(&addr));
                !(is_new && self.nodes.contains(&addr))
                    && occupants(addr).all(|m| m == *n || keeps(&m))
                    && result
                        .keys()
                        .all(|m| m == n || !keeps(m) || self.wish(*n).agrees(self.wish(*m)))
            };
            let now = result[n].clone();
            let given = self.give(*n, &now, |addr| can_have(addr, true, &result));
            result.insert(*n, given);
        }
        result
    }

    fn keep(
        &self,
        n: usize,
        held: &Assignment,
        so_far: &BTreeMap<usize, Assignment>,
    ) -> Assignment {
        let wish = self.wish(n);
        let set = |addresses: &[IpAddr]| addresses.iter().copied().collect::<BTreeSet<_>>();
        if !wish.wanted.is_empty() && set(&wish.wanted) != set(&held.addresses) {
            return Assignment::default();
        }
        let mut best: Option<(usize, usize)> = None;
        let is_noted = |pool: usize| held.pool.as_deref() == Some(&name(pool));
        let mut pools: Vec<_> = self.pools.iter().collect();
        pools.sort_by_key(|(pool, _)| (!is_noted(*pool), self.is_refused(*pool)));
        for (pool, says) in pools {
            if wish.pool.is_some_and(|wanted| wanted != *pool) || !says.admits(n) {
                continue;
            }
            let covers = held.addresses.iter().filter(|addr| says.addresses().contains(addr));
            let covers = covers.count();
            if covers > best.map_or(0, |(most, _)| most) {
                best = Some((covers, *pool));
            }
        }
        let Some((_, pool)) = best else { return Assignment::default() };
        let mut families = wish.families.list();
        let mut addresses = held.addresses.clone();
        addresses.retain(|addr| {
            let is_free = so_far
                .iter()
                .all(|(m, theirs)| !theirs.addresses.contains(addr) || wish.agrees(self.wish(*m)));
            let is_kept = families.contains(&addr.is_ipv6())
                && self.pool(pool).unwrap().addresses().contains(addr)
                && is_free;
            if is_kept {
                families.retain(|family| *family != addr.is_ipv6());
            }
            is_kept
        });
        let pool = (!addresses.is_empty()).then(|| name(pool));
        Assignment { addresses, pool }
    }

    fn give(&self, n: usize, now: &Assignment, can_have: impl Fn(IpAddr) -> bool) -> Assignment {
        let wish = self.wish(n);
        let families = wish.families.list();
        let usable = |pool: usize, addr: IpAddr| {
            let says = self.pool(pool).unwrap();
            !self.is_refused(pool)
                && says.admits(n)
                && !(says.avoid_buggy && is_buggy(addr))
                && can_have(addr)
        };
        // Ranges in the order in which they are written, the lowest address of each first.
        let first = |pool: usize, is_v6: bool| {
            let addresses = self.pool(pool).unwrap().addresses();
            addresses.into_iter().find(|addr| addr.is_ipv6() == is_v6 && usable(pool, *addr))
        };
        let found = |pool: usize, families: &[bool]| {
            families.iter().filter_map(|v6| first(pool, *v6)).collect::<Vec<_>>()
        };
        if !now.addresses.is_empty() {
            let has = |v6: &bool| now.addresses.iter().any(|addr| addr.is_ipv6() == *v6);
            let missing: Vec<bool> = families.into_iter().filter(|v6| !has(v6)).collect();
            let mut now = now.clone();
            let pool = self.pools.iter().find(|(pool, _)| now.pool == Some(name(*pool)));
            now.addresses.extend(found(pool.unwrap().0, &missing));
            return now;
        }
        let of = |pool: usize, addresses| Assignment { addresses, pool: Some(name(pool)) };
        if !wish.wanted.is_empty() {
            let wanted: BTreeSet<bool> = wish.wanted.iter().map(IpAddr::is_ipv6).collect();
            if wanted != families.into_iter().collect() {
                return Assignment::default();
            }
            // The oldest pool that has them, or the one that is asked for, and no other one. One
            // that gives nothing out is looked at last.
            let mut pools: Vec<usize> = self.pools.iter().map(|(pool, _)| *pool).collect();
            pools.sort_by_key(|pool| self.is_refused(*pool));
            let pool = pools.into_iter().find(|pool| {
                let all = self.pool(*pool).unwrap().addresses();
                wish.pool.is_none_or(|asked| asked == *pool)
                    && wish.wanted.iter().all(|addr| all.contains(addr))
            });
            return match pool {
                Some(pool) if wish.wanted.iter().all(|addr| usable(pool, *addr)) => {
                    of(pool, wish.wanted.clone())
                }
                _ => Assignment::default(),
            };
        }
        let all = families.len();
        if let Some(pool) = wish.pool {
            let found = match self.pool(pool) {
                Some(_) => found(pool, &families),
                None => Vec::new(),
            };
            let is_enough = found.len() == all || wish.families.prefers();
            let is_some = !found.is_empty() && is_enough;
            return if is_some { of(pool, found) } else { Assignment::default() };
        }
        let mut stages = [Vec::new(), Vec::new()];
        for (pool, says) in &self.pools {
            if says.auto_assign {
                let priority = says.audience.as_ref().map_or(0, |(priority, _)| *priority);
                let rank = (if priority == 0 { i32::MAX } else { priority }, *pool);
                stages[usize::from(says.audience.is_none())].push(rank);
            }
        }
        for mut stage in stages {
            stage.sort();
            let offers: Vec<_> =
                stage.into_iter().map(|(_, pool)| (pool, found(pool, &families))).collect();
            let full = offers.iter().find(|(_, found)| found.len() == all);
            let with = |v6: bool| {
                let mut offers = offers.iter();
                offers.find(move |(_, found)| found.iter().any(|addr| addr.is_ipv6() == v6))
            };
            let best = match wish.families.prefers() {
                true => full.or_else(|| with(families[0])).or_else(|| with(families[1])),
                false => full,
            };
            if let Some((pool, found)) = best {
                return of(*pool, found.clone());
            }
        }
        Assignment::default()
    }
}

/// Name of a pool.
pub fn name(pool: usize) -> String {
    format!("p{pool}")
}
