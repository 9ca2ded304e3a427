//! Two Services that claim the same address, port and protocol.

use super::*;

fn created(mut service: Sourced<Object>, time: &str) -> Sourced<Object> {
    let Object::Service(object) = &mut service.object else { panic!() };
    let time = serde_json::from_value(json!(time)).unwrap();
    Arc::make_mut(object).metadata.creation_timestamp = Some(time);
    service
}

fn on(name: &str, addr: &str) -> Sourced<Object> {
    service(name, json!({"clusterIP": addr, "ports": [{"port": 80}]}))
}

/// A load balancer on `addr` whose ClusterIP nobody disputes.
fn balancer(name: &str, cluster_ip: &str, addr: &str) -> Sourced<Object> {
    let spec = json!({"type": "LoadBalancer", "clusterIP": cluster_ip, "ports": [{"port": 80}]});
    balanced(name, spec, json!([{"ip": addr}]))
}

#[test]
fn a_cluster_ip_wins_over_a_load_balancer_address() {
    let thief = created(balancer("a", "10.96.0.1", "10.96.0.2"), "2020-01-01T00:00:00Z");
    let objects = [thief, on("b", "10.96.0.2")];
    assert_eq!(
        frontends(&objects),
        [
            "10.96.0.1:80/TCP ClusterIP default/a:80 reject | reject",
            "10.96.0.2:80/TCP ClusterIP default/b:80 reject | reject",
        ],
    );
    let expected = "error: Service default/a: status.loadBalancer.ingress[0].ip: 10.96.0.2:80/TCP \
                    is the ClusterIP of Service default/b (b.yaml) already: not served as \
                    LoadBalancer here";
    assert_eq!(problems(&objects), [expected]);
}

#[test]
fn a_load_balancer_address_wins_over_a_node_port() {
    let spec = json!({"type": "NodePort", "clusterIP": "10.96.0.2"});
    let spec = merge(spec, json!({"ports": [{"port": 8080, "nodePort": 80}]}));
    let objects = [balancer("b", "10.96.0.1", "10.1.0.1"), service("a", spec), this_node()];
    assert!(frontends(&objects)[0].starts_with("10.1.0.1:80/TCP LoadBalancer default/b:80"));
    let [problem] = &problems(&objects)[..] else { panic!() };
    assert!(problem.starts_with("error: Service default/a: spec.ports[0].nodePort: "), "{problem}");
}

#[test]
fn a_load_balancer_may_have_the_nodes_address_on_other_ports() {
    let spec = json!({"type": "LoadBalancer", "clusterIP": "10.96.0.1"});
    let spec = merge(spec, json!({"ports": [{"port": 80, "nodePort": 30080}]}));
    let objects = [balanced("web", spec, json!([{"ip": "10.1.0.1"}])), this_node()];
    assert_eq!(frontends(&objects).len(), 3);
    assert_eq!(problems(&objects), [""; 0]);
}

#[test]
fn the_older_service_wins() {
    let old = created(on("z", "10.96.0.1"), "2024-01-01T00:00:00Z");
    let new = created(on("a", "10.96.0.1"), "2024-01-01T00:00:01Z");
    let timeless = on("b", "10.96.0.1");
    let objects = [new, old, timeless];
    assert_eq!(frontends(&objects), ["10.96.0.1:80/TCP ClusterIP default/z:80 reject | reject"]);
    let problems = problems(&objects);
    assert_eq!(problems.len(), 2);
    assert!(problems.iter().all(|problem| problem.contains("Service default/z (z.yaml)")));
}

#[test]
fn of_equally_old_services_the_first_name_wins() {
    let objects = [on("b", "10.96.0.1"), on("a", "10.96.0.1")];
    assert_eq!(frontends(&objects), ["10.96.0.1:80/TCP ClusterIP default/a:80 reject | reject"]);
}

#[test]
fn what_is_not_disputed_is_served_for_the_loser_too() {
    let both = service(
        "b",
        json!({"clusterIP": "10.96.0.1", "ports": [
            {"name": "x", "port": 80}, {"name": "y", "port": 81},
        ]}),
    );
    let objects = [on("a", "10.96.0.1"), both];
    assert_eq!(
        frontends(&objects),
        [
            "10.96.0.1:80/TCP ClusterIP default/a:80 reject | reject",
            "10.96.0.1:81/TCP ClusterIP default/b:y reject | reject",
        ],
    );
}

#[test]
fn an_address_written_twice_in_one_service_is_no_conflict() {
    let objects = [balanced(
        "web",
        json!({"type": "LoadBalancer", "clusterIP": "10.96.0.1", "ports": [{"port": 80}]}),
        json!([{"ip": "192.0.2.1"}, {"ip": "192.0.2.1"}]),
    )];
    assert_eq!(frontends(&objects).len(), 2);
    assert_eq!(problems(&objects), [""; 0]);
}

#[test]
fn a_service_may_dispute_with_itself() {
    let objects = [balancer("web", "10.96.0.1", "10.96.0.1")];
    assert_eq!(frontends(&objects), ["10.96.0.1:80/TCP ClusterIP default/web:80 reject | reject"]);
    let [problem] = &problems(&objects)[..] else { panic!() };
    assert!(problem.contains("is the ClusterIP of port 80 of this Service already"), "{problem}");
}
