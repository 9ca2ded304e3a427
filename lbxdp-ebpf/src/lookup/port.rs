//! Ports of the node's own addresses that are nobody's but the node's.

use crate::lookup::maps;

/// Whether no packet to this port of an address of the node concerns the programs: no frontend has
/// or had it, and no flow uses it. SCTP is not asked about, because its flows keep their clients'
/// ports.
#[inline(always)]
pub fn is_free(port: u16) -> bool {
    let Some(word) = maps::free_ports.get_ptr(u32::from(port) / 64) else { return false };
    // SAFETY: the pointer is into an array, which lives as long as the program; one aligned word
    // is read whole, and volatile, because the agent changes it.
    let word = unsafe { word.read_volatile() };
    word & 1 << (port % 64) != 0
}
