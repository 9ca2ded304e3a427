//! Which Services are served, on which addresses, for whom.

use super::*;

const SKIP: &str = "Kn util/utils.go ShouldSkipService";
const SELECTOR: &str = "K30 cmd/kube-proxy/app/server.go:904";
const PORT: &str = "K30 serviceport.go newBaseServiceInfo";
const CACHE: &str = "Kn endpointslicecache.go";
const NODE_PORTS: &str = "KEP-3866";
const EXTERNAL: &str = "KEP-5707";

pub(super) fn rows() -> Vec<Fact> {
    [which(), external_ips(), node_ports(), short_circuit(), precedence()]
        .into_iter()
        .flatten()
        .collect()
}

fn which() -> Vec<Fact> {
    vec![
        fact("a Service without a ClusterIP, or headless, is not served", SKIP)
            .given([web(json!({"clusterIP": ""})), endpoints([(1, "ready")])])
            .serves([])
            .given([web(json!({"clusterIP": "None", "clusterIPs": ["None"]}))])
            .serves([])
            .given([web(json!({}))])
            .serves(["ClusterIP 10.96.0.1:80/TCP #1"]),
        fact("an ExternalName is not served even with a ClusterIP", SKIP)
            .given([web(json!({"type": "ExternalName", "externalName": "example.org"}))])
            .serves([])
            .silently(),
        fact(
            "the label for another proxy takes a Service away, whenever it comes and goes",
            SELECTOR,
        )
        .given([web_balancer(json!({})), endpoints([(1, "ready")]), this_node()])
        .serves(BALANCER)
        .given([labelled(web_balancer(json!({})), service::PROXY_NAME_LABEL)])
        .serves([])
        .silently()
        .given([web_balancer(json!({}))])
        .serves(BALANCER),
        fact(
            "the headless label takes a Service with a ClusterIP away, whenever it comes and goes",
            SELECTOR,
        )
        .given([
            labelled(web_balancer(json!({})), service::HEADLESS_LABEL),
            endpoints([(1, "ready")]),
            this_node(),
        ])
        .serves([])
        .silently()
        .given([web_balancer(json!({}))])
        .serves(BALANCER)
        .given([labelled(web_balancer(json!({})), service::HEADLESS_LABEL)])
        .serves([]),
        fact("the loadBalancerClass does not matter to a proxy", PORT)
            .given([
                web_balancer(json!({"loadBalancerClass": "example.org/x"})),
                endpoints([(1, "ready")]),
                this_node(),
            ])
            .serves(BALANCER),
        fact(
            "an ingress of mode Proxy has no frontend, and one with only a host name neither",
            "KEP-1860",
        )
        .given([balancer(json!([
            {"ip": "192.0.2.1"}, {"ip": "192.0.2.2", "ipMode": "VIP"},
            {"ip": "192.0.2.3", "ipMode": "Proxy"}, {"hostname": "lb.example.org"},
        ]))])
        .serves([
            "ClusterIP 10.96.0.1:80/TCP reject",
            "LoadBalancer 192.0.2.1:80/TCP reject",
            "LoadBalancer 192.0.2.2:80/TCP reject",
        ])
        .silently(),
        fact("an ingress address is served only in a family of the Service", PORT)
            .given([balancer(json!([{"ip": "192.0.2.1"}, {"ip": "2001:db8::1"}]))])
            .serves(["ClusterIP 10.96.0.1:80/TCP reject", "LoadBalancer 192.0.2.1:80/TCP reject"])
            .complains("no ClusterIP of family IPv6"),
        fact("a load balancer may do without NodePorts, also later", "KEP-1864")
            .given([
                web_balancer(json!({
                    "allocateLoadBalancerNodePorts": false, "ports": [{"port": 80}],
                })),
                endpoints([(1, "ready")]),
                this_node(),
            ])
            .serves(["ClusterIP 10.96.0.1:80/TCP #1", "LoadBalancer 192.0.2.1:80/TCP #1"])
            .silently()
            .given([web_balancer(json!({}))])
            .serves(BALANCER),
        fact(
            "one port number may be served for TCP and UDP, together and alone",
            "Kn e2e service.go",
        )
        .given([web(ports(json!([tcp_port(), udp_port()]))), both_protocols()])
        .serves(["ClusterIP 10.96.0.1:80/TCP #1", "ClusterIP 10.96.0.1:80/UDP #1"])
        .given([web(ports(json!([tcp_port()])))])
        .serves(["ClusterIP 10.96.0.1:80/TCP #1"])
        .given([web(ports(json!([udp_port()])))])
        .serves(["ClusterIP 10.96.0.1:80/UDP #1"]),
        fact("a named target port may be another number on each pod", CACHE)
            .given([
                web(json!({"ports": [{"port": 80, "targetPort": "http"}]})),
                endpoints([(1, "ready")]),
                slice(
                    "web-2",
                    "web",
                    json!({
                        "ports": [{"port": 9090}], "endpoints": [{"addresses": ["10.0.0.2"]}],
                    }),
                ),
            ])
            .serves(["ClusterIP 10.96.0.1:80/TCP #1,#2:9090"]),
        fact("both families are served, whichever is the primary one", PORT)
            .given([
                dual_stack(["10.96.0.1", "fd00:96::1"]),
                endpoints([(1, "ready")]),
                endpoints6(),
                dual_node(),
            ])
            .serves(DUAL)
            .given([dual_stack(["fd00:96::1", "10.96.0.1"])])
            .serves(DUAL)
            .silently(),
    ]
}

pub(super) const BALANCER: [&str; 3] = [
    "NodePort 10.1.0.1:30080/TCP #1",
    "ClusterIP 10.96.0.1:80/TCP #1",
    "LoadBalancer 192.0.2.1:80/TCP #1",
];
const DUAL: [&str; 6] = [
    "NodePort 10.1.0.1:30080/TCP #1",
    "ClusterIP 10.96.0.1:80/TCP #1",
    "LoadBalancer 192.0.2.1:80/TCP #1",
    "LoadBalancer [2001:db8::1]:80/TCP [fd00::1]",
    "NodePort [fd00:1::1]:30080/TCP [fd00::1]",
    "ClusterIP [fd00:96::1]:80/TCP [fd00::1]",
];

fn external_ips() -> Vec<Fact> {
    let web = |more| web(merge(json!({"externalIPs": ["203.0.113.1", "198.51.100.1"]}), more));
    vec![
        fact("no external address is served unless the operator says so", EXTERNAL)
            .given([web(json!({})), endpoints([(1, "ready")])])
            .serves(["ClusterIP 10.96.0.1:80/TCP #1"])
            .complains("CVE-2020-8554"),
        fact("external addresses are served inside the ranges of the operator", EXTERNAL)
            .allowing_external_ips(["203.0.113.0/24", "2001:db8::/32"])
            .given([web(json!({})), endpoints([(1, "ready")])])
            .serves(["ClusterIP 10.96.0.1:80/TCP #1", "ExternalIP 203.0.113.1:80/TCP #1"])
            .complains(
                "spec.externalIPs[1]: 198.51.100.1 is in no range of --allow-external-ips: \
                        this external address is not served (CVE-2020-8554)",
            ),
        fact("external addresses follow the external policy", "K30 nftables/proxier.go:1400")
            .allowing_external_ips(["0.0.0.0/0"])
            .given([
                web(json!({"externalIPs": ["203.0.113.1"], "externalTrafficPolicy": "Local"})),
                endpoints([(1, "here ready"), (2, "there ready")]),
            ])
            .serves([
                "ClusterIP 10.96.0.1:80/TCP #1,#2",
                "ExternalIP 203.0.113.1:80/TCP #1 | #1,#2",
            ])
            .given([endpoints([(2, "there ready")])])
            .serves(["ClusterIP 10.96.0.1:80/TCP #2", "ExternalIP 203.0.113.1:80/TCP drop | #2"])
            .given([endpoints([])])
            .serves(["ClusterIP 10.96.0.1:80/TCP reject", "ExternalIP 203.0.113.1:80/TCP reject"]),
        fact("an external address is served only in a family of the Service", PORT)
            .allowing_external_ips(["::/0"])
            .given([web(json!({"externalIPs": ["2001:db8::1"]}))])
            .serves(["ClusterIP 10.96.0.1:80/TCP reject"])
            .complains("no ClusterIP of family IPv6"),
        fact("an external address that can be nobody's is refused inside every range", "ours")
            .allowing_external_ips(["0.0.0.0/0"])
            .given([web(json!({"externalIPs": ["127.0.0.1"]}))])
            .serves(["ClusterIP 10.96.0.1:80/TCP reject"])
            .complains("\"127.0.0.1\" is a loopback address"),
    ]
}

fn node_ports() -> Vec<Fact> {
    let objects = || {
        [
            node_port_service("web", "10.96.0.1"),
            node(&[
                ("ExternalIP", "198.51.100.1"),
                ("InternalIP", "10.1.0.1"),
                ("InternalIP", "10.2.0.1"),
            ]),
        ]
    };
    vec![
        fact("NodePorts are served on the first internal address of each family", NODE_PORTS)
            .devices_with(["10.1.0.1", "10.2.0.1", "10.3.0.1"])
            .given(objects())
            .serves(["NodePort 10.1.0.1:30080/TCP reject", "ClusterIP 10.96.0.1:80/TCP reject"])
            .silently(),
        fact(
            "NodePorts may be served on the addresses of devices in a range instead",
            "Kn util/nodeport_addresses.go",
        )
        .node_ports_on(["10.2.0.0/15"])
        .devices_with(["10.1.0.1", "10.2.0.1", "10.3.0.1", "fd00:1::1"])
        .given(objects())
        .serves([
            "NodePort 10.2.0.1:30080/TCP reject",
            "NodePort 10.3.0.1:30080/TCP reject",
            "ClusterIP 10.96.0.1:80/TCP reject",
        ])
        .silently(),
        fact("the primary address and ranges may be combined", "KEP-6032")
            .node_ports_on(["primary", "10.3.0.0/16"])
            .devices_with(["10.1.0.1", "10.2.0.1", "10.3.0.1"])
            .given(objects())
            .serves([
                "NodePort 10.1.0.1:30080/TCP reject",
                "NodePort 10.3.0.1:30080/TCP reject",
                "ClusterIP 10.96.0.1:80/TCP reject",
            ]),
        fact("NodePorts follow the addresses of the devices", "Kn util/nodeport_addresses.go")
            .node_ports_on(["10.0.0.0/8"])
            .given([node_port_service("web", "10.96.0.1")])
            .serves(["ClusterIP 10.96.0.1:80/TCP reject"])
            .complains("no address in --nodeport-addresses of family IPv4")
            .devices_with(["10.3.0.1"])
            .serves(["NodePort 10.3.0.1:30080/TCP reject", "ClusterIP 10.96.0.1:80/TCP reject"])
            .silently(),
        fact("NodePorts are never served on loopback, whatever the range", "CVE-2020-8558")
            .node_ports_on(["0.0.0.0/0", "::/0"])
            .devices_with(["127.0.0.1", "::1", "169.254.1.1", "fe80::1", "10.3.0.1", "fd00:1::1"])
            .given([dual_stack(["10.96.0.1", "fd00:96::1"])])
            .serves([
                "NodePort 10.3.0.1:30080/TCP reject",
                "ClusterIP 10.96.0.1:80/TCP reject",
                "LoadBalancer 192.0.2.1:80/TCP reject",
                "LoadBalancer [2001:db8::1]:80/TCP reject",
                "NodePort [fd00:1::1]:30080/TCP reject",
                "ClusterIP [fd00:96::1]:80/TCP reject",
            ])
            .silently(),
        fact(
            "a family without a range has no NodePorts",
            "ours; kube-proxy would use every address",
        )
        .node_ports_on(["10.0.0.0/8"])
        .devices_with(["10.3.0.1", "fd00:1::1"])
        .given([dual_stack(["10.96.0.1", "fd00:96::1"])])
        .serves([
            "NodePort 10.3.0.1:30080/TCP reject",
            "ClusterIP 10.96.0.1:80/TCP reject",
            "LoadBalancer 192.0.2.1:80/TCP reject",
            "LoadBalancer [2001:db8::1]:80/TCP reject",
            "ClusterIP [fd00:96::1]:80/TCP reject",
        ])
        .complains("no address in --nodeport-addresses of family IPv6"),
        fact("a load balancer address of the node has no NodePorts by itself", NODE_PORTS)
            .devices_with(["10.1.0.1", "192.0.2.1"])
            .given([web_balancer(json!({})), endpoints([(1, "ready")]), this_node()])
            .serves(BALANCER),
    ]
}

fn short_circuit() -> Vec<Fact> {
    vec![
        fact(
            "clients on the node reach every endpoint of an external address, whatever the policy",
            "K30 nftables/proxier.go:1400",
        )
        .given([
            web_balancer(json!({
                "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local",
            })),
            endpoints([(1, "here ready"), (2, "there ready")]),
            this_node(),
        ])
        .serves([
            "NodePort 10.1.0.1:30080/TCP #1 | #1,#2",
            "ClusterIP 10.96.0.1:80/TCP #1",
            "LoadBalancer 192.0.2.1:80/TCP #1 | #1,#2",
        ]),
        fact(
            "a ClusterIP follows the internal policy, whoever asks",
            "K30 nftables/proxier.go:1119",
        )
        .given([
            web(json!({"internalTrafficPolicy": "Local"})),
            endpoints([(1, "here ready"), (2, "there ready")]),
        ])
        .serves(["ClusterIP 10.96.0.1:80/TCP #1"]),
    ]
}

fn precedence() -> Vec<Fact> {
    let other = |kind: &str, external: &str, cluster_ip: &str| {
        service(
            "other",
            json!({
                "type": kind, "clusterIP": cluster_ip, "externalIPs": [external],
                "ports": [{"port": 80}],
            }),
        )
    };
    vec![
        fact("a ClusterIP wins over an external address", "ours")
            .allowing_external_ips(["10.0.0.0/8"])
            .given([
                other("ClusterIP", "10.96.0.1", "10.96.0.2"),
                web(json!({})),
                endpoints([(1, "ready")]),
            ])
            .serves(["ClusterIP 10.96.0.1:80/TCP #1", "ClusterIP 10.96.0.2:80/TCP reject"])
            .complains("other: spec.externalIPs[0]: 10.96.0.1:80/TCP is the ClusterIP of"),
        fact("a load balancer address wins over an external address", "ours")
            .allowing_external_ips(["192.0.2.0/24"])
            .given([
                other("ClusterIP", "192.0.2.1", "10.96.0.2"),
                balancer(json!([{"ip": "192.0.2.1"}])),
                endpoints([(1, "ready")]),
            ])
            .serves([
                "ClusterIP 10.96.0.1:80/TCP #1",
                "ClusterIP 10.96.0.2:80/TCP reject",
                "LoadBalancer 192.0.2.1:80/TCP #1",
            ])
            .complains("other: spec.externalIPs[0]: 192.0.2.1:80/TCP is the LoadBalancer of"),
        fact(
            "an external address of the node wins over its NodePort, and the other NodePorts stay",
            "ours",
        )
        .allowing_external_ips(["10.1.0.0/16"])
        .given([
            service(
                "other",
                json!({
                    "clusterIP": "10.96.0.2", "externalIPs": ["10.1.0.1"],
                    "ports": [{"port": 30080}],
                }),
            ),
            web(json!({"type": "NodePort", "ports": [
                {"name": "a", "port": 80, "nodePort": 30080},
                {"name": "b", "port": 81, "nodePort": 30081},
            ]})),
            this_node(),
        ])
        .serves([
            "ExternalIP 10.1.0.1:30080/TCP reject",
            "NodePort 10.1.0.1:30081/TCP reject",
            "ClusterIP 10.96.0.1:80/TCP reject",
            "ClusterIP 10.96.0.1:81/TCP reject",
            "ClusterIP 10.96.0.2:30080/TCP reject",
        ])
        .complains("web: spec.ports[0].nodePort: 10.1.0.1:30080/TCP is the ExternalIP of"),
        fact("a load balancer address of the node wins over a NodePort of that number", "ours")
            .given([
                service(
                    "other",
                    json!({
                        "type": "NodePort", "clusterIP": "10.96.0.2",
                        "ports": [{"port": 81, "nodePort": 80}],
                    }),
                ),
                balancer(json!([{"ip": "10.1.0.1"}])),
                this_node(),
            ])
            .serves([
                "LoadBalancer 10.1.0.1:80/TCP reject",
                "ClusterIP 10.96.0.1:80/TCP reject",
                "ClusterIP 10.96.0.2:81/TCP reject",
            ])
            .complains("other: spec.ports[0].nodePort: 10.1.0.1:80/TCP is the LoadBalancer of"),
        fact("one Service may write an address twice", "ours")
            .allowing_external_ips(["192.0.2.0/24"])
            .given([
                web_balancer(json!({"externalIPs": ["192.0.2.1", "192.0.2.1"]})),
                endpoints([(1, "ready")]),
                this_node(),
            ])
            .serves(BALANCER)
            .silently(),
        fact("a lost address is served for the next one as soon as it is free", "ours")
            .given([
                node_port_service("a", "10.96.0.2"),
                node_port_service("web", "10.96.0.1"),
                endpoints([(1, "ready")]),
                this_node(),
            ])
            .serves([
                "NodePort 10.1.0.1:30080/TCP reject",
                "ClusterIP 10.96.0.1:80/TCP #1",
                "ClusterIP 10.96.0.2:80/TCP reject",
            ])
            .deleted(Kind::Service, "a")
            .serves(["NodePort 10.1.0.1:30080/TCP #1", "ClusterIP 10.96.0.1:80/TCP #1"])
            .silently(),
    ]
}

/// `web` of type LoadBalancer without NodePorts.
fn balancer(ingress: Value) -> Sourced<Object> {
    let spec = json!({"type": "LoadBalancer", "clusterIP": "10.96.0.1", "ports": [{"port": 80}]});
    balanced("web", spec, ingress)
}

fn node_port_service(name: &str, cluster_ip: &str) -> Sourced<Object> {
    service(
        name,
        json!({
            "type": "NodePort", "clusterIP": cluster_ip, "ports": [{"port": 80, "nodePort": 30080}],
        }),
    )
}

fn dual_stack(cluster_ips: [&str; 2]) -> Sourced<Object> {
    let spec = json!({
        "type": "LoadBalancer", "clusterIP": cluster_ips[0], "clusterIPs": cluster_ips,
        "ports": [{"port": 80, "nodePort": 30080}],
    });
    balanced("web", spec, json!([{"ip": "192.0.2.1"}, {"ip": "2001:db8::1"}]))
}

pub(super) fn endpoints6() -> Sourced<Object> {
    slice(
        "web-6",
        "web",
        json!({
            "addressType": "IPv6", "endpoints": [{"addresses": ["fd00::1"]}],
        }),
    )
}

fn dual_node() -> Sourced<Object> {
    node(&[("InternalIP", "10.1.0.1"), ("InternalIP", "fd00:1::1")])
}

fn ports(ports: Value) -> Value {
    json!({"ports": ports})
}

fn tcp_port() -> Value {
    json!({"name": "tcp", "port": 80})
}

fn udp_port() -> Value {
    json!({"name": "udp", "port": 80, "protocol": "UDP"})
}

fn both_protocols() -> Sourced<Object> {
    slice(
        "web-1",
        "web",
        json!({
            "ports": [
                {"name": "tcp", "port": 8080}, {"name": "udp", "port": 8080, "protocol": "UDP"},
            ],
            "endpoints": [{"addresses": ["10.0.0.1"]}],
        }),
    )
}

pub(super) fn annotated(mut service: Sourced<Object>) -> Sourced<Object> {
    let Object::Service(object) = &mut service.object else { panic!() };
    let key = "service.beta.kubernetes.io/load-balancer-source-ranges".to_owned();
    Arc::make_mut(object).metadata.annotations = Some([(key, "10.9.0.0/16".to_owned())].into());
    service
}
