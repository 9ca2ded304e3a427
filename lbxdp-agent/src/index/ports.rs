//! The ports of a Service.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::ServicePort;

use super::names;
use crate::model::Protocol;
use crate::problem::{Reporter, quoted};

/// One port of a Service, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Port {
    /// Position in `spec.ports`.
    pub index: usize,
    /// Name, empty if it has none. Together with the protocol it finds the ports of slices; the
    /// number never does.
    pub name: String,
    /// Protocol.
    pub protocol: Protocol,
    /// Port of ClusterIPs and load balancer addresses.
    pub port: u16,
    /// Port of node addresses.
    pub node_port: Option<u16>,
}

impl Port {
    /// What people call it.
    pub(super) fn label(&self) -> String {
        if self.name.is_empty() { self.port.to_string() } else { self.name.clone() }
    }
}

/// `protocol` of a Service port or of a slice port, if there is such a protocol. Absent means TCP.
pub(super) fn protocol(text: Option<&str>) -> Option<Protocol> {
    match text {
        None | Some("" | "TCP") => Some(Protocol::Tcp),
        Some("UDP") => Some(Protocol::Udp),
        Some("SCTP") => Some(Protocol::Sctp),
        Some(_) => None,
    }
}

/// A port number.
pub(super) fn number(port: i32) -> Option<u16> {
    u16::try_from(port).ok().filter(|port| *port != 0)
}

/// The ports of a Service that can be served. `with_node_ports` says whether its type has any.
pub(super) fn check(
    ports: &[ServicePort],
    with_node_ports: bool,
    report: &mut Reporter<'_>,
) -> Vec<Port> {
    let mut checked: Vec<Port> = Vec::new();
    let mut names = BTreeSet::new();
    let mut numbers = BTreeSet::new();
    for (index, port) in ports.iter().enumerate() {
        let field = format!("spec.ports[{index}]");
        let Some(port) = check_one(index, port, with_node_ports, &field, report) else { continue };
        // Kubernetes wants names unique over all protocols.
        if names.contains(&port.name) {
            let what = match port.name.as_str() {
                "" => "a second port without a name".to_owned(),
                name => format!("{} is the name of an earlier port", quoted(name)),
            };
            report.error(format!("{field}.name"), format!("{what}: this port is not served"));
        } else if numbers.contains(&(port.port, port.protocol)) {
            let message = format!(
                "{}/{} is an earlier port: this one is not served",
                port.port, port.protocol
            );
            report.error(format!("{field}.port"), message);
        } else {
            names.insert(port.name.clone());
            numbers.insert((port.port, port.protocol));
            checked.push(port);
        }
    }
    checked
}

/// Name and protocol of the written ports that are none of those which can be served.
pub(super) fn unserved(written: &[ServicePort], checked: &[Port]) -> Vec<(Protocol, String)> {
    let ports = written.iter().filter_map(|port| {
        Some((protocol(port.protocol.as_deref())?, port.name.as_deref().unwrap_or_default()))
    });
    let is_served = |port: &(Protocol, &str)| {
        checked.iter().any(|checked| (checked.protocol, checked.name.as_str()) == *port)
    };
    let unserved = ports.filter(|port| !is_served(port));
    unserved.map(|(protocol, name)| (protocol, name.to_owned())).collect()
}

fn check_one(
    index: usize,
    port: &ServicePort,
    with_node_ports: bool,
    field: &str,
    report: &mut Reporter<'_>,
) -> Option<Port> {
    let Some(protocol) = protocol(port.protocol.as_deref()) else {
        let value = quoted(port.protocol.as_deref().unwrap_or_default());
        let message = format!("{value} is none of TCP, UDP, SCTP: this port is not served");
        report.error(format!("{field}.protocol"), message);
        return None;
    };
    let Some(number_) = number(port.port) else {
        let message = format!("{} is not in 1..65535: this port is not served", port.port);
        report.error(format!("{field}.port"), message);
        return None;
    };
    let name = port.name.clone().unwrap_or_default();
    if !name.is_empty() && !names::is_valid(&name) {
        let message = format!("{} is not a port name: this port is not served", quoted(&name));
        report.error(format!("{field}.name"), message);
        return None;
    }
    let node_port = node_port(port.node_port, with_node_ports, field, report);
    Some(Port { index, name, protocol, port: number_, node_port })
}

fn node_port(
    port: Option<i32>,
    with_node_ports: bool,
    field: &str,
    report: &mut Reporter<'_>,
) -> Option<u16> {
    // Zero is how Go writes "none".
    let port = port.filter(|port| *port != 0)?;
    let field = format!("{field}.nodePort");
    if !with_node_ports {
        report.warning(field, "the type of this Service has no NodePorts: it is not served");
        return None;
    }
    let number = number(port);
    if number.is_none() {
        report.error(field, format!("{port} is not in 1..65535: this NodePort is not served"));
    }
    number
}
