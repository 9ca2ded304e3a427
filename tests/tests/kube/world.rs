//! What the tests start from.

use std::fs;
use std::time::{Duration, Instant};

use lbxdp_tests::chart::{FLAT, NAMESPACE, objects};
use lbxdp_tests::cluster::CLIENT_V4;
use lbxdp_tests::go::workspace;
use lbxdp_tests::kube::ControlPlane;
use lbxdp_tests::manifests::{Endpoint, Port, Service, node_object};
use lbxdp_tests::process::{Process, wait_until};
use lbxdp_tests::traffic::http;
use lbxdp_tests::traffic::socket::Source;
use lbxdp_tests::{Agent, AgentOptions, Cluster, Spec};
use serde_json::Value;

/// By when a change is served. Other tests keep the machine busy.
pub const CHANGE_WITHIN: Duration = Duration::from_secs(5);
/// By when what changed during an outage is served, from the moment that the API is back.
pub const BACK_WITHIN: Duration = Duration::from_secs(5);
/// For what waits for time-outs.
pub const LONG: Duration = Duration::from_secs(60);

/// What agents ask for as a matter of course: what is served, the leases, and, one of them, what addresses
/// are given by.
pub const ASKED: [&str; 12] = [
    "create leases",
    "get leases",
    "list leases",
    "patch leases",
    "update leases",
    "watch endpointslices",
    "watch ipaddresspools",
    "watch l2advertisements",
    "watch namespaces",
    "watch nodes",
    "watch servicecidrs",
    "watch services",
];

const ACCOUNT: &str = "lbxdp";

/// An API, and a node with two pods. The parts go in this order.
#[derive(Debug)]
pub struct World {
    /// The API.
    pub plane: ControlPlane,
    _servers: Vec<Process>,
    /// The node is its first one, the API's host its client.
    pub cluster: Cluster,
}

/// A Service `web-LAST` with the load balancer's address 203.0.113.LAST.
pub fn service(last: u8) -> Service {
    Service::new(&format!("web-{last}"))
        .cluster_ip(&format!("10.96.1.{last}"))
        .vip(&format!("203.0.113.{last}"))
        .port(Port::tcp("http", 80, 8080))
}

/// The account and the rights that a cluster gets.
fn account() -> Vec<Value> {
    let text = fs::read_to_string(workspace().join(FLAT)).expect(FLAT);
    let kinds = ["ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"];
    let mut objects = objects(&text).expect("YAML");
    objects.retain(|object| kinds.iter().any(|kind| object["kind"] == *kind));
    assert_eq!(objects.len(), kinds.len());
    objects
}

impl World {
    /// With so many API servers; `None` if there is nothing to build them with.
    #[track_caller]
    pub fn start(servers: u16) -> Option<Self> {
        Self::with_pods(servers, vec![2])
    }

    /// The same with so many pods on each of several nodes.
    #[track_caller]
    pub fn with_pods(servers: u16, pods: Vec<usize>) -> Option<Self> {
        Self::of(servers, &Spec { pods, ..Spec::default() })
    }

    /// The same with nodes like these.
    #[track_caller]
    pub fn of(servers: u16, spec: &Spec) -> Option<Self> {
        if !lbxdp_tests::kube::is_possible() {
            return None;
        }
        let cluster = Cluster::new(spec);
        let http = cluster.serve_in_pods("http", 8080);
        let plane = ControlPlane::start(&cluster.client, CLIENT_V4, servers);
        plane.api().apply(&account());
        plane.api().apply(&cluster.nodes.iter().map(node_object).collect::<Vec<_>>());
        Some(Self { plane, _servers: http, cluster })
    }

    /// A new token of the agent's account.
    #[track_caller]
    pub fn token(&self) -> String {
        self.plane.api().token(NAMESPACE, ACCOUNT)
    }

    /// The flags of an agent in a pod: a service account's files, and addresses.
    #[track_caller]
    pub fn in_pod(&self, urls: &[&str]) -> Vec<String> {
        let dir = self.plane.service_account(&self.token());
        let mut flags = vec!["--service-account".to_owned(), dir.display().to_string()];
        for url in urls {
            flags.extend(["--api-server".to_owned(), (*url).to_owned()]);
        }
        flags
    }

    /// The flags of an agent with a kubeconfig for this address.
    #[track_caller]
    pub fn with_kubeconfig(&self, url: &str) -> Vec<String> {
        let path = self.plane.kubeconfig(url, &self.token());
        vec!["--kubeconfig".to_owned(), path.display().to_string()]
    }

    /// An agent at the first API server.
    #[track_caller]
    pub fn agent(&self) -> Agent {
        self.agent_on(0, AgentOptions::default())
    }

    /// An agent at the first API server, on this node.
    #[track_caller]
    pub fn agent_on(&self, node: usize, options: AgentOptions) -> Agent {
        let url = self.plane.servers[0].url.clone();
        Agent::watch(self.cluster.node(node), &self.in_pod(&[&url]), options)
    }

    /// Every pod as an endpoint.
    pub fn endpoints(&self) -> Vec<Endpoint> {
        self.cluster.pods().map(|(node, pod)| Endpoint::new(pod.v4, &node.name)).collect()
    }

    /// Creates the Services with these numbers, with every pod behind them.
    #[track_caller]
    pub fn create(&self, numbers: impl IntoIterator<Item = u8>) {
        let endpoints = self.endpoints();
        let objects: Vec<_> =
            numbers.into_iter().flat_map(|last| service(last).with(&endpoints)).collect();
        self.plane.api().apply(&objects);
    }

    /// Deletes Services and their slices.
    #[track_caller]
    pub fn delete(&self, numbers: impl IntoIterator<Item = u8>) {
        let endpoints = self.endpoints();
        for last in numbers {
            self.plane.api().delete(&service(last).with(&endpoints));
        }
    }

    /// Whether a request from outside to the Service with this number is answered.
    pub fn answers(&self, last: u8) -> bool {
        let target = ([203, 0, 113, last], 80).into();
        let timeout = Duration::from_millis(500);
        self.cluster.client.run(|| http::who(target, Source::ANY, timeout)).is_ok()
    }
}

/// How many backends a Service's frontends have; `None` if it has no frontend.
pub fn backends(agent: &Agent, last: u8) -> Option<usize> {
    let name = format!("default/web-{last}:http");
    let list = agent.json(&["service", "list"]);
    let rows = list.as_array().expect("a list").iter();
    let of_service = rows.filter(|row| row["service"] == name.as_str());
    of_service.map(|row| row["backends"].as_array().map_or(0, Vec::len)).max()
}

/// Waits until a Service has so many backends, or is gone.
#[track_caller]
pub fn wait_backends(agent: &Agent, last: u8, count: Option<usize>, within: Duration) {
    wait_until(&format!("web-{last} has {count:?} backends"), within, || {
        backends(agent, last) == count
    });
}

/// The value of a metric with these labels.
pub fn metric(agent: &Agent, name: &str) -> Option<f64> {
    let (_, text) = agent.get("/metrics")?;
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

/// Whether every watch is connected.
pub fn is_connected(agent: &Agent) -> bool {
    ["Service", "EndpointSlice", "Node"].iter().all(|kind| {
        metric(agent, &format!("lbxdp_watch_connected{{kind=\"{kind}\"}}")) == Some(1.0)
    })
}

/// Waits until `status` says this about the source. The agent writes it down a moment after it
/// has happened.
#[track_caller]
pub fn wait_source(agent: &Agent, field: &str, value: impl Into<Value>) {
    let (dir, value) = (agent.state_dir().display().to_string(), value.into());
    wait_until(&format!("{field} is {value}"), CHANGE_WITHIN, || {
        agent.json(&["status", "--state-dir", &dir])["source"][field] == value
    });
}

/// Waits until the agent's log has this text, from this offset on.
#[track_caller]
pub fn wait_log(agent: &Agent, offset: usize, text: &str, within: Duration) {
    let start = Instant::now();
    while !agent.log()[offset..].contains(text) {
        assert!(start.elapsed() < within, "not logged within {within:?}: {text}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
