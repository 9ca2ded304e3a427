//! Beside another translator that uses the stack, from its rules to ours and back, with connections
//! all the time: none is lost, and none fails.

use std::net::{IpAddr, SocketAddr};
use std::thread::sleep;
use std::time::{Duration, Instant};

use lbxdp_agent::apply::pinned::PinnedMaps;
use lbxdp_agent::netlink::conntrack::{Conntrack, Direction};
use lbxdp_agent::pins::Pins;
use lbxdp_agent::sys::{Access, Point};
use lbxdp_common::{IPPROTO_TCP, Mode};
use lbxdp_tests::agent::ServedCgroup;
use lbxdp_tests::cgroup::Cgroup;
use lbxdp_tests::manifests::{Endpoint, Manifests, Port, Service};
use lbxdp_tests::process::{Process, wait_until};
use lbxdp_tests::traffic::Answer;
use lbxdp_tests::traffic::churn::Churn;
use lbxdp_tests::traffic::hold::Held;
use lbxdp_tests::traffic::puppet::{Kind, Puppet};
use lbxdp_tests::traffic::socket::Source;
use lbxdp_tests::traffic::spread::{Probe, Spread};
use lbxdp_tests::traffic::udp;
use lbxdp_tests::{Agent, AgentOptions, Cluster, Netns, Spec};
use serde_json::Value;

use crate::rules::{Rule, Rules};
use crate::world::{TIMEOUT, cluster_ip, pods, vip};

const PAUSE: Duration = Duration::from_millis(5);
/// A moment of traffic.
const MOMENT: Duration = Duration::from_millis(700);

/// By when an agent has loaded its programs, on a machine that is busy.
const START_WITHIN: Duration = Duration::from_secs(20);

/// The pods' ports.
const HTTP: u16 = 8080;
const ECHO: u16 = 7;
const UDP: u16 = 5353;

/// How clients reach the Services.
#[derive(Clone, Copy)]
enum By {
    /// Any pod, and the client's address is lost.
    Vip,
    /// The same by a port of the node.
    NodePort,
    /// The pod of this node, which sees the client.
    Local,
    /// Any pod, for pods.
    ClusterIp,
}

const OUTSIDE: [By; 3] = [By::Vip, By::NodePort, By::Local];

impl By {
    fn of(self, cluster: &Cluster, v6: bool, probe: Probe) -> SocketAddr {
        let (port, node_port) = match probe {
            Probe::Http => (80, 30_080),
            Probe::Echo => (7, 30_007),
            Probe::Udp => (53, 30_053),
        };
        match self {
            Self::Vip => vip(v6, 10, port),
            Self::Local => vip(v6, 20, port),
            Self::NodePort => SocketAddr::new(cluster.node(0).ip(v6), node_port),
            Self::ClusterIp => {
                SocketAddr::new(cluster_ip(v6, 10).parse().expect("an address"), port)
            }
        }
    }
}

fn service(name: &str, number: u8) -> Service {
    [false, true]
        .into_iter()
        .fold(Service::new(name), |service, v6| {
            service.cluster_ip(&cluster_ip(v6, number)).vip(&vip(v6, number, 0).ip().to_string())
        })
        .port(Port::tcp("http", 80, HTTP).node_port(30_070 + u16::from(number)))
        .port(Port::tcp("echo", 7, ECHO).node_port(29_997 + u16::from(number)))
        .port(Port::udp("udp", 53, UDP).node_port(30_043 + u16::from(number)))
}

/// A cluster whose first node is served by rules and whose agent has not been started.
struct Scene {
    agent: Option<Agent>,
    manifests: Manifests,
    _servers: Vec<Process>,
    cgroup: Cgroup,
    cluster: Cluster,
}

impl Scene {
    #[track_caller]
    fn new(spec: &Spec) -> Self {
        let cluster = Cluster::new(spec);
        let mut servers = cluster.serve_in_pods("http", HTTP);
        servers.extend(cluster.serve_in_pods("tcp-echo", ECHO));
        servers.extend(cluster.serve_in_pods("udp", UDP));
        let manifests = Manifests::of(&cluster);
        let everywhere = Endpoint::pods(&cluster);
        let local = service("local", 20).external_local();
        let objects = [service("web", 10).with(&everywhere), local.with(&everywhere)].concat();
        manifests.write("services.yaml", &objects);
        let cgroup = Cgroup::new("clients");
        Self { agent: None, manifests, _servers: servers, cgroup, cluster }
    }

    /// The rules for both Services.
    fn rules(&self) -> Rules<'_> {
        let mut rules = Vec::new();
        for v6 in [false, true] {
            for (probe, protocol, port) in
                [(Probe::Http, "tcp", HTTP), (Probe::Echo, "tcp", ECHO), (Probe::Udp, "udp", UDP)]
            {
                for by in [By::Vip, By::NodePort, By::Local, By::ClusterIp] {
                    let is_local = matches!(by, By::Local);
                    let backends = self
                        .cluster
                        .pods()
                        .filter(|(node, _)| !is_local || node.name == self.cluster.node(0).name);
                    let backends: Vec<_> =
                        backends.map(|(_, pod)| SocketAddr::new(pod.ip(v6), port)).collect();
                    if backends.is_empty() {
                        continue;
                    }
                    rules.push(Rule {
                        protocol,
                        frontend: by.of(&self.cluster, v6, probe),
                        backends,
                        masquerades: !is_local,
                    });
                }
            }
        }
        Rules::new(self.node(), rules)
    }

    fn node(&self) -> &Netns {
        &self.cluster.node(0).netns
    }

    fn options(&self, extra: &[&str]) -> AgentOptions {
        AgentOptions {
            cgroup: ServedCgroup::At(self.cgroup.path().to_owned()),
            extra: extra.iter().map(|&flag| flag.to_owned()).collect(),
            ..AgentOptions::default()
        }
    }

    #[track_caller]
    fn start(&mut self, options: AgentOptions) {
        self.agent = Some(Agent::start(self.cluster.node(0), &self.manifests.path(), options));
    }

    fn agent(&self) -> &Agent {
        self.agent.as_ref().expect("started")
    }

    fn agent_mut(&mut self) -> &mut Agent {
        self.agent.as_mut().expect("started")
    }

    /// The agent's maps, once there are any.
    fn maps(&self) -> Option<PinnedMaps> {
        PinnedMaps::open(&Pins::new(self.agent().pin_path()), Access::ReadOnly).ok()
    }

    fn counter(&self, name: &str) -> u64 {
        let maps = self.maps().expect("pinned maps");
        let counters = maps.counters().expect("the counters are read");
        counters.iter().find(|(counter, _)| counter.as_str() == name).map_or(0, |(_, n)| *n)
    }

    fn drops(&self) -> u64 {
        let maps = self.maps().expect("pinned maps");
        maps.drops().expect("the drops are read").values().sum()
    }

    /// The part of `status` about whose connections there are.
    #[track_caller]
    fn left(&self) -> Value {
        self.agent().status().0["take_over"].clone()
    }

    /// Connections that stay open, of the client and both families.
    #[track_caller]
    fn hold(&self) -> Vec<Held> {
        let targets = OUTSIDE.into_iter().flat_map(|by| [(by, false), (by, true)]);
        let targets: Vec<_> =
            targets.map(|(by, v6)| by.of(&self.cluster, v6, Probe::Echo)).collect();
        self.cluster.client.run(|| {
            let open = |target| Held::open(target, EACH, 0, TIMEOUT);
            targets
                .iter()
                .map(|target| open(*target).unwrap_or_else(|error| panic!("{target}: {error}")))
                .collect()
        })
    }

    /// One datagram after the other from an address of the client's, each from a port of its own.
    fn ask(&self, from: IpAddr) -> Churn {
        let target = By::Vip.of(&self.cluster, false, Probe::Udp);
        let spread = Spread { sources: vec![from], ..Spread::new(target, Probe::Udp, 1) };
        Churn::start(&self.cluster.client, spread, PAUSE)
    }

    /// Ends it: all were answered.
    #[track_caller]
    fn was_answered(&self, churn: Churn) {
        let outcome = churn.stop();
        assert_eq!(outcome.failed, 0, "{:?} {:#?}", outcome.errors, self.cluster.losses());
        assert!(outcome.answered() > 10, "{}", outcome.answered());
    }

    /// New connections all the time, of both families.
    fn churn(&self) -> Vec<Churn> {
        [
            (By::Vip, false, Probe::Http),
            (By::Vip, true, Probe::Echo),
            (By::NodePort, true, Probe::Http),
            (By::Local, false, Probe::Echo),
        ]
        .into_iter()
        .map(|(by, v6, probe)| {
            let target = by.of(&self.cluster, v6, probe);
            Churn::start(&self.cluster.client, Spread::new(target, probe, 1), PAUSE)
        })
        .collect()
    }
}

/// Connections that are held to each target, and to all of them.
const EACH: u16 = 4;
const ALL: u64 = 6 * EACH as u64;

#[track_caller]
fn ping(held: &mut [Held]) {
    for held in held {
        assert_eq!(held.ping_all(), 0, "{:?}", held.report());
    }
}

/// A pod's UDP socket that is not connected.
const UDP_ID: u32 = 9;

/// Two connected sockets of a pod, one of each family, and what they say and see.
struct PodClient {
    puppet: Puppet,
    targets: [SocketAddr; 2],
}

impl PodClient {
    #[track_caller]
    fn connect(scene: &Scene) -> Self {
        let pod = &scene.cluster.node(0).pods[0];
        let mut puppet = Puppet::start(&scene.cgroup, &pod.netns);
        let targets = [false, true].map(|v6| By::ClusterIp.of(&scene.cluster, v6, Probe::Echo));
        for (id, target) in (0..).zip(targets) {
            puppet.open(id, Kind::Tcp, target.is_ipv6());
            puppet.connect(id, target).expect("connected");
            puppet.recv(id).expect("a greeting");
        }
        Self { puppet, targets }
    }

    #[track_caller]
    fn ping(&mut self) {
        for (id, target) in (0..).zip(self.targets) {
            self.puppet.send(id, "hello").expect("sent");
            assert_eq!(self.puppet.recv(id).expect("an echo"), "hello");
            assert_eq!(self.puppet.peer(id), target);
        }
    }

    /// Asks the ClusterIP by [`UDP_ID`]; who answers.
    #[track_caller]
    fn ask_udp(&mut self, scene: &Scene) -> String {
        let target = By::ClusterIp.of(&scene.cluster, false, Probe::Udp);
        self.puppet.send_to(UDP_ID, target, "who").expect("sent");
        let (from, answer) = self.puppet.recv_from(UDP_ID).expect("an answer");
        assert_eq!(from, target);
        Answer::parse(&answer).expect("an answer line").name
    }
}

#[test]
fn a_node_is_taken_over_and_handed_back_without_a_connection_lost_or_refused() {
    let mut scene = Scene::new(&pods(1, 1));
    scene.rules().load();
    let mut old = scene.hold();
    let mut old_pod = PodClient::connect(&scene);
    let churns = scene.churn();
    // A port that is used again within a minute belongs to a flow that is there. Whoever of both
    // translators has it, the other one cannot stop for it: so each asks for itself.
    let clients = scene.cluster.client_addresses(false, 2);
    let of_stack = scene.ask(clients[0]);
    let mut old_udp = UdpSession::begin(&scene);
    let mut pod_churn = Puppet::start(&scene.cgroup, &scene.cluster.node(0).pods[0].netns);
    let cluster_ip = By::ClusterIp.of(&scene.cluster, false, Probe::Echo);

    // Over: the first agents die on the way.
    let options = scene.options(&[]);
    scene.start(AgentOptions { do_not_wait: true, ..options.clone() });
    for _ in 0..3 {
        wait_until("the programs are there", START_WITHIN, || {
            scene.maps().is_some_and(|maps| !maps.devices().expect("read").is_empty())
        });
        scene.agent_mut().kill9();
        ping(&mut old);
        old_pod.ping();
        // Conntrack forgets a flow of few datagrams after half a minute.
        old_udp.ask();
        scene.agent_mut().start_again();
    }
    scene.agent_mut().set_options(options);
    scene.agent_mut().wait_ready();
    assert_eq!(scene.left()["mode"], "serving");

    // What there was the stack has, and what begins we have.
    let (hits, begun) = (scene.counter("foreign_hit"), scene.rules().begun());
    let (new, sockets) = (scene.counter("flow_new"), scene.counter("socket_connected"));
    ping(&mut old);
    old_pod.ping();
    old_udp.ask();
    assert!(scene.counter("foreign_hit") >= hits + ALL, "the stack has the old connections");
    // Those of the pod as well, and some that were about to end.
    assert!(scene.left()["foreign_established"].as_u64() >= Some(ALL + 2));
    let mut young = scene.hold();
    let mut young_pod = PodClient::connect(&scene);
    ping(&mut young);
    young_pod.ping();
    young_pod.puppet.open(UDP_ID, Kind::Udp, false);
    let udp_backend = young_pod.ask_udp(&scene);
    let (connects, failed, _) = pod_churn.connect_for(cluster_ip, MOMENT);
    assert_eq!(failed, 0);
    assert!(scene.counter("flow_new") >= new + ALL);
    assert!(scene.counter("socket_connected") >= sockets + connects);
    assert_eq!(scene.rules().begun(), begun, "the rules see nothing begin");
    assert!(scene.left()["established"].as_u64() >= Some(ALL));

    // The rules go, and the connections that they made stay.
    let of_ours = scene.ask(clients[1]);
    scene.was_answered(of_stack);
    scene.rules().keep_translating();
    scene.rules().remove();
    ping(&mut old);
    ping(&mut young);
    old_pod.ping();
    old_udp.ask();
    let (_, failed, _) = pod_churn.connect_for(cluster_ip, MOMENT);
    assert_eq!(failed, 0);

    // Back: rules again, then nothing new for us.
    scene.rules().load();
    let handing_over = scene.options(&["--hand-over"]);
    scene.agent_mut().stop();
    scene.agent_mut().set_options(handing_over);
    scene.agent_mut().start_again();
    assert_eq!(scene.left()["mode"], "handing_over");
    let since = Instant::now();
    while scene.left()["established"] != ALL && since.elapsed() < TIMEOUT {
        sleep(PAUSE);
    }
    let flows = || scene.agent().cli(&["flow", "list"]);
    assert_eq!(scene.left()["established"], ALL, "only what is held is left\n{}", flows());
    let (new, hits, sockets) =
        (scene.counter("flow_new"), scene.counter("flow_hit"), scene.counter("socket_connected"));
    let begun = scene.rules().begun();
    ping(&mut old);
    ping(&mut young);
    old_pod.ping();
    young_pod.ping();
    old_udp.ask();
    assert_eq!(young_pod.ask_udp(&scene), udp_backend, "a UDP socket keeps its backend");
    assert_eq!(scene.left()["udp_sockets"], 1);
    young_pod.puppet.close(UDP_ID);
    let mut last = scene.hold();
    ping(&mut last);
    let (connects, failed, _) = pod_churn.connect_for(cluster_ip, MOMENT);
    assert_eq!(failed, 0);
    assert!(scene.counter("flow_hit") >= hits + ALL, "the old ones go on");
    assert_eq!(scene.counter("flow_new"), new, "none begins");
    assert_eq!(scene.counter("socket_connected"), sockets, "for pods neither");
    assert!(scene.rules().begun() >= begun + ALL + connects, "the rules have them");

    // When ours have ended, so may we.
    drop(young);
    wait_until("nothing is left", TIMEOUT, || {
        let left = scene.left();
        left["established"] == 0 && left["udp_sockets"] == 0
    });
    assert_eq!(scene.drops(), 0);
    let of_stack = scene.ask(clients[2]);
    scene.was_answered(of_ours);
    scene.agent_mut().stop();
    scene.agent().cli(&["cleanup"]);
    ping(&mut old);
    ping(&mut last);
    old_pod.ping();
    // It talks to the backend itself; whom it sees is not told any more.
    let id = 0;
    young_pod.puppet.send(id, "still").expect("sent");
    assert_eq!(young_pod.puppet.recv(id).expect("an echo"), "still");
    old_udp.ask();
    for churn in churns.into_iter().chain([of_stack]) {
        scene.was_answered(churn);
    }
    let rules = scene.node().exec("nft list table ip kube-proxy");
    assert!(rules.contains("counter packets 0 bytes 0 drop"), "nothing was invalid: {rules}");
}

/// A client that asks again and again from the same port, and gets the same backend.
struct UdpSession {
    socket: std::net::UdpSocket,
    backend: String,
}

impl UdpSession {
    #[track_caller]
    fn begin(scene: &Scene) -> Self {
        let target = By::Vip.of(&scene.cluster, false, Probe::Udp);
        scene.cluster.client.run(|| {
            let socket =
                lbxdp_tests::traffic::socket::udp(target, Source::ANY, TIMEOUT).expect("a socket");
            let backend = udp::ask_on(&socket, "first").expect("an answer").name;
            Self { socket, backend }
        })
    }

    #[track_caller]
    fn ask(&mut self) {
        let answer = udp::ask_on(&self.socket, "again").expect("an answer");
        assert_eq!(answer.name, self.backend, "a UDP flow stays where it is");
    }
}

#[test]
fn an_agent_that_dies_while_taking_over_leaves_it_to_the_next_one() {
    let mut scene = Scene::new(&pods(0, 1));
    scene.rules().load();
    let mut old = scene.hold_vip(6);
    let options = scene.options(&[]);
    scene.start(AgentOptions { do_not_wait: true, ..options.clone() });
    wait_until("taking over", START_WITHIN, || {
        let links = Pins::new(scene.agent().pin_path()).links().unwrap_or_default();
        links.iter().any(|link| link.point == Point::Ingress)
            && scene.maps().is_some_and(|maps| maps.mode().expect("read") == Mode::TakingOver)
    });
    scene.agent_mut().kill9();
    assert_eq!(scene.left()["mode"], "taking_over");
    assert_eq!(old.ping_all(), 0, "{:?}", old.report());
    // What begins is served all the same.
    let before = scene.counter("flow_new");
    let mut young = scene.hold_vip(2);
    assert_eq!(young.ping_all(), 0);
    assert!(scene.counter("flow_new") >= before + 2);
    scene.agent_mut().set_options(options);
    scene.agent_mut().start_again();
    let left = scene.left();
    assert_eq!((&left["mode"], &left["foreign_established"]), (&"serving".into(), &6.into()));
    assert_eq!(old.ping_all(), 0, "{:?}", old.report());
    assert_eq!(young.ping_all(), 0, "{:?}", young.report());

    // The next one needs no rules, and finds nothing to do.
    drop(old);
    scene.rules().remove();
    scene.agent_mut().restart();
    assert_eq!(scene.left()["mode"], "serving");
    assert_eq!(young.ping_all(), 0, "{:?}", young.report());
}

#[test]
fn what_is_established_outlives_its_rules_while_somebody_else_wants_conntrack_and_nat() {
    let scene = Scene::new(&pods(0, 1));
    let rules = scene.rules();
    rules.load();
    let mut held = scene.hold_vip(1);
    rules.keep_translating();
    rules.remove();
    assert_eq!(held.ping_all(), 0, "{:?}", held.report());
    // A chain is not enough.
    rules.load();
    scene.node().exec("nft flush chain inet keep-nat none");
    rules.remove();
    assert_eq!(held.ping_all(), 1);
}

impl Scene {
    /// Connections of the client to the load balancer's IPv4 address.
    #[track_caller]
    fn hold_vip(&self, count: u16) -> Held {
        let target = By::Vip.of(&self.cluster, false, Probe::Echo);
        let held = self.cluster.client.run(|| Held::open(target, count, 0, TIMEOUT));
        held.unwrap_or_else(|error| panic!("{target}: {error}"))
    }
}

#[test]
fn two_translators_with_the_same_few_source_ports_never_share_one() {
    let mut scene = Scene::new(&pods(0, 1));
    let ports = "to :61000-61007 random";
    scene.rules().with_ports(ports).load();
    let mut stacks = scene.hold_vip(3);
    let options = AgentOptions { snat_ports: Some((61_000, 61_007)), ..scene.options(&[]) };
    scene.start(options.clone());
    let mut ours = scene.hold_vip(3);
    for held in [&mut stacks, &mut ours] {
        assert_eq!(held.ping_all(), 0, "{:?}", held.report());
    }
    let handing_over =
        AgentOptions { snat_ports: options.snat_ports, ..scene.options(&["--hand-over"]) };
    scene.agent_mut().stop();
    scene.agent_mut().set_options(handing_over);
    scene.agent_mut().start_again();
    // The two that are left, without a try that fails.
    let mut more = scene.hold_vip(2);
    for held in [&mut stacks, &mut ours, &mut more] {
        assert_eq!(held.ping_all(), 0, "{:?}", held.report());
    }
    let pod = SocketAddr::new(scene.cluster.node(1).pods[0].ip(false), ECHO);
    let node = scene.cluster.node(0).ip(false);
    let used = scene.node().run(|| {
        let mut conntrack = Conntrack::open().expect("a socket");
        let answers = |port| Direction { from: pod, to: SocketAddr::new(node, port) };
        let has = |port| conntrack.has(IPPROTO_TCP, &answers(port)).expect("an answer");
        (61_000..=61_007).map(has).collect::<Vec<_>>()
    });
    assert_eq!(used, [true; 8], "the stack knows of all of them");
}

/// Flows that begin until the moment of the hand-over have source ports, too.
#[test]
fn what_begins_while_a_node_is_handed_over_gets_the_source_port_of_nothing_else() {
    let mut scene = Scene::new(&pods(0, 1));
    let snat_ports = Some((61_000, 61_511));
    scene.rules().with_ports("to :61000-61511 random").load();
    scene.start(AgentOptions { snat_ports, ..scene.options(&[]) });
    let target = By::Vip.of(&scene.cluster, false, Probe::Udp);
    let pause = Duration::from_millis(20);
    let churn = Churn::start(&scene.cluster.client, Spread::new(target, Probe::Udp, 1), pause);
    // A port for each that was asked by, for a minute.
    sleep(Duration::from_secs(2));
    let options = AgentOptions { snat_ports, ..scene.options(&["--hand-over"]) };
    scene.agent_mut().stop();
    scene.agent_mut().set_options(options);
    scene.agent_mut().start_again();
    assert_eq!(scene.left()["mode"], "handing_over");
    sleep(Duration::from_secs(3));
    let outcome = churn.stop();
    assert_eq!(outcome.failed, 0, "{:?} {:#?}", outcome.errors, scene.cluster.losses());
    assert!(outcome.answered() > 100, "{}", outcome.answered());
    assert!(scene.rules().begun() > 50, "{}", scene.rules().begun());
    assert_eq!(scene.drops(), 0);
}
