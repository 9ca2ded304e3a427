//! Metrics in the OpenMetrics format, read from the maps when somebody asks, so that they cannot
//! drift.

use std::sync::atomic::AtomicU64;

use anyhow::Context as _;
use lbxdp_common::ABI_VERSION;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::apply::pinned::{PinnedMaps, Sizes};
use crate::attach;
use crate::device::Why;
use crate::health::{Health, NoLocalCount};
use crate::netlink::Monitor;
use crate::pins::Pins;
use crate::source::kube;
use crate::sys::Access;

type Labels = Vec<(&'static str, String)>;
type Counters = Family<Labels, Counter<u64, AtomicU64>>;
type Gauges = Family<Labels, Gauge>;

/// Everything there is to say.
pub fn text(health: &Health) -> anyhow::Result<String> {
    let mut registry = Registry::with_prefix("lbxdp");
    let gauges = |registry: &mut Registry, name: &str, help: &str| {
        let family = Gauges::default();
        registry.register(name, help, family.clone());
        family
    };

    let build = gauges(&mut registry, "build_info", "Version of the agent and of the map layout");
    let version =
        vec![("version", env!("CARGO_PKG_VERSION").to_owned()), ("abi", ABI_VERSION.to_string())];
    build.get_or_create(&version).set(1);

    let problems = gauges(&mut registry, "problems", "What is wrong with the input, by severity");
    let (warnings, errors) = health.problem_counts();
    for (severity, count) in [("warning", warnings), ("error", errors)] {
        problems.get_or_create(&vec![("severity", severity.to_owned())]).set(signed(count));
    }

    for (name, help, answers) in [
        ("healthz", "Answers of /healthz, by status code", &health.healthz),
        ("livez", "Answers of /livez, by status code", &health.livez),
    ] {
        let counters = Counters::default();
        registry.register(name, help, counters.clone());
        for (code, count) in answers.by_code() {
            counters.get_or_create(&vec![("code", code.to_string())]).inc_by(count);
        }
    }

    let no_local = gauges(
        &mut registry,
        "no_local_endpoints",
        "Service ports that a policy Local leaves without endpoints on this node, though others have \
         some",
    );
    let NoLocalCount { internal, external } = health.no_local_endpoints();
    for (policy, count) in [("internal", internal), ("external", external)] {
        no_local.get_or_create(&vec![("traffic_policy", policy.to_owned())]).set(signed(count));
    }

    if let Some(kube) = health.kube() {
        register_watches(&mut registry, kube);
    }

    let pins = Pins::new(health.pin_path());
    let maps = PinnedMaps::open(&pins, Access::ReadOnly)?;
    let drops = Counters::default();
    registry.register("drops", "Packets that ended here, by reason", drops.clone());
    for (reason, count) in maps.drops()? {
        drops.get_or_create(&vec![("reason", reason.as_str().to_owned())]).inc_by(count);
    }
    let events = Counters::default();
    registry.register("events", "What the programs did, by kind", events.clone());
    for (event, count) in maps.counters()? {
        events.get_or_create(&vec![("event", event.as_str().to_owned())]).inc_by(count);
    }

    let Sizes { frontends, backends, addresses } = maps.sizes()?;
    for (name, help, count) in [
        ("frontends", "Frontends that are programmed", frontends),
        ("backends", "Backends that are programmed", backends),
        ("addresses", "Addresses that the programs look at", addresses),
    ] {
        let gauge = Gauge::<i64>::default();
        gauge.set(signed(count));
        registry.register(name, help, gauge);
    }

    let attached = gauges(&mut registry, "device_attached", "Programs on a device, by hook");
    let network = Monitor::snapshot().context("netlink")?;
    let mut pods = 0;
    for status in attach::read_status(&pins, &network)? {
        // One series for each pod would be too many, and none would last.
        if status.why == Some(Why::Pod) {
            pods += i64::from(status.tc.is_some());
            continue;
        }
        for (hook, is_there) in [("xdp", status.xdp.is_ok()), ("tc", status.tc.is_some())] {
            let labels = vec![("device", status.name.clone()), ("hook", hook.to_owned())];
            attached.get_or_create(&labels).set(i64::from(is_there));
        }
    }

    let gauge = Gauge::<i64>::default();
    gauge.set(pods);
    registry.register("pod_devices_attached", "Devices of pods that carry the programs", gauge);

    let mut text = String::new();
    encode(&mut text, &registry).context("encoding metrics")?;
    Ok(text)
}

/// The connection to the API, by kind of object.
fn register_watches(registry: &mut Registry, kube: &kube::Status) {
    let (connected, reconnects) = (Gauges::default(), Counters::default());
    let last_event = Family::<Labels, Gauge<f64, AtomicU64>>::default();
    for (kind, watch) in kube.watches() {
        let labels = vec![("kind", kind.to_string())];
        connected.get_or_create(&labels).set(i64::from(watch.is_connected()));
        reconnects.get_or_create(&labels).inc_by(watch.reconnects());
        last_event.get_or_create(&labels).set(watch.last_event());
    }
    registry.register("watch_connected", "Whether changes arrive from the API", connected);
    registry.register("watch_reconnects", "How often a watch was started again", reconnects);
    let help = "When the API last sent anything, bookmarks included; 0 for never";
    registry.register("watch_last_event_timestamp_seconds", help, last_event);
}

fn signed(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
