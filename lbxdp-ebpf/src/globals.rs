//! Constants that the agent sets before the programs are loaded; the verifier folds them in.

use aya_ebpf::Global;

/// First source port of translated flows.
#[unsafe(no_mangle)]
static SNAT_PORT_LO: Global<u16> = Global::new(61_000);

/// Last source port of translated flows.
#[unsafe(no_mangle)]
static SNAT_PORT_HI: Global<u16> = Global::new(65_535);

/// First source port, and how many there are.
#[inline(always)]
pub fn snat_ports() -> (u16, u32) {
    let (low, high) = (SNAT_PORT_LO.load(), SNAT_PORT_HI.load());
    (low, u32::from(high.wrapping_sub(low)) + 1)
}
