//! Where packets to an address go.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteType, RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::request::Requests;
use crate::model::Family;

/// Routes that are remembered. With more, as in a router with the whole Internet's, each address is
/// asked for.
const MOST_PREFIXES: usize = 65_536;

/// The way to an address, as the kernel would send a packet of this node there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteSource {
    /// Preferred source address.
    pub source: IpAddr,
    /// Interface index of the outgoing device.
    pub ifindex: u32,
    /// The neighbour behind that device, where the route leads there whatever the packet is: not one
    /// of several ways, without encapsulation and with the device's own MTU.
    pub next_hop: Option<IpAddr>,
}

/// Route lookups.
///
/// Pods by the thousand are behind few routes. Two addresses with the same most specific route, of
/// whichever table, have the same routes one and all, so what the kernel has said of one holds for
/// the other.
#[derive(Debug)]
pub struct Routes {
    requests: Requests,
    prefixes: Option<Prefixes>,
    ways: HashMap<IpNet, Way>,
}

/// What addresses with the same most specific route share.
#[derive(Clone, Copy, Debug)]
struct Way {
    /// `None` if there is no way.
    leads: Option<Leads>,
    /// The source and the device that all of them have; `None` if that depends on the address.
    source: Option<(IpAddr, u32)>,
}

/// Where an entry of the routing table leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leads {
    /// To the address itself, out of this device.
    Itself(u32),
    /// To this neighbour, out of this device.
    To(IpAddr, u32),
    /// That depends on the packet.
    Anywhere,
}

impl Leads {
    fn next_hop(self, addr: IpAddr, out: u32) -> Option<IpAddr> {
        match self {
            Self::Itself(device) => (device == out).then_some(addr),
            Self::To(next_hop, device) => (device == out).then_some(next_hop),
            Self::Anywhere => None,
        }
    }
}

impl Routes {
    /// In the calling thread's network namespace. Nothing is remembered before [`Self::renew`].
    pub fn open() -> io::Result<Self> {
        Ok(Self { requests: Requests::route()?, prefixes: None, ways: HashMap::new() })
    }

    /// Forgets what was remembered, and remembers from now on. For each
    /// [`super::Network::routes_version`], with its families whose routes depend on more than the
    /// destination, of which nothing is remembered.
    pub fn renew(&mut self, by_rule: &BTreeSet<Family>) -> io::Result<()> {
        self.ways.clear();
        self.prefixes = None;
        self.prefixes = Prefixes::read(&mut self.requests, by_rule)?;
        Ok(())
    }

    /// Source, device and next hop towards `addr`; `None` when there is no route, or `addr` is this
    /// node's. The answer holds until [`super::Network::routes_version`] changes.
    pub fn route_source(&mut self, addr: IpAddr) -> io::Result<Option<RouteSource>> {
        let prefix = self.prefixes.as_ref().and_then(|prefixes| prefixes.most_specific(addr));
        let known = prefix.and_then(|prefix| self.ways.get(&prefix)).copied();
        let leads = match known {
            Some(Way { leads: None, .. }) => return Ok(None),
            Some(Way { leads: Some(leads), source: Some((source, ifindex)) }) => {
                let next_hop = leads.next_hop(addr, ifindex);
                return Ok(Some(RouteSource { source, ifindex, next_hop }));
            }
            Some(Way { leads: Some(leads), source: None }) => Some(leads),
            None => None,
        };
        let route = self.route(addr, RouteFlags::empty())?;
        let Some((source, ifindex)) = route.as_ref().and_then(source_of) else {
            if let (Some(prefix), IpAddr::V4(_)) = (prefix, addr) {
                self.ways.insert(prefix, Way { leads: None, source: None });
            }
            return Ok(None);
        };
        // What was answered is the way of one packet; the entry of the table says whether all go so.
        let leads = match leads {
            Some(leads) => leads,
            None => {
                let entry = self.route(addr, RouteFlags::FibMatch)?;
                let leads = entry.map_or(Leads::Anywhere, |entry| leads_of(&entry));
                if let Some(prefix) = prefix {
                    // An IPv6 source is chosen by the destination (RFC 6724).
                    let is_for_all = addr.is_ipv4() && leads != Leads::Anywhere;
                    let source = is_for_all.then_some((source, ifindex));
                    self.ways.insert(prefix, Way { leads: Some(leads), source });
                }
                leads
            }
        };
        Ok(Some(RouteSource { source, ifindex, next_hop: leads.next_hop(addr, ifindex) }))
    }

    fn route(&mut self, addr: IpAddr, flags: RouteFlags) -> io::Result<Option<RouteMessage>> {
        let mut message = RouteMessage::default();
        message.header.flags = flags;
        message.header.address_family = match addr {
            IpAddr::V4(_) => AddressFamily::Inet,
            IpAddr::V6(_) => AddressFamily::Inet6,
        };
        message.header.destination_prefix_length = if addr.is_ipv4() { 32 } else { 128 };
        message.attributes.push(RouteAttribute::Destination(addr.into()));
        let answers = match self.requests.ask(RouteNetlinkMessage::GetRoute(message), 0) {
            Ok(answers) => answers,
            Err(error) => {
                return match error.raw_os_error() {
                    Some(
                        libc::ENETUNREACH
                        | libc::EHOSTUNREACH
                        | libc::EACCES
                        | libc::EINVAL
                        | libc::EAFNOSUPPORT,
                    ) => Ok(None),
                    _ => Err(error),
                };
            }
        };
        Ok(answers.into_iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewRoute(route) => Some(route),
            _ => None,
        }))
    }
}

/// The destinations of the routes of all tables, of families whose routes depend on nothing else.
#[derive(Debug, Default)]
struct Prefixes {
    lengths_v4: BTreeSet<u8>,
    lengths_v6: BTreeSet<u8>,
    all: HashSet<IpNet>,
}

impl Prefixes {
    /// `None` if they are too many.
    fn read(requests: &mut Requests, by_rule: &BTreeSet<Family>) -> io::Result<Option<Self>> {
        let mut prefixes = Self::default();
        for (family, address_family) in
            [(Family::V4, AddressFamily::Inet), (Family::V6, AddressFamily::Inet6)]
        {
            if by_rule.contains(&family) {
                continue;
            }
            let mut message = RouteMessage::default();
            message.header.address_family = address_family;
            let dumped = requests.dump_each(RouteNetlinkMessage::GetRoute(message), |answer| {
                if let RouteNetlinkMessage::NewRoute(route) = answer {
                    prefixes.add(destination(&route, family));
                }
            });
            match dumped.as_ref().map_err(io::Error::raw_os_error) {
                Ok(()) | Err(Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP)) => {}
                Err(_) => dumped?,
            }
        }
        Ok((prefixes.all.len() <= MOST_PREFIXES).then_some(prefixes))
    }

    fn add(&mut self, prefix: Option<IpNet>) {
        let Some(prefix) = prefix.filter(|_| self.all.len() <= MOST_PREFIXES) else { return };
        self.lengths_mut(prefix.addr()).insert(prefix.prefix_len());
        self.all.insert(prefix.trunc());
    }

    fn lengths_mut(&mut self, addr: IpAddr) -> &mut BTreeSet<u8> {
        if addr.is_ipv4() { &mut self.lengths_v4 } else { &mut self.lengths_v6 }
    }

    /// The most specific route that an address has in any table.
    fn most_specific(&self, addr: IpAddr) -> Option<IpNet> {
        let lengths = if addr.is_ipv4() { &self.lengths_v4 } else { &self.lengths_v6 };
        let prefixes = lengths.iter().rev().filter_map(|length| IpNet::new(addr, *length).ok());
        prefixes.map(|prefix| prefix.trunc()).find(|prefix| self.all.contains(prefix))
    }
}

/// The destination of a route. `None` for something that is no destination of ours.
fn destination(route: &RouteMessage, family: Family) -> Option<IpNet> {
    let addr = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(addr)) => Some(IpAddr::from(*addr)),
        RouteAttribute::Destination(RouteAddress::Inet6(addr)) => Some(IpAddr::from(*addr)),
        _ => None,
    });
    // The default route names none.
    let unspecified = match family {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
    };
    IpNet::new(addr.unwrap_or(unspecified), route.header.destination_prefix_length).ok()
}

/// Where an entry of the routing table leads every packet.
fn leads_of(entry: &RouteMessage) -> Leads {
    let header = &entry.header;
    let is_for_some = header.tos != 0 || header.source_prefix_length != 0;
    let is_out = header.flags.intersects(RouteFlags::Dead | RouteFlags::Linkdown);
    if header.kind != RouteType::Unicast || is_for_some || is_out {
        return Leads::Anywhere;
    }
    let (mut next_hop, mut device) = (None, None);
    for attribute in &entry.attributes {
        match attribute {
            RouteAttribute::Oif(index) => device = Some(*index),
            RouteAttribute::Gateway(RouteAddress::Inet(addr))
            | RouteAttribute::Via(RouteVia::Inet(addr)) => next_hop = Some((*addr).into()),
            RouteAttribute::Gateway(RouteAddress::Inet6(addr))
            | RouteAttribute::Via(RouteVia::Inet6(addr)) => next_hop = Some((*addr).into()),
            RouteAttribute::Gateway(_)
            | RouteAttribute::Via(_)
            | RouteAttribute::MultiPath(_)
            | RouteAttribute::NhId(_)
            | RouteAttribute::Encap(_)
            | RouteAttribute::EncapType(_) => return Leads::Anywhere,
            RouteAttribute::Metrics(metrics) => {
                let is_own =
                    |metric| matches!(metric, &RouteMetric::Mtu(_) | &RouteMetric::Lock(_));
                if metrics.iter().any(is_own) {
                    return Leads::Anywhere;
                }
            }
            _ => {}
        }
    }
    match (device, next_hop) {
        (None, _) => Leads::Anywhere,
        (Some(device), None) => Leads::Itself(device),
        (Some(device), Some(next_hop)) => Leads::To(next_hop, device),
    }
}

/// Source and device of an answer.
fn source_of(route: &RouteMessage) -> Option<(IpAddr, u32)> {
    if route.header.kind != RouteType::Unicast {
        return None;
    }
    let (mut source, mut ifindex) = (None, None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::PrefSource(RouteAddress::Inet(addr)) => source = Some((*addr).into()),
            RouteAttribute::PrefSource(RouteAddress::Inet6(addr)) => source = Some((*addr).into()),
            RouteAttribute::Oif(index) => ifindex = Some(*index),
            _ => {}
        }
    }
    Some((source?, ifindex?))
}
