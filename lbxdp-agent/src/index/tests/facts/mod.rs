//! What a service proxy does, one row for each fact that the index decides: a sentence, where it
//! is written, objects, and what follows. `docs/semantics.md` lists them next to kube-proxy.
//!
//! The objects of a row are added one by one in every order. Sources: K30 is Kubernetes 1.30, Kn a
//! newer one, both under `pkg/proxy` where no path is given; e2e is its end-to-end suite.

mod clients;
mod endpoints;
mod health;
mod services;
mod state;

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use super::*;
use services::{BALANCER, annotated, endpoints6};

/// A row of the table.
struct Fact {
    says: &'static str,
    source: &'static str,
    config: Config,
    devices: BTreeSet<IpAddr>,
    steps: Vec<Step>,
}

#[derive(Clone)]
enum Step {
    /// These objects come or change.
    Apply(Vec<Sourced<Object>>),
    /// This object goes.
    Delete(ObjectId),
    /// The node's devices have these addresses.
    Devices(BTreeSet<IpAddr>),
    /// These frontends follow, see [`show`].
    Serves(Vec<&'static str>),
    /// UDP flows of these frontends go on to these backends, see [`show_serving`].
    KeepsFlows(Vec<&'static str>),
    /// These health checks follow: `service port family=count…`.
    Checks(Vec<&'static str>),
    /// Whether new connections should come to this node.
    Eligible(bool),
    /// There is exactly one problem, of which this is a part.
    Complains(&'static str),
    /// There is no problem.
    Silent,
}

fn fact(says: &'static str, source: &'static str) -> Fact {
    let (config, devices) = (Config::default(), BTreeSet::new());
    Fact { says, source, config, devices, steps: Vec::new() }
}

impl Fact {
    fn step(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }

    fn given<const N: usize>(self, objects: [Sourced<Object>; N]) -> Self {
        self.step(Step::Apply(objects.into()))
    }

    fn deleted(self, kind: Kind, name: &str) -> Self {
        self.step(Step::Delete(ObjectId::new(kind, None, name)))
    }

    fn serves<const N: usize>(self, lines: [&'static str; N]) -> Self {
        self.step(Step::Serves(lines.into()))
    }

    fn keeps_flows<const N: usize>(self, lines: [&'static str; N]) -> Self {
        self.step(Step::KeepsFlows(lines.into()))
    }

    fn checks<const N: usize>(self, lines: [&'static str; N]) -> Self {
        self.step(Step::Checks(lines.into()))
    }

    fn eligible(self, is_eligible: bool) -> Self {
        self.step(Step::Eligible(is_eligible))
    }

    fn complains(self, part: &'static str) -> Self {
        self.step(Step::Complains(part))
    }

    fn silently(self) -> Self {
        self.step(Step::Silent)
    }

    fn allowing_external_ips<const N: usize>(mut self, ranges: [&str; N]) -> Self {
        self.config.allow_external_ips = ranges.iter().map(|text| range(text).unwrap()).collect();
        self
    }

    fn node_ports_on<const N: usize>(mut self, addresses: [&str; N]) -> Self {
        self.config.node_port_addresses = addresses.iter().map(|a| a.parse().unwrap()).collect();
        self
    }

    fn restricting_all_frontends(mut self) -> Self {
        self.config.source_ranges_all_frontends = true;
        self
    }

    fn devices_with<const N: usize>(mut self, addresses: [&str; N]) -> Self {
        let addresses: BTreeSet<_> = addresses.iter().map(|a| a.parse().unwrap()).collect();
        match self.steps.is_empty() {
            true => self.devices = addresses,
            false => self.steps.push(Step::Devices(addresses)),
        }
        self
    }

    fn check(&self) {
        let Self { says, source, config, devices, steps } = self;
        let (first, rest) = steps.split_first().expect("a step");
        let Step::Apply(objects) = first else { panic!("{says}: no objects") };
        assert!(!source.is_empty(), "{says}");
        let is_checked = |step: &Step| {
            !matches!(step, Step::Apply(_) | Step::Delete(_) | Step::Devices(_) | Step::Silent)
        };
        assert!(rest.iter().any(is_checked), "{says}");
        for order in orders(objects) {
            let mut index = Index::new(NODE).with_config(config.clone());
            index.set_device_addresses(devices.clone());
            for object in order {
                index.apply(object);
                decided(&mut index);
            }
            for step in rest {
                take(&mut index, step.clone(), says);
            }
        }
    }
}

fn take(index: &mut Index, step: Step, says: &str) {
    match step {
        Step::Apply(objects) => objects.into_iter().for_each(|object| index.apply(object)),
        Step::Delete(id) => index.delete(&id),
        Step::Devices(addresses) => index.set_device_addresses(addresses),
        Step::Serves(lines) => assert_eq!(show(&decided(index).0), lines, "{says}"),
        Step::KeepsFlows(lines) => {
            assert_eq!(show_serving(&decided(index).0), lines, "{says}");
        }
        Step::Checks(lines) => assert_eq!(show_checks(&decided(index).0), lines, "{says}"),
        Step::Eligible(expected) => assert_eq!(index.is_node_eligible(), expected, "{says}"),
        Step::Complains(part) => {
            let problems = decided(index).1;
            assert_eq!(problems.len(), 1, "{says}: {problems:?}");
            let problem = problems[0].to_string();
            assert!(problem.contains(part), "{says}: {problem}");
        }
        Step::Silent => assert_eq!(decided(index).1, [], "{says}"),
    }
}

/// Every order of a few objects.
fn orders(objects: &[Sourced<Object>]) -> Vec<Vec<Sourced<Object>>> {
    assert!(objects.len() <= 5, "too many for every order");
    let Some((first, rest)) = objects.split_first() else { return vec![Vec::new()] };
    let mut all = Vec::new();
    for order in orders(rest) {
        for at in 0..=order.len() {
            let mut order = order.clone();
            order.insert(at, first.clone());
            all.push(order);
        }
    }
    all
}

/// `kind address choice`, or `kind address external | internal` where the two differ. A backend
/// `#1` is 10.0.0.1:8080. Behind that are the ranges of clients and the seconds of affinity, where
/// there are any.
fn show(desired: &Desired) -> Vec<String> {
    let line = |(addr, frontend): (&FrontendAddr, &Frontend)| {
        let Frontend { kind, name: _, external, internal, serving: _, clients } = frontend;
        let mut line = format!("{} {addr} {}", kind.as_str(), choice(external));
        if external != internal {
            write!(line, " | {}", choice(internal)).unwrap();
        }
        let Clients { affinity, source_ranges } = clients;
        if let Some(ranges) = source_ranges {
            let ranges: Vec<_> = ranges.iter().map(ToString::to_string).collect();
            let ranges = if ranges.is_empty() { "nobody".to_owned() } else { ranges.join(",") };
            write!(line, " for {ranges}").unwrap();
        }
        if *affinity != 0 {
            write!(line, " sticky {affinity}s").unwrap();
        }
        line.replace("10.0.0.", "#").replace(":8080", "")
    };
    desired.frontends.iter().map(line).collect()
}

fn show_checks(desired: &Desired) -> Vec<String> {
    let line = |((_, name), check): (&(String, String), &HealthCheck)| {
        let mut line = format!("{name} {}", check.port);
        for (family, count) in &check.local_endpoints {
            write!(line, " {family}={count}").unwrap();
        }
        line
    };
    desired.health_checks.iter().map(line).collect()
}

/// `address: backend …` with backends as [`show`] has them.
fn show_serving(desired: &Desired) -> Vec<String> {
    let line = |(addr, frontend): (&FrontendAddr, &Frontend)| {
        let mut line = format!("{addr}:");
        for backend in &frontend.serving {
            write!(line, " {backend}").unwrap();
        }
        line.replace("10.0.0.", "#").replace(":8080", "")
    };
    desired.frontends.iter().map(line).collect()
}

/// Endpoint 10.0.0.`number`, described in words: `here` or `there`; `ready`, `unready`, `serving`
/// (not ready, but says that it serves), `draining` or `failing` (terminating, and no longer serving); `node=x` and `zone=x` for hints.
fn endpoint((number, words): &(u8, &str)) -> Value {
    let mut endpoint = json!({"addresses": [format!("10.0.0.{number}")]});
    let (mut nodes, mut zones) = (Vec::new(), Vec::new());
    for word in words.split(' ') {
        let more = match word {
            "here" => json!({"nodeName": NODE}),
            "there" => json!({"nodeName": "node-2"}),
            "ready" => conditions(true, true, false),
            "unready" => conditions(false, false, false),
            "serving" => conditions(false, true, false),
            "draining" => conditions(false, true, true),
            "failing" => conditions(false, false, true),
            hint => {
                match hint.split_once('=').unwrap() {
                    ("node", name) => nodes.push(json!({"name": name})),
                    ("zone", name) => zones.push(json!({"name": name})),
                    _ => panic!("{hint}"),
                }
                continue;
            }
        };
        endpoint = merge(endpoint, more);
    }
    if nodes.is_empty() && zones.is_empty() {
        return endpoint;
    }
    merge(endpoint, json!({"hints": {"forNodes": nodes, "forZones": zones}}))
}

fn conditions(ready: bool, serving: bool, terminating: bool) -> Value {
    json!({"conditions": {"ready": ready, "serving": serving, "terminating": terminating}})
}

fn endpoints<const N: usize>(described: [(u8, &str); N]) -> Sourced<Object> {
    let endpoints: Value = described.iter().map(endpoint).collect();
    slice("web-1", "web", json!({"endpoints": endpoints}))
}

/// Slice `web-1` with one endpoint of these fields.
fn written(fields: Value) -> Sourced<Object> {
    let endpoint = merge(json!({"addresses": ["10.0.0.1"]}), fields);
    slice("web-1", "web", json!({"endpoints": [endpoint]}))
}

/// This node with a label for its zone.
fn node_in_zone(zone: &str) -> Sourced<Object> {
    let mut node = this_node();
    let Object::Node(object) = &mut node.object else { panic!() };
    let labels = [("topology.kubernetes.io/zone".to_owned(), zone.to_owned())];
    Arc::make_mut(object).metadata.labels = Some(labels.into());
    node
}

fn labelled(mut object: Sourced<Object>, key: &str) -> Sourced<Object> {
    let metadata = match &mut object.object {
        Object::Service(service) => &mut Arc::make_mut(service).metadata,
        Object::EndpointSlice(slice) => &mut Arc::make_mut(slice).metadata,
        Object::Node(node) => &mut Arc::make_mut(node).metadata,
    };
    metadata.labels.get_or_insert_default().insert(key.to_owned(), String::new());
    object
}

fn rows() -> Vec<Fact> {
    [clients::rows(), endpoints::rows(), services::rows(), health::rows(), state::rows()]
        .into_iter()
        .flatten()
        .collect()
}

#[test]
fn every_fact_holds_in_every_order() {
    let rows = rows();
    let names: BTreeSet<_> = rows.iter().map(|fact| fact.says).collect();
    assert_eq!(names.len(), rows.len(), "each sentence once");
    rows.iter().for_each(Fact::check);
}

/// The cells of the table rows of `docs/semantics.md`, without headers.
fn documented() -> Vec<Vec<&'static str>> {
    let text = include_str!("../../../../../docs/semantics.md");
    let rows = text.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| Fact"));
    rows.map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect()).collect()
}

/// Every source with tests: of the index, of packets through the programs, of real sockets.
fn test_sources() -> Vec<String> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut sources = Vec::new();
    let mut left = ["lbxdp-agent", "lbxdp-common", "lbxdp-ebpf", "tests"]
        .map(|member| workspace.join(member))
        .to_vec();
    while let Some(path) = left.pop() {
        if path.is_dir() {
            left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            sources.extend(fs::read_to_string(&path).ok().filter(|text| text.contains("#[test]")));
        }
    }
    sources
}

#[test]
fn the_documentation_lists_every_fact_and_names_no_test_that_is_not_there() {
    let sources = test_sources();
    let rows = rows();
    let mut unlisted: BTreeSet<_> = rows.iter().map(|fact| fact.says).collect();
    for cells in documented() {
        let [_, _, _, tests] = cells.as_slice() else { panic!("not four cells: {cells:?}") };
        for test in tests.split("<br>") {
            if test.starts_with("not yet") || test == "none" {
                continue;
            }
            if let Some(name) = test.strip_prefix('`').and_then(|test| test.strip_suffix('`')) {
                let function = format!("fn {name}()");
                assert!(sources.iter().any(|text| text.contains(&function)), "no test {name}");
                continue;
            }
            assert!(rows.iter().any(|fact| fact.says == test), "no row: {test}");
            unlisted.remove(test);
        }
    }
    assert_eq!(unlisted, BTreeSet::new(), "not in docs/semantics.md");
}
