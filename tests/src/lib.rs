//! Hosts as network namespaces: what the integration tests and the demo stand on.
//!
//! * [`netns`] and [`link`]: namespaces, and the devices between them.
//! * [`cluster`]: a client, a switch, nodes and pods, wired in one of a few ways.
//! * [`agent`]: the agent under test, one per node, with a pin path of its own.
//! * [`loss`]: where the kernel lost packets, for the message of a test that misses some.
//! * [`manifests`]: Services, EndpointSlices and Nodes as YAML.
//! * [`kube`]: a Kubernetes API, and what may happen on the way to it.
//! * [`lab`]: a whole cluster: control plane, nodes with kubelets, pods as containers.
//! * [`nginx`]: a real web server.
//! * [`traffic`]: servers and clients, in this process or through the program `lbxdp-testd`.
//! * [`chart`], [`image`] and [`go`]: the Helm chart, container images, and the pinned Go programs.
//! * [`sweep`]: nothing survives, whatever happens to the process.
//!
//! Everything is named after the process that made it, so tests run side by side, and the next
//! run removes what a crashed one left behind. Functions panic with the command and what it
//! said instead of returning errors: a test has nothing better to do with them.

pub mod agent;
pub mod cgroup;
pub mod chart;
pub mod cluster;
pub mod go;
pub mod image;
pub mod kube;
pub mod lab;
pub mod link;
pub mod loss;
pub mod manifests;
pub mod netns;
pub mod nginx;
pub mod process;
pub mod scratch;
pub mod sweep;
pub mod traffic;
pub mod xdp_pass;

pub use agent::{Agent, AgentOptions, ServedCgroup};
pub use cgroup::Cgroup;
pub use cluster::{Cluster, Node, Pod, PodPath, Spec};
pub use netns::Netns;
pub use process::Process;
pub use scratch::Scratch;

/// Whether the long variants of tests were asked for (`cargo xtask test --long`).
pub fn long() -> bool {
    std::env::var_os("LBXDP_LONG").is_some()
}
