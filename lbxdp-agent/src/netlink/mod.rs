//! Devices, addresses and routes of this network namespace, followed through netlink.
//!
//! `model` is pure: messages in, [`Network`] out. `monitor` feeds it on a thread of its own.
//! `request` asks and waits, `conntrack` reads and reserves connections, `genl` reads what XDP can do on a device, `tc` speaks to qdiscs and
//! filters.

pub mod conntrack;
pub mod genl;
pub mod model;
pub mod monitor;
pub mod request;
pub mod tc;

pub use model::{Link, Network, Vlan, XdpAttachment};
pub use monitor::Monitor;
pub use request::{RouteSource, Routes};
