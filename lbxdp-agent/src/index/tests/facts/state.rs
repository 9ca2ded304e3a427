//! To which backends UDP flows go on.

use super::*;

const CLEANUP: &str = "Kn conntrack/cleanup.go";

pub(super) fn rows() -> Vec<Fact> {
    vec![
        fact("UDP flows go on to every endpoint that serves, ready or terminating", CLEANUP)
            .given([
                dns(json!({})),
                pods([
                    (1, "here ready"),
                    (2, "there ready"),
                    (3, "here draining"),
                    (4, "there draining"),
                    (5, "here failing"),
                    (6, "there unready"),
                ]),
            ])
            .serves(["ClusterIP 10.96.0.1:53/UDP #1,#2"])
            .keeps_flows(["10.96.0.1:53/UDP: #1 #2 #3 #4"]),
        fact("UDP flows go on to an endpoint that is not ready but says that it serves", CLEANUP)
            .given([dns(json!({})), pods([(1, "here ready"), (2, "there serving")])])
            .serves(["ClusterIP 10.96.0.1:53/UDP #1"])
            .keeps_flows(["10.96.0.1:53/UDP: #1 #2"])
            .given([pods([(2, "there serving")])])
            .serves(["ClusterIP 10.96.0.1:53/UDP reject"])
            .keeps_flows(["10.96.0.1:53/UDP: #2"])
            .given([udp(written(json!({"conditions": {"ready": false}})))])
            .keeps_flows(["10.96.0.1:53/UDP: #1"])
            .given([udp(written(json!({"conditions": {"ready": true, "serving": false}})))])
            .keeps_flows(["10.96.0.1:53/UDP: #1"]),
        fact("policies do not end UDP flows", "Kn conntrack/cleanup.go; kubernetes#126934")
            .given([
                dns(json!({"internalTrafficPolicy": "Local"})),
                pods([(1, "here ready"), (2, "there ready")]),
            ])
            .serves(["ClusterIP 10.96.0.1:53/UDP #1"])
            .keeps_flows(["10.96.0.1:53/UDP: #1 #2"])
            .given([pods([(2, "there ready")])])
            .serves(["ClusterIP 10.96.0.1:53/UDP drop"])
            .keeps_flows(["10.96.0.1:53/UDP: #2"]),
        fact("hints do not end UDP flows", CLEANUP)
            .given([
                dns(json!({})),
                pods([(1, "here ready node=node-1"), (2, "there ready node=node-2")]),
                this_node(),
            ])
            .serves(["ClusterIP 10.96.0.1:53/UDP #1"])
            .keeps_flows(["10.96.0.1:53/UDP: #1 #2"]),
        fact(
            "UDP flows end when no endpoint is left, and when the Service is deleted",
            "kubernetes#139629, kubernetes#141371",
        )
        .given([dns(json!({})), pods([(1, "here ready")])])
        .keeps_flows(["10.96.0.1:53/UDP: #1"])
        .given([pods([])])
        .keeps_flows(["10.96.0.1:53/UDP:"])
        .given([pods([(1, "here ready")])])
        .deleted(Kind::Service, "web")
        .keeps_flows([]),
        fact(
            "UDP flows are judged by address and port, of the frontend and of the backend",
            "kubernetes 6a26e45 and 1601b9e",
        )
        .given([
            dns(json!({"ports": [
                {"name": "a", "port": 53, "protocol": "UDP"},
                {"name": "b", "port": 54, "protocol": "UDP"},
            ]})),
            slice(
                "web-a",
                "web",
                json!({
                    "ports": [{"name": "a", "port": 8080, "protocol": "UDP"}],
                    "endpoints": [endpoint(&(1, "ready"))],
                }),
            ),
            slice(
                "web-b",
                "web",
                json!({
                    "ports": [{"name": "b", "port": 8081, "protocol": "UDP"}],
                    "endpoints": [endpoint(&(1, "ready")), endpoint(&(2, "ready"))],
                }),
            ),
        ])
        .keeps_flows(["10.96.0.1:53/UDP: #1", "10.96.0.1:54/UDP: #1:8081 #2:8081"]),
        fact("UDP flows of every kind of address follow the same endpoints", CLEANUP)
            .given([
                this_node(),
                dns(json!({
                    "type": "LoadBalancer",
                    "externalTrafficPolicy": "Local",
                    "ports": [{"port": 53, "protocol": "UDP", "nodePort": 30053}],
                })),
                pods([(1, "here ready"), (2, "there draining")]),
            ])
            .keeps_flows(["10.1.0.1:30053/UDP: #1 #2", "10.96.0.1:53/UDP: #1 #2"]),
    ]
}

/// The Service `web` as a UDP one.
fn dns(spec: Value) -> Sourced<Object> {
    web(merge(json!({"ports": [{"port": 53, "protocol": "UDP"}]}), spec))
}

/// The same slice with UDP ports.
fn udp(mut sourced: Sourced<Object>) -> Sourced<Object> {
    let Object::EndpointSlice(slice) = &mut sourced.object else { panic!() };
    for port in Arc::make_mut(slice).ports.iter_mut().flatten() {
        port.protocol = Some("UDP".to_owned());
    }
    sourced
}

fn pods<const N: usize>(described: [(u8, &str); N]) -> Sourced<Object> {
    udp(endpoints(described))
}
