//! The protocol among many members, without a network: seeded, so that every run is the same.

mod cluster;
mod handles;
mod scenarios;
