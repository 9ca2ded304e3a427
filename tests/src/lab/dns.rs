//! The name server behind the Service kube-dns.

use serde_json::{Value, json};

use super::images;
use super::node::{DNS_V4, DNS_V6};
use super::wires::CONTROL_PLANE_V4;

const NAMESPACE: &str = "kube-system";
const CONFIG: &str = "\
.:53 {
    errors
    health
    ready
    kubernetes cluster.local in-addr.arpa ip6.arpa
    cache 5
}
";

/// Everything of it.
pub fn objects() -> Vec<Value> {
    let metadata = json!({ "name": "coredns", "namespace": NAMESPACE });
    let labels = json!({ "k8s-app": "kube-dns" });
    let rbac = "rbac.authorization.k8s.io";
    vec![
        json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata }),
        json!({
            "apiVersion": format!("{rbac}/v1"), "kind": "ClusterRole",
            "metadata": { "name": "coredns" },
            "rules": [
                {
                    "apiGroups": [""], "resources": ["services", "pods", "namespaces"],
                    "verbs": ["list", "watch"],
                },
                {
                    "apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"],
                    "verbs": ["list", "watch"],
                },
            ],
        }),
        json!({
            "apiVersion": format!("{rbac}/v1"), "kind": "ClusterRoleBinding",
            "metadata": { "name": "coredns" },
            "roleRef": { "apiGroup": rbac, "kind": "ClusterRole", "name": "coredns" },
            "subjects": [
                { "kind": "ServiceAccount", "name": "coredns", "namespace": NAMESPACE },
            ],
        }),
        json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata,
            "data": { "Corefile": CONFIG },
        }),
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata,
            "spec": {
                "replicas": 2,
                "selector": { "matchLabels": labels },
                "template": {
                    "metadata": { "labels": labels },
                    "spec": {
                        "serviceAccountName": "coredns",
                        "dnsPolicy": "Default",
                        "containers": [container()],
                        "volumes": [{ "name": "config", "configMap": { "name": "coredns" } }],
                        // Nothing in it waits for the end of anything.
                        "terminationGracePeriodSeconds": 1,
                    },
                },
            },
        }),
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": { "name": "kube-dns", "namespace": NAMESPACE },
            "spec": {
                "selector": labels,
                "clusterIP": DNS_V4,
                "clusterIPs": [DNS_V4, DNS_V6],
                "ipFamilies": ["IPv4", "IPv6"],
                "ipFamilyPolicy": "RequireDualStack",
                "ports": [
                    { "name": "dns", "port": 53, "protocol": "UDP" },
                    { "name": "dns-tcp", "port": 53, "protocol": "TCP" },
                ],
            },
        }),
    ]
}

fn container() -> Value {
    json!({
        "name": "coredns",
        "image": images::DNS,
        "imagePullPolicy": "Never",
        "args": ["-conf", "/etc/coredns/Corefile"],
        // Its first start must not wait for whoever serves the Service "kubernetes".
        "env": [
            { "name": "KUBERNETES_SERVICE_HOST", "value": CONTROL_PLANE_V4.to_string() },
            { "name": "KUBERNETES_SERVICE_PORT", "value": "6443" },
        ],
        "readinessProbe": { "httpGet": { "path": "/ready", "port": 8181 }, "periodSeconds": 1 },
        "volumeMounts": [{ "name": "config", "mountPath": "/etc/coredns" }],
    })
}
