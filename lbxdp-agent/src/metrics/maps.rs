//! What the maps hold and what the programs have counted.

use lbxdp_common::{Counter, Mode};
use prometheus_client::registry::Registry;

use super::{Ratios, counters, family, gauge, gauges, label, signed};
use crate::apply::MapError;
use crate::apply::pinned::{FlowCounts, PinnedMaps, Sizes};
use crate::apply::pressure;
use crate::apply::sockets::SocketMaps;
use crate::pins::Pins;
use crate::progress::{Progress, Room};
use crate::sockets;
use crate::sys::{self, Access};

/// From the pinned maps, and what only the agent knows of them.
pub(super) fn register(
    registry: &mut Registry,
    pins: &Pins,
    progress: &Progress,
) -> Result<(), MapError> {
    let maps = PinnedMaps::open(pins, Access::ReadOnly)?;
    let drops = counters(registry, "drops", "Packets that ended here, by reason");
    for (reason, count) in maps.drops()? {
        drops.get_or_create(&label("reason", reason.as_str())).inc_by(count);
    }

    let counted = maps.counters()?;
    let help = "What the programs did, other than dropping, by kind";
    let events = counters(registry, "dataplane_events", help);
    for (event, count) in &counted {
        events.get_or_create(&label("event", event.as_str())).inc_by(*count);
    }
    let of = |counter: Counter| counted.get(&counter).copied().unwrap_or_default();
    let help = "Packets that met their flow, or became the first of one: of something that begins, \
                or of a TCP or SCTP connection that is under way";
    let lookups = counters(registry, "flow_lookups", help);
    let midstream = of(Counter::FlowMidstream);
    for (result, count) in [
        ("hit", of(Counter::FlowHit)),
        // The counters are read one after the other.
        ("miss", of(Counter::FlowNew).saturating_sub(midstream)),
        ("miss_midstream", midstream),
    ] {
        lookups.get_or_create(&label("result", result)).inc_by(count);
    }

    let Sizes { frontends, backends, addresses } = maps.sizes()?;
    for (name, help, count) in [
        ("frontends", "Frontends that are programmed", frontends),
        ("backends", "Backends that are programmed", backends),
        ("addresses", "Addresses that the programs look at", addresses),
    ] {
        gauge(registry, name, help, count);
    }

    register_flows(registry, pins, &maps)?;

    let mut rooms = progress.rooms();
    rooms.extend(pressure::sampled(pins, sys::coarse_ns())?);
    register_rooms(registry, &rooms);
    Ok(())
}

/// Whether new connections are served, and while they are left to the stack, what somebody waits for who
/// hands this node over. That takes a walk over all flows, which nobody wants at each scrape for nothing.
fn register_flows(registry: &mut Registry, pins: &Pins, maps: &PinnedMaps) -> Result<(), MapError> {
    let modes = gauges(registry, "mode", "Whether new connections are served");
    let mode = maps.mode()?;
    for known in Mode::ALL {
        modes.get_or_create(&label("mode", known.as_str())).set(i64::from(*known == mode));
    }
    if mode == Mode::Serving {
        return Ok(());
    }
    let help = "Flows that are not over, by who translates them: the programs, or the stack for \
                others. Not while new connections are served";
    let flows = gauges(registry, "flows", help);
    let FlowCounts { established, other, foreign_established, foreign_other } =
        maps.flow_counts(sys::coarse_ns())?;
    for (by, state, count) in [
        ("lbxdp", "established", established),
        ("lbxdp", "other", other),
        ("stack", "established", foreign_established),
        ("stack", "other", foreign_other),
    ] {
        let labels = vec![("translated_by", by.to_owned()), ("state", state.to_owned())];
        flows.get_or_create(&labels).set(signed(count));
    }
    let entries = SocketMaps::open(pins, Access::ReadOnly)?.udp()?;
    let help = "UDP sockets that get their answers through the programs. Not while new connections \
                are served";
    gauge(registry, "udp_sockets", help, sockets::count(&entries));
    Ok(())
}

fn register_rooms(registry: &mut Registry, rooms: &[Room]) {
    let used = gauges(registry, "map_used_entries", "Entries of a map that are in use");
    let capacity = gauges(registry, "map_capacity_entries", "The most entries that a map can have");
    let pressure: Ratios =
        family(registry, "map_pressure", "How full a map is: 1 takes nothing more");
    for room in rooms {
        let map = label("map", room.map);
        used.get_or_create(&map).set(signed(room.used));
        capacity.get_or_create(&map).set(signed(room.capacity));
        // Of an estimate, which may be a little more than there can be.
        let ratio = room.used as f64 / room.capacity.max(1) as f64;
        pressure.get_or_create(&map).set(ratio.min(1.0));
    }
}
