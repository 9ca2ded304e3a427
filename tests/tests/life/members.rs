//! Agents that watch each other, without an API.

use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use lbxdp_agent::members::{Report, Word};
use lbxdp_tests::manifests::{Endpoint, Manifests};
use lbxdp_tests::process::wait_until;
use lbxdp_tests::scratch::Scratch;
use lbxdp_tests::traffic::http;
use lbxdp_tests::traffic::socket::Source;
use lbxdp_tests::{Agent, AgentOptions, Cluster, Spec};

use crate::world::{SHORT, WEB_FILE, vip, web};

/// A loss is noticed within this time.
const NOTICED_WITHIN: Duration = Duration::from_secs(1);
/// And by then nothing new goes to its endpoints.
const LEFT_OUT_WITHIN: Duration = Duration::from_secs(2);
/// An agent that has just been started knows the others.
const JOINED_WITHIN: Duration = Duration::from_secs(10);

/// Three nodes with agents that know each other's addresses and a key.
struct Three {
    agents: Vec<Agent>,
    cluster: Cluster,
    key: Scratch,
    _manifests: Manifests,
}

impl Three {
    #[track_caller]
    fn start(v6: bool) -> Self {
        Self::with_pods(v6, 0)
    }

    /// With so many pods on each node, whose Service is [`web`].
    #[track_caller]
    fn with_pods(v6: bool, pods: usize) -> Self {
        let cluster = Cluster::new(&Spec { pods: vec![pods; 3], ..Spec::default() });
        let manifests = Manifests::of(&cluster);
        if v6 {
            // Nobody says what addresses the nodes have: the way to the others does.
            manifests.remove("nodes.yaml");
        }
        manifests.write(WEB_FILE, &web().with(&Endpoint::pods(&cluster)));
        let key = Scratch::new("key");
        fs::write(key.join("key"), "a key that nobody else has\n").expect("write the key");
        let mut extra = vec![format!("--members-key-file={}", key.join("key").display())];
        // Each is told of the same two, itself among them or not.
        extra.extend(cluster.nodes.iter().take(2).map(|node| format!("--peer={}", node.ip(v6))));
        let options = AgentOptions { extra, ..AgentOptions::default() };
        let start = |node| Agent::start(node, &manifests.path(), options.clone());
        let agents = cluster.nodes.iter().map(start).collect();
        let three = Self { agents, cluster, key, _manifests: manifests };
        three.wait_whole();
        three
    }

    fn report(&self, agent: usize) -> Report {
        Report::read(&self.agents[agent].state_dir()).unwrap_or_default()
    }

    #[track_caller]
    fn wait_whole(&self) {
        for agent in 0..self.agents.len() {
            wait_until(&format!("agent {agent} knows all three"), JOINED_WITHIN, || {
                let report = self.report(agent);
                report.alive() == 3 && !report.isolated
            });
        }
    }

    /// Whether an agent counts another node as gone.
    fn misses(&self, agent: usize, other: usize) -> bool {
        let name = &self.cluster.nodes[other].name;
        self.report(agent).nodes.get(name).is_some_and(|node| !node.alive)
    }

    /// The first two notice that the third is gone.
    #[track_caller]
    fn wait_missed(&self, since: Instant) -> Duration {
        wait_until("both others miss it", NOTICED_WITHIN * 4, || {
            self.misses(0, 2) && self.misses(1, 2)
        });
        since.elapsed()
    }

    /// How many endpoints the frontends of an agent have that have the most.
    fn backends(&self, agent: usize) -> usize {
        let list = self.agents[agent].json(&["service", "list"]);
        let rows = list.as_array().expect("a list").iter();
        rows.filter_map(|row| row["backends"].as_array().map(Vec::len)).max().unwrap_or(0)
    }

    fn metric(&self, agent: usize, name: &str) -> Option<u64> {
        let (_, page) = self.agents[agent].get("/metrics")?;
        let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
        line.parse().ok()
    }
}

#[test]
fn an_agent_that_was_killed_is_missed_within_a_second_and_back_at_once() {
    let mut three = Three::start(false);
    let mut times = Vec::new();
    for _ in 0..3 {
        // The file is written again no sooner than a second after it was written.
        std::thread::sleep(Duration::from_millis(1_200));
        let since = Instant::now();
        three.agents[2].kill9();
        times.push(three.wait_missed(since));
        assert_eq!(three.metric(0, "lbxdp_members_alive"), Some(2));
        assert_eq!(three.metric(0, "lbxdp_members_known"), Some(3));
        assert_eq!(three.metric(1, "lbxdp_members_isolated"), Some(0));
        let state_dir = three.agents[0].state_dir().display().to_string();
        let status = three.agents[0].cli(&["status", "--state-dir", &state_dir]);
        assert!(status.contains("nodes alive: 2 of 3; gone: node-c"), "{status}");
        three.agents[2].start_again();
        three.wait_whole();
    }
    println!("missed after {times:?}");
    assert!(times.iter().all(|time| *time <= NOTICED_WITHIN), "{times:?}");

    // One that ends in order says so.
    std::thread::sleep(Duration::from_millis(1_200));
    three.agents[2].stop();
    let time = three.wait_missed(Instant::now());
    println!("goodbye after {time:?}");
}

#[test]
fn a_node_without_a_network_is_missed_and_knows_that_it_is_alone() {
    let three = Three::start(true);
    std::thread::sleep(Duration::from_millis(1_200));
    let since = Instant::now();
    three.cluster.switch.ip("link set node-c down");
    let time = three.wait_missed(since);
    println!("missed after {time:?}");
    assert!(time <= NOTICED_WITHIN, "{time:?}");
    wait_until("it knows that it is alone", Duration::from_secs(5), || three.report(2).isolated);
    assert!(!three.report(0).isolated && !three.report(1).isolated);
    three.cluster.switch.ip("link set node-c up");
    three.wait_whole();
}

/// F1: a dead node's endpoints. Its agent alone is not the node.
#[test]
fn endpoints_of_a_lost_node_get_nothing_new_within_two_seconds_and_of_a_killed_agent_they_do() {
    let mut three = Three::with_pods(false, 1);
    let _servers = three.cluster.serve_in_pods("http", 8080);
    let (client, lost) = (&three.cluster.client, "lbxdp_dead_endpoints");
    let ask = || client.run(|| http::who(vip(false, 10, 80), Source::ANY, SHORT));
    for agent in 0..3 {
        wait_until("three endpoints", JOINED_WITHIN, || three.backends(agent) == 3);
    }

    three.agents[2].kill9();
    three.wait_missed(Instant::now());
    std::thread::sleep(LEFT_OUT_WITHIN);
    for agent in 0..2 {
        assert_eq!((three.backends(agent), three.metric(agent, lost)), (3, Some(0)), "{agent}");
    }
    three.agents[2].start_again();
    three.wait_whole();

    std::thread::sleep(Duration::from_millis(1_200));
    three.cluster.switch.ip("link set node-c down");
    let since = Instant::now();
    let (mut last_failure, mut requests) = (Duration::ZERO, 0);
    while since.elapsed() < LEFT_OUT_WITHIN * 2 {
        if ask().is_err() {
            last_failure = since.elapsed();
        }
        requests += 1;
        // A pod elsewhere takes some hundred connections a second: each has a port for ten seconds
        // after its end.
        std::thread::sleep(Duration::from_millis(5));
    }
    println!("last failure after {last_failure:?}, {requests} requests");
    assert!(last_failure <= LEFT_OUT_WITHIN, "{last_failure:?}\n{}", three.agents[0].log());
    for agent in 0..2 {
        assert_eq!(three.backends(agent), 2);
        // Of each family and port of the Service; UDP and echo have one as well.
        assert_eq!(three.metric(agent, lost), Some(6));
        assert_eq!(three.metric(agent, "lbxdp_members_dead"), Some(1));
    }
    let state_dir = three.agents[0].state_dir().display().to_string();
    let status = || three.agents[0].cli(&["status", "--state-dir", &state_dir]);
    let said = "dead: 1, whose 6 endpoints get nothing new";
    wait_until("status says so", JOINED_WITHIN, || status().contains(said));

    // The one that is cut off calls nobody dead: it is alone against two.
    wait_until("it knows that it is alone", JOINED_WITHIN, || three.report(2).isolated);
    assert_eq!(three.backends(2), 3);

    // The next agent knows what this one did.
    three.agents[0].restart();
    wait_until("two endpoints", JOINED_WITHIN, || three.backends(0) == 2);

    three.cluster.switch.ip("link set node-c up");
    three.wait_whole();
    for agent in 0..3 {
        wait_until("three endpoints", JOINED_WITHIN, || three.backends(agent) == 3);
    }
}

#[test]
fn nobody_without_the_key_is_heard() {
    let mut three = Three::start(false);
    let word = |three: &Three| three.report(0).nodes["node-c"].word;
    assert_eq!(word(&three), Some(Word::Alive));
    fs::write(three.key.join("other"), "another key of some length\n").expect("write a key");
    let other = format!("--members-key-file={}", three.key.join("other").display());
    three.agents[2].stop();
    three.agents[2].change_options(|options| options.extra[0] = other);
    three.agents[2].start_again();
    let refused = "lbxdp_members_packets_refused_total{reason=\"key\"}";
    wait_until("it is refused", JOINED_WITHIN, || {
        three.metric(0, refused).is_some_and(|count| count > 0)
    });
    wait_until("neither side believes the other", JOINED_WITHIN, || {
        three.misses(0, 2) && three.misses(1, 2) && three.report(2).isolated
    });

    // Whatever comes to the port, nothing happens.
    let target = SocketAddr::new(three.cluster.node(0).ip(false), 10_470);
    let client = &three.cluster.client;
    client.run(|| {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").expect("a socket");
        for length in [0, 1, 41, 42, 43, 500, 1_232, 1_233, 1_400] {
            socket.send_to(&vec![1; length], target).expect("send");
        }
    });
    let long = "lbxdp_members_packets_refused_total{reason=\"length\"}";
    wait_until("they are refused", JOINED_WITHIN, || three.metric(0, long) == Some(5));
    assert_eq!(three.report(0).alive(), 2);
}
