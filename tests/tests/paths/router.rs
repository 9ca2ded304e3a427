//! The nodes' default gateway, which sends service addresses to node-a: as a router does that
//! learned them from it.

use lbxdp_tests::cluster::{UPLINK, VIPS_V4, VIPS_V6};
use lbxdp_tests::link::{self, address_line};
use lbxdp_tests::{Cluster, Netns};

/// A router beside the client.
#[track_caller]
pub fn attach(cluster: &Cluster) -> Netns {
    let router = Netns::new("router");
    link::leg((&router, UPLINK), (&cluster.switch, "router"), "br0");
    router.enable_forwarding();
    // It sends packets back out of the device they came by, and hosts are not to go around it.
    router.sysctl("net.ipv4.conf.all.send_redirects", "0");
    router.sysctl(&format!("net.ipv4.conf.{UPLINK}.send_redirects"), "0");
    for host in cluster.nodes.iter().map(|node| &node.netns).chain([&cluster.client]) {
        host.sysctl(&format!("net.ipv6.conf.{UPLINK}.accept_redirects"), "0");
    }
    let node = cluster.node(0);
    router.ip_batch([
        address_line(UPLINK, "198.51.100.1/24"),
        address_line(UPLINK, "2001:db8:1::1/64"),
        format!("route add {VIPS_V4} via {}", node.v4),
        format!("route add {VIPS_V6} via {}", node.v6),
    ]);
    cluster.switch.wait_links_up();
    router.wait_links_up();
    router
}
