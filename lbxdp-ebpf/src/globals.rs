//! Constants that the agent sets before the programs are loaded; the verifier folds them in.

use aya_ebpf::Global;
use lbxdp_common::{Cidr, Cidrs, MAX_SERVICE_CIDRS, limits};

/// First source port of translated flows.
#[unsafe(no_mangle)]
static SNAT_PORT_LO: Global<u32> = Global::new(61_000);

/// Last source port of translated flows.
#[unsafe(no_mangle)]
static SNAT_PORT_HI: Global<u32> = Global::new(65_535);

/// Sets of each flow table: a power of two.
#[unsafe(no_mangle)]
static FLOW_SETS: Global<u32> = Global::new(limits::FLOW_SETS as u32);

/// Not zero where socket programs can say which error a system call ends with.
#[unsafe(no_mangle)]
static SETS_ERRNO: Global<u32> = Global::new(0);

/// Cookie of the network namespace that is the node's own; zero is nobody's.
#[unsafe(no_mangle)]
static NODE_NETNS_COOKIE: Global<u64> = Global::new(0);

/// Whether `bpf_set_retval` is there for `cgroup/connect4` and the like (Linux 6.1, 5.18 for other
/// cgroup programs). Where it is not, the verifier never sees the call: the branch to it is dead.
#[inline(always)]
pub fn sets_errno() -> bool {
    SETS_ERRNO.load() != 0
}

/// What `bpf_get_netns_cookie` says about sockets of the node itself.
#[inline(always)]
pub fn node_netns_cookie() -> u64 {
    NODE_NETNS_COOKIE.load()
}

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

/// Sets of each flow table, less one.
#[inline(always)]
pub fn flow_mask() -> u32 {
    FLOW_SETS.load().wrapping_sub(1)
}

/// First source port, and how many there are, at least one.
#[inline(always)]
pub fn snat_ports() -> (u16, u32) {
    let (low, high) = (SNAT_PORT_LO.load(), SNAT_PORT_HI.load());
    (low as u16, (high.wrapping_sub(low) & 0xffff) + 1)
}
