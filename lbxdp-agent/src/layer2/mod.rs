//! Addresses on the local network: which node answers for which, and how others learn of it.
//!
//! `owner` puts nodes in an order, `choice` says which of them may be chosen, `resources` what that goes
//! by, `share` what comes out for this node, `fading` for how long a lost node counts, `handover` how an
//! address goes from one that lives to another, `bursts` when an
//! address is announced and `frames` what is sent then. All of that is pure. `announcer` does it, by
//! `wire` and by maps, and hears others by `claims`; `progress` is what can be counted of it. It says what it
//! has `seen`: `report` keeps that for those who ask, and `account` and `explain` answer them by deciding
//! once more.

mod account;
mod announcer;
mod bursts;
mod choice;
mod claims;
mod explain;
mod fading;
mod frames;
mod handover;
mod owner;
mod progress;
mod report;
mod resources;
mod seen;
mod share;
#[cfg(test)]
mod tests;
mod wire;

use std::time::Duration;

pub use account::{Account, Agent, Subject, accounts};
pub use announcer::{Announcer, Inputs};
pub use bursts::Bursts;
pub use choice::{Choice, Node, Unfit, Wanted, choose};
pub use explain::{Reason, explain};
pub use fading::Fading;
pub use frames::{Announced, announcements};
pub use progress::Progress;
pub use report::{Report, keep};
pub use resources::{NodeFacts, Resources, Written};
pub use seen::{NotAnnounced, Seen};
pub use share::{Balancer, Balancers, Decision, Here, decide, mine, nodes, owners};

/// For so long programs answer for addresses after the agent has last said that it is there.
pub const GATE: Duration = Duration::from_millis(500);
/// Between the last answer of a lost node and the first of the next owner lies this at the least: what
/// clocks of programs, which tick every few milliseconds, and a frame on its way may take.
const MARGIN: Duration = Duration::from_millis(200);
