//! Another translator that uses the stack: nftables rules of kube-proxy's shape, in a node.

use std::fmt::Write as _;
use std::net::SocketAddr;

use lbxdp_tests::Netns;

/// Names of the tables: one for each family, as kube-proxy has them.
const TABLES: [&str; 2] = ["ip kube-proxy", "ip6 kube-proxy"];

/// What is translated.
pub struct Rule {
    /// Protocol, as nftables writes it.
    pub protocol: &'static str,
    /// To what clients send.
    pub frontend: SocketAddr,
    /// Where it goes.
    pub backends: Vec<SocketAddr>,
    /// Whether clients from outside get an address of the node.
    pub masquerades: bool,
}

/// A table of rules for new connections.
pub struct Rules<'a> {
    node: &'a Netns,
    rules: Vec<Rule>,
    /// What `masquerade` is told besides.
    masquerade: &'static str,
}

impl<'a> Rules<'a> {
    /// Not there yet. Source ports are chosen by chance, as kube-proxy has it.
    pub fn new(node: &'a Netns, rules: Vec<Rule>) -> Self {
        Self { node, rules, masquerade: "fully-random" }
    }

    /// With these source ports instead.
    pub fn with_ports(mut self, ports: &'static str) -> Self {
        self.masquerade = ports;
        self
    }

    /// Puts the rules there.
    #[track_caller]
    pub fn load(&self) {
        for (table, v6) in TABLES.into_iter().zip([false, true]) {
            let family = if v6 { "ip6" } else { "ip" };
            let pods = if v6 { "fd00:10:244::/48" } else { "10.244.0.0/16" };
            let (mut services, mut selves) = (String::new(), String::new());
            for rule in self.rules.iter().filter(|rule| rule.frontend.is_ipv6() == v6) {
                let Rule { protocol, frontend, backends, masquerades } = rule;
                for backend in backends.iter().map(SocketAddr::ip) {
                    // A pod that calls itself.
                    let is_itself = format!("{family} saddr {backend} {family} daddr {backend}");
                    let _ = writeln!(selves, "{is_itself} masquerade");
                }
                let choices: Vec<_> = backends
                    .iter()
                    .enumerate()
                    .map(|(n, backend)| format!("{n} : {} . {}", backend.ip(), backend.port()))
                    .collect();
                let mark = if *masquerades {
                    format!("{family} saddr != {pods} meta mark set mark or 0x4000 ")
                } else {
                    String::new()
                };
                let to = format!(
                    "{family} daddr {} {protocol} dport {}",
                    frontend.ip(),
                    frontend.port()
                );
                if !mark.is_empty() {
                    let _ = writeln!(services, "{to} {mark}");
                }
                let _ = writeln!(
                    services,
                    "{to} counter name new dnat {family} to numgen random mod {} map {{ {} }}",
                    backends.len(),
                    choices.join(", "),
                );
            }
            let masquerade = self.masquerade;
            self.node.nft(&format!(
                "table {table} {{
                    counter new {{ }}
                    chain services {{ {services} }}
                    chain prerouting {{
                        type nat hook prerouting priority dstnat; jump services
                    }}
                    chain output {{ type nat hook output priority -100; jump services; }}
                    chain postrouting {{
                        type nat hook postrouting priority srcnat
                        {selves}
                        meta l4proto {{ tcp, udp }} meta mark & 0x4000 != 0 masquerade {masquerade}
                    }}
                    chain forward {{
                        type filter hook forward priority filter; ct state invalid counter drop
                    }}
                }}"
            ));
        }
    }

    /// Keeps the kernel translating what is established without these rules: it takes a chain of NAT
    /// and a rule that has to do with conntrack.
    #[track_caller]
    pub fn keep_translating(&self) {
        self.node.nft(
            "table inet keep-nat { chain none { type nat hook input priority 100; ct state invalid; }; }",
        );
    }

    /// Takes them away. Nothing else in the node has to do with conntrack.
    #[track_caller]
    pub fn remove(&self) {
        for table in TABLES {
            self.node.nft(&format!("delete table {table}"));
        }
    }

    /// Connections that the rules have seen begin.
    #[track_caller]
    pub fn begun(&self) -> u64 {
        let packets = TABLES.iter().map(|table| {
            let text = self.node.exec(&format!("nft list counter {table} new"));
            let mut words = text.split_whitespace().skip_while(|word| *word != "packets").skip(1);
            words.next().and_then(|word| word.parse::<u64>().ok()).expect("a number of packets")
        });
        packets.sum()
    }
}
