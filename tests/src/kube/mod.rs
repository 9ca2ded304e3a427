//! A Kubernetes API: etcd and kube-apiserver, the real ones, built from their Go modules.
//!
//! * [`binaries`]: building them once.
//! * [`control_plane`]: running them in a namespace.
//! * [`api`]: creating, changing and deleting objects.
//! * [`large`]: the objects of a large cluster.
//! * [`proxy`]: what may happen between an agent and the API.
//!
//! They need Go. Whoever has none gets told so, and the tests count as skipped: [`is_possible`].

pub mod api;
pub mod binaries;
pub mod control_plane;
pub mod large;
pub mod proxy;

pub use api::Api;
pub use binaries::is_possible;
pub use control_plane::{ApiServer, ControlPlane};
pub use proxy::{Fault, Proxy};
