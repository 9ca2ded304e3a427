//! What an earlier agent programmed and the input does not mention. While the input is known to
//! be incomplete (a file that could not be read since the start), that is no reason to remove it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use ipnet::IpNet;
use lbxdp_common::{Descriptor, FrontendKind, TableRef};

use crate::apply::{Actual, BackendEntry};
use crate::model::{
    Clients, Desired, EndpointSet, Endpoints, Family, Frontend, FrontendAddr, Protocol,
    ServicePortName,
};
use crate::view::{self, Decision};

/// Adds to `desired` every frontend of the maps that it lacks, as the maps have it, and gives those
/// without any endpoint the backends that the maps have: a Service and its slices may be in
/// different files. Returns how many frontends that concerns.
pub fn keep(actual: &Actual, desired: &mut Desired) -> usize {
    let local: BTreeSet<SocketAddr> =
        actual.backends.values().filter(|entry| entry.is_local()).map(BackendEntry::addr).collect();
    let ranges = source_ranges(desired);
    let mut kept = 0;
    for (addr, id) in &actual.frontends {
        let Some(before) = remembered(actual, *addr, *id) else { continue };
        let frontend = match desired.frontends.get(addr) {
            None => follow(before, *addr, &ranges),
            Some(now) => match with_endpoints(now, before) {
                Some(frontend) => frontend,
                None => continue,
            },
        };
        let local = frontend.choices().flatten().filter(|backend| local.contains(backend));
        desired.local_backends.extend(local);
        desired.frontends.insert(*addr, frontend);
        desired.kept.insert(*addr);
        kept += 1;
    }
    kept
}

/// `now` with the backends of `before` where it has no endpoint at all; `None` if that is nowhere,
/// or if the frontend is another Service's by now.
fn with_endpoints(now: &Frontend, before: Frontend) -> Option<Frontend> {
    let either = |now: &Endpoints, before| match (now, before) {
        (Endpoints::Reject, before @ Endpoints::Serve(_)) => before,
        (now, _) => now.clone(),
    };
    let frontend = Frontend {
        kind: now.kind,
        name: now.name.clone(),
        external: either(&now.external, before.external),
        internal: either(&now.internal, before.internal),
        serving: if now.serving.is_empty() { before.serving } else { now.serving.clone() },
        clients: now.clients.clone(),
    };
    (frontend != *now && now.name == before.name).then_some(frontend)
}

fn remembered(actual: &Actual, addr: FrontendAddr, id: u32) -> Option<Frontend> {
    let family = Family::of(addr.addr);
    let info = actual.infos.get(&(family, id))?;
    let (service, port) = info.name().rsplit_once(':')?;
    let (namespace, service) = service.split_once('/')?;
    let descriptor = actual.descriptors.get(&(family, id))?;
    let name =
        ServicePortName { namespace: namespace.into(), service: service.into(), port: port.into() };
    let external = endpoints(actual, family, TableRef(descriptor.external))?;
    let internal = endpoints(actual, family, TableRef(descriptor.internal))?;
    let ranges = || actual.ranges.get(&(family, descriptor.service)).cloned().unwrap_or_default();
    let clients = Clients {
        affinity: descriptor.affinity,
        source_ranges: descriptor.has(Descriptor::SOURCE_RANGES).then(ranges),
    };
    let kind = FrontendKind::from_number(info.kind)?;
    Some(Frontend { clients, ..Frontend::new(kind, name, external, internal) })
}

/// The source ranges that the input has for Service ports.
type Ranges = BTreeMap<(ServicePortName, Protocol, Family), BTreeSet<IpNet>>;

fn source_ranges(desired: &Desired) -> Ranges {
    let restricted = desired.frontends.iter().filter_map(|(addr, frontend)| {
        let ranges = frontend.clients.source_ranges.clone()?;
        Some(((frontend.name.clone(), addr.protocol, Family::of(addr.addr)), ranges))
    });
    restricted.collect()
}

/// Gives a remembered frontend the source ranges of the input, where it has them: all frontends of
/// a Service port have the same.
fn follow(mut before: Frontend, addr: FrontendAddr, ranges: &Ranges) -> Frontend {
    if let Some(remembered) = &mut before.clients.source_ranges {
        let port = (before.name.clone(), addr.protocol, Family::of(addr.addr));
        if let Some(ranges) = ranges.get(&port) {
            remembered.clone_from(ranges);
        }
    }
    before
}

fn endpoints(actual: &Actual, family: Family, table: TableRef) -> Option<Endpoints> {
    match Decision::of(table) {
        Decision::Reject => Some(Endpoints::Reject),
        Decision::Drop => Some(Endpoints::Drop),
        Decision::Serve | Decision::None => {
            let backends = view::backends_of(actual, family, table);
            let backends: EndpointSet =
                backends.into_iter().map(|(_, entry)| entry.addr()).collect();
            (!backends.is_empty()).then_some(Endpoints::Serve(backends))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::Maps as _;
    use crate::apply::fake::FakeMaps;
    use crate::model::NodeFacts;
    use crate::reconcile::Reconciler;

    fn addr(text: &str) -> FrontendAddr {
        let socket: SocketAddr = text.parse().unwrap();
        FrontendAddr { addr: socket.ip(), port: socket.port(), protocol: Protocol::Tcp }
    }

    /// A range that has the node.
    fn source_range() -> IpNet {
        "192.0.2.0/24".parse().unwrap()
    }

    /// A frontend that serves a local and a remote backend, one that rejects and one that drops.
    fn programmed() -> (Desired, Reconciler<FakeMaps>) {
        let frontend = |port: &str, external: Endpoints| {
            let name = ServicePortName {
                namespace: "shop".into(),
                service: "web".into(),
                port: port.into(),
            };
            Frontend::new(FrontendKind::LoadBalancer, name, external, Endpoints::Reject)
        };
        let local: SocketAddr = "10.244.0.1:80".parse().unwrap();
        let remote: SocketAddr = "10.244.1.1:80".parse().unwrap();
        let mut desired = Desired::default();
        desired.local_backends.insert(local);
        let serve = Endpoints::Serve([local, remote].into());
        let clients = Clients {
            affinity: 10,
            source_ranges: Some(["10.7.0.0/16".parse().unwrap(), source_range()].into()),
        };
        let serving = Frontend { clients, ..frontend("http", serve) };
        desired.frontends.insert(addr("203.0.113.1:80"), serving);
        desired.frontends.insert(addr("203.0.113.1:81"), frontend("81", Endpoints::Reject));
        desired.frontends.insert(addr("203.0.113.1:82"), frontend("drop", Endpoints::Drop));
        let source = "192.0.2.1".parse().unwrap();
        let facts = NodeFacts {
            addresses: [source].into(),
            snat_sources: [(remote.ip(), source)].into(),
            ..NodeFacts::default()
        };
        let mut reconciler = Reconciler::new(FakeMaps::default(), 0).unwrap();
        let outcome = reconciler.reconcile(&desired, &facts, None, 0);
        assert!(outcome.failure.is_none());
        (desired, reconciler)
    }

    #[test]
    fn what_the_maps_have_and_the_input_lacks_is_remembered_exactly() {
        let (desired, reconciler) = programmed();
        let mut lost = Desired::default();
        assert_eq!(keep(&reconciler.maps().read().unwrap(), &mut lost), 3);
        assert_eq!(lost.kept, desired.frontends.keys().copied().collect());
        assert_eq!(lost, Desired { kept: lost.kept.clone(), ..desired });
        assert_eq!(keep(&reconciler.maps().actual, &mut lost), 0);
    }

    #[test]
    fn a_remembered_frontend_follows_the_source_ranges_of_its_service_port() {
        let (desired, reconciler) = programmed();
        let mut lost = desired.clone();
        let mut other = lost.frontends.remove(&addr("203.0.113.1:80")).unwrap();
        other.clients.source_ranges = Some([source_range()].into());
        lost.frontends.insert(addr("203.0.113.9:80"), other);
        assert_eq!(keep(&reconciler.maps().actual, &mut lost), 1);
        let kept = &lost.frontends[&addr("203.0.113.1:80")].clients;
        assert_eq!(kept.source_ranges, Some([source_range()].into()));
        assert_eq!(kept.affinity, 10);
    }

    #[test]
    fn a_service_whose_slices_were_lost_keeps_its_backends_and_another_one_gets_none() {
        let (desired, reconciler) = programmed();
        let mut lost = desired.clone();
        lost.local_backends.clear();
        for frontend in lost.frontends.values_mut() {
            frontend.external = Endpoints::Reject;
            frontend.serving = EndpointSet::default();
        }
        let new: SocketAddr = "10.244.0.9:80".parse().unwrap();
        let mut changed = lost.clone();
        assert_eq!(keep(&reconciler.maps().read().unwrap(), &mut lost), 1);
        let serving = &desired.frontends[&addr("203.0.113.1:80")];
        assert_eq!(lost.frontends[&addr("203.0.113.1:80")], *serving);
        assert_eq!(lost.local_backends, desired.local_backends);

        // What the input does say counts.
        let frontend = changed.frontends.get_mut(&addr("203.0.113.1:80")).unwrap();
        frontend.external = Endpoints::Serve([new].into());
        frontend.serving = [new].into();
        let expected = changed.clone();
        assert_eq!(keep(&reconciler.maps().actual, &mut changed), 0);
        assert_eq!(changed, expected);
        let frontend = changed.frontends.get_mut(&addr("203.0.113.1:80")).unwrap();
        frontend.external = Endpoints::Reject;
        frontend.name.service = "other".into();
        assert_eq!(keep(&reconciler.maps().actual, &mut changed), 0);
    }
}
