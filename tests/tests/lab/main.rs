//! The whole cluster: control plane, three nodes, lbxdp as users get it. Needs Go, and the image that
//! `cargo xtask image` writes.

mod agents;
mod dns;
mod labels;
mod latency;
mod nodes;
mod policies;
mod rollouts;
mod services;
mod types;
mod world;
