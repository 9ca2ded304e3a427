//! Compare-and-exchange of words of maps, Linux 5.12. The compiler's library has none for BPF, whose
//! oldest processor cannot do it; the compiler itself has. Each is a barrier in both directions.

#[cfg(target_arch = "bpf")]
use core::intrinsics::{AtomicOrdering::SeqCst, atomic_cxchg, atomic_xchg};
#[cfg(not(target_arch = "bpf"))]
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};

/// Makes `*word` `new` if it is `old`; returns what it was.
///
/// # Safety
/// `word` is of a map, and aligned.
#[inline(always)]
pub unsafe fn exchange_if(word: *mut u64, old: u64, new: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    // SAFETY: as the caller says.
    unsafe {
        atomic_cxchg::<u64, { SeqCst }, { SeqCst }>(word, old, new).0
    }
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: as the caller says.
    unsafe {
        AtomicU64::from_ptr(word).compare_exchange(old, new, SeqCst, SeqCst).unwrap_or_else(|is| is)
    }
}

/// The same for half a word.
///
/// # Safety
/// As for [`exchange_if`].
#[inline(always)]
pub unsafe fn exchange_half_if(word: *mut u32, old: u32, new: u32) -> u32 {
    #[cfg(target_arch = "bpf")]
    // SAFETY: as the caller says.
    unsafe {
        atomic_cxchg::<u32, { SeqCst }, { SeqCst }>(word, old, new).0
    }
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: as the caller says.
    unsafe {
        AtomicU32::from_ptr(word).compare_exchange(old, new, SeqCst, SeqCst).unwrap_or_else(|is| is)
    }
}

/// Makes `*word` `new`, after everything that was written before.
///
/// # Safety
/// As for [`exchange_if`].
#[inline(always)]
pub unsafe fn publish(word: *mut u64, new: u64) {
    #[cfg(target_arch = "bpf")]
    // SAFETY: as the caller says.
    unsafe {
        atomic_xchg::<u64, { SeqCst }>(word, new);
    }
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: as the caller says.
    unsafe {
        AtomicU64::from_ptr(word).swap(new, SeqCst);
    }
}
