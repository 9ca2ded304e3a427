//! The wrapper. Without it, every run but the first would see what the program under test made of
//! the packet the last time: one that it has translated already and does not look at any more.
#![expect(non_upper_case_globals, reason = "a static's name is its map's name")]

use aya_ebpf::{
    EbpfContext as _,
    bindings::xdp_action::XDP_ABORTED,
    btf_maps::{Array, ProgramArray},
    helpers::generated::{bpf_ktime_get_ns, bpf_xdp_adjust_head, bpf_xdp_adjust_tail},
    macros::btf_map,
    programs::XdpContext,
};
use lbxdp_bench_ebpf::{Choice, Config, Flow, MAX_LISTED, Place, State, TEMPLATE};

/// What to do.
#[btf_map]
static config: Array<Config, 1> = Array::new();

/// How far it is.
#[btf_map]
static state: Array<State, 1> = Array::new();

/// Flows that cannot be computed.
#[btf_map]
static listed: Array<Flow, MAX_LISTED> = Array::new();

/// The program under test, in slot 0: a constant index becomes a direct jump.
#[btf_map]
static target: ProgramArray<1> = ProgramArray::new();

/// Puts the packet back, chooses a flow and goes to the program under test.
#[inline(always)]
pub fn run(ctx: &XdpContext) -> u32 {
    let (Some(to_do), Some(so_far)) = (to_do(), so_far()) else { return XDP_ABORTED };
    stamp(to_do, so_far);
    if restore(ctx, to_do).is_none() {
        return XDP_ABORTED;
    }
    if to_do.choice != Choice::One as u32 {
        let Some(flow) = choose(to_do, so_far) else { return XDP_ABORTED };
        if write(ctx, to_do.place, flow).is_none() {
            return XDP_ABORTED;
        }
    }
    // SAFETY: nothing here has a destructor.
    unsafe { target.tail_call(ctx, 0) };
    XDP_ABORTED
}

/// What to do.
#[inline(always)]
pub fn to_do() -> Option<&'static Config> {
    config.get(0)
}

/// How far it is.
#[inline(always)]
pub fn so_far() -> Option<&'static mut State> {
    // SAFETY: one of this object's programs runs at a time; user space reads the element afterwards.
    state.get_ptr_mut(0).map(|so_far| unsafe { &mut *so_far })
}

/// Takes the time at the beginning of the first packet and of the last.
#[inline(always)]
fn stamp(to_do: &Config, so_far: &mut State) {
    // SAFETY: no arguments, no memory.
    let now = || unsafe { bpf_ktime_get_ns() };
    let iteration = so_far.iteration + 1;
    so_far.iteration = iteration;
    if iteration == 1 {
        so_far.first = now();
    }
    if iteration == u64::from(to_do.repeat) {
        so_far.last = now();
    }
}

/// Gives the frame its length and its beginning again.
#[inline(always)]
pub fn restore(ctx: &XdpContext, to_do: &Config) -> Option<()> {
    let length = |ctx: &XdpContext| ctx.data_end() as i64 - ctx.data() as i64;
    let wanted = i64::from(to_do.length);
    if length(ctx) != wanted {
        // SAFETY: the kernel's own context; all pointers into the packet are taken afterwards.
        unsafe {
            if bpf_xdp_adjust_head(ctx.as_ptr().cast(), to_do.pushed as i32) != 0 {
                return None;
            }
            let missing = wanted - length(ctx);
            if missing != 0 && bpf_xdp_adjust_tail(ctx.as_ptr().cast(), missing as i32) != 0 {
                return None;
            }
        }
    }
    let start = ctx.data();
    if start + TEMPLATE > ctx.data_end() {
        return None;
    }
    // Word by word: as a whole, the compiler copies it byte by byte in a loop.
    for word in 0..TEMPLATE / 8 {
        // SAFETY: the bytes are inside the frame, as was just checked.
        unsafe { (start as *mut u64).add(word).write_unaligned(to_do.template[word]) };
    }
    Some(())
}

#[inline(always)]
fn choose(to_do: &Config, so_far: &mut State) -> Option<Flow> {
    let number = pick(to_do, so_far);
    if to_do.choice == Choice::Listed as u32 {
        return listed.get(to_do.first_listed + number).copied();
    }
    Some(Flow::of(number, to_do.address))
}

/// The number of the next flow.
#[inline(always)]
pub fn pick(to_do: &Config, so_far: &mut State) -> u32 {
    if to_do.choice == Choice::One as u32 {
        return 0;
    }
    if to_do.choice == Choice::Sequential as u32 {
        let number = so_far.next as u32;
        let next = so_far.next + 1;
        so_far.next = if next == u64::from(to_do.flows) { 0 } else { next };
        return number;
    }
    let mut random = so_far.random;
    random ^= random << 13;
    random ^= random >> 7;
    random ^= random << 17;
    so_far.random = random;
    (((random >> 32) * u64::from(to_do.flows)) >> 32) as u32
}

/// Writes a flow into the packet.
#[inline(always)]
pub fn write(ctx: &XdpContext, place: u32, flow: Flow) -> Option<()> {
    const ETHERNET: usize = 14;
    const SOURCE_V4: usize = ETHERNET + 12;
    const SOURCE_V6: usize = ETHERNET + 20;
    const PORTS_V4: usize = ETHERNET + 20;
    const PORTS_V6: usize = ETHERNET + 40;
    let (start, end) = (ctx.data(), ctx.data_end());
    if start + TEMPLATE > end {
        return None;
    }
    let store = |address: usize, port: usize| {
        // SAFETY: both offsets are inside the bytes that were just checked.
        unsafe {
            ((start + address) as *mut u32).write_unaligned(flow.address.to_be());
            ((start + port) as *mut u16).write_unaligned((flow.port as u16).to_be());
        }
    };
    if place == Place::SourceV4 as u32 {
        store(SOURCE_V4, PORTS_V4);
    } else if place == Place::SourceV6 as u32 {
        store(SOURCE_V6, PORTS_V6);
    } else if place == Place::ReplyV4 as u32 {
        store(SOURCE_V4, PORTS_V4 + 2);
    } else {
        store(SOURCE_V6, PORTS_V6 + 2);
    }
    Some(())
}
