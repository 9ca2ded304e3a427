//! The programs of `cargo xtask bench packets`: a wrapper that runs another program on a fresh
//! packet each time, and programs to compare with. Those never change, so that ratios to them
//! mean the same from version to version.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(
    not(target_arch = "bpf"),
    allow(dead_code, reason = "the host only compiles them, for lints")
)]
#![allow(missing_docs, reason = "the entry macros drop the docs of what they wrap")]

mod wrapper;

use aya_ebpf::{bindings::xdp_action::XDP_TX, macros::xdp, programs::XdpContext};

/// What `BPF_PROG_TEST_RUN` is asked to run.
#[xdp(frags)]
pub fn wrap(ctx: XdpContext) -> u32 {
    wrapper::run(&ctx)
}

/// The control: nothing.
#[xdp(frags)]
pub fn control(_ctx: XdpContext) -> u32 {
    XDP_TX
}

/// Helpers of the kernel ask for it. The sources are under the licences of the repository.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

/// The verifier refuses a program in which this loop can be reached.
#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[cfg(not(target_arch = "bpf"))]
fn main() {
    eprintln!("these programs run in the kernel: `cargo xtask bench` builds them");
}
