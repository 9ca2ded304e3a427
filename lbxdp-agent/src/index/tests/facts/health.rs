//! What load balancers and health checks are told.

use super::*;

const NEEDED: &str = "K30 pkg/api/v1/service/util.go, NeedsHealthCheck";
const COUNTED: &str = "K30 endpointschangetracker.go:271";
const NODE_GOES: &str = "Kn healthcheck/proxy_health.go, KEP-3836";

pub(super) fn rows() -> Vec<Fact> {
    vec![
        fact(
            "a load balancer with policy Local has a health check if it has a port for it",
            NEEDED,
        )
        .given([checked(json!({})), endpoints([(1, "here ready")])])
        .checks(["web 30500 IPv4=1"])
        .given([checked(json!({"healthCheckNodePort": 0}))])
        .checks([])
        .given([checked(json!({"healthCheckNodePort": null}))])
        .checks([])
        .given([checked(json!({"externalTrafficPolicy": "Cluster"}))])
        .checks([])
        .given([checked(json!({"type": "NodePort"}))])
        .checks([])
        .given([checked(json!({}))])
        .checks(["web 30500 IPv4=1"])
        .deleted(Kind::Service, "web")
        .checks([]),
        fact("the port of a health check is followed", NEEDED)
            .given([this_node(), checked(json!({})), endpoints([(1, "here ready")])])
            .given([checked(json!({"healthCheckNodePort": 30501}))])
            .checks(["web 30501 IPv4=1"])
            .given([checked(json!({"healthCheckNodePort": 70000}))])
            .checks([])
            .complains("spec.healthCheckNodePort"),
        fact("a health check counts the addresses of ready endpoints on this node", COUNTED)
            .given([
                checked(json!({})),
                endpoints([
                    (1, "here ready"),
                    (2, "here ready"),
                    (3, "there ready"),
                    (4, "here unready"),
                    (5, "here serving"),
                ]),
            ])
            .checks(["web 30500 IPv4=2"])
            .given([endpoints([(3, "there ready")])])
            .checks(["web 30500 IPv4=0"]),
        fact(
            "a health check does not count endpoints that terminate, though they serve",
            "KEP-1669",
        )
        .given([
            this_node(),
            checked(json!({})),
            endpoints([(1, "here draining"), (2, "there ready")]),
        ])
        .serves(["NodePort 10.1.0.1:30080/TCP #1 | #2", "ClusterIP 10.96.0.1:80/TCP #2"])
        .checks(["web 30500 IPv4=0"]),
        fact("a health check counts an address once, however many ports it has", COUNTED)
            .given([
                checked(json!({"ports": [
                    {"name": "a", "port": 80}, {"name": "b", "port": 443},
                ]})),
                slice(
                    "web-a",
                    "web",
                    json!({
                        "ports": [{"name": "a", "port": 8080}, {"name": "b", "port": 8443}],
                        "endpoints": [endpoint(&(1, "here ready"))],
                    }),
                ),
                slice(
                    "web-b",
                    "web",
                    json!({
                        "ports": [{"name": "b", "port": 8443}],
                        "endpoints": [endpoint(&(2, "here ready"))],
                    }),
                ),
            ])
            .checks(["web 30500 IPv4=2"]),
        fact(
            "a health check counts each family of the Service by itself",
            "K30 proxier.go, one for each family",
        )
        .given([
            checked(json!({"clusterIP": "fd00::1", "clusterIPs": ["fd00::1", "10.96.0.1"]})),
            endpoints([(1, "here ready"), (2, "here ready")]),
            slice(
                "web-6",
                "web",
                json!({
                    "addressType": "IPv6",
                    "endpoints": [{"addresses": ["fd00:1::1"], "nodeName": NODE}],
                }),
            ),
        ])
        .checks(["web 30500 IPv4=2 IPv6=1"])
        .given([checked(json!({}))])
        .checks(["web 30500 IPv4=2"]),
        fact("a node that is being deleted is not eligible for new connections", NODE_GOES)
            .given([this_node()])
            .eligible(true)
            .given([changed_node(json!({"deletionTimestamp": "2026-01-01T00:00:00Z"}), json!({}))])
            .eligible(false)
            .given([this_node()])
            .eligible(true),
        fact("a node with the taint of the cluster autoscaler is not eligible", NODE_GOES)
            .given([this_node()])
            .given([changed_node(
                json!({}),
                json!({"taints": [
                    {"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"},
                ]}),
            )])
            .eligible(false)
            .given([changed_node(
                json!({}),
                json!({"taints": [
                    {"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"},
                ]}),
            )])
            .eligible(true),
        fact("an unschedulable node is eligible", NODE_GOES)
            .given([changed_node(json!({}), json!({"unschedulable": true}))])
            .eligible(true),
        fact("a node that nothing is known of is eligible", NODE_GOES)
            .given([web(json!({}))])
            .eligible(true),
        fact(
            "an ineligible node answers health checks as before",
            "K30 IsHealthy ignores the node",
        )
        .given([
            checked(json!({})),
            endpoints([(1, "here ready")]),
            changed_node(json!({"deletionTimestamp": "2026-01-01T00:00:00Z"}), json!({})),
        ])
        .eligible(false)
        .checks(["web 30500 IPv4=1"]),
    ]
}

/// A load balancer with NodePort 30080, policy Local and a health check on port 30500.
fn checked(spec: Value) -> Sourced<Object> {
    let own = json!({
        "type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 30500,
        "ports": [{"port": 80, "nodePort": 30080}],
    });
    web(merge(own, spec))
}

fn changed_node(metadata: Value, spec: Value) -> Sourced<Object> {
    let metadata = merge(json!({"name": NODE}), metadata);
    object::<Node>(json!({"metadata": metadata, "spec": spec}))
}
