//! Constants that the agent sets before the programs are loaded; the verifier folds them in.

use aya_ebpf::Global;

/// First source port of translated flows.
#[unsafe(no_mangle)]
static SNAT_PORT_LO: Global<u32> = Global::new(61_000);

/// Last source port of translated flows.
#[unsafe(no_mangle)]
static SNAT_PORT_HI: Global<u32> = Global::new(65_535);

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

/// First source port, and how many there are.
#[inline(always)]
pub fn snat_ports() -> (u16, u32) {
    let (low, high) = (SNAT_PORT_LO.load(), SNAT_PORT_HI.load());
    (low as u16, (high.wrapping_sub(low) & 0xffff) + 1)
}
