//! What most tests start from: a client, nodes with pods, and an agent on the first node that
//! serves them all.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Output;
use std::time::Duration;

use lbxdp_agent::apply::pinned::PinnedMaps;
use lbxdp_agent::pins::{LinkPin, Pins};
use lbxdp_agent::sys::{Access, Point};
use lbxdp_tests::agent::Status;
use lbxdp_tests::manifests::{Endpoint, Manifests, Port, Service};
use lbxdp_tests::process::{Process, wait_until, workspace_binary};
use lbxdp_tests::traffic::http;
use lbxdp_tests::traffic::socket::Source;
use lbxdp_tests::traffic::spread::Probe;
use lbxdp_tests::traffic::{Answer, PATIENCE};
use lbxdp_tests::{Agent, AgentOptions, Cluster, Netns, Node, Pod, Spec};
use serde_json::{Map, Value, json};

/// For a step of a client that is to succeed.
pub const TIMEOUT: Duration = PATIENCE;
/// For one that is to fail.
pub const SHORT: Duration = Duration::from_millis(500);
/// By when an edit is served.
pub const EDIT_WITHIN: Duration = Duration::from_secs(2);
/// By when a new device is.
pub const DEVICE_WITHIN: Duration = Duration::from_secs(1);

/// The file of the Service [`web`].
pub const WEB_FILE: &str = "web.yaml";

/// The Service of most tests: every pod serves it.
pub fn web() -> Service {
    Service::new("web")
        .cluster_ip("10.96.0.10")
        .cluster_ip("fd00:10:96::10")
        .vip("203.0.113.10")
        .vip("2001:db8:ff::10")
        .port(Port::tcp("http", 80, 8080).node_port(30080))
        .port(Port::tcp("echo", 7, 7))
        .port(Port::udp("udp", 53, 5353))
}

/// The address of a load balancer with this last part.
pub fn vip(v6: bool, last: u8, port: u16) -> SocketAddr {
    if v6 {
        SocketAddr::new(format!("2001:db8:ff::{last}").parse().expect("an address"), port)
    } else {
        SocketAddr::new([203, 0, 113, last].into(), port)
    }
}

/// The ClusterIP with this last part; every Service has to have one.
pub fn cluster_ip(v6: bool, last: u8) -> String {
    if v6 { format!("fd00:10:96::{last}") } else { format!("10.96.0.{last}") }
}

/// The port of [`web`] on its load balancer address that such a flow is for.
pub fn target(v6: bool, probe: Probe) -> SocketAddr {
    let port = match probe {
        Probe::Http => 80,
        Probe::Echo => 7,
        Probe::Udp => 53,
    };
    vip(v6, 10, port)
}

/// A cluster with an agent on its first node. The parts go in this order.
#[derive(Debug)]
pub struct World {
    /// The agent.
    pub agent: Agent,
    /// What it serves.
    pub manifests: Manifests,
    _servers: Vec<Process>,
    /// Where.
    pub cluster: Cluster,
}

impl World {
    /// [`web`] in every pod.
    #[track_caller]
    pub fn start(spec: &Spec, options: AgentOptions) -> Self {
        Self::prepare(spec, options, |_| {})
    }

    /// The same, after something was done to the cluster.
    #[track_caller]
    pub fn prepare(spec: &Spec, options: AgentOptions, first: impl FnOnce(&Cluster)) -> Self {
        let cluster = Cluster::new(spec);
        let mut servers = cluster.serve_in_pods("http", 8080);
        servers.extend(cluster.serve_in_pods("tcp-echo", 7));
        servers.extend(cluster.serve_in_pods("udp", 5353));
        let manifests = Manifests::of(&cluster);
        manifests.write(WEB_FILE, &web().with(&Endpoint::pods(&cluster)));
        first(&cluster);
        let agent = Agent::start(cluster.node(0), &manifests.path(), options);
        Self { agent, manifests, _servers: servers, cluster }
    }

    /// This many pods on the first and on the second node.
    #[track_caller]
    pub fn with_pods(first: usize, second: usize) -> Self {
        Self::start(&pods(first, second), AgentOptions::default())
    }

    /// The node with the agent.
    pub fn node(&self) -> &Node {
        self.cluster.node(0)
    }

    /// One request from the client to [`web`].
    #[track_caller]
    pub fn ask(&self, v6: bool) -> Answer {
        let target = target(v6, Probe::Http);
        match self.cluster.client.run(|| http::who(target, Source::ANY, TIMEOUT)) {
            Ok(answer) => answer,
            Err(error) => panic!("GET http://{target}: {error}\n{}", self.agent.log()),
        }
    }

    /// One request of each family.
    #[track_caller]
    pub fn ask_both(&self) {
        for v6 in [false, true] {
            self.ask(v6);
        }
    }

    /// Whether a request to this address is answered soon.
    pub fn answers(&self, target: SocketAddr) -> bool {
        self.cluster.client.run(|| http::who(target, Source::ANY, SHORT)).is_ok()
    }

    /// Writes [`web`] anew, with every pod but these.
    #[track_caller]
    pub fn serve_without(&self, left_out: &[&str]) {
        let endpoints: Vec<_> = self
            .cluster
            .pods()
            .filter(|(_, pod)| !left_out.contains(&pod.name.as_str()))
            .flat_map(|(node, pod)| both(node, pod))
            .collect();
        self.manifests.write(WEB_FILE, &web().with(&endpoints));
    }

    /// Waits until every frontend of [`web`] has so many backends.
    #[track_caller]
    pub fn wait_backends(&self, count: usize) {
        let what = format!("every frontend has {count} backends");
        wait_until(&what, EDIT_WITHIN, || {
            let list = self.agent.json(&["service", "list"]);
            let list = list.as_array().expect("a list");
            list.iter().filter(|row| row["service"].as_str().is_some_and(is_web)).all(|row| {
                row["backends"].as_array().is_some_and(|backends| backends.len() == count)
            })
        });
    }

    /// Waits until the agent's log has this text, from this offset on.
    #[track_caller]
    pub fn wait_log(&self, offset: usize, text: &str, within: Duration) {
        let start = std::time::Instant::now();
        while !self.agent.log()[offset..].contains(text) {
            assert!(
                start.elapsed() < within,
                "not logged within {within:?}: {text}\n{}",
                &self.agent.log()[offset..]
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Counters and drops as `status` has them, without the time that the rest takes it.
    #[track_caller]
    pub fn counts(&self) -> Status {
        let maps = self.maps();
        let counters = maps.counters().expect("the counters are read").into_iter();
        let drops = maps.drops().expect("the drops are read").into_iter();
        let counters: Map<_, _> = counters.map(|(k, n)| (k.as_str().into(), n.into())).collect();
        let drops: Map<_, _> = drops.map(|(k, n)| (k.as_str().into(), n.into())).collect();
        Status(json!({ "counters": counters, "drops": drops }))
    }

    /// The pinned maps.
    #[track_caller]
    pub fn maps(&self) -> PinnedMaps {
        PinnedMaps::open(&self.pins(), Access::ReadOnly).expect("the maps open")
    }

    /// A command on the agent's pins, whatever it exits with.
    pub fn command(&self, arguments: &[&str]) -> Output {
        let mut command = self.node().netns.command(workspace_binary("lbxdp-agent"));
        command.args(arguments).arg("--pin-path").arg(self.agent.pin_path());
        command.output().expect("start lbxdp-agent")
    }

    /// Pinned links, dead ones included.
    pub fn links(&self) -> Vec<LinkPin> {
        self.pins().links().expect("read the pinned links")
    }

    /// Where programs run on the device that has this name now.
    pub fn points(&self, device: &str) -> Vec<Point> {
        let Some(ifindex) = ifindex(&self.node().netns, device) else { return Vec::new() };
        let links = self.links();
        let here = links.iter().filter(|link| link.info.ifindex == ifindex);
        let mut points: Vec<_> = here.map(|link| link.point).collect();
        points.sort_by_key(|point| point.as_str());
        points
    }

    /// The line of `status` about a device.
    #[track_caller]
    pub fn device(&self, name: &str) -> Value {
        let status = self.agent.status().0;
        let devices = status["devices"].as_array().expect("a list").clone();
        let found = devices.into_iter().find(|device| device["name"] == name);
        found.unwrap_or_else(|| panic!("no {name} in {status:#}"))
    }

    /// A directory of pins below the agent's.
    pub fn pinned(&self, name: &str) -> PathBuf {
        self.agent.pin_path().join(name)
    }

    /// The agent's pins.
    pub fn pins(&self) -> Pins {
        Pins::new(self.agent.pin_path())
    }
}

fn is_web(service: &str) -> bool {
    service.starts_with("default/web:")
}

/// A cluster with these pods on two nodes.
pub fn pods(first: usize, second: usize) -> Spec {
    Spec { pods: vec![first, second], ..Spec::default() }
}

/// Both endpoints of a pod.
pub fn both(node: &Node, pod: &Pod) -> [Endpoint; 2] {
    [Endpoint::new(pod.v4, &node.name), Endpoint::new(pod.v6, &node.name)]
}

/// The index of a device, if there is one of that name.
pub fn ifindex(netns: &Netns, device: &str) -> Option<u32> {
    let links: Vec<Value> = serde_json::from_str(&netns.ip("-j link show")).expect("JSON");
    let link = links.iter().find(|link| link["ifname"] == device)?;
    link["ifindex"].as_u64().and_then(|index| u32::try_from(index).ok())
}

/// Both outputs of a command as text.
pub fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}
