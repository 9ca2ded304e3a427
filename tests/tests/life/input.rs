//! Files that are broken, contradict each other, vanish and come back, below a running agent.

use std::fs;
use std::os::unix::fs::symlink;

use lbxdp_tests::manifests::{Endpoint, Port, Service, documents};
use lbxdp_tests::process::{command, run, wait_until};
use lbxdp_tests::traffic::http;
use lbxdp_tests::traffic::socket::Source;
use lbxdp_tests::traffic::spread::Probe;
use serde_json::{Value, json};

use crate::world::{EDIT_WITHIN, SHORT, WEB_FILE, World, cluster_ip, target, vip, web};

const OTHER_FILE: &str = "other.yaml";

/// A Service of its own on the load balancer addresses that end in `.30`, for `port`.
fn other(port: u16) -> Service {
    Service::new("other")
        .cluster_ip(&cluster_ip(false, 30))
        .cluster_ip(&cluster_ip(true, 30))
        .vip("203.0.113.30")
        .vip("2001:db8:ff::30")
        .port(Port::tcp("http", port, 8080))
}

fn other_address(v6: bool, port: u16) -> std::net::SocketAddr {
    vip(v6, 30, port)
}

fn wait_other(world: &World, port: u16) {
    for v6 in [false, true] {
        let target = other_address(v6, port);
        wait_until(&format!("{target} is served"), EDIT_WITHIN, || world.answers(target));
    }
}

/// Writes a file and expects a line of the log with all of these parts; what is valid is served.
fn complains(world: &World, severity: &str, text: &str, expected: &str) {
    let logged = world.agent.log().len();
    world.manifests.write_text("bad.yaml", text);
    world.wait_log(logged, expected, EDIT_WITHIN);
    let log = world.agent.log()[logged..].to_owned();
    let line = log.lines().find(|line| line.contains(expected)).expect("found just now");
    assert!(line.contains(severity), "{severity}: {line}");
    world.ask_both();
    assert_eq!(world.agent.get("/readyz").map(|(status, _)| status), Some(200));
}

fn slice(service: &str, family: &str, addresses: &[&str]) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": "bad",
            "labels": { "kubernetes.io/service-name": service },
        },
        "addressType": family,
        "ports": [{ "name": "http", "port": 8080 }],
        "endpoints": addresses.iter().map(|a| json!({ "addresses": [a] })).collect::<Vec<_>>(),
    })
}

#[test]
fn bad_objects_are_named_with_file_and_field_and_the_rest_is_served() {
    let world = World::with_pods(1, 1);
    let bad = |objects: &[Value]| documents(objects);
    let pod = |name: &str, spec: Value| json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": name }, "spec": spec });
    // Without times of creation, names decide who was first.
    let rival = Service::new("younger")
        .cluster_ip("10.96.0.67")
        .vip("203.0.113.10")
        .port(Port::tcp("http", 80, 8080));
    complains(
        &world,
        "ERROR",
        "apiVersion: v1\nkind: Service\nmetadata: {name: x\n",
        "bad.yaml: document 1 (line 1): not valid YAML: ",
    );
    complains(
        &world,
        "ERROR",
        "- 1\n- 2\n",
        "bad.yaml: document 1 (line 1): not a Kubernetes object",
    );
    complains(
        &world,
        "ERROR",
        "metadata: {name: x}\n",
        "bad.yaml: document 1 (line 1): has no kind",
    );
    complains(
        &world,
        "WARN",
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\n",
        "bad.yaml: Deployment x: kind: kind \"Deployment\" of \"apps/v1\" is not used here",
    );
    complains(
        &world,
        "ERROR",
        &bad(&[pod("x", json!({ "clusterIP": "10.96.0.66", "ports": [] }))]),
        "bad.yaml: Service default/x: spec.ports: empty: the Service is not served",
    );
    complains(
        &world,
        "ERROR",
        &bad(&[pod("x", json!({ "ports": [{ "port": "http" }] }))]),
        "bad.yaml: Service default/x: spec.ports[0].port: invalid type: string \"http\"",
    );
    complains(
        &world,
        "WARN",
        &bad(&[slice("nobody", "IPv4", &["10.244.1.99"])]),
        "bad.yaml: EndpointSlice default/bad: metadata.labels: there is no Service default/nobody",
    );
    complains(
        &world,
        "ERROR",
        &bad(&[rival.object()]),
        "bad.yaml: Service default/younger: status.loadBalancer.ingress[0].ip: 203.0.113.10:80/TCP \
         is the LoadBalancer of Service default/web (web.yaml) already: not served as LoadBalancer \
         here",
    );
    complains(
        &world,
        "ERROR",
        &bad(&[web().object()]),
        "Service default/web: also in bad.yaml, whose version is used; the one in web.yaml is \
         ignored",
    );
    for (address, reason) in [
        ("fd00:10:244:1::11", "is not of the slice's family IPv4"),
        ("127.0.0.1", "is a loopback address"),
        ("169.254.169.254", "is a link-local address"),
    ] {
        // The pod next to it is used, and is one of web's already.
        complains(
            &world,
            "ERROR",
            &bad(&[slice("web", "IPv4", &["10.244.1.11", address])]),
            &format!(
                "bad.yaml: EndpointSlice default/bad: endpoints[1].addresses[0]: \"{address}\" \
                 {reason}: the endpoint is not used"
            ),
        );
    }
    let logged = world.agent.log().len();
    world.manifests.remove("bad.yaml");
    world.wait_log(logged, "no longer: bad.yaml: EndpointSlice default/bad", EDIT_WITHIN);
    world.ask_both();
    assert_eq!(world.agent.json(&["service", "list"]).as_array().map(Vec::len), Some(14));
}

#[test]
fn an_invalid_edit_keeps_the_last_good_state_and_the_repair_is_served() {
    let world = World::with_pods(1, 1);
    let endpoints = Endpoint::pods(&world.cluster);
    world.manifests.write(OTHER_FILE, &other(80).with(&endpoints));
    wait_other(&world, 80);
    let good = documents(&other(80).with(&endpoints));
    let path = world.manifests.path().join(OTHER_FILE);
    // No manifest by its name. What is made there takes the file's place in one step, so that the file is
    // never seen to be gone.
    let aside = world.manifests.path().join("aside");

    let break_it: [(&str, &dyn Fn()); 5] = [
        ("not valid YAML", &|| world.manifests.write_text(OTHER_FILE, "kind: [\n")),
        ("is not UTF-8: first bad byte at offset 5", &|| {
            fs::write(&path, b"kind:\xff\xfe").expect("written");
        }),
        ("is not a regular file", &|| {
            run(command("mkfifo").arg(&aside));
            fs::rename(&aside, &path).expect("renamed");
        }),
        ("cannot be read", &|| {
            symlink(OTHER_FILE, &aside).expect("a link to itself");
            fs::rename(&aside, &path).expect("renamed");
        }),
        ("spec.ports[0].port: invalid type", &|| {
            let broken = good.replace("port: 80\n", "port: \"http\"\n");
            assert_ne!(broken, good);
            world.manifests.write_text(OTHER_FILE, &broken);
        }),
    ];
    let mut port = 80;
    for (complaint, break_it) in break_it {
        let logged = world.agent.log().len();
        break_it();
        world.wait_log(logged, complaint, EDIT_WITHIN);
        let log = world.agent.log()[logged..].to_owned();
        let line = log.lines().find(|line| line.contains(complaint)).expect("found just now");
        assert!(line.contains(OTHER_FILE) && line.contains("stays in use"), "{line}");
        world.ask_both();
        for v6 in [false, true] {
            assert!(world.answers(other_address(v6, port)), "{complaint}: {v6}");
        }
        // The repair says something new, so that it can be seen.
        port += 1;
        world.manifests.write(OTHER_FILE, &other(port).with(&endpoints));
        wait_other(&world, port);
        assert!(!world.answers(other_address(false, port - 1)));
        // The next round breaks what is there now.
        world.manifests.write(OTHER_FILE, &other(80).with(&endpoints));
        port = 80;
        wait_other(&world, port);
    }
}

#[test]
fn a_file_that_vanishes_takes_its_services_along_and_brings_them_back() {
    let world = World::with_pods(1, 1);
    let endpoints = Endpoint::pods(&world.cluster);
    for _ in 0..3 {
        world.manifests.write(OTHER_FILE, &other(80).with(&endpoints));
        wait_other(&world, 80);
        world.manifests.remove(OTHER_FILE);
        wait_until("the Service is gone", EDIT_WITHIN, || {
            let list = world.agent.json(&["service", "list"]);
            list.as_array().map(Vec::len) == Some(14)
        });
        for v6 in [false, true] {
            assert!(!world.answers(other_address(v6, 80)));
        }
        world.ask_both();
    }
}

/// Every backend of web's HTTP frontend, as the clients find them.
fn found(world: &World, v6: bool) -> usize {
    let target = target(v6, Probe::Http);
    let names: std::collections::BTreeSet<_> = world
        .cluster
        .client
        .run(|| {
            (0..30)
                .map(|_| http::who(target, Source::ANY, SHORT).map(|answer| answer.name))
                .collect::<Result<_, _>>()
        })
        .unwrap_or_else(|error| panic!("{target}: {error}\n{}", world.agent.log()));
    names.len()
}

fn restart_on_a_broken_file_keeps(services: &str, slices: &str, broken: &str) {
    let mut world = World::with_pods(1, 1);
    let endpoints = Endpoint::pods(&world.cluster);
    let write = |file: &str, service: bool, slice: bool| {
        let mut objects = Vec::new();
        if service {
            objects.push(web().object());
        }
        if slice {
            objects.extend(web().slices(&endpoints));
        }
        world.manifests.write(file, &objects);
    };
    write(services, true, services == slices);
    if services != slices {
        write(slices, false, true);
    }
    if services != WEB_FILE && slices != WEB_FILE {
        world.manifests.remove(WEB_FILE);
    }
    world.manifests.write(OTHER_FILE, &other(80).with(&endpoints));
    wait_other(&world, 80);
    let all = |world: &World| [false, true].map(|v6| found(world, v6));
    assert_eq!(all(&world), [2, 2]);

    world.manifests.write_text(broken, "kind: [\n");
    for _ in 0..2 {
        world.agent.kill9();
        let logged = world.agent.log().len();
        world.agent.start_again();
        let log = world.agent.log()[logged..].to_owned();
        assert!(log.contains(&format!("{broken}: document 1")), "{log}");
        assert_eq!(all(&world), [2, 2], "{log}");
    }
    // What is good is followed meanwhile.
    world.manifests.write(OTHER_FILE, &other(81).with(&endpoints));
    wait_other(&world, 81);
    assert_eq!(all(&world), [2, 2]);

    // The repair takes over, with one pod less.
    let node = world.node();
    let left = Endpoint::pods_of(node);
    let mut objects = Vec::new();
    if broken == services {
        objects.push(web().object());
    }
    if broken == slices {
        objects.extend(web().slices(&left));
    }
    world.manifests.write(broken, &objects);
    let expected = if broken == slices { 1 } else { 2 };
    wait_until("the repair is served", EDIT_WITHIN, || {
        let list = world.agent.json(&["service", "list"]);
        let list = list.as_array().expect("a list");
        // The Service of the other file has lost its old port.
        list.len() == 18
            && list
                .iter()
                .filter(|row| row["service"] == "default/web:http")
                .all(|row| row["backends"].as_array().map(Vec::len) == Some(expected))
    });
    assert_eq!(all(&world), [expected, expected]);
}

#[test]
fn a_restart_while_the_only_file_of_a_service_is_broken_goes_on_serving_it() {
    restart_on_a_broken_file_keeps(WEB_FILE, WEB_FILE, WEB_FILE);
}

#[test]
fn a_restart_while_the_file_of_the_slices_is_broken_goes_on_serving_the_pods() {
    restart_on_a_broken_file_keeps("services.yaml", "slices.yaml", "slices.yaml");
}

#[test]
fn a_restart_while_the_file_of_the_services_is_broken_goes_on_serving_them() {
    restart_on_a_broken_file_keeps("services.yaml", "slices.yaml", "services.yaml");
}
