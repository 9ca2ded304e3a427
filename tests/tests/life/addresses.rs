//! Addresses of pools in the directory, given by an agent that has no API.

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use lbxdp_tests::manifests::{Endpoint, Port, Service};
use lbxdp_tests::process::wait_until;
use serde_json::{Value, json};

use crate::world::{EDIT_WITHIN, World, cluster_ip, vip};

/// The directory is looked at every three seconds, whatever its events say.
const LOOKED_AT_WITHIN: Duration = Duration::from_secs(8);
const STATE: &str = "addresses.json";

fn of_lb(kind: &str, name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "metallb.io/v1beta1", "kind": kind,
        "metadata": { "name": name, "namespace": "lb" }, "spec": spec,
    })
}

/// Two addresses of each family.
fn pool() -> [Value; 2] {
    let addresses = ["203.0.113.40-203.0.113.41", "2001:db8:ff::40-2001:db8:ff::41"];
    [
        of_lb("IPAddressPool", "a", json!({ "addresses": addresses })),
        of_lb("L2Advertisement", "a", json!({})),
    ]
}

/// A Service that asks for addresses of both families and names none.
fn service(world: &World, name: &str, last: u8) -> Vec<Value> {
    let service = Service::new(name)
        .cluster_ip(&cluster_ip(false, last))
        .cluster_ip(&cluster_ip(true, last))
        .spec("type", json!("LoadBalancer"))
        .spec("loadBalancerClass", json!("lbxdp.io/lbxdp"))
        .port(Port::tcp("http", 80, 8080));
    service.with(&Endpoint::pods(&world.cluster))
}

fn given() -> Vec<SocketAddr> {
    [40, 41].into_iter().flat_map(|last| [false, true].map(|v6| vip(v6, last, 80))).collect()
}

fn wait_given(world: &World) {
    for target in given() {
        wait_until(&format!("{target} answers"), EDIT_WITHIN * 2, || world.answers(target));
    }
}

/// `namespace/name` of the Services that have addresses, as the state file says.
fn holders(world: &World) -> Vec<String> {
    let text = fs::read_to_string(world.agent.state_dir().join(STATE)).unwrap_or_default();
    let state: Value = serde_json::from_str(&text).unwrap_or_default();
    state["services"].as_object().into_iter().flatten().map(|(name, _)| name.clone()).collect()
}

#[test]
fn services_get_addresses_that_outlive_the_agent_and_a_broken_file() {
    let mut world = World::with_pods(1, 1);
    world.manifests.write("pool.yaml", &pool());
    for (name, last) in [("m", 40), ("n", 41)] {
        world.manifests.write(&format!("{name}.yaml"), &service(&world, name, last));
    }
    wait_given(&world);
    assert_eq!(holders(&world), ["default/m", "default/n"]);

    // Killed, and back among more Services than there are addresses, one of them first by name.
    world.agent.kill9();
    world.manifests.write("a.yaml", &service(&world, "a", 42));
    let logged = world.agent.log().len();
    world.agent.start_again();
    world.wait_log(logged, "a.yaml: Service default/a: Failed to allocate", LOOKED_AT_WITHIN);
    wait_given(&world);
    assert_eq!(holders(&world), ["default/m", "default/n"]);

    // With a state that cannot be read, everything stays as it is and the file as well.
    world.agent.stop();
    let path = world.agent.state_dir().join(STATE);
    let good = fs::read(&path).expect("the state");
    fs::write(&path, "{\"format\": 1, \"serv").expect("break the state");
    let logged = world.agent.log().len();
    world.agent.start_again();
    let complaint = format!("{}: state: ", path.display());
    world.wait_log(logged, &complaint, LOOKED_AT_WITHIN);
    world.wait_log(logged, "no address is given or taken until it is mended", LOOKED_AT_WITHIN);
    wait_given(&world);
    world.ask_both();
    assert_eq!(fs::read(&path).expect("the state"), b"{\"format\": 1, \"serv");

    // Mended, and what one gives up another one gets.
    fs::write(&path, good).expect("mend the state");
    world.wait_log(logged, &format!("no longer: {complaint}"), LOOKED_AT_WITHIN);
    world.manifests.remove("m.yaml");
    wait_until("somebody else has it", LOOKED_AT_WITHIN, || {
        holders(&world) == ["default/a", "default/n"]
    });
    wait_given(&world);
}
