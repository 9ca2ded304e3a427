//! Which health checks listen where.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::model::{Desired, Family, FrontendAddr, Problem, Protocol, Reason, Severity};

/// What one listener answers for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// Namespace of the Service.
    pub namespace: String,
    /// Name of the Service.
    pub name: String,
    /// Ready endpoints on this node, of the family of the listener's address.
    pub local_endpoints: usize,
}

impl Check {
    /// What stands in the way of it.
    pub fn problem(&self, message: String) -> Problem {
        problem(&self.namespace, &self.name, message)
    }
}

fn problem(namespace: &str, name: &str, message: String) -> Problem {
    Problem {
        severity: Severity::Warning,
        origin: String::new(),
        object: format!("Service {namespace}/{name}"),
        field: "spec.healthCheckNodePort".to_owned(),
        message,
        reason: Reason::HealthCheckNotServed,
    }
}

/// The listeners there should be: one for each Service and address for NodePorts, in the families
/// of the Service. Of two Services that want one port the first by name gets it, and a NodePort
/// goes before both, because its packets never come up to a listener.
pub fn wanted(desired: &Desired) -> (BTreeMap<SocketAddr, Check>, Vec<Problem>) {
    let mut listeners: BTreeMap<SocketAddr, Check> = BTreeMap::new();
    let mut problems = Vec::new();
    for ((namespace, name), check) in &desired.health_checks {
        for ip in &desired.node_port_addresses {
            let Some(local_endpoints) = check.local_endpoints.get(&Family::of(*ip)) else {
                continue;
            };
            let addr = SocketAddr::new(*ip, check.port);
            let frontend = FrontendAddr { addr: *ip, port: check.port, protocol: Protocol::Tcp };
            let taken = if let Some(frontend) = desired.frontends.get(&frontend) {
                Some(format!("Service port {}", frontend.name))
            } else {
                let other = listeners.get(&addr);
                other.map(|other| format!("Service {}/{}", other.namespace, other.name))
            };
            if let Some(other) = taken {
                let message = format!("{addr} is used by {other}: nobody answers there for this");
                problems.push(problem(namespace, name, message));
                continue;
            }
            let (namespace, name) = (namespace.clone(), name.clone());
            let local_endpoints = *local_endpoints;
            listeners.insert(addr, Check { namespace, name, local_endpoints });
        }
    }
    (listeners, problems)
}

#[cfg(test)]
mod tests {
    use lbxdp_common::FrontendKind;

    use super::*;
    use crate::model::{Endpoints, Frontend, HealthCheck, ServicePortName};

    /// Name, port, and ready endpoints here in each family.
    type Described<'a> = (&'a str, u16, &'a [(Family, usize)]);

    fn desired(checks: &[Described<'_>], addresses: &[&str]) -> Desired {
        let mut desired = Desired::default();
        for (name, port, local) in checks {
            let local_endpoints = local.iter().copied().collect();
            let check = HealthCheck { port: *port, local_endpoints };
            desired.health_checks.insert(("shop".to_owned(), (*name).to_owned()), check);
        }
        desired.node_port_addresses = addresses.iter().map(|a| a.parse().unwrap()).collect();
        desired
    }

    fn shown(desired: &Desired) -> Vec<String> {
        let (listeners, _) = wanted(desired);
        listeners
            .iter()
            .map(|(addr, check)| format!("{addr} {} {}", check.name, check.local_endpoints))
            .collect()
    }

    #[test]
    fn each_service_listens_on_every_address_of_its_families() {
        let desired = desired(
            &[
                ("both", 30_001, &[(Family::V4, 2), (Family::V6, 1)]),
                ("four", 30_002, &[(Family::V4, 0)]),
            ],
            &["192.0.2.1", "198.51.100.1", "2001:db8::1"],
        );
        assert_eq!(
            shown(&desired),
            [
                "192.0.2.1:30001 both 2",
                "192.0.2.1:30002 four 0",
                "198.51.100.1:30001 both 2",
                "198.51.100.1:30002 four 0",
                "[2001:db8::1]:30001 both 1",
            ]
        );
        assert_eq!(wanted(&desired).1, []);
    }

    #[test]
    fn two_services_with_one_port_are_reported_and_the_first_is_answered_for() {
        let one: &[_] = &[(Family::V4, 1)];
        let desired = desired(&[("b", 30_001, one), ("a", 30_001, one)], &["192.0.2.1"]);
        assert_eq!(shown(&desired), ["192.0.2.1:30001 a 1"]);
        let problems: Vec<_> = wanted(&desired).1.iter().map(Problem::to_string).collect();
        assert_eq!(
            problems,
            [
                "Service shop/b: spec.healthCheckNodePort: 192.0.2.1:30001 is used by Service shop/a: \
              nobody answers there for this"
            ]
        );
    }

    #[test]
    fn a_node_port_of_that_number_is_reported() {
        let mut desired = desired(&[("a", 30_001, &[(Family::V4, 1)])], &["192.0.2.1"]);
        let name = ServicePortName {
            namespace: "shop".into(),
            service: "web".into(),
            port: "http".into(),
        };
        let frontend =
            Frontend::new(FrontendKind::NodePort, name, Endpoints::Drop, Endpoints::Drop);
        for (protocol, count) in [(Protocol::Udp, 1), (Protocol::Tcp, 0)] {
            let addr = FrontendAddr { addr: "192.0.2.1".parse().unwrap(), port: 30_001, protocol };
            desired.frontends.insert(addr, frontend.clone());
            assert_eq!(wanted(&desired).0.len(), count, "{protocol}");
        }
        assert!(wanted(&desired).1[0].message.contains("shop/web:http"));
    }
}
