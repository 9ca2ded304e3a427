//! The maps and the questions asked of them. No other module sees a map.

pub mod address;
pub mod backend;
pub mod count;
pub mod device;
pub mod flow;
pub mod maps;
