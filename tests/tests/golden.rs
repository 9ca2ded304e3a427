//! What the maps hold for given Services, as text that is reviewed like code.
//!
//! Each case is planned all at once, one frontend after another, and in the opposite order: the
//! ids differ, the text must not. `UPDATE_GOLDEN=1 cargo test -p lbxdp-tests --test golden` writes
//! the files anew.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;

use lbxdp_agent::apply::Maps as _;
use lbxdp_agent::apply::fake::FakeMaps;
use lbxdp_agent::dump::dump;
use lbxdp_agent::model::{
    Desired, Endpoints, Frontend, FrontendAddr, NodeFacts, Protocol, ServicePortName,
};
use lbxdp_agent::reconcile::Reconciler;
use lbxdp_common::FrontendKind;

const SECOND: u64 = 1_000_000_000;

/// The input of a case.
#[derive(Default)]
struct Case {
    desired: Desired,
    facts: NodeFacts,
}

impl Case {
    /// A node with these addresses.
    fn on_node(addresses: &[&str]) -> Self {
        let mut case = Self::default();
        case.facts.addresses = addresses.iter().map(|addr| addr.parse().unwrap()).collect();
        case
    }

    /// Backends on this node.
    fn local(mut self, backends: &[&str]) -> Self {
        self.desired.local_backends = sockets(backends);
        self
    }

    /// Backends elsewhere, and the source towards them.
    fn remote(mut self, backends: &[&str], source: &str) -> Self {
        for backend in sockets(backends) {
            self.facts.snat_sources.insert(backend.ip(), source.parse().unwrap());
        }
        self
    }

    /// A frontend of `namespace/service:port`, with its external and its internal endpoints.
    fn frontend(
        mut self,
        kind: FrontendKind,
        addr: &str,
        name: &str,
        external: Endpoints,
        internal: Endpoints,
    ) -> Self {
        let (addr, protocol) = addr.split_once('/').unwrap();
        let addr: SocketAddr = addr.parse().unwrap();
        let protocol = match protocol {
            "TCP" => Protocol::Tcp,
            "UDP" => Protocol::Udp,
            other => panic!("protocol {other}"),
        };
        let (namespace, name) = name.split_once('/').unwrap();
        let (service, port) = name.split_once(':').unwrap();
        let name = ServicePortName {
            namespace: namespace.into(),
            service: service.into(),
            port: port.into(),
        };
        let key = FrontendAddr { addr: addr.ip(), port: addr.port(), protocol };
        self.desired.frontends.insert(key, Frontend::new(kind, name, external, internal));
        self
    }
}

fn sockets(addrs: &[&str]) -> BTreeSet<SocketAddr> {
    addrs.iter().map(|addr| addr.parse().unwrap()).collect()
}

fn serve(backends: &[&str]) -> Endpoints {
    Endpoints::Serve(sockets(backends).into_iter().collect())
}

/// The maps after each input was reconciled in its turn and every quarantine is over.
fn dump_after<'a>(inputs: impl IntoIterator<Item = &'a Desired>, facts: &NodeFacts) -> String {
    let mut reconciler = Reconciler::new(FakeMaps::default(), 0).unwrap();
    let mut now = 0;
    let mut last = None;
    for desired in inputs {
        reconciler.maps_mut().now = now;
        let outcome = reconciler.reconcile(desired, facts, None, now);
        assert!(outcome.failure.is_none());
        now += SECOND / 10;
        last = Some(desired);
    }
    for _ in 0..3 {
        now += SECOND;
        reconciler.maps_mut().now = now;
        reconciler.reconcile(last.unwrap(), facts, Some(&BTreeSet::new()), now);
    }
    dump(&reconciler.maps().read().expect("these maps do not fail"))
}

/// The inputs in which the frontends come one after another.
fn one_by_one<'a>(
    desired: &Desired,
    order: impl Iterator<Item = (&'a FrontendAddr, &'a Frontend)>,
) -> Vec<Desired> {
    let mut growing =
        Desired { local_backends: desired.local_backends.clone(), ..Desired::default() };
    order
        .map(|(addr, frontend)| {
            growing.frontends.insert(*addr, frontend.clone());
            growing.clone()
        })
        .collect()
}

#[track_caller]
fn assert_golden(file: &str, case: &Case) {
    let Case { desired, facts } = case;
    let text = dump_after([desired], facts);
    let forwards = one_by_one(desired, desired.frontends.iter());
    assert_eq!(dump_after(&forwards, facts), text, "one by one");
    let backwards = one_by_one(desired, desired.frontends.iter().rev());
    assert_eq!(dump_after(&backwards, facts), text, "one by one, last first");

    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(file);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, golden, "{} differs; UPDATE_GOLDEN=1 accepts it", path.display());
}

#[test]
fn a_service_has_a_cluster_ip_a_node_port_and_a_load_balancer_address() {
    let backends = ["10.1.0.5:8080", "10.1.1.6:8080", "10.1.2.7:8080"];
    let case = Case::on_node(&["192.0.2.10"])
        .local(&backends[..1])
        .remote(&backends[1..], "192.0.2.10")
        .frontend(
            FrontendKind::ClusterIp,
            "10.96.0.1:80/TCP",
            "default/web:http",
            serve(&backends),
            serve(&backends),
        )
        .frontend(
            FrontendKind::NodePort,
            "192.0.2.10:30080/TCP",
            "default/web:http",
            serve(&backends),
            serve(&backends),
        )
        .frontend(
            FrontendKind::LoadBalancer,
            "203.0.113.1:80/TCP",
            "default/web:http",
            serve(&backends),
            serve(&backends),
        );
    assert_golden("three_kinds_of_frontend.txt", &case);
}

#[test]
fn local_policies_leave_the_internal_endpoints_alone() {
    let backends = ["10.1.0.5:8080", "10.1.1.6:8080"];
    let case = Case::on_node(&["192.0.2.10"])
        .local(&backends[..1])
        .remote(&backends[1..], "192.0.2.10")
        .frontend(
            FrontendKind::LoadBalancer,
            "203.0.113.1:80/TCP",
            "shop/local:http",
            serve(&backends[..1]),
            serve(&backends),
        )
        .frontend(
            FrontendKind::LoadBalancer,
            "203.0.113.2:80/TCP",
            "shop/elsewhere:http",
            Endpoints::Drop,
            serve(&backends[1..]),
        )
        .frontend(
            FrontendKind::ClusterIp,
            "10.96.0.9:80/TCP",
            "shop/empty:http",
            Endpoints::Reject,
            Endpoints::Reject,
        );
    assert_golden("local_policies.txt", &case);
}

#[test]
fn both_families_and_protocols_of_one_service() {
    let v4 = ["10.1.0.5:53", "10.1.1.6:53"];
    let v6 = ["[2001:db8:1::5]:53", "[2001:db8:1::6]:53"];
    let mut case = Case::on_node(&["192.0.2.10", "2001:db8::10"])
        .local(&[v4[0], v6[0]])
        .remote(&v4[1..], "192.0.2.10")
        .remote(&v6[1..], "2001:db8::10");
    for protocol in ["TCP", "UDP"] {
        let name = format!("kube-system/dns:dns-{}", protocol.to_lowercase());
        case = case
            .frontend(
                FrontendKind::ClusterIp,
                &format!("10.96.0.10:53/{protocol}"),
                &name,
                serve(&v4),
                serve(&v4),
            )
            .frontend(
                FrontendKind::ClusterIp,
                &format!("[2001:db8:96::a]:53/{protocol}"),
                &name,
                serve(&v6),
                serve(&v6),
            );
    }
    assert_golden("both_families_and_protocols.txt", &case);
}

#[test]
fn backends_without_a_route_are_in_no_table() {
    let case = Case::on_node(&["192.0.2.10"])
        .remote(&["10.1.1.6:8080"], "192.0.2.10")
        .frontend(
            FrontendKind::ClusterIp,
            "10.96.0.1:80/TCP",
            "default/half:http",
            serve(&["10.1.1.6:8080", "10.1.9.9:8080"]),
            serve(&["10.1.1.6:8080", "10.1.9.9:8080"]),
        )
        .frontend(
            FrontendKind::ExternalIp,
            "203.0.113.7:80/TCP",
            "default/none:http",
            serve(&["10.1.9.9:8080"]),
            serve(&["10.1.9.9:8080"]),
        );
    assert_golden("no_route.txt", &case);
}
