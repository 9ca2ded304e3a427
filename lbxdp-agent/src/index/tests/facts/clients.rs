//! Which clients a frontend serves, and which keep their backend.

use super::*;

const PORT: &str = "K30 serviceport.go newBaseServiceInfo";
const RANGES: &str = "K30 nftables/proxier.go:1255";
const AFFINITY: &str = "K30 nftables/proxier.go:1484";

pub(super) fn rows() -> Vec<Fact> {
    [source_ranges(), unreadable_ranges(), affinity()].into_iter().flatten().collect()
}

fn restricted<const N: usize>(ranges: [&str; N]) -> Sourced<Object> {
    web_balancer(json!({"loadBalancerSourceRanges": Value::from(ranges.to_vec())}))
}

/// The same without NodePorts.
fn without_node_ports<const N: usize>(ranges: [&str; N]) -> Sourced<Object> {
    web_balancer(json!({
        "ports": [{"port": 80}], "loadBalancerSourceRanges": Value::from(ranges.to_vec()),
    }))
}

/// The same for both families.
fn restricted6<const N: usize>(ranges: [&str; N]) -> Sourced<Object> {
    let cluster_ips = ["10.96.0.1", "fd00:96::1"];
    let spec = json!({
        "type": "LoadBalancer", "clusterIP": cluster_ips[0], "clusterIPs": cluster_ips,
        "ports": [{"port": 80}], "loadBalancerSourceRanges": Value::from(ranges.to_vec()),
    });
    balanced("web", spec, json!([{"ip": "192.0.2.1"}, {"ip": "2001:db8::1"}]))
}

fn source_ranges() -> Vec<Fact> {
    vec![
        fact("source ranges restrict the load balancer's addresses and nothing else", RANGES)
            .given([
                restricted(["172.16.0.0/12", "192.168.7.0/24"]),
                endpoints([(1, "ready")]),
                this_node(),
            ])
            .serves([
                "NodePort 10.1.0.1:30080/TCP #1",
                "ClusterIP 10.96.0.1:80/TCP #1",
                "LoadBalancer 192.0.2.1:80/TCP #1 for 172.16.0.0/12,192.168.7.0/24",
            ])
            .silently()
            .given([restricted(["172.16.0.0/12"])])
            .serves([
                "NodePort 10.1.0.1:30080/TCP #1",
                "ClusterIP 10.96.0.1:80/TCP #1",
                "LoadBalancer 192.0.2.1:80/TCP #1 for 172.16.0.0/12",
            ])
            .given([restricted([])])
            .serves(BALANCER),
        fact(
            "source ranges restrict external addresses as well",
            "ours; cilium#44718, Cal syncer.go",
        )
        .allowing_external_ips(["203.0.113.0/24"])
        .given([
            web(json!({
                "loadBalancerSourceRanges": ["172.16.0.0/12"],
                "externalIPs": ["203.0.113.1"],
            })),
            endpoints([(1, "ready")]),
        ])
        .serves([
            "ClusterIP 10.96.0.1:80/TCP #1",
            "ExternalIP 203.0.113.1:80/TCP #1 for 172.16.0.0/12",
        ])
        .silently(),
        fact(
            "the operator may let source ranges restrict NodePorts and ClusterIPs as well",
            "ours",
        )
        .restricting_all_frontends()
        .given([restricted(["172.16.0.0/12"]), endpoints([(1, "ready")]), this_node()])
        .serves([
            "NodePort 10.1.0.1:30080/TCP #1 for 172.16.0.0/12",
            "ClusterIP 10.96.0.1:80/TCP #1 for 172.16.0.0/12",
            "LoadBalancer 192.0.2.1:80/TCP #1 for 172.16.0.0/12",
        ])
        .silently(),
        fact("white space is no source range", PORT)
            .given([restricted(["", " \t"]), endpoints([(1, "ready")]), this_node()])
            .serves(BALANCER)
            .silently(),
        fact("white space around a source range does not count", PORT)
            .given([without_node_ports([" 172.16.0.0/12\t"]), endpoints([(1, "ready")])])
            .serves([
                "ClusterIP 10.96.0.1:80/TCP #1",
                "LoadBalancer 192.0.2.1:80/TCP #1 for 172.16.0.0/12",
            ])
            .silently(),
        fact("bits behind the prefix of a source range do not count", "Go net.ParseCIDR")
            .given([
                restricted6(["172.16.1.2/12", "2001:db8:1::7/48"]),
                endpoints([(1, "ready")]),
                endpoints6(),
            ])
            .serves([
                "ClusterIP 10.96.0.1:80/TCP #1",
                "LoadBalancer 192.0.2.1:80/TCP #1 for 172.16.0.0/12",
                "LoadBalancer [2001:db8::1]:80/TCP [fd00::1] for 2001:db8:1::/48",
                "ClusterIP [fd00:96::1]:80/TCP [fd00::1]",
            ])
            .silently(),
        fact("a family without a source range is open", PORT)
            .given([restricted6(["172.16.0.0/12"]), endpoints([(1, "ready")]), endpoints6()])
            .serves([
                "ClusterIP 10.96.0.1:80/TCP #1",
                "LoadBalancer 192.0.2.1:80/TCP #1 for 172.16.0.0/12",
                "LoadBalancer [2001:db8::1]:80/TCP [fd00::1]",
                "ClusterIP [fd00:96::1]:80/TCP [fd00::1]",
            ])
            .silently()
            .given([restricted6(["2001:db8:1::/48"])])
            .serves([
                "ClusterIP 10.96.0.1:80/TCP #1",
                "LoadBalancer 192.0.2.1:80/TCP #1",
                "LoadBalancer [2001:db8::1]:80/TCP [fd00::1] for 2001:db8:1::/48",
                "ClusterIP [fd00:96::1]:80/TCP [fd00::1]",
            ]),
        fact("the legacy annotation for source ranges is not read", PORT)
            .given([annotated(web_balancer(json!({}))), endpoints([(1, "ready")]), this_node()])
            .serves(BALANCER),
    ]
}

fn unreadable_ranges() -> Vec<Fact> {
    vec![
        fact("a source range that cannot be read is left out and reported", "ours")
            .given([
                without_node_ports(["172.16.0.0/12", "172.16.0.0/33"]),
                endpoints([(1, "ready")]),
            ])
            .serves([
                "ClusterIP 10.96.0.1:80/TCP #1",
                "LoadBalancer 192.0.2.1:80/TCP #1 for 172.16.0.0/12",
            ])
            .complains("web: spec.loadBalancerSourceRanges[1]: \"172.16.0.0/33\" is not a range"),
        fact("an address without a length is no source range", "Go net.ParseCIDR")
            .given([without_node_ports(["192.168.7.1"]), endpoints([(1, "ready")])])
            .serves([
                "ClusterIP 10.96.0.1:80/TCP #1",
                "LoadBalancer 192.0.2.1:80/TCP #1 for nobody",
            ])
            .complains("web: spec.loadBalancerSourceRanges[0]: \"192.168.7.1\" is not a range"),
        fact("a family whose source ranges may be among the unreadable is closed", "ours")
            .given([
                restricted6(["172.16.0.0/12", "2001:db8:1::/129"]),
                endpoints([(1, "ready")]),
                endpoints6(),
            ])
            .serves([
                "ClusterIP 10.96.0.1:80/TCP #1",
                "LoadBalancer 192.0.2.1:80/TCP #1 for 172.16.0.0/12",
                "LoadBalancer [2001:db8::1]:80/TCP [fd00::1] for nobody",
                "ClusterIP [fd00:96::1]:80/TCP [fd00::1]",
            ])
            .complains("web: spec.loadBalancerSourceRanges[1]: \"2001:db8:1::/129\""),
    ]
}

fn affine(config: Value) -> Sourced<Object> {
    web_balancer(merge(json!({"sessionAffinity": "ClientIP"}), config))
}

fn timeout(seconds: i64) -> Sourced<Object> {
    affine(json!({"sessionAffinityConfig": {"clientIP": {"timeoutSeconds": seconds}}}))
}

fn affinity() -> Vec<Fact> {
    const THREE_HOURS: [&str; 3] = [
        "NodePort 10.1.0.1:30080/TCP #1 sticky 10800s",
        "ClusterIP 10.96.0.1:80/TCP #1 sticky 10800s",
        "LoadBalancer 192.0.2.1:80/TCP #1 sticky 10800s",
    ];
    vec![
        fact("clients keep their backend at every frontend, by default for three hours", AFFINITY)
            .given([affine(json!({})), endpoints([(1, "ready")]), this_node()])
            .serves(THREE_HOURS)
            .silently(),
        fact("the time-out of the affinity is the Service's", PORT)
            .given([timeout(10), endpoints([(1, "ready")]), this_node()])
            .serves([
                "NodePort 10.1.0.1:30080/TCP #1 sticky 10s",
                "ClusterIP 10.96.0.1:80/TCP #1 sticky 10s",
                "LoadBalancer 192.0.2.1:80/TCP #1 sticky 10s",
            ])
            .silently()
            .given([timeout(86_400)])
            .serves([
                "NodePort 10.1.0.1:30080/TCP #1 sticky 86400s",
                "ClusterIP 10.96.0.1:80/TCP #1 sticky 86400s",
                "LoadBalancer 192.0.2.1:80/TCP #1 sticky 86400s",
            ])
            .silently(),
        fact("a time-out of no second or of more than a day is the default", "Kn validation.go")
            .given([timeout(0), endpoints([(1, "ready")]), this_node()])
            .serves(THREE_HOURS)
            .complains("web: spec.sessionAffinityConfig.clientIP.timeoutSeconds: 0 is not in")
            .given([timeout(86_401)])
            .serves(THREE_HOURS)
            .complains("86401 is not in 1..=86400: 10800 is used"),
        fact("affinity may be switched on and off", "Kn e2e service.go")
            .given([web_balancer(json!({})), endpoints([(1, "ready")]), this_node()])
            .serves(BALANCER)
            .given([affine(json!({}))])
            .serves(THREE_HOURS)
            .given([web_balancer(json!({
                "sessionAffinity": "None",
                "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10}},
            }))])
            .serves(BALANCER)
            .silently(),
    ]
}
