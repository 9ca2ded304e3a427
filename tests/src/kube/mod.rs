//! A Kubernetes API: etcd and kube-apiserver, the real ones, built from their Go modules.
//!
//! * [`binaries`]: what they are built from.
//! * [`flags`]: how they are told what to do.
//! * [`control_plane`]: running them in a namespace.
//! * [`api`]: creating, changing and deleting objects.
//! * [`large`]: the objects of a large cluster.
//! * [`proxy`]: what may happen between an agent and the API.
//!
//! They need Go. Whoever has none gets told so, and the tests count as skipped: [`is_possible`].

pub mod api;
pub mod binaries;
pub mod control_plane;
pub mod flags;
pub mod large;
pub mod proxy;

pub use crate::go::is_possible;
pub use api::Api;
pub use control_plane::{ApiServer, ControlPlane};
pub use proxy::{Fault, Proxy, Upstream};
