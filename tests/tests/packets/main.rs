//! Bytes in, verdict and bytes out, all counters' deltas: every path of the programs through
//! `BPF_PROG_TEST_RUN`, compared with whole packets that another library built.
#![expect(clippy::tests_outside_test_module, reason = "an integration test is all test")]

mod about;
mod clients;
mod errors;
mod flows;
mod forwarding;
mod fragments;
mod frames;
mod hops;
mod moved;
mod neighbours;
mod noise;
mod pods;
mod restarts;
mod rig;
mod runner;
mod sctp;
mod table;
mod take_over;

use std::net::SocketAddr;

use lbxdp_common::{IPPROTO_TCP, IPPROTO_UDP};

/// The addresses of one family in the rig's namespace.
#[derive(Clone, Copy, Debug)]
pub struct Net {
    /// A client's.
    pub client: SocketAddr,
    /// A frontend.
    pub vip: SocketAddr,
    /// A second frontend.
    pub vip2: SocketAddr,
    /// On this node.
    pub pod: SocketAddr,
    /// Behind the client's device.
    pub near: SocketAddr,
    /// Behind the other device.
    pub far: SocketAddr,
    /// Behind the client's device, its hardware address unknown.
    pub unresolved: SocketAddr,
    /// The node's own, on the client's device.
    pub node: SocketAddr,
    /// The node's own, on the other device.
    pub node1: SocketAddr,
    /// Nobody's.
    pub nobody: SocketAddr,
}

fn net(addresses: [&str; 10]) -> Net {
    let [client, vip, vip2, pod, near, far, unresolved, node, node1, nobody] =
        addresses.map(|address| address.parse().expect("an address"));
    Net { client, vip, vip2, pod, near, far, unresolved, node, node1, nobody }
}

/// Both families.
pub fn nets() -> [Net; 2] {
    [
        net([
            "192.0.2.7:40000",
            "203.0.113.10:80",
            "203.0.113.11:8080",
            "10.244.1.5:8080",
            "192.0.2.8:8080",
            "198.51.100.8:8080",
            "192.0.2.99:8080",
            "192.0.2.1:30080",
            "198.51.100.1:30080",
            "203.0.113.200:80",
        ]),
        net([
            "[2001:db8:1::7]:40000",
            "[2001:db8:ff::10]:80",
            "[2001:db8:ff::11]:8080",
            "[fd00:244:1::5]:8080",
            "[2001:db8:1::8]:8080",
            "[2001:db8:2::8]:8080",
            "[2001:db8:1::99]:8080",
            "[2001:db8:1::1]:30080",
            "[2001:db8:2::1]:30080",
            "[2001:db8:ff::200]:80",
        ]),
    ]
}

/// Both families and both protocols, with a client port of its own for each.
pub fn every() -> Vec<(Net, u8)> {
    let mut all = Vec::new();
    for net in nets() {
        all.push((net, IPPROTO_TCP));
        all.push((net, IPPROTO_UDP));
    }
    all
}
