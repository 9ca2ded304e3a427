//! The Services of the benchmark, for lbxdp and for the rules of kube-proxy.

use std::net::Ipv4Addr;

use lbxdp_tests::manifests;
use serde_json::Value;

/// So many ClusterIP Services, whose backends are on another node.
pub struct Services {
    count: u32,
    protocols: &'static [Protocol],
}

/// What the port of a Service is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Udp,
    Tcp,
}

impl Protocol {
    /// As rules name it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
        }
    }
}

/// A port of one of them.
pub struct ServicePort {
    /// Its number, from 0.
    pub number: u32,
    /// Of what it is.
    pub protocol: Protocol,
    /// Its address.
    pub cluster_ip: Ipv4Addr,
    /// Who serves it.
    pub backends: Vec<Backend>,
}

/// One of its backends.
pub struct Backend {
    /// The pod's address.
    pub address: Ipv4Addr,
    /// Where it listens.
    pub port: u16,
}

impl Services {
    /// The port of each.
    pub const PORT: u16 = 53;
    /// Where pods are.
    pub const PODS: &'static str = "10.244.0.0/16";
    /// Where the pods of the other node are.
    pub const FAR_PODS: &'static str = "10.244.2.0/24";
    /// Address of the first.
    pub const FIRST: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
    /// That node.
    const FAR_NODE: &str = "node-b";
    /// Different pods that they share.
    const FAR: u8 = 250;

    /// As many, of UDP.
    pub const fn new(count: u32) -> Self {
        Self { count, protocols: &[Protocol::Udp] }
    }

    /// As many, each of UDP and of TCP.
    pub const fn of_both(count: u32) -> Self {
        Self { count, protocols: &[Protocol::Udp, Protocol::Tcp] }
    }

    /// The address of one.
    pub const fn cluster_ip(number: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(Self::FIRST.to_bits() + number)
    }

    /// The pods of the other node.
    pub fn far_pods() -> impl Iterator<Item = Ipv4Addr> + Clone {
        (1..=Self::FAR).map(|last| Ipv4Addr::new(10, 244, 2, last))
    }

    /// The pods that serve one.
    fn addresses(&self, number: u32) -> impl Iterator<Item = Ipv4Addr> {
        let first = number * self.backends() % u32::from(Self::FAR);
        Self::far_pods().cycle().skip(first as usize).take(self.backends() as usize)
    }

    /// How many.
    pub const fn count(&self) -> u32 {
        self.count
    }

    /// Backends of each. A node has only so many source ports towards one backend, and the flows are
    /// to find some also where there are few Services.
    pub const fn backends(&self) -> u32 {
        if self.count < 64 { 64 } else { 3 }
    }

    /// Each of their ports.
    pub fn ports(&self) -> impl Iterator<Item = ServicePort> {
        let numbers =
            (0..self.count).flat_map(|service| self.protocols.iter().map(move |it| (service, *it)));
        numbers.zip(0..).map(|((service, protocol), number)| {
            let backend = |address| Backend { address, port: Self::PORT };
            let backends = self.addresses(service).map(backend).collect();
            ServicePort { number, protocol, cluster_ip: Self::cluster_ip(service), backends }
        })
    }

    /// The file with one of them in the agent's directory.
    pub fn file(number: u32) -> String {
        format!("s{number}.yaml")
    }

    /// What the agent reads of one, with all its endpoints or without one.
    pub fn objects(&self, number: u32, without: Option<u32>) -> Vec<Value> {
        let there = self.addresses(number).zip(0..).filter(|(_, place)| Some(*place) != without);
        let endpoints: Vec<_> =
            there.map(|(address, _)| manifests::Endpoint::new(address, Self::FAR_NODE)).collect();
        let service = manifests::Service::new(&format!("s{number}"))
            .cluster_ip(&Self::cluster_ip(number).to_string());
        let port = |protocol: &Protocol| match protocol {
            Protocol::Udp => manifests::Port::udp("udp", Self::PORT, Self::PORT),
            Protocol::Tcp => manifests::Port::tcp("tcp", Self::PORT, Self::PORT),
        };
        self.protocols.iter().map(port).fold(service, manifests::Service::port).with(&endpoints)
    }
}
