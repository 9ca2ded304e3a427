//! Which nodes are alive, as this one knows it.

use prometheus_client::registry::Registry;

use super::{counters, gauge, label};
use crate::members::Tally;

/// The members, and their packets.
pub(super) fn register(registry: &mut Registry, tally: &Tally) {
    let report = tally.report();
    let help = "Nodes that count as alive, this one among them";
    gauge(registry, "members_alive", help, report.alive());
    let help = "Nodes that are known, this one among them";
    gauge(registry, "members_known", help, report.nodes.len() + 1);
    let help = "Whether this node sees neither the API nor any other node";
    gauge(registry, "members_isolated", help, i64::from(report.isolated));

    let help = "Nodes that were lost, and not their agents alone";
    gauge(registry, "members_dead", help, report.dead());
    let help =
        "Endpoints that get nothing new because their nodes are dead, for each port of a Service";
    gauge(registry, "dead_endpoints", help, tally.left_out());

    let help = "Packets of the membership protocol, by what became of them";
    let packets = counters(registry, "members_packets", help);
    for (result, count) in tally.packets() {
        packets.get_or_create(&label("result", result)).inc_by(count);
    }
    let help = "Packets of the membership protocol that had no effect, by reason";
    let refused = counters(registry, "members_packets_refused", help);
    for (reason, count) in tally.refused() {
        refused.get_or_create(&label("reason", reason.as_str())).inc_by(count);
    }
}
