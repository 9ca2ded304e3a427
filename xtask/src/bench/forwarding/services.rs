//! The Services of the benchmark, for lbxdp and for the rules of kube-proxy.

use std::net::Ipv4Addr;

use lbxdp_tests::manifests;
use serde_json::Value;

/// So many ClusterIP Services of UDP, whose backends are on another node.
pub struct Services {
    count: u32,
}

/// One of them.
pub struct Service {
    /// Its number, from 0.
    pub number: u32,
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
    /// Different pods that they share.
    const FAR: u32 = 250;

    /// As many.
    pub const fn new(count: u32) -> Self {
        Self { count }
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

    /// Each.
    pub fn iter(&self) -> impl Iterator<Item = Service> {
        (0..self.count).map(|number| {
            let backends = (0..self.backends()).map(|place| {
                let pod = (number * self.backends() + place) % Self::FAR;
                let last = u8::try_from(1 + pod).expect("a pod of one network");
                Backend { address: Ipv4Addr::new(10, 244, 2, last), port: Self::PORT }
            });
            let cluster_ip = Ipv4Addr::from_bits(Self::FIRST.to_bits() + number);
            Service { number, cluster_ip, backends: backends.collect() }
        })
    }

    /// What the agent reads of them.
    pub fn objects(&self, far_node: &str) -> Vec<Value> {
        let objects = self.iter().flat_map(|Service { number, cluster_ip, backends }| {
            let endpoints: Vec<_> = backends
                .iter()
                .map(|backend| manifests::Endpoint::new(backend.address, far_node))
                .collect();
            manifests::Service::new(&format!("s{number}"))
                .cluster_ip(&cluster_ip.to_string())
                .port(manifests::Port::udp("dns", Self::PORT, Self::PORT))
                .with(&endpoints)
        });
        objects.collect()
    }
}
