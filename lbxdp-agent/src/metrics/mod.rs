//! Metrics in the OpenMetrics format, read when somebody asks from where they are true: the maps,
//! the devices, the agent's [`Progress`], the connection to the API. Nothing is copied that could
//! drift. `docs/metrics.md` lists them, and a test compares.

mod addresses;
mod kube;
mod layer2;
mod maps;
mod members;

use std::sync::atomic::AtomicU64;

use anyhow::Context as _;
use lbxdp_common::ABI_VERSION;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Metric, Registry};

use crate::attach;
use crate::device::Why;
use crate::health::{Health, NoLocalCount};
use crate::netlink::Monitor;
use crate::pins::Pins;
use crate::progress::Progress;

type Labels = Vec<(&'static str, String)>;
type Counters = Family<Labels, Counter<u64, AtomicU64>>;
type Gauges<N = i64, A = std::sync::atomic::AtomicI64> = Family<Labels, Gauge<N, A>>;
/// Of numbers that have fractions.
type Ratios = Gauges<f64, AtomicU64>;

/// Everything there is to say.
pub fn text(health: &Health) -> anyhow::Result<String> {
    let mut registry = Registry::with_prefix("lbxdp");
    register_agent(&mut registry, health);
    register_progress(&mut registry, &health.progress);
    addresses::register(&mut registry, &health.addresses);
    members::register(&mut registry, &health.members);
    layer2::register(&mut registry, &health.layer2);
    if let Some(status) = health.kube() {
        kube::register(&mut registry, status);
    }
    let pins = Pins::new(health.pin_path());
    maps::register(&mut registry, &pins, &health.progress)?;
    register_devices(&mut registry, &pins)?;
    let mut text = String::new();
    encode(&mut text, &registry).context("encoding metrics")?;
    Ok(text)
}

/// What the agent says of itself.
fn register_agent(registry: &mut Registry, health: &Health) {
    let build = gauges(registry, "build_info", "Version of the agent and of the map layout");
    let version =
        vec![("version", env!("CARGO_PKG_VERSION").to_owned()), ("abi", ABI_VERSION.to_string())];
    build.get_or_create(&version).set(1);

    let problems = gauges(registry, "problems", "What is wrong with the input, by severity");
    let (warnings, errors) = health.problem_counts();
    for (severity, count) in [("warning", warnings), ("error", errors)] {
        problems.get_or_create(&label("severity", severity)).set(signed(count));
    }

    for (name, help, answers) in [
        ("healthz", "Answers of /healthz, by status code", &health.healthz),
        ("livez", "Answers of /livez, by status code", &health.livez),
    ] {
        let counters = counters(registry, name, help);
        for (code, count) in answers.by_code() {
            counters.get_or_create(&label("code", code)).inc_by(count);
        }
    }

    let no_local = gauges(
        registry,
        "no_local_endpoints",
        "Service ports that a policy Local leaves without endpoints on this node, though others have \
         some",
    );
    let NoLocalCount { internal, external } = health.no_local_endpoints();
    for (policy, count) in [("internal", internal), ("external", external)] {
        no_local.get_or_create(&label("traffic_policy", policy)).set(signed(count));
    }
}

/// What the agent has done and has to do.
fn register_progress(registry: &mut Registry, progress: &Progress) {
    let help = "From the event that changed endpoints to the maps that have the change; changes \
                since the start whose EndpointSlice says when that was";
    registry.register("network_programming_duration_seconds", help, progress.programming.clone());

    let help = "How long it took to make the maps what they should be, by what had to be looked at";
    registry.register("sync_duration_seconds", help, progress.durations.clone());

    let errors = Counter::<u64, AtomicU64>::default();
    errors.inc_by(progress.errors());
    registry.register("sync_errors", "Synchronisations that ended with an error", errors);

    for (name, help, at) in [
        (
            "last_sync_timestamp_seconds",
            "When the maps were last what they should be; 0 for never",
            progress.last_sync(),
        ),
        (
            "last_queued_timestamp_seconds",
            "When a change last came that is to be programmed; 0 for never",
            progress.last_queued(),
        ),
    ] {
        let gauge = Gauge::<f64, AtomicU64>::default();
        gauge.set(at.as_secs_f64());
        registry.register(name, help, gauge);
    }

    let pending = gauges(registry, "changes_pending", "Changes that are not programmed, by kind");
    let total = counters(registry, "changes", "Changes that came, by kind");
    for (kind, changes) in [("services", &progress.services), ("endpoints", &progress.endpoints)] {
        pending.get_or_create(&label("kind", kind)).set(signed(changes.pending()));
        total.get_or_create(&label("kind", kind)).inc_by(changes.total());
    }
}

/// Where the programs are.
fn register_devices(registry: &mut Registry, pins: &Pins) -> anyhow::Result<()> {
    let attached = gauges(registry, "device_attached", "Programs on a device, by hook");
    let network = Monitor::snapshot().context("netlink")?;
    let mut pods = 0;
    for status in attach::read_status(pins, &network)? {
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
    gauge(registry, "pod_devices_attached", "Devices of pods that carry the programs", pods);
    Ok(())
}

fn gauges(registry: &mut Registry, name: &str, help: &str) -> Gauges {
    family(registry, name, help)
}

fn counters(registry: &mut Registry, name: &str, help: &str) -> Counters {
    family(registry, name, help)
}

/// Registers metrics by label, to be filled.
fn family<M: Metric + Clone + Default>(registry: &mut Registry, name: &str, help: &str) -> M {
    let family = M::default();
    registry.register(name, help, family.clone());
    family
}

/// Registers a single number.
fn gauge(registry: &mut Registry, name: &str, help: &str, count: impl TryInto<i64>) {
    let gauge = Gauge::<i64>::default();
    gauge.set(signed(count));
    registry.register(name, help, gauge);
}

fn label(name: &'static str, value: impl ToString) -> Labels {
    vec![(name, value.to_string())]
}

fn signed(count: impl TryInto<i64>) -> i64 {
    count.try_into().unwrap_or(i64::MAX)
}
