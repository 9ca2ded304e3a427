//! Constants that the agent sets before the programs are loaded; the verifier folds them in.

use aya_ebpf::Global;
use lbxdp_common::{Cidr, Cidrs, MAX_SERVICE_CIDRS};

/// First source port of translated flows.
#[unsafe(no_mangle)]
static SNAT_PORT_LO: Global<u32> = Global::new(61_000);

/// Last source port of translated flows.
#[unsafe(no_mangle)]
static SNAT_PORT_HI: Global<u32> = Global::new(65_535);

/// Ranges of IPv4 addresses that only Services have. Read word by word ([`cidr_has`]): as a
/// whole they would be copied to the stack.
#[unsafe(no_mangle)]
pub static SERVICE_CIDRS_V4: Cidrs = [Cidr::UNUSED; MAX_SERVICE_CIDRS];

/// Ranges of IPv6 addresses that only Services have.
#[unsafe(no_mangle)]
pub static SERVICE_CIDRS_V6: Cidrs = [Cidr::UNUSED; MAX_SERVICE_CIDRS];

/// Whether one of the ranges has the address of these words ([`Cidr::words_of`]). Nothing is left
/// of the question where no range was set.
#[inline(always)]
pub fn cidr_has(cidrs: &'static Cidrs, [high, low]: [u64; 2]) -> bool {
    for cidr in cidrs {
        // SAFETY: parts of a static. Volatile, because the agent writes them into the object that
        // the compiler knows as constants.
        let ([first_high, first_low], [mask_high, mask_low]) = unsafe {
            (
                [
                    (&raw const cidr.first[0]).read_volatile(),
                    (&raw const cidr.first[1]).read_volatile(),
                ],
                [
                    (&raw const cidr.mask[0]).read_volatile(),
                    (&raw const cidr.mask[1]).read_volatile(),
                ],
            )
        };
        if mask_high == 0 {
            return false;
        }
        if high & mask_high == first_high && low & mask_low == first_low {
            return true;
        }
    }
    false
}

/// First source port, and how many there are.
#[inline(always)]
pub fn snat_ports() -> (u16, u32) {
    let (low, high) = (SNAT_PORT_LO.load(), SNAT_PORT_HI.load());
    (low as u16, (high.wrapping_sub(low) & 0xffff) + 1)
}
