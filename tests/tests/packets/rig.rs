//! The programs, loaded into the kernel with maps of their own, in a network namespace of their
//! own: bytes in, verdict and bytes out, and every counter that moved.
//!
//! The namespace is a node with two devices. Behind `n0` is the client and one remote network,
//! behind `n1` another remote network; all neighbours are permanent. Pods are local.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsFd as _,
    process::Command,
};

use crate::runner::Runner;
use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{
        Array, HashMap, MapData, PerCpuArray,
        lpm_trie::{Key, LpmTrie},
    },
    programs::{ProgramError, SchedClassifier, TestRunOptions, Xdp, XdpMode},
};
use lbxdp_agent::{
    apply::{FlowEntry, FlowTable, IfThere},
    attach::patiently,
    index::range,
    service_cidrs::ServiceCidrs,
    sys::Access,
};
use lbxdp_common::{
    AddressFlags, Affinity, AffinityKey, Announced, AnnouncedKey, Backend, Counter, Descriptor,
    Device, DropReason, Flow, FlowKey, FrontendKey, FrontendStats, Hop, MemberKey, Mode, Octets,
    PortShare, RangeKey, TABLE_BLOCK, TableBlock, TablePolicy, TableRef, Watch,
};
use nix::sched::{CloneFlags, unshare};

/// Sets of a flow table for a few thousand flows, which is read and changed in much less than the second
/// by which ages are compared.
const FEW_SETS: usize = 1_024;

/// XDP's verdicts (`enum xdp_action`).
pub const XDP_DROP: u32 = 1;
pub const XDP_PASS: u32 = 2;
pub const XDP_TX: u32 = 3;
pub const XDP_REDIRECT: u32 = 4;
/// tc's verdicts (`enum tcx_action_base`).
pub const TCX_NEXT: u32 = u32::MAX;
pub const TCX_DROP: u32 = 2;
pub const TCX_REDIRECT: u32 = 7;

/// Hardware addresses of the node's devices and of everybody behind them.
pub const N0: [u8; 6] = [2, 0, 0, 0, 0, 0x10];
pub const N1: [u8; 6] = [2, 0, 0, 0, 0, 0x11];
pub const CLIENT: [u8; 6] = [2, 0, 0, 0, 0, 0xc1];
pub const PEER0: [u8; 6] = [2, 0, 0, 0, 0, 0xb0];
pub const PEER1: [u8; 6] = [2, 0, 0, 0, 0, 0xb1];

/// `struct __sk_buff`: ifindex is its 11th word, gso_segs the 42nd, gso_size the 45th.
const SKB_WORDS: usize = 48;
const SKB_IFINDEX: usize = 10;
const SKB_GSO_SEGS: usize = 41;
const SKB_GSO_SIZE: usize = 44;

/// An entry of a flow table.
pub type Entry<A> = (FlowKey<A>, Flow<A>);

/// One packet's fate.
#[derive(Debug, PartialEq, Eq)]
pub struct Fate {
    /// The program's verdict.
    pub verdict: u32,
    /// The packet as the program left it.
    pub bytes: Vec<u8>,
}

/// What moved since the last look: each reason and counter, and by how much.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Moved(pub Vec<(&'static str, u64)>);

/// A node.
pub struct Rig {
    ebpf: Ebpf,
    pub n0: u32,
    pub n1: u32,
    next_frontend: u32,
    next_backend: u32,
    next_block: u32,
    seen: Vec<u64>,
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().expect("iproute2");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

fn mac(octets: [u8; 6]) -> String {
    octets.map(|octet| format!("{octet:02x}")).join(":")
}

fn ifindex(name: &str) -> u32 {
    nix::net::if_::if_nametoindex(name).expect("made above")
}

impl Rig {
    /// A node with the usual SNAT ports.
    pub fn new() -> Self {
        Self::with_snat_ports(61_000, 65_535)
    }

    /// A node with these SNAT ports.
    pub fn with_snat_ports(low: u16, high: u16) -> Self {
        Self::build(low, high, FEW_SETS, ServiceCidrs::default())
    }

    /// A node with so few sets of flows, and these SNAT ports.
    pub fn with_flow_sets(sets: usize, (low, high): (u16, u16)) -> Self {
        Self::build(low, high, sets, ServiceCidrs::default())
    }

    /// A node that knows these ranges to be the Services'.
    pub fn with_service_cidrs(ranges: &[&str]) -> Self {
        let ranges: Vec<_> = ranges.iter().map(|text| range(text).expect("a range")).collect();
        Self::build(61_000, 65_535, FEW_SETS, ServiceCidrs::new(&ranges).expect("room"))
    }

    fn build(low: u16, high: u16, flow_sets: usize, service_cidrs: ServiceCidrs) -> Self {
        let flow_sets = u32::try_from(flow_sets).expect("few");
        unshare(CloneFlags::CLONE_NEWNET).expect("the packet tests need CAP_SYS_ADMIN");
        let sysctl = |path: &str, value: &str| {
            std::fs::write(format!("/proc/sys/net/{path}"), value)
                .unwrap_or_else(|error| panic!("sysctl {path}: {error}"));
        };
        sysctl("ipv6/conf/default/accept_dad", "0");
        ip("link set lo up");
        for (near, far, near_mac) in [("n0", "c0", N0), ("n1", "b1", N1)] {
            ip(&format!("link add {near} address {} type veth peer name {far}", mac(near_mac)));
            ip(&format!("link set {near} up"));
            ip(&format!("link set {far} up"));
        }
        sysctl("ipv4/ip_forward", "1");
        sysctl("ipv6/conf/all/forwarding", "1");
        for (address, device) in [
            ("192.0.2.1/24", "n0"),
            ("2001:db8:1::1/64", "n0"),
            ("198.51.100.1/24", "n1"),
            ("2001:db8:2::1/64", "n1"),
        ] {
            let nodad = if address.contains(':') { " nodad" } else { "" };
            ip(&format!("address add {address} dev {device}{nodad}"));
        }
        for (neighbour, lladdr, device) in [
            ("192.0.2.7", CLIENT, "n0"),
            ("2001:db8:1::7", CLIENT, "n0"),
            ("192.0.2.8", PEER0, "n0"),
            ("2001:db8:1::8", PEER0, "n0"),
            ("198.51.100.8", PEER1, "n1"),
            ("2001:db8:2::8", PEER1, "n1"),
        ] {
            ip(&format!(
                "neighbour add {neighbour} lladdr {} dev {device} nud permanent",
                mac(lladdr)
            ));
        }

        let object = lbxdp_agent::object::bytes().expect("cargo xtask build-ebpf");
        let mut ebpf = EbpfLoader::new()
            .map_max_entries("flows_v4", flow_sets)
            .map_max_entries("flows_v6", flow_sets)
            .override_global("FLOW_SETS", &flow_sets, true)
            .override_global("SNAT_PORT_LO", &u32::from(low), true)
            .override_global("SNAT_PORT_HI", &u32::from(high), true)
            .override_global("SERVICE_CIDRS_V4", service_cidrs.v4.as_slice(), true)
            .override_global("SERVICE_CIDRS_V6", service_cidrs.v6.as_slice(), true)
            .override_global("AYA_LOG_LEVEL", &0_u8, false)
            .load(&object)
            .expect("the object loads");
        let xdp: &mut Xdp = program(&mut ebpf, "lbxdp_xdp_frags");
        load(|| xdp.load());
        // A test run on a device wants its receive queue registered, which attaching does.
        xdp.attach("n0", XdpMode::Driver).expect("veth has native XDP");
        for name in ["lbxdp_ingress", "lbxdp_egress", "lbxdp_pod_ingress", "lbxdp_pod_egress"] {
            let classifier: &mut SchedClassifier = program(&mut ebpf, name);
            load(|| classifier.load());
        }
        let (n0, n1) = (ifindex("n0"), ifindex("n1"));
        let mut rig = Self {
            ebpf,
            n0,
            n1,
            next_frontend: 1,
            next_backend: 1,
            next_block: 1,
            seen: Vec::new(),
        };
        let flags = Device::XMIT | Device::TX;
        rig.device(n0, Device { mac: N0, flags, ..Device::default() });
        rig.device(n1, Device { mac: N1, flags, ..Device::default() });
        rig.seen = rig.counts();
        rig
    }

    fn hash<K: Pod, V: Pod>(&mut self, name: &str) -> HashMap<&mut MapData, K, V> {
        let map = self.ebpf.map_mut(name).unwrap_or_else(|| panic!("no map {name}"));
        HashMap::try_from(map).expect("key and value of the program's own types")
    }

    fn array<V: Pod>(&mut self, name: &str) -> Array<&mut MapData, V> {
        let map = self.ebpf.map_mut(name).unwrap_or_else(|| panic!("no map {name}"));
        Array::try_from(map).expect("value of the program's own type")
    }

    /// Says what a device is.
    pub fn device(&mut self, ifindex: u32, device: Device) {
        self.hash::<u32, _>("devices").insert(ifindex, device, 0).expect("room");
        self.array("near_devices").set(ifindex, device, 0).expect("in range");
    }

    /// Says what an address is.
    pub fn address(&mut self, addr: IpAddr, flags: u32) {
        let flags = AddressFlags { flags };
        match addr {
            IpAddr::V4(addr) => {
                self.hash::<[u8; 4], _>("addresses_v4")
                    .insert(addr.octets(), flags, 0)
                    .expect("room");
            }
            IpAddr::V6(addr) => {
                self.hash::<[u8; 16], _>("addresses_v6")
                    .insert(addr.octets(), flags, 0)
                    .expect("room");
            }
        }
    }

    /// A backend on this node.
    pub fn local(&mut self, addr: SocketAddr) -> u32 {
        self.address(addr.ip(), AddressFlags::BACKEND);
        self.backend(addr, None)
    }

    /// A backend elsewhere, reached from `source`.
    pub fn remote(&mut self, addr: SocketAddr, source: IpAddr) -> u32 {
        self.address(source, AddressFlags::NODE);
        self.backend(addr, Some(source))
    }

    fn backend(&mut self, addr: SocketAddr, source: Option<IpAddr>) -> u32 {
        let id = self.next_backend;
        self.next_backend += 1;
        let port = addr.port();
        match addr.ip() {
            IpAddr::V4(addr) => {
                let snat = match source {
                    Some(IpAddr::V4(source)) => source,
                    _ => Ipv4Addr::UNSPECIFIED,
                };
                let flags = if source.is_none() { Backend::<[u8; 4]>::LOCAL } else { 0 };
                let entry =
                    Backend { addr: addr.octets(), snat_addr: snat.octets(), port, flags, hop: 0 };
                self.array("backends_v4").set(id, entry, 0).expect("room");
            }
            IpAddr::V6(addr) => {
                let snat = match source {
                    Some(IpAddr::V6(source)) => source,
                    _ => Ipv6Addr::UNSPECIFIED,
                };
                let flags = if source.is_none() { Backend::<[u8; 16]>::LOCAL } else { 0 };
                let entry =
                    Backend { addr: addr.octets(), snat_addr: snat.octets(), port, flags, hop: 0 };
                self.array("backends_v6").set(id, entry, 0).expect("room");
            }
        }
        id
    }

    /// Has packets to a backend leave by a next hop.
    pub fn lead(&mut self, family: IpAddr, id: u32, hop: u32) {
        if family.is_ipv4() {
            self.change_backend::<[u8; 4]>("backends_v4", id, |backend| backend.hop = hop);
        } else {
            self.change_backend::<[u8; 16]>("backends_v6", id, |backend| backend.hop = hop);
        }
    }

    /// Says what a next hop is.
    pub fn set_hop(&mut self, id: u32, hop: Hop) {
        self.array("hops").set(id, hop, 0).expect("in range");
    }

    /// Announces an address by a device.
    pub fn announce(&mut self, addr: IpAddr, ifindex: u32) {
        self.set_announced(addr, ifindex, Announced { is_answered: 1, ..Announced::default() });
    }

    /// What becomes of packets for an address that come in by a device.
    pub fn set_announced(&mut self, addr: IpAddr, ifindex: u32, announced: Announced) {
        match addr {
            IpAddr::V4(addr) => {
                let key = AnnouncedKey { addr: addr.octets(), ifindex };
                self.hash("announced_v4").insert(key, announced, 0).expect("room");
            }
            IpAddr::V6(addr) => {
                let key = AnnouncedKey { addr: addr.octets(), ifindex };
                self.hash("announced_v6").insert(key, announced, 0).expect("room");
            }
        }
    }

    /// Ends that.
    pub fn withdraw(&mut self, addr: IpAddr, ifindex: u32) {
        match addr {
            IpAddr::V4(addr) => {
                let key = AnnouncedKey { addr: addr.octets(), ifindex };
                self.hash::<_, Announced>("announced_v4").remove(&key).expect("announced");
            }
            IpAddr::V6(addr) => {
                let key = AnnouncedKey { addr: addr.octets(), ifindex };
                self.hash::<_, Announced>("announced_v6").remove(&key).expect("announced");
            }
        }
    }

    /// Says until when somebody looks after what is announced.
    pub fn watch(&mut self, valid_until: u64) {
        self.array("watch").set(0, Watch { valid_until }, 0).expect("in range");
    }

    /// Says whether a port of the node's addresses is the node's alone.
    pub fn free_port(&mut self, port: u16, is_free: bool) {
        let mut ports = self.array::<u64>("free_ports");
        let (word, bit) = (u32::from(port) / 64, 1 << (port % 64));
        let before = ports.get(&word, 0).expect("in range");
        let after = if is_free { before | bit } else { before & !bit };
        ports.set(word, after, 0).expect("in range");
    }

    /// Says that no table names a backend any more.
    pub fn retire(&mut self, family: IpAddr, id: u32) {
        if family.is_ipv4() {
            self.change_backend::<[u8; 4]>("backends_v4", id, |backend| {
                backend.flags |= Backend::<[u8; 4]>::RETIRED;
            });
        } else {
            self.change_backend::<[u8; 16]>("backends_v6", id, |backend| {
                backend.flags |= Backend::<[u8; 16]>::RETIRED;
            });
        }
    }

    /// Gives a backend another port; zero makes its id unused.
    pub fn set_backend_port(&mut self, family: IpAddr, id: u32, port: u16) {
        if family.is_ipv4() {
            self.change_backend::<[u8; 4]>("backends_v4", id, |backend| backend.port = port);
        } else {
            self.change_backend::<[u8; 16]>("backends_v6", id, |backend| backend.port = port);
        }
    }

    fn change_backend<A>(&mut self, map: &str, id: u32, change: impl FnOnce(&mut Backend<A>))
    where
        Backend<A>: Pod,
    {
        let mut map = self.array::<Backend<A>>(map);
        let mut backend = map.get(&id, 0).expect("in range");
        change(&mut backend);
        map.set(id, backend, 0).expect("in range");
    }

    /// A frontend on a service address that chooses among `backends` (sixteen slots, in turn).
    pub fn frontend(&mut self, addr: SocketAddr, protocol: u8, backends: &[u32]) -> u32 {
        let block = self.next_block;
        self.next_block += 1;
        let mut slots = [TableBlock::EMPTY; TABLE_BLOCK];
        for (slot, backend) in slots.iter_mut().zip(backends.iter().cycle()) {
            *slot = *backend;
        }
        self.array("tables").set(block, TableBlock { slots }, 0).expect("room");
        self.listen(addr, protocol, TableRef::serve(block, 4))
    }

    /// What the frontend that was made last chooses from.
    pub fn last_table(&self) -> TableRef {
        TableRef::serve(self.next_block - 1, 4)
    }

    /// A frontend that has only a verdict.
    pub fn verdict(&mut self, addr: SocketAddr, protocol: u8, policy: TablePolicy) -> u32 {
        self.listen(addr, protocol, TableRef::verdict(policy))
    }

    fn listen(&mut self, addr: SocketAddr, protocol: u8, table: TableRef) -> u32 {
        let id = self.next_frontend;
        self.next_frontend += 1;
        self.describe(addr.ip(), id, table, table);
        let port = addr.port();
        match addr.ip() {
            IpAddr::V4(addr) => {
                let key = FrontendKey::new(addr.octets(), port, protocol);
                self.hash::<FrontendKey<[u8; 4]>, u32>("frontends_v4")
                    .insert(key, id, 0)
                    .expect("room");
            }
            IpAddr::V6(addr) => {
                let key = FrontendKey::new(addr.octets(), port, protocol);
                self.hash::<FrontendKey<[u8; 16]>, u32>("frontends_v6")
                    .insert(key, id, 0)
                    .expect("room");
            }
        }
        self.address(addr.ip(), AddressFlags::SERVICE);
        id
    }

    /// Publishes what a frontend chooses from.
    pub fn describe(&mut self, family: IpAddr, id: u32, external: TableRef, internal: TableRef) {
        let map = if family.is_ipv4() { "descriptors_v4" } else { "descriptors_v6" };
        let descriptor =
            Descriptor { external: external.0, internal: internal.0, ..Descriptor::default() };
        self.array(map).set(id, descriptor, 0).expect("room");
    }

    /// Changes what a frontend does with new flows.
    pub fn rule(&mut self, family: IpAddr, id: u32, change: impl FnOnce(&mut Descriptor)) {
        let map = if family.is_ipv4() { "descriptors_v4" } else { "descriptors_v6" };
        let mut descriptors = self.array::<Descriptor>(map);
        let mut descriptor = descriptors.get(&id, 0).expect("in range");
        change(&mut descriptor);
        descriptors.set(id, descriptor, 0).expect("in range");
    }

    /// Lets clients of a frontend keep their backend for `seconds`, under this id of the Service
    /// port. Its backends become members of its table.
    pub fn keep_clients(&mut self, family: IpAddr, id: u32, service: u32, seconds: u32) {
        let mut block = 0;
        self.rule(family, id, |descriptor| {
            descriptor.affinity = seconds;
            descriptor.service = service;
            block = TableRef(descriptor.external).first_block();
        });
        let TableBlock { slots } = self.array("tables").get(&block, 0).expect("in range");
        for backend in slots {
            let member = MemberKey { first_block: block, backend };
            self.hash::<MemberKey, u32>("members").insert(member, 1, 0).expect("room");
        }
    }

    /// Makes the last use of every affinity `seconds` older.
    pub fn age_affinity(&mut self, seconds: u64) {
        let mut map = self.hash::<AffinityKey, Affinity>("affinity");
        let entries: Vec<_> = map.iter().map(|entry| entry.expect("readable")).collect();
        for (key, mut entry) in entries {
            entry.last_used = entry.last_used.wrapping_sub(seconds * 1_000_000_000);
            map.insert(key, entry, 0).expect("there");
        }
    }

    /// Admits a range to a Service port, or ends that.
    pub fn range(&mut self, service: u32, (addr, len): (IpAddr, u8), admit: bool) {
        match addr {
            IpAddr::V4(addr) => self.set_range("ranges_v4", service, addr.octets(), len, admit),
            IpAddr::V6(addr) => self.set_range("ranges_v6", service, addr.octets(), len, admit),
        }
    }

    fn set_range<A>(&mut self, map: &str, service: u32, addr: A, len: u8, admit: bool)
    where
        RangeKey<A>: Pod,
    {
        let map = self.ebpf.map_mut(map).unwrap_or_else(|| panic!("no map {map}"));
        let mut ranges: LpmTrie<_, RangeKey<A>, u32> = LpmTrie::try_from(map).expect("its type");
        let bits = RangeKey::<A>::SERVICE_BITS + u32::from(len);
        let key = Key::new(bits, RangeKey { service, addr });
        if admit {
            ranges.insert(&key, 1, 0).expect("room");
        } else {
            ranges.remove(&key).expect("there");
        }
    }

    /// Empties a backend's slot.
    pub fn remove_backend(&mut self, family: IpAddr, id: u32) {
        if family.is_ipv4() {
            let addr = [0; 4];
            let unused = Backend { addr, snat_addr: addr, port: 0, flags: 0, hop: 0 };
            self.array("backends_v4").set(id, unused, 0).expect("in range");
        } else {
            let addr = [0; 16];
            let unused = Backend { addr, snat_addr: addr, port: 0, flags: 0, hop: 0 };
            self.array("backends_v6").set(id, unused, 0).expect("in range");
        }
    }

    /// The flow table of a family.
    pub fn flows<A: Octets>(&self) -> FlowTable<A> {
        let name = if A::LEN == 4 { "flows_v4" } else { "flows_v6" };
        let Some(aya::maps::Map::Array(map)) = self.ebpf.map(name) else {
            panic!("no array {name}");
        };
        let fd = map.fd().as_fd().try_clone_to_owned().expect("a descriptor");
        FlowTable::new(fd, Access::ReadWrite).expect("sets of the programs' own type")
    }

    /// Every IPv4 flow entry.
    pub fn flows_v4(&mut self) -> Vec<Entry<[u8; 4]>> {
        self.flows().read().expect("readable")
    }

    /// Every IPv6 flow entry.
    pub fn flows_v6(&mut self) -> Vec<Entry<[u8; 16]>> {
        self.flows().read().expect("readable")
    }

    /// Replaces an IPv4 flow entry.
    pub fn set_flow_v4(&mut self, key: FlowKey<[u8; 4]>, flow: Flow<[u8; 4]>) {
        self.flows().insert(&key, &flow, IfThere::Replace).expect("room");
    }

    /// Enters half a flow that has none yet.
    pub fn enter(&mut self, entry: &FlowEntry) {
        let entered = match entry {
            FlowEntry::V4(key, flow) => self.flows().insert(key, flow, IfThere::Keep),
            FlowEntry::V6(key, flow) => self.flows().insert(key, flow, IfThere::Keep),
        };
        assert!(entered.expect("room"), "{entry:?}");
    }

    /// Puts the programs into a mode.
    pub fn set_mode(&mut self, mode: Mode) {
        self.array("mode").set(0, mode as u32, 0).expect("in range");
    }

    /// Gives the programs source ports of their own.
    pub fn set_port_share(&mut self, share: PortShare) {
        self.array("port_share").set(0, share as u32, 0).expect("in range");
    }

    /// Evicts flow entries for which `which` holds, given whether the entry is a reply's.
    pub fn evict(&mut self, which: impl Fn(bool) -> bool) {
        fn of<A: Octets>(table: &FlowTable<A>, which: impl Fn(bool) -> bool) {
            for (key, flow) in table.read().expect("readable") {
                if which(flow.has(Flow::<A>::REPLY)) {
                    assert!(table.remove(&key, |_| true).expect("there"));
                }
            }
        }
        of::<[u8; 4]>(&self.flows(), &which);
        of::<[u8; 16]>(&self.flows(), &which);
    }

    /// Makes every flow's last packet `seconds` older, if need be older than the machine's clock.
    pub fn age(&mut self, seconds: u64) {
        fn of<A: Octets>(table: &FlowTable<A>, seconds: u64) {
            for (key, mut flow) in table.read().expect("readable") {
                flow.last_seen = flow.last_seen.wrapping_sub(seconds * 1_000_000_000);
                table.insert(&key, &flow, IfThere::Replace).expect("there");
            }
        }
        of::<[u8; 4]>(&self.flows(), seconds);
        of::<[u8; 16]>(&self.flows(), seconds);
    }

    /// A frontend's statistics, summed over CPUs.
    pub fn stats(&mut self, family: IpAddr, id: u32) -> FrontendStats {
        let name = if family.is_ipv4() { "stats_v4" } else { "stats_v6" };
        let map = self.ebpf.map(name).expect("there");
        let map: PerCpuArray<_, FrontendStats> = PerCpuArray::try_from(map).expect("its type");
        let mut sum = FrontendStats::default();
        for one in map.get(&id, 0).expect("in range").iter() {
            let FrontendStats { packets, bytes, reply_packets, reply_bytes } = one;
            sum.packets += packets;
            sum.bytes += bytes;
            sum.reply_packets += reply_packets;
            sum.reply_bytes += reply_bytes;
        }
        sum
    }

    fn counts(&self) -> Vec<u64> {
        let read = |name: &str, index: u32| -> u64 {
            let map = self.ebpf.map(name).expect("there");
            let map: PerCpuArray<_, u64> = PerCpuArray::try_from(map).expect("its type");
            map.get(&index, 0).expect("in range").iter().sum()
        };
        let drops = DropReason::ALL.iter().map(|reason| read("drops", *reason as u32));
        let counters = Counter::ALL.iter().map(|counter| read("counters", *counter as u32));
        drops.chain(counters).collect()
    }

    /// Everything that moved since the last call.
    pub fn moved(&mut self) -> Moved {
        let now = self.counts();
        let names = DropReason::ALL.iter().map(|reason| reason.as_str());
        let names = names.chain(Counter::ALL.iter().map(|counter| counter.as_str()));
        let deltas = now.iter().zip(&self.seen).map(|(now, before)| now - before);
        let moved = names.zip(deltas).filter(|(_, delta)| *delta > 0).collect();
        self.seen = now;
        Moved(moved)
    }

    /// Panics unless exactly these moved since the last look.
    #[track_caller]
    pub fn expect_moved(&mut self, expected: &[(&'static str, u64)]) {
        let mut expected = expected.to_vec();
        let Moved(mut moved) = self.moved();
        expected.sort_unstable();
        moved.sort_unstable();
        assert_eq!(moved, expected, "counters");
    }

    /// Runs XDP on a frame that came in by `n0`.
    pub fn xdp(&mut self, frame: &[u8]) -> Fate {
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex
        let length = u32::try_from(frame.len()).expect("short");
        let context = [0, length, 0, self.n0, 0, 0];
        let context: Vec<u8> = context.into_iter().flat_map(u32::to_ne_bytes).collect();
        run::<Xdp>(&mut self.ebpf, "lbxdp_xdp_frags", frame, &context)
    }

    /// Runs tc ingress on a frame that came in by `n0`.
    pub fn ingress(&mut self, frame: &[u8]) -> Fate {
        self.tc("lbxdp_ingress", frame, 0)
    }

    /// XDP on frames that came in by `n0`, for many of them.
    pub fn xdp_runner(&mut self) -> Runner {
        let context = vec![0, 0, 0, self.n0, 0, 0];
        let xdp: &mut Xdp = program(&mut self.ebpf, "lbxdp_xdp_frags");
        let fd = xdp.fd().expect("loaded").as_fd().try_clone_to_owned().expect("a descriptor");
        Runner::new(fd, context, true)
    }

    /// tc egress on frames that leave by `n0`, for many of them.
    pub fn egress_runner(&mut self) -> Runner {
        let mut context = vec![0; SKB_WORDS];
        context[SKB_IFINDEX] = self.n0;
        let egress: &mut SchedClassifier = program(&mut self.ebpf, "lbxdp_egress");
        let fd = egress.fd().expect("loaded").as_fd().try_clone_to_owned().expect("a descriptor");
        Runner::new(fd, context, false)
    }

    /// Runs tc ingress on packets that were merged into one.
    pub fn ingress_merged(&mut self, frame: &[u8], gso_size: u32) -> Fate {
        self.tc("lbxdp_ingress", frame, gso_size)
    }

    /// Runs tc egress on a frame that leaves by `n0`.
    pub fn egress(&mut self, frame: &[u8]) -> Fate {
        self.tc("lbxdp_egress", frame, 0)
    }

    /// Runs tc ingress of a pod's device on a frame that came in by `n0`.
    pub fn pod_ingress(&mut self, frame: &[u8]) -> Fate {
        self.tc("lbxdp_pod_ingress", frame, 0)
    }

    /// Runs tc egress of a pod's device on a frame that leaves by `n0`.
    pub fn pod_egress(&mut self, frame: &[u8]) -> Fate {
        self.tc("lbxdp_pod_egress", frame, 0)
    }

    fn tc(&mut self, name: &str, frame: &[u8], gso_size: u32) -> Fate {
        let mut context = [0_u32; SKB_WORDS];
        context[SKB_IFINDEX] = self.n0;
        context[SKB_GSO_SIZE] = gso_size;
        context[SKB_GSO_SEGS] = if gso_size == 0 { 0 } else { 2 };
        let context: Vec<u8> = context.into_iter().flat_map(u32::to_ne_bytes).collect();
        run::<SchedClassifier>(&mut self.ebpf, name, frame, &context)
    }
}

fn load(attempt: impl FnMut() -> Result<(), ProgramError>) {
    patiently(attempt).expect("the verifier accepts the program");
}

fn program<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> &'a mut P
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = aya::programs::ProgramError>,
{
    let program = ebpf.program_mut(name).unwrap_or_else(|| panic!("no program {name}"));
    program.try_into().expect("its type")
}

fn run<P>(ebpf: &mut Ebpf, name: &str, frame: &[u8], context: &[u8]) -> Fate
where
    P: for<'o> aya::programs::TestRun<
            Opts<'o> = TestRunOptions<'o>,
            Result = aya::programs::TestRunResult,
        > + 'static,
    for<'a> &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = aya::programs::ProgramError>,
{
    let mut bytes = vec![0; frame.len() + 256];
    let options = TestRunOptions {
        data_in: Some(frame),
        data_out: Some(&mut bytes),
        ctx_in: Some(context),
        ..TestRunOptions::default()
    };
    let result = program::<P>(ebpf, name).test_run(options).expect("a test run");
    let length = result.data_size_out as usize;
    bytes.truncate(length);
    Fate { verdict: result.return_value, bytes }
}
