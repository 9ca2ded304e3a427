//! Which Services are served, and where.

use super::*;

const NOTHING: [&str; 0] = [];

#[test]
fn a_cluster_ip_is_served_on_every_port() {
    let objects = [web(json!({"ports": [
        {"name": "http", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"},
    ]}))];
    assert_eq!(
        frontends(&objects),
        [
            "10.96.0.1:53/UDP ClusterIP default/web:dns reject | reject",
            "10.96.0.1:80/TCP ClusterIP default/web:http reject | reject",
        ],
    );
    assert_eq!(problems(&objects), NOTHING);
}

#[test]
fn services_that_are_not_for_a_proxy_are_left_out_in_silence() {
    for (why, spec, labels) in [
        ("ExternalName", json!({"type": "ExternalName"}), json!({})),
        ("headless", json!({"clusterIP": "None"}), json!({})),
        ("headless", json!({"clusterIP": null, "clusterIPs": ["None"]}), json!({})),
        ("other proxy", json!({}), json!({"service.kubernetes.io/service-proxy-name": ""})),
        ("headless label", json!({}), json!({"service.kubernetes.io/headless": ""})),
    ] {
        let spec = merge(json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}), spec);
        let metadata = json!({"name": "web", "labels": labels});
        let objects = [
            object::<Service>(json!({"metadata": metadata, "spec": spec})),
            web_slice(&[("10.0.0.1", true)]),
        ];
        assert_eq!(frontends(&objects), NOTHING, "{why}");
        assert_eq!(problems(&objects), NOTHING, "{why}");
    }
}

#[test]
fn a_service_that_waits_for_its_cluster_ip_is_not_served() {
    let objects = [web(json!({"clusterIP": ""}))];
    assert_eq!(frontends(&objects), NOTHING);
    let expected =
        "warning: Service default/web: spec.clusterIP: no ClusterIP: the Service is not served";
    assert_eq!(problems(&objects), [expected]);
}

#[test]
fn both_families_are_served_from_slices_of_their_own() {
    let objects = [
        web(json!({"clusterIPs": ["10.96.0.1", "fd00:96::1"]})),
        web_slice(&[("10.0.0.1", false)]),
        slice(
            "web-6",
            "web",
            json!({
                "addressType": "IPv6", "endpoints": on_nodes(&[("fd00::1", true)]),
            }),
        ),
    ];
    assert_eq!(
        frontends(&objects),
        [
            "10.96.0.1:80/TCP ClusterIP default/web:80 10.0.0.1:8080 | 10.0.0.1:8080",
            "[fd00:96::1]:80/TCP ClusterIP default/web:80 [fd00::1]:8080 | [fd00::1]:8080",
        ],
    );
    assert_eq!(problems(&objects), NOTHING);
}

#[test]
fn load_balancer_addresses_are_served_unless_the_balancer_delivers_itself() {
    let spec = json!({
        "type": "LoadBalancer", "clusterIP": "10.96.0.1", "ipFamilies": ["IPv4", "IPv6"],
        "ports": [{"port": 80}],
    });
    let ingress = json!([
        {"ip": "192.0.2.1"}, {"ip": "192.0.2.2", "ipMode": "VIP"}, {"hostname": "example.org"},
        {"ip": "192.0.2.3", "ipMode": "Proxy"}, {"ip": "2001:db8::1", "hostname": "example.org"},
    ]);
    let objects = [balanced("web", spec, ingress)];
    assert_eq!(
        frontends(&objects),
        [
            "10.96.0.1:80/TCP ClusterIP default/web:80 reject | reject",
            "192.0.2.1:80/TCP LoadBalancer default/web:80 reject | reject",
            "192.0.2.2:80/TCP LoadBalancer default/web:80 reject | reject",
            "[2001:db8::1]:80/TCP LoadBalancer default/web:80 reject | reject",
        ],
    );
    assert_eq!(problems(&objects), NOTHING);
}

#[test]
fn load_balancer_addresses_need_the_type() {
    let spec = json!({"type": "NodePort", "clusterIP": "10.96.0.1", "ports": [{"port": 80}]});
    let objects = [balanced("web", spec, json!([{"ip": "192.0.2.1"}]))];
    assert_eq!(frontends(&objects).len(), 1);
    assert!(problems(&objects)[0].contains("not of type LoadBalancer"));
}

#[test]
fn node_ports_are_served_on_the_first_internal_address_of_each_family() {
    let spec = json!({"type": "NodePort", "clusterIPs": ["10.96.0.1", "fd00:96::1"]});
    let objects = [
        web(merge(spec, json!({"ports": [{"port": 80, "nodePort": 30080}]}))),
        node(&[
            ("Hostname", "node-1"),
            ("ExternalIP", "203.0.113.1"),
            ("InternalIP", "10.1.0.1"),
            ("InternalIP", "10.2.0.1"),
            ("InternalIP", "fd00:1::1"),
            ("InternalIP", "fd00:2::1"),
        ]),
    ];
    assert_eq!(
        frontends(&objects),
        [
            "10.1.0.1:30080/TCP NodePort default/web:80 reject | reject",
            "10.96.0.1:80/TCP ClusterIP default/web:80 reject | reject",
            "[fd00:1::1]:30080/TCP NodePort default/web:80 reject | reject",
            "[fd00:96::1]:80/TCP ClusterIP default/web:80 reject | reject",
        ],
    );
    assert_eq!(problems(&objects), NOTHING);
}

#[test]
fn node_ports_are_of_the_families_of_the_service() {
    let objects =
        [web_balancer(json!({})), node(&[("InternalIP", "fd00::1"), ("InternalIP", "10.1.0.1")])];
    let addrs: Vec<_> = desired(&objects).0.frontends.into_keys().collect();
    assert!(addrs.iter().all(|addr| Family::of(addr.addr) == Family::V4), "{addrs:?}");
}

#[test]
fn a_load_balancer_may_have_no_node_port() {
    let objects = [web_balancer(json!({"ports": [{"port": 80, "nodePort": 0}]}))];
    let kinds: Vec<_> = desired(&objects).0.frontends.values().map(|f| f.kind).collect();
    assert_eq!(kinds, [FrontendKind::ClusterIp, FrontendKind::LoadBalancer]);
    assert_eq!(problems(&objects), NOTHING);
}

#[test]
fn node_ports_without_a_node_are_reported_once() {
    let expected = "warning: Node node-1: : no such Node: NodePorts are not served \
                    (Services that want them: 1)";
    assert_eq!(problems(&[web_balancer(json!({}))]), [expected]);
    assert_eq!(frontends(&[web_balancer(json!({}))]).len(), 2);
    assert_eq!(problems(&[web(json!({}))]), NOTHING);
}

#[test]
fn node_ports_without_an_address_are_reported() {
    let objects = [web_balancer(json!({})), node(&[("ExternalIP", "203.0.113.1")])];
    let expected = "warning: Node node-1: status.addresses: no InternalIP of family IPv4: its \
                    NodePorts are not served (Services that want them: 1)";
    assert_eq!(problems(&objects), [expected]);
    assert_eq!(frontends(&objects).len(), 2);
}

#[test]
fn a_node_port_needs_the_type() {
    let objects = [web(json!({"ports": [{"port": 80, "nodePort": 30080}]})), this_node()];
    assert_eq!(frontends(&objects).len(), 1);
    assert!(problems(&objects)[0].contains("spec.ports[0].nodePort"));
}

#[test]
fn external_ips_are_not_served() {
    let objects = [web(json!({"externalIPs": ["192.0.2.9", "192.0.2.10"]}))];
    assert_eq!(frontends(&objects).len(), 1);
    let [problem] = &problems(&objects)[..] else { panic!() };
    assert!(problem.starts_with("warning: Service default/web: spec.externalIPs"), "{problem}");
    assert!(problem.contains("CVE-2020-8554"), "{problem}");
}

#[test]
fn one_number_may_be_served_for_both_protocols() {
    let ports = json!([
        {"name": "a", "port": 53}, {"name": "b", "port": 53, "protocol": "UDP"},
    ]);
    assert_eq!(frontends(&[web(json!({"ports": ports}))]).len(), 2);
}

#[test]
fn sctp_is_served_beside_the_others() {
    let ports = json!([{"name": "a", "port": 80}, {"name": "s", "port": 80, "protocol": "SCTP"}]);
    let slice_ports = json!([{"name": "s", "port": 1, "protocol": "SCTP"}]);
    let endpoints = on_nodes(&[("10.0.0.1", true)]);
    let more = json!({"ports": slice_ports, "endpoints": endpoints});
    let objects = [web(json!({"ports": ports})), slice("web-1", "web", more)];
    let frontends = frontends(&objects);
    assert_eq!(frontends.len(), 2);
    assert!(frontends[1].starts_with("10.96.0.1:80/SCTP ClusterIP default/web:s"));
    assert!(frontends[1].contains("10.0.0.1:1"), "{frontends:?}");
    assert_eq!(problems(&objects), [""; 0]);
}

#[test]
fn objects_can_be_replaced_and_deleted_one_by_one() {
    let mut index = index([web(json!({})), web_slice(&[("10.0.0.1", true)])]);
    let before = decided(&mut index);
    index.apply(web(json!({"clusterIP": "10.96.0.2"})));
    assert_eq!(lines(&decided(&mut index).0).len(), 1);
    assert!(lines(&decided(&mut index).0)[0].starts_with("10.96.0.2:80/TCP"));
    index.apply(web(json!({})));
    assert_eq!(decided(&mut index), before);
    index.delete(&ObjectId::new(Kind::EndpointSlice, None, "web-1"));
    assert!(lines(&decided(&mut index).0)[0].ends_with("reject | reject"));
    index.delete(&ObjectId::new(Kind::Service, None, "web"));
    index.delete(&ObjectId::new(Kind::Service, None, "web"));
    assert_eq!(decided(&mut index), (Desired::default(), vec![]));
}

#[test]
fn addresses_of_devices_matter_only_where_a_range_asks_for_them() {
    let addresses = |addr: &str| BTreeSet::from([addr.parse().unwrap()]);
    let mut index = index([web(json!({}))]);
    let matters = |index: &mut Index, addr: &str| {
        index.follow();
        index.set_device_addresses(addresses(addr));
        !index.follow().is_empty()
    };
    assert!(!matters(&mut index, "10.1.0.1"));
    let node_port_addresses = vec!["primary".parse().unwrap()];
    index = index.with_config(Config { node_port_addresses, ..Config::default() });
    assert!(!matters(&mut index, "10.1.0.2"));
    let node_port_addresses = vec!["10.0.0.0/8".parse().unwrap()];
    index = index.with_config(Config { node_port_addresses, ..Config::default() });
    assert!(matters(&mut index, "10.1.0.3"));
    assert!(!matters(&mut index, "10.1.0.3"));
}
