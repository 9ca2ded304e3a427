//! Objects that make no sense.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;

/// Values that are nearly right, next to any text at all. None of the addresses and ports of the
/// good Services is among them.
fn text(nearly: &'static [&'static str]) -> impl Strategy<Value = Value> {
    prop_oneof![
        6 => select(nearly).prop_map(|text| json!(text)),
        1 => any::<String>().prop_map(|text| json!(text)),
        1 => Just(Value::Null),
    ]
}

fn address() -> impl Strategy<Value = Value> {
    text(&[
        "10.77.0.1",
        "10.77.0.2",
        "192.0.2.77",
        "2001:db8::77",
        "10.1.0.1",
        "fd00:1::1",
        "127.0.0.1",
        "::",
        "None",
        "",
        "fe80::1",
        "224.0.0.1",
        "::ffff:10.96.0.1",
        "10.96.0.1/32",
    ])
}

fn number() -> impl Strategy<Value = Value> {
    prop_oneof![
        4 => (40_000..40_004i32).prop_map(|n| json!(n)),
        1 => any::<i32>().prop_filter("ports of the good Services", |n| !(1..40_000).contains(n))
            .prop_map(|n| json!(n)),
        1 => Just(json!(0)),
        1 => Just(Value::Null),
    ]
}

fn port() -> impl Strategy<Value = Value> {
    let name = text(&["http", "dns", "", "A", "a/b"]);
    let protocol = text(&["TCP", "UDP", "SCTP", "", "tcp"]);
    (name, protocol, number(), number()).prop_map(|(name, protocol, port, node_port)| {
        let port = if port.is_null() { json!(0) } else { port };
        json!({"name": name, "protocol": protocol, "port": port, "nodePort": node_port})
    })
}

/// An array without nulls, or nothing.
fn list(item: impl Strategy<Value = Value>) -> impl Strategy<Value = Value> {
    let items = vec(item, 0..4);
    prop_oneof![
        6 => items.prop_map(|items| {
            items.into_iter().filter(|item| !item.is_null()).collect::<Value>()
        }),
        1 => Just(Value::Null),
    ]
}

fn labels(service: &'static [&'static str]) -> impl Strategy<Value = Value> {
    let more =
        text(&["service.kubernetes.io/headless", "x", "service.kubernetes.io/service-proxy-name"]);
    (text(service), more, 0..8u8).prop_map(|(service, more, dice)| {
        let mut labels = json!({});
        if let Some(service) = service.as_str() {
            labels = json!({slices::SERVICE_NAME_LABEL: service});
        }
        match more.as_str() {
            Some(more) if dice == 0 => merge(labels, json!({more: "x"})),
            _ => labels,
        }
    })
}

/// A Service whose name and claims are not those of the good ones.
fn any_service() -> impl Strategy<Value = Sourced<Object>> {
    let policy = || text(&["Cluster", "Local", "local"]);
    let ingress = (address(), text(&["VIP", "Proxy", "x"]))
        .prop_map(|(ip, mode)| json!({"ip": ip, "ipMode": mode, "hostname": "h"}));
    let clients = (
        list(text(&["10.77.0.0/16", " 0.0.0.0/0", "2001:db8::7/32", "10.77.0.1", "", "x/y"])),
        text(&["ClientIP", "None", "", "x"]),
        number(),
    );
    (
        text(&["bad-1", "bad-2", "", "a/b"]),
        labels(&["x"]),
        (text(&["ClusterIP", "NodePort", "LoadBalancer", "ExternalName", "x"]), address()),
        (list(address()), list(port()), list(ingress), list(address())),
        (policy(), policy(), list(text(&["IPv4", "IPv6", "x"])), clients),
    )
        .prop_map(|(name, labels, (type_, ip), (ips, ports, ingress, external), more)| {
            let (external_policy, internal_policy, families, (ranges, affinity, seconds)) = more;
            object::<Service>(json!({
                "metadata": {"name": name, "labels": labels},
                "spec": {
                    "type": type_, "clusterIP": ip, "clusterIPs": ips, "ports": ports,
                    "externalIPs": external, "externalTrafficPolicy": external_policy,
                    "internalTrafficPolicy": internal_policy, "ipFamilies": families,
                    "sessionAffinity": affinity, "loadBalancerSourceRanges": ranges,
                    "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": seconds}},
                },
                "status": {"loadBalancer": {"ingress": ingress}},
            }))
        })
}

fn named(name: Value) -> Value {
    if name.is_null() { name } else { json!({"name": name}) }
}

fn any_slice(services: &'static [&'static str]) -> impl Strategy<Value = Sourced<Object>> {
    let conditions = any::<(Option<bool>, Option<bool>, Option<bool>)>();
    let hint = || list(text(&[NODE, "a", ""]).prop_map(named));
    let endpoint = (list(address()), text(&[NODE, "node-2"]), conditions, hint(), hint()).prop_map(
        |(addresses, node, (ready, serving, terminating), nodes, zones)| {
            json!({
                "addresses": addresses, "nodeName": node,
                "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
                "hints": {"forNodes": nodes, "forZones": zones},
            })
        },
    );
    (
        text(&["s-1", "s-2", "s-3"]),
        labels(services),
        text(&["IPv4", "IPv6", "FQDN"]),
        list(endpoint),
        list(port()),
    )
        .prop_map(|(name, labels, kind, endpoints, ports)| {
            let metadata = json!({"name": name, "labels": labels});
            object::<EndpointSlice>(json!({
                "metadata": metadata, "addressType": kind, "endpoints": endpoints, "ports": ports,
            }))
        })
}

fn any_node() -> impl Strategy<Value = Sourced<Object>> {
    let addr = (text(&["InternalIP", "ExternalIP"]), address())
        .prop_map(|(kind, addr)| json!({"type": kind, "address": addr}));
    (text(&[NODE, "node-2"]), list(addr), text(&["a"])).prop_map(|(name, addresses, zone)| {
        let labels = json!({"topology.kubernetes.io/zone": zone.as_str().unwrap_or_default()});
        let metadata = json!({"name": name, "labels": labels});
        object::<Node>(json!({"metadata": metadata, "status": {"addresses": addresses}}))
    })
}

fn good() -> Vec<Sourced<Object>> {
    let ports = json!([{"name": "http", "port": 80, "nodePort": 30080}]);
    let slice_ports = json!([{"name": "http", "port": 8080}]);
    let endpoints = on_nodes(&[("10.0.0.1", true), ("10.0.0.2", false)]);
    let slice = slice("web-1", "web", json!({"ports": slice_ports, "endpoints": endpoints}));
    let other = service("other", json!({"clusterIP": "10.96.0.2", "ports": [{"port": 81}]}));
    vec![
        web_balancer(json!({"ports": ports, "externalTrafficPolicy": "Local"})),
        slice,
        other,
        this_node(),
    ]
}

/// What follows if the operator allows everything, in both orders.
fn allowed(objects: &[Sourced<Object>]) -> (Desired, Vec<Problem>) {
    let everything = || vec![range("0.0.0.0/0").unwrap(), range("::/0").unwrap()];
    let config = || Config {
        allow_external_ips: everything(),
        node_port_addresses: everything().into_iter().map(NodePortAddresses::In).collect(),
        source_ranges_all_frontends: true,
    };
    let decide = |objects: Vec<Sourced<Object>>| {
        let mut index = Index::new(NODE).with_config(config());
        index.set_device_addresses(["10.1.0.1", "127.0.0.1"].map(|a| a.parse().unwrap()).into());
        index.replace(objects);
        decided(&mut index)
    };
    let forward = decide(objects.to_vec());
    assert_eq!(forward, decide(objects.iter().rev().cloned().collect()));
    forward
}

/// The same objects in both orders give the same; which of two objects with one id came last is
/// not part of that.
fn distinct(objects: Vec<Sourced<Object>>) -> Vec<Sourced<Object>> {
    let by_id: BTreeMap<_, _> = objects.into_iter().map(|o| (o.object.id(), o)).collect();
    by_id.into_values().collect()
}

/// What happens to an index.
#[derive(Clone, Debug)]
enum Event {
    Apply(Sourced<Object>),
    /// One of the objects that were applied.
    Delete(prop::sample::Index),
    Devices(bool),
    /// Whether the node of most endpoints is dead.
    Dead(bool),
    /// What follows is asked for.
    Follow,
}

fn event() -> impl Strategy<Value = Event> {
    // Few names and addresses, so that Services share both.
    let port = json!([{"name": "http", "port": 40_001, "nodePort": 40_000}]);
    let rival = (select(&["bad-1", "bad-2", "x"]), address(), any::<bool>(), any::<bool>())
        .prop_map(move |(name, ip, local, both)| {
            let policy = if local { "Local" } else { "Cluster" };
            let spec = json!({
                "type": "LoadBalancer", "clusterIP": "10.77.0.9", "ports": port,
                "externalTrafficPolicy": policy, "internalTrafficPolicy": policy,
                "healthCheckNodePort": 40_003,
            });
            let ingress = if both { json!([{"ip": "192.0.2.77"}, {"ip": ip}]) } else { json!([]) };
            balanced(name, spec, ingress)
        });
    let endpoints = vec((select(&["10.77.1.1", "10.77.1.2"]), any::<bool>()), 0..3);
    let full = (select(&["s-1", "s-2"]), select(&["bad-1", "bad-2", "x"]), endpoints).prop_map(
        |(name, service, endpoints)| {
            let ports = json!([{"name": "http", "port": 40_002}]);
            let more = json!({"endpoints": on_nodes(&endpoints), "ports": ports});
            slice(name, service, more)
        },
    );
    prop_oneof![
        3 => any_service().prop_map(Event::Apply),
        6 => rival.prop_map(Event::Apply),
        2 => any_slice(&["bad-1", "bad-2", "x"]).prop_map(Event::Apply),
        6 => full.prop_map(Event::Apply),
        1 => any_node().prop_map(Event::Apply),
        4 => any::<prop::sample::Index>().prop_map(Event::Delete),
        1 => any::<bool>().prop_map(Event::Devices),
        3 => any::<bool>().prop_map(Event::Dead),
        6 => Just(Event::Follow),
    ]
}

fn changed<K: Ord + Clone, V: PartialEq>(a: &BTreeMap<K, V>, b: &BTreeMap<K, V>) -> BTreeSet<K> {
    let keys = a.keys().chain(b.keys());
    keys.filter(|key| a.get(*key) != b.get(*key)).cloned().collect()
}

/// What differs is named, and with one frontend of a Service all of it.
fn assert_named(before: &Desired, after: &Desired, changes: &Changes) {
    let Changes::Some(touched) = changes else { return };
    let differ = changed(&before.frontends, &after.frontends);
    assert!(touched.frontends.is_superset(&differ), "{differ:?} of {touched:?}");
    for desired in [before, after] {
        let service =
            |addr| desired.frontends.get(addr).map(|f| (&f.name.namespace, &f.name.service));
        let services: BTreeSet<_> = touched.frontends.iter().filter_map(service).collect();
        for addr in desired.frontends.keys() {
            let is_of = service(addr).is_some_and(|name| services.contains(&name));
            assert!(!is_of || touched.frontends.contains(addr), "{addr} of {touched:?}");
        }
    }
    let moved = before.local_backends.symmetric_difference(&after.local_backends);
    assert!(moved.into_iter().all(|backend| touched.backends.contains(backend)));
    assert!(touched.health_checks || before.health_checks == after.health_checks);
    assert_eq!(before.node_port_addresses, after.node_port_addresses);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn following_every_change_leads_to_what_a_fresh_start_says(events in vec(event(), 1..40)) {
        let config = Config {
            allow_external_ips: vec![range("0.0.0.0/0").unwrap()],
            node_port_addresses: vec!["primary".parse().unwrap(), "10.1.0.0/16".parse().unwrap()],
            ..Config::default()
        };
        let empty = Index::new(NODE).with_config(config);
        let devices = |on: bool| on.then(|| "10.1.0.7".parse().unwrap()).into_iter().collect();
        let dead_nodes =
            |dead: bool| dead.then(|| "node-2".to_owned()).into_iter().collect::<BTreeSet<_>>();
        let (mut index, mut dead) = (empty.clone(), false);
        let (mut objects, mut ids, mut on) = (BTreeMap::new(), Vec::new(), false);
        for event in events.into_iter().chain([Event::Follow]) {
            match event {
                Event::Apply(object) => {
                    let id = object.object.id();
                    ids.push(id.clone());
                    objects.insert(id, object.clone());
                    index.apply(object);
                }
                Event::Delete(which) => if !ids.is_empty() {
                    let id = which.get(&ids);
                    objects.remove(id);
                    index.delete(id);
                },
                Event::Devices(now) => {
                    on = now;
                    index.set_device_addresses(devices(on));
                }
                Event::Dead(now) => {
                    dead = now;
                    index.set_dead_nodes(&dead_nodes(dead));
                }
                Event::Follow => {
                    let before = index.desired().clone();
                    let changes = index.follow();
                    assert_named(&before, index.desired(), &changes);
                    let mut fresh = empty.clone();
                    fresh.set_device_addresses(devices(on));
                    fresh.replace(objects.values().rev().cloned());
                    fresh.set_dead_nodes(&dead_nodes(dead));
                    let left_out = { fresh.follow(); fresh.left_out() };
                    let fresh = decided(&mut fresh);
                    prop_assert_eq!(index.desired(), &fresh.0);
                    prop_assert_eq!(index.left_out(), left_out);
                    prop_assert_eq!(index.problems(), &fresh.1);
                    prop_assert_eq!(index.follow(), Changes::default());
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn nonsense_never_panics_and_the_order_never_matters(
        services in vec(any_service(), 0..6),
        slices in vec(any_slice(&["bad-1", "bad-2", "nobody"]), 0..4),
        nodes in vec(any_node(), 0..3),
    ) {
        let objects = distinct([services, slices, nodes].concat());
        for (desired, problems) in [desired(&objects), allowed(&objects)] {
            for problem in &problems {
                prop_assert!(!problem.to_string().contains(char::is_control), "{:?}", problem);
            }
            for (addr, Frontend { external, internal, clients, .. }) in &desired.frontends {
                prop_assert!(!addr.addr.is_loopback());
                prop_assert!(clients.affinity <= 86_400);
                for range in clients.source_ranges.iter().flatten() {
                    prop_assert_eq!(Family::of(range.addr()), Family::of(addr.addr));
                    prop_assert_eq!(range.trunc(), *range);
                }
                for endpoints in [external, internal] {
                    let Endpoints::Serve(addrs) = endpoints else { continue };
                    prop_assert!(!addrs.is_empty());
                    for backend in addrs {
                        prop_assert_eq!(backend.is_ipv4(), addr.addr.is_ipv4());
                        prop_assert_ne!(backend.port(), 0);
                    }
                }
            }
        }
    }

    #[test]
    fn a_broken_service_never_changes_the_frontends_of_others(
        bad in vec(any_service(), 1..4),
        slices in vec(any_slice(&["bad-1", "bad-2", "nobody"]), 0..3),
    ) {
        let objects = distinct([good(), bad, slices].concat());
        for decide in [desired, allowed] {
            let (alone, with_bad) = (decide(&good()).0, decide(&objects).0);
            for (addr, frontend) in &alone.frontends {
                prop_assert_eq!(with_bad.frontends.get(addr), Some(frontend));
            }
            prop_assert!(with_bad.local_backends.is_superset(&alone.local_backends));
        }
    }
}
