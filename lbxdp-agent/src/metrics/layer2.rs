//! The addresses that this node announces.

use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;

use super::{counters, gauge, gauges, label, signed};
use crate::layer2::Progress;

/// What is announced, and how that goes.
pub(super) fn register(registry: &mut Registry, progress: &Progress) {
    let help = "Addresses that this node announces on the local network";
    gauge(registry, "announced_addresses", help, progress.announced().len());
    let help = "Whether the programs answer for them at this moment, because the agent has said lately that \
                it is there";
    gauge(registry, "announcing_gate_open", help, i64::from(progress.is_open()));
    let help = "Addresses of Services that are announced here and that no node announces, by cause";
    let causes = gauges(registry, "addresses_not_announced", help);
    for (cause, count) in progress.not_announced().named() {
        causes.get_or_create(&label("cause", cause)).set(signed(count));
    }
    for (name, help, count) in [
        (
            "announcements",
            "Frames sent that say where an address is, without answers to questions",
            progress.frames(),
        ),
        (
            "announcing_failures",
            "What failed of announcing and was or will be tried again",
            progress.failures(),
        ),
    ] {
        let counter = Counter::<u64, AtomicU64>::default();
        counter.inc_by(count);
        registry.register(name, help, counter);
    }
    let help = "Addresses that this node left to another one that lives, because that had announced them, or \
                had not for as long as it was waited for";
    let gone = counters(registry, "handovers", help);
    for (after, count) in progress.gone() {
        gone.get_or_create(&label("after", after)).inc_by(count);
    }
}
