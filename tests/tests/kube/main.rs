//! Agents against a real API server: etcd and kube-apiserver run on the outside client's host of a
//! small cluster, an agent with a service account's rights on its node.
//!
//! Every test has an API of its own. They need root, and Go to build the API's programs.

mod access;
mod addresses;
mod bulk;
mod events;
mod failover;
mod faults;
mod members;
mod objects;
mod outage;
mod programming;
mod scale;
mod world;
