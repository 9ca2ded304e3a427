//! The whole cluster: control plane, three nodes, lbxdp as users get it. Needs Go, and the image that
//! `cargo xtask image` writes.

mod agents;
mod dns;
mod loads;
mod outages;
mod services;
mod take_over;
mod upgrades;
mod world;
