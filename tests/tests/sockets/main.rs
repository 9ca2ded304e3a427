//! Clients on a node with real sockets: pods and the node itself, as processes of the cgroup that
//! an agent serves.
//!
//! They need root and fail without.
#![expect(clippy::tests_outside_test_module, reason = "an integration test is all test")]

mod agents;
mod clients;
mod refused;
mod served;
mod stale;
mod world;
