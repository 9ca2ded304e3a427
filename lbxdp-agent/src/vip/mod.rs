//! Addresses of load balancers: pools, and which Service has which address.
//!
//! `resources` reads MetalLB's custom resources, `pool` checks the pools, `request` reads what a Service
//! asks for, `allocate` decides. All of it is pure: the objects are the only state.

mod advertise;
mod allocate;
mod ledger;
pub mod manifest;
mod pool;
mod ranges;
mod report;
mod request;
mod reserved;
pub mod resources;
mod select;
#[cfg(test)]
mod tests;
mod write;

pub use advertise::{Advertisement, Advertisements};
pub use allocate::{Allocator, Input, Outcome};
pub use pool::Pools;
pub use report::{CONDITION, Condition, Counts, Decision, Event, Failure, PoolCounts, Reason};
pub use request::{Assignment, CLASS, OLD_POOL_ANNOTATION, POOL_ANNOTATION};
pub use reserved::Reserved;
pub use select::Labels;
pub use write::{State, patch};
