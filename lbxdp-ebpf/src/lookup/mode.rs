//! Whether the stack gets what no flow tells about. Asked only after the flow table has missed, so
//! that packets of a flow pay nothing.

use lbxdp_common::{Counter, Mode};

use crate::lookup::{count, maps};

#[inline(always)]
fn is(mode: Mode) -> bool {
    maps::word(&maps::mode) == Some(mode as u32)
}

/// Whether a packet without a flow, or a call, is left to the stack; `begins`: it begins a connection.
#[inline(always)]
pub fn leaves(begins: bool) -> bool {
    let is_left = is(Mode::HandingOver) || !begins && is(Mode::TakingOver);
    if is_left {
        count::event(Counter::LeftToStack);
    }
    is_left
}
