//! The API goes away or has bad days, with load all the time.

use std::thread::sleep;
use std::time::{Duration, Instant};

use lbxdp_tests::chart::NAMESPACE;
use lbxdp_tests::kube::{Fault, Proxy, Upstream};
use lbxdp_tests::lab::control_plane::url;
use lbxdp_tests::lab::{Lab, Node, Origin};
use lbxdp_tests::long;
use lbxdp_tests::process::wait_until;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::agents::{agent, ask_agent};
use super::loads::Loads;
use super::world::{Applied, Finally, alone, pods, service, target, web};

/// From the API server's return to the dataplane of every node.
const BACK_WITHIN: Duration = Duration::from_secs(5);
/// A kubelet waits before it starts a container once more, the longer the more often it has ended.
const RESTARTED_WITHIN: Duration = Duration::from_secs(90);
/// Of a hundred requests.
const FAULTY: u32 = 20;
/// With so many failing.
const CONVERGES_WITHIN: Duration = Duration::from_secs(30);
const PROXY_PORT: u16 = 7443;

#[test]
#[ignore = "needs root and Go"]
fn an_api_outage_in_which_agents_restart_loses_nothing_and_is_caught_up_on_within_5_s() {
    let Some(lab) = alone() else { return };
    let lab: &Lab = &lab;
    let _applied = Applied::new(lab, vec![web("outage", 3), service("outage", 51)]);
    let early = fixed(lab, "early", 52, "outage");
    let late = fixed(lab, "late", 53, "outage");
    let _made = Applied::later(lab, [&early[..], &late].concat());
    lab.api().apply(&early);
    wait_everywhere(lab, 52, true, CONVERGES_WITHIN);
    let loads = Loads::start(lab, "outage", 51);
    let start = Instant::now();

    lab.control_plane.kill_api_server();
    let back = Finally::new(|| lab.control_plane.start_api_server());
    let outage = Duration::from_secs(if long() { 180 } else { 20 });
    for node in &lab.nodes {
        restart_agent(node);
    }
    // Changes by way of another API server, of which the agents know nothing.
    {
        let second = lab.control_plane.second_api_server();
        second.api.apply(&late);
        second.api.delete(&early);
    }
    sleep(outage.saturating_sub(start.elapsed()));
    for node in &lab.nodes {
        let ready = ask_agent(node, "/readyz");
        assert!(ready.is_some(), "{}: not ready without the API", node.name());
    }
    assert!(is_served(lab, &lab.nodes[0], 52), "taken away during the outage");
    let lasted = start.elapsed();
    drop(back);
    let back = Instant::now();
    wait_everywhere(lab, 53, true, BACK_WITHIN);
    wait_everywhere(lab, 52, false, BACK_WITHIN.saturating_sub(back.elapsed()));
    println!("out for {lasted:?}, caught up {:?} after the API server was ready", back.elapsed());
    loads.all_went_well(lasted.as_secs_f64());
    lab.wait_nodes();
    lab.wait_lbxdp();
}

#[test]
#[ignore = "needs root and Go"]
fn with_a_fifth_of_all_api_requests_failing_agents_converge_and_nothing_is_lost() {
    let Some(lab) = alone() else { return };
    let lab: &Lab = &lab;
    let _applied = Applied::new(lab, vec![web("faulty", 3), service("faulty", 54)]);
    let changed = fixed(lab, "comes", 55, "faulty");
    let _made = Applied::later(lab, changed.clone());
    let ca = lab.control_plane.ca();
    let upstream = url();
    let upstream = Upstream { url: &upstream, ca: &ca };
    // On each node, because agents send no token over a network in the clear.
    let proxies: Vec<_> =
        lab.nodes.iter().map(|node| Proxy::http(&node.host.netns, upstream, PROXY_PORT)).collect();
    let loads = Loads::start(lab, "faulty", 54);
    let direct = Finally::new(|| use_servers(lab, &url()));
    use_servers(lab, &format!("http://127.0.0.1:{PROXY_PORT}"));
    for proxy in &proxies {
        proxy.set(Fault::Status { code: 500, percent: FAULTY });
    }
    let (start, lasts) = (Instant::now(), Duration::from_secs(if long() { 300 } else { 20 }));
    let (mut rounds, mut slowest) = (0, Duration::ZERO);
    while start.elapsed() < lasts {
        // New watches, a fifth of which fail.
        proxies.iter().for_each(Proxy::cut);
        let change = Instant::now();
        lab.api().apply(&changed);
        wait_everywhere(lab, 55, true, CONVERGES_WITHIN);
        slowest = slowest.max(change.elapsed());
        proxies.iter().for_each(Proxy::cut);
        let change = Instant::now();
        lab.api().delete(&changed);
        wait_everywhere(lab, 55, false, CONVERGES_WITHIN);
        slowest = slowest.max(change.elapsed());
        rounds += 1;
    }
    for (proxy, node) in proxies.iter().zip(&lab.nodes) {
        let seen = proxy.seen();
        let failed = seen.iter().filter(|line| line.ends_with(" 500")).count();
        println!("{}: {failed} of {} requests failed", node.name(), seen.len());
        assert!(failed * 10 >= seen.len(), "{}: {seen:?}", node.name());
        assert!(seen.len() > 5 * rounds, "{}: {seen:?}", node.name());
    }
    println!("{rounds} rounds in {:?}, the slowest change in {slowest:?}", start.elapsed());
    drop(direct);
    loads.all_went_well(lasts.as_secs_f64());
}

/// A Service without a selector, and an EndpointSlice with the IPv4 addresses of the pods of `app`.
fn fixed(lab: &Lab, name: &str, number: u8, app: &str) -> Vec<Value> {
    let mut object = service(name, number);
    object["spec"].as_object_mut().expect("an object").remove("selector");
    vec![object, slice(lab, name, app)]
}

fn slice(lab: &Lab, name: &str, app: &str) -> Value {
    let pods = pods(lab, app);
    let v4 = pods.iter().flat_map(|pod| pod.ips.iter().filter(|ip| ip.is_ipv4()));
    let endpoints: Vec<_> =
        v4.map(|ip| json!({ "addresses": [ip], "conditions": { "ready": true } })).collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": { "name": name, "labels": { "kubernetes.io/service-name": name } },
        "addressType": "IPv4",
        "ports": [{ "name": "http", "protocol": "TCP", "port": 8080 }],
        "endpoints": endpoints,
    })
}

/// Whether the client reaches a Service by a node.
fn is_served(lab: &Lab, node: &Node, number: u8) -> bool {
    let at = target(node.ip(false).to_string(), 30_000 + u16::from(number));
    lab.spread(&Origin::Client, at, 1).failed == 0
}

#[track_caller]
fn wait_everywhere(lab: &Lab, number: u8, is_wanted: bool, within: Duration) {
    let deadline = Instant::now() + within;
    for node in &lab.nodes {
        let what = format!("node port 30{number:03} of {}: served is {is_wanted}", node.name());
        let left = deadline.saturating_duration_since(Instant::now());
        wait_until(&what, left, || is_served(lab, node, number) == is_wanted);
    }
}

/// Kills the agent of a node, and waits until the kubelet has started another that is ready.
#[track_caller]
fn restart_agent(node: &Node) {
    let before = agent(node).expect("an agent");
    let pid = Pid::from_raw(before.try_into().expect("process ids are positive"));
    kill(pid, Signal::SIGKILL).expect("the agent is killed");
    wait_until(&format!("{}: another agent is ready", node.name()), RESTARTED_WITHIN, || {
        agent(node).is_some_and(|now| now != before) && ask_agent(node, "/readyz").is_some()
    });
}

/// Has the agents reach the API by these addresses.
#[track_caller]
fn use_servers(lab: &Lab, servers: &str) {
    let settings = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": { "name": "lbxdp", "namespace": NAMESPACE },
    });
    lab.api().patch(&settings, &json!({ "data": { "LBXDP_API_SERVERS": servers } }));
    let setting = format!("LBXDP_API_SERVERS={servers}");
    let has = |node: &Node| {
        let pid = agent(node).expect("an agent");
        let settings = std::fs::read(format!("/proc/{pid}/environ")).expect("the agent's settings");
        settings.split(|byte| *byte == 0).any(|each| each == setting.as_bytes())
    };
    // A kubelet may start a pod with what it knew of the settings a moment ago.
    for _ in 0..3 {
        lab.restart_lbxdp();
        if lab.nodes.iter().all(has) {
            return;
        }
    }
    panic!("agents are started with other settings than {setting}");
}
