//! The addresses that Services are given, by the agent that gives them.

use prometheus_client::registry::Registry;

use super::{counters, gauge, gauges, label, signed};
use crate::vip::{Tally, View};

/// Pools, who waits, and what was written.
pub(super) fn register(registry: &mut Registry, tally: &Tally) {
    let View { is_giving, is_adoption_refused, pools, pending } = tally.view();
    let help = "Whether this agent gives addresses to Services";
    gauge(registry, "address_controller_leader", help, i64::from(is_giving));
    let help =
        "Whether Services without a class are left to MetalLB, although they are to be adopted";
    gauge(registry, "adoption_refused", help, i64::from(is_adoption_refused));

    let help = "Addresses that a pool could give out if nobody had any";
    let total = gauges(registry, "pool_addresses", help);
    let in_use =
        gauges(registry, "pool_addresses_in_use", "Addresses of a pool that Services have");
    let help = "Addresses of a pool that Services may still get";
    let available = gauges(registry, "pool_addresses_available", help);
    for (pool, counts) in &pools {
        for (family, counts) in [("IPv4", counts.v4), ("IPv6", counts.v6)] {
            // Most pools have one family.
            if counts.total == 0 && counts.assigned == 0 {
                continue;
            }
            let labels = vec![("pool", pool.clone()), ("family", family.to_owned())];
            total.get_or_create(&labels).set(signed(counts.total));
            in_use.get_or_create(&labels).set(signed(counts.assigned));
            available.get_or_create(&labels).set(signed(counts.available));
        }
    }

    let help = "Services that lack an address, by reason";
    let waiting = gauges(registry, "services_pending", help);
    for (reason, count) in &pending {
        waiting.get_or_create(&label("reason", reason)).set(signed(*count));
    }

    let help = "What was written about addresses, by where and what came of it";
    let writes = counters(registry, "address_writes", help);
    for (object, result, count) in tally.writes() {
        let labels =
            vec![("object", object.as_str().to_owned()), ("result", result.as_str().to_owned())];
        writes.get_or_create(&labels).inc_by(count);
    }
}
