//! Bad input makes a problem that names object, field and consequence, and nothing else stops.

use super::*;

/// `bad` next to a good Service: that one is served, and there is exactly this problem.
fn reports(bad: &[Sourced<Object>], expected: &str) {
    let good = service("good", json!({"clusterIP": "10.96.9.9", "ports": [{"port": 9}]}));
    let mut objects = vec![good, this_node()];
    objects.extend_from_slice(bad);
    assert_eq!(problems(&objects), [expected]);
    let good = "10.96.9.9:9/TCP ClusterIP default/good:9 reject | reject".to_owned();
    assert!(frontends(&objects).contains(&good));
}

fn web_reports(spec: Value, expected: &str) {
    reports(&[web(spec)], &format!("error: Service default/web: {expected}"));
}

#[test]
fn services_that_cannot_be_served_say_why() {
    let not_served = "the Service is not served";
    let no_spec = object::<Service>(json!({"metadata": {"name": "web"}}));
    reports(&[no_spec], &format!("error: Service default/web: spec: missing: {not_served}"));
    web_reports(json!({"ports": []}), &format!("spec.ports: empty: {not_served}"));
    web_reports(json!({"ports": null}), &format!("spec.ports: empty: {not_served}"));
    web_reports(
        json!({"type": "Magic"}),
        &format!("spec.type: unknown type \"Magic\": {not_served}"),
    );
    reports(
        &[service("no/name", json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}))],
        &format!(
            "error: Service default/no/name: metadata.name: \"no/name\" is not a name: {not_served}"
        ),
    );
}

#[test]
fn ports_that_cannot_be_served_say_why() {
    let first = json!({"name": "a", "port": 80});
    for (port, field, message) in [
        (json!({"name": "b", "port": 0}), "port", "0 is not in 1..65535"),
        (json!({"name": "b", "port": 65536}), "port", "65536 is not in 1..65535"),
        (json!({"name": "b", "port": -1}), "port", "-1 is not in 1..65535"),
        (json!({"name": "b", "port": 80}), "port", "80/TCP is an earlier port"),
        (json!({"name": "a", "port": 81}), "name", "\"a\" is the name of an earlier port"),
        (json!({"name": "B", "port": 81}), "name", "\"B\" is not a port name"),
        (
            json!({"name": "b", "port": 81, "protocol": "tcp"}),
            "protocol",
            "\"tcp\" is none of TCP, UDP, SCTP",
        ),
    ] {
        let end = if message.contains("earlier port") && field == "port" {
            "this one"
        } else {
            "this port"
        };
        let expected = format!("spec.ports[1].{field}: {message}: {end} is not served");
        web_reports(json!({"ports": [first, port]}), &expected);
        assert_eq!(frontends(&[web(json!({"ports": [first, port]}))]).len(), 1, "{port}");
    }
    web_reports(
        json!({"ports": [{"port": 80}, {"port": 81}]}),
        "spec.ports[1].name: a second port without a name: this port is not served",
    );
    web_reports(
        json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 70000}]}),
        "spec.ports[0].nodePort: 70000 is not in 1..65535: this NodePort is not served",
    );
}

#[test]
fn addresses_that_cannot_be_served_say_why() {
    for (addr, reason) in [
        ("10.96.0", "is not an IP address"),
        ("127.0.0.1", "is a loopback address"),
        ("169.254.1.1", "is a link-local address"),
        ("0.0.0.0", "is the unspecified address"),
        ("239.1.1.1", "is a multicast address"),
        ("fe80::1", "is a link-local address"),
    ] {
        web_reports(
            json!({"clusterIPs": ["10.96.0.1", addr]}),
            &format!("spec.clusterIPs[1]: \"{addr}\" {reason}: this ClusterIP is not served"),
        );
        let spec =
            json!({"type": "LoadBalancer", "clusterIP": "10.96.0.1", "ports": [{"port": 80}]});
        let bad = balanced("web", spec, json!([{"ip": "192.0.2.1"}, {"ip": addr}]));
        assert_eq!(frontends(std::slice::from_ref(&bad)).len(), 2);
        let field = "status.loadBalancer.ingress[1].ip";
        reports(
            &[bad],
            &format!(
                "error: Service default/web: {field}: \"{addr}\" {reason}: \
             this load balancer address is not served"
            ),
        );
    }
    web_reports(
        json!({"clusterIP": "10.96.0.2", "clusterIPs": ["10.96.0.1"]}),
        "spec.clusterIP: \"10.96.0.2\" is not the first of spec.clusterIPs: ignored",
    );
    let spec = json!({"type": "LoadBalancer", "clusterIP": "10.96.0.1", "ports": [{"port": 80}]});
    reports(
        &[balanced("web", spec, json!([{"ip": "192.0.2.1", "ipMode": "vip"}]))],
        "error: Service default/web: status.loadBalancer.ingress[0].ipMode: \"vip\" is neither VIP \
         nor Proxy: \"192.0.2.1\" is not served",
    );
}

#[test]
fn unknown_policies_fall_back_to_the_default() {
    for field in ["externalTrafficPolicy", "internalTrafficPolicy"] {
        let expected =
            format!("spec.{field}: \"local\" is neither Cluster nor Local: Cluster is used");
        web_reports(json!({field: "local"}), &expected);
    }
    web_reports(
        json!({"sessionAffinity": "Cookie"}),
        "spec.sessionAffinity: \"Cookie\" is neither None nor ClientIP: None is used",
    );
}

#[test]
fn source_ranges_that_cannot_be_read_say_why() {
    web_reports(
        json!({"loadBalancerSourceRanges": ["192.0.2.0/24", "192.0.2.1"]}),
        "spec.loadBalancerSourceRanges[1]: \"192.0.2.1\" is not a range of addresses such as \
         192.0.2.0/24: nobody is admitted by it",
    );
}

#[test]
fn slices_that_cannot_be_used_say_why() {
    for (bad, expected) in [
        (
            slice("s", "web", json!({"metadata": {"name": "s"}})),
            "error: EndpointSlice default/s: metadata.labels: no label kubernetes.io/service-name: \
             the slice is not used",
        ),
        (
            slice("s", "nobody", json!({})),
            "warning: EndpointSlice default/s: metadata.labels: there is no Service \
             default/nobody: the slice is not used",
        ),
        (
            slice("s", "web", json!({"addressType": "FQDN"})),
            "error: EndpointSlice default/s: addressType: host names have no defined meaning for a \
             proxy: the slice is not used",
        ),
        (
            slice("s", "web", json!({"addressType": "ipv4"})),
            "error: EndpointSlice default/s: addressType: \"ipv4\" is neither IPv4 nor IPv6: the \
             slice is not used",
        ),
        (
            slice(
                "s",
                "web",
                json!({"ports": null, "endpoints": on_nodes(&[("10.0.0.1", false)])}),
            ),
            "warning: EndpointSlice default/s: ports: empty: the endpoints of the slice are \
             not used",
        ),
        (
            slice("s", "web", json!({"ports": [{"name": "http", "port": 80}]})),
            "warning: EndpointSlice default/s: ports[0].name: the Service has no TCP port with the \
             name \"http\": this port is not used",
        ),
        (
            slice("s", "web", json!({"ports": [{"port": 80, "protocol": "UDP"}]})),
            "warning: EndpointSlice default/s: ports[0].name: the Service has no UDP port with the \
             name \"\": this port is not used",
        ),
        (
            slice("s", "web", json!({"ports": [{"name": ""}]})),
            "error: EndpointSlice default/s: ports[0].port: missing, not in 1..65535: this port is \
             not used",
        ),
        (
            slice("s", "web", json!({"ports": [{"port": 0}]})),
            "error: EndpointSlice default/s: ports[0].port: 0, not in 1..65535: this port is not \
             used",
        ),
        (
            slice("s", "web", json!({"ports": [{"port": 1, "protocol": "icmp"}]})),
            "error: EndpointSlice default/s: ports[0].protocol: \"icmp\" is none of TCP, UDP, \
             SCTP: this port is not used",
        ),
    ] {
        reports(&[web(json!({})), bad], expected);
    }
}

#[test]
fn endpoints_that_cannot_be_used_say_why_and_the_others_are() {
    for (addresses, expected) in [
        (json!([]), "error: addresses: empty: the endpoint is not used"),
        (json!(["x"]), "error: addresses[0]: \"x\" is not an IP address: the endpoint is not used"),
        (
            json!(["fd00::1"]),
            "error: addresses[0]: \"fd00::1\" is not of the slice's family IPv4: the endpoint is \
             not used",
        ),
        (
            json!(["127.0.0.1"]),
            "error: addresses[0]: \"127.0.0.1\" is a loopback address: the endpoint is not used",
        ),
        (
            json!(["169.254.169.254"]),
            "error: addresses[0]: \"169.254.169.254\" is a link-local address: the endpoint is not \
             used",
        ),
        (
            json!(["0.0.0.0"]),
            "error: addresses[0]: \"0.0.0.0\" is the unspecified address: the endpoint is not used",
        ),
        (
            json!(["224.0.0.1"]),
            "error: addresses[0]: \"224.0.0.1\" is a multicast address: the endpoint is not used",
        ),
        (
            json!(["10.0.0.1", "10.0.0.2"]),
            "warning: addresses: only the first address of an endpoint is used",
        ),
    ] {
        let endpoints = json!([{"addresses": addresses}, {"addresses": ["10.0.0.1"]}]);
        let objects = [web(json!({})), slice("s", "web", json!({"endpoints": endpoints}))];
        let (severity, rest) = expected.split_once(": ").unwrap();
        let object = "EndpointSlice default/s: endpoints[0]";
        reports(&objects, &format!("{severity}: {object}.{rest}"));
        let frontends = frontends(&objects);
        assert!(frontends[0].ends_with("web:80 10.0.0.1:8080 | 10.0.0.1:8080"), "{frontends:?}");
    }
}

#[test]
fn a_bad_address_of_the_node_is_reported_and_the_next_one_used() {
    let objects =
        [web_balancer(json!({})), node(&[("InternalIP", "127.0.0.1"), ("InternalIP", "10.1.0.1")])];
    assert!(frontends(&objects)[0].starts_with("10.1.0.1:30080/TCP NodePort"));
    let expected = "error: Node node-1: status.addresses[0].address: \"127.0.0.1\" is a loopback \
                    address: NodePorts are not served on it";
    assert_eq!(problems(&objects), [expected]);
}

#[test]
fn problems_name_the_file_and_cannot_drive_the_terminal() {
    let (_, problems) = desired(&[web(json!({"type": "\u{1b}[2J\nfake: line"}))]);
    let shown = problems[0].to_string();
    assert!(shown.starts_with("web.yaml: Service default/web: spec.type: "), "{shown}");
    assert!(shown.contains(r#""\u{1b}[2J\u{a}fake: line""#), "{shown}");
    let mut service = web(json!({}));
    let Object::Service(object) = &mut service.object else { panic!() };
    Arc::make_mut(object).metadata.name = Some("\u{1b}]0;x\u{7}".into());
    let (desired, problems) = desired(&[service]);
    assert_eq!(desired, Desired::default());
    assert!(!problems[0].to_string().contains(char::is_control));
}
