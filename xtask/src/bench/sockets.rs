//! A pod on the node calls another pod through a ClusterIP, and directly.

use std::net::{IpAddr, SocketAddr};
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
    let [there, by_service] =
        [server.v4.into(), CLUSTER_IP.parse()?].map(|ip| SocketAddr::new(ip, HTTP));
    let outside = |program| client.netns.command(program);
    let inside = |program| agent.pod_command(&client.netns, program);
    Ok(vec![
        Comparison::run(
            "direct, hooks attached, against direct without",
            "connections/s",
            pairs,
            || connections(outside("wrk"), there),
            || connections(inside("wrk"), there),
        )?,
        Comparison::run(
            "ClusterIP against direct without hooks",
            "connections/s",
            pairs,
            || connections(outside("wrk"), there),
            || connections(inside("wrk"), by_service),
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

/// Connections a second to an HTTP server, each for one request.
pub fn connections(mut wrk: Command, to: SocketAddr) -> Result<f64> {
    wrk.args(["-t", "1", "-c", "16", "-d", SECONDS, "-H", "Connection: close"]);
    let said = run_command(wrk.arg(format!("http://{to}/")));
    let line = said.lines().find_map(|line| line.trim().strip_prefix("Requests/sec:"));
    let rate = line.with_context(|| format!("no rate in what wrk said:\n{said}"))?;
    anyhow::ensure!(is_clean(&said), "wrk met errors:\n{said}");
    rate.trim().parse().with_context(|| format!("a rate of wrk: {rate}"))
}

/// Whether every connection was answered, but for one of ten thousand that was reset: where an ACK and the
/// request behind it meet on two processors, Linux before 6.19 may look for the connection while it takes
/// the place of its half-open one, and not find it (`inet_ehash_insert` in net/ipv4/inet_hashtables.c).
fn is_clean(said: &str) -> bool {
    let line = |with: &str| said.lines().find(|line| line.contains(with));
    let numbers = |line: &str| -> Vec<u64> {
        line.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
    };
    let requests = line(" requests in ").and_then(|line| numbers(line).first().copied());
    let errors = line("Socket errors").map_or(vec![0; 4], numbers);
    let is_answered = matches!((requests, &errors[..]),
        (Some(requests), [0, reset, 0, 0]) if reset * 10_000 <= requests);
    is_answered && !said.contains("Non-2xx")
}

/// Mbit/s that arrived.
pub fn bulk(mut iperf3: Command, host: &str) -> Result<f64> {
    iperf3.args(["-c", host, "-t", SECONDS, "-J"]);
    let said: serde_json::Value = serde_json::from_str(&run_command(&mut iperf3))?;
    let rate = said["end"]["sum_received"]["bits_per_second"].as_f64();
    Ok(rate.with_context(|| format!("no rate in what iperf3 said: {}", said["error"]))? / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_connections_may_be_reset_and_none_may_be_refused() {
        let said = |errors| format!("  24426 requests in 2.00s, 4.45MB read\n{errors}\n");
        assert!(is_clean(&said("")));
        assert!(is_clean(&said("  Socket errors: connect 0, read 2, write 0, timeout 0")));
        for bad in [
            "  Socket errors: connect 0, read 3, write 0, timeout 0",
            "  Socket errors: connect 1, read 0, write 0, timeout 0",
            "  Socket errors: connect 0, read 0, write 0, timeout 1",
            "  Non-2xx or 3xx responses: 1",
        ] {
            assert!(!is_clean(&said(bad)), "{bad}");
        }
        assert!(!is_clean("unable to connect to 10.96.0.80:8080"));
    }
}
