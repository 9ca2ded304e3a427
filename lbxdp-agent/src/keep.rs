//! What an earlier agent programmed and the input does not mention. While the input is known to
//! be incomplete (a file that could not be read since the start), that is no reason to remove it.

use std::net::SocketAddr;

use lbxdp_common::{FrontendKind, TablePolicy, TableRef};

use crate::apply::Actual;
use crate::model::{Desired, Endpoints, Family, Frontend, FrontendAddr, ServicePortName};
use crate::view;

/// Adds to `desired` every frontend of the maps that it lacks, as the maps have it. Returns how
/// many.
pub fn keep(actual: &Actual, desired: &mut Desired) -> usize {
    let mut kept = 0;
    for (addr, id) in &actual.frontends {
        if desired.frontends.contains_key(addr) {
            continue;
        }
        let Some(frontend) = remembered(actual, *addr, *id) else { continue };
        for endpoints in [&frontend.external, &frontend.internal] {
            if let Endpoints::Serve(backends) = endpoints {
                let local = backends.iter().filter(|backend| is_local(actual, **backend));
                desired.local_backends.extend(local.copied());
            }
        }
        desired.frontends.insert(*addr, frontend);
        kept += 1;
    }
    kept
}

fn remembered(actual: &Actual, addr: FrontendAddr, id: u32) -> Option<Frontend> {
    let family = Family::of(addr.addr);
    let info = actual.infos.get(&(family, id))?;
    let (service, port) = info.name().rsplit_once(':')?;
    let (namespace, service) = service.split_once('/')?;
    let descriptor = actual.descriptors.get(&(family, id))?;
    Some(Frontend {
        kind: FrontendKind::from_number(info.kind)?,
        name: ServicePortName {
            namespace: namespace.to_owned(),
            service: service.to_owned(),
            port: port.to_owned(),
        },
        external: endpoints(actual, family, TableRef(descriptor.external))?,
        internal: endpoints(actual, family, TableRef(descriptor.internal))?,
    })
}

fn endpoints(actual: &Actual, family: Family, table: TableRef) -> Option<Endpoints> {
    const REJECT: u8 = TablePolicy::Reject as u8;
    const DROP: u8 = TablePolicy::Drop as u8;
    match table.policy() {
        REJECT => Some(Endpoints::Reject),
        DROP => Some(Endpoints::Drop),
        _ => {
            let backends = view::backends_of(actual, family, table);
            let backends: std::collections::BTreeSet<SocketAddr> =
                backends.into_iter().map(|(_, entry)| entry.addr()).collect();
            (!backends.is_empty()).then_some(Endpoints::Serve(backends))
        }
    }
}

fn is_local(actual: &Actual, addr: SocketAddr) -> bool {
    actual.backends.values().any(|entry| entry.addr() == addr && entry.is_local())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::Maps as _;
    use crate::apply::fake::FakeMaps;
    use crate::model::{NodeFacts, Protocol};
    use crate::reconcile::Reconciler;

    #[test]
    fn what_the_maps_have_and_the_input_lacks_is_remembered_exactly() {
        let addr = |text: &str| {
            let socket: SocketAddr = text.parse().unwrap();
            FrontendAddr { addr: socket.ip(), port: socket.port(), protocol: Protocol::Tcp }
        };
        let frontend = |port: &str, external: Endpoints| Frontend {
            kind: FrontendKind::LoadBalancer,
            name: ServicePortName {
                namespace: "shop".to_owned(),
                service: "web".to_owned(),
                port: port.to_owned(),
            },
            external,
            internal: Endpoints::Reject,
        };
        let local: SocketAddr = "10.244.0.1:80".parse().unwrap();
        let remote: SocketAddr = "10.244.1.1:80".parse().unwrap();
        let mut desired = Desired::default();
        desired.local_backends.insert(local);
        let serve = Endpoints::Serve([local, remote].into());
        desired.frontends.insert(addr("203.0.113.1:80"), frontend("http", serve));
        desired.frontends.insert(addr("203.0.113.1:81"), frontend("81", Endpoints::Reject));
        desired.frontends.insert(addr("203.0.113.1:82"), frontend("drop", Endpoints::Drop));
        let source = "192.0.2.1".parse().unwrap();
        let facts =
            NodeFacts { addresses: [source].into(), snat_sources: [(remote.ip(), source)].into() };
        let mut reconciler = Reconciler::new(FakeMaps::default(), 0).unwrap();
        let outcome = reconciler.reconcile(&desired, &facts, None, 0);
        assert!(outcome.failure.is_none());

        let mut lost = Desired::default();
        assert_eq!(keep(&reconciler.maps().read().unwrap(), &mut lost), 3);
        assert_eq!(lost, desired);
        assert_eq!(keep(reconciler.actual(), &mut lost), 0);
    }
}
