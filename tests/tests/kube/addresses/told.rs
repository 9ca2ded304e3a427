//! What the API is told of announcing: ServiceL2Statuses and Events, as MetalLB's speakers write them.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use lbxdp_tests::cluster::UPLINK;
use lbxdp_tests::kube::Api;
use lbxdp_tests::manifests::{Port, Service};
use lbxdp_tests::process::wait_until;
use lbxdp_tests::scratch::Scratch;
use lbxdp_tests::traffic::neighbour::{Neighbour, mac};
use lbxdp_tests::{Agent, AgentOptions};
use serde_json::{Value, json};

use super::{addresses, advertisement, events, service, wait_event, wait_shows, world};
use crate::world::{LONG, World};

const VIP: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 200));
/// From the object to an answer, and from its end to silence.
const ANNOUNCED_WITHIN: Duration = Duration::from_secs(2);
/// Where agents keep what they write for themselves.
const NAMESPACE: &str = "kube-system";

/// Node, Service and devices of every ServiceL2Status, and that labels say the same.
fn statuses(api: &Api) -> BTreeSet<(String, String, Vec<String>)> {
    let path = format!("/apis/metallb.io/v1beta1/namespaces/{NAMESPACE}/servicel2statuses");
    let list = api.get(&path).unwrap_or_default();
    let items = list["items"].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or("none").to_owned();
    let row = |item: &Value| {
        let (status, labels) = (&item["status"], &item["metadata"]["labels"]);
        if status["node"].is_string() {
            assert_eq!(labels["metallb.io/node"], status["node"]);
            assert_eq!(labels["metallb.io/service-name"], status["serviceName"]);
            assert_eq!(labels["metallb.io/service-namespace"], status["serviceNamespace"]);
            assert_eq!(item["metadata"]["ownerReferences"][0]["name"], status["node"]);
        }
        let service =
            format!("{}/{}", text(&status["serviceNamespace"]), text(&status["serviceName"]));
        let devices = status["interfaces"].as_array().into_iter().flatten();
        (text(&status["node"]), service, devices.map(|it| text(&it["name"])).collect())
    };
    items.iter().map(row).collect()
}

/// Waits until one node alone is said to announce the Service, by its uplink; or none.
#[track_caller]
fn wait_status(api: &Api, node: Option<&str>) {
    let row = |node: &str| (node.to_owned(), "default/lan".to_owned(), vec![UPLINK.to_owned()]);
    let expected = node.map(row).into_iter().collect();
    wait_until(&format!("announced from {node:?}"), LONG, || statuses(api) == expected);
}

/// How often a node was said to begin.
fn assigned(api: &Api, node: &str) -> usize {
    let note = format!("announcing from node \"{node}\" with protocol \"layer2\"");
    let expected = ("Normal".to_owned(), "nodeAssigned".to_owned(), note);
    events(api, "Service", "lan").into_iter().filter(|event| *event == expected).count()
}

fn objects(world: &World) -> Vec<Value> {
    let mut objects =
        Service::new("lan").port(Port::tcp("http", 80, 8080)).slices(&world.endpoints());
    objects.insert(0, service("lan", &[], json!({})));
    objects
}

/// L2, and L5 where no node has the device; F5.
#[test]
#[ignore = "needs root"]
fn statuses_and_events_follow_the_owner_and_its_device() {
    let Some(world) = world(2) else { return };
    let api = world.plane.api();
    api.apply(&[addresses("a", &[&format!("{VIP}/32")])]);
    let key = Scratch::new("key");
    fs::write(key.join("key"), "a key that nobody else has\n").expect("write the key");
    let key = format!("--members-key-file={}", key.join("key").display());
    let extra = vec!["--adopt-classless".to_owned(), key];
    let options = AgentOptions { extra, ..AgentOptions::default() };
    let mut agents: Vec<Agent> =
        (0..2).map(|place| world.agent_on(place, options.clone())).collect();
    let neighbour = Neighbour::new(&world.cluster.client);
    let macs: Vec<_> = world.cluster.nodes.iter().map(|node| mac(&node.netns)).collect();
    let owner = || {
        let owners = neighbour.who_has(VIP);
        assert!(owners.len() <= 1, "{VIP} is had by {owners:x?}");
        macs.iter().position(|mac| owners.contains(mac))
    };

    let leads = |agent: &Agent| {
        let page = agent.get("/metrics").map(|(_, page)| page).unwrap_or_default();
        page.lines().any(|line| line == "lbxdp_address_controller_leader 1")
    };
    wait_until("somebody gives addresses", LONG, || agents.iter().any(leads));
    let created = Instant::now();
    api.apply(&objects(&world));
    wait_until("the address is announced", LONG, || owner().is_some());
    let took = created.elapsed();
    println!("announced {took:?} after the Service was created");
    assert!(took < ANNOUNCED_WITHIN, "{took:?}");
    wait_shows(api, "lan", &format!("{VIP} of a"));
    let place = owner().expect("an owner");
    let names: Vec<_> = world.cluster.nodes.iter().map(|node| node.name.as_str()).collect();
    let (this, other) = (names[place], names[1 - place]);
    wait_status(api, Some(this));
    wait_until("nodeAssigned", LONG, || assigned(api, this) == 1);
    assert_eq!(assigned(api, other), 0);

    // An agent that is gone cannot take its own back: whoever takes over does.
    agents[place].kill9();
    wait_status(api, Some(other));
    wait_until("nodeAssigned", LONG, || assigned(api, other) == 1);
    agents[place].start_again();
    wait_status(api, Some(this));
    wait_until("nodeAssigned", LONG, || assigned(api, this) == 2);

    // A device that nobody has.
    let mut elsewhere = advertisement();
    elsewhere["spec"] = json!({ "interfaces": ["eth9"] });
    api.apply(&[elsewhere.clone()]);
    wait_status(api, None);
    wait_event(api, ("Service", "lan"), "announceFailed", "none of the devices that are named");
    elsewhere["spec"] = json!({ "interfaces": [UPLINK] });
    api.apply(&[elsewhere]);
    wait_status(api, Some(this));

    let deleted = Instant::now();
    api.delete(&objects(&world)[..1]);
    wait_until("nobody answers", LONG, || neighbour.who_has(VIP).is_empty());
    let took = deleted.elapsed();
    println!("silent {took:?} after the Service was deleted");
    assert!(took < ANNOUNCED_WITHIN, "{took:?}");
    wait_status(api, None);
}

/// Nothing of it is in the way of announcing.
#[test]
#[ignore = "needs root"]
fn an_api_that_takes_no_status_keeps_nothing_from_being_announced() {
    let Some(world) = world(1) else { return };
    let api = world.plane.api();
    api.delete(&[json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": { "name": "servicel2statuses.metallb.io" },
    })]);
    wait_until("the API has forgotten them", LONG, || {
        api.get("/apis/metallb.io/v1beta1/servicel2statuses").is_none()
    });
    api.apply(&[addresses("a", &[&format!("{VIP}/32")])]);
    let agent = super::adopting(&world, 0);
    api.apply(&objects(&world));
    let neighbour = Neighbour::new(&world.cluster.client);
    let owner = mac(&world.cluster.node(0).netns);
    wait_until("the address is announced", LONG, || neighbour.are_had(&[VIP], &[owner]));
    wait_until("the agent says so once", LONG, || {
        agent.log().contains("ServiceL2Status: the API has no ServiceL2Status")
    });
    assert_eq!(agent.log().matches("the API has no ServiceL2Status").count(), 1);
    neighbour.expect(VIP, &[owner]);
}
