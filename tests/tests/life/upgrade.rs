//! Upgrades to maps of another layout, and back: `lbxdp-agent-next` has its fields in other places.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::process::ExitStatusExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, sleep};
use std::time::Duration;

use lbxdp_agent::sys::Access;
use lbxdp_agent::sys::raw::RawMap;
use lbxdp_common::{ABI_VERSION, PortShare};
use lbxdp_tests::agent::Status;
use lbxdp_tests::cluster::{CLIENT_V4, CLIENT_V6};
use lbxdp_tests::process::wait_until;
use lbxdp_tests::traffic::churn::Churn;
use lbxdp_tests::traffic::hold::Held;
use lbxdp_tests::traffic::puppet::{Kind, Puppet};
use lbxdp_tests::traffic::spread::{Probe, Spread};
use lbxdp_tests::traffic::transfer::{Transfer, Transfers};
use lbxdp_tests::{AgentOptions, Cgroup, ServedCgroup};

use crate::affinity::sticky;
use crate::world::{EDIT_WITHIN, TIMEOUT, World, cluster_ip, pods, target, vip};

const THIS: &str = "lbxdp-agent";
const NEXT: &str = "lbxdp-agent-next";

/// Between two rounds of what goes on all the time.
const PAUSE: Duration = Duration::from_millis(5);

/// A pod on each node; the agent serves pods' devices and sockets too.
fn options(cgroup: &Cgroup) -> AgentOptions {
    AgentOptions {
        // As in the tests of restarts: flows of one datagram keep their port for a minute.
        snat_ports: Some((10_000, 29_999)),
        cgroup: ServedCgroup::At(cgroup.path().to_owned()),
        extra: ["--pod-device", "veth-*"].map(str::to_owned).into(),
        ..AgentOptions::default()
    }
}

impl World {
    /// The other program on the same pins, without a moment in between.
    #[track_caller]
    fn becomes(&mut self, program: &str) {
        assert!(self.agent.stop().success());
        self.agent.set_program(program);
        self.agent.start_again();
        self.is_taken_over(program);
    }

    /// Nothing is left of other maps than those of `program`, and of what was attached meanwhile.
    #[track_caller]
    fn is_taken_over(&self, program: &str) {
        let version = ABI_VERSION + u32::from(program == NEXT);
        let mut names = Vec::new();
        wait_until("nothing is left of other maps", EDIT_WITHIN, || {
            let entries = std::fs::read_dir(self.agent.pin_path()).expect("the pins are read");
            names = entries
                .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
                .collect();
            names.sort();
            names == ["links".to_owned(), format!("v{version}")]
        });
        assert!(!self.pinned(&format!("v{version}/links")).exists());
        assert_eq!(self.port_shares(), [PortShare::All]);
    }

    /// Which source ports each generation of programs gives out, in the order of the shares.
    fn port_shares(&self) -> Vec<PortShare> {
        let entries = std::fs::read_dir(self.agent.pin_path()).expect("the pins are read");
        let maps = entries.map(|entry| entry.expect("an entry").path().join("port_share"));
        let mut shares: Vec<_> = maps
            .filter(|map| map.exists())
            .map(|map| {
                let map = RawMap::open(&map, Access::ReadOnly).expect("a map");
                let share = map.lookup(&[0; 4]).expect("an array").expect("an element");
                PortShare::ALL[share[0] as usize]
            })
            .collect();
        shares.sort();
        shares
    }
}

/// Lines over connections that were opened before everything, from a thread in some namespace.
struct Pings {
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<Held>,
}

impl Pings {
    /// Enough that both backends have some.
    const COUNT: u16 = 16;

    fn start(world: &World, targets: &[SocketAddr]) -> Vec<Self> {
        let start = |to: &SocketAddr| {
            let (to, is_over) = (*to, Arc::new(AtomicBool::new(false)));
            let until = Arc::clone(&is_over);
            let held = world.cluster.client.run(|| Held::open(to, Self::COUNT, 0, TIMEOUT));
            let mut held = held.unwrap_or_else(|error| panic!("{to}: {error}"));
            let thread = std::thread::spawn(move || {
                while !until.load(Ordering::Relaxed) {
                    held.ping_all();
                    sleep(PAUSE);
                }
                held
            });
            Self { is_over, thread }
        };
        targets.iter().map(start).collect()
    }

    fn all_went_well(self) {
        self.is_over.store(true, Ordering::Relaxed);
        let report = self.thread.join().expect("the thread does not panic").report();
        assert_eq!(report.broken.len(), 0, "{:?}", report.broken);
        assert_eq!(report.open.values().sum::<u32>(), u32::from(Self::COUNT));
        assert_eq!(report.open.len(), 2, "a local and a remote backend: {:?}", report.open);
    }
}

/// Transfers of three seconds, one after the other.
fn transfers(world: &World) -> Vec<Transfers> {
    // Several for each family, so that local and remote backends are in it.
    let families = [false, true].into_iter().flat_map(|v6| [v6; 3]);
    let transfers =
        families.map(|v6| Transfer::new(target(v6, Probe::Http), 1_500_000).rate(1_000_000));
    transfers.map(|transfer| Transfers::start(&world.cluster.client, transfer)).collect()
}

/// A process whose sockets are served, and the sockets that it opened before everything.
struct Sockets {
    puppet: Puppet,
    /// Which backend each of the unconnected sockets has.
    names: BTreeMap<u32, String>,
}

impl Sockets {
    const TCP: std::ops::Range<u32> = 0..4;
    const UDP: std::ops::Range<u32> = 10..14;

    fn start(world: &World, cgroup: &Cgroup) -> Self {
        let mut puppet = Puppet::start(cgroup, &world.node().pods[0].netns);
        for id in Self::TCP {
            puppet.open(id, Kind::Tcp, id % 2 == 1);
            let connected = puppet.connect(id, Self::address(id, 7));
            assert_eq!(connected, Ok(()), "socket {id}: {:#?}", world.counts());
            puppet.recv(id).expect("a banner");
        }
        for id in Self::UDP {
            puppet.open(id, Kind::Udp, id % 2 == 1);
        }
        let mut sockets = Self { puppet, names: BTreeMap::new() };
        sockets.go_on();
        sockets
    }

    fn address(id: u32, port: u16) -> SocketAddr {
        (cluster_ip(id % 2 == 1, 10).parse::<IpAddr>().expect("an address"), port).into()
    }

    /// Each socket sees the frontend, and the unconnected ones the backend that they had.
    #[track_caller]
    fn go_on(&mut self) {
        for id in Self::TCP {
            assert_eq!(self.puppet.peer(id), Self::address(id, 7), "the frontend");
        }
        for id in Self::UDP {
            let to = Self::address(id, 53);
            assert_eq!(self.puppet.send_to(id, to, "hello"), Ok(()));
            let (from, answer) = self.puppet.recv_from(id).expect("an answer");
            assert_eq!(from, to, "the frontend");
            let name = answer.split(' ').find(|word| word.starts_with("name=")).expect("a name");
            let first = self.names.entry(id).or_insert_with(|| name.to_owned());
            assert_eq!(first, name, "the same backend");
        }
    }
}

/// The counters that are larger in `before` than in `after`.
fn went_back(before: &Status, after: &Status) -> Vec<(String, i128)> {
    let changes = after.changes_since(before).into_iter();
    changes.filter(|(_, change)| *change < 0).collect()
}

#[test]
fn maps_of_another_layout_take_over_and_back_and_no_byte_is_lost() {
    let cgroup = Cgroup::new("upgrade");
    up_and_back(options(&cgroup), &cgroup, if lbxdp_tests::long() { 20 } else { 3 });
}

#[test]
fn the_same_without_tcx() {
    let cgroup = Cgroup::new("upgrade-clsact");
    let mut options = options(&cgroup);
    options.extra.extend(["--tc-mode", "clsact"].map(str::to_owned));
    up_and_back(options, &cgroup, 1);
}

fn up_and_back(options: AgentOptions, cgroup: &Cgroup, rounds: usize) {
    let mut world = World::start(&pods(1, 1), options);
    let node_port = |v6| SocketAddr::new(world.node().ip(v6), 30080);
    let from_pod = cluster_ip(false, 10).parse::<IpAddr>().expect("an address");
    let (client, pod) = (&world.cluster.client, &world.node().pods[0].netns);
    let churns = [
        (client, target(false, Probe::Echo), Probe::Echo),
        (client, target(true, Probe::Http), Probe::Http),
        (client, target(false, Probe::Udp), Probe::Udp),
        (client, node_port(false), Probe::Http),
        (client, node_port(true), Probe::Http),
        (pod, (from_pod, 7).into(), Probe::Echo),
        (pod, (from_pod, 53).into(), Probe::Udp),
    ]
    .map(|(netns, to, probe)| Churn::start(netns, Spread::new(to, probe, 1), PAUSE));
    let pings = Pings::start(&world, &[vip(false, 10, 7), vip(true, 10, 7)]);
    let mut sockets = Sockets::start(&world, cgroup);
    let transfers = transfers(&world);
    let mut before = world.agent.status();
    for _ in 0..rounds {
        for program in [NEXT, THIS] {
            world.becomes(program);
            sockets.go_on();
            let after = world.agent.status();
            assert_eq!(went_back(&before, &after), [], "to {program}");
            assert!(after.counter("flow_hit") > before.counter("flow_hit"), "to {program}");
            before = after;
        }
    }
    for churn in churns {
        let outcome = churn.stop();
        assert_eq!(outcome.failed, 0, "{:?} {:#?}", outcome.errors, world.cluster.losses());
        assert_eq!(outcome.backends.len(), 2, "{:?}", outcome.backends);
    }
    pings.into_iter().for_each(Pings::all_went_well);
    transfers.into_iter().for_each(Transfers::all_went_well);
    assert_eq!(world.counts().all_drops(), 0);
    assert!(!world.agent.log().contains("WARN"), "{}", world.agent.log());
}

#[test]
fn clients_keep_their_backend_over_an_upgrade_and_back() {
    let mut world = World::with_pods(2, 2);
    world.serve(&sticky(10_800), &[]);
    world.wait_affinity(10_800);
    let clients: [IpAddr; 2] = [CLIENT_V4.into(), CLIENT_V6.into()];
    let names = clients.map(|client| world.one_name(client.is_ipv6(), client));
    for program in [NEXT, THIS] {
        world.becomes(program);
        let now = clients.map(|client| world.one_name(client.is_ipv6(), client));
        assert_eq!(names, now, "{program}");
    }
}

/// Every step at which an agent may be cut off. The next one is of the same version and of the
/// other one in turn, so that each is gone on from and gone back from.
const STEPS: [&str; 9] = [
    "new",
    "filled",
    "in place",
    "joined",
    "closed",
    "sockets replaced",
    "one link replaced",
    "replaced",
    "parted",
];

#[test]
fn an_agent_that_is_killed_at_any_step_leaves_what_either_version_goes_on_from() {
    let cgroup = Cgroup::new("upgrade-killed");
    let mut world = World::start(&pods(1, 1), options(&cgroup));
    let mut sockets = Sockets::start(&world, &cgroup);
    let pings = Pings::start(&world, &[vip(false, 10, 7), vip(true, 10, 7)]);
    let spread = Spread::new(target(false, Probe::Http), Probe::Http, 1);
    let churn = Churn::start(&world.cluster.client, spread, PAUSE);
    for step in STEPS {
        for program in [NEXT, THIS] {
            assert!(world.agent.stop().success());
            world.agent.set_program(NEXT);
            world.agent.change_options(|options| {
                options.end_at = Some(step);
                options.do_not_wait = true;
            });
            world.agent.start_again();
            assert_eq!(world.agent.wait_end().signal(), Some(9), "{step}");
            assert!(world.agent.log().contains(&format!("ended at {step}")), "{step}");
            if step == "closed" {
                // Neither knows the other's latest flows.
                assert_eq!(world.port_shares(), [PortShare::Lower, PortShare::Upper]);
            }
            // Nobody is there, and everybody is served.
            sockets.go_on();
            world.ask_both();
            world.agent.set_program(program);
            world.agent.change_options(|options| {
                options.end_at = None;
                options.do_not_wait = false;
            });
            world.agent.start_again();
            world.is_taken_over(program);
            sockets.go_on();
            world.ask_both();
            if program == NEXT {
                world.becomes(THIS);
            }
        }
    }
    let outcome = churn.stop();
    assert_eq!(outcome.failed, 0, "{:?}", outcome.errors);
    pings.into_iter().for_each(Pings::all_went_well);
    assert_eq!(world.counts().all_drops(), 0);
}

#[test]
fn maps_of_two_layouts_are_nothing_to_cleanup() {
    let mut world = World::with_pods(1, 0);
    assert!(world.agent.stop().success());
    world.agent.set_program(NEXT);
    world.agent.change_options(|options| {
        options.end_at = Some("closed");
        options.do_not_wait = true;
    });
    world.agent.start_again();
    world.agent.wait_end();
    let status = world.agent.cli(&["status"]);
    let replaced = format!("v{ABI_VERSION}-replaced");
    assert!(status.contains(&replaced), "{status}");
    let removed = world.agent.cli(&["cleanup"]);
    assert!(removed.contains("detached eth0 egress"), "{removed}");
    assert!(!world.agent.pin_path().exists());
}
