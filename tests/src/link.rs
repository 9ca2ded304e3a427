//! Devices between namespaces, and what makes them behave like wires.
//!
//! A veth pair hands frames over with unfinished checksums and without NAPI at the receiver.
//! Real network cards do neither, and XDP depends on both: a program that rewrites a frame needs
//! its checksum to be there, and a veth device takes frames that XDP transmits or redirects only
//! if its peer runs NAPI, and delivers what XDP transmits at once only if the peer has an XDP
//! program of its own. So a host's leg has its transmit checksumming off
//! ([`Netns::tx_checksum_off`]), and the switch's side of the leg has GRO on
//! ([`Netns::gro_on`]) and a program that passes everything ([`Netns::xdp_pass`]). GRO joins what
//! one host sends, and leaves the checksums of what it joined unfinished; so the switch's side
//! finishes them, too, when it takes the packets apart for the next host.

use std::net::{IpAddr, Ipv4Addr};

use std::time::Duration;

use serde_json::Value;

use crate::netns::Netns;
use crate::process::wait_until;

const LINKS_UP_WITHIN: Duration = Duration::from_secs(10);

/// One end of a link: a namespace and the device's name in it.
pub type End<'a> = (&'a Netns, &'a str);

/// A veth pair with both ends up.
#[track_caller]
pub fn veth(a: End<'_>, b: End<'_>) {
    let (a_netns, a_name) = a;
    let (b_netns, b_name) = b;
    a_netns.ip(&format!(
        "link add name {a_name} type veth peer name {b_name} netns {}",
        b_netns.name()
    ));
    a_netns.ip(&format!("link set {a_name} up"));
    b_netns.ip(&format!("link set {b_name} up"));
}

/// A host's leg `host` on the bridge `bridge` of the switch, wire-like on both sides.
#[track_caller]
pub fn leg(host: End<'_>, switch: End<'_>, bridge: &str) {
    veth(host, switch);
    let (host_netns, host_name) = host;
    let (switch_netns, switch_name) = switch;
    switch_netns.ip(&format!("link set {switch_name} master {bridge}"));
    host_netns.tx_checksum_off(host_name);
    switch_netns.tx_checksum_off(switch_name);
    switch_netns.gro_on(switch_name);
    switch_netns.xdp_pass(switch_name);
}

/// One peer of a VXLAN device whose table is filled by hand, as flannel does it.
#[derive(Clone, Debug)]
pub struct VxlanPeer {
    /// Where encapsulated frames for it go.
    pub underlay: Ipv4Addr,
    /// MAC address of its VXLAN device.
    pub mac: String,
    /// Addresses of its VXLAN device, the next hops of routes to its pods.
    pub overlay: Vec<IpAddr>,
}

impl Netns {
    /// Adds an address, without duplicate address detection. `prefix` is `ADDRESS/LENGTH`.
    #[track_caller]
    pub fn add_address(&self, device: &str, prefix: &str) {
        self.ip_batch([address_line(device, prefix)]);
    }

    /// Adds or replaces a route. `route` is what follows `ip route replace`.
    #[track_caller]
    pub fn route(&self, route: &str) {
        let family = if route.split_whitespace().next().is_some_and(|to| to.contains(':'))
            || route.contains("via inet6")
        {
            "-6"
        } else {
            "-4"
        };
        self.ip(&format!("{family} route replace {route}"));
    }

    /// Finishes checksums before frames leave: what a network card would do.
    #[track_caller]
    pub fn tx_checksum_off(&self, device: &str) {
        self.exec(&format!("ethtool -K {device} tx off"));
    }

    /// GRO on, which gives a veth device NAPI: its peer may then be transmitted to by XDP.
    #[track_caller]
    pub fn gro_on(&self, device: &str) {
        self.exec(&format!("ethtool -K {device} gro on"));
    }

    /// MAC address of a device.
    #[track_caller]
    pub fn mac(&self, device: &str) -> String {
        let line = self.ip(&format!("-o link show dev {device}"));
        let mut words = line.split_whitespace();
        words
            .find(|word| word.starts_with("link/"))
            .and_then(|_| words.next())
            .unwrap_or_else(|| panic!("no MAC address of {device} in: {line}"))
            .to_owned()
    }

    /// A bridge that forwards at once (no spanning tree), without multicast snooping.
    #[track_caller]
    pub fn bridge(&self, name: &str) {
        self.ip(&format!(
            "link add {name} type bridge stp_state 0 forward_delay 0 mcast_snooping 0"
        ));
        self.ip(&format!("link set {name} up"));
    }

    /// Waits until every device carries frames, and every bridge port forwards them. The kernel
    /// works carrier changes off later, in batches; until then frames are lost silently.
    #[track_caller]
    pub fn wait_links_up(&self) {
        let lists = [
            ("ip -j link show up", "operstate", ["UP", "UNKNOWN"]),
            ("bridge -j link show", "state", ["forwarding", "forwarding"]),
        ];
        for (line, field, good) in lists {
            wait_until(&format!("{}: {line}", self.name()), LINKS_UP_WITHIN, || {
                let text = self.exec(line);
                let list: Vec<Value> = serde_json::from_str(&text).unwrap_or_default();
                list.iter().all(|link| {
                    let state = link.get(field).and_then(Value::as_str);
                    state.is_none_or(|state| good.contains(&state))
                })
            });
        }
    }

    /// Makes a bridge forget and learn nothing, so that it sends every frame to every port.
    #[track_caller]
    pub fn flood(&self, bridge: &str) {
        let ports = self.ip(&format!("-o link show master {bridge}"));
        for line in ports.lines() {
            let name = line.split_whitespace().nth(1).and_then(|w| w.split(['@', ':']).next());
            if let Some(name) = name {
                self.exec(&format!("bridge link set dev {name} learning off flood on"));
            }
        }
        self.ip(&format!("link set {bridge} type bridge fdb_flush"));
    }

    /// A VXLAN device without peers, over the IPv4 underlay: UDP port 8472 and VNI 1 as flannel
    /// has them. With `learning` it needs no [`Netns::vxlan_peer`] for what it has heard from,
    /// and sends what it does not know to `flood_to`.
    #[track_caller]
    pub fn vxlan(&self, name: &str, underlay: &str, local: Ipv4Addr, mac: &str, learning: bool) {
        let learning = if learning { "learning" } else { "nolearning" };
        self.ip(&format!(
            "link add {name} address {mac} type vxlan id 1 local {local} dev {underlay} \
             dstport 8472 {learning}"
        ));
        self.ip(&format!("link set {name} up"));
    }

    /// Adds the forwarding entry and the neighbours of one peer to a VXLAN device.
    #[track_caller]
    pub fn vxlan_peer(&self, name: &str, peer: &VxlanPeer) {
        let VxlanPeer { underlay, mac, overlay } = peer;
        self.exec(&format!("bridge fdb append {mac} dev {name} dst {underlay} self permanent"));
        self.ip_batch(overlay.iter().map(|address| neighbour_line(name, *address, mac)));
    }

    /// Sends what a learning VXLAN device does not know to this underlay address.
    #[track_caller]
    pub fn vxlan_flood_to(&self, name: &str, underlay: Ipv4Addr) {
        self.exec(&format!(
            "bridge fdb append 00:00:00:00:00:00 dev {name} dst {underlay} self permanent"
        ));
    }
}

/// One line for [`Netns::ip_batch`] that adds a neighbour which is never asked again.
pub fn neighbour_line(device: &str, address: IpAddr, mac: &str) -> String {
    format!("neigh replace {address} lladdr {mac} dev {device} nud permanent")
}

/// One line for [`Netns::ip_batch`] that adds an address.
pub fn address_line(device: &str, prefix: &str) -> String {
    let nodad = if prefix.contains(':') { " nodad" } else { "" };
    format!("addr add {prefix} dev {device}{nodad}")
}
