//! Which endpoints serve a frontend.

use super::*;

/// The choices of the frontend with this kind.
fn choices(objects: &[Sourced<Object>], kind: FrontendKind) -> String {
    let (desired, problems) = desired(objects);
    assert_eq!(problems, []);
    let frontend = desired.frontends.values().find(|frontend| frontend.kind == kind).unwrap();
    format!("{} | {}", choice(&frontend.external), choice(&frontend.internal))
}

fn cluster_ip(objects: &[Sourced<Object>]) -> String {
    let choices = choices(objects, FrontendKind::ClusterIp);
    let (external, internal) = choices.split_once(" | ").unwrap();
    assert_eq!(external, internal);
    internal.to_owned()
}

#[test]
fn an_endpoint_is_used_unless_it_says_that_it_is_not_ready() {
    for (conditions, expected) in [
        (json!(null), "10.0.0.1:8080"),
        (json!({}), "10.0.0.1:8080"),
        (json!({"ready": true}), "10.0.0.1:8080"),
        (json!({"ready": false}), "reject"),
        (json!({"ready": false, "serving": false, "terminating": true}), "reject"),
        (json!({"ready": true, "terminating": true}), "10.0.0.1:8080"),
    ] {
        let endpoint = json!({"addresses": ["10.0.0.1"], "conditions": conditions});
        let objects = [web(json!({})), slice("s", "web", json!({"endpoints": [endpoint]}))];
        assert_eq!(cluster_ip(&objects), expected, "{conditions}");
    }
}

#[test]
fn ports_are_joined_by_name_and_protocol_and_not_by_number() {
    let ports = json!([
        {"name": "a", "port": 80, "targetPort": 9}, {"name": "b", "port": 81},
        {"name": "c", "port": 81, "protocol": "UDP"},
    ]);
    let slice_ports = json!([
        {"name": "b", "port": 80}, {"name": "a", "port": 81},
        {"name": "c", "port": 82, "protocol": "UDP"},
    ]);
    let endpoints = on_nodes(&[("10.0.0.1", false)]);
    let objects = [
        web(json!({"ports": ports})),
        slice("s", "web", json!({"ports": slice_ports, "endpoints": endpoints})),
    ];
    assert_eq!(
        frontends(&objects),
        [
            "10.96.0.1:80/TCP ClusterIP default/web:a 10.0.0.1:81 | 10.0.0.1:81",
            "10.96.0.1:81/TCP ClusterIP default/web:b 10.0.0.1:80 | 10.0.0.1:80",
            "10.96.0.1:81/UDP ClusterIP default/web:c 10.0.0.1:82 | 10.0.0.1:82",
        ],
    );
}

#[test]
fn an_absent_port_name_and_an_empty_one_are_the_same() {
    for (service_name, slice_name) in
        [(json!(null), json!(null)), (json!(""), json!(null)), (json!(null), json!(""))]
    {
        let endpoints = on_nodes(&[("10.0.0.1", false)]);
        let ports = json!([{"name": slice_name, "port": 8080}]);
        let objects = [
            web(json!({"ports": [{"name": service_name, "port": 80}]})),
            slice("s", "web", json!({"ports": ports, "endpoints": endpoints})),
        ];
        assert_eq!(cluster_ip(&objects), "10.0.0.1:8080");
    }
}

#[test]
fn a_named_target_port_may_differ_between_slices() {
    let endpoints = |addr| on_nodes(&[(addr, false)]);
    let objects = [
        web(json!({"ports": [{"port": 80, "targetPort": "http"}]})),
        slice("s1", "web", json!({"ports": [{"port": 1}], "endpoints": endpoints("10.0.0.1")})),
        slice("s2", "web", json!({"ports": [{"port": 2}], "endpoints": endpoints("10.0.0.2")})),
    ];
    assert_eq!(cluster_ip(&objects), "10.0.0.1:1,10.0.0.2:2");
}

#[test]
fn slices_are_joined_within_their_namespace() {
    let mut other = web_slice(&[("10.0.0.1", false)]);
    let Object::EndpointSlice(slice) = &mut other.object else { panic!() };
    Arc::make_mut(slice).metadata.namespace = Some("other".into());
    assert_eq!(frontends(&[web(json!({})), other.clone()]).len(), 1);
    let problem = &problems(&[web(json!({})), other])[0];
    assert!(problem.contains("there is no Service other/web"), "{problem}");
}

#[test]
fn an_endpoint_in_two_slices_is_one_and_local_and_ready_win() {
    let endpoint = |node: &str, ready: bool| {
        let conditions = json!({"ready": ready});
        json!([{"addresses": ["10.0.0.1"], "nodeName": node, "conditions": conditions}])
    };
    let objects = [
        web(json!({})),
        slice("s1", "web", json!({"endpoints": endpoint(NODE, false)})),
        slice("s2", "web", json!({"endpoints": endpoint("node-2", true)})),
    ];
    assert_eq!(cluster_ip(&objects), "10.0.0.1:8080");
    assert_eq!(
        desired(&objects).0.local_backends,
        BTreeSet::from(["10.0.0.1:8080".parse().unwrap()])
    );
}

#[test]
fn an_endpoint_is_local_only_by_the_name_of_its_node() {
    for (name, local) in [(json!(NODE), 1), (json!("NODE-1"), 0), (json!(null), 0), (json!(""), 0)]
    {
        let endpoints = json!([{"addresses": ["10.0.0.1"], "nodeName": name}]);
        let objects = [web(json!({})), slice("s", "web", json!({"endpoints": endpoints}))];
        assert_eq!(desired(&objects).0.local_backends.len(), local, "{name}");
    }
}

#[test]
fn the_external_policy_decides_between_serving_dropping_and_rejecting() {
    const NEAR: (&str, bool) = ("10.0.0.1", true);
    const FAR: (&str, bool) = ("10.0.0.2", false);
    for (policy, endpoints, expected) in [
        ("Cluster", &[NEAR, FAR][..], "10.0.0.1:8080,10.0.0.2:8080 | 10.0.0.1:8080,10.0.0.2:8080"),
        ("Cluster", &[], "reject | reject"),
        ("Local", &[NEAR, FAR], "10.0.0.1:8080 | 10.0.0.1:8080,10.0.0.2:8080"),
        ("Local", &[FAR], "drop | 10.0.0.2:8080"),
        ("Local", &[], "reject | reject"),
    ] {
        let objects = [
            web_balancer(json!({"externalTrafficPolicy": policy})),
            web_slice(endpoints),
            this_node(),
        ];
        for kind in [FrontendKind::LoadBalancer, FrontendKind::NodePort] {
            assert_eq!(choices(&objects, kind), expected, "{policy} {endpoints:?}");
        }
        let all = expected.split_once(" | ").unwrap().1;
        assert_eq!(cluster_ip(&objects), all, "{policy} {endpoints:?}");
    }
}

#[test]
fn the_internal_policy_is_for_cluster_ips_only() {
    for (endpoints, expected) in [
        (&[("10.0.0.1", true), ("10.0.0.2", false)][..], "10.0.0.1:8080"),
        (&[("10.0.0.2", false)], "drop"),
        (&[], "reject"),
    ] {
        let objects = [
            web_balancer(json!({"internalTrafficPolicy": "Local"})),
            web_slice(endpoints),
            this_node(),
        ];
        assert_eq!(cluster_ip(&objects), expected, "{endpoints:?}");
        let external = choices(&objects, FrontendKind::LoadBalancer);
        assert!(!external.contains("drop"), "{external}");
        assert_eq!(choices(&objects, FrontendKind::NodePort), external);
    }
}

#[test]
fn local_backends_are_those_that_frontends_name() {
    let objects = [
        web(json!({})),
        web_slice(&[("10.0.0.1", true), ("10.0.0.2", false)]),
        // Nobody serves IPv6 here.
        slice(
            "s6",
            "web",
            json!({
                "addressType": "IPv6", "endpoints": on_nodes(&[("fd00::1", true)]),
            }),
        ),
    ];
    assert_eq!(
        desired(&objects).0.local_backends,
        BTreeSet::from(["10.0.0.1:8080".parse().unwrap()])
    );
}

#[test]
fn slices_of_other_proxies_and_headless_ones_are_not_used() {
    for label in [service::PROXY_NAME_LABEL, service::HEADLESS_LABEL] {
        let labels = json!({slices::SERVICE_NAME_LABEL: "web", label: "x"});
        let metadata = json!({"name": "s", "labels": labels});
        let endpoints = on_nodes(&[("10.0.0.1", false)]);
        let objects = [
            web(json!({})),
            slice("s", "web", json!({"metadata": metadata, "endpoints": endpoints})),
        ];
        assert_eq!(cluster_ip(&objects), "reject", "{label}");
    }
}
