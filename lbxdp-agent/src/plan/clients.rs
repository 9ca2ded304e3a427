//! What depends on who asks: the source ranges and the session affinity of Service ports.
//!
//! The frontends of a Service port share their ranges and the memory of their clients under the
//! id of one of them. The id stays as long as that frontend is one of the port's, so that clients
//! keep their backends while others come and go.
//!
//! What nobody reads yet is made right first, then descriptors lead to it; what descriptors led to
//! goes last. So a client that is admitted before and after a change is admitted in between, and
//! one that is admitted neither before nor after is refused in between.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use lbxdp_common::limits::{MAX_MEMBERS, MAX_RANGES};
use lbxdp_common::{Descriptor, FrontendInfo, MemberKey};

use super::scope::{After, Scope};
use super::tables::Tables;
use super::{Draft, PerFamily, Problems};
use crate::apply::{Actual, MapOp};
use crate::model::{Clients, Family, FrontendAddr};
use crate::slab::BlockRange;

/// What descriptors will lead to.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    members: BTreeSet<MemberKey>,
    ranges: BTreeMap<(Family, u32), BTreeSet<IpNet>>,
}

/// Entries that still fit into the maps.
struct Room {
    members: usize,
    ranges: PerFamily<usize>,
}

/// Completes the descriptors of the draft.
pub(super) fn decide(
    draft: &mut Draft<'_>,
    actual: &Actual,
    tables: &Tables,
    problems: &mut Problems,
) -> Wanted {
    let ports = service_ports(draft);
    if ports.is_empty() {
        return Wanted::default();
    }
    let in_family = |family: Family| {
        let ranges = actual.ranges.iter().filter(|((other, _), _)| *other == family);
        MAX_RANGES.saturating_sub(ranges.map(|(_, ranges)| ranges.len()).sum())
    };
    let mut room = Room {
        members: MAX_MEMBERS.saturating_sub(actual.members.len()),
        ranges: PerFamily { v4: in_family(Family::V4), v6: in_family(Family::V6) },
    };
    let mut wanted = Wanted::default();
    for port in ports {
        let service = service_id(&port, draft, actual);
        let flags = wanted.admit(&port, service, draft, actual, &mut room, problems);
        for addr in port {
            let Some(served) = draft.served.get(&addr) else { continue };
            let Clients { affinity, source_ranges } = &served.frontend.clients;
            let mut descriptor = served.descriptor;
            if source_ranges.is_some() {
                descriptor.flags = flags;
            }
            if *affinity != 0 {
                match wanted.remember(&descriptor, tables, actual, &mut room) {
                    true => descriptor.affinity = *affinity,
                    false => problems.exhausted(
                        served.frontend,
                        format!("{addr} is served without affinity: {MAX_MEMBERS} backends of tables with affinity exist"),
                    ),
                }
            }
            if is_read(&descriptor) {
                descriptor.service = service;
            }
            if let Some(served) = draft.served.get_mut(&addr) {
                served.descriptor = descriptor;
            }
        }
    }
    wanted
}

/// Whether a descriptor leads to ranges or to affinity, so that its service counts.
const fn is_read(descriptor: &Descriptor) -> bool {
    descriptor.affinity != 0 || descriptor.has(Descriptor::SOURCE_RANGES)
}

/// The frontends of each Service port with rules about its clients, by kind and address.
fn service_ports(draft: &Draft<'_>) -> Vec<Vec<FrontendAddr>> {
    let frontends = || {
        draft.served.iter().map(|(addr, served)| {
            ((&served.frontend.name, addr.protocol, Family::of(addr.addr)), *addr, served.frontend)
        })
    };
    let mut ports: BTreeMap<_, Vec<_>> = frontends()
        .filter(|(_, _, frontend)| frontend.clients != Clients::default())
        .map(|(port, _, _)| (port, Vec::new()))
        .collect();
    if ports.is_empty() {
        return Vec::new();
    }
    for (port, addr, frontend) in frontends() {
        if let Some(port) = ports.get_mut(&port) {
            port.push((frontend.kind, addr));
        }
    }
    ports
        .into_values()
        .map(|mut port| {
            port.sort_unstable();
            port.into_iter().map(|(_, addr)| addr).collect()
        })
        .collect()
}

/// The frontend id that stands for a Service port: the one it has, else its first frontend's.
fn service_id(port: &[FrontendAddr], draft: &Draft<'_>, actual: &Actual) -> u32 {
    let served = || port.iter().filter_map(|addr| Some((addr, draft.served.get(addr)?)));
    let ids: BTreeSet<u32> = served().map(|(_, served)| served.id).collect();
    let carried = served().find_map(|(addr, served)| {
        let key = (Family::of(addr.addr), served.id);
        let before = actual.descriptors.get(&key)?;
        // A frontend that was another Service's carries that one's.
        let name = FrontendInfo::new(&served.frontend.name.to_string(), served.frontend.kind).name;
        let is_same = actual.infos.get(&key)?.name == name;
        (is_same && is_read(before) && ids.contains(&before.service)).then_some(before.service)
    });
    carried.or_else(|| served().next().map(|(_, served)| served.id)).unwrap_or_default()
}

impl Wanted {
    /// Wants the ranges of a Service port, and gives the flags of the frontends that have them.
    /// A range without room is left out: closed is what its author can bear.
    fn admit(
        &mut self,
        port: &[FrontendAddr],
        service: u32,
        draft: &Draft<'_>,
        actual: &Actual,
        room: &mut Room,
        problems: &mut Problems,
    ) -> u32 {
        let restricted = || {
            port.iter().filter_map(|addr| {
                let frontend = draft.served.get(addr)?.frontend;
                Some((addr, frontend, frontend.clients.source_ranges.as_ref()?))
            })
        };
        let Some((addr, frontend, first)) = restricted().next() else { return 0 };
        let family = Family::of(addr.addr);
        // They are the same for all frontends. Should they not be, a client is served by what all
        // of them say.
        let ranges: BTreeSet<IpNet> = first
            .iter()
            .filter(|range| Family::of(range.addr()) == family)
            .filter(|range| restricted().all(|(_, _, ranges)| ranges.contains(range)))
            .map(IpNet::trunc)
            .collect();
        let before = actual.ranges.get(&(family, service));
        let left = room.ranges.get_mut(family);
        let mut admitted = BTreeSet::new();
        for range in &ranges {
            if before.is_none_or(|before| !before.contains(range)) {
                if *left == 0 {
                    continue;
                }
                *left -= 1;
            }
            admitted.insert(*range);
        }
        let closed = ranges.len() - admitted.len();
        if closed > 0 {
            problems.exhausted(
                frontend,
                format!("clients in {closed} of {} source ranges are not served: {MAX_RANGES} {family} ranges exist", ranges.len()),
            );
        }
        let mut node = draft.facts.addresses.iter();
        let node = node.any(|addr| admitted.iter().any(|range| range.contains(addr)));
        if !admitted.is_empty() {
            self.ranges.insert((family, service), admitted);
        }
        Descriptor::SOURCE_RANGES | if node { Descriptor::NODE_IN_RANGE } else { 0 }
    }

    /// Wants the backends of a descriptor's tables as members; `false` if there is no room.
    fn remember(
        &mut self,
        descriptor: &Descriptor,
        tables: &Tables,
        actual: &Actual,
        room: &mut Room,
    ) -> bool {
        let ranges: BTreeSet<BlockRange> = BlockRange::published(descriptor).collect();
        let members: BTreeSet<MemberKey> = ranges
            .into_iter()
            .flat_map(|range| {
                let key = move |(_, backend)| MemberKey { first_block: range.first, backend };
                tables.backends(range).map(key)
            })
            .collect();
        let is_new = |member: &&MemberKey| {
            !actual.members.contains(*member) && !self.members.contains(*member)
        };
        let new = members.iter().filter(is_new).count();
        if new > room.members {
            return false;
        }
        room.members -= new;
        self.members.extend(members);
        true
    }

    /// What is neither wanted nor read by any descriptor: a change that failed left it behind, and
    /// the next descriptor to lead there would find it. After a failure all frontends are looked at.
    pub(super) fn leftovers(&self, scope: Scope<'_>, actual: &Actual) -> Vec<MapOp> {
        match scope {
            Scope::All => self.removals(actual, false),
            Scope::Some(_) => Vec::new(),
        }
    }

    /// What is wanted and is not there yet.
    pub(super) fn additions(&self, actual: &Actual) -> Vec<MapOp> {
        let members = self.members.difference(&actual.members);
        let members = members.map(|member| MapOp::SetMember { member: *member });
        let ranges = self.ranges.iter().flat_map(|(key, ranges)| {
            let before = actual.ranges.get(key);
            let new = ranges.iter().filter(move |range| before.is_none_or(|b| !b.contains(*range)));
            new.map(|range| MapOp::SetRange { service: key.1, range: *range })
        });
        members.chain(ranges).collect()
    }

    /// What descriptors led to and is not wanted any more.
    pub(super) fn gone(
        &self,
        scope: Scope<'_>,
        before: &[(Family, Descriptor)],
        after: &After,
        actual: &Actual,
    ) -> Vec<MapOp> {
        if matches!(scope, Scope::All) {
            return self.removals(actual, true);
        }
        let members = after.unremembered().flat_map(|range| members_of(range, actual));
        let members = members.filter(|member| !self.members.contains(member));
        let members = members.map(|member| MapOp::RemoveMember { member: *member });
        let restricted =
            before.iter().filter(|(_, descriptor)| descriptor.has(Descriptor::SOURCE_RANGES));
        let services: BTreeSet<(Family, u32)> =
            restricted.map(|(family, descriptor)| (*family, descriptor.service)).collect();
        let ranges = services.iter().filter_map(|key| actual.ranges.get_key_value(key));
        members.chain(ranges.flat_map(|(key, ranges)| self.unwanted(key, ranges))).collect()
    }

    fn removals(&self, actual: &Actual, read: bool) -> Vec<MapOp> {
        let mut tables = BTreeSet::new();
        let mut services = BTreeSet::new();
        for ((family, _), descriptor) in &actual.descriptors {
            if descriptor.affinity != 0 {
                tables.extend(BlockRange::published(descriptor).map(|range| range.first));
            }
            if descriptor.has(Descriptor::SOURCE_RANGES) {
                services.insert((*family, descriptor.service));
            }
        }
        let members = actual.members.difference(&self.members);
        let members = members.filter(|member| tables.contains(&member.first_block) == read);
        let members = members.map(|member| MapOp::RemoveMember { member: *member });
        let ranges = actual.ranges.iter().filter(|(key, _)| services.contains(*key) == read);
        members.chain(ranges.flat_map(|(key, ranges)| self.unwanted(key, ranges))).collect()
    }

    /// Removes what of these ranges is not wanted.
    fn unwanted<'a>(
        &self,
        key: &(Family, u32),
        ranges: &'a BTreeSet<IpNet>,
    ) -> impl Iterator<Item = MapOp> + use<'a, '_> {
        let (wanted, service) = (self.ranges.get(key), key.1);
        let gone = ranges.iter().filter(move |range| wanted.is_none_or(|w| !w.contains(*range)));
        gone.map(move |range| MapOp::RemoveRange { service, range: *range })
    }
}

/// The members of a table.
fn members_of(range: BlockRange, actual: &Actual) -> impl Iterator<Item = &MemberKey> {
    let key = |backend| MemberKey { first_block: range.first, backend };
    actual.members.range(key(0)..=key(u32::MAX))
}
