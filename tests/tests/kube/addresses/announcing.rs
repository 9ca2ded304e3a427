//! Which node announces an address, on three nodes that ask one API.
//!
//! The client is on the network of the nodes, and so are the addresses.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use lbxdp_agent::members::Report;
use lbxdp_tests::chart::NAMESPACE;
use lbxdp_tests::cluster::{PodPath, UPLINK};
use lbxdp_tests::manifests::{Port, Service, node_object};
use lbxdp_tests::process::wait_until;
use lbxdp_tests::scratch::Scratch;
use lbxdp_tests::traffic::neighbour::{ANSWER_WITHIN, Mac, Neighbour, RollCall, mac};
use lbxdp_tests::{Agent, AgentOptions, Spec};
use serde_json::{Value, json};

use super::{addresses, advertisement, service, wait_shows, world, world_of};
use crate::world::{LONG, World};

const FIRST: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 200);
const COUNT: u8 = 8;
/// Where an owner does not hear the next one, both answer for so long at the most.
const TWO_ANSWER: Duration = Duration::from_secs(2);
/// Between two questions of who asks all the time.
const ASKED_EVERY: Duration = Duration::from_millis(10);
/// The next owner answers by then.
const TAKEN_WITHIN: Duration = Duration::from_secs(2);

fn vip(number: u8) -> IpAddr {
    Ipv4Addr::from(u32::from(FIRST) + u32::from(number)).into()
}

/// A node with this condition, and with these labels.
fn node(world: &World, place: usize, condition: &str, labels: &Value) -> Value {
    let mut object = node_object(world.cluster.node(place));
    object["metadata"]["labels"] = labels.clone();
    object["status"]["conditions"] = json!([{ "type": "Ready", "status": condition }]);
    object
}

/// A Service with an endpoint on each node.
fn balancer(world: &World, number: u8) -> Vec<Value> {
    let name = format!("lan-{number}");
    let asks = json!({ "loadBalancerIP": vip(number).to_string() });
    let port = Port::tcp("http", 80, 8080);
    let mut objects = Service::new(&name).port(port).slices(&world.endpoints());
    objects.insert(0, service(&name, &[], asks));
    objects
}

/// Who has each address; nobody may be two.
#[track_caller]
fn owners(neighbour: &Neighbour) -> Vec<Option<Mac>> {
    let owner = |number| {
        let owners = neighbour.who_has(vip(number));
        assert!(owners.len() <= 1, "{} is had by {owners:x?}", vip(number));
        owners.into_iter().next()
    };
    (0..COUNT).map(owner).collect()
}

/// Waits until everything is had as this says, and that never by two.
#[track_caller]
fn wait_owners(neighbour: &Neighbour, what: &str, is_so: impl Fn(&[Option<Mac>]) -> bool) {
    wait_until(what, LONG, || is_so(&owners(neighbour)));
}

/// Nothing moves for so long.
#[track_caller]
fn stay(neighbour: &Neighbour, before: &[Option<Mac>], time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        assert_eq!(owners(neighbour), before);
    }
}

/// Three nodes that announce everything between them.
struct Lan {
    agents: Vec<Agent>,
    neighbour: Neighbour,
    before: Vec<Option<Mac>>,
    /// The owner of the first address, and which node that is.
    first: Mac,
    place: usize,
    _key: Scratch,
}

impl Lan {
    #[track_caller]
    fn start(world: &World, flags: &[&str]) -> Self {
        let api = world.plane.api();
        api.apply(&[addresses("a", &[&format!("{FIRST}-{}", vip(COUNT - 1))])]);
        let key = Scratch::new("key");
        fs::write(key.join("key"), "a key that nobody else has\n").expect("write the key");
        let mut extra: Vec<_> = flags.iter().map(ToString::to_string).collect();
        extra.push("--adopt-classless".to_owned());
        extra.push(format!("--members-key-file={}", key.join("key").display()));
        let options = AgentOptions { extra, ..AgentOptions::default() };
        let agents: Vec<Agent> =
            (0..3).map(|place| world.agent_on(place, options.clone())).collect();
        for number in 0..COUNT {
            api.apply(&balancer(world, number));
        }
        for number in 0..COUNT {
            wait_shows(api, &format!("lan-{number}"), &format!("{} of a", vip(number)));
        }
        let macs: Vec<Mac> = world.cluster.nodes.iter().map(|node| mac(&node.netns)).collect();
        let neighbour = Neighbour::new(&world.cluster.client);
        wait_owners(&neighbour, "everything has an owner", |all| all.iter().all(Option::is_some));
        let before = owners(&neighbour);
        let nodes: BTreeSet<_> = before.iter().flatten().collect();
        assert!(nodes.len() > 1, "one node has everything: {before:x?}");
        let first = before[0].expect("an owner");
        let place = macs.iter().position(|mac| *mac == first).expect("a node's");
        Self { agents, neighbour, before, first, place, _key: key }
    }

    /// Whether what the first owner had is elsewhere, and the rest where it was.
    fn is_left(&self, all: &[Option<Mac>]) -> bool {
        let mut both = all.iter().zip(&self.before);
        let first = Some(self.first);
        both.all(|(now, then)| now.is_some() && *now != first && (*then == first || now == then))
    }

    #[track_caller]
    fn wait_left(&self, what: &str) {
        wait_owners(&self.neighbour, what, |all| self.is_left(all));
    }

    #[track_caller]
    fn wait_back(&self) {
        wait_owners(&self.neighbour, "everything is back", |all| all == self.before);
    }

    fn metric(&self, place: usize, name: &str) -> Option<u64> {
        let (_, page) = self.agents[place].get("/metrics")?;
        let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
        line.parse().ok()
    }
}

/// L3, L4, F1, F3, and that nothing moves but what has to.
#[test]
#[ignore = "needs root"]
fn each_address_has_one_owner_that_follows_from_the_nodes() {
    let Some(mut world) = world(3) else { return };
    let api = world.plane.api();
    let none = json!({});
    let ready: Vec<_> = (0..3).map(|place| node(&world, place, "True", &none)).collect();
    api.apply(&ready);
    let mut lan = Lan::start(&world, &[]);
    let (place, first) = (lan.place, lan.first);

    let handovers = |lan: &Lan, after: &str| {
        let name = format!("lbxdp_handovers_total{{after=\"{after}\"}}");
        lan.metric(place, &name).expect("a metric")
    };
    let before = handovers(&lan, "announced");

    // A node that is to be left alone gives up its own, and gets them back.
    let excluded = json!({ "node.kubernetes.io/exclude-from-external-load-balancers": "" });
    api.apply(&[node(&world, place, "True", &excluded)]);
    lan.wait_left("the addresses of the excluded node are elsewhere");
    // The next owners were heard, each once.
    let mine = lan.before.iter().filter(|owner| **owner == Some(first)).count() as u64;
    let left = [handovers(&lan, "announced") - before, handovers(&lan, "waited")];
    assert_eq!(left, [mine, 0]);
    api.apply(&[node(&world, place, "True", &none)]);
    lan.wait_back();

    // The agents know of each other that they are alive, whatever becomes of a kubelet.
    api.apply(&[node(&world, place, "Unknown", &none)]);
    stay(&lan.neighbour, &lan.before, Duration::from_secs(2));

    // So does a node whose agent is gone.
    lan.agents[place].kill9();
    lan.wait_left("the addresses of the lost node are elsewhere");
    lan.agents[place].start_again();
    lan.wait_back();

    // Selected nodes alone announce.
    let mut selective = advertisement();
    selective["spec"] = json!({ "nodeSelectors": [{ "matchLabels": { "rack": "1" } }] });
    api.apply(&[selective, node(&world, place, "True", &json!({ "rack": "1" }))]);
    wait_owners(&lan.neighbour, "one node has everything", |all| {
        all.iter().all(|owner| *owner == Some(first))
    });
    let mut open = advertisement();
    open["spec"] = json!({ "nodeSelectors": [] });
    api.apply(&[open, node(&world, place, "True", &none)]);
    lan.wait_back();

    // Without an API nothing changes, and an agent that starts meanwhile announces what it did.
    world.plane.servers[0].kill();
    stay(&lan.neighbour, &lan.before, Duration::from_secs(8));
    lan.agents[place].restart();
    lan.wait_back();
}

/// F2: the next owner announces first, and the one that ends answers until then.
#[test]
#[ignore = "needs root"]
fn an_agent_that_ends_leaves_its_addresses_to_the_next_owners() {
    let Some(world) = world(3) else { return };
    let mut lan = Lan::start(&world, &[]);
    let place = lan.place;
    let lease = format!(
        "/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/lbxdp-node-{}",
        world.cluster.node(place).name
    );
    let holder =
        || world.plane.api().get(&lease).expect("the lease")["spec"]["holderIdentity"].clone();
    assert!(holder().is_string());
    let is_ended = AtomicBool::new(false);
    let time = thread::scope(|scope| {
        scope.spawn(|| {
            // Nobody is ever two, as those know who ask all the time.
            let neighbour = Neighbour::new(&world.cluster.client);
            while !is_ended.load(Ordering::Relaxed) {
                owners(&neighbour);
            }
        });
        let begin = Instant::now();
        lan.agents[place].stop();
        let time = begin.elapsed();
        is_ended.store(true, Ordering::Relaxed);
        time
    });
    println!("the agent ended after {time:?}");
    assert!(time < Duration::from_secs(3), "{time:?}");
    let now = owners(&lan.neighbour);
    assert!(lan.is_left(&now), "{now:x?}, before {:x?}", lan.before);
    let log = lan.agents[place].log();
    assert!(log.contains("withdrawn") && !log.contains("no other node has announced"), "{log}");
    assert!(holder().is_null(), "the lease was given back");
    lan.agents[place].start_again();
    lan.wait_back();
}

/// F1, with loss one way: an owner to whom announcements and questions of others do not get answers beside the
/// next one for two seconds at the most, and counts that.
#[test]
#[ignore = "needs root"]
fn an_owner_that_does_not_hear_the_next_one_soon_leaves_all_the_same() {
    let Some(world) = world(3) else { return };
    let lan = Lan::start(&world, &[]);
    let mine: Vec<IpAddr> =
        (0..COUNT).filter(|it| lan.before[usize::from(*it)] == Some(lan.first)).map(vip).collect();
    let name = &world.cluster.node(lan.place).name;
    let others = world.cluster.nodes.iter().map(|node| mac(&node.netns));
    let drops = others.filter(|mac| *mac != lan.first).map(|mac| {
        let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
        format!("ether saddr {mac} ether type arp drop; ")
    });
    let hook = format!("type filter hook egress device \"{name}\" priority 0;");
    let drops = drops.collect::<String>();
    world.cluster.switch.nft(&format!("table netdev deaf {{ chain of {{ {hook} {drops} }}; }}"));

    let roll_call = RollCall::start(&world.cluster.client, mine.clone(), ASKED_EVERY);
    let excluded = json!({ "node.kubernetes.io/exclude-from-external-load-balancers": "" });
    world.plane.api().apply(&[node(&world, lan.place, "True", &excluded)]);
    let waited = || lan.metric(lan.place, "lbxdp_handovers_total{after=\"waited\"}");
    wait_until("it has left them", LONG, || waited() == Some(mine.len() as u64));
    thread::sleep(ANSWER_WITHIN);
    for (addr, reigns) in roll_call.stop() {
        let last = reigns.iter().rfind(|reign| reign.mac == lan.first).expect("it answered").to;
        let next = reigns.iter().find(|reign| reign.mac != lan.first).expect("the next one does");
        let both = last.duration_since(next.from);
        println!("{addr}: two answered for {both:?}");
        assert!((TWO_ANSWER / 2..=TWO_ANSWER).contains(&both), "{addr}: {both:?}");
    }
    // What came to the other one during the roll call waits there still.
    let neighbour = Neighbour::new(&world.cluster.client);
    wait_owners(&neighbour, "its addresses are elsewhere", |all| lan.is_left(all));
}

/// An owner whose way to the clients is broken says so by another one, and the next owner takes over.
#[test]
#[ignore = "needs root"]
fn an_owner_without_a_carrier_is_passed_over() {
    let spec = Spec { pods: vec![1; 3], path: PodPath::OtherDevice, ..Spec::default() };
    let Some(world) = world_of(&spec) else { return };
    // The agents hear each other there.
    let nodes = world.cluster.nodes.iter().map(|node| {
        let mut object = node_object(node);
        let back = node.back_v4.expect("a second network").to_string();
        object["status"]["addresses"] = json!([{ "type": "InternalIP", "address": back }]);
        object
    });
    world.plane.api().apply(&nodes.collect::<Vec<_>>());
    let lan = Lan::start(&world, &[&format!("--device={UPLINK}")]);
    let name = &world.cluster.node(lan.place).name;
    let other = &lan.agents[(lan.place + 1) % 3];
    let said = || {
        let report = Report::read(&other.state_dir()).unwrap_or_default();
        report.nodes.get(name).map(|node| (node.alive, node.says.devices.is_none()))
    };
    wait_until("it says nothing", LONG, || said() == Some((true, false)));
    let begin = Instant::now();
    world.cluster.switch.ip(&format!("link set {name} down"));
    lan.wait_left("its addresses are elsewhere");
    let time = begin.elapsed();
    println!("elsewhere after {time:?}, {COUNT} questions included");
    assert!(time < TAKEN_WITHIN + ANSWER_WITHIN * u32::from(COUNT) * 2, "{time:?}");
    wait_until("it lives, and says why", LONG, || said() == Some((true, true)));
    world.cluster.switch.ip(&format!("link set {name} up"));
    lan.wait_back();
}
