//! The programs of `cargo xtask bench`: a wrapper that runs another program on a fresh packet each
//! time, programs to compare with (those never change, so that ratios to them mean the same from
//! version to version), and a generator of traffic and its end.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(
    not(target_arch = "bpf"),
    allow(dead_code, reason = "the host only compiles them, for lints")
)]
#![allow(missing_docs, reason = "the entry macros drop the docs of what they wrap")]

mod generate;
mod reference;
mod wrapper;

use aya_ebpf::{
    bindings::xdp_action::{XDP_ABORTED, XDP_DROP, XDP_TX},
    macros::xdp,
    programs::XdpContext,
};

/// What `BPF_PROG_TEST_RUN` is asked to run.
#[xdp(frags)]
pub fn wrap(ctx: XdpContext) -> u32 {
    wrapper::run(&ctx)
}

/// Sends traffic.
#[xdp]
pub fn generate(ctx: XdpContext) -> u32 {
    generate::run(&ctx)
}

/// Where traffic ends.
#[xdp(frags)]
pub fn sink(_ctx: XdpContext) -> u32 {
    XDP_DROP
}

/// The control: nothing.
#[xdp(frags)]
pub fn control(_ctx: XdpContext) -> u32 {
    XDP_TX
}

/// The control of programs that encapsulate: the wrapper undoes that each time.
#[xdp(frags)]
pub fn encap20(ctx: XdpContext) -> u32 {
    action(reference::encap20(&ctx))
}

/// One lookup in a hash map, and a hit.
#[xdp(frags)]
pub fn hash_hit(ctx: XdpContext) -> u32 {
    action(reference::hash_hit(&ctx))
}

/// A stateless load balancer: frontend, Maglev, backend, IPIP.
#[xdp(frags)]
pub fn maglev_ipip(ctx: XdpContext) -> u32 {
    action(reference::maglev_ipip(&ctx))
}

/// A load balancer with a flow table, which translates the destination.
#[xdp(frags)]
pub fn dnat_flow(ctx: XdpContext) -> u32 {
    action(reference::dnat_flow(&ctx))
}

/// One that translates the source, too, and asks the kernel for the next hop.
#[xdp(frags)]
pub fn snat_fib(ctx: XdpContext) -> u32 {
    action(reference::snat_fib(&ctx))
}

/// The same with a table of its own, for flows that are ever new.
#[xdp(frags)]
pub fn snat_fib_new(ctx: XdpContext) -> u32 {
    action(reference::snat_fib_new(&ctx))
}

#[inline(always)]
fn action(done: Option<()>) -> u32 {
    if done.is_some() { XDP_TX } else { XDP_ABORTED }
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
