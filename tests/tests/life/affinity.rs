//! Session affinity and source ranges with real clients, agents and edits.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::thread::sleep;
use std::time::Duration;

use lbxdp_tests::AgentOptions;
use lbxdp_tests::manifests::Service;
use lbxdp_tests::process::wait_until;
use lbxdp_tests::traffic::http;
use lbxdp_tests::traffic::socket::Source;
use lbxdp_tests::traffic::spread::{Probe, Spread};
use serde_json::{Value, json};

use crate::world::{SHORT, TIMEOUT, WEB_FILE, World, both, cluster_ip, pods, target, vip, web};

/// Long enough that no test sees its end.
const LONG: u32 = 10_800;

/// [`web`] with affinity.
pub fn sticky(seconds: u32) -> Service {
    web()
        .spec("sessionAffinity", json!("ClientIP"))
        .spec("sessionAffinityConfig", json!({"clientIP": {"timeoutSeconds": seconds}}))
}

impl World {
    /// Serves this instead, with every pod but these, and waits until it is served.
    pub fn serve(&self, service: &Service, left_out: &[&str]) {
        let served = self.cluster.pods().filter(|(_, pod)| !left_out.contains(&pod.name.as_str()));
        let endpoints: Vec<_> = served.flat_map(|(node, pod)| both(node, pod)).collect();
        self.manifests.write(WEB_FILE, &service.with(&endpoints));
    }

    fn wait_frontends(&self, what: &str, kind: &str, is_so: impl Fn(&Value) -> bool) {
        wait_until(what, TIMEOUT, || {
            let list = self.agent.json(&["service", "list"]);
            let list = list.as_array().expect("a list");
            list.iter().filter(|row| row["kind"] == kind).all(&is_so)
        });
    }

    /// Waits until every frontend has this affinity.
    pub fn wait_affinity(&self, seconds: u32) {
        let what = format!("every frontend has an affinity of {seconds} s");
        for kind in ["ClusterIP", "LoadBalancer", "NodePort"] {
            self.wait_frontends(&what, kind, |row| row["affinity_seconds"] == seconds);
        }
    }

    fn wait_endpoints(&self, count: usize) {
        let what = format!("every frontend has {count} backends");
        for kind in ["ClusterIP", "LoadBalancer", "NodePort"] {
            self.wait_frontends(&what, kind, |row| {
                row["backends"].as_array().is_some_and(|backends| backends.len() == count)
            });
        }
    }

    fn wait_ranges(&self, ranges: &[&str]) {
        let has = |row: &Value, v6| {
            let of_family: Vec<_> = ranges.iter().filter(|r| r.contains(':') == v6).collect();
            row["source_ranges"] == json!(of_family)
        };
        self.wait_frontends(
            "the load balancer's addresses have these ranges",
            "LoadBalancer",
            |row| {
                let address = row["address"].as_str().expect("a string");
                has(row, address.starts_with('['))
            },
        );
    }

    /// Every kind of frontend of [`web`] that speaks HTTP.
    fn frontends(&self, v6: bool) -> [SocketAddr; 3] {
        let cluster_ip = cluster_ip(v6, 10).parse().expect("an address");
        let node_port = SocketAddr::new(self.node().ip(v6), 30080);
        [vip(v6, 10, 80), node_port, SocketAddr::new(cluster_ip, 80)]
    }

    /// The names that answer so many flows of a client.
    fn names(
        &self,
        target: SocketAddr,
        probe: Probe,
        client: IpAddr,
        count: u32,
    ) -> BTreeSet<String> {
        let spread = Spread { sources: vec![client], ..Spread::new(target, probe, count) };
        let outcome = self.cluster.client.run(|| spread.run());
        assert_eq!(outcome.failed, 0, "{target}: {:?}", outcome.errors);
        outcome.backends.into_keys().collect()
    }

    /// The one name that answers a client at every frontend.
    pub fn one_name(&self, v6: bool, client: IpAddr) -> String {
        let targets = self.frontends(v6);
        let names: BTreeSet<_> =
            targets.iter().flat_map(|to| self.names(*to, Probe::Http, client, 5)).collect();
        assert_eq!(names.len(), 1, "{client}: {names:?}");
        names.into_iter().next().expect("one")
    }

    /// Whether a client is left without any answer.
    fn is_silent(&self, target: SocketAddr, client: IpAddr) -> bool {
        let source = Source::new(client, 0);
        match self.cluster.client.run(|| http::who(target, source, SHORT)) {
            Ok(_) => false,
            Err(error) => {
                let silent = matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock);
                assert!(silent, "{target}: {error}");
                true
            }
        }
    }
}

#[test]
fn clients_keep_their_backend_at_every_frontend() {
    let world = World::with_pods(2, 2);
    world.serve(&sticky(LONG), &[]);
    world.wait_affinity(LONG);
    for v6 in [false, true] {
        let clients = world.cluster.client_addresses(v6, 7);
        let names: BTreeSet<_> = clients.iter().map(|c| world.one_name(v6, *c)).collect();
        assert!(names.len() > 1, "8 clients at {names:?}");
        // Each of the Service's ports has its own.
        for client in &clients {
            assert_eq!(world.names(target(v6, Probe::Udp), Probe::Udp, *client, 5).len(), 1);
        }
    }

    // Off and on again.
    world.serve(&web(), &[]);
    world.wait_affinity(0);
    let client = world.cluster.client_addresses(false, 0)[0];
    assert!(world.names(vip(false, 10, 80), Probe::Http, client, 40).len() > 1);
    world.serve(&sticky(LONG), &[]);
    world.wait_affinity(LONG);
    world.one_name(false, client);
}

#[test]
fn after_the_time_out_a_client_gets_other_backends() {
    let world = World::with_pods(2, 2);
    world.serve(&sticky(1), &[]);
    world.wait_affinity(1);
    for v6 in [false, true] {
        let client = world.cluster.client_addresses(v6, 0)[0];
        let mut names = BTreeSet::new();
        wait_until("another backend answers", Duration::from_secs(30), || {
            names.extend(world.names(vip(v6, 10, 80), Probe::Http, client, 1));
            // Silence is what is tested here.
            sleep(Duration::from_millis(1_100));
            names.len() > 1
        });
    }
}

#[test]
fn a_client_whose_backend_goes_gets_another_and_keeps_it() {
    let world = World::with_pods(2, 2);
    world.serve(&sticky(LONG), &[]);
    world.wait_affinity(LONG);
    let clients = [false, true].map(|v6| (v6, world.cluster.client_addresses(v6, 0)[0]));
    for (v6, client) in clients {
        let first = world.one_name(v6, client);
        world.serve(&sticky(LONG), &[&first]);
        world.wait_endpoints(3);
        let second = world.one_name(v6, client);
        assert_ne!(second, first);
        world.serve(&sticky(LONG), &[]);
        world.wait_endpoints(4);
        assert_eq!(world.one_name(v6, client), second);
    }
}

#[test]
fn affinity_outlives_the_agent() {
    let mut world = World::with_pods(2, 2);
    world.serve(&sticky(LONG), &[]);
    world.wait_affinity(LONG);
    let clients: Vec<_> = [false, true]
        .into_iter()
        .flat_map(|v6| world.cluster.client_addresses(v6, 3).into_iter().map(move |c| (v6, c)))
        .collect();
    let names = |world: &World| {
        clients.iter().map(|(v6, client)| world.one_name(*v6, *client)).collect::<Vec<_>>()
    };
    let before = names(&world);
    world.agent.kill9();
    assert_eq!(names(&world), before);
    world.agent.start_again();
    assert_eq!(names(&world), before);
}

#[test]
fn with_a_local_policy_clients_keep_a_local_backend() {
    let world = World::with_pods(2, 2);
    world.serve(&sticky(LONG).external_local(), &[]);
    world.wait_affinity(LONG);
    for v6 in [false, true] {
        let inside = SocketAddr::new(cluster_ip(v6, 10).parse().expect("an address"), 80);
        let mut moved = 0;
        for client in world.cluster.client_addresses(v6, 7) {
            // A ClusterIP chooses among all.
            let anywhere = world.names(inside, Probe::Http, client, 5);
            let local = world.names(vip(v6, 10, 80), Probe::Http, client, 5);
            assert_eq!((anywhere.len(), local.len()), (1, 1), "{client}");
            assert!(local.iter().all(|name| name.starts_with("pod-a-")), "{local:?}");
            // What the policy allows is then kept there as well.
            assert_eq!(world.names(inside, Probe::Http, client, 5), local, "{client}");
            moved += u32::from(anywhere != local);
        }
        assert!(moved > 0, "no client was at the other node");
    }
}

#[test]
fn source_ranges_are_followed_and_leave_node_ports_open() {
    let world = World::with_pods(1, 1);
    let mut clients = Vec::new();
    for v6 in [false, true] {
        let addresses = world.cluster.client_addresses(v6, 1);
        clients.push((v6, addresses[0], addresses[1]));
    }
    let restrict = |ranges: &[&str]| {
        world.serve(&web().spec("loadBalancerSourceRanges", json!(ranges)), &[]);
        world.wait_ranges(ranges);
    };
    restrict(&["198.51.100.101/32", "2001:db8:1::100:0/112"]);
    for (v6, usual, other) in &clients {
        let [vip, node_port, cluster_ip] = world.frontends(*v6);
        let before = world.counts();
        assert!(world.is_silent(vip, *usual), "{vip}");
        let drops = world.counts().changes_since(&before);
        assert!(drops["drops.source_range"] > 0, "{drops:?}");
        world.names(vip, Probe::Http, *other, 3);
        for open in [node_port, cluster_ip] {
            world.names(open, Probe::Http, *usual, 3);
        }
    }

    // A connection goes on when its range goes.
    let (_, _, other) = clients[0];
    let mut held = world.cluster.client.run(|| {
        lbxdp_tests::traffic::echo::Client::connect(
            vip(false, 10, 7),
            Source::new(other, 0),
            TIMEOUT,
        )
        .expect("a connection")
    });
    restrict(&["198.51.100.100/32", "2001:db8:1::100/128"]);
    held.ping("still here").expect("an answer");
    for (v6, usual, other) in &clients {
        let [vip, ..] = world.frontends(*v6);
        assert!(world.is_silent(vip, *other), "{vip}");
        world.names(vip, Probe::Http, *usual, 3);
    }

    // A family without a range is open, and so is everything without any.
    world.serve(&web().spec("loadBalancerSourceRanges", json!(["10.0.0.0/8"])), &[]);
    let client = &world.cluster.client;
    wait_until("IPv6 is open", TIMEOUT, || {
        client.run(|| http::who(vip(true, 10, 80), Source::new(clients[1].2, 0), SHORT)).is_ok()
    });
    assert!(world.is_silent(vip(false, 10, 80), clients[0].1));
    world.serve(&web(), &[]);
    wait_until("IPv4 is open", TIMEOUT, || {
        client.run(|| http::who(vip(false, 10, 80), Source::new(clients[0].1, 0), SHORT)).is_ok()
    });
}

#[test]
fn the_operator_closes_node_ports_and_what_nobody_has() {
    let extra = ["--source-ranges-all-frontends", "--service-cidr=10.96.0.0/16,fd00:10:96::/112"];
    let extra = extra.map(str::to_owned).into();
    let world = World::start(&pods(1, 1), AgentOptions { extra, ..AgentOptions::default() });
    world.serve(
        &web().spec("loadBalancerSourceRanges", json!(["198.51.100.101/32", "::1/128"])),
        &[],
    );
    world.wait_ranges(&["198.51.100.101/32", "::1/128"]);
    let clients = world.cluster.client_addresses(false, 1);
    for frontend in world.frontends(false) {
        assert!(world.is_silent(frontend, clients[0]), "{frontend}");
        world.names(frontend, Probe::Http, clients[1], 3);
    }
    for v6 in [false, true] {
        let client = world.cluster.client_addresses(v6, 0)[0];
        let nobody = SocketAddr::new(cluster_ip(v6, 77).parse().expect("an address"), 80);
        let before = world.counts();
        assert!(world.is_silent(nobody, client));
        let drops = world.counts().changes_since(&before);
        assert!(drops["drops.unknown_address"] > 0, "{drops:?}");
    }
}
