//! Pools as they are used: checked, in order, and with what each of them may give out.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::ranges::{AddressSet, Range, is_buggy};
use super::reserved::Reserved;
use super::resources::{IpAddressPool, Read};
use super::select::{Labels, Selectors};
use crate::model::{Family, Reason};
use crate::problem::{Problems, Reporter, quoted};
use crate::source::Sourced;

/// Every pool: first those that give something out, then the others; the oldest first.
///
/// A pool that is refused gives nothing out any more. What it covers stays with those who have it: a
/// mistake in a pool must not take anybody's address away.
#[derive(Debug, Default)]
pub struct Pools {
    all: Vec<Pool>,
    reserved: Reserved,
    taken: AddressSet,
}

/// One pool.
#[derive(Debug)]
pub(super) struct Pool {
    /// Name, by which Services ask for it.
    pub name: String,
    /// Namespace of the object.
    pub namespace: String,
    /// Labels, by which advertisements select it.
    pub labels: Labels,
    /// Whether those get addresses of it who do not ask for it.
    pub auto_assign: bool,
    /// Whether some addresses are not given out, see [`is_buggy`].
    pub avoid_buggy: bool,
    /// Who may have addresses of it; everybody, if absent.
    pub audience: Option<Audience>,
    /// Why nothing is given out.
    pub refused: Option<String>,
    /// Whether a range is written that cannot be read. Nobody knows what it would cover.
    pub is_unclear: bool,
    ranges: Vec<Range>,
    /// What the ranges have.
    set: AddressSet,
}

/// Who may have addresses of a pool.
#[derive(Debug, Default)]
pub(super) struct Audience {
    /// 0 comes last.
    priority: i32,
    namespaces: BTreeSet<String>,
    namespace_selectors: Selectors,
    /// Whether a list of namespaces or selectors of them is written.
    is_of_namespaces: bool,
    service_selectors: Selectors,
    is_of_services: bool,
    /// Whether something of it could not be read.
    is_unclear: bool,
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asker<'a> {
    /// Namespace of the Service.
    pub namespace: &'a str,
    /// Labels of that namespace, if it is known.
    pub namespace_labels: Option<&'a Labels>,
    /// Labels of the Service.
    pub labels: &'a Labels,
}

/// Whether somebody may have addresses of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// Yes.
    Yes,
    /// No.
    No,
    /// That hangs on a namespace that was not seen yet, or on something that cannot be read.
    Unclear,
}

impl Pools {
    /// Checks pools. Their namespaces must be among the given ones, if any are.
    pub fn new(
        objects: &[Sourced<Read<IpAddressPool>>],
        reserved: Reserved,
        namespaces: &BTreeSet<String>,
        problems: &mut Problems,
    ) -> Self {
        let mut objects: Vec<_> = objects.iter().collect();
        objects.sort_by_cached_key(|pool| {
            let metadata = &pool.object.object.metadata;
            let created =
                metadata.creation_timestamp.as_ref().map_or(i64::MAX, |t| t.0.as_second());
            (created, metadata.namespace.clone(), metadata.name.clone())
        });
        let taken = reserved.set();
        let mut all: Vec<Pool> = Vec::new();
        for Sourced { origin, object: Read { object, unsupported } } in objects {
            let mut pool = Pool::new(object);
            let name = format!("IPAddressPool {}/{}", pool.namespace, pool.name);
            let mut report = problems.about(origin, &name);
            for field in unsupported {
                report.warning(field, "unsupported: it has no effect");
            }
            pool.read_ranges(object, &mut report);
            pool.read_audience(object, &mut report);
            pool.compare(&reserved, &taken, &mut report);
            let mut older = all.iter().filter(|older| older.refused.is_none());
            let refusal = if !namespaces.is_empty() && !namespaces.contains(&pool.namespace) {
                let ours: Vec<_> = namespaces.iter().map(String::as_str).collect();
                Some(("metadata.namespace", format!("pools are read from {}", ours.join(", "))))
            } else if let Some(twin) = older.clone().find(|older| older.name == pool.name) {
                let message =
                    format!("namespace {} has an older pool of that name", twin.namespace);
                Some(("metadata.name", message))
            } else {
                older.find_map(|older| {
                    let first = older.set.and(&pool.set).first()?;
                    let message = format!("the older pool {} has {first} as well", older.name);
                    Some(("spec.addresses", message))
                })
            };
            if let Some((field, why)) = refusal {
                let message = format!("{why}: nothing is given out of this pool");
                report.because(Reason::AddressConflict).error(field, &message);
                pool.refused = Some(why);
            }
            all.push(pool);
        }
        all.sort_by_key(|pool| pool.refused.is_some());
        Self { all, reserved, taken }
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// In order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Pool> {
        self.all.iter()
    }

    /// The name of the pool that has this address, whether or not it may be given out.
    pub fn of(&self, addr: IpAddr) -> Option<&str> {
        let pool = self.all.iter().find(|pool| pool.set.contains(addr))?;
        Some(&pool.name)
    }

    /// The pool that Services mean by a name.
    pub(super) fn named(&self, name: &str) -> Option<&Pool> {
        self.all.iter().find(|pool| pool.name == name)
    }

    /// Where to look for those who ask for nothing, in this order. Pools that are meant for somebody
    /// come first: by priority, then by name.
    pub(super) fn stages(&self) -> [Vec<&Pool>; 2] {
        let giving = self.all.iter().filter(|pool| pool.refused.is_none() && pool.auto_assign);
        let (mut meant, mut others): (Vec<_>, Vec<_>) =
            giving.partition(|pool| pool.audience.is_some());
        meant.sort_by_key(|pool| {
            let priority = pool.audience.as_ref().map_or(0, |audience| audience.priority);
            (priority == 0, priority, &pool.name)
        });
        others.sort_by_key(|pool| &pool.name);
        [meant, others]
    }

    /// What no pool gives out.
    pub(super) fn reserved(&self) -> &AddressSet {
        &self.taken
    }

    /// Whose an address is that no pool gives out.
    pub(super) fn owner(&self, addr: IpAddr) -> Option<String> {
        self.reserved.owner(addr)
    }
}

impl Pool {
    fn new(object: &IpAddressPool) -> Self {
        let metadata = &object.metadata;
        Self {
            name: metadata.name.clone().unwrap_or_default(),
            namespace: metadata.namespace.clone().unwrap_or_default(),
            labels: metadata.labels.clone().unwrap_or_default(),
            auto_assign: object.spec.auto_assign.unwrap_or(true),
            avoid_buggy: object.spec.avoid_buggy_ips.unwrap_or(false),
            audience: None,
            refused: None,
            is_unclear: false,
            ranges: Vec::new(),
            set: AddressSet::default(),
        }
    }

    fn read_ranges(&mut self, object: &IpAddressPool, report: &mut Reporter<'_>) {
        let written = &object.spec.addresses;
        if written.is_empty() {
            report.error("spec.addresses", "empty: there is nothing to give out");
        }
        for (index, text) in written.iter().enumerate() {
            let field = format!("spec.addresses[{index}]");
            match Range::parse(text) {
                Ok(range) => {
                    let own = AddressSet::from_iter([range.clone()]);
                    if let Some(first) = self.set.and(&own).first() {
                        let message = format!("has {first}, which is written above as well");
                        report.warning(&field, message);
                    }
                    self.set.insert(&range);
                    self.ranges.push(range);
                }
                Err(why) => {
                    self.is_unclear = true;
                    report.error(field, format!("{why}: nothing is given out of it"));
                }
            }
        }
    }

    fn read_audience(&mut self, object: &IpAddressPool, report: &mut Reporter<'_>) {
        let Some(written) = &object.spec.service_allocation else { return };
        let field = |name: &str| format!("spec.serviceAllocation.{name}");
        let namespaces = written.namespaces.as_deref().unwrap_or_default();
        let by_label = written.namespace_selectors.as_deref();
        let services = written.service_selectors.as_deref();
        let is_written = |list: Option<&[_]>| list.is_some_and(|list| !list.is_empty());
        let (namespace_selectors, first) =
            Selectors::read(by_label, &field("namespaceSelectors"), report);
        let (service_selectors, second) =
            Selectors::read(services, &field("serviceSelectors"), report);
        self.audience = Some(Audience {
            priority: written.priority.unwrap_or(0),
            namespaces: namespaces.iter().cloned().collect(),
            namespace_selectors,
            is_of_namespaces: !namespaces.is_empty() || is_written(by_label),
            service_selectors,
            is_of_services: is_written(services),
            is_unclear: !(first && second),
        });
    }

    /// Reports what of it is somebody else's.
    fn compare(&self, reserved: &Reserved, taken: &AddressSet, report: &mut Reporter<'_>) {
        if self.set.and(taken).first().is_none() {
            return;
        }
        let nodes: Vec<_> = reserved.nodes.iter().filter(|(addr, _)| self.covers(**addr)).collect();
        let field = "spec.addresses";
        let mut report = report.because(Reason::AddressConflict);
        if let Some((addr, node)) = nodes.first() {
            let more = match nodes.len() {
                1 => String::new(),
                n => format!(", and {} more addresses of nodes", n - 1),
            };
            let message = format!("has {addr}, the address of node {node}{more}: not given out");
            report.warning(field, message);
        }
        let others = Reserved { nodes: Default::default(), ..reserved.clone() };
        let set = others.set();
        for range in &self.ranges {
            let own = AddressSet::from_iter([range.clone()]);
            if let Some(first) = own.and(&set).first()
                && let Some(owner) = others.owner(first)
            {
                let message = format!("{range} has {first}, which is {owner}: not given out");
                report.warning(field, message);
            }
        }
    }

    /// Whether an address lies in one of its ranges.
    pub(super) fn covers(&self, addr: IpAddr) -> bool {
        self.ranges.iter().any(|range| range.contains(addr))
    }

    /// Whether somebody may have addresses of it.
    pub(super) fn admits(&self, asker: Asker<'_>) -> Admission {
        let Some(audience) = &self.audience else { return Admission::Yes };
        let Audience { namespaces, namespace_selectors, service_selectors, .. } = audience;
        let unclear_or_no = if audience.is_unclear { Admission::Unclear } else { Admission::No };
        let by_namespace = if !audience.is_of_namespaces || namespaces.contains(asker.namespace) {
            Admission::Yes
        } else {
            match asker.namespace_labels {
                _ if namespace_selectors.is_empty() => unclear_or_no,
                None => Admission::Unclear,
                Some(labels) if namespace_selectors.select(labels) => Admission::Yes,
                Some(_) => unclear_or_no,
            }
        };
        let by_service = if !audience.is_of_services || service_selectors.select(asker.labels) {
            Admission::Yes
        } else {
            unclear_or_no
        };
        match (by_namespace, by_service) {
            (Admission::Yes, Admission::Yes) => Admission::Yes,
            (Admission::No, _) | (_, Admission::No) => Admission::No,
            _ => Admission::Unclear,
        }
    }

    /// The first address of a family that is not taken, or a lower one of those that `also` can be
    /// had, in the order in which the ranges are written.
    pub(super) fn first_free(
        &self,
        family: Family,
        taken: &AddressSet,
        also: &BTreeSet<IpAddr>,
    ) -> Option<IpAddr> {
        self.ranges.iter().filter(|range| range.family() == family).find_map(|range| {
            let also = also
                .iter()
                .copied()
                .find(|addr| range.contains(*addr) && !(self.avoid_buggy && is_buggy(*addr)));
            range.first_free(taken, self.avoid_buggy).into_iter().chain(also).min()
        })
    }

    /// How many addresses of a family can be given out.
    pub(super) fn available(&self, family: Family, taken: &AddressSet) -> u64 {
        match self.refused {
            Some(_) => 0,
            None => self.set.without(taken).count(family, self.avoid_buggy),
        }
    }

    /// Why an address that it covers is not given out of it to anybody.
    pub(super) fn withholds(&self, addr: IpAddr) -> Option<String> {
        if let Some(why) = &self.refused {
            return Some(format!("pool {} is refused: {why}", quoted(&self.name)));
        }
        (self.avoid_buggy && is_buggy(addr))
            .then(|| format!("pool {} avoids addresses like {addr}", quoted(&self.name)))
    }
}
