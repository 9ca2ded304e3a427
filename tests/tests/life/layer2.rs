//! Addresses on the local network: real neighbours ask for addresses that are on no device.
//!
//! The client is on the network of the nodes, and so are the addresses: nobody routes.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lbxdp_agent::apply::announced::Announced;
use lbxdp_agent::layer2::GATE;
use lbxdp_agent::pins::Pins;
use lbxdp_agent::sys::Access;
use lbxdp_tests::cluster::UPLINK;
use lbxdp_tests::manifests::{Endpoint, Port, Service};
use lbxdp_tests::process::wait_until;
use lbxdp_tests::traffic::frame::parse_mac;
use lbxdp_tests::traffic::neighbour::{ANSWER_WITHIN, Mac, Neighbour, mac};
use lbxdp_tests::{Agent, AgentOptions, Netns, link};
use serde_json::{Value, json};

use crate::world::{DEVICE_WITHIN, EDIT_WITHIN, World, both, cluster_ip, pods};

const VIP: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 200);
const VIP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x200);
const VIPS: [IpAddr; 2] = [IpAddr::V4(VIP), IpAddr::V6(VIP6)];
/// Of the pools, and nobody has them.
const OTHERS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(198, 51, 100, 201)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x201)),
];
/// A device on another network.
const LAN: &str = "lan0";
/// The directory is looked at every three seconds, whatever its events say.
const LOOKED_AT_WITHIN: Duration = Duration::from_secs(8);
/// Between two announcements of a burst.
const STEP: Duration = Duration::from_millis(1_100);
/// By so much the clock of programs is behind at the most.
const TICK: Duration = Duration::from_millis(20);
/// What a machine that does other things as well adds to a time.
const LATE: Duration = Duration::from_millis(400);

fn of_lb(kind: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "metallb.io/v1beta1", "kind": kind,
        "metadata": { "name": "a", "namespace": "lb" }, "spec": spec,
    })
}

/// Pools of two addresses of each family, announced as this says.
fn pool(advertisement: Value) -> [Value; 2] {
    let addresses = ["198.51.100.200-198.51.100.201", "2001:db8:1::200-2001:db8:1::201"];
    [
        of_lb("IPAddressPool", json!({ "addresses": addresses })),
        of_lb("L2Advertisement", advertisement),
    ]
}

/// A Service that gets the first addresses.
fn service(endpoints: &[Endpoint], policy: &str) -> Vec<Value> {
    let service = Service::new("lan")
        .cluster_ip(&cluster_ip(false, 50))
        .cluster_ip(&cluster_ip(true, 50))
        .spec("type", json!("LoadBalancer"))
        .spec("loadBalancerClass", json!("lbxdp.io/lbxdp"))
        .spec("externalTrafficPolicy", json!(policy))
        .port(Port::tcp("http", 80, 8080));
    service.with(endpoints)
}

fn announce(world: &World) {
    world.manifests.write("pool.yaml", &pool(json!({})));
    let endpoints = Endpoint::pods(&world.cluster);
    world.manifests.write("lan.yaml", &service(&endpoints, "Cluster"));
}

#[track_caller]
fn wait(neighbour: &Neighbour, owners: &[Mac]) {
    wait_until(&format!("{owners:x?} answer"), LOOKED_AT_WITHIN, || {
        neighbour.are_had(&VIPS, owners)
    });
}

/// What the maps say that the node answers for.
fn answered(agent: &Agent) -> BTreeSet<IpAddr> {
    let maps = Announced::open(&Pins::new(agent.pin_path()), Access::ReadOnly).expect("the maps");
    maps.answered().expect("the maps are read").into_iter().map(|(addr, _)| addr).collect()
}

/// What `vip list` says.
fn listed(agent: &Agent) -> Vec<Value> {
    agent.json(&["vip", "list"]).as_array().expect("a list").clone()
}

/// What `vip show` or `vip explain` says of something.
fn asked(agent: &Agent, command: &str, subject: &str) -> Vec<Value> {
    let state_dir = agent.state_dir().display().to_string();
    let answer = agent.json(&["vip", command, subject, "--state-dir", &state_dir]);
    answer.as_array().expect("a list").clone()
}

/// Whether it says so by now.
fn is_said(agent: &Agent, command: &str, subject: &str, part: &str) -> bool {
    let state_dir = agent.state_dir().display().to_string();
    let question = ["vip", command, subject, "--state-dir", &state_dir];
    agent.can(&question) && agent.cli(&question).contains(part)
}

fn row(addr: IpAddr, answered: bool) -> Value {
    json!({ "address": addr, "device": UPLINK, "answered": answered })
}

/// L1, L7, L10, and that a ping is answered by the owner.
#[test]
fn neighbours_reach_an_address_that_is_on_no_device() {
    let world = World::with_pods(1, 1);
    let neighbour = Neighbour::new(&world.cluster.client);
    let owner = mac(&world.node().netns);
    for addr in VIPS {
        neighbour.expect(addr, &[]);
    }
    announce(&world);
    // Gratuitous ARP in both forms and an unsolicited advertisement: at once, and five times more.
    let rounds = 6;
    let all = neighbour.announcements(&VIPS, LOOKED_AT_WITHIN + STEP * rounds);
    let [vip, vip6] = VIPS;
    let forms: Vec<_> = all.keys().copied().collect();
    assert_eq!(forms, [(vip, 1), (vip, 2), (vip6, 136)]);
    for ((addr, form), frames) in &all {
        assert_eq!(frames.len(), rounds as usize, "{addr} {form}: {frames:?}");
        let first = frames[0].1;
        for (round, (from, at)) in (0..).zip(frames) {
            assert_eq!(*from, owner);
            let (due, came) = (STEP * round, at.duration_since(first));
            assert!(came + LATE >= due && came <= due + LATE, "{addr}: {came:?}, not {due:?}");
        }
    }
    for addr in VIPS {
        neighbour.expect(addr, &[owner]);
        assert!(world.answers(SocketAddr::new(addr, 80)), "{addr}\n{}", world.agent.log());
        let before = world.counts();
        world.cluster.client.exec(&format!("ping -c 1 -W 2 {addr}"));
        assert_eq!(world.counts().changes_since(&before)["counters.echo_answered"], 1);
        let devices = world.node().netns.ip("address show");
        assert!(!devices.contains(&format!("{addr}/")), "{devices}");
    }
    for addr in OTHERS {
        neighbour.expect(addr, &[]);
    }
    // Programs answer for that and nothing else; the kernel for its own.
    neighbour.expect(world.node().v4.into(), &[owner]);
    neighbour.expect(world.cluster.node(1).v4.into(), &[mac(&world.cluster.node(1).netns)]);
    assert_eq!(answered(&world.agent), VIPS.into());
    assert_eq!(listed(&world.agent), VIPS.map(|addr| row(addr, true)));
}

/// F1: whoever is dead answers as long as the gate is open and no longer; whoever ends, not at all.
#[test]
fn an_agent_that_is_gone_answers_no_more_and_the_next_one_does() {
    let mut world = World::with_pods(1, 1);
    let neighbour = Neighbour::new(&world.cluster.client);
    let owner = mac(&world.node().netns);
    announce(&world);
    wait(&neighbour, &[owner]);

    world.agent.kill9();
    let killed = Instant::now();
    let mut last = None;
    while killed.elapsed() < GATE + LATE {
        let asked = killed.elapsed();
        if !neighbour.who_has(VIP.into()).is_empty() {
            last = Some(asked);
        }
    }
    let last = last.expect("the gate is open a while longer");
    println!("the last question that was answered came {last:?} after the agent was killed");
    assert!(last <= GATE + TICK, "{last:?}");
    for addr in VIPS {
        neighbour.expect(addr, &[]);
    }
    assert_eq!(answered(&world.agent), VIPS.into(), "the maps outlive the agent");
    assert_eq!(listed(&world.agent), VIPS.map(|addr| row(addr, false)));

    world.agent.start_again();
    wait(&neighbour, &[owner]);
    world.agent.stop();
    for addr in VIPS {
        neighbour.expect(addr, &[]);
    }
    assert_eq!(answered(&world.agent), BTreeSet::new());

    // What neighbours know by now is where the next owner is, without a question.
    let client = &world.cluster.client;
    world.agent.start_again();
    wait(&neighbour, &[owner]);
    for addr in VIPS {
        assert!(world.answers(SocketAddr::new(addr, 80)));
    }
    world.agent.stop();
    let node = world.cluster.node(1);
    let manifests = world.manifests.path();
    let _next = Agent::start(node, &manifests, AgentOptions::default());
    let next = mac(&node.netns).map(|byte| format!("{byte:02x}")).join(":");
    for addr in VIPS {
        wait_until(&format!("{addr} has moved"), LOOKED_AT_WITHIN, || {
            client.ip(&format!("neighbour show {addr}")).contains(&next)
        });
        assert!(world.answers(SocketAddr::new(addr, 80)));
    }
}

/// L5, L11, and a device without a carrier: whoever cannot serve an address does not answer for it.
#[test]
fn an_address_is_answered_for_where_and_as_long_as_it_can_be_served() {
    let world = World::with_pods(1, 1);
    let neighbour = Neighbour::new(&world.cluster.client);
    let owner = mac(&world.node().netns);
    announce(&world);
    wait(&neighbour, &[owner]);

    let edit = |endpoints: &[Endpoint], policy: &str, owners: &[Mac]| {
        world.manifests.write("lan.yaml", &service(endpoints, policy));
        wait(&neighbour, owners);
    };
    let endpoints = |place: usize| {
        let node = world.cluster.node(place);
        node.pods.iter().flat_map(|pod| both(node, pod)).collect::<Vec<_>>()
    };
    edit(&[], "Cluster", &[]);
    edit(&endpoints(1), "Cluster", &[owner]);
    edit(&endpoints(1), "Local", &[]);
    edit(&endpoints(0), "Local", &[owner]);
    for addr in VIPS {
        assert!(world.answers(SocketAddr::new(addr, 80)));
    }

    for (interfaces, owners) in
        [(["eth9"], &[][..]), ([UPLINK], &[owner]), (["eth9"], &[]), ([UPLINK], &[owner])]
    {
        world.manifests.write("pool.yaml", &pool(json!({ "interfaces": interfaces })));
        wait(&neighbour, owners);
    }

    let switch = &world.cluster.switch;
    switch.ip(&format!("link set {} down", world.node().name));
    wait_until("the device is not used", EDIT_WITHIN, || answered(&world.agent).is_empty());
    switch.ip(&format!("link set {} up", world.node().name));
    wait_until("the device is used", EDIT_WITHIN, || answered(&world.agent) == VIPS.into());
    wait(&neighbour, &[owner]);
}

/// L9: a device that comes is answered by within a second, each time, and one that goes is forgotten.
#[test]
fn a_device_that_appears_answers_within_a_second() {
    let devices = [UPLINK, LAN].map(str::to_owned).into();
    let world = World::start(&pods(1, 0), AgentOptions { devices, ..AgentOptions::default() });
    let node = &world.node().netns;
    let neighbour = Neighbour::new(&world.cluster.client);
    announce(&world);
    wait(&neighbour, &[mac(node)]);
    let office = Netns::new("office");
    for _ in 0..3 {
        link::veth((node, LAN), (&office, UPLINK));
        let owner = parse_mac(&node.mac(LAN)).expect("a link-layer address");
        let colleague = Neighbour::unknown(&office);
        let since = Instant::now();
        wait_until("the new device answers", DEVICE_WITHIN + ANSWER_WITHIN * 2, || {
            colleague.are_had(&VIPS, &[owner])
        });
        println!("answered after {:?}, the question included", since.elapsed());
        neighbour.expect(VIPS[0], &[mac(node)]);

        node.ip(&format!("link del {LAN}"));
        wait_until("it is forgotten", EDIT_WITHIN, || {
            let rows = listed(&world.agent);
            rows.iter().all(|row| !row.to_string().contains(LAN))
        });
        neighbour.expect(VIPS[0], &[mac(node)]);
    }
}

#[test]
fn who_announces_an_address_and_why_not_can_be_asked() {
    let mut world = World::with_pods(1, 1);
    let (this, other) = (world.node().name.clone(), world.cluster.node(1).name.clone());
    let began = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time").as_secs();
    announce(&world);
    wait_until("it says that it announces", LOOKED_AT_WITHIN, || {
        is_said(&world.agent, "explain", "default/lan", "is announced by this node")
    });
    // Both addresses, of which each can be asked about as well.
    let all = asked(&world.agent, "show", "default/lan");
    let addresses: Vec<_> = all.iter().map(|it| it["address"].clone()).collect();
    assert_eq!(addresses, VIPS.map(|addr| json!(addr)));
    for (addr, account) in VIPS.into_iter().zip(&all) {
        assert_eq!(asked(&world.agent, "show", &addr.to_string()), std::slice::from_ref(account));
        assert_eq!(account["service"], "default/lan");
        assert_eq!((&account["pool"], &account["advertisements"]), (&json!("a"), &json!(["lb/a"])));
        assert_eq!((&account["owner"], &account["next"]), (&json!(this), &json!([])));
        // Nobody runs there.
        assert_eq!(
            (&account["not"][0]["node"], &account["not"][0]["reason"]),
            (&json!(other), &json!("NotLive"))
        );
        let here = &account["here"];
        assert_eq!((&here["node"], &here["devices"]), (&json!(this), &json!([UPLINK])));
        assert_eq!(here["is_answered"], true);
        let since = here["since"].as_u64().expect("a time");
        assert!(since >= began && since <= began + LOOKED_AT_WITHIN.as_secs(), "{since} {began}");
    }
    let (vip, lan) = (VIP.to_string(), "default/lan");
    for part in [
        &format!("owner           {this} (this node)"),
        "next            none",
        "the node is not heard",
    ] {
        assert!(is_said(&world.agent, "show", &vip, part), "{part}");
    }

    // What would have to be otherwise.
    let why = |world: &World, subject: &str, part: &str| {
        wait_until(&format!("{subject}: {part}"), LOOKED_AT_WITHIN, || {
            is_said(&world.agent, "explain", subject, part)
        });
    };
    world.manifests.write("lan.yaml", &service(&[], "Cluster"));
    why(&world, &vip, "the Service has no endpoint");
    assert_eq!(asked(&world.agent, "explain", &vip)[0]["announced"], false);
    let node = world.cluster.node(1);
    let elsewhere: Vec<_> = node.pods.iter().flat_map(|pod| both(node, pod)).collect();
    world.manifests.write("lan.yaml", &service(&elsewhere, "Local"));
    why(&world, &vip, "externalTrafficPolicy is Local, and no endpoint is on the node");
    world.manifests.write("lan.yaml", &service(&Endpoint::pods(&world.cluster), "Cluster"));
    world.manifests.write("pool.yaml", &pool(json!({ "interfaces": ["eth9"] })));
    why(&world, &vip, &format!("Devices that could be used on {this}: {UPLINK}."));
    world.manifests.write("pool.yaml", &pool(json!({ "ipAddressPools": ["b"] })));
    why(&world, &vip, "No L2Advertisement is about pool a");
    let mut full = service(&Endpoint::pods(&world.cluster), "Cluster");
    full[0]["spec"]["loadBalancerIP"] = json!("192.0.2.77");
    world.manifests.write("lan.yaml", &full);
    why(&world, lan, "Service default/lan has no address to announce");
    announce(&world);
    why(&world, lan, "is announced by this node");

    // An agent that is gone has left word.
    world.agent.kill9();
    why(&world, lan, &format!("No agent runs on {this}"));
    assert_eq!(asked(&world.agent, "show", lan)[0]["here"]["is_answered"], false);
    let state_dir = world.agent.state_dir().display().to_string();
    assert!(!world.agent.can(&["vip", "show", "192.0.2.1", "--state-dir", &state_dir]));
}

/// How long a node needs to begin with 500 addresses, and that `--layer2 off` lets go of them.
#[test]
fn five_hundred_addresses_are_announced_within_a_second() {
    const COUNT: usize = 500;
    let mut world = World::with_pods(1, 0);
    let range = "198.18.0.0-198.18.1.243";
    let pool = of_lb("IPAddressPool", json!({ "addresses": [range] }));
    let endpoints = Endpoint::pods(&world.cluster);
    let services = (0..COUNT).flat_map(|number| {
        let service = Service::new(&format!("lan-{number}"))
            .cluster_ip(&format!("10.97.{}.{}", number / 250, 1 + number % 250))
            .spec("type", json!("LoadBalancer"))
            .spec("loadBalancerClass", json!("lbxdp.io/lbxdp"))
            .port(Port::tcp("http", 80, 8080));
        service.with(&endpoints)
    });
    world.manifests.write("lan.yaml", &services.collect::<Vec<_>>());
    world.manifests.write("pool.yaml", &[pool]);
    let metric = |world: &World, name: &str| {
        let page = world.agent.get("/metrics").map(|(_, page)| page).unwrap_or_default();
        page.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<usize>().ok())
    };
    let not_announced = "lbxdp_addresses_not_announced{cause=\"no_advertisement\"}";
    wait_until("all have addresses", Duration::from_secs(60), || {
        metric(&world, not_announced) == Some(COUNT)
    });
    assert_eq!(answered(&world.agent), BTreeSet::new());

    world.manifests.write("advertisement.yaml", &[of_lb("L2Advertisement", json!({}))]);
    wait_until("the first address", LOOKED_AT_WITHIN, || !answered(&world.agent).is_empty());
    let first = Instant::now();
    wait_until("all addresses", LOOKED_AT_WITHIN, || answered(&world.agent).len() == COUNT);
    let took = first.elapsed();
    println!("{COUNT} addresses are answered for {took:?} after the first");
    assert!(took < Duration::from_secs(1), "{took:?}");
    // Both forms of each, at once.
    wait_until("all are told of", Duration::from_secs(1), || {
        metric(&world, "lbxdp_announcements_total") >= Some(2 * COUNT)
    });
    assert_eq!(metric(&world, "lbxdp_announcing_gate_open"), Some(1));
    wait_until("nothing is left", LOOKED_AT_WITHIN, || metric(&world, not_announced) == Some(0));

    world.agent.kill9();
    world.agent.change_options(|options| options.extra.push("--layer2=off".to_owned()));
    world.agent.start_again();
    wait_until("it lets go", LOOKED_AT_WITHIN, || answered(&world.agent).is_empty());
    assert_eq!(metric(&world, "lbxdp_announcing_gate_open"), Some(0));
    wait_until("it says so", LOOKED_AT_WITHIN, || {
        is_said(&world.agent, "explain", "default/lan-0", "Announcing is switched off")
    });
}
