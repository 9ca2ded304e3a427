//! Addresses of pools, announced on the network that the nodes and the client share.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::thread::sleep;
use std::time::{Duration, Instant};

use lbxdp_agent::members::{Report, Word};
use lbxdp_tests::chart::NAMESPACE;
use lbxdp_tests::cluster::UPLINK;
use lbxdp_tests::lab::{Lab, Node, Origin};
use lbxdp_tests::long;
use lbxdp_tests::process::wait_until;
use lbxdp_tests::traffic::http;
use lbxdp_tests::traffic::neighbour::{self, Neighbour, Reign, RollCall};
use lbxdp_tests::traffic::socket::Source;
use serde_json::{Value, json};

use super::world::{Applied, Finally, SERVED_WITHIN, alone, target, web};

/// From the moment when a node is lost to the first answer by another one.
const ELSEWHERE_WITHIN: Duration = Duration::from_secs(2);
/// From then on every request has an answer.
const CALM_AFTER: Duration = Duration::from_secs(3);
/// For so long a lost node stays lost.
const LOST_FOR: Duration = Duration::from_secs(8);
/// The API is away for so long before: agents renew their leases every 2.5 s, and have noticed.
const AWAY_BEFORE: Duration = Duration::from_secs(6);
/// Between two requests: 100 each second.
const PACE: Duration = Duration::from_millis(10);
/// Of one request while nobody answers, so that the first answer is not waited for in a request that is
/// lost already.
const SHORT: Duration = Duration::from_millis(200);
/// Of one request.
const PATIENCE: Duration = Duration::from_secs(2);
/// The label of a node that announces nothing.
const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
/// The pods of agents.
const AGENTS: &str = "app.kubernetes.io/name=lbxdp";
/// The Service, and the label of its pods.
pub const NAME: &str = "announced";

/// F1, of both families: a client on the nodes' own network, to which no route leads.
#[test]
#[ignore = "needs root and Go"]
fn the_addresses_of_a_lost_node_are_elsewhere_within_2_s() {
    let Some(lab) = alone() else { return };
    let lab: &Lab = &lab;
    let _pools = pools(lab);
    let _applied = Applied::new(lab, vec![web(NAME, 3), service("Local")]);
    let addresses = addresses(lab);
    for address in &addresses {
        wait_until(&format!("{address} answers"), SERVED_WITHIN, || ask(lab, *address).is_ok());
    }
    let asked = addresses.iter().map(SocketAddr::ip).collect();
    let roll_call = RollCall::start(&lab.control_plane.host.netns, asked, PACE);
    let rounds = if long() { 10 } else { 2 };
    // With Cluster a third of the endpoints is on the node that is lost.
    for policy in ["Local", "Cluster"] {
        lab.api().apply(&[service(policy)]);
        for round in 0..rounds {
            let address = addresses[round % addresses.len()];
            without_owner(lab, address, |owner| lose(lab, owner, address));
        }
    }
    // Nothing of that needs the API.
    for address in &addresses {
        lab.control_plane.kill_api_server();
        let back = Finally::new(|| lab.control_plane.start_api_server());
        sleep(AWAY_BEFORE);
        without_owner(lab, *address, |owner| {
            lose(lab, owner, *address);
            drop(back);
        });
    }
    one_at_a_time(&roll_call.stop(), 2, 2 * rounds + addresses.len(), LOST_FOR / 2);
}

/// At no time did two nodes answer for an address: each one's answers lie between those of others, and the
/// next owner answers for as long as the first one is not there. Both families have the same owner.
#[track_caller]
fn one_at_a_time(
    reigns: &BTreeMap<IpAddr, Vec<Reign>>,
    addresses: usize,
    moves: usize,
    for_long: Duration,
) {
    assert_eq!(reigns.len(), addresses, "{reigns:?}");
    for (address, reigns) in reigns {
        let answers: u32 = reigns.iter().map(|reign| reign.answers).sum();
        let gaps = reigns.windows(2).map(|pair| pair[1].from.duration_since(pair[0].to));
        println!(
            "{address}: {answers} answers, {} owners, silent for {:?}",
            reigns.len(),
            gaps.collect::<Vec<_>>()
        );
        assert_eq!(reigns.len(), 1 + 2 * moves, "there and back {moves} times: {reigns:?}");
        for reign in reigns.iter().skip(1).step_by(2) {
            let lasted = reign.to.duration_since(reign.from);
            assert!(lasted > for_long, "{address}: {lasted:?} by {:?}", reign.mac);
        }
    }
}

/// F4 and F6: a node is drained and is there again, and an agent ends and another one starts.
#[test]
#[ignore = "needs root and Go"]
fn an_address_that_moves_on_purpose_fails_no_request() {
    let Some(lab) = alone() else { return };
    let lab: &Lab = &lab;
    let _pools = pools(lab);
    let _applied = Applied::new(lab, vec![web(NAME, 3), service("Cluster")]);
    for address in addresses(lab) {
        wait_until(&format!("{address} answers"), SERVED_WITHIN, || ask(lab, address).is_ok());
        let roll_call = RollCall::start(&lab.control_plane.host.netns, vec![address.ip()], PACE);
        let load = lab.load(&Origin::Client, address, 100, 0);
        let node = wait_owner(lab, address);
        let moves = |what: &str, is_back: bool| {
            wait_until(&format!("{address} moves: {what}"), SERVED_WITHIN, || {
                owner(lab, address).is_some_and(|it| (it.name() == node.name()) == is_back)
            });
        };
        let back = Finally::new(|| label(lab, node, &format!("{EXCLUDED}-")));
        label(lab, node, &format!("{EXCLUDED}="));
        moves("its node is excluded", false);
        drop(back);
        moves("it is no longer", true);
        let here = format!("--field-selector=spec.nodeName={}", node.name());
        lab.kubectl(&["delete", "pod", "-n", NAMESPACE, "-l", AGENTS, &here, "--wait=false"]);
        moves("its agent ends", false);
        moves("the next one is ready", true);
        // For a moment more, as before.
        sleep(CALM_AFTER);
        lab.wait_lbxdp();
        let report = load.stop();
        println!("{address}: {} requests, at most {} ms", report.requests, report.slowest_ms);
        assert_eq!(report.failed, 0, "{address}: {report:?}");
        one_at_a_time(&roll_call.stop(), 1, 2, Duration::ZERO);
    }
}

fn label(lab: &Lab, node: &Node, label: &str) {
    lab.kubectl(&["label", "node", node.name(), label]);
}

/// Takes the owner of an address from the network, for `meanwhile`, and waits until it is as before.
#[track_caller]
pub fn without_owner(lab: &Lab, address: SocketAddr, meanwhile: impl FnOnce(&Node)) {
    let owner = wait_owner(lab, address);
    let back = Finally::new(|| {
        owner.set_link(true);
        lab.wait_nodes();
    });
    owner.set_link(false);
    meanwhile(owner);
    drop(back);
    wait_until(&format!("{} has {address} again", owner.name()), SERVED_WITHIN, || {
        ask(lab, address).is_ok() && is_owner(lab, address, owner)
    });
    // Until it answers the others, its lease alone speaks for it, and that lasts for ten seconds.
    let meets = |node: &&Node| {
        let report = Report::read(&node.host.dir().join("lib/lbxdp")).unwrap_or_default();
        report.nodes.get(owner.name()).is_some_and(|it| it.word == Some(Word::Alive))
    };
    wait_until(&format!("{} is a member again", owner.name()), SERVED_WITHIN, || {
        lab.nodes.iter().filter(|node| node.name() != owner.name()).all(|node| meets(&node))
    });
}

/// Requests all the time while the owner of an address is lost.
#[track_caller]
fn lose(lab: &Lab, owner: &Node, address: SocketAddr) {
    let lost = Instant::now();
    let (mut first, mut last_failure, mut requests) = (None, Duration::ZERO, 0);
    let mut names = BTreeMap::<String, u32>::new();
    while lost.elapsed() < LOST_FOR {
        let begin = Instant::now();
        match ask_within(lab, address, if first.is_none() { SHORT } else { PATIENCE }) {
            Ok(name) => {
                first.get_or_insert_with(|| lost.elapsed());
                *names.entry(name).or_default() += 1;
            }
            Err(_) => last_failure = lost.elapsed(),
        }
        requests += 1;
        sleep(PACE.saturating_sub(begin.elapsed()));
    }
    let Some(first) = first else {
        let known = lab.client.netns.ip(&format!("neigh show to {} dev {UPLINK}", address.ip()));
        panic!("{address}: no answer without {}; the client knows {known}", owner.name());
    };
    println!(
        "{address}, without {}: first answer after {first:?}, last failure after {last_failure:?}, \
         {requests} requests, {names:?}",
        owner.name()
    );
    assert!(first < ELSEWHERE_WITHIN, "{first:?}");
    assert!(last_failure < CALM_AFTER, "{last_failure:?}");
}

/// One request of the client; who answered.
fn ask(lab: &Lab, address: SocketAddr) -> std::io::Result<String> {
    ask_within(lab, address, PATIENCE)
}

fn ask_within(lab: &Lab, address: SocketAddr, patience: Duration) -> std::io::Result<String> {
    let ask = || http::who(address, Source::ANY, patience);
    lab.client.netns.run(ask).map(|answer| answer.name)
}

/// The node that answers for an address, if one does. Never two.
#[track_caller]
pub fn owner(lab: &Lab, address: SocketAddr) -> Option<&Node> {
    let asked = || Neighbour::unknown(&lab.control_plane.host.netns).who_has(address.ip());
    let mut macs = asked();
    if macs.len() > 1 {
        // It may have moved meanwhile: between two owners are 130 ms at the least, and a roll call hears
        // both. Whether they ever answer at the same time it says itself.
        macs = asked();
    }
    assert!(macs.len() <= 1, "{address} is answered for by {macs:?}");
    let is_one = |node: &&Node| macs.contains(&neighbour::mac(&node.host.netns));
    lab.nodes.iter().find(is_one)
}

/// Whether it is this one.
#[track_caller]
pub fn is_owner(lab: &Lab, address: SocketAddr, node: &Node) -> bool {
    owner(lab, address).is_some_and(|owner| owner.name() == node.name())
}

/// The one that does, after a while.
#[track_caller]
pub fn wait_owner(lab: &Lab, address: SocketAddr) -> &Node {
    wait_until(&format!("{address} has an owner"), SERVED_WITHIN, || owner(lab, address).is_some());
    owner(lab, address).unwrap_or_else(|| panic!("{address} has no owner any more"))
}

/// The addresses that the Service was given, of both families.
#[track_caller]
pub fn addresses(lab: &Lab) -> Vec<SocketAddr> {
    let mut addresses: Vec<IpAddr> = Vec::new();
    wait_until("the Service has two addresses", SERVED_WITHIN, || {
        let service = lab.get(&format!("/api/v1/namespaces/default/services/{NAME}"));
        let service = service.expect("the Service");
        let ingress = service["status"]["loadBalancer"]["ingress"].as_array().into_iter().flatten();
        addresses = ingress.filter_map(|each| each["ip"].as_str()?.parse().ok()).collect();
        addresses.len() == 2
    });
    addresses.into_iter().map(|address| target(address.to_string(), 80)).collect()
}

/// A pool of the network that the nodes and the client share, announced until the end of a test.
#[track_caller]
pub fn pools(lab: &Lab) -> Finally<impl FnMut()> {
    let objects = objects();
    lab.api().apply(&objects);
    Finally::new(move || objects.iter().for_each(|object| delete(lab, object)))
}

fn objects() -> [Value; 2] {
    let metadata = json!({ "name": NAME, "namespace": NAMESPACE });
    let ranges = ["198.51.100.200-198.51.100.209", "2001:db8:1::200-2001:db8:1::209"];
    [
        json!({
            "apiVersion": "metallb.io/v1beta1", "kind": "IPAddressPool", "metadata": metadata,
            "spec": { "addresses": ranges },
        }),
        json!({
            "apiVersion": "metallb.io/v1beta1", "kind": "L2Advertisement", "metadata": metadata,
            "spec": { "ipAddressPools": [NAME] },
        }),
    ]
}

fn delete(lab: &Lab, object: &Value) {
    let kind = object["kind"].as_str().expect("a kind");
    let _ = lab.kubectl_command().args(["delete", kind, NAME, "-n", NAMESPACE]).output();
}

/// With Local only nodes with a ready pod announce it, and the pod sees the client.
pub fn service(policy: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": NAME },
        "spec": {
            "type": "LoadBalancer",
            "loadBalancerClass": "lbxdp.io/lbxdp",
            "externalTrafficPolicy": policy,
            "selector": { "app": NAME },
            "ipFamilyPolicy": "RequireDualStack",
            "ports": [{ "name": "http", "port": 80, "targetPort": 8080 }],
        },
    })
}
