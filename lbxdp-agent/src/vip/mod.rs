//! Addresses of load balancers: pools, and which Service has which address.
//!
//! `resources` reads MetalLB's custom resources, `pool` checks the pools, `request` reads what a Service
//! asks for, `allocate` decides, `decide` is all of that in one step. All of it is pure: the objects are
//! the only state. Whoever has them from somewhere, and writes what is decided, is a `source`.

mod advertise;
mod allocate;
mod decide;
mod ledger;
pub mod manifest;
mod pool;
mod ranges;
mod report;
mod request;
mod reserved;
pub mod resources;
mod select;
mod tally;
#[cfg(test)]
mod tests;
mod write;

pub use advertise::{Advertisement, Advertisements};
pub use allocate::{Allocator, Input, Outcome};
pub use decide::{Decided, Facts};
pub use pool::Pools;
pub use report::{CONDITION, Condition, Counts, Decision, Event, Failure, PoolCounts, Reason};
pub use request::{
    Assignment, CLASS, OLD_POOL_ANNOTATION, POOL_ANNOTATION, is_load_balancer, is_ours,
};
pub use reserved::Reserved;
pub use select::Labels;
pub use tally::{Fate, Tally, View, Written};
pub use write::{State, patch};
