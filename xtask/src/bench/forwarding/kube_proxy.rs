//! What kube-proxy would tell the kernel about some Services: the rules that a packet from outside
//! meets on its way through a node, in the shape that kube-proxy 1.36 gives them
//! (`pkg/proxy/nftables/proxier.go`, `pkg/proxy/iptables/proxier.go`). A rule set that is made by hand
//! is loaded in one go, and needs no API server with thousands of Services.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::services::{Backend, Services};

/// For `nft -f`.
pub fn nftables(services: &Services) -> String {
    let mut rules = String::from(NFT_BEGIN);
    let mut verdicts = Vec::new();
    let mut addresses = BTreeSet::new();
    for service in services.ports() {
        let (name, ip, port) = (service.number, service.cluster_ip, Services::PORT);
        let protocol = service.protocol.name();
        let mut choices = Vec::new();
        for (place, Backend { address, port }) in service.backends.iter().enumerate() {
            let chain = format!("endpoint-{name}-{place}");
            let _ = writeln!(
                rules,
                "chain {chain} {{ ip saddr {address} jump mark-for-masquerade; \
                 meta l4proto {protocol} dnat to {address}:{port}; }}"
            );
            choices.push(format!("{place} : goto {chain}"));
        }
        let _ = writeln!(
            rules,
            "chain service-{name} {{ ip daddr {ip} {protocol} dport {port} ip saddr != {} \
             jump mark-for-masquerade; numgen random mod {} vmap {{ {} }}; }}",
            Services::PODS,
            choices.len(),
            choices.join(", ")
        );
        verdicts.push(format!("{ip} . {protocol} . {port} : goto service-{name}"));
        addresses.insert(ip.to_string());
    }
    let addresses: Vec<_> = addresses.into_iter().collect();
    let _ = writeln!(
        rules,
        "set cluster-ips {{ type ipv4_addr; elements = {{ {} }} }}\n\
         map service-ips {{ type ipv4_addr . inet_proto . inet_service : verdict; \
         elements = {{ {} }} }}",
        addresses.join(", "),
        verdicts.join(", ")
    );
    rules + NFT_END
}

/// For `iptables-restore`.
pub fn iptables(services: &Services) -> String {
    let mut chains = String::from(IPTABLES_BEGIN);
    let mut rules = String::from(IPTABLES_RULES);
    for service in services.ports() {
        let (name, ip, port) = (service.number, service.cluster_ip, Services::PORT);
        let protocol = service.protocol.name();
        let chain = format!("KUBE-SVC-{name:016}");
        let about = format!("-m comment --comment \"default/s{name}:{protocol} cluster IP\"");
        let _ = writeln!(chains, ":{chain} - [0:0]");
        let _ = writeln!(
            rules,
            "-A KUBE-SERVICES -d {ip}/32 -p {protocol} {about} -m {protocol} --dport {port} -j {chain}\n\
             -A {chain} ! -s {} -d {ip}/32 -p {protocol} {about} -m {protocol} --dport {port} -j KUBE-MARK-MASQ",
            Services::PODS
        );
        let count = service.backends.len();
        for (place, Backend { address, port }) in service.backends.iter().enumerate() {
            let endpoint = format!("KUBE-SEP-{name:08}{place:08}");
            let _ = writeln!(chains, ":{endpoint} - [0:0]");
            let chance = 1.0 / (count - place) as f64;
            let some = format!("-m statistic --mode random --probability {chance:.11} ");
            let some = if place + 1 < count { some.as_str() } else { "" };
            let about =
                format!("-m comment --comment \"default/s{name}:{protocol} -> {address}:{port}\"");
            let _ = writeln!(
                rules,
                "-A {chain} {about} {some}-j {endpoint}\n\
                 -A {endpoint} -s {address}/32 {about} -j KUBE-MARK-MASQ\n\
                 -A {endpoint} -p {protocol} {about} -m {protocol} -j DNAT --to-destination {address}:{port}"
            );
        }
    }
    format!("{chains}{rules}{IPTABLES_LAST}COMMIT\n")
}

const NFT_BEGIN: &str = "table ip kube-proxy
delete table ip kube-proxy
table ip kube-proxy {
map no-endpoint-services { type ipv4_addr . inet_proto . inet_service : verdict; }
map no-endpoint-nodeports { type inet_proto . inet_service : verdict; }
map service-nodeports { type inet_proto . inet_service : verdict; }
map firewall-ips { type ipv4_addr . inet_proto . inet_service : verdict; }
set nodeport-ips { type ipv4_addr; elements = { 198.51.100.11, 192.0.2.11 } }
chain mark-for-masquerade { mark set mark or 0x4000; }
chain masquerading { mark and 0x4000 == 0 return; mark set mark xor 0x4000; masquerade fully-random; }
chain reject-chain { reject; }
";

const NFT_END: &str = "chain services {
ip daddr . meta l4proto . th dport vmap @service-ips
ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
}
chain service-endpoints-check { ip daddr . meta l4proto . th dport vmap @no-endpoint-services; }
chain nodeport-endpoints-check {
ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports
}
chain firewall-check { ip daddr . meta l4proto . th dport vmap @firewall-ips; }
chain cluster-ips-check { ip daddr @cluster-ips reject; }
chain filter-prerouting-pre-dnat {
type filter hook prerouting priority dstnat - 10
ct state new jump firewall-check
}
chain filter-forward {
type filter hook forward priority filter
ct state new jump service-endpoints-check
ct state new jump cluster-ips-check
}
chain filter-input {
type filter hook input priority filter
ct state new jump nodeport-endpoints-check
ct state new jump service-endpoints-check
}
chain filter-output {
type filter hook output priority filter
ct state new jump service-endpoints-check
}
chain filter-output-post-dnat {
type filter hook output priority -90
ct state new jump cluster-ips-check
}
chain nat-prerouting { type nat hook prerouting priority dstnat; jump services; }
chain nat-output { type nat hook output priority -100; jump services; }
chain nat-postrouting { type nat hook postrouting priority srcnat; jump masquerading; }
}
";

const IPTABLES_BEGIN: &str = "*filter
:KUBE-FORWARD - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-SERVICES - [0:0]
-A INPUT -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL
-A INPUT -m conntrack --ctstate NEW -j KUBE-EXTERNAL-SERVICES
-A FORWARD -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL
-A FORWARD -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -j KUBE-SERVICES
-A FORWARD -m conntrack --ctstate NEW -j KUBE-EXTERNAL-SERVICES
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
*nat
:KUBE-SERVICES - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODEPORTS - [0:0]
";

const IPTABLES_RULES: &str = "-A PREROUTING -j KUBE-SERVICES
-A OUTPUT -j KUBE-SERVICES
-A POSTROUTING -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
";

const IPTABLES_LAST: &str = "-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\n";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_of_both_protocols_has_rules_for_each() {
        let services = Services::of_both(2);
        let nft = nftables(&services);
        assert!(nft.contains("10.96.0.2 . udp . 53 : goto service-2"), "{nft}");
        assert!(nft.contains("10.96.0.2 . tcp . 53 : goto service-3"), "{nft}");
        assert_eq!(nft.matches(" meta l4proto tcp dnat to ").count(), 128);
        let iptables = iptables(&services);
        assert_eq!(iptables.matches(" -p tcp ").count(), 2 * (1 + 1 + 64));
    }

    #[test]
    fn every_service_and_endpoint_has_its_rules() {
        let services = Services::new(100);
        let nft = nftables(&services);
        assert_eq!(nft.matches("chain service-").count(), 101, "{nft}");
        assert!(nft.contains("10.96.0.2 . udp . 53 : goto service-1"), "{nft}");
        assert_eq!(nft.matches(" dnat to ").count(), 300);
        let iptables = iptables(&services);
        assert_eq!(iptables.matches("--to-destination").count(), 300);
        assert_eq!(iptables.matches("--probability 0.33333333333").count(), 100);
        assert_eq!(iptables.matches("COMMIT").count(), 2);
    }
}
