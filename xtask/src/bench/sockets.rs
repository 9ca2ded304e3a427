//! A pod on the node calls another pod through a ClusterIP, and directly.

use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use lbxdp_tests::manifests::{Endpoint, Manifests, Port, Service};
use lbxdp_tests::process::run as run_command;
use lbxdp_tests::traffic::http;
use lbxdp_tests::traffic::socket::Source;
use lbxdp_tests::{Agent, AgentOptions, Cluster, Process, Scratch, Spec, nginx};

use super::Comparison;

const HTTP: u16 = 8080;
/// Where iperf3 listens.
pub const BULK: u16 = 5201;
const CLUSTER_IP: &str = "10.96.0.80";
/// Of one sample.
const SECONDS: &str = "2";

/// Connections per second (wrk, each request a connection of its own, nginx with one process) and
/// bulk TCP (iperf3). A client outside the agent's cgroup is the reference: no hook sees it.
pub fn run(pairs: u32) -> Result<Vec<Comparison>> {
    let cluster = Cluster::new(&Spec { pods: vec![2], ..Spec::default() });
    let manifests = Manifests::of(&cluster);
    let node = cluster.node(0);
    let (client, server) = (&node.pods[0], &node.pods[1]);
    for pod in &node.pods {
        pod.netns.sysctl("net.ipv4.ip_local_port_range", "1024 65535");
    }
    let service = Service::new("bench")
        .cluster_ip(CLUSTER_IP)
        .port(Port::tcp("http", HTTP, HTTP))
        .port(Port::tcp("bulk", BULK, BULK));
    manifests.write("bench.yaml", &service.with(&[Endpoint::new(server.v4, &node.name)]));
    let agent = Agent::start(node, &manifests.path(), AgentOptions::default());

    let files = Scratch::new("bench");
    let loopback = IpAddr::from([127, 0, 0, 1]);
    let ready = || http::who((loopback, HTTP).into(), Source::ANY, Duration::from_secs(1)).is_ok();
    let block = nginx::answering("nginx", HTTP);
    let command = server.netns.command("nginx");
    let _nginx = nginx::start(command, &files, &block, || server.netns.run(ready));
    let mut command = server.netns.command("iperf3");
    let mut iperf3 =
        Process::spawn(command.args(["-s", "--forceflush"]), &files.join("iperf3.log"));
    iperf3.wait_line("Server listening", Duration::from_secs(5));

    let direct = server.v4.to_string();
    let outside = |program| client.netns.command(program);
    let inside = |program| agent.pod_command(&client.netns, program);
    Ok(vec![
        Comparison::run(
            "direct, hooks attached, against direct without",
            "connections/s",
            pairs,
            || connections(outside("wrk"), &direct),
            || connections(inside("wrk"), &direct),
        )?,
        Comparison::run(
            "ClusterIP against direct without hooks",
            "connections/s",
            pairs,
            || connections(outside("wrk"), &direct),
            || connections(inside("wrk"), CLUSTER_IP),
        )?,
        Comparison::run(
            "bulk TCP, ClusterIP against direct without hooks",
            "Mbit/s",
            pairs,
            || bulk(outside("iperf3"), &direct),
            || bulk(inside("iperf3"), CLUSTER_IP),
        )?,
    ])
}

fn connections(mut wrk: Command, host: &str) -> Result<f64> {
    wrk.args(["-t", "1", "-c", "16", "-d", SECONDS, "-H", "Connection: close"]);
    let said = run_command(wrk.arg(format!("http://{host}:{HTTP}/")));
    let line = said.lines().find_map(|line| line.trim().strip_prefix("Requests/sec:"));
    let rate = line.with_context(|| format!("no rate in what wrk said:\n{said}"))?;
    let is_clean = !said.contains("Socket errors") && !said.contains("Non-2xx");
    anyhow::ensure!(is_clean, "wrk met errors:\n{said}");
    rate.trim().parse().with_context(|| format!("a rate of wrk: {rate}"))
}

/// Mbit/s that arrived.
pub fn bulk(mut iperf3: Command, host: &str) -> Result<f64> {
    iperf3.args(["-c", host, "-t", SECONDS, "-J"]);
    let said: serde_json::Value = serde_json::from_str(&run_command(&mut iperf3))?;
    let rate = said["end"]["sum_received"]["bits_per_second"].as_f64();
    Ok(rate.with_context(|| format!("no rate in what iperf3 said: {}", said["error"]))? / 1e6)
}
