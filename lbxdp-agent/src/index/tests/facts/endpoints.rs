//! Which endpoints a client may reach.

use super::*;

const CACHE: &str = "Kn endpointslicecache.go";
const TOPOLOGY: &str = "Kn topology.go";
const VERDICTS: &str = "K30 nftables/proxier.go:1160";

pub(super) fn rows() -> Vec<Fact> {
    [inputs(), lists(), hints(), verdicts()].into_iter().flatten().collect()
}

fn inputs() -> Vec<Fact> {
    vec![
        fact("an endpoint that says nothing about its conditions is ready", CACHE)
            .given([web(json!({})), written(json!({"conditions": null}))])
            .serves(["ClusterIP 10.96.0.1:80/TCP #1"])
            .given([written(json!({"conditions": {}}))])
            .serves(["ClusterIP 10.96.0.1:80/TCP #1"]),
        fact(
            "an endpoint that is not ready serves by default, but terminates only if it says so",
            CACHE,
        )
        .given([web(json!({})), written(json!({"conditions": {"ready": false}}))])
        .serves(["ClusterIP 10.96.0.1:80/TCP reject"])
        .given([written(json!({"conditions": {"ready": false, "terminating": true}}))])
        .serves(["ClusterIP 10.96.0.1:80/TCP #1"])
        .given([written(json!({"conditions": {"ready": false, "serving": true}}))])
        .serves(["ClusterIP 10.96.0.1:80/TCP reject"]),
        fact("only the first address of an endpoint is used", CACHE)
            .given([web(json!({})), written(json!({"addresses": ["10.0.0.1", "10.0.0.2"]}))])
            .serves(["ClusterIP 10.96.0.1:80/TCP #1"]),
        fact("an endpoint without an address is ignored", CACHE)
            .given([web(json!({})), written(json!({"addresses": []}))])
            .serves(["ClusterIP 10.96.0.1:80/TCP reject"]),
        fact("an endpoint is local if it names this node, letter by letter", CACHE)
            .given([local_web(), written(json!({"nodeName": NODE}))])
            .serves(["ClusterIP 10.96.0.1:80/TCP #1"])
            .given([written(json!({"nodeName": "Node-1"}))])
            .serves(["ClusterIP 10.96.0.1:80/TCP drop"])
            .given([written(json!({"nodeName": null}))])
            .serves(["ClusterIP 10.96.0.1:80/TCP drop"]),
        fact("a slice port without a name is the port without a name", CACHE)
            .given([web(json!({})), slice_with_ports(json!([{"port": 8080}]))])
            .serves(["ClusterIP 10.96.0.1:80/TCP #1"])
            .silently(),
        fact("a slice port without a number, or with zero, is ignored", CACHE)
            .given([web(json!({})), slice_with_ports(json!([{"name": ""}]))])
            .serves(["ClusterIP 10.96.0.1:80/TCP reject"])
            .given([slice_with_ports(json!([{"name": "", "port": 0}]))])
            .serves(["ClusterIP 10.96.0.1:80/TCP reject"]),
        fact("ports are joined by name and protocol and never by number", CACHE)
            .given([
                web(json!({"ports": [
                    {"name": "a", "port": 80}, {"name": "b", "port": 81},
                    {"name": "c", "port": 81, "protocol": "UDP"},
                ]})),
                slice_with_ports(json!([
                    {"name": "a", "port": 81}, {"name": "b", "port": 80},
                    {"name": "c", "port": 80, "protocol": "UDP"},
                ])),
            ])
            .serves([
                "ClusterIP 10.96.0.1:80/TCP #1:81",
                "ClusterIP 10.96.0.1:81/TCP #1:80",
                "ClusterIP 10.96.0.1:81/UDP #1:80",
            ]),
        fact("a slice port of the same name and another protocol is not the Service's", CACHE)
            .given([web(json!({})), slice_with_ports(json!([{"port": 8080, "protocol": "UDP"}]))])
            .serves(["ClusterIP 10.96.0.1:80/TCP reject"]),
        fact("an endpoint in two slices is one, local if either says so", CACHE)
            .given([
                local_web(),
                named_slice("web-1", [(1, "here ready")]),
                named_slice("web-2", [(1, "there ready"), (2, "there ready")]),
            ])
            .serves(["ClusterIP 10.96.0.1:80/TCP #1"]),
        fact(
            "an endpoint in two slices is in the better of its two states",
            "ours; kube-proxy takes the first it sees",
        )
        .given([
            web(json!({})),
            named_slice("web-1", [(1, "there draining")]),
            named_slice("web-2", [(1, "there ready"), (2, "there ready")]),
            named_slice("web-3", [(2, "there failing")]),
        ])
        .serves(["ClusterIP 10.96.0.1:80/TCP #1,#2"]),
        fact(
            "an endpoint in two slices has the hints of the better one",
            "ours; kube-proxy takes the first it sees",
        )
        .given([
            web(json!({})),
            named_slice("web-1", [(1, "there draining node=node-2")]),
            named_slice("web-2", [(1, "there ready node=node-1"), (2, "there ready node=node-2")]),
            named_slice("web-3", [(2, "there ready")]),
        ])
        .serves(["ClusterIP 10.96.0.1:80/TCP #1"]),
        fact("an endpoint stays as long as one slice has it", CACHE)
            .given([
                web(json!({})),
                named_slice("web-1", [(1, "there ready")]),
                named_slice("web-2", [(1, "there ready")]),
            ])
            .deleted(Kind::EndpointSlice, "web-1")
            .serves(["ClusterIP 10.96.0.1:80/TCP #1"])
            .deleted(Kind::EndpointSlice, "web-2")
            .serves(["ClusterIP 10.96.0.1:80/TCP reject"]),
        fact("a slice that names no Service is nobody's", "K30 cmd/kube-proxy/app/server.go:904")
            .given([
                web(json!({})),
                object::<EndpointSlice>(json!({
                    "metadata": {"name": "web-1"}, "addressType": "IPv4",
                    "ports": [{"port": 8080}], "endpoints": [endpoint(&(1, "ready"))],
                })),
            ])
            .serves(["ClusterIP 10.96.0.1:80/TCP reject"]),
        fact(
            "a slice labelled headless or of another proxy is ignored while it is",
            "K30 cmd/kube-proxy/app/server.go:904",
        )
        .given([web(json!({})), endpoints([(1, "ready")])])
        .serves(["ClusterIP 10.96.0.1:80/TCP #1"])
        .given([labelled(endpoints([(1, "ready")]), service::HEADLESS_LABEL)])
        .serves(["ClusterIP 10.96.0.1:80/TCP reject"])
        .given([endpoints([(1, "ready")])])
        .serves(["ClusterIP 10.96.0.1:80/TCP #1"])
        .given([labelled(endpoints([(1, "ready")]), service::PROXY_NAME_LABEL)])
        .serves(["ClusterIP 10.96.0.1:80/TCP reject"])
        .silently(),
        fact("endpoints of a family that the Service lacks serve nobody", "Kn util/utils.go")
            .given([
                web(json!({})),
                slice(
                    "web-6",
                    "web",
                    json!({
                        "addressType": "IPv6", "endpoints": [{"addresses": ["fd00::1"]}],
                    }),
                ),
            ])
            .serves(["ClusterIP 10.96.0.1:80/TCP reject"]),
        fact("an address that is not of its slice's family is ignored", "Kn util/utils.go")
            .given([web(json!({})), written(json!({"addresses": ["fd00::1"]}))])
            .serves(["ClusterIP 10.96.0.1:80/TCP reject"])
            .complains("is not of the slice's family IPv4"),
        fact("publishNotReadyAddresses counts only as the slices show it", "e2e service.go")
            .given([
                web(json!({"publishNotReadyAddresses": true})),
                endpoints([(1, "here unready")]),
            ])
            .serves(["ClusterIP 10.96.0.1:80/TCP reject"])
            .given([written(
                json!({"conditions": {"ready": true, "serving": false, "terminating": true}}),
            )])
            .serves(["ClusterIP 10.96.0.1:80/TCP #1"]),
    ]
}

fn lists() -> Vec<Fact> {
    vec![
        fact("a terminating endpoint gets nothing new while one is ready", TOPOLOGY)
            .given([web(json!({})), endpoints([(1, "here draining"), (2, "there ready")])])
            .serves(["ClusterIP 10.96.0.1:80/TCP #2"]),
        fact("terminating endpoints that serve are used when none is ready", TOPOLOGY)
            .given([
                web(json!({})),
                endpoints([(1, "here draining"), (2, "there draining"), (3, "there unready")]),
            ])
            .serves(["ClusterIP 10.96.0.1:80/TCP #1,#2"])
            .given([endpoints([(1, "here draining"), (2, "there draining"), (3, "there ready")])])
            .serves(["ClusterIP 10.96.0.1:80/TCP #3"]),
        fact("an endpoint that neither is ready nor serves is never used", "KEP-1669")
            .given([web(json!({})), endpoints([(1, "here failing"), (2, "there unready")])])
            .serves(["ClusterIP 10.96.0.1:80/TCP reject"])
            .silently(),
        fact("the local list falls back apart from the cluster list", TOPOLOGY)
            .given([
                local_balancer(),
                endpoints([(1, "here draining"), (2, "there ready")]),
                this_node(),
            ])
            .serves([
                "NodePort 10.1.0.1:30080/TCP #1 | #2",
                "ClusterIP 10.96.0.1:80/TCP #2",
                "LoadBalancer 192.0.2.1:80/TCP #1 | #2",
            ]),
        fact("the local list falls back only to endpoints of this node", TOPOLOGY)
            .given([local_web(), endpoints([(1, "here failing"), (2, "there draining")])])
            .serves(["ClusterIP 10.96.0.1:80/TCP drop"]),
        fact("a ready local endpoint keeps local terminating ones out", TOPOLOGY)
            .given([local_web(), endpoints([(1, "here draining"), (2, "here ready")])])
            .serves(["ClusterIP 10.96.0.1:80/TCP #2"]),
        fact(
            "a Service with policy Local has a cluster list for the clients of its node",
            "K30 serviceport.go:169",
        )
        .given([local_balancer(), endpoints([(2, "there draining")])])
        .serves(["ClusterIP 10.96.0.1:80/TCP #2", "LoadBalancer 192.0.2.1:80/TCP drop | #2"]),
    ]
}

fn hints() -> Vec<Fact> {
    let zones = || {
        endpoints([
            (1, "there ready zone=a"),
            (2, "there ready zone=b zone=a"),
            (3, "here ready zone=b"),
        ])
    };
    let all = ["ClusterIP 10.96.0.1:80/TCP #1,#2,#3"];
    vec![
        fact("the hints decide and neither the trafficDistribution nor an annotation", "KEP-3015")
            .given([
                web(json!({"trafficDistribution": "PreferClose"})),
                endpoints([(1, "here ready"), (2, "there ready")]),
                node_in_zone("a"),
            ])
            .serves(["ClusterIP 10.96.0.1:80/TCP #1,#2"])
            .given([annotated(web(json!({}))), endpoints([(1, "here ready"), (2, "there ready")])])
            .serves(["ClusterIP 10.96.0.1:80/TCP #1,#2"])
            .given([
                web(json!({})),
                endpoints([(1, "there ready zone=a"), (2, "here ready zone=b")]),
            ])
            .serves(["ClusterIP 10.96.0.1:80/TCP #1"]),
        fact("endpoints hinted for this node are used if every endpoint has a node hint", TOPOLOGY)
            .given([
                web(json!({})),
                endpoints([
                    (1, "there ready node=node-1 node=node-2"),
                    (2, "there ready node=node-2"),
                ]),
            ])
            .serves(["ClusterIP 10.96.0.1:80/TCP #1"])
            .given([endpoints([(1, "there ready node=node-1"), (2, "there ready")])])
            .serves(["ClusterIP 10.96.0.1:80/TCP #1,#2"]),
        fact("node hints go before zone hints, and zone hints stand in for them", TOPOLOGY)
            .given([
                web(json!({})),
                endpoints([
                    (1, "there ready node=node-1 zone=b"),
                    (2, "there ready node=node-2 zone=a"),
                ]),
                node_in_zone("a"),
            ])
            .serves(["ClusterIP 10.96.0.1:80/TCP #1"])
            .given([endpoints([
                (1, "there ready node=node-3 zone=b"),
                (2, "there ready node=node-2 zone=a"),
            ])])
            .serves(["ClusterIP 10.96.0.1:80/TCP #2"])
            .given([endpoints([(1, "there ready zone=b"), (2, "there ready node=node-1 zone=a")])])
            .serves(["ClusterIP 10.96.0.1:80/TCP #2"]),
        fact("endpoints hinted for this zone are used if every endpoint has a zone hint", TOPOLOGY)
            .given([web(json!({})), zones(), node_in_zone("a")])
            .serves(["ClusterIP 10.96.0.1:80/TCP #1,#2"])
            .given([endpoints([
                (1, "there ready zone=a"),
                (2, "there ready zone=a"),
                (3, "here ready"),
            ])])
            .serves(all),
        fact("hints that leave nothing for this node and zone are not applied", TOPOLOGY)
            .given([web(json!({})), zones(), node_in_zone("c")])
            .serves(all),
        fact("a node without a zone applies no zone hints", TOPOLOGY)
            .given([web(json!({})), zones(), this_node()])
            .serves(all)
            .given([node_in_zone("")])
            .serves(all)
            .deleted(Kind::Node, NODE)
            .serves(all),
        fact("a change of this node's zone is followed", "K30 nftables/proxier.go OnNodeUpdate")
            .given([web(json!({})), zones(), node_in_zone("a")])
            .given([node_in_zone("b")])
            .serves(["ClusterIP 10.96.0.1:80/TCP #2,#3"]),
        fact("only the hints of ready endpoints are looked at", TOPOLOGY)
            .given([
                web(json!({})),
                endpoints([
                    (1, "there ready zone=a"),
                    (2, "there ready zone=b"),
                    (3, "there draining"),
                    (4, "there unready"),
                ]),
                node_in_zone("a"),
            ])
            .serves(["ClusterIP 10.96.0.1:80/TCP #1"]),
        fact("the fallback to terminating endpoints ignores hints", TOPOLOGY)
            .given([
                web(json!({})),
                endpoints([(1, "there draining zone=a"), (2, "there draining zone=b")]),
                node_in_zone("a"),
            ])
            .serves(["ClusterIP 10.96.0.1:80/TCP #1,#2"]),
        fact("hints are never applied to the local list", TOPOLOGY)
            .given([
                local_balancer(),
                endpoints([(1, "here ready zone=b"), (2, "there ready zone=a")]),
                node_in_zone("a"),
            ])
            .serves([
                "NodePort 10.1.0.1:30080/TCP #1 | #2",
                "ClusterIP 10.96.0.1:80/TCP #2",
                "LoadBalancer 192.0.2.1:80/TCP #1 | #2",
            ]),
        fact("hints are judged for each family apart", TOPOLOGY)
            .given([
                web(json!({"clusterIPs": ["10.96.0.1", "fd00:96::1"]})),
                endpoints([(1, "there ready zone=a"), (2, "there ready zone=b")]),
                slice(
                    "web-6",
                    "web",
                    json!({"addressType": "IPv6", "endpoints": [
                        {"addresses": ["fd00::1"]}, {"addresses": ["fd00::2"]},
                    ]}),
                ),
                node_in_zone("a"),
            ])
            .serves([
                "ClusterIP 10.96.0.1:80/TCP #1",
                "ClusterIP [fd00:96::1]:80/TCP [fd00::1],[fd00::2]",
            ]),
    ]
}

fn verdicts() -> Vec<Fact> {
    vec![
        fact("without an endpoint anywhere every client is refused", VERDICTS)
            .given([local_balancer(), this_node()])
            .serves([
                "NodePort 10.1.0.1:30080/TCP reject",
                "ClusterIP 10.96.0.1:80/TCP reject",
                "LoadBalancer 192.0.2.1:80/TCP reject",
            ])
            .given([endpoints([(1, "here failing"), (2, "there unready")])])
            .serves([
                "NodePort 10.1.0.1:30080/TCP reject",
                "ClusterIP 10.96.0.1:80/TCP reject",
                "LoadBalancer 192.0.2.1:80/TCP reject",
            ]),
        fact(
            "with endpoints only elsewhere policy Local is silent outside and serves inside",
            VERDICTS,
        )
        .given([local_balancer(), endpoints([(2, "there ready")]), this_node()])
        .serves([
            "NodePort 10.1.0.1:30080/TCP drop | #2",
            "ClusterIP 10.96.0.1:80/TCP #2",
            "LoadBalancer 192.0.2.1:80/TCP drop | #2",
        ]),
        fact("terminating endpoints elsewhere count as endpoints", TOPOLOGY)
            .given([local_web(), endpoints([(2, "there draining")])])
            .serves(["ClusterIP 10.96.0.1:80/TCP drop"]),
        fact("the internal policy Local drops at the ClusterIP and nowhere else", VERDICTS)
            .given([
                web_balancer(json!({"internalTrafficPolicy": "Local"})),
                endpoints([(2, "there ready")]),
                this_node(),
            ])
            .serves([
                "NodePort 10.1.0.1:30080/TCP #2",
                "ClusterIP 10.96.0.1:80/TCP drop",
                "LoadBalancer 192.0.2.1:80/TCP #2",
            ]),
    ]
}

/// `web` with internal policy Local, so that its one frontend shows the local list.
fn local_web() -> Sourced<Object> {
    web(json!({"internalTrafficPolicy": "Local"}))
}

fn local_balancer() -> Sourced<Object> {
    web_balancer(json!({"externalTrafficPolicy": "Local"}))
}

fn named_slice<const N: usize>(name: &str, described: [(u8, &str); N]) -> Sourced<Object> {
    let endpoints: Value = described.iter().map(endpoint).collect();
    slice(name, "web", json!({"endpoints": endpoints}))
}

fn slice_with_ports(ports: Value) -> Sourced<Object> {
    slice("web-1", "web", json!({"ports": ports, "endpoints": [{"addresses": ["10.0.0.1"]}]}))
}

fn annotated(mut service: Sourced<Object>) -> Sourced<Object> {
    let Object::Service(object) = &mut service.object else { panic!() };
    let annotation = ("service.kubernetes.io/topology-mode".to_owned(), "Auto".to_owned());
    Arc::make_mut(object).metadata.annotations = Some([annotation].into());
    service
}
