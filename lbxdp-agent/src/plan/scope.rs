//! Whom a plan looks at, and what the maps' tables and backends are used for after it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use lbxdp_common::Descriptor;

use super::Draft;
use super::tables::Tables;
use crate::apply::Actual;
use crate::changes::Touched;
use crate::model::{Desired, Family, Frontend, FrontendAddr, Problem};
use crate::slab::BlockRange;

/// Whom a plan looks at.
#[derive(Clone, Copy)]
pub(super) enum Scope<'a> {
    /// Everybody.
    All,
    /// These.
    Some(&'a Touched),
}

impl<'a> Scope<'a> {
    /// Whether it has a frontend.
    pub(super) fn has(self, addr: &FrontendAddr) -> bool {
        match self {
            Self::All => true,
            Self::Some(touched) => touched.frontends.contains(addr),
        }
    }

    /// The frontends in it that should be served.
    pub(super) fn frontends<'d>(
        self,
        desired: &'d Desired,
    ) -> Box<dyn Iterator<Item = (FrontendAddr, &'d Frontend)> + 'd>
    where
        'a: 'd,
    {
        match self {
            Self::All => Box::new(desired.frontends.iter().map(|(addr, value)| (*addr, value))),
            Self::Some(touched) => Box::new(
                touched
                    .frontends
                    .iter()
                    .filter_map(|addr| Some((*addr, desired.frontends.get(addr)?))),
            ),
        }
    }

    /// The frontends in it that the maps have, and their ids.
    pub(super) fn programmed<'d>(
        self,
        actual: &'d Actual,
    ) -> Box<dyn Iterator<Item = (FrontendAddr, u32)> + 'd>
    where
        'a: 'd,
    {
        match self {
            Self::All => Box::new(actual.frontends.iter().map(|(addr, id)| (*addr, *id))),
            Self::Some(touched) => Box::new(
                touched
                    .frontends
                    .iter()
                    .filter_map(|addr| Some((*addr, *actual.frontends.get(addr)?))),
            ),
        }
    }

    /// The descriptors in the maps of the frontends in it; in all of them those of nobody as well.
    pub(super) fn descriptors(
        self,
        actual: &Actual,
        ids: &BTreeMap<FrontendAddr, u32>,
    ) -> Vec<(Family, Descriptor)> {
        match self {
            Self::All => {
                let descriptors = actual.descriptors.iter();
                descriptors.map(|((family, _), descriptor)| (*family, *descriptor)).collect()
            }
            Self::Some(touched) => {
                let of = |addr: &FrontendAddr| {
                    let family = Family::of(addr.addr);
                    Some((family, *actual.descriptors.get(&(family, *ids.get(addr)?))?))
                };
                touched.frontends.iter().filter_map(of).collect()
            }
        }
    }

    /// Backends that may be where they were not. Nobody is, if everybody is looked at anyway.
    pub(super) fn moved(self) -> impl Iterator<Item = &'a SocketAddr> {
        let touched = match self {
            Self::All => None,
            Self::Some(touched) => Some(touched),
        };
        touched.into_iter().flat_map(|touched| &touched.backends)
    }

    /// The addresses in it.
    pub(super) fn addresses(self, draft: &Draft<'_>, actual: &Actual) -> BTreeSet<IpAddr> {
        match self {
            Self::All => {
                let frontends = draft.served.keys().map(|addr| addr.addr);
                let backends = draft.desired.local_backends.iter().map(SocketAddr::ip);
                let programmed = actual.backends.values().filter(|entry| entry.is_local());
                let programmed = programmed.map(|entry| entry.addr().ip());
                let known = draft.facts.addresses.iter().chain(actual.addresses.keys()).copied();
                frontends.chain(backends).chain(programmed).chain(known).collect()
            }
            Self::Some(Touched { frontends, backends, health_checks: _ }) => {
                let frontends = frontends.iter().map(|addr| addr.addr);
                frontends.chain(backends.iter().map(SocketAddr::ip)).collect()
            }
        }
    }

    /// Forgets what was said about the frontends in it.
    pub(super) fn forget(self, warnings: &mut BTreeMap<FrontendAddr, BTreeSet<Problem>>) {
        match self {
            Self::All => warnings.clear(),
            Self::Some(touched) => {
                for addr in &touched.frontends {
                    warnings.remove(addr);
                }
            }
        }
    }
}

/// Which tables and backends are in use once a plan is carried out.
pub(super) struct After {
    /// Ranges that the frontends in the scope will use.
    ranges: BTreeSet<BlockRange>,
    /// Backends in them.
    backends: BTreeSet<(Family, u32)>,
    /// Backends in ranges that nobody will use any more, and in how many.
    left: BTreeMap<(Family, u32), usize>,
    /// Ranges that no frontend in need of affinity uses any more, but for those in the scope.
    unremembered: Vec<BlockRange>,
}

impl After {
    /// Of a draft that replaces these descriptors.
    pub(super) fn new(before: &[(Family, Descriptor)], draft: &Draft<'_>, tables: &Tables) -> Self {
        let after = draft.served.values().map(|served| &served.descriptor);
        let ranges: BTreeSet<BlockRange> = after.flat_map(BlockRange::published).collect();
        // Words that are replaced, and those of them with affinity.
        let mut replaced = BTreeMap::<BlockRange, (usize, usize)>::new();
        for (_, descriptor) in before {
            for range in BlockRange::published(descriptor) {
                let (all, affine) = replaced.entry(range).or_default();
                *all += 1;
                *affine += usize::from(descriptor.affinity != 0);
            }
        }
        let dying: Vec<BlockRange> = replaced
            .iter()
            .filter(|(range, (all, _))| !ranges.contains(*range) && tables.uses(**range) <= *all)
            .map(|(range, _)| *range)
            .collect();
        let unremembered = replaced
            .iter()
            .filter(|(range, (_, affine))| *affine > 0 && tables.affine_uses(**range) <= *affine)
            .map(|(range, _)| *range)
            .collect();
        let backends = ranges.iter().flat_map(|range| tables.backends(*range)).collect();
        let mut left = BTreeMap::<_, usize>::new();
        for key in dying.iter().flat_map(|range| tables.backends(*range)) {
            *left.entry(key).or_default() += 1;
        }
        Self { ranges, backends, left, unremembered }
    }

    /// Whether a table will name a backend.
    pub(super) fn uses(&self, key: (Family, u32), tables: &Tables) -> bool {
        let left = self.left.get(&key).copied().unwrap_or_default();
        self.backends.contains(&key) || tables.named(key) > left
    }

    /// Ranges that the frontends in the scope will use.
    pub(super) fn ranges(&self) -> impl Iterator<Item = BlockRange> {
        self.ranges.iter().copied()
    }

    /// Backends in those.
    pub(super) fn backends(&self) -> impl Iterator<Item = &(Family, u32)> {
        self.backends.iter()
    }

    /// Ranges whose backends nobody needs to remember, but for frontends in the scope.
    pub(super) fn unremembered(&self) -> impl Iterator<Item = BlockRange> {
        self.unremembered.iter().copied()
    }

    /// Backends that lose a table.
    pub(super) fn left(&self) -> impl Iterator<Item = &(Family, u32)> {
        self.left.keys()
    }
}
