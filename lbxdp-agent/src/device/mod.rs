//! Which devices carry the programs, in which mode, and what the programs know of them. Pure:
//! [`crate::netlink`] says what there is, [`crate::attach`] does what is decided here.

mod pattern;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use lbxdp_common::Device;

use crate::netlink::genl::{XDP_BASIC, XDP_NDO_XMIT};
use crate::netlink::{Link, Network};
use crate::sys::Point;

pub use pattern::Pattern;

/// Kinds of devices that have no native XDP: what they receive was received by another device.
const WITHOUT_XDP: [&str; 8] =
    ["vlan", "vxlan", "geneve", "bridge", "macvlan", "ipvlan", "dummy", "gretap"];

/// Tags that [`Device::vlan`] has room for.
const MAX_TAGS: usize = 2;

/// What the operator and the node say about devices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Devices by name (`--device`); detection is off when there is one.
    pub named: Vec<String>,
    /// The host's side of pods (`--pod-device`).
    pub pods: Vec<Pattern>,
    /// The addresses other nodes know this one by. Not every address: a bridge for pods has one
    /// too.
    pub node_addresses: BTreeSet<IpAddr>,
    /// No XDP at all: tc does everything.
    pub without_xdp: bool,
}

/// Why a device carries the programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It was named.
    Named,
    /// A default route leaves through it.
    DefaultRoute,
    /// It has one of the node's addresses.
    NodeAddress,
    /// Traffic of pods on other nodes comes through it.
    Overlay,
    /// A VLAN device on top of it carries them: XDP sees the tagged frames here.
    VlanParent,
    /// A pod is behind it.
    Pod,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Named => "named",
            Self::DefaultRoute => "default route",
            Self::NodeAddress => "node address",
            Self::Overlay => "overlay",
            Self::VlanParent => "carries a VLAN device",
            Self::Pod => "pod",
        })
    }
}

/// Why a device has no native XDP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoXdp {
    /// The operator switched it off.
    Disabled,
    /// Devices of this kind have none.
    Kind(String),
    /// It is a pod's, where XDP would cost more than it saves: it switches GSO off.
    Pod,
    /// The driver has none.
    Driver,
    /// Somebody else's program is there.
    Foreign {
        /// Its id; zero when only the refusal is known.
        prog_id: u32,
    },
    /// The kernel refused.
    Refused(String),
}

impl fmt::Display for NoXdp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disabled => f.write_str("switched off"),
            Self::Kind(kind) => write!(f, "a {kind} device has no native XDP"),
            Self::Pod => f.write_str("a pod's device is left to tc"),
            Self::Driver => f.write_str("the driver has no native XDP"),
            Self::Foreign { prog_id: 0 } => f.write_str("another XDP program is attached"),
            Self::Foreign { prog_id } => {
                write!(f, "another XDP program is attached (id {prog_id})")
            }
            Self::Refused(error) => write!(f, "refused by the kernel: {error}"),
        }
    }
}

/// A device that is to carry the programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Interface index.
    pub ifindex: u32,
    /// Name.
    pub name: String,
    /// Why.
    pub why: Why,
    /// Native XDP, or why not.
    pub xdp: Result<(), NoXdp>,
    /// Whether tc programs belong here. Not on a device that only carries a VLAN device: tc
    /// handles that traffic on the VLAN device.
    pub tc: bool,
    /// It faces outwards and its name is nevertheless one that pods' devices have: the operator
    /// is told.
    pub is_pod_name: bool,
}

/// The tc programs of a device that faces outwards, and those of a pod's.
pub const TC_PAIRS: [[Point; 2]; 2] =
    [[Point::Ingress, Point::Egress], [Point::PodIngress, Point::PodEgress]];

impl Wanted {
    /// The tc programs that belong here, if any do.
    pub fn tc_points(&self) -> [Point; 2] {
        TC_PAIRS[usize::from(self.why == Why::Pod)]
    }

    /// Whether a program belongs here.
    pub fn runs(&self, point: Point) -> bool {
        match point {
            Point::Xdp => self.xdp.is_ok(),
            tc => self.tc && self.tc_points().contains(&tc),
        }
    }
}

/// A device that was asked for and cannot be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// Name.
    pub name: String,
    /// Interface index; zero when there is no such device.
    pub ifindex: u32,
    /// What is wrong.
    pub reason: &'static str,
}

/// The outcome of [`select`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Devices to serve, by interface index.
    pub wanted: Vec<Wanted>,
    /// Devices that should be served and cannot.
    pub rejected: Vec<Rejected>,
}

/// There is no device of that name.
pub const NO_SUCH_DEVICE: &str = "no such device";
/// Its frames have no Ethernet header (tunnels, WireGuard).
pub const LINK_TYPE: &str = "link type not served";
/// It leads nowhere.
pub const LOOPBACK: &str = "loopback";
/// A pod's device by its name, one that leads out of the node by what it is used for.
pub const OUTWARDS: &str = "fits --pod-device, but faces outwards";

/// Chooses the devices. `ours` are the interface indices of devices with an XDP link of ours, so
/// that our own program is not taken for somebody else's. Ids of programs would not do: the
/// kernel does not announce that a link's program was replaced, so `network` may name the old one.
pub fn select(network: &Network, rules: &Rules, ours: &BTreeSet<u32>) -> Selection {
    let mut reasons: BTreeMap<u32, Why> = BTreeMap::new();
    let mut selection = Selection::default();
    if rules.named.is_empty() {
        for link in network.links.values() {
            if let Some(why) = detect(link, rules) {
                reasons.insert(link.ifindex, why);
            }
        }
    } else {
        for name in &rules.named {
            match network.by_name(name) {
                Some(link) => {
                    reasons.insert(link.ifindex, Why::Named);
                }
                None => selection.rejected.push(Rejected {
                    name: name.clone(),
                    ifindex: 0,
                    reason: NO_SUCH_DEVICE,
                }),
            }
        }
    }
    let vlans: Vec<_> = reasons.keys().filter_map(|ifindex| tags(network, *ifindex)).collect();
    for (parent, _) in vlans {
        reasons.entry(parent).or_insert(Why::VlanParent);
    }
    let is_pod_name = |link: &Link| rules.pods.iter().any(|pattern| pattern.matches(&link.name));
    for link in network.links.values().filter(|link| is_pod_name(link)) {
        reasons.entry(link.ifindex).or_insert(Why::Pod);
    }
    let is_outwards = |link: &Link| detect(link, rules).is_some();

    for (ifindex, why) in reasons {
        let Some(link) = network.links.get(&ifindex) else { continue };
        let refused = if link.loopback {
            Some(LOOPBACK)
        } else if !link.ethernet || link.mac.is_none() {
            Some(LINK_TYPE)
        } else if why == Why::Pod && is_outwards(link) {
            // Named are others.
            Some(OUTWARDS)
        } else {
            None
        };
        if let Some(reason) = refused {
            selection.rejected.push(Rejected { name: link.name.clone(), ifindex, reason });
            continue;
        }
        let xdp = if why == Why::Pod { Err(NoXdp::Pod) } else { xdp_mode(link, rules, ours) };
        // Without XDP there is nothing to do below a VLAN device.
        if why == Why::VlanParent && matches!(xdp, Err(NoXdp::Kind(_) | NoXdp::Disabled)) {
            continue;
        }
        selection.wanted.push(Wanted {
            ifindex,
            name: link.name.clone(),
            why,
            xdp,
            tc: why != Why::VlanParent,
            is_pod_name: why != Why::Pod && is_pod_name(link),
        });
    }
    selection
}

/// Whether a device faces outwards. A port's traffic belongs to the device it is a port of, and a
/// pod's veth has neither a default route nor an address of the node.
fn detect(link: &Link, rules: &Rules) -> Option<Why> {
    let kind = link.kind.as_deref();
    if link.loopback
        || kind == Some("dummy")
        || matches!(link.port_of.as_deref(), Some("bridge" | "bond" | "team" | "openvswitch"))
    {
        None
    } else if link.default_route {
        Some(Why::DefaultRoute)
    } else if !link.addresses.is_disjoint(&rules.node_addresses) {
        Some(Why::NodeAddress)
    } else if matches!(kind, Some("vxlan" | "geneve"))
        || link.name.starts_with("flannel.")
        || link.name == "vxlan.calico"
    {
        Some(Why::Overlay)
    } else {
        None
    }
}

fn xdp_mode(link: &Link, rules: &Rules, ours: &BTreeSet<u32>) -> Result<(), NoXdp> {
    if rules.without_xdp {
        return Err(NoXdp::Disabled);
    }
    if let Some(kind) = link.kind.as_deref().filter(|kind| WITHOUT_XDP.contains(kind)) {
        return Err(NoXdp::Kind(kind.to_owned()));
    }
    if link.xdp_features.is_some_and(|features| features & XDP_BASIC == 0) {
        return Err(NoXdp::Driver);
    }
    match link.xdp {
        Some(xdp) if !ours.contains(&link.ifindex) => Err(NoXdp::Foreign { prog_id: xdp.prog_id }),
        _ => Ok(()),
    }
}

/// Why a device could not have native XDP, as far as the device itself tells.
pub(crate) fn no_xdp(network: &Network, ifindex: u32, ours: &BTreeSet<u32>) -> Option<NoXdp> {
    xdp_mode(network.links.get(&ifindex)?, &Rules::default(), ours).err()
}

/// The device under a VLAN device, and the tags of its frames there, outermost first. `None` for
/// any other device, and for more tags than [`Device::vlan`] holds.
fn tags(network: &Network, ifindex: u32) -> Option<(u32, [u16; MAX_TAGS])> {
    let mut inner_first = Vec::new();
    let mut link = network.links.get(&ifindex)?;
    while let Some(vlan) = link.vlan {
        inner_first.push(vlan.id);
        if inner_first.len() > MAX_TAGS {
            return None;
        }
        link = network.links.get(&link.parent?)?;
    }
    let mut tags = [0; MAX_TAGS];
    for (tag, id) in tags.iter_mut().zip(inner_first.iter().rev()) {
        *tag = *id;
    }
    (!inner_first.is_empty()).then_some((link.ifindex, tags))
}

/// What the programs are to know about the devices that carry them, pods' devices left out: their
/// programs know what they are on. `native` are the interface indices of those with our native
/// XDP program.
///
/// The flags are sparing, because a packet sent where nobody takes it is lost, while one that is
/// left to tc is only slower:
///
/// * `XMIT` where the kernel says that the device takes redirected frames. Before 6.3 it doesn't
///   say: there, devices with our native program, except veths, which take them only while their
///   peer polls (it has a program, or GRO).
/// * `TX` where our native program runs. A veth must take redirected frames for that as well:
///   transmitting needs the same of its peer.
pub fn entries(
    network: &Network,
    wanted: &[Wanted],
    native: &BTreeSet<u32>,
) -> BTreeMap<u32, Device> {
    let mut entries = BTreeMap::new();
    for wanted in wanted.iter().filter(|wanted| wanted.why != Why::Pod) {
        let Some(link) = network.links.get(&wanted.ifindex) else { continue };
        let Some(mac) = link.mac else { continue };
        let native = native.contains(&link.ifindex);
        let veth = link.kind.as_deref() == Some("veth");
        let takes = match link.xdp_features {
            Some(features) => features & XDP_NDO_XMIT != 0,
            None => native && !veth,
        };
        let mut flags = 0;
        if takes {
            flags |= Device::XMIT;
        }
        if native && (takes || !veth) {
            flags |= Device::TX;
        }
        if link.forwards_v4 {
            flags |= Device::FORWARDS_V4;
        }
        if link.forwards_v6 {
            flags |= Device::FORWARDS_V6;
        }
        let (parent, vlan) = tags(network, link.ifindex).unwrap_or_default();
        entries.insert(link.ifindex, Device { mac, flags, parent, vlan });
    }
    entries
}

#[cfg(test)]
mod tests;
