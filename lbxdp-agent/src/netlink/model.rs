//! Links, addresses, neighbours, default routes and whether rules choose routes, from netlink messages.
//! Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use netlink_packet_route::AddressFamily;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    AfSpecInet, AfSpecInet6, AfSpecUnspec, InfoData, InfoVlan, LinkAttribute, LinkFlags, LinkInfo,
    LinkLayerType, LinkMessage, LinkXdp, VlanProtocol,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteType};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};

use crate::model::Family;

/// An 802.1Q or 802.1ad tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vlan {
    /// VLAN id.
    pub id: u16,
    /// Whether it is a service tag (802.1ad).
    pub service: bool,
}

/// An XDP program on a device, whoever put it there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XdpAttachment {
    /// Id of the program; one of them when several modes are in use.
    pub prog_id: u32,
}

/// A network device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Interface index.
    pub ifindex: u32,
    /// Name.
    pub name: String,
    /// Kind of a virtual device (`veth`, `vlan`, `vxlan`, `bridge`, ...).
    pub kind: Option<String>,
    /// Kind of the device that this one is a port of (`bridge`, `bond`, `vrf`, ...).
    pub port_of: Option<String>,
    /// Hardware address of an Ethernet device.
    pub mac: Option<[u8; 6]>,
    /// Largest packet.
    pub mtu: u32,
    /// Largest IPv6 packet; zero where IPv6 is off.
    pub mtu_v6: u32,
    /// Whether IPv4 packets that come in by it are forwarded.
    pub forwards_v4: bool,
    /// Whether IPv6 packets that come in by it are forwarded.
    pub forwards_v6: bool,
    /// Whether frames have Ethernet headers.
    pub ethernet: bool,
    /// Whether it is a loopback device.
    pub loopback: bool,
    /// Whether it is administratively up.
    pub up: bool,
    /// Whether frames would leave by it: there is a carrier.
    pub carrier: bool,
    /// The device below this one, when in the same network namespace.
    pub parent: Option<u32>,
    /// The tag of a VLAN device.
    pub vlan: Option<Vlan>,
    /// Addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// Whether a default route of the main table leaves through it.
    pub default_route: bool,
    /// XDP program on it.
    pub xdp: Option<XdpAttachment>,
    /// XDP features (`netdev` family); `None` before 6.3.
    pub xdp_features: Option<u64>,
}

/// What is known of this network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Network {
    /// Devices by interface index.
    pub links: BTreeMap<u32, Link>,
    /// Changes when a route lookup may give another answer than before.
    pub routes_version: u64,
    /// Families whose routes depend on more than the destination, by rules (`ip rule`).
    pub by_rule: BTreeSet<Family>,
}

/// A neighbour whose link-layer address is known (`NUD_VALID`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Its link-layer address.
    pub mac: [u8; 6],
    /// Nobody has asked for a while whether that is so still.
    pub is_stale: bool,
}

/// Neighbours by interface index and address.
pub type Neighbours = BTreeMap<(u32, IpAddr), Neighbour>;

impl Network {
    /// The device of this name.
    pub fn by_name(&self, name: &str) -> Option<&Link> {
        self.links.values().find(|link| link.name == name)
    }

    /// The addresses of all devices, loopback and link-local ones left out.
    pub fn addresses(&self) -> BTreeSet<IpAddr> {
        self.links
            .values()
            .filter(|link| !link.loopback)
            .flat_map(|link| &link.addresses)
            .filter(|addr| match addr {
                IpAddr::V4(addr) => !addr.is_loopback() && !addr.is_link_local(),
                IpAddr::V6(addr) => !addr.is_loopback() && !addr.is_unicast_link_local(),
            })
            .copied()
            .collect()
    }
}

/// Takes messages in.
#[derive(Debug, Default)]
pub(super) struct State {
    links: BTreeMap<u32, Link>,
    addresses: BTreeSet<(u32, IpAddr)>,
    default_routes: BTreeSet<u32>,
    features: Option<BTreeMap<u32, u64>>,
    neighbours: Arc<Neighbours>,
    by_rule: BTreeSet<Family>,
    routes_version: u64,
    /// Default routes must be listed again.
    pub(super) routes_stale: bool,
    /// Rules must be listed again.
    pub(super) rules_stale: bool,
    /// Links must be listed again: what they forward has changed, of which no event of theirs tells.
    pub(super) links_stale: bool,
}

impl State {
    pub(super) fn network(&self) -> Network {
        let mut links = self.links.clone();
        for link in links.values_mut() {
            link.default_route = self.default_routes.contains(&link.ifindex);
            link.xdp_features =
                self.features.as_ref().map(|all| all.get(&link.ifindex).copied().unwrap_or(0));
        }
        for (ifindex, addr) in &self.addresses {
            if let Some(link) = links.get_mut(ifindex) {
                link.addresses.insert(*addr);
            }
        }
        let by_rule = self.by_rule.clone();
        Network { links, routes_version: self.routes_version, by_rule }
    }

    /// What next hops follow from.
    pub(super) fn surroundings(&self) -> Surroundings {
        let ways = self.links.values().filter(|link| link.up && link.ethernet).filter_map(|link| {
            let Link { ifindex, mtu, mtu_v6, .. } = *link;
            Some((ifindex, WayOut { mac: link.mac?, mtu, mtu_v6 }))
        });
        Surroundings {
            ways: ways.collect(),
            neighbours: Arc::clone(&self.neighbours),
            routes_version: self.routes_version,
        }
    }

    /// Events were lost: anything may be different.
    pub(super) fn lost(&mut self) {
        self.routes_changed();
        self.rules_stale = true;
    }

    pub(super) fn set_neighbours(&mut self, messages: &[NeighbourMessage]) {
        self.neighbours = Arc::new(messages.iter().filter_map(neighbour_of).collect());
    }

    pub(super) fn set_rules(&mut self, messages: &[RuleMessage]) {
        let by_rule = messages.iter().filter(|rule| !is_plain(rule)).filter_map(|rule| match rule
            .header
            .family
        {
            AddressFamily::Inet => Some(Family::V4),
            AddressFamily::Inet6 => Some(Family::V6),
            _ => None,
        });
        let by_rule = by_rule.collect();
        if self.by_rule != by_rule {
            self.by_rule = by_rule;
            self.routes_version += 1;
        }
        self.rules_stale = false;
    }

    pub(super) fn set_links(&mut self, messages: &[LinkMessage]) {
        let links: BTreeMap<_, _> =
            messages.iter().filter_map(link_of).map(|link| (link.ifindex, link)).collect();
        if links != self.links {
            self.links = links;
            self.routes_changed();
        }
        self.links_stale = false;
    }

    pub(super) fn set_addresses(&mut self, messages: &[AddressMessage]) {
        let addresses: BTreeSet<_> = messages.iter().filter_map(address_of).collect();
        if addresses != self.addresses {
            self.addresses = addresses;
            self.routes_changed();
        }
    }

    pub(super) fn set_routes(&mut self, messages: &[RouteMessage]) {
        self.default_routes = messages.iter().flat_map(default_devices).collect();
        self.routes_stale = false;
    }

    pub(super) fn set_features(&mut self, features: Option<BTreeMap<u32, u64>>) {
        self.features = features;
    }

    /// Whether there is a device whose features were never read, which counts as having none.
    pub(super) fn lacks_features(&self) -> bool {
        self.features
            .as_ref()
            .is_some_and(|known| self.links.keys().any(|ifindex| !known.contains_key(ifindex)))
    }

    /// The kernel announces no removal of an IPv4 route that goes because its device or its
    /// source address went: whatever may have that effect makes the routes stale.
    fn routes_changed(&mut self) {
        self.routes_version += 1;
        self.routes_stale = true;
    }

    /// Most devices are pods': only those of default routes are worth listing routes for.
    fn device_changed(&mut self, ifindex: u32) {
        self.routes_version += 1;
        self.routes_stale |= self.default_routes.contains(&ifindex);
    }

    fn neighbour_changed(&mut self, message: &NeighbourMessage) {
        let Some(key) = neighbour_key(message) else { return };
        let neighbour = neighbour_of(message).map(|(_, neighbour)| neighbour);
        if self.neighbours.get(&key) == neighbour.as_ref() {
            return;
        }
        let neighbours = Arc::make_mut(&mut self.neighbours);
        match neighbour {
            Some(neighbour) => drop(neighbours.insert(key, neighbour)),
            None => drop(neighbours.remove(&key)),
        }
    }

    fn neighbour_removed(&mut self, message: &NeighbourMessage) {
        let key = neighbour_key(message);
        if let Some(key) = key.filter(|key| self.neighbours.contains_key(key)) {
            Arc::make_mut(&mut self.neighbours).remove(&key);
        }
    }

    pub(super) fn event(&mut self, message: &RouteNetlinkMessage) {
        match message {
            RouteNetlinkMessage::NewLink(link) => {
                let Some(link) = link_of(link) else { return };
                let (ifindex, up) = (link.ifindex, link.up);
                let before = self.links.insert(ifindex, link);
                if before.is_some_and(|before| before.up != up) {
                    self.device_changed(ifindex);
                }
            }
            RouteNetlinkMessage::DelLink(link) => {
                // A port that leaves its bridge is announced as deleted in the bridge's family.
                if link.header.interface_family != AddressFamily::Unspec {
                    return;
                }
                self.links.remove(&link.header.index);
                self.addresses.retain(|(ifindex, _)| *ifindex != link.header.index);
                self.device_changed(link.header.index);
            }
            RouteNetlinkMessage::NewAddress(address) => {
                let Some(address) = address_of(address) else { return };
                if self.addresses.insert(address) {
                    self.routes_changed();
                }
            }
            RouteNetlinkMessage::DelAddress(address) => {
                let Some(address) = address_of(address) else { return };
                if self.addresses.remove(&address) {
                    self.routes_changed();
                }
            }
            RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) => {
                self.routes_version += 1;
                self.routes_stale |= route.header.destination_prefix_length == 0;
            }
            RouteNetlinkMessage::NewRule(_) | RouteNetlinkMessage::DelRule(_) => {
                self.routes_version += 1;
                self.rules_stale = true;
            }
            RouteNetlinkMessage::NewNeighbour(message) => self.neighbour_changed(message),
            RouteNetlinkMessage::DelNeighbour(message) => self.neighbour_removed(message),
            _ => {}
        }
    }
}

/// The way out by a device that is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WayOut {
    /// The device's link-layer address.
    pub mac: [u8; 6],
    /// Largest IPv4 packet.
    pub mtu: u32,
    /// Largest IPv6 packet.
    pub mtu_v6: u32,
}

/// What next hops follow from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// Ethernet devices that are up, by interface index.
    pub ways: BTreeMap<u32, WayOut>,
    /// Neighbours that are known.
    pub neighbours: Arc<Neighbours>,
    /// As in [`Network`].
    pub routes_version: u64,
}

/// `None` for what is no neighbour of Ethernet, or is not known.
fn neighbour_of(message: &NeighbourMessage) -> Option<((u32, IpAddr), Neighbour)> {
    let is_stale = match message.header.state {
        NeighbourState::Stale => true,
        NeighbourState::Reachable
        | NeighbourState::Delay
        | NeighbourState::Probe
        | NeighbourState::Permanent
        | NeighbourState::Noarp => false,
        _ => return None,
    };
    let mac = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(bytes) => bytes.as_slice().try_into().ok(),
        _ => None,
    })?;
    Some((neighbour_key(message)?, Neighbour { mac, is_stale }))
}

fn neighbour_key(message: &NeighbourMessage) -> Option<(u32, IpAddr)> {
    let addr = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(addr)) => Some((*addr).into()),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(addr)) => Some((*addr).into()),
        _ => None,
    })?;
    Some((message.header.ifindex, addr))
}

/// Whether a rule says no more than that a table is asked for whatever comes.
fn is_plain(rule: &RuleMessage) -> bool {
    let header = &rule.header;
    let asks_nothing = header.dst_len == 0
        && header.src_len == 0
        && header.tos == 0
        && header.action == RuleAction::ToTable
        && !header.flags.contains(RuleFlags::Invert);
    asks_nothing
        && rule.attributes.iter().all(|attribute| {
            matches!(
                attribute,
                RuleAttribute::Table(_)
                    | RuleAttribute::Priority(_)
                    | RuleAttribute::Protocol(_)
                    | RuleAttribute::SuppressPrefixLen(u32::MAX)
            )
        })
}

/// `None` for messages that describe something else than a whole device: those of the bridge
/// family and the events of wireless devices.
fn link_of(message: &LinkMessage) -> Option<Link> {
    if message.header.interface_family != AddressFamily::Unspec {
        return None;
    }
    let flags = message.header.flags;
    let mut link = Link {
        ifindex: message.header.index,
        ethernet: message.header.link_layer_type == LinkLayerType::Ether,
        loopback: flags.contains(LinkFlags::Loopback),
        up: flags.contains(LinkFlags::Up),
        carrier: flags.contains(LinkFlags::LowerUp),
        ..Link::default()
    };
    let (mut parent, mut elsewhere) = (None, false);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Address(bytes) if link.ethernet => {
                link.mac = bytes.as_slice().try_into().ok();
            }
            LinkAttribute::Link(index) => parent = Some(*index),
            LinkAttribute::LinkNetNsId(_) => elsewhere = true,
            LinkAttribute::LinkInfo(infos) => link_infos(infos, &mut link),
            LinkAttribute::Xdp(xdp) => link.xdp = xdp_of(xdp),
            LinkAttribute::AfSpecUnspec(specs) => {
                specs.iter().for_each(|spec| family_settings(spec, &mut link));
            }
            _ => {}
        }
    }
    if link.name.is_empty() || link.mtu == 0 {
        return None;
    }
    // A veth names its peer here, and some devices name themselves.
    let below = !elsewhere && link.kind.as_deref() != Some("veth");
    link.parent = parent.filter(|parent| below && *parent != 0 && *parent != link.ifindex);
    Some(link)
}

/// What a device is to do with packets of one family.
fn family_settings(spec: &AfSpecUnspec, link: &mut Link) {
    match spec {
        AfSpecUnspec::Inet(settings) => {
            for setting in settings {
                if let AfSpecInet::DevConf(settings) = setting {
                    link.forwards_v4 = settings.forwarding != 0;
                }
            }
        }
        AfSpecUnspec::Inet6(settings) => {
            for setting in settings {
                if let AfSpecInet6::DevConf(settings) = setting {
                    link.forwards_v6 = settings.forwarding != 0;
                    link.mtu_v6 = u32::try_from(settings.mtu6).unwrap_or_default();
                }
            }
        }
        _ => {}
    }
}

fn link_infos(infos: &[LinkInfo], link: &mut Link) {
    for info in infos {
        match info {
            LinkInfo::Kind(kind) => link.kind = Some(kind.to_string()),
            LinkInfo::PortKind(kind) => link.port_of = Some(kind.to_string()),
            LinkInfo::Data(InfoData::Vlan(attributes)) => {
                let mut vlan = Vlan { id: 0, service: false };
                for attribute in attributes {
                    match attribute {
                        InfoVlan::Id(id) => vlan.id = *id,
                        InfoVlan::Protocol(protocol) => {
                            vlan.service = *protocol == VlanProtocol::Ieee8021Ad;
                        }
                        _ => {}
                    }
                }
                link.vlan = Some(vlan);
            }
            _ => {}
        }
    }
}

fn xdp_of(attributes: &[LinkXdp]) -> Option<XdpAttachment> {
    attributes.iter().find_map(|attribute| match attribute {
        LinkXdp::ProgId(prog_id)
        | LinkXdp::DrvProgId(prog_id)
        | LinkXdp::SkbProgId(prog_id)
        | LinkXdp::HwProgId(prog_id)
            if *prog_id != 0 =>
        {
            Some(XdpAttachment { prog_id: *prog_id })
        }
        _ => None,
    })
}

fn address_of(message: &AddressMessage) -> Option<(u32, IpAddr)> {
    let (mut local, mut address) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(addr) => local = Some(*addr),
            AddressAttribute::Address(addr) => address = Some(*addr),
            _ => {}
        }
    }
    // On a point-to-point device, `Address` is the peer's.
    Some((message.header.index, local.or(address)?))
}

/// The devices of a default route; none for any other route.
fn default_devices(route: &RouteMessage) -> Vec<u32> {
    if route.header.destination_prefix_length != 0 || route.header.kind != RouteType::Unicast {
        return Vec::new();
    }
    let (mut table, mut devices) = (u32::from(route.header.table), Vec::new());
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Oif(ifindex) => devices.push(*ifindex),
            RouteAttribute::MultiPath(hops) => {
                devices.extend(hops.iter().map(|hop| hop.interface_index));
            }
            _ => {}
        }
    }
    if table != u32::from(netlink_packet_route::route::RouteHeader::RT_TABLE_MAIN) {
        return Vec::new();
    }
    devices
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use netlink_packet_route::route::RouteAddress;

    use super::*;

    fn link(ifindex: u32, name: &str) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.index = ifindex;
        message.header.link_layer_type = LinkLayerType::Ether;
        message.attributes =
            vec![LinkAttribute::IfName(name.to_owned()), LinkAttribute::Mtu(1_500)];
        message
    }

    fn address(ifindex: u32, addr: [u8; 4]) -> AddressMessage {
        let mut message = AddressMessage::default();
        message.header.index = ifindex;
        message.attributes = vec![AddressAttribute::Local(Ipv4Addr::from(addr).into())];
        message
    }

    fn default_route(attributes: Vec<RouteAttribute>) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.table = 254;
        message.header.kind = RouteType::Unicast;
        message.attributes = attributes;
        message
    }

    #[test]
    fn events_change_links_and_addresses() {
        let mut state = State::default();
        state.event(&RouteNetlinkMessage::NewLink(link(2, "eth0")));
        state.event(&RouteNetlinkMessage::NewAddress(address(2, [192, 0, 2, 1])));
        let network = state.network();
        assert_eq!(network.by_name("eth0").unwrap().addresses, network.addresses());
        assert_eq!(network.addresses(), [IpAddr::from([192, 0, 2, 1])].into());

        state.event(&RouteNetlinkMessage::DelLink(link(2, "eth0")));
        assert_eq!(state.network().links, BTreeMap::new());
    }

    #[test]
    fn leaving_a_bridge_is_not_the_end_of_a_device() {
        let mut state = State::default();
        state.set_links(&[link(2, "eth0")]);
        let mut message = link(2, "eth0");
        message.header.interface_family = AddressFamily::Bridge;
        state.event(&RouteNetlinkMessage::DelLink(message));
        assert!(state.network().by_name("eth0").is_some());
    }

    #[test]
    fn a_lost_address_makes_the_routes_stale() {
        let mut state = State::default();
        state.set_addresses(&[address(2, [192, 0, 2, 1])]);
        state.set_routes(&[]);
        let version = state.network().routes_version;
        state.event(&RouteNetlinkMessage::DelAddress(address(2, [192, 0, 2, 1])));
        assert!(state.routes_stale);
        assert!(state.network().routes_version > version);
    }

    #[test]
    fn a_repeated_message_changes_nothing() {
        let mut state = State::default();
        state.event(&RouteNetlinkMessage::NewLink(link(2, "eth0")));
        state.event(&RouteNetlinkMessage::NewAddress(address(2, [192, 0, 2, 1])));
        let before = state.network();
        state.event(&RouteNetlinkMessage::NewLink(link(2, "eth0")));
        state.event(&RouteNetlinkMessage::NewAddress(address(2, [192, 0, 2, 1])));
        assert_eq!(state.network(), before);
    }

    #[test]
    fn default_routes_are_those_of_the_main_table() {
        let oif = || vec![RouteAttribute::Oif(2)];
        assert_eq!(default_devices(&default_route(oif())), [2]);
        let mut other_table = default_route(oif());
        other_table.header.table = 100;
        assert_eq!(default_devices(&other_table), [0_u32; 0]);
        let mut prefix = default_route(oif());
        prefix.header.destination_prefix_length = 24;
        prefix
            .attributes
            .push(RouteAttribute::Destination(RouteAddress::Inet(Ipv4Addr::new(10, 0, 0, 0))));
        assert_eq!(default_devices(&prefix), [0_u32; 0]);
        let mut refused = default_route(Vec::new());
        refused.header.kind = RouteType::Unreachable;
        assert_eq!(default_devices(&refused), [0_u32; 0]);
    }

    fn neighbour(state: NeighbourState, mac: [u8; 6]) -> NeighbourMessage {
        let mut message = NeighbourMessage::default();
        message.header.ifindex = 2;
        message.header.state = state;
        let addr = Ipv4Addr::new(192, 0, 2, 9);
        message.attributes = vec![
            NeighbourAttribute::Destination(NeighbourAddress::Inet(addr)),
            NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
        ];
        message
    }

    #[test]
    fn neighbours_are_known_while_the_kernel_would_send_to_them() {
        use NeighbourState::{
            Delay, Failed, Incomplete, Noarp, Permanent, Probe, Reachable, Stale,
        };
        let mut state = State::default();
        let key = (2, IpAddr::from([192, 0, 2, 9]));
        for (last, nud) in (1..).zip([Reachable, Stale, Delay, Probe, Permanent, Noarp]) {
            let mac = [2, 0, 0, 0, 0, last];
            state.event(&RouteNetlinkMessage::NewNeighbour(neighbour(nud, mac)));
            let expected = Neighbour { mac, is_stale: nud == Stale };
            assert_eq!(state.surroundings().neighbours.get(&key), Some(&expected), "{nud:?}");
        }
        for nud in [Failed, Incomplete] {
            state.event(&RouteNetlinkMessage::NewNeighbour(neighbour(Permanent, [2; 6])));
            state.event(&RouteNetlinkMessage::NewNeighbour(neighbour(nud, [2; 6])));
            assert!(state.surroundings().neighbours.is_empty(), "{nud:?}");
        }
        state.event(&RouteNetlinkMessage::NewNeighbour(neighbour(Permanent, [2; 6])));
        // As it was when its device went.
        state.event(&RouteNetlinkMessage::DelNeighbour(neighbour(Permanent, [2; 6])));
        assert!(state.surroundings().neighbours.is_empty());
    }

    #[test]
    fn a_rule_that_looks_at_packets_makes_routes_depend_on_them() {
        let mut plain = RuleMessage::default();
        plain.header.family = AddressFamily::Inet6;
        plain.header.action = RuleAction::ToTable;
        plain.attributes = vec![
            RuleAttribute::Table(254),
            RuleAttribute::SuppressPrefixLen(u32::MAX),
            RuleAttribute::Priority(32_766),
        ];
        let mut state = State::default();
        state.set_rules(std::slice::from_ref(&plain));
        let before = state.network();
        assert_eq!(before.by_rule, BTreeSet::new());

        let mut marked = plain.clone();
        marked.attributes.push(RuleAttribute::FwMark(1));
        let mut from = plain.clone();
        from.header.src_len = 32;
        let mut inverted = plain.clone();
        inverted.header.flags = RuleFlags::Invert;
        let mut refusing = plain.clone();
        refusing.header.action = RuleAction::Prohibit;
        for rule in [marked, from, inverted, refusing] {
            state.set_rules(&[plain.clone(), rule.clone()]);
            let network = state.network();
            assert_eq!(network.by_rule, [Family::V6].into(), "{rule:?}");
            assert_ne!(network.routes_version, before.routes_version);
        }
        state.event(&RouteNetlinkMessage::DelRule(plain));
        assert!(state.rules_stale);
    }
}
