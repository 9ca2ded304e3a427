//! What is created, changed and deleted at the API is served.

use serde_json::json;

use crate::world::{CHANGE_WITHIN, World, is_connected, service, wait_backends, wait_source};
use lbxdp_tests::manifests::{Endpoint, Port, Service};
use lbxdp_tests::process::wait_until;

#[test]
#[ignore = "needs root"]
fn every_kind_of_object_arrives_and_every_change_of_it() {
    let Some(world) = World::start(1) else { return };
    world.create([1]);
    let agent = world.agent();
    let api = world.plane.api();
    // Nothing is ready before the first lists are served.
    wait_backends(&agent, 1, Some(2), CHANGE_WITHIN);
    assert!(world.answers(1));
    assert!(is_connected(&agent));
    wait_source(&agent, "running", true);
    wait_source(&agent, "connected", true);
    wait_source(&agent, "server", format!("{}/", world.plane.servers[0].url));

    // A new Service, then its slices, then an endpoint less.
    let (node, pod) = world.cluster.pods().next().expect("a pod");
    let one = Endpoint::new(pod.v4, &node.name);
    api.apply(&[service(2).object()]);
    wait_backends(&agent, 2, Some(0), CHANGE_WITHIN);
    api.apply(&service(2).slices(&world.endpoints()));
    wait_backends(&agent, 2, Some(2), CHANGE_WITHIN);
    api.apply(&service(2).slices(std::slice::from_ref(&one)));
    wait_backends(&agent, 2, Some(1), CHANGE_WITHIN);

    // An endpoint moves to a second slice: it is in both for a moment, and in none never.
    let mut moved = service(2).slices(&world.endpoints()[1..]);
    moved[0]["metadata"]["name"] = json!("web-2-second");
    api.apply(&moved);
    wait_backends(&agent, 2, Some(2), CHANGE_WITHIN);
    api.delete(&service(2).slices(&[one]));
    wait_backends(&agent, 2, Some(1), CHANGE_WITHIN);

    // A label hands the Service over to another proxy, and back.
    let label = |value| {
        json!({ "metadata": { "labels": {
        "service.kubernetes.io/service-proxy-name": value } } })
    };
    api.patch(&service(1).object(), &label(json!("other")));
    wait_backends(&agent, 1, None, CHANGE_WITHIN);
    api.patch(&service(1).object(), &label(json!(null)));
    wait_backends(&agent, 1, Some(2), CHANGE_WITHIN);

    world.delete([1]);
    wait_backends(&agent, 1, None, CHANGE_WITHIN);
}

#[test]
#[ignore = "needs root"]
fn the_nodes_zone_and_addresses_are_followed() {
    let Some(world) = World::start(1) else { return };
    let api = world.plane.api();
    let node = world.cluster.node(0);
    let zone =
        |zone: &str| json!({ "metadata": { "labels": { "topology.kubernetes.io/zone": zone } } });
    let object = lbxdp_tests::manifests::node_object(node);
    api.patch(&object, &zone("a"));
    // Each endpoint is for another zone.
    let mut objects = service(1).with(&world.endpoints());
    for (index, zone) in ["a", "b"].iter().enumerate() {
        objects[1]["endpoints"][index]["hints"] = json!({ "forZones": [{ "name": zone }] });
    }
    api.apply(&objects);
    let agent = world.agent();
    wait_backends(&agent, 1, Some(1), CHANGE_WITHIN);
    let backend = |agent: &lbxdp_tests::Agent| {
        let list = agent.json(&["service", "list"]);
        let row = list.as_array().and_then(|rows| {
            rows.iter().find(|row| row["service"] == "default/web-1:http").cloned()
        });
        row.expect("a row")["backends"].to_string()
    };
    let in_a = backend(&agent);
    api.patch(&object, &zone("b"));
    wait_until("the other zone's endpoint", CHANGE_WITHIN, || backend(&agent) != in_a);
    wait_backends(&agent, 1, Some(1), CHANGE_WITHIN);

    // A NodePort is served on the address that the Node has.
    let ports = Service::new("web-2").cluster_ip("10.96.1.2").node_ports();
    let ports = ports.port(Port::tcp("http", 80, 8080).node_port(30_080));
    api.apply(&ports.with(&world.endpoints()));
    wait_backends(&agent, 2, Some(2), CHANGE_WITHIN);
    let list = agent.cli(&["service", "list"]);
    assert!(list.contains(&node.v4.to_string()), "{list}");
}
