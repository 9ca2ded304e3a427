//! The network of a lab.
//!
//! ```text
//!                       switch: br0, 198.51.100.0/24, 2001:db8:1::/64
//!        ┌─────────────────┬─────────────────┬─────────────────┐
//!   client .100     control-plane .10    node-1 .11       node-2 .12 …
//!                                            │                 │
//!                                     pods 10.244.1.x    pods 10.244.2.x
//!                                     fd00:10:244:1::x   fd00:10:244:2::x
//! ```
//!
//! Every host has routes to all pods, the client has one to the addresses of type LoadBalancer by a
//! node, and nodes send what they do not know to the client: what a node without a default route
//! refuses must not look as if it were served.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Place;
use super::host::Host;
use super::place::node_name;
use crate::cluster::{CLIENT_V4, CLIENT_V6, UPLINK, VIPS_V4, VIPS_V6};
use crate::link;
use crate::netns::Netns;

/// The API server's IPv4 address.
pub const CONTROL_PLANE_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
/// The API server's IPv6 address.
pub const CONTROL_PLANE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x10);
const BRIDGE: &str = "br0";

/// A node's addresses; `index` is from 0.
pub fn node_addresses(index: usize) -> (Ipv4Addr, Ipv6Addr) {
    let index = u8::try_from(index).ok().filter(|index| *index < 64).expect("at most 64 nodes");
    (
        Ipv4Addr::new(198, 51, 100, 11 + index),
        Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x11 + u16::from(index)),
    )
}

/// The ranges of a node's pods; `index` is from 0.
pub fn pod_ranges(index: usize) -> [String; 2] {
    [format!("10.244.{}.0/24", index + 1), format!("fd00:10:244:{:x}::/64", index + 1)]
}

/// The range of all pods: `--cluster-cidr`.
pub const POD_RANGES: &str = "10.244.0.0/16,fd00:10:244::/48";

/// The switch, in a namespace of its own.
#[track_caller]
pub fn make_switch(place: &Place) -> Netns {
    let switch = Netns::new_kept(&place.netns("switch"));
    switch.bridge(BRIDGE);
    switch
}

/// Puts a host on the switch.
#[track_caller]
pub fn connect(place: &Place, switch: &Netns, host: &Host, v4: Ipv4Addr, v6: Ipv6Addr) {
    let Host { name, netns, .. } = host;
    link::leg((netns, UPLINK), (switch, name), BRIDGE);
    netns.ip_batch([
        link::address_line(UPLINK, &format!("{v4}/24")),
        link::address_line(UPLINK, &format!("{v6}/64")),
    ]);
    let routes = (0..place.nodes).filter(|index| node_name(*index) != *name).flat_map(|index| {
        let (v4, v6) = node_addresses(index);
        let via: [IpAddr; 2] = [v4.into(), v6.into()];
        pod_ranges(index)
            .into_iter()
            .zip(via)
            .map(|(range, via)| format!("route add {range} via {via}"))
    });
    netns.ip_batch(routes.collect::<Vec<_>>());
}

/// Puts a node on the switch.
#[track_caller]
pub fn connect_node(place: &Place, switch: &Netns, host: &Host, index: usize) {
    let (v4, v6) = node_addresses(index);
    connect(place, switch, host, v4, v6);
    host.netns.route(&format!("default via {CLIENT_V4}"));
    host.netns.route(&format!("::/0 via {CLIENT_V6}"));
    host.netns.enable_forwarding();
}

/// Puts the outside client on the switch.
#[track_caller]
pub fn connect_client(place: &Place, switch: &Netns, client: &Host) {
    connect(place, switch, client, CLIENT_V4, CLIENT_V6);
    route_via(client, 0);
}

/// Has the client reach addresses of type LoadBalancer by this node.
#[track_caller]
pub fn route_via(client: &Host, index: usize) {
    let (v4, v6) = node_addresses(index);
    client.netns.route(&format!("{VIPS_V4} via {v4}"));
    client.netns.route(&format!("{VIPS_V6} via {v6}"));
}
