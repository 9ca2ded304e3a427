//! The maps and the questions asked of them. No other module sees a map.

#![expect(
    clippy::needless_borrows_for_generic_args,
    reason = "a key or value that is passed on by value is copied to the stack first"
)]

pub mod address;
pub mod affinity;
pub mod announced;
pub mod backend;
pub mod count;
pub mod device;
pub mod flow;
pub mod fragment;
pub mod hop;
pub mod maps;
pub mod mode;
pub mod port;
pub mod range;
pub mod socket;
