//! `healthCheckNodePort`, asked from outside as a load balancer does.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use lbxdp_tests::AgentOptions;
use lbxdp_tests::cluster::UPLINK;
use lbxdp_tests::manifests::{Endpoint, Port, Service, node_object};
use lbxdp_tests::process::wait_until;
use lbxdp_tests::traffic::socket::{Source, tcp};
use serde_json::{Value, json};

use crate::world::{EDIT_WITHIN, SHORT, TIMEOUT, World, both, cluster_ip, pods, vip};

const FILE: &str = "checked.yaml";
const PORT: u16 = 30_500;
/// By when what had failed is tried again: the waits grow from a tenth of a second.
const AGAIN_WITHIN: Duration = Duration::from_secs(5);

/// A load balancer with policy Local and a health check.
fn checked(name: &str, last: u8, port: u16) -> Service {
    Service::new(name)
        .cluster_ip(&cluster_ip(false, last))
        .cluster_ip(&cluster_ip(true, last))
        .vip(&vip(false, last, 0).ip().to_string())
        .vip(&vip(true, last, 0).ip().to_string())
        .port(Port::tcp("echo", 7, 7))
        .port(Port::tcp("http", 80, 8080))
        .external_local()
        .spec("healthCheckNodePort", json!(port))
}

fn publish(world: &World, port: u16, endpoints: &[Endpoint]) {
    world.manifests.write(FILE, &checked("checked", 50, port).with(endpoints));
}

fn all(world: &World) -> Vec<Endpoint> {
    world.cluster.pods().flat_map(|(node, pod)| both(node, pod)).collect()
}

fn listener(world: &World, v6: bool, port: u16) -> SocketAddr {
    SocketAddr::new(world.node().ip(v6), port)
}

fn connect(world: &World, target: SocketAddr) -> io::Result<TcpStream> {
    world.cluster.client.run(|| tcp(target, Source::ANY, SHORT))
}

/// What is answered to one request: the status, the head in lower case, and the body.
fn ask(world: &World, target: SocketAddr, request: &str) -> io::Result<(u16, String, Value)> {
    let mut stream = connect(world, target)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    write!(stream, "{request} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
    let body = if body.is_empty() { Value::Null } else { serde_json::from_str(body)? };
    Ok((status, head.to_lowercase(), body))
}

#[track_caller]
fn wait_answer(world: &World, port: u16, status: u16, local: u64) {
    for v6 in [false, true] {
        let target = listener(world, v6, port);
        wait_until(&format!("{target} says {status} and {local}"), EDIT_WITHIN, || {
            ask(world, target, "GET /healthz")
                .is_ok_and(|(said, _, body)| said == status && body["localEndpoints"] == local)
        });
    }
}

#[track_caller]
fn wait_closed(world: &World, target: SocketAddr) {
    wait_until(&format!("{target} is closed"), EDIT_WITHIN, || {
        let refused = connect(world, target).map_err(|error| error.kind());
        refused.is_err_and(|kind| kind == io::ErrorKind::ConnectionRefused)
    });
}

#[test]
fn load_balancers_are_told_how_many_endpoints_this_node_has() {
    let world = World::with_pods(2, 1);
    publish(&world, PORT, &all(&world));
    wait_answer(&world, PORT, 200, 2);
    for v6 in [false, true] {
        for request in ["GET /healthz", "GET /", "GET /any/path?x=1", "POST /healthz", "HEAD /"] {
            let target = listener(&world, v6, PORT);
            let (status, head, body) = ask(&world, target, request).expect("an answer");
            assert_eq!(status, 200, "{request}");
            for line in [
                "content-type: application/json",
                "x-content-type-options: nosniff",
                "x-load-balancing-endpoint-weight: 2",
            ] {
                assert!(head.lines().any(|other| other == line), "{request}: {line}\n{head}");
            }
            let expected = json!({
                "service": {"namespace": "default", "name": "checked"},
                "localEndpoints": 2,
                "serviceProxyHealthy": true,
            });
            let expected = if request.starts_with("HEAD") { Value::Null } else { expected };
            assert_eq!(body, expected, "{request}");
        }
    }

    // The first node's endpoints end: the load balancer goes elsewhere while they still serve.
    let (here, there): (Vec<_>, Vec<_>) =
        world.cluster.pods().partition(|(node, _)| node.name == world.node().name);
    let here = here.into_iter().flat_map(|(node, pod)| both(node, pod));
    let there = there.into_iter().flat_map(|(node, pod)| both(node, pod));
    let ending: Vec<_> = here.map(Endpoint::terminating).chain(there).collect();
    publish(&world, PORT, &ending);
    wait_answer(&world, PORT, 503, 0);
    let (_, head, _) = ask(&world, listener(&world, false, PORT), "GET /").expect("an answer");
    assert!(head.contains("x-load-balancing-endpoint-weight: 0"), "{head}");
    assert!(world.answers(vip(false, 50, 80)), "what comes is served");
    publish(&world, PORT, &all(&world));
    wait_answer(&world, PORT, 200, 2);
    assert_eq!(world.counts().all_drops(), 0);
}

#[test]
fn listeners_follow_their_service_and_close_with_their_connections() {
    let world = World::with_pods(1, 0);
    publish(&world, PORT, &all(&world));
    wait_answer(&world, PORT, 200, 1);
    let mut open = Vec::new();
    for v6 in [false, true] {
        // One that waits for its next request, and one that has sent none.
        let mut used = connect(&world, listener(&world, v6, PORT)).expect("it listens");
        write!(used, "GET / HTTP/1.1\r\nHost: node\r\n\r\n").expect("sent");
        let mut start = [0; 15];
        used.set_read_timeout(Some(TIMEOUT)).expect("set");
        used.read_exact(&mut start).expect("an answer");
        assert_eq!(&start, b"HTTP/1.1 200 OK");
        let silent = connect(&world, listener(&world, v6, PORT)).expect("it listens");
        silent.set_read_timeout(Some(TIMEOUT)).expect("set");
        open.extend([used, silent]);
    }
    publish(&world, PORT + 1, &all(&world));
    wait_answer(&world, PORT + 1, 200, 1);
    for mut stream in open {
        let mut rest = Vec::new();
        // The rest of the answer and the end; a reset is an end as well.
        match stream.read_to_end(&mut rest) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
        }
    }
    for v6 in [false, true] {
        wait_closed(&world, listener(&world, v6, PORT));
    }
    let cluster = checked("checked", 50, PORT).spec("externalTrafficPolicy", json!("Cluster"));
    world.manifests.write(FILE, &cluster.with(&all(&world)));
    wait_closed(&world, listener(&world, false, PORT + 1));
    publish(&world, PORT, &all(&world));
    wait_answer(&world, PORT, 200, 1);
    world.manifests.remove(FILE);
    for v6 in [false, true] {
        wait_closed(&world, listener(&world, v6, PORT));
    }
}

#[test]
fn a_port_in_use_is_reported_and_tried_again() {
    let world = World::with_pods(1, 0);
    let target = listener(&world, false, PORT);
    let squatter = world.node().netns.run(|| TcpListener::bind(target)).expect("a free port");
    let logged = world.agent.log().len();
    publish(&world, PORT, &all(&world));
    let problem = "WARN lbxdp_agent::problem: Service default/checked: spec.healthCheckNodePort: \
                   cannot listen on";
    world.wait_log(logged, problem, EDIT_WITHIN);
    // The other family's is not concerned.
    assert!(ask(&world, listener(&world, true, PORT), "GET /").is_ok_and(|said| said.0 == 200));
    drop(squatter);
    wait_until("it listens after all", AGAIN_WITHIN, || {
        ask(&world, target, "GET /").is_ok_and(|(status, ..)| status == 200)
    });
    world.wait_log(logged, "no longer: Service default/checked", EDIT_WITHIN);
}

#[test]
fn two_services_with_one_port_are_reported() {
    let world = World::with_pods(1, 0);
    publish(&world, PORT, &all(&world));
    wait_answer(&world, PORT, 200, 1);
    let logged = world.agent.log().len();
    world.manifests.write("other.yaml", &checked("other", 51, PORT).with(&all(&world)));
    let problem = "Service default/other: spec.healthCheckNodePort: ";
    world.wait_log(logged, problem, EDIT_WITHIN);
    let target = listener(&world, false, PORT);
    let name = || {
        let (.., body) = ask(&world, target, "GET /").ok()?;
        body["service"]["name"].as_str().map(str::to_owned)
    };
    assert_eq!(name().as_deref(), Some("checked"));
    world.manifests.remove(FILE);
    wait_until("the other one answers", AGAIN_WITHIN, || name().as_deref() == Some("other"));
}

#[test]
fn an_address_that_comes_later_is_listened_on_then() {
    const LATER: &str = "198.51.100.77";
    let world = World::start(&pods(1, 0), AgentOptions::default());
    let mut node = node_object(world.node());
    node["status"]["addresses"] = json!([{"type": "InternalIP", "address": LATER}]);
    let logged = world.agent.log().len();
    world.manifests.write("nodes.yaml", &[node]);
    publish(&world, PORT, &all(&world));
    world.wait_log(logged, &format!("cannot listen on {LATER}:{PORT}"), EDIT_WITHIN);
    world.node().netns.ip(&format!("address add {LATER}/24 dev {UPLINK}"));
    let target = SocketAddr::new(LATER.parse().expect("an address"), PORT);
    wait_until("it listens on the address", EDIT_WITHIN, || {
        ask(&world, target, "GET /").is_ok_and(|(status, ..)| status == 200)
    });
}
