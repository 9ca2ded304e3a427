//! Devices, pins and programs in the kernel. Each test has its own network namespaces and its own
//! pin path.
//!
//! They need root and the object of `cargo xtask build-ebpf`. VLAN devices are left to the unit
//! tests: the kernels that this is developed on have none.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use aya::maps::MapData;
use lbxdp_agent::apply::pinned::{FlowEntry, PinnedMaps};
use lbxdp_agent::apply::pressure;
use lbxdp_agent::apply::{BackendEntry, FlowTable, IfThere, MapOp, Maps as _};
use lbxdp_agent::attach::{self, Config, Dataplane, DeviceStatus, TcKind, TcMode};
use lbxdp_agent::device::{NoXdp, Rules};
use lbxdp_agent::model::{
    Desired, EndpointSet, Endpoints, Family, Frontend, FrontendAddr, Protocol, ServicePortName,
};
use lbxdp_agent::netlink::genl::{XDP_BASIC, XDP_NDO_XMIT};
use lbxdp_agent::netlink::{Monitor, Network, Routes};
use lbxdp_agent::object;
use lbxdp_agent::pins::{self, Pins};
use lbxdp_agent::slab::BlockRange;
use lbxdp_agent::sys::{self, Access, Point};
use lbxdp_agent::table::Table;
use lbxdp_agent::udp::Serving;
use lbxdp_common::{
    AddressFlags, Backend, Descriptor, Flow, FlowKey, FlowState, FrontendInfo, FrontendKind, Hook,
    TABLE_BLOCK, TableBlock, TableRef, limits::MAX_FLOWS,
};
use nix::sched::{CloneFlags, setns, unshare};

/// How long the kernel and the monitor may take.
const PATIENCE: Duration = Duration::from_secs(20);

fn run(command: &str) {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(
        output.status.success(),
        "{command}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
}

fn until<T>(what: &str, mut get: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(got) = get() {
            return got;
        }
        assert!(start.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A node and a peer, joined by `eth0` on each side, and the node's pin path.
struct Lab {
    node: String,
    peer: String,
    pin_path: PathBuf,
}

impl Lab {
    fn new(test: &str) -> Self {
        let name = format!("lbxdp-dev-{test}-{}", std::process::id());
        let lab = Self {
            node: format!("{name}-node"),
            peer: format!("{name}-peer"),
            pin_path: Path::new("/sys/fs/bpf").join(&name),
        };
        run(&format!("ip netns add {}", lab.node));
        run(&format!("ip netns add {}", lab.peer));
        lab.connect();
        lab
    }

    fn connect(&self) {
        let Self { node, peer, .. } = self;
        run(&format!("ip -n {node} link add eth0 type veth peer name eth0 netns {peer}"));
        run(&format!("ip -n {node} addr add 192.0.2.1/24 dev eth0"));
        run(&format!("ip -n {node} link set eth0 up"));
        run(&format!("ip -n {peer} link set eth0 up"));
        run(&format!("ip -n {node} route add default via 192.0.2.2"));
    }

    fn config(&self) -> Config {
        Config { pin_path: self.pin_path.clone(), ..Config::default() }
    }

    fn pins(&self) -> Pins {
        Pins::new(&self.pin_path)
    }

    fn flows(&self) -> FlowTable<[u8; 4]> {
        let map = sys::obj_get(&self.pins().map("flows_v4"), Access::ReadWrite).unwrap();
        FlowTable::new(map, Access::ReadWrite).unwrap()
    }

    fn load(&self) -> Dataplane {
        load(&self.config())
    }

    /// Runs `test` in the node's network namespace, in a thread: a namespace is a thread's.
    fn on_node(&self, test: impl FnOnce() + Send) {
        in_namespace(&self.node, test);
    }

    fn link_ids(&self) -> BTreeMap<(String, Point), (u32, u32)> {
        let links = self.pins().links().unwrap();
        links
            .into_iter()
            .map(|link| ((link.device, link.point), (link.info.id, link.info.prog_id)))
            .collect()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let pin_path = self.pin_path.clone();
        let node = self.node.clone();
        let cleaned = std::panic::catch_unwind(|| {
            in_namespace(&node, || {
                pins::cleanup(&pin_path).unwrap();
            });
        });
        for namespace in [&self.node, &self.peer] {
            let _ = Command::new("ip").args(["netns", "del", namespace]).status();
        }
        if !std::thread::panicking() {
            assert!(cleaned.is_ok());
            assert!(!self.pin_path.exists());
        }
    }
}

fn load(config: &Config) -> Dataplane {
    let mut dataplane = Dataplane::load(&object::bytes().unwrap(), config).unwrap();
    dataplane.adopt().unwrap();
    dataplane
}

fn in_namespace(name: &str, test: impl FnOnce() + Send) {
    let namespace = File::open(Path::new("/run/netns").join(name)).unwrap();
    std::thread::scope(|scope| {
        let test = scope.spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            test();
        });
        if let Err(panic) = test.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

fn reconcile(dataplane: &mut Dataplane) -> Vec<DeviceStatus> {
    let mut maps = dataplane.maps().unwrap();
    let network = Monitor::snapshot().unwrap();
    dataplane.reconcile(&network, &Rules::default(), &mut maps).unwrap()
}

fn only(statuses: Vec<DeviceStatus>) -> DeviceStatus {
    assert_eq!(statuses.len(), 1, "{statuses:?}");
    statuses.into_iter().next().unwrap()
}

fn eth0(network: &Network) -> &lbxdp_agent::netlink::Link {
    network.by_name("eth0").unwrap()
}

#[test]
fn links_addresses_and_routes_are_followed() {
    let lab = Lab::new("follow");
    lab.on_node(|| {
        let monitor = Monitor::start().unwrap();
        let network = monitor.network();
        let link = eth0(&network);
        assert_eq!(link.kind.as_deref(), Some("veth"));
        assert!(link.up && link.ethernet && link.mac.is_some() && link.default_route);
        assert_eq!(network.addresses(), [IpAddr::from([192, 0, 2, 1])].into());

        run("ip addr add 2001:db8::1/64 dev eth0 nodad");
        run("ip link add br0 type bridge");
        run("ip link set eth0 master br0");
        run("ip link add flannel.1 type vxlan id 1 dstport 8472 dev eth0");
        run("ip link set eth0 mtu 1400");
        until("new devices and addresses", || {
            let network = monitor.network();
            if eth0(&network).port_of.as_deref() != Some("bridge") {
                return None;
            }
            assert_eq!(network.by_name("flannel.1")?.kind.as_deref(), Some("vxlan"));
            let has = eth0(&network).addresses.contains(&"2001:db8::1".parse().unwrap());
            (has && eth0(&network).mtu == 1_400).then_some(())
        });

        run("ip link set eth0 nomaster");
        until("leaving the bridge", || eth0(&monitor.network()).port_of.is_none().then_some(()));
        let version = monitor.network().routes_version;
        run("ip route add 198.51.100.0/24 via 192.0.2.9");
        until("a new route", || (monitor.network().routes_version > version).then_some(()));

        // The kernel does not announce that the default route goes with its device.
        run("ip link set eth0 down");
        until("the default route's end", || {
            (!eth0(&monitor.network()).default_route).then_some(())
        });
        run("ip link del flannel.1");
        until("a device's end", || monitor.network().by_name("flannel.1").is_none().then_some(()));
    });
}

#[test]
fn lost_events_lead_to_a_new_listing() {
    let lab = Lab::new("overrun");
    lab.on_node(|| {
        let monitor = Monitor::with_receive_buffer(1).unwrap();
        for index in 0..60 {
            run(&format!("ip link add d{index} type bridge"));
        }
        run("ip link del d0");
        until("all devices", || {
            let network = monitor.network();
            let bridges = network
                .links
                .values()
                .filter(|link| link.kind.as_deref() == Some("bridge"))
                .count();
            (bridges == 59).then_some(())
        });
    });
}

#[test]
fn the_source_of_a_route_is_the_preferred_one() {
    let lab = Lab::new("route");
    lab.on_node(|| {
        run("ip addr add 203.0.113.5/32 dev eth0");
        run("ip route add 198.51.100.0/24 via 192.0.2.9 src 203.0.113.5");
        run("ip route add blackhole 198.51.101.0/24");
        run("ip addr add 2001:db8::1/64 dev eth0 nodad");
        let mut routes = Routes::open().unwrap();
        let mut source = |addr: &str| {
            let found = routes.route_source(addr.parse().unwrap()).unwrap();
            found.map(|found| found.source.to_string())
        };
        assert_eq!(source("192.0.2.77").as_deref(), Some("192.0.2.1"));
        assert_eq!(source("198.51.100.1").as_deref(), Some("203.0.113.5"));
        assert_eq!(source("2001:db8::2").as_deref(), Some("2001:db8::1"));
        assert_eq!(source("198.51.101.1"), None, "blackhole");
        assert_eq!(source("192.0.2.1"), None, "an address of this node");
        assert_eq!(source("2001:db9::1"), None, "no route");
    });
}

#[test]
fn what_is_remembered_of_routes_is_what_the_kernel_would_say() {
    let lab = Lab::new("remember");
    lab.on_node(|| {
        run("ip addr add 203.0.113.5/32 dev eth0");
        run("ip addr add 2001:db8::1/64 dev eth0 nodad");
        run("ip addr add 2001:db8:0:1::1/64 dev eth0 nodad");
        run("ip link add other type bridge");
        run("ip link set other up");
        run("ip addr add 198.18.0.1/30 dev other");
        run("ip route replace default via 192.0.2.9");
        run("ip route add 198.51.100.0/24 via 192.0.2.9 src 203.0.113.5");
        run("ip route add 198.51.100.64/26 via 192.0.2.10");
        run("ip route add 198.51.100.65/32 dev eth0");
        run("ip route add blackhole 198.51.100.128/25");
        run("ip route add 198.51.100.160/27 nexthop via 192.0.2.9 nexthop via 192.0.2.10");
        run("ip route add 198.51.100.192/27 via 192.0.2.9 mtu 1300");
        run("ip route add 198.51.100.66/32 via 192.0.2.11 table 999");
        run("ip -6 route add default via 2001:db8::9");
        run("ip -6 route add 2001:db8:2::/48 via 2001:db8::9");
        run("ip -6 route add 2001:db8:2:1::/64 via 2001:db8:0:1::9");
        run("ip -6 route add blackhole 2001:db8:3::/48");
        let v4 = (0..=255).map(|last| [198, 51, 100, last].into());
        let others = ["192.0.2.1", "192.0.2.9", "192.0.2.77", "198.18.0.2", "8.8.8.8", "8.8.4.4"];
        let v6 = ["2001:db8::1", "2001:db8::2", "2001:db8::3", "2001:db8:0:1::2", "2001:db8:2::1"];
        let more = ["2001:db8:2::2", "2001:db8:2:1::1", "2001:db8:2:1::2", "2001:db8:3::1", "::2"];
        let named = others.iter().chain(&v6).chain(&more).map(|addr| addr.parse().unwrap());
        let addresses: Vec<IpAddr> = v4.chain(named).collect();
        let (mut remembering, mut asking) = (Routes::open().unwrap(), Routes::open().unwrap());
        let mut compare = |remembering: &mut Routes| {
            for addr in addresses.iter().chain(addresses.iter().rev()) {
                let said = asking.route_source(*addr).unwrap();
                assert_eq!(remembering.route_source(*addr).unwrap(), said, "{addr}");
            }
        };
        let none = BTreeSet::new();
        remembering.renew(&none).unwrap();
        compare(&mut remembering);
        run("ip route del 198.51.100.64/26");
        run("ip -6 route del 2001:db8:2:1::/64");
        remembering.renew(&none).unwrap();
        compare(&mut remembering);
        remembering.renew(&[Family::V4, Family::V6].into()).unwrap();
        compare(&mut remembering);
    });
}

#[test]
fn what_a_veth_takes_follows_its_peer() {
    let lab = Lab::new("features");
    let peer = |on: &str| run(&format!("ip netns exec {} ethtool -K eth0 gro {on}", lab.peer));
    lab.on_node(|| {
        let monitor = Monitor::start().unwrap();
        let features = || eth0(&monitor.network()).xdp_features.unwrap();
        assert_eq!(features() & (XDP_BASIC | XDP_NDO_XMIT), XDP_BASIC);
        peer("on");
        until("the peer polls", || (features() & XDP_NDO_XMIT != 0).then_some(()));
        peer("off");
        until("the peer polls no more", || (features() & XDP_NDO_XMIT == 0).then_some(()));
    });
}

#[test]
fn a_bpf_file_system_is_mounted_where_there_is_none() {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            run("mount --make-rprivate /");
            while Command::new("umount").arg("/sys/fs/bpf").output().unwrap().status.success() {}
            let pins = Pins::new("/sys/fs/bpf/lbxdp-dev-mount");
            pins.prepare().unwrap();
            assert!(pins.root().join("links").is_dir());
            assert!(!pins::cleanup(pins.root()).unwrap().is_empty());
            run("umount /sys/fs/bpf");
        });
    });
}

#[test]
fn programs_outlive_the_agent_and_are_replaced_in_place() {
    let lab = Lab::new("takeover");
    lab.on_node(|| {
        let mut first = lab.load();
        let status = only(reconcile(&mut first));
        assert_eq!((&status.xdp, status.tc, &status.error), (&Ok(()), Some(TcKind::Tcx), &None));
        let before = lab.link_ids();
        assert_eq!(before.len(), 3);
        assert_eq!(only(reconcile(&mut first)), status, "a second round changes nothing");
        assert_eq!(lab.link_ids(), before);
        drop(first);

        assert_eq!(lab.link_ids(), before, "attached without an agent");
        let network = Monitor::snapshot().unwrap();
        let dead = only(attach::read_status(&lab.pins(), &network).unwrap());
        assert_eq!((dead.xdp, dead.tc), (Ok(()), Some(TcKind::Tcx)));

        let mut second = lab.load();
        assert_eq!(second.rebuilt(), []);
        // What is known of the network is older than the takeover for a while: nobody announces it.
        for _ in 0..2 {
            let mut maps = second.maps().unwrap();
            let again = second.reconcile(&network, &Rules::default(), &mut maps).unwrap();
            assert_eq!(only(again), status);
        }
        let after = lab.link_ids();
        assert_eq!(after.len(), 3);
        for (link, (id, prog_id)) in &after {
            assert_eq!(before[link].0, *id, "{link:?}: the link stays");
            assert_ne!(before[link].1, *prog_id, "{link:?}: the program is new");
        }
    });
}

#[test]
fn a_device_that_comes_back_is_served_again() {
    let lab = Lab::new("recreate");
    lab.on_node(|| {
        let mut dataplane = lab.load();
        let first = only(reconcile(&mut dataplane));
        let before = lab.link_ids();
        run("ip link del eth0");
        assert_eq!(lab.pins().links().unwrap()[0].info.ifindex, 0, "a dead link");
        assert_eq!(reconcile(&mut dataplane), []);
        assert!(lab.link_ids().is_empty());
        assert_eq!(dataplane.maps().unwrap().devices().unwrap(), BTreeMap::new());

        lab.connect();
        let second = only(reconcile(&mut dataplane));
        assert_ne!(first.ifindex, second.ifindex);
        assert_eq!((second.xdp, second.tc), (Ok(()), Some(TcKind::Tcx)));

        // Gone and back between two rounds.
        run("ip link del eth0");
        lab.connect();
        let third = only(reconcile(&mut dataplane));
        assert_eq!((third.xdp, third.tc), (Ok(()), Some(TcKind::Tcx)));
        for (link, (id, _)) in lab.link_ids() {
            assert_ne!(before[&link].0, id);
        }

        // A new name is the same device.
        let links = lab.link_ids();
        run("ip link set eth0 down");
        run("ip link set eth0 name wan.0");
        run("ip link set wan.0 up");
        run("ip route add default via 192.0.2.2");
        assert_eq!(only(reconcile(&mut dataplane)).name, "wan.0");
        let renamed = links.into_iter().map(|((_, point), ids)| (("wan.0".into(), point), ids));
        assert_eq!(lab.link_ids(), renamed.collect());
        assert_eq!(only(reconcile(&mut dataplane)).xdp, Ok(()));
    });
}

#[test]
fn a_foreign_program_stays_and_is_reported() {
    let lab = Lab::new("foreign");
    lab.on_node(|| {
        let other =
            Path::new("/sys/fs/bpf").join(format!("lbxdp-dev-other-{}", std::process::id()));
        let config = Config { pin_path: other.clone(), ..Config::default() };
        let mut foreign = load(&config);
        let mut maps = foreign.maps().unwrap();
        let network = Monitor::snapshot().unwrap();
        only(foreign.reconcile(&network, &Rules::default(), &mut maps).unwrap());
        let foreign_xdp = eth0(&Monitor::snapshot().unwrap()).xdp.unwrap().prog_id;

        let mut dataplane = lab.load();
        let status = only(reconcile(&mut dataplane));
        assert_eq!(status.xdp, Err(NoXdp::Foreign { prog_id: foreign_xdp }));
        assert_eq!((status.tc, status.error), (Some(TcKind::Tcx), None));
        // As when the program came after the listing.
        let status = only(
            dataplane
                .reconcile(&network, &Rules::default(), &mut dataplane.maps().unwrap())
                .unwrap(),
        );
        assert_eq!(status.xdp, Err(NoXdp::Foreign { prog_id: 0 }));

        pins::cleanup(&other).unwrap();
        assert_eq!(only(reconcile(&mut dataplane)).xdp, Ok(()));
    });
}

#[test]
fn large_packets_need_frags() {
    let lab = Lab::new("mtu");
    run(&format!("ip -n {} link set eth0 mtu 9000", lab.peer));
    lab.on_node(|| {
        run("ip link set eth0 mtu 9000");
        let config = Config { without_frags: true, ..lab.config() };
        let mut plain = load(&config);
        let status = only(reconcile(&mut plain));
        let Err(NoXdp::Refused(reason)) = status.xdp else { panic!("{:?}", status.xdp) };
        assert!(reason.contains("MTU too large"), "{reason}");
        assert_eq!((status.tc, status.error), (Some(TcKind::Tcx), None));

        let mut dataplane = lab.load();
        assert!(dataplane.frags());
        assert_eq!(only(reconcile(&mut dataplane)).xdp, Ok(()));
    });
}

#[test]
fn devices_without_native_xdp_get_tc_and_those_without_ethernet_nothing() {
    let lab = Lab::new("kinds");
    lab.on_node(|| {
        run("ip link add flannel.1 type vxlan id 1 dstport 8472 dev eth0");
        run("ip link set flannel.1 up");
        run("ip tuntap add dev tun0 mode tun");
        run("ip addr add 203.0.113.1/32 dev tun0");
        let mut dataplane = lab.load();
        let rules = Rules {
            node_addresses: BTreeSet::from([IpAddr::from([203, 0, 113, 1])]),
            ..Rules::default()
        };
        let network = Monitor::snapshot().unwrap();
        let mut maps = dataplane.maps().unwrap();
        let statuses = dataplane.reconcile(&network, &rules, &mut maps).unwrap();
        let found: Vec<_> = statuses
            .iter()
            .map(|status| {
                let xdp = status.xdp.as_ref().map_err(ToString::to_string);
                (status.name.as_str(), xdp.err(), status.tc, status.error.as_deref())
            })
            .collect();
        let no_ethernet = Some("link type not served");
        let no_xdp = "a vxlan device has no native XDP".to_owned();
        let refused = "refused by the kernel: link type not served".to_owned();
        assert_eq!(
            found,
            [
                ("tun0", Some(refused), None, no_ethernet),
                ("eth0", None, Some(TcKind::Tcx), None),
                ("flannel.1", Some(no_xdp), Some(TcKind::Tcx), None),
            ]
        );
        let devices = maps.devices().unwrap();
        assert_eq!(devices.len(), 2);
        assert_eq!(devices[&eth0(&network).ifindex].mac, eth0(&network).mac.unwrap());
        let vxlan = devices[&network.by_name("flannel.1").unwrap().ifindex];
        assert_eq!(vxlan.flags, 0);
    });
}

#[test]
fn clsact_filters_are_replaced_and_give_way_to_tcx() {
    let lab = Lab::new("clsact");
    let filters = || {
        let show = |direction| {
            let mut show = Command::new("tc");
            let output = show.args(["filter", "show", "dev", "eth0", direction]).output().unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        show("ingress") + &show("egress")
    };
    let clsact = || {
        let output = Command::new("tc").args(["qdisc", "show", "dev", "eth0"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().contains("clsact")
    };
    lab.on_node(|| {
        let config = Config { tc: TcMode::Clsact, ..lab.config() };
        let load = || load(&config);
        let mut first = load();
        let status = only(reconcile(&mut first));
        assert_eq!((status.tc, &status.error), (Some(TcKind::Clsact), &None));
        let before = filters();
        assert_eq!(before.matches("direct-action").count(), 2, "{before}");
        drop(first);
        assert_eq!(filters(), before, "attached without an agent");
        let dead = attach::read_status(&lab.pins(), &Monitor::snapshot().unwrap()).unwrap();
        assert_eq!(only(dead).tc, Some(TcKind::Clsact));

        let mut second = load();
        assert_eq!(only(reconcile(&mut second)), status);
        let after = filters();
        assert_ne!(after, before);
        assert_eq!(after.matches("direct-action").count(), 2, "{after}");

        let mut third = lab.load();
        assert_eq!(only(reconcile(&mut third)).tc, Some(TcKind::Tcx));
        assert_eq!((filters().as_str(), clsact()), ("", false));

        assert_eq!(only(reconcile(&mut load())).tc, Some(TcKind::Clsact));
        assert_eq!(lab.link_ids().len(), 1, "only XDP is a link");
        let removed = pins::cleanup(&lab.pin_path).unwrap();
        assert_eq!(removed.detached, ["eth0 xdp", "eth0 ingress (clsact)", "eth0 egress (clsact)"]);
        assert_eq!((filters().as_str(), clsact()), ("", false));

        // A qdisc that was there before stays.
        run("tc qdisc add dev eth0 clsact");
        only(reconcile(&mut load()));
        pins::cleanup(&lab.pin_path).unwrap();
        assert!(clsact());
    });
}

#[test]
fn cleanup_leaves_nothing() {
    let lab = Lab::new("cleanup");
    lab.on_node(|| {
        let mut dataplane = lab.load();
        only(reconcile(&mut dataplane));
        std::fs::create_dir(lab.pin_path.join("v0")).unwrap();
        let removed = pins::cleanup(&lab.pin_path).unwrap();
        assert_eq!(removed.detached, ["eth0 egress", "eth0 ingress", "eth0 xdp"]);
        assert!(removed.pins.contains(&lab.pins().map("tables")));
        assert!(!lab.pin_path.exists());
        assert_eq!(eth0(&Monitor::snapshot().unwrap()).xdp, None, "detached at once");
        assert!(pins::cleanup(&lab.pin_path).unwrap().is_empty());
    });
}

#[test]
fn maps_that_do_not_fit_are_rebuilt() {
    let lab = Lab::new("rebuild");
    lab.on_node(|| {
        let mut first = lab.load();
        only(reconcile(&mut first));
        drop(first);
        let path = lab.pins().map("frontends_v4");
        std::fs::remove_file(&path).unwrap();
        let other = aya_obj::Map::new_from_params(1, 8, 8, 16, 0);
        MapData::create(other, "frontends_v4", None).unwrap().pin(&path).unwrap();
        std::fs::create_dir(lab.pin_path.join("v0")).unwrap();
        let tables = || {
            let fd = sys::obj_get(&lab.pins().map("tables"), Access::ReadOnly).unwrap();
            sys::map_info(std::os::fd::AsFd::as_fd(&fd)).unwrap().id
        };
        let before = tables();

        // An object that does not load leaves everything as it was.
        let bad = Config { snat_ports: 0..=1, ..lab.config() };
        assert!(Dataplane::load(&object::bytes().unwrap(), &bad).is_err());
        assert_eq!(tables(), before);

        let mut second = lab.load();
        let found: Vec<_> = second.rebuilt().iter().map(ToString::to_string).collect();
        assert_eq!(found, ["pinned map frontends_v4: value size is 8, expected 4"]);
        let replaced = lab.pins().replaced().unwrap();
        assert_eq!(replaced.len(), 2, "the old programs still run, and whose v0 is nobody knows");
        assert_eq!(only(reconcile(&mut second)).error, None);
        assert_eq!(lab.pins().replaced().unwrap(), Vec::<PathBuf>::new());
        assert!(!lab.pin_path.join("v0").exists());
        assert_ne!(tables(), before);
        assert_eq!(lab.link_ids().len(), 3);
    });
}

fn flow(frontend: [u8; 4], backend: [u8; 4], last_seen: u64, reply: bool) -> FlowEntry {
    let client = [203, 0, 113, 9];
    let key = if reply { (backend, client) } else { (client, frontend) };
    let value = if reply { (frontend, client) } else { (client, backend) };
    FlowEntry::V4(
        FlowKey { src: key.0, dst: key.1, src_port: 1, dst_port: 2, protocol: 6, _pad: [0; 3] },
        Flow {
            src: value.0,
            dst: value.1,
            src_port: 1,
            dst_port: 2,
            frontend: 0,
            check: 0,
            // Ten seconds: any machine that runs this has been up for longer.
            state: FlowState::Closing as u8,
            hook: Hook::Ingress as u8,
            flags: if reply { Flow::<[u8; 4]>::REPLY } else { 0 },
            _pad: 0,
            last_seen,
            backend: 0,
            _pad2: 0,
        },
    )
}

#[test]
fn what_is_written_to_the_maps_is_read_back() {
    let lab = Lab::new("maps");
    lab.on_node(|| {
        let dataplane = lab.load();
        let mut maps = dataplane.maps().unwrap();
        drop(dataplane);
        let empty = maps.read().unwrap();

        let backend = Backend {
            addr: [10, 0, 0, 1],
            snat_addr: [192, 0, 2, 1],
            port: 8_080,
            flags: Backend::<[u8; 4]>::LOCAL,
            hop: 0,
        };
        let v6 = Backend { addr: [1; 16], snat_addr: [2; 16], port: 1, flags: 0, hop: 0 };
        let addr = |last| FrontendAddr {
            addr: IpAddr::from([198, 51, 100, last]),
            port: 80,
            protocol: Protocol::Tcp,
        };
        let table = TableRef::serve(3, 4).0;
        let descriptor = Descriptor { external: table, internal: table, ..Descriptor::default() };
        let block = TableBlock { slots: [7; TABLE_BLOCK] };
        let table_of = |id| {
            let endpoints = EndpointSet::from([([10, 0, 0, 1], 80).into()]);
            Table::new(&endpoints, |_| Some(id)).unwrap()
        };
        let info = FrontendInfo::new("default/web:http", FrontendKind::ClusterIp);
        let service = AddressFlags { flags: AddressFlags::SERVICE };
        let ops = vec![
            MapOp::SetBackend { id: 5, backend: BackendEntry::V4(backend) },
            MapOp::SetBackend { id: 6, backend: BackendEntry::V6(v6) },
            MapOp::WriteTable { first_block: 3, table: table_of(7) },
            MapOp::SetDescriptor { family: Family::V4, id: 9, descriptor },
            MapOp::SetInfo { family: Family::V4, id: 9, info: Box::new(info) },
            MapOp::ResetStats { family: Family::V4, id: 9 },
            MapOp::InsertFrontend { addr: addr(1), id: 9 },
            MapOp::SetAddress { addr: addr(1).addr, flags: service },
            MapOp::SetAddress { addr: "2001:db8::1".parse().unwrap(), flags: service },
        ];
        for _ in 0..2 {
            let (done, error) = maps.apply(&ops);
            assert!(done == ops.len() && error.is_none(), "{error:?}");
        }
        let actual = maps.read().unwrap();
        assert_eq!(actual.frontends, BTreeMap::from([(addr(1), 9)]));
        assert_eq!(actual.descriptors, BTreeMap::from([((Family::V4, 9), descriptor)]));
        assert_eq!(actual.infos, BTreeMap::from([((Family::V4, 9), info)]));
        assert_eq!(
            actual.backends,
            BTreeMap::from([
                ((Family::V4, 5), BackendEntry::V4(backend)),
                ((Family::V6, 6), BackendEntry::V6(v6)),
            ])
        );
        assert_eq!(actual.addresses.len(), 2);
        let range = BlockRange { first: 3, order: 0 };
        assert_eq!(actual.tables.get(range), Some(&[block][..]));
        assert_eq!(maps.stats(Family::V4, 9).unwrap(), lbxdp_common::FrontendStats::default());
        assert!(maps.counters().unwrap().values().all(|count| *count == 0));
        assert!(maps.drops().unwrap().values().all(|count| *count == 0));

        // The command line reads the same, and can write nothing.
        let mut reader = PinnedMaps::open(&lab.pins(), Access::ReadOnly).unwrap();
        assert_eq!(reader.read().unwrap(), actual);
        for op in &ops {
            assert_eq!(reader.apply(std::slice::from_ref(op)).0, 0, "{op:?}");
        }

        // The first failure stops: nothing is published before its table.
        let far = MapOp::WriteTable { first_block: u32::MAX, table: table_of(7) };
        let (done, error) = maps.apply(&[far, MapOp::InsertFrontend { addr: addr(2), id: 10 }]);
        assert_eq!(done, 0);
        assert_eq!(error.unwrap().map, "tables");

        let unused = Backend { addr: [0; 4], snat_addr: [0; 4], port: 0, flags: 0, hop: 0 };
        let unused6 = Backend { addr: [0; 16], snat_addr: [0; 16], port: 0, flags: 0, hop: 0 };
        let undo = vec![
            MapOp::RemoveAddress { addr: addr(1).addr },
            MapOp::RemoveAddress { addr: "2001:db8::1".parse().unwrap() },
            MapOp::RemoveFrontend { addr: addr(1) },
            MapOp::SetInfo { family: Family::V4, id: 9, info: Box::new(FrontendInfo::UNUSED) },
            MapOp::SetDescriptor { family: Family::V4, id: 9, descriptor: Descriptor::default() },
            MapOp::WriteTable { first_block: 3, table: table_of(0) },
            MapOp::SetBackend { id: 5, backend: BackendEntry::V4(unused) },
            MapOp::SetBackend { id: 6, backend: BackendEntry::V6(unused6) },
        ];
        for _ in 0..2 {
            let (done, error) = maps.apply(&undo);
            assert!(done == undo.len() && error.is_none(), "{error:?}");
        }
        assert_eq!(maps.read().unwrap(), empty);
    });
}

#[test]
fn live_flows_hold_their_addresses() {
    let lab = Lab::new("flows");
    lab.on_node(|| {
        drop(lab.load());
        let flows = lab.flows();
        let now = sys::coarse_ns();
        let entries = [
            flow([198, 51, 100, 1], [10, 0, 0, 1], now, false),
            flow([198, 51, 100, 2], [10, 0, 0, 2], now, true),
            flow([198, 51, 100, 3], [10, 0, 0, 3], 0, false),
        ];
        for entry in entries {
            let FlowEntry::V4(key, value) = entry else { unreachable!() };
            flows.insert(&key, &value, IfThere::Replace).unwrap();
        }
        let maps = PinnedMaps::open(&lab.pins(), Access::ReadOnly).unwrap();
        assert_eq!(maps.flows().unwrap().count(), 3);
        let held: Vec<_> = maps.flow_addresses().unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(held, ["10.0.0.1", "10.0.0.2", "198.51.100.1", "198.51.100.2"]);

        // More than one batch.
        for port in 0..10_000 {
            let FlowEntry::V4(mut key, value) = entries[0] else { unreachable!() };
            key.src_port = port;
            flows.insert(&key, &value, IfThere::Replace).unwrap();
        }
        assert_eq!(maps.flows().unwrap().count(), 10_002);
    });
}

/// Prints how long each part takes: the agent does nothing else meanwhile.
#[test]
fn a_full_table_of_udp_flows_is_swept() {
    let lab = Lab::new("sweep");
    lab.on_node(|| {
        drop(lab.load());
        let flows = lab.flows();
        let (service, pod) = ([198, 51, 100, 1], [10, 0, 0, 1]);
        let FlowEntry::V4(key, value) = flow(service, pod, sys::coarse_ns(), false) else {
            unreachable!()
        };
        for number in 0..MAX_FLOWS as u32 {
            let [_, a, b, c] = number.to_be_bytes();
            // One in a thousand goes to a pod that does not serve.
            let dst = if number % 1_000 == 0 { [10, 0, 0, 2] } else { pod };
            let key = FlowKey { src: [203, a, b, c], protocol: 17, ..key };
            let entry = Flow { src: key.src, dst, ..value };
            flows.insert(&key, &entry, IfThere::Replace).unwrap();
        }
        let mut desired = Desired::default();
        // As many frontends as a large cluster has.
        for number in 0..10_000_u32 {
            let [_, _, a, b] = number.to_be_bytes();
            let name = ServicePortName {
                namespace: "default".into(),
                service: format!("service-{number}").into(),
                port: "dns".into(),
            };
            let serving = Endpoints::Serve([(pod, 2).into()].into());
            let frontend = Frontend::new(FrontendKind::ClusterIp, name, serving.clone(), serving);
            let addr = if number == 0 { service } else { [10, 96, a, b] };
            let addr = FrontendAddr { addr: addr.into(), port: 2, protocol: Protocol::Udp };
            desired.frontends.insert(addr, frontend);
        }

        let mut maps = PinnedMaps::open(&lab.pins(), Access::ReadWrite).unwrap();
        let start = Instant::now();
        let read = maps.udp_flows().unwrap();
        let reading = start.elapsed();
        assert!(read.len() > MAX_FLOWS / 2, "{}", read.len());
        let stale = Serving::of(&desired).stale(read.iter().copied());
        let comparing = start.elapsed() - reading;
        assert!(stale.len() > 100, "{}", stale.len());
        for flow in &stale {
            assert!(maps.end_half(flow).unwrap(), "{flow:?}");
        }
        let removing = start.elapsed() - reading - comparing;
        println!("{} read in {reading:?}, compared in {comparing:?}", read.len());
        println!("{} ended in {removing:?}", stale.len());
        assert_eq!(maps.udp_flows().unwrap().len(), read.len() - stale.len());
        assert!(!maps.end_half(&stale[0]).unwrap(), "it is gone already");
    });
}

/// Prints what a look costs, and how full the kernel lets the table become.
#[test]
fn how_full_maps_are_is_known_from_a_sample() {
    let lab = Lab::new("pressure");
    lab.on_node(|| {
        drop(lab.load());
        let now = sys::coarse_ns();
        let used = |name: &str| {
            let start = Instant::now();
            let rooms = pressure::sampled(&lab.pins(), now).unwrap();
            let room = rooms.into_iter().find(|room| room.map == name).unwrap();
            println!("{} of {}: {:?}", room.used, room.map, start.elapsed());
            room.used
        };
        for name in ["addresses_v4", "flows_v4", "flows_v6", "sockets_v4", "sockets_v6", "affinity"]
        {
            assert_eq!(used(name), 0, "{name}");
        }

        let mut maps = PinnedMaps::open(&lab.pins(), Access::ReadWrite).unwrap();
        for number in 0..1_000_u32 {
            let [_, _, a, b] = number.to_be_bytes();
            let addr = IpAddr::from([10, 96, a, b]);
            let op =
                MapOp::SetAddress { addr, flags: AddressFlags { flags: AddressFlags::SERVICE } };
            assert!(maps.apply(&[op]).1.is_none());
        }
        assert_eq!(used("addresses_v4"), 1_000, "few are counted one by one");

        let flows = lab.flows();
        let FlowEntry::V4(key, value) = flow([198, 51, 100, 1], [10, 0, 0, 1], now, false) else {
            unreachable!()
        };
        let mut written = 0_u32;
        for target in [1_000, 30_000, 120_000, MAX_FLOWS as u32] {
            for number in written..target {
                let [_, a, b, c] = number.to_be_bytes();
                // Every other one is over.
                let last_seen = if number % 2 == 0 { now } else { 0 };
                let key = FlowKey { src: [203, a, b, c], ..key };
                flows.insert(&key, &Flow { last_seen, ..value }, IfThere::Replace).unwrap();
            }
            written = target;
            let read = maps.flows().unwrap().count();
            let live = maps.flow_counts(now).unwrap().own();
            println!("{written} written, {read} there, {live} of them live");
            let estimate = used("flows_v4");
            // Four standard errors.
            let error = if read <= 2_048 { 0.0 } else { 0.1 * live as f64 };
            assert!((estimate as f64 - live as f64).abs() <= error, "{estimate} of {live}");
        }
    });
}
