//! Devices, addresses, neighbours and routes of this network namespace, followed through netlink.
//!
//! `model` is pure: messages in, [`Network`] out. `monitor` feeds it on a thread of its own.
//! `request` asks and waits, `routes` asks where packets go, `conntrack` reads and reserves connections, `genl` reads what XDP can do on a device, `tc` speaks to qdiscs and
//! filters.

pub mod conntrack;
pub mod genl;
pub mod model;
pub mod monitor;
pub mod request;
pub mod routes;
pub mod tc;

pub use model::{Link, Neighbour, Neighbours, Network, Surroundings, Vlan, WayOut, XdpAttachment};
pub use monitor::Monitor;
pub use routes::{RouteSource, Routes};
