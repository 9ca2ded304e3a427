//! Traffic for `cargo xtask bench forwarding`: a frame that the kernel sends on its way for real
//! (`BPF_F_TEST_XDP_LIVE_FRAMES`, kernel 5.18), instead of throwing it away after the program.
#![expect(non_upper_case_globals, reason = "a static's name is its map's name")]

use aya_ebpf::{
    bindings::xdp_action::XDP_ABORTED, btf_maps::Array, helpers::bpf_redirect, macros::btf_map,
    programs::XdpContext,
};
use lbxdp_bench_ebpf::{Flow, Place, TEMPLATE, Traffic};

use crate::wrapper::{self, pick, restore};

/// Where it goes.
#[btf_map]
static traffic: Array<Traffic, 1> = Array::new();

/// Makes the next packet of the traffic and hands it to a device. IPv4 without options, UDP without
/// a checksum.
#[inline(always)]
pub fn run(ctx: &XdpContext) -> u32 {
    make(ctx).unwrap_or(XDP_ABORTED)
}

#[inline(always)]
fn make(ctx: &XdpContext) -> Option<u32> {
    let (to_do, so_far, goal) = (wrapper::to_do()?, wrapper::so_far()?, traffic.get(0)?);
    restore(ctx, to_do)?;
    let number = pick(to_do, so_far);
    wrapper::write(ctx, Place::SourceV4 as u32, Flow::of(number, to_do.address))?;
    let service = number.checked_rem(goal.services)?;
    address(ctx, goal.first_service.wrapping_add(service))?;
    // SAFETY: no memory.
    Some(unsafe { bpf_redirect(goal.ifindex, 0) } as u32)
}

/// Writes the destination and the header's checksum.
#[inline(always)]
fn address(ctx: &XdpContext, to: u32) -> Option<()> {
    const HEADER: usize = 14;
    const CHECKSUM: usize = 10;
    const DESTINATION: usize = 16;
    const WORDS: usize = 10;
    let start = ctx.data();
    if start + TEMPLATE > ctx.data_end() {
        return None;
    }
    let header = start + HEADER;
    // SAFETY: all of it is inside the bytes that were just checked.
    unsafe {
        ((header + DESTINATION) as *mut u32).write_unaligned(to.to_be());
        ((header + CHECKSUM) as *mut u16).write_unaligned(0);
        let mut sum = 0;
        for word in 0..WORDS {
            sum += u32::from((header as *const u16).add(word).read_unaligned());
        }
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        ((header + CHECKSUM) as *mut u16).write_unaligned(!(sum as u16));
    }
    Some(())
}
