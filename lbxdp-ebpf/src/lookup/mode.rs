//! Whether the stack gets what no flow tells about. Asked only after the flow table has missed, so
//! that packets of a flow pay nothing.

use lbxdp_common::{Counter, Mode};

use crate::lookup::{count, maps};

#[inline(always)]
fn is(mode: Mode) -> bool {
    let Some(number) = maps::mode.get_ptr(0) else { return false };
    // SAFETY: the pointer is into an array, which lives as long as the program; one aligned word
    // is read whole, and volatile, because the agent changes it.
    unsafe { number.read_volatile() == mode as u32 }
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
