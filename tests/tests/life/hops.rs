//! Next hops that the agent keeps follow neighbours, routes, rules and devices, and end with it.

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use lbxdp_agent::apply::pinned::PinnedMaps;
use lbxdp_agent::hops::VALID_FOR;
use lbxdp_agent::sys::{self, Access};
use lbxdp_common::Hop;
use lbxdp_tests::cluster::{BACK_LINK, PodPath, UPLINK};
use lbxdp_tests::process::wait_until;
use lbxdp_tests::traffic::frame::parse_mac;
use lbxdp_tests::{AgentOptions, Node, Spec};
use serde_json::Value;

use crate::world::{TIMEOUT, World, ifindex, pods};

/// By when a change has to be followed: half of a test's changes, because other tests run beside it and
/// have the processors for longer than that at times.
const FOLLOWED_WITHIN: Duration = Duration::from_millis(100);
const FAMILIES: [bool; 2] = [false, true];

/// A node without pods, and one pod on the other node.
struct Scene {
    world: World,
    maps: PinnedMaps,
    /// How long it took until changes were followed.
    delays: RefCell<Vec<Duration>>,
}

impl Drop for Scene {
    fn drop(&mut self) {
        let delays = self.delays.get_mut();
        delays.sort();
        if !std::thread::panicking() && !delays.is_empty() {
            let median = delays[(delays.len() - 1) / 2];
            assert!(median <= FOLLOWED_WITHIN, "changes were followed after {delays:?}");
        }
    }
}

impl Scene {
    fn new(path: PodPath) -> Self {
        let spec = Spec { path, ..pods(0, 1) };
        let device = if path == PodPath::OtherDevice { BACK_LINK } else { UPLINK };
        let devices = [UPLINK, device].map(str::to_owned).to_vec();
        let options = AgentOptions { devices, ..AgentOptions::default() };
        let world = World::prepare(&spec, options, |cluster| {
            for node in &cluster.nodes {
                node.netns.gro_on(device);
            }
        });
        // Somebody has to ask for the neighbours first.
        world.ask_both();
        // For writing they are mapped, so that a look takes no time to speak of.
        let maps = PinnedMaps::open(&world.pins(), Access::ReadWrite).expect("the maps open");
        let scene = Self { maps, world, delays: RefCell::default() };
        for v6 in FAMILIES {
            wait_until("there is a hop", TIMEOUT, || scene.hop(v6).is_some());
            scene.expect(v6, device);
        }
        scene
    }

    fn other(&self) -> &Node {
        self.world.cluster.node(1)
    }

    /// The hop that packets to the pod leave by, if there is a valid one.
    fn hop(&self, v6: bool) -> Option<Hop> {
        let backend = SocketAddr::new(self.other().pods[0].ip(v6), 8080);
        let hops = self.maps.backend_hops().expect("the maps are read");
        hops.get(&backend).copied().filter(|hop| hop.is_valid(sys::coarse_ns()))
    }

    fn ifindex(&self, device: &str) -> u32 {
        ifindex(&self.world.node().netns, device).expect("a device of the node")
    }

    /// Panics unless the hop leads by this device to the one of that name on the other node.
    #[track_caller]
    fn expect(&self, v6: bool, device: &str) {
        let hop = self.hop(v6).expect("a hop");
        let mac = |node: &Node| parse_mac(&node.netns.mac(device)).expect("an address");
        let expected = (self.ifindex(device), mac(self.world.node()), mac(self.other()), 1_500);
        assert_eq!((hop.ifindex, hop.src, hop.dst, hop.mtu), expected);
    }

    #[track_caller]
    fn follows(&self, what: &str, done: impl Fn(&Self) -> bool) {
        let since = Instant::now();
        wait_until(what, TIMEOUT, || done(self));
        self.delays.borrow_mut().push(since.elapsed());
    }

    fn ip(&self, arguments: &str) {
        self.world.node().netns.ip(arguments);
    }

    /// The other node's address on the client's network.
    fn gateway(&self, v6: bool) -> IpAddr {
        self.other().ip(v6)
    }

    fn pod_cidr(&self, v6: bool) -> &str {
        if v6 { &self.other().pod_cidr_v6 } else { &self.other().pod_cidr_v4 }
    }

    fn neighbour_state(&self, addr: IpAddr) -> String {
        let text = self.world.node().netns.ip(&format!("-j neighbour show to {addr}"));
        let found: Vec<Value> = serde_json::from_str(&text).expect("JSON");
        found.first().map(|neighbour| neighbour["state"].to_string()).unwrap_or_default()
    }
}

#[test]
#[ignore = "needs root"]
fn a_neighbour_that_is_somewhere_else_is_followed() {
    let scene = Scene::new(PodPath::SameDevice);
    let other = "02:00:00:00:ee:01";
    scene.other().netns.ip(&format!("link set {UPLINK} address {other}"));
    for v6 in FAMILIES {
        let to = scene.gateway(v6);
        scene.ip(&format!("neighbour replace {to} lladdr {other} dev {UPLINK} nud reachable"));
        scene.follows("the new address", |scene| {
            scene.hop(v6).is_some_and(|hop| Some(hop.dst) == parse_mac(other))
        });
        scene.expect(v6, UPLINK);
        scene.world.ask(v6);

        scene.ip(&format!("neighbour delete {to} dev {UPLINK}"));
        scene.follows("no hop without a neighbour", |scene| scene.hop(v6).is_none());
        // Traffic finds it again, through the kernel.
        scene.world.ask(v6);
        wait_until("a hop again", TIMEOUT, || scene.hop(v6).is_some());
    }
    assert_eq!(scene.world.counts().all_drops(), 0);
}

#[test]
#[ignore = "needs root"]
fn a_route_that_changes_or_goes_is_followed() {
    let scene = Scene::new(PodPath::OtherDevice);
    for v6 in FAMILIES {
        let (to, cidr) = (scene.gateway(v6), scene.pod_cidr(v6));
        let mac = scene.other().netns.mac(UPLINK);
        scene.ip(&format!("neighbour replace {to} lladdr {mac} dev {UPLINK} nud reachable"));
        scene.ip(&format!("route replace {cidr} via {to} dev {UPLINK}"));
        let uplink = scene.ifindex(UPLINK);
        scene
            .follows("the new way", |scene| scene.hop(v6).is_some_and(|hop| hop.ifindex == uplink));
        scene.expect(v6, UPLINK);
        scene.world.ask(v6);

        scene.ip(&format!("route replace unreachable {cidr}"));
        scene.follows("no way", |scene| scene.hop(v6).is_none());
    }
}

#[test]
#[ignore = "needs root"]
fn what_depends_on_more_than_the_destination_has_no_hop() {
    let scene = Scene::new(PodPath::SameDevice);
    for v6 in FAMILIES {
        let family = if v6 { "-6" } else { "-4" };
        scene.ip(&format!("{family} rule add iif nobody table 100"));
        scene.follows("rules choose the way", |scene| scene.hop(v6).is_none());
        wait_until("the other family has none", TIMEOUT, || scene.hop(!v6).is_some());
        scene.world.ask(v6);
        scene.ip(&format!("{family} rule delete iif nobody table 100"));
        wait_until("a hop again", TIMEOUT, || scene.hop(v6).is_some());

        let (to, cidr) = (scene.gateway(v6), scene.pod_cidr(v6));
        let client = scene.world.cluster.client_addresses(v6, 1)[0];
        let ways =
            format!("nexthop via {to} dev {UPLINK} weight 9 nexthop via {client} dev {UPLINK}");
        scene.ip(&format!("{family} route replace {cidr} {ways}"));
        scene.follows("one of two ways", |scene| scene.hop(v6).is_none());
        scene.ip(&format!("{family} route replace {cidr} via {to} dev {UPLINK}"));
        wait_until("one way again", TIMEOUT, || scene.hop(v6).is_some());
        scene.expect(v6, UPLINK);
    }
}

#[test]
#[ignore = "needs root"]
fn a_device_that_goes_down_takes_its_hops_along() {
    let scene = Scene::new(PodPath::OtherDevice);
    scene.ip(&format!("link set {BACK_LINK} down"));
    for v6 in FAMILIES {
        scene.follows("no hop by a device that is down", |scene| scene.hop(v6).is_none());
    }
}

#[test]
#[ignore = "needs root"]
fn a_neighbour_that_only_xdp_sends_to_stays_known() {
    let scene = Scene::new(PodPath::SameDevice);
    for (v6, family) in [(false, "ipv4"), (true, "ipv6")] {
        let key = format!("net.{family}.neigh.{UPLINK}.delay_first_probe_time");
        scene.world.node().netns.sysctl(&key, "1");
        let (to, mac) = (scene.gateway(v6), scene.other().netns.mac(UPLINK));
        scene.ip(&format!("neighbour replace {to} lladdr {mac} dev {UPLINK} nud stale"));
        wait_until("the kernel has asked for it", TIMEOUT, || {
            scene.neighbour_state(to).contains("REACHABLE")
        });
        assert!(scene.hop(v6).is_some());
    }
}

#[test]
#[ignore = "needs root"]
fn hops_end_with_the_agent_that_vouches_for_them() {
    let mut scene = Scene::new(PodPath::SameDevice);
    scene.world.agent.kill9();
    let within = VALID_FOR + Duration::from_secs(1);
    for v6 in FAMILIES {
        wait_until("nobody renews it", within, || scene.hop(v6).is_none());
    }
    scene.world.ask_both();
    scene.world.agent.start_again();
    for v6 in FAMILIES {
        wait_until("there is a hop", TIMEOUT, || scene.hop(v6).is_some());
        scene.expect(v6, UPLINK);
    }
    scene.world.agent.stop();
    for v6 in FAMILIES {
        assert_eq!(scene.hop(v6), None, "an agent that ends takes them back");
    }
    scene.world.ask_both();
}
