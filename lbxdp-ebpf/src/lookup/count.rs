//! Counters: per CPU, never atomic.

use lbxdp_common::{Counter, DropReason};

use crate::{family::Family, lookup::maps};

/// Errors that one CPU may send in a burst, and in a second.
const ICMP_BURST: u64 = 1_000;
const NANOSECONDS_PER_TOKEN: u64 = 1_000_000;

/// Counts an event.
#[inline(always)]
pub fn event(counter: Counter) {
    if let Some(count) = maps::counters.get_ptr_mut(counter as u32) {
        // SAFETY: this CPU's own element.
        unsafe { *count += 1 };
    }
}

/// Counts a packet that ends here.
#[inline(always)]
pub fn drop(reason: DropReason) {
    if let Some(count) = maps::drops.get_ptr_mut(reason as u32) {
        // SAFETY: this CPU's own element.
        unsafe { *count += 1 };
    }
}

/// Counts a translated packet of `bytes` for its frontend.
#[inline(always)]
pub fn traffic<F: Family>(frontend: u32, is_reply: bool, bytes: u64) {
    let Some(stats) = F::stats_map().get_ptr_mut(frontend) else { return };
    // SAFETY: this CPU's own element.
    let stats = unsafe { &mut *stats };
    if is_reply {
        stats.reply_packets += 1;
        stats.reply_bytes += bytes;
    } else {
        stats.packets += 1;
        stats.bytes += bytes;
    }
}

/// Whether one more ICMP error may be sent at `now`.
#[inline(always)]
pub fn may_send_icmp(now: u64) -> bool {
    let Some(budget) = maps::scratch_icmp.get_ptr_mut(0) else { return false };
    // SAFETY: this CPU's own element.
    let budget = unsafe { &mut *budget };
    let due = now.saturating_sub(budget.filled_at) / NANOSECONDS_PER_TOKEN;
    if due > 0 {
        let tokens = budget.tokens + due;
        budget.tokens = if tokens < ICMP_BURST { tokens } else { ICMP_BURST };
        budget.filled_at = now;
    }
    if budget.tokens == 0 {
        event(Counter::IcmpSuppressed);
        return false;
    }
    budget.tokens -= 1;
    true
}
