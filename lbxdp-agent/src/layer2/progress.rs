//! What can be seen of announcing.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::seen::NotAnnounced;
use crate::sys;

/// See the module.
#[derive(Debug, Default)]
pub struct Progress {
    announced: Mutex<BTreeSet<IpAddr>>,
    not_announced: Mutex<NotAnnounced>,
    /// Until when programs answer, by their own clock.
    open_until: AtomicU64,
    frames: AtomicU64,
    failures: AtomicU64,
    handed_over: AtomicU64,
    waited: AtomicU64,
}

impl Progress {
    /// These addresses are announced from here now.
    pub fn set_announced(&self, all: BTreeSet<IpAddr>) {
        *self.announced.lock().unwrap_or_else(PoisonError::into_inner) = all;
    }

    /// The addresses that are announced from here.
    pub fn announced(&self) -> BTreeSet<IpAddr> {
        self.announced.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// These are announced by nobody.
    pub fn set_not_announced(&self, all: NotAnnounced) {
        *self.not_announced.lock().unwrap_or_else(PoisonError::into_inner) = all;
    }

    /// What is announced by nobody, as far as this node knows.
    pub fn not_announced(&self) -> NotAnnounced {
        *self.not_announced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Programs answer for so long from now on.
    pub fn opened(&self, time: Duration) {
        let time = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let until = if time == 0 { 0 } else { sys::coarse_ns().saturating_add(time) };
        self.open_until.store(until, Ordering::Relaxed);
    }

    /// Whether they do at this moment.
    pub fn is_open(&self) -> bool {
        sys::coarse_ns() <= self.open_until.load(Ordering::Relaxed)
    }

    /// So many frames that announce something were sent.
    pub fn count_frames(&self, sent: u64) {
        self.frames.fetch_add(sent, Ordering::Relaxed);
    }

    /// Something failed, and will be tried again.
    pub fn count_failure(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }

    /// So many addresses went to nodes that had announced them, and so many without that.
    pub fn count_gone(&self, announced: u64, waited: u64) {
        self.handed_over.fetch_add(announced, Ordering::Relaxed);
        self.waited.fetch_add(waited, Ordering::Relaxed);
    }

    /// Addresses that went to another node, by why they went.
    pub fn gone(&self) -> [(&'static str, u64); 2] {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        [("announced", get(&self.handed_over)), ("waited", get(&self.waited))]
    }

    /// Frames that were sent to announce something.
    pub fn frames(&self) -> u64 {
        self.frames.load(Ordering::Relaxed)
    }

    /// What failed.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }
}
