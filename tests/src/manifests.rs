//! Services, EndpointSlices and Nodes as YAML, and a directory of them.

use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::cluster::{Cluster, Node};
use crate::scratch::Scratch;

/// A directory for `--manifests`. Files change by rename, as an editor or a ConfigMap does it.
#[derive(Debug)]
pub struct Manifests {
    scratch: Scratch,
}

impl Manifests {
    /// An empty directory.
    #[track_caller]
    pub fn new() -> Self {
        let scratch = Scratch::new("manifests");
        fs::create_dir(scratch.join("served")).expect("create the directory of manifests");
        Self { scratch }
    }

    /// The directory of a cluster, with a Node object for each of its nodes in `nodes.yaml`.
    #[track_caller]
    pub fn of(cluster: &Cluster) -> Self {
        let manifests = Self::new();
        let nodes: Vec<Value> = cluster.nodes.iter().map(node_object).collect();
        manifests.write("nodes.yaml", &nodes);
        manifests
    }

    /// Its path.
    pub fn path(&self) -> std::path::PathBuf {
        self.scratch.join("served")
    }

    /// Writes or replaces a file with one document for each object.
    #[track_caller]
    pub fn write(&self, file: &str, objects: &[Value]) {
        self.write_text(file, &documents(objects));
    }

    /// Writes or replaces a file with this text, valid or not.
    #[track_caller]
    pub fn write_text(&self, file: &str, text: &str) {
        let draft = self.scratch.join("draft");
        fs::write(&draft, text).expect("write a draft");
        fs::rename(&draft, self.path().join(file)).expect("move the draft into place");
    }

    /// Removes a file.
    #[track_caller]
    pub fn remove(&self, file: &str) {
        fs::remove_file(self.path().join(file)).expect("remove a manifest");
    }

    /// Copies every file of another directory.
    #[track_caller]
    pub fn copy_from(&self, dir: &Path) {
        for entry in fs::read_dir(dir).expect("read the directory") {
            let entry = entry.expect("read the directory");
            let name = entry.file_name();
            let text = fs::read_to_string(entry.path()).expect("read a manifest");
            self.write_text(&name.to_string_lossy(), &text);
        }
    }
}

impl Default for Manifests {
    fn default() -> Self {
        Self::new()
    }
}

/// The Node object of a node.
pub fn node_object(node: &Node) -> Value {
    let addresses = [IpAddr::from(node.v4), IpAddr::from(node.v6)];
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": node.name },
        "spec": { "podCIDR": node.pod_cidr_v4, "podCIDRs": [node.pod_cidr_v4, node.pod_cidr_v6] },
        "status": {
            "addresses": addresses
                .iter()
                .map(|a| json!({ "type": "InternalIP", "address": a.to_string() }))
                .collect::<Vec<_>>()
        },
    })
}

/// A port of a Service.
#[derive(Clone, Debug)]
pub struct Port {
    name: String,
    port: u16,
    target: u16,
    node_port: Option<u16>,
    protocol: &'static str,
}

impl Port {
    /// A TCP port whose pods listen on `target`.
    pub fn tcp(name: &str, port: u16, target: u16) -> Self {
        Self { name: name.to_owned(), port, target, node_port: None, protocol: "TCP" }
    }

    /// A UDP port whose pods listen on `target`.
    pub fn udp(name: &str, port: u16, target: u16) -> Self {
        Self { protocol: "UDP", ..Self::tcp(name, port, target) }
    }

    /// With a NodePort.
    #[must_use]
    pub fn node_port(mut self, node_port: u16) -> Self {
        self.node_port = Some(node_port);
        self
    }
}

/// A Service and what its EndpointSlices need to know of it.
#[derive(Clone, Debug)]
pub struct Service {
    name: String,
    kind: &'static str,
    cluster_ips: Vec<IpAddr>,
    vips: Vec<IpAddr>,
    ports: Vec<Port>,
    policies: Map<String, Value>,
}

impl Service {
    /// A ClusterIP Service in the namespace `default`, without addresses or ports yet.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            kind: "ClusterIP",
            cluster_ips: Vec::new(),
            vips: Vec::new(),
            ports: Vec::new(),
            policies: Map::new(),
        }
    }

    /// Adds a ClusterIP.
    #[must_use]
    pub fn cluster_ip(mut self, address: &str) -> Self {
        self.cluster_ips.push(address.parse().expect("an address"));
        self
    }

    /// Type NodePort.
    #[must_use]
    pub fn node_ports(mut self) -> Self {
        self.kind = "NodePort";
        self
    }

    /// Type LoadBalancer, with this address in its status.
    #[must_use]
    pub fn vip(mut self, address: &str) -> Self {
        self.kind = "LoadBalancer";
        self.vips.push(address.parse().expect("an address"));
        self
    }

    /// Adds a port.
    #[must_use]
    pub fn port(mut self, port: Port) -> Self {
        self.ports.push(port);
        self
    }

    /// `externalTrafficPolicy: Local`.
    #[must_use]
    pub fn external_local(self) -> Self {
        self.spec("externalTrafficPolicy", json!("Local"))
    }

    /// `internalTrafficPolicy: Local`.
    #[must_use]
    pub fn internal_local(self) -> Self {
        self.spec("internalTrafficPolicy", json!("Local"))
    }

    /// Any other field of `spec`.
    #[must_use]
    pub fn spec(mut self, field: &str, value: Value) -> Self {
        self.policies.insert(field.to_owned(), value);
        self
    }

    /// The Service object.
    pub fn object(&self) -> Value {
        let Self { name, kind, cluster_ips, vips, ports, policies } = self;
        let v4 = cluster_ips.iter().chain(vips).any(IpAddr::is_ipv4);
        let v6 = cluster_ips.iter().chain(vips).any(IpAddr::is_ipv6);
        let both_unsaid = !v4 && !v6;
        let mut families: Vec<&str> = Vec::new();
        // The first ClusterIP decides which family comes first.
        let v6_first = cluster_ips.first().is_some_and(IpAddr::is_ipv6);
        if v4 || both_unsaid {
            families.push("IPv4");
        }
        if v6 || both_unsaid {
            families.insert(if v6_first { 0 } else { families.len() }, "IPv6");
        }
        let policy = if families.len() == 2 { "RequireDualStack" } else { "SingleStack" };
        let mut spec = Map::new();
        spec.insert("type".into(), json!(kind));
        spec.insert("ipFamilyPolicy".into(), json!(policy));
        spec.insert("ipFamilies".into(), json!(families));
        if let Some(first) = cluster_ips.first() {
            let all: Vec<_> = cluster_ips.iter().map(ToString::to_string).collect();
            spec.insert("clusterIP".into(), json!(first.to_string()));
            spec.insert("clusterIPs".into(), json!(all));
        }
        let ports: Vec<_> = ports
            .iter()
            .map(|Port { name, port, target, node_port, protocol }| {
                let mut object = json!({
                    "name": name, "port": port, "targetPort": target, "protocol": protocol,
                });
                if let Some(node_port) = node_port {
                    object["nodePort"] = json!(node_port);
                }
                object
            })
            .collect();
        spec.insert("ports".into(), json!(ports));
        spec.extend(policies.clone());
        let mut object = json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": { "name": name, "namespace": "default" },
            "spec": spec,
        });
        if !vips.is_empty() {
            let ingress: Vec<_> = vips.iter().map(|v| json!({ "ip": v.to_string() })).collect();
            object["status"] = json!({ "loadBalancer": { "ingress": ingress } });
        }
        object
    }

    /// Its EndpointSlices, one for each family that `endpoints` has.
    pub fn slices(&self, endpoints: &[Endpoint]) -> Vec<Value> {
        [("IPv4", false), ("IPv6", true)]
            .into_iter()
            .filter_map(|(family, v6)| {
                let of_family: Vec<_> =
                    endpoints.iter().filter(|e| e.address.is_ipv6() == v6).collect();
                (!of_family.is_empty()).then(|| self.slice(family, &of_family))
            })
            .collect()
    }

    /// The Service and its EndpointSlices, for [`Manifests::write`].
    pub fn with(&self, endpoints: &[Endpoint]) -> Vec<Value> {
        let mut objects = vec![self.object()];
        objects.extend(self.slices(endpoints));
        objects
    }

    fn slice(&self, family: &str, endpoints: &[&Endpoint]) -> Value {
        let ports: Vec<_> = self
            .ports
            .iter()
            .map(|p| json!({ "name": p.name, "port": p.target, "protocol": p.protocol }))
            .collect();
        let endpoints: Vec<_> = endpoints
            .iter()
            .map(|Endpoint { address, node, ready, serving, terminating }| {
                json!({
                    "addresses": [address.to_string()],
                    "nodeName": node,
                    "conditions": {
                        "ready": ready, "serving": serving, "terminating": terminating,
                    },
                })
            })
            .collect();
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{}-{}", self.name, family.to_lowercase()),
                "namespace": "default",
                "labels": { "kubernetes.io/service-name": self.name },
            },
            "addressType": family,
            "ports": ports,
            "endpoints": endpoints,
        })
    }
}

/// One endpoint of a slice.
#[derive(Clone, Debug)]
pub struct Endpoint {
    address: IpAddr,
    node: String,
    ready: bool,
    serving: bool,
    terminating: bool,
}

impl Endpoint {
    /// A ready endpoint on a node.
    pub fn new(address: impl Into<IpAddr>, node: &str) -> Self {
        Self {
            address: address.into(),
            node: node.to_owned(),
            ready: true,
            serving: true,
            terminating: false,
        }
    }

    /// Not ready and not serving.
    #[must_use]
    pub fn unready(mut self) -> Self {
        self.ready = false;
        self.serving = false;
        self
    }

    /// Terminating, still serving.
    #[must_use]
    pub fn terminating(mut self) -> Self {
        self.ready = false;
        self.terminating = true;
        self
    }

    /// Both families of every pod of a cluster.
    pub fn pods(cluster: &Cluster) -> Vec<Self> {
        cluster
            .pods()
            .flat_map(|(node, pod)| [Self::new(pod.v4, &node.name), Self::new(pod.v6, &node.name)])
            .collect()
    }

    /// Both families of every pod of one node.
    pub fn pods_of(node: &Node) -> Vec<Self> {
        node.pods
            .iter()
            .flat_map(|pod| [Self::new(pod.v4, &node.name), Self::new(pod.v6, &node.name)])
            .collect()
    }

    /// Both families of a node itself, for host-network backends.
    pub fn host(node: &Node) -> Vec<Self> {
        vec![Self::new(node.v4, &node.name), Self::new(node.v6, &node.name)]
    }
}

/// Several objects as the documents of one YAML file.
pub fn documents(objects: &[Value]) -> String {
    let mut text = String::new();
    for object in objects {
        text.push_str("---\n");
        write_value(&mut text, object, 0);
    }
    text
}

fn scalar(value: &Value) -> String {
    // A JSON scalar is a YAML scalar; strings keep their quotes, so none becomes a number.
    match value {
        Value::Array(list) if list.is_empty() => "[]".to_owned(),
        Value::Object(map) if map.is_empty() => "{}".to_owned(),
        other => other.to_string(),
    }
}

fn nested(value: &Value) -> bool {
    match value {
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
        _ => false,
    }
}

fn write_value(out: &mut String, value: &Value, indent: usize) {
    let pad = " ".repeat(indent);
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                if nested(value) {
                    let _ = writeln!(out, "{pad}{key}:");
                    write_value(out, value, indent + 2);
                } else {
                    let _ = writeln!(out, "{pad}{key}: {}", scalar(value));
                }
            }
        }
        Value::Array(list) if !list.is_empty() => {
            for value in list {
                if nested(value) {
                    let mut inner = String::new();
                    write_value(&mut inner, value, indent + 2);
                    let _ = write!(out, "{pad}- {}", inner.trim_start());
                } else {
                    let _ = writeln!(out, "{pad}- {}", scalar(value));
                }
            }
        }
        other => {
            let _ = writeln!(out, "{pad}{}", scalar(other));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_and_its_slices_read_as_block_yaml() {
        let service = Service::new("web")
            .cluster_ip("10.96.0.10")
            .vip("203.0.113.10")
            .port(Port::tcp("http", 80, 8080).node_port(30080))
            .external_local();
        let text = documents(&service.with(&[Endpoint::new([10, 244, 1, 11], "node-a")]));
        assert!(text.contains("  ports:\n    - name: \"http\"\n"), "{text}");
        assert!(text.contains("externalTrafficPolicy: \"Local\"\n"), "{text}");
        assert!(text.contains("kubernetes.io/service-name: \"web\"\n"), "{text}");
        assert_eq!(text.matches("---\n").count(), 2);
    }
}
