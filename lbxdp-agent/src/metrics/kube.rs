//! The connection to the API.

use prometheus_client::registry::Registry;

use super::{Ratios, counters, family, gauges, label};
use crate::source::kube;

/// By kind of object.
pub(super) fn register(registry: &mut Registry, status: &kube::Status) {
    let connected = gauges(registry, "watch_connected", "Whether changes arrive from the API");
    let help = "How often a watch was started again";
    let reconnects = counters(registry, "watch_reconnects", help);
    let help = "When the API last sent anything, bookmarks included; 0 for never";
    let last_event: Ratios = family(registry, "watch_last_event_timestamp_seconds", help);
    for (kind, watch) in status.watches() {
        let kind = label("kind", kind);
        connected.get_or_create(&kind).set(i64::from(watch.is_connected()));
        reconnects.get_or_create(&kind).inc_by(watch.reconnects());
        last_event.get_or_create(&kind).set(watch.last_event());
    }

    let events = status.events();
    let help = "Events that the API has, by who created them";
    let sent = counters(registry, "events_sent", help);
    for (result, count) in events.sent() {
        sent.get_or_create(&label("result", result)).inc_by(count);
    }
    let dropped = counters(registry, "events_dropped", "Events that nobody will read, by reason");
    for (reason, count) in events.dropped() {
        dropped.get_or_create(&label("reason", reason)).inc_by(count);
    }
}
