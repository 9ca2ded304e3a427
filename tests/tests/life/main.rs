//! Real agents in network namespaces, from their first start to `cleanup`: what goes on while
//! backends, agents, devices and manifests come and go.
//!
//! Every test has namespaces and pins of its own. They need root and fail without.

mod addresses;
mod affinity;
mod backends;
mod checks;
mod commands;
mod devices;
mod flows;
mod health;
mod hops;
mod input;
mod layer2;
mod members;
mod rebuild;
mod restart;
mod rules;
mod spread;
mod take_over;
mod udp;
mod upgrade;
mod version_3;
mod world;
