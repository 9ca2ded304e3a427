//! How long it takes from a slice to the first packet on its new endpoint.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Patch, PatchParams};
use lbxdp_tests::lab::Lab;
use lbxdp_tests::traffic::socket::Source;
use lbxdp_tests::traffic::udp;
use serde_json::{Value, json};

use super::agents::ask_agent;
use super::world::{Applied, Pod, SERVED_WITHIN, pods, service, share, target, web};

const NAME: &str = "latency";
/// Between two flows, by which the figures are too large at the most. Each may hold a source port of the
/// node for a minute, and towards one endpoint there are some 4,500.
const PACE: Duration = Duration::from_millis(10);
/// Between two looks at who answers.
const LOOK: Duration = Duration::from_millis(1);
/// For an answer from a backend, which all live. What is lost never comes, however slow a machine is.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Between a change that was seen and the next one.
const REST: Duration = Duration::from_millis(150);
/// What is promised of 99 changes of 100, on a machine that does nothing else.
const TARGET: Duration = Duration::from_millis(100);

/// Ports of the client, from the first on. One that comes again soon would belong to a flow still, and
/// flows of an endpoint that is gone end a second or two later.
const FIRST_PORT: u16 = 10_000;
const PORTS: u64 = 50_000;

/// Flows without an end, of one datagram each.
struct Stream {
    target: SocketAddr,
    is_over: AtomicBool,
    lost: AtomicU32,
    /// Who answers now, and when the first answer came since another one did.
    now: Mutex<Option<(String, Instant)>>,
}

impl Stream {
    fn new(target: SocketAddr) -> Self {
        let (is_over, lost, now) = Default::default();
        Self { target, is_over, lost, now }
    }

    /// Goes on until it is over, in the calling thread's namespace.
    fn run(&self) {
        let mut number = 0_u64;
        while !self.is_over.load(Ordering::Relaxed) {
            let sent = Instant::now();
            number += 1;
            let port = FIRST_PORT + (number % PORTS) as u16;
            match udp::ask(self.target, Source::port(port), &number.to_string(), ANSWER_WITHIN) {
                Ok(answer) => self.answered(answer.name),
                Err(_) => drop(self.lost.fetch_add(1, Ordering::Relaxed)),
            }
            thread::sleep(PACE.saturating_sub(sent.elapsed()));
        }
    }

    fn answered(&self, by: String) {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        if now.as_ref().is_none_or(|(name, _)| *name != by) {
            *now = Some((by, Instant::now()));
        }
    }

    /// When this one's first answer came, if it is the one that answers.
    fn since(&self, name: &str) -> Option<Instant> {
        let now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        now.as_ref().filter(|(by, _)| by == name).map(|(_, since)| *since)
    }
}

/// A Service that has no selector: its slice is the test's.
fn object() -> Value {
    let mut object = service(NAME, 81);
    let spec = object["spec"].as_object_mut().expect("a spec");
    spec.remove("selector");
    spec["ports"][0]["protocol"] = json!("UDP");
    object
}

/// Its slice with one of the pods.
fn slice(pod: &Pod) -> Value {
    let ip = pod.ips.iter().find(|ip| ip.is_ipv4()).expect("an IPv4 address");
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": { "name": NAME, "labels": { "kubernetes.io/service-name": NAME } },
        "addressType": "IPv4",
        "ports": [{ "name": "http", "port": 8080, "protocol": "UDP" }],
        "endpoints": [{ "addresses": [ip.to_string()], "nodeName": pod.node }],
    })
}

/// From each request that changes the slice, in turn to one pod and the other, until the client has
/// the answer of the new pod: what the API server needs to write it down is part of that, and so is
/// the way to the pod and back.
fn measure(lab: &Lab, pods: &[Pod], stream: &Stream, count: usize) -> Vec<Duration> {
    lab.api().with(async |client| {
        let api = kube::Api::<EndpointSlice>::namespaced(client, "default");
        let mut samples = Vec::new();
        for number in 0..=count {
            let pod = &pods[number % pods.len()];
            let request = Instant::now();
            let patch = Patch::Apply(slice(pod));
            let written = api.patch(NAME, &PatchParams::apply("tests").force(), &patch).await;
            written.unwrap_or_else(|error| panic!("the slice, change {number}: {error}"));
            let first = loop {
                if let Some(first) = stream.since(&pod.name) {
                    break first;
                }
                let waited = request.elapsed();
                assert!(waited < SERVED_WITHIN, "change {number}: no packet on {}", pod.name);
                tokio::time::sleep(LOOK).await;
            };
            // The first change is that the Service begins.
            if number > 0 {
                samples.push(first.duration_since(request));
            } else {
                stream.lost.store(0, Ordering::Relaxed);
            }
            tokio::time::sleep(REST).await;
        }
        samples
    })
}

/// The smallest of the sorted samples that so many percent of them are not above.
fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() * percent).div_ceil(100).max(1) - 1]
}

#[test]
#[ignore = "needs root and Go"]
fn a_slice_is_in_the_dataplane_at_once() {
    let Some(lab) = share() else { return };
    let count = if lbxdp_tests::long() { 200 } else { 25 };
    let mut deployment = web(NAME, 2);
    let container = &mut deployment["spec"]["template"]["spec"]["containers"][0];
    container["args"][0] = json!("udp");
    container.as_object_mut().expect("a container").remove("readinessProbe");
    let _deployment = Applied::new(&lab, vec![deployment]);
    let pods = pods(&lab, NAME);
    let _service = Applied::new(&lab, vec![object(), slice(&pods[1])]);

    let stream = Stream::new(target("203.0.113.81", 80));
    let mut samples = thread::scope(|scope| {
        scope.spawn(|| lab.client.netns.run(|| stream.run()));
        let _over = Over(&stream.is_over);
        measure(&lab, &pods, &stream, count)
    });
    samples.sort_unstable();
    let [p50, p99] = [50, 99].map(|percent| percentile(&samples, percent));
    let lost = stream.lost.load(Ordering::Relaxed);
    println!("{count} slices, request to first answer: p50 {p50:?}, p99 {p99:?}, {lost} lost");
    if lost > 0 {
        for node in &lab.nodes {
            let metrics = ask_agent(node, "/metrics").unwrap_or_default();
            let telling = |line: &&str| {
                line.starts_with("lbxdp_drops") || line.starts_with("lbxdp_dataplane_events")
            };
            println!("{}:", node.name());
            metrics.lines().filter(telling).for_each(|line| println!("  {line}"));
        }
    }
    assert_eq!(lost, 0, "datagrams without an answer, though both backends live");
    assert!(p50 < Duration::from_secs(1), "half of {samples:?}");
    if lbxdp_tests::long() {
        assert!(p99 < TARGET, "p99 {p99:?} of {samples:?}");
    }
}

/// Ends the stream, whatever happens.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
