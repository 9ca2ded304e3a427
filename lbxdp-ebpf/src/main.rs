//! The packet programs: entries and the one place where an outcome becomes an action.
//!
//! Compiled for the kernel with `cargo xtask build-ebpf`; compiled for the host, the same parser
//! and the same arithmetic are tested without a kernel.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(target_arch = "bpf", feature(core_intrinsics))]
#![cfg_attr(
    target_arch = "bpf",
    expect(internal_features, reason = "compare-and-exchange, see lookup::flow::atomic")
)]
#![cfg_attr(
    not(target_arch = "bpf"),
    allow(dead_code, reason = "the host runs the tests of the parts, not the programs")
)]
#![allow(missing_docs, reason = "the entry macros drop the docs of what they wrap")]

mod family;
mod globals;
mod hooks;
mod icmp;
mod ingress;
mod lookup;
mod packet;
mod parse;
mod resolve;
mod rewrite;
mod route;
mod sock_addr;
mod work;

use aya_ebpf::{
    EbpfContext,
    bindings::{
        tcx_action_base::{TCX_DROP, TCX_NEXT, TCX_REDIRECT},
        xdp_action::{XDP_ABORTED, XDP_DROP, XDP_PASS, XDP_REDIRECT, XDP_TX},
    },
    helpers::generated::{bpf_redirect, bpf_redirect_neigh},
    macros::{cgroup_skb, cgroup_sock, cgroup_sock_addr, classifier, xdp},
    programs::{SkBuffContext, SockAddrContext, SockContext, TcContext, XdpContext},
};
use aya_log_ebpf::info;
use lbxdp_common::{Counter, DropReason};

use hooks::{Outcome, socket};
use lookup::count;
use packet::{sent::SentPacket, skb::SkbPacket, xdp::XdpPacket};
use sock_addr::{Call, Sock};

// The entries are inlined into what their macros make of them: a call costs as much as a lookup in
// an array.

/// XDP for frames of one or more buffers (an MTU larger than a page). Linux 5.18.
#[xdp(frags)]
#[inline(always)]
pub fn lbxdp_xdp_frags(ctx: XdpContext) -> u32 {
    frame(ctx)
}

/// XDP for frames of one buffer, for kernels and drivers that know no other.
#[xdp]
#[inline(always)]
pub fn lbxdp_xdp(ctx: XdpContext) -> u32 {
    frame(ctx)
}

/// tc ingress.
#[classifier]
#[inline(always)]
pub fn lbxdp_ingress(ctx: TcContext) -> i32 {
    let packet = SkbPacket { ctx };
    tc_action(&packet, hooks::tc::handle(&packet))
}

/// tc egress.
#[classifier]
#[inline(always)]
pub fn lbxdp_egress(ctx: TcContext) -> i32 {
    let packet = SkbPacket { ctx };
    egress_action(&packet, hooks::egress::handle(&packet))
}

/// tc ingress of a pod's device.
#[classifier]
#[inline(always)]
pub fn lbxdp_pod_ingress(ctx: TcContext) -> i32 {
    let packet = SkbPacket { ctx };
    tc_action(&packet, hooks::pod::ingress(&packet))
}

/// tc egress of a pod's device.
#[classifier]
#[inline(always)]
pub fn lbxdp_pod_egress(ctx: TcContext) -> i32 {
    let packet = SkbPacket { ctx };
    egress_action(&packet, hooks::pod::egress(&packet))
}

/// What leaves is a reply where it was translated.
#[inline(always)]
fn egress_action(packet: &SkbPacket, outcome: Outcome) -> i32 {
    if matches!(outcome, Outcome::Translated | Outcome::Neighbour(_)) {
        count::event(Counter::ReplyTranslated);
    }
    match outcome {
        Outcome::Translated => TCX_NEXT,
        outcome => tc_action(packet, outcome),
    }
}

/// A socket connects to an address of AF_INET.
#[cgroup_sock_addr(connect4)]
pub fn lbxdp_connect4(ctx: SockAddrContext) -> i32 {
    let call = Call::new(ctx);
    let outcome = socket::connect4(&call);
    call_action(&call, outcome)
}

/// A socket connects to an address of AF_INET6.
#[cgroup_sock_addr(connect6)]
pub fn lbxdp_connect6(ctx: SockAddrContext) -> i32 {
    let call = Call::new(ctx);
    let outcome = socket::connect6(&call);
    call_action(&call, outcome)
}

/// An unconnected UDP socket sends to an address of AF_INET.
#[cgroup_sock_addr(sendmsg4)]
pub fn lbxdp_sendmsg4(ctx: SockAddrContext) -> i32 {
    let call = Call::new(ctx);
    let outcome = socket::send4(&call);
    call_action(&call, outcome)
}

/// An unconnected UDP socket sends to an address of AF_INET6.
#[cgroup_sock_addr(sendmsg6)]
pub fn lbxdp_sendmsg6(ctx: SockAddrContext) -> i32 {
    let call = Call::new(ctx);
    let outcome = socket::send6(&call);
    call_action(&call, outcome)
}

/// A UDP socket received from an address of AF_INET.
#[cgroup_sock_addr(recvmsg4)]
pub fn lbxdp_recvmsg4(ctx: SockAddrContext) -> i32 {
    socket::show4(&Call::new(ctx));
    PROCEED
}

/// A UDP socket received from an address of AF_INET6.
#[cgroup_sock_addr(recvmsg6)]
pub fn lbxdp_recvmsg6(ctx: SockAddrContext) -> i32 {
    socket::show6(&Call::new(ctx));
    PROCEED
}

/// A socket's peer is asked for: an address of AF_INET.
#[cgroup_sock_addr(getpeername4)]
pub fn lbxdp_peername4(ctx: SockAddrContext) -> i32 {
    socket::show4(&Call::new(ctx));
    PROCEED
}

/// A socket's peer is asked for: an address of AF_INET6.
#[cgroup_sock_addr(getpeername6)]
pub fn lbxdp_peername6(ctx: SockAddrContext) -> i32 {
    socket::show6(&Call::new(ctx));
    PROCEED
}

/// A socket is closed. Linux 5.9.
#[cgroup_sock(sock_release)]
pub fn lbxdp_release(ctx: SockContext) -> i32 {
    socket::release(&Sock::new(&ctx));
    PROCEED
}

/// A socket sends a packet. Attached only while there are stale sockets.
#[cgroup_skb(egress)]
pub fn lbxdp_stale(ctx: SkBuffContext) -> i32 {
    let packet = SentPacket { ctx };
    if socket::is_stale(&packet) { END } else { PROCEED }
}

/// What a cgroup program returns so that a system call or a packet goes on.
const PROCEED: i32 = 1;
/// What it returns so that one does not: `EPERM`, unless another error was set.
const END: i32 = 0;

#[inline(always)]
fn call_action(call: &Call, outcome: socket::Outcome) -> i32 {
    match outcome {
        socket::Outcome::Proceed => PROCEED,
        socket::Outcome::Fail(errno) => {
            call.fail(errno);
            END
        }
    }
}

#[inline(always)]
fn frame(ctx: XdpContext) -> u32 {
    let packet = XdpPacket { ctx };
    match hooks::xdp::handle(&packet) {
        Outcome::Pass => XDP_PASS,
        Outcome::Defer => {
            count::event(Counter::Deferred);
            XDP_PASS
        }
        Outcome::Translated => {
            count::event(Counter::PassedLocal);
            XDP_PASS
        }
        Outcome::Transmit => {
            count::event(Counter::Transmitted);
            XDP_TX
        }
        Outcome::Redirect(ifindex) => {
            count::event(Counter::Redirected);
            // SAFETY: integers only.
            match unsafe { bpf_redirect(ifindex, 0) } as u32 {
                XDP_REDIRECT => XDP_REDIRECT,
                _ => XDP_ABORTED,
            }
        }
        Outcome::Answer(_) => {
            count::event(Counter::IcmpSent);
            XDP_TX
        }
        Outcome::Echo(_) => {
            count::event(Counter::EchoAnswered);
            XDP_TX
        }
        Outcome::Told => {
            count::event(Counter::NeighbourTold);
            XDP_TX
        }
        // A neighbour is tc's to resolve: XDP defers before it translates.
        Outcome::Neighbour(_) => XDP_ABORTED,
        Outcome::Drop(reason) => {
            ended(&packet.ctx, reason);
            XDP_DROP
        }
    }
}

/// What is not ours, and what goes on up or out, returns `TCX_NEXT` (`TC_ACT_UNSPEC`), so that the
/// programs of others get their turn.
#[inline(always)]
fn tc_action(packet: &SkbPacket, outcome: Outcome) -> i32 {
    match outcome {
        Outcome::Pass | Outcome::Defer => TCX_NEXT,
        Outcome::Translated => {
            count::event(Counter::PassedLocal);
            TCX_NEXT
        }
        Outcome::Neighbour(ifindex) => {
            count::event(Counter::RedirectedNeigh);
            // SAFETY: a null pointer of length zero asks for the route's own next hop.
            unsafe { bpf_redirect_neigh(ifindex, core::ptr::null_mut(), 0, 0) as i32 }
        }
        Outcome::Answer(ifindex) => {
            count::event(Counter::IcmpSent);
            // SAFETY: integers only.
            unsafe { bpf_redirect(ifindex, 0) as i32 }
        }
        Outcome::Echo(ifindex) => {
            count::event(Counter::EchoAnswered);
            // SAFETY: integers only.
            unsafe { bpf_redirect(ifindex, 0) as i32 }
        }
        Outcome::Told => {
            count::event(Counter::NeighbourTold);
            // SAFETY: integers only.
            unsafe { bpf_redirect(packet.ifindex(), 0) as i32 }
        }
        Outcome::Transmit => {
            count::event(Counter::Transmitted);
            // SAFETY: integers only.
            unsafe { bpf_redirect(packet.ifindex(), 0) as i32 }
        }
        // Only XDP redirects.
        Outcome::Redirect(_) => TCX_DROP,
        Outcome::Drop(reason) => {
            ended(&packet.ctx, reason);
            TCX_DROP
        }
    }
}

const _: () = assert!(TCX_REDIRECT == 7, "what bpf_redirect and bpf_redirect_neigh return");

#[inline(always)]
fn ended<C: EbpfContext>(ctx: &C, reason: DropReason) {
    count::drop(reason);
    info!(ctx, "packet dropped: reason {}", reason as u32);
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
    eprintln!("these programs run in the kernel: build them with `cargo xtask build-ebpf`");
}
