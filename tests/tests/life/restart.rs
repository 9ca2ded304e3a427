//! Agents end and start; packets go on.

use std::collections::BTreeMap;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use lbxdp_agent::apply::{Actual, Maps as _};
use lbxdp_common::Device;
use lbxdp_tests::AgentOptions;
use lbxdp_tests::process::{command, run};
use lbxdp_tests::traffic::churn::Churn;
use lbxdp_tests::traffic::spread::{Probe, Spread};
use lbxdp_tests::traffic::transfer::{Transfer, Transfers};
use serde_json::Value;

use crate::world::{World, pods, target};

const PAUSE: Duration = Duration::from_millis(5);

/// Traffic of both families over several connections, so that local and remote backends are in
/// it: transfers of eight seconds, and new connections all the time.
struct Traffic {
    transfers: Vec<Transfers>,
    churns: Vec<Churn>,
}

impl Traffic {
    fn start(world: &World) -> Self {
        let client = &world.cluster.client;
        let families = [false, true].into_iter().flat_map(|v6| [v6; 3]);
        let transfers =
            families.map(|v6| Transfer::new(target(v6, Probe::Http), 4_000_000).rate(1_000_000));
        let transfers = transfers.map(|transfer| Transfers::start(client, transfer)).collect();
        let flows = [(false, Probe::Echo), (true, Probe::Http), (false, Probe::Udp)];
        let churns = flows.into_iter().map(|(v6, probe)| {
            Churn::start(client, Spread::new(target(v6, probe), probe, 1), PAUSE)
        });
        let churns = churns.collect();
        // Until every transfer is under way.
        sleep(Duration::from_millis(300));
        Self { transfers, churns }
    }

    #[track_caller]
    fn all_went_well(self, world: &World) {
        self.transfers.into_iter().for_each(Transfers::all_went_well);
        for churn in self.churns {
            let outcome = churn.stop();
            assert_eq!(outcome.failed, 0, "{:?} {:#?}", outcome.errors, world.cluster.losses());
            assert!(outcome.answered() > 50, "{}", outcome.answered());
            assert_eq!(outcome.backends.len(), 2, "{:?}", outcome.backends);
        }
        assert_eq!(world.counts().all_drops(), 0);
    }
}

#[test]
fn agents_killed_and_stopped_during_transfers_lose_no_byte_and_refuse_nobody() {
    // A UDP flow has its source port for a minute after its one answer: two minutes of new ones
    // need more ports than the usual range has.
    let options = AgentOptions { snat_ports: Some((10_000, 29_999)), ..AgentOptions::default() };
    let mut world = World::start(&pods(1, 1), options);
    let traffic = Traffic::start(&world);
    for _ in 0..if lbxdp_tests::long() { 25 } else { 2 } {
        world.agent.kill9();
        world.agent.start_again();
        assert!(world.agent.stop().success());
        world.agent.start_again();
    }
    traffic.all_went_well(&world);
}

#[test]
fn three_seconds_without_an_agent_cost_nothing() {
    let mut world = World::with_pods(1, 1);
    let traffic = Traffic::start(&world);
    world.agent.kill9();
    sleep(Duration::from_secs(3));
    world.agent.start_again();
    traffic.all_went_well(&world);
}

fn json_of(arguments: &[&str], path: &Path) -> Value {
    let mut bpftool = command("bpftool");
    let text = run(bpftool.arg("-j").args(arguments).arg(path));
    serde_json::from_str(&text).expect("JSON")
}

/// Link id and program id of every pinned link.
fn links(world: &World) -> BTreeMap<String, (u64, u64)> {
    let ids = |link: &Value| Some((link["id"].as_u64()?, link["prog_id"].as_u64()?));
    let links = world.links();
    let named = links.iter().map(|link| {
        let shown = json_of(&["link", "show", "pinned"], &link.path);
        let name = format!("{} {}", link.device, link.point.as_str());
        (name, ids(&shown).unwrap_or_else(|| panic!("{shown}")))
    });
    named.collect()
}

#[test]
fn a_new_agent_replaces_the_programs_through_the_links_that_are_there() {
    let mut world = World::with_pods(1, 0);
    let before = links(&world);
    assert_eq!(before.keys().collect::<Vec<_>>(), ["eth0 egress", "eth0 ingress", "eth0 xdp"]);
    world.agent.restart();
    let after = links(&world);
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
    for (name, (link, program)) in &before {
        assert_eq!(after[name].0, *link, "{name}: another link");
        assert_ne!(after[name].1, *program, "{name}: the old program");
    }
    world.ask_both();
}

/// Everything that the agent writes, and which maps it is in.
#[derive(PartialEq)]
struct Contents {
    actual: Actual,
    devices: BTreeMap<u32, Device>,
    raw: BTreeMap<String, String>,
    ids: BTreeMap<String, u64>,
}

impl Contents {
    fn of(world: &World) -> Self {
        let pins = world.pins();
        let maps = world.maps();
        let (mut ids, mut raw) = (BTreeMap::new(), BTreeMap::new());
        for entry in std::fs::read_dir(pins.maps()).expect("the directory of maps") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                continue;
            }
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            let shown = json_of(&["map", "show", "pinned"], &path);
            ids.insert(name.clone(), shown["id"].as_u64().expect("an id"));
            // Arrays are in `Actual`, with every element. They are large.
            if ["frontends", "addresses", "devices"].iter().any(|start| name.starts_with(start)) {
                let dump = run(command("bpftool").args(["-j", "map", "dump", "pinned"]).arg(&path));
                raw.insert(name, dump);
            }
        }
        let actual = maps.read().expect("the maps are read");
        Self { actual, devices: maps.devices().expect("the devices are read"), raw, ids }
    }
}

#[test]
fn a_second_start_with_the_same_manifests_changes_no_map_entry() {
    let mut world = World::with_pods(2, 2);
    world.ask_both();
    let before = Contents::of(&world);
    assert!(before.actual.frontends.len() >= 10 && before.devices.len() == 1);
    for _ in 0..2 {
        let logged = world.agent.log().len();
        world.agent.restart();
        world.ask_both();
        let after = Contents::of(&world);
        assert!(before.actual == after.actual, "frontends, tables or backends differ");
        assert_eq!(before.devices, after.devices);
        assert_eq!(before.raw, after.raw);
        assert_eq!(before.ids, after.ids, "maps were made anew");
        let log = &world.agent.log()[logged..];
        assert!(!log.contains("programmed"), "{log}");
        assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
    }
}
