//! A Service that gets an address of the client's own network from a pool: one node announces it, and
//! the other one when that is gone.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lbxdp_tests::manifests::{Endpoint, Manifests, Port, Service};
use lbxdp_tests::process::wait_until;
use lbxdp_tests::traffic::http;
use lbxdp_tests::traffic::neighbour::mac;
use lbxdp_tests::traffic::socket::Source;
use lbxdp_tests::{Agent, AgentOptions, Cluster, Scratch};
use serde_json::json;

use super::{PORT, indent};

const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 200));
/// A team's own, as MetalLB reads them.
const POOL: &str = "\
apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: {name: first, namespace: metallb-system}
spec: {addresses: [198.51.100.200/32]}
---
apiVersion: metallb.io/v1beta1
kind: L2Advertisement
metadata: {name: all, namespace: metallb-system}
spec: {ipAddressPools: [first]}
";
const WITHIN: Duration = Duration::from_secs(20);
/// Of one request while nobody answers.
const PATIENCE: Duration = Duration::from_millis(200);

/// Has agents find each other, with a key.
pub(super) fn options(
    cluster: &Cluster,
    key: &Scratch,
    base: AgentOptions,
) -> Result<AgentOptions> {
    let file = key.join("key");
    std::fs::write(&file, "a key for the demo alone\n").context("writing the agents' key")?;
    let peers = cluster.nodes.iter().map(|node| format!("--peer={}", node.v4));
    let key = format!("--members-key-file={}", file.display());
    Ok(AgentOptions { extra: peers.chain([key]).collect(), ..base })
}

/// Shows it; ends the agent of the owner.
pub(super) fn show(cluster: &Cluster, manifests: &Manifests, agents: &mut [Agent]) -> Result<()> {
    println!("{}", indent(POOL));
    manifests.write_text("pool.yaml", POOL);
    let service = Service::new("lan")
        .cluster_ip("10.96.0.60")
        .spec("type", json!("LoadBalancer"))
        .spec("loadBalancerClass", json!("lbxdp.io/lbxdp"))
        .port(Port::tcp("http", 80, PORT));
    let pods = cluster.pods().map(|(node, pod)| Endpoint::new(pod.v4, &node.name));
    let start = Instant::now();
    manifests.write("lan.yaml", &service.with(&pods.collect::<Vec<_>>()));
    println!("\n  and a Service default/lan of type LoadBalancer, which shows no address yet");
    wait_until("the client is answered", WITHIN, || ask(cluster).is_some());
    let answered = start.elapsed().as_secs_f64();
    let owner = announcer(cluster)?;
    let (this, next) = (&cluster.node(owner).name, &cluster.node(1 - owner).name);
    println!(
        "  {answered:.1} s later the client asked who has {ADDRESS}, {this} said that it does:"
    );
    println!("    {}", neighbour(cluster));
    let state_dir = agents[owner].state_dir().display().to_string();
    let show = ["vip", "show", "default/lan", "--state-dir", &state_dir];
    let shown = || agents[owner].cli(&show);
    // It is written about once a second.
    wait_until("the agent says so", WITHIN, || {
        agents[owner].can(&show) && shown().contains(&format!("owner           {this}"))
    });
    println!("  on {this}: lbxdp-agent vip show default/lan\n{}", indent(&indent(&shown())));

    agents[owner].kill9();
    let killed = Instant::now();
    let asks_next = || announcer(cluster).is_ok_and(|now| now != owner);
    wait_until("the other node has it", WITHIN, || ask(cluster).is_some() && asks_next());
    let moved = killed.elapsed().as_secs_f64();
    println!("\n  the agent on {this} was killed; {moved:.1} s later {next} answers:");
    println!("    {}", neighbour(cluster));
    Ok(())
}

/// One request of the client: the pod that answered.
fn ask(cluster: &Cluster) -> Option<String> {
    let target = SocketAddr::new(ADDRESS, 80);
    let answer = cluster.client.run(|| http::who(target, Source::ANY, PATIENCE)).ok()?;
    Some(answer.name)
}

/// What the client's kernel knows of the address.
fn neighbour(cluster: &Cluster) -> String {
    cluster.client.ip(&format!("neighbour show {ADDRESS}")).trim().to_owned()
}

/// The place of the node where the client sends what is for the address.
fn announcer(cluster: &Cluster) -> Result<usize> {
    let known = neighbour(cluster);
    let is_there = |place: &usize| {
        let mac = mac(&cluster.node(*place).netns).map(|byte| format!("{byte:02x}")).join(":");
        known.contains(&mac)
    };
    let place = (0..cluster.nodes.len()).find(is_there);
    ensure!(place.is_some(), "the client knows no node that has {ADDRESS}: {known}");
    place.context("a node")
}
