//! The whole cluster: control plane, three nodes, lbxdp as users get it. Needs Go, and the image that
//! `cargo xtask image` writes.

mod agents;
mod dns;
mod labels;
mod latency;
mod layer2;
mod loads;
mod nginx;
mod nodes;
mod outages;
mod policies;
mod rollouts;
mod services;
mod take_over;
mod types;
mod upgrades;
mod world;
