//! A client, two nodes and four pods on one machine, and real requests through what the agents
//! made of `examples/`; and an address of a pool, which moves when its node's agent is gone.

mod lan;

use std::collections::{BTreeMap, BTreeSet};
use std::io::IsTerminal;
use std::net::{IpAddr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail, ensure};
use lbxdp_common::ABI_VERSION;
use lbxdp_tests::cluster::{CLIENT_V4, CLIENT_V6, UPLINK};
use lbxdp_tests::manifests::Manifests;
use lbxdp_tests::process::{command, run as run_command, workspace_binary};
use lbxdp_tests::traffic::http;
use lbxdp_tests::traffic::socket::Source;
use lbxdp_tests::traffic::spread::{Outcome, Probe, Spread};
use lbxdp_tests::{Agent, AgentOptions, Cluster, Pod, Process, Scratch, Spec, nginx, sweep};

use crate::setup;
use crate::util::{build_programs, root};

const REQUESTS: u32 = 200;
const PORT: u16 = 8080;

/// The command. Leaves nothing behind: not after success, failure or a signal.
pub fn run() -> Result<()> {
    setup::toolchain()?;
    setup::machine()?;
    build_programs()?;
    sweep::stale();
    sweep::on_signal();
    let start = Instant::now();
    let done = catch_unwind(AssertUnwindSafe(show));
    sweep::wait_if_stopping();
    let left = sweep::own_count();
    sweep::own();
    done.unwrap_or_else(|_| Err(anyhow!("the demo panicked")))?;
    ensure!(left == 0, "{left} namespaces, pins or directories were left behind");
    println!(
        "\nEverything answered as it should; nothing is left behind. {:.1} s",
        start.elapsed().as_secs_f64()
    );
    Ok(())
}

fn show() -> Result<()> {
    title("A network of namespaces");
    let cluster = Cluster::new(&Spec::default());
    print_cluster(&cluster);
    let nginx_files = Scratch::new("nginx");
    let _servers = serve(&cluster, &nginx_files);

    title("An agent on each node");
    // What is written later goes into a copy.
    let manifests = Manifests::of(&cluster);
    manifests.copy_from(&root().join("examples"));
    let key = Scratch::new("key");
    let options = AgentOptions { devices: vec![UPLINK.to_owned()], ..AgentOptions::default() };
    let options = lan::options(&cluster, &key, options)?;
    let mut agents: Vec<Agent> = cluster
        .nodes
        .iter()
        .map(|node| {
            let start = Instant::now();
            let agent = Agent::start(node, &manifests.path(), options.clone());
            println!(
                "  {}: lbxdp-agent run --manifests examples --node-name {} --device {UPLINK} \
                 --members-key-file key --peer {} --peer {}, ready after {:.1} s",
                node.name,
                node.name,
                cluster.node(0).v4,
                cluster.node(1).v4,
                start.elapsed().as_secs_f64()
            );
            agent
        })
        .collect();

    title(&format!("{REQUESTS} requests each from the client, every one a new connection"));
    let mut failures = Vec::new();
    for case in cases(&cluster) {
        failures.extend(case.ask(&cluster, |spread| cluster.client.run(|| spread.run())));
    }

    let agent = &agents[0];
    let pod = &cluster.node(0).pods[0];
    title(&format!("{REQUESTS} requests each from {}: no packet is translated", pod.name));
    for case in pod_cases(&cluster, pod) {
        failures.extend(case.ask(&cluster, |spread| from_pod(agent, pod, spread)));
    }

    title("What node-a has counted (lbxdp-agent status)");
    println!("{}", indent(&agent.cli(&["status"])));
    title("What it serves (lbxdp-agent service list)");
    println!("{}", indent(&agent.cli(&["service", "list"])));
    let name = format!("v{ABI_VERSION}/frontends_v4");
    let map = agent.pin_path().join(&name);
    title(&format!("The same, as the kernel holds it (bpftool map dump pinned …/{name})"));
    let dump = run_command(command("bpftool").args(["map", "dump", "pinned"]).arg(&map));
    println!("{}", indent(&excerpt(&dump, 24)));

    title("An address of a pool, announced on the client's own network");
    lan::show(&cluster, &manifests, &mut agents)?;

    if !failures.is_empty() {
        bail!("not as it should be:\n  {}", failures.join("\n  "));
    }
    Ok(())
}

fn title(text: &str) {
    sweep::wait_if_stopping();
    if std::io::stdout().is_terminal() {
        println!("\n\x1b[1m{text}\x1b[0m");
    } else {
        println!("\n{text}");
    }
}

fn indent(text: &str) -> String {
    text.trim_end().lines().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}

fn excerpt(text: &str, lines: usize) -> String {
    let count = text.lines().count();
    let mut shown: Vec<_> = text.lines().take(lines).map(str::to_owned).collect();
    if count > lines {
        shown.push(format!("… {} more lines", count - lines));
    }
    shown.join("\n")
}

fn print_cluster(cluster: &Cluster) {
    println!("  client  {CLIENT_V4}  {CLIENT_V6}");
    for node in &cluster.nodes {
        println!("  {}  {}  {}", node.name, node.v4, node.v6);
        for pod in &node.pods {
            println!("    {}  {}  {}", pod.name, pod.v4, pod.v6);
        }
    }
}

/// Three servers of our own, and an nginx in the last pod.
fn serve(cluster: &Cluster, nginx_files: &Scratch) -> Vec<Process> {
    let pods: Vec<_> = cluster.pods().map(|(_, pod)| pod).collect();
    let (last, others) = pods.split_last().expect("the cluster has pods");
    let mut servers: Vec<_> =
        others.iter().map(|pod| cluster.serve(&pod.netns, "http", &pod.name, PORT)).collect();
    let itself = SocketAddr::from(([127, 0, 0, 1], PORT));
    let answers = || http::who(itself, Source::ANY, Duration::from_secs(1)).is_ok();
    servers.push(nginx::start(
        last.netns.command("nginx"),
        nginx_files,
        &nginx::answering(&last.name, PORT),
        || last.netns.run(answers),
    ));
    println!("  {} runs nginx, the other pods a small HTTP server", last.name);
    servers
}

/// Requests to one address, and who must answer them seeing whom.
struct Case {
    what: &'static str,
    target: SocketAddr,
    expected: BTreeMap<String, IpAddr>,
}

fn cases(cluster: &Cluster) -> Vec<Case> {
    let mut cases = Vec::new();
    for v6 in [false, true] {
        let address = |v4: [u8; 4], v6_text: &str| -> IpAddr {
            if v6 { v6_text.parse().expect("an address") } else { v4.into() }
        };
        let client: IpAddr = if v6 { CLIENT_V6.into() } else { CLIENT_V4.into() };
        // A pod sees the client if it is on the node that the packet entered by, else that node.
        let seen = |entry: usize, pods: &[&str]| -> BTreeMap<String, IpAddr> {
            let entry = cluster.node(entry);
            cluster
                .pods()
                .filter(|(_, pod)| pods.contains(&pod.name.as_str()))
                .map(|(node, pod)| {
                    let peer = if node.name == entry.name { client } else { entry.ip(v6) };
                    (pod.name.clone(), peer)
                })
                .collect()
        };
        let all = ["pod-a-1", "pod-a-2", "pod-b-1", "pod-b-2"];
        let node = |index: usize| cluster.node(index).ip(v6);
        let mut add = |what, ip: IpAddr, port: u16, expected| {
            cases.push(Case { what, target: SocketAddr::new(ip, port), expected });
        };
        add("LoadBalancer", address([203, 0, 113, 10], "2001:db8:ff::10"), 80, seen(0, &all));
        add(
            "LoadBalancer, externalTrafficPolicy: Local",
            address([203, 0, 113, 20], "2001:db8:ff::20"),
            80,
            seen(0, &["pod-a-1"]),
        );
        add("NodePort on node-a", node(0), 31080, seen(0, &["pod-b-1", "pod-b-2"]));
        add("NodePort on node-b", node(1), 30080, seen(1, &all));
        add(
            "ClusterIP from outside",
            address([10, 96, 0, 40], "fd00:10:96::40"),
            8000,
            seen(0, &["pod-a-2", "pod-b-2"]),
        );
    }
    cases
}

/// A pod's own requests. Its connections are made to a backend right away, so that every backend,
/// on whatever node, sees the pod.
fn pod_cases(cluster: &Cluster, pod: &Pod) -> Vec<Case> {
    let case = |what, target: &str, pods: &[&str]| {
        let target: SocketAddr = target.parse().expect("an address");
        let peer = pod.ip(target.is_ipv6());
        let all = cluster.pods().map(|(_, pod)| pod.name.clone());
        let expected = all.filter(|name| pods.contains(&name.as_str())).map(|name| (name, peer));
        Case { what, target, expected: expected.collect() }
    };
    vec![
        case("ClusterIP", "10.96.0.40:8000", &["pod-a-2", "pod-b-2"]),
        case("ClusterIP", "[fd00:10:96::40]:8000", &["pod-a-2", "pod-b-2"]),
        case(
            "LoadBalancer, externalTrafficPolicy: Local, which is for clients outside",
            "203.0.113.20:80",
            &["pod-a-1", "pod-b-1"],
        ),
    ]
}

/// Runs `spread` as a process in a pod: hooks on sockets belong to a cgroup of processes.
fn from_pod(agent: &Agent, pod: &Pod, spread: &Spread) -> Outcome {
    let mut command = agent.pod_command(&pod.netns, workspace_binary("lbxdp-testd"));
    command.args(["client", "connect-spread", &spread.target.to_string()]);
    command.args(["--count", &spread.count.to_string()]);
    command.args(["--timeout-ms", &spread.timeout.as_millis().to_string()]);
    // It fails if a flow failed, and says so in what it prints.
    let output = command.output().expect("run lbxdp-testd");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("lbxdp-testd: {error}: {}", String::from_utf8_lossy(&output.stderr))
    })
}

impl Case {
    /// Asks, prints what came back, and returns what is not as it should be.
    fn ask(&self, cluster: &Cluster, run: impl Fn(&Spread) -> Outcome) -> Vec<String> {
        let Self { what, target, expected } = self;
        let mut spread = Spread::new(*target, Probe::Http, REQUESTS);
        // Short, so that a broken demo ends soon.
        spread.timeout = Duration::from_secs(1);
        // Ten of them are enough to see that nothing answers.
        let first = Spread { count: 10, ..spread.clone() };
        let mut outcome = run(&first);
        if outcome.failed < first.count {
            spread.count = REQUESTS - first.count;
            outcome.add(run(&spread));
        }
        sweep::wait_if_stopping();
        println!("\n  http://{target}  {what}");
        let Outcome { backends, peers, failed, errors } = &outcome;
        for (name, count) in backends {
            let seen: Vec<_> = peers[name].iter().map(|peer| whose(cluster, *peer)).collect();
            println!("    {name:<8} {count:>4}   saw {}", seen.join(", "));
        }
        let mut failures = Vec::new();
        if *failed > 0 {
            println!("    no answer {failed:>3}   {}", errors.join("; "));
            failures.push(format!("{target}: {failed} requests failed: {}", errors.join("; ")));
        }
        for (name, peer) in expected {
            match peers.get(name) {
                None => failures.push(format!("{target}: {name} answered no request")),
                Some(seen) if *seen != BTreeSet::from([*peer]) => {
                    failures.push(format!("{target}: {name} saw {seen:?}, not {peer}"));
                }
                Some(_) => {}
            }
        }
        for name in backends.keys().filter(|name| !expected.contains_key(*name)) {
            failures.push(format!("{target}: {name} answered, but is no choice"));
        }
        failures
    }
}

fn whose(cluster: &Cluster, address: IpAddr) -> String {
    if address == CLIENT_V4 || address == CLIENT_V6 {
        return format!("{address} (the client)");
    }
    let nodes = cluster.nodes.iter().map(|node| (&node.name, [node.ip(false), node.ip(true)]));
    let pods = cluster.pods().map(|(_, pod)| (&pod.name, [pod.ip(false), pod.ip(true)]));
    let whose = nodes.chain(pods).find(|(_, addresses)| addresses.contains(&address));
    whose.map_or_else(|| address.to_string(), |(name, _)| format!("{address} ({name})"))
}
