//! Where the kernel itself lost packets: what a test says when a datagram got no answer.

use serde_json::Value;

use crate::cluster::Cluster;
use crate::netns::Netns;

impl Cluster {
    /// Every counter of lost packets that is not zero, by namespace: of devices, of sockets that
    /// were not there, of the processors' queues.
    pub fn losses(&self) -> Vec<String> {
        let nodes = self.nodes.iter().map(|node| &node.netns);
        let pods = self.pods().map(|(_, pod)| &pod.netns);
        let all = [&self.client, &self.switch].into_iter().chain(nodes).chain(pods);
        let mut losses: Vec<_> = all.flat_map(of_namespace).collect();
        losses.extend(of_processors());
        losses
    }
}

fn of_namespace(netns: &Netns) -> Vec<String> {
    let name = netns.name();
    let links: Vec<Value> = serde_json::from_str(&netns.ip("-s -s -j link")).expect("JSON");
    let mut losses = Vec::new();
    for link in links {
        let device = link["ifname"].as_str().unwrap_or_default();
        for way in ["rx", "tx"] {
            for (counter, value) in link["stats64"][way].as_object().into_iter().flatten() {
                let is_loss = !["bytes", "packets", "multicast"].contains(&counter.as_str());
                if is_loss && value.as_u64() > Some(0) {
                    losses.push(format!("{name} {device} {way} {counter}={value}"));
                }
            }
        }
    }
    let counters: Value =
        serde_json::from_str(&netns.exec("nstat --json --zeros --ignore --noupdate"))
            .expect("JSON");
    for (counter, value) in counters["kernel"].as_object().into_iter().flatten() {
        let is_loss = ["Errors", "NoPorts", "Discards", "NoRoutes", "Drop", "OutRsts"]
            .iter()
            .any(|word| counter.contains(word));
        if is_loss && value.as_u64() > Some(0) {
            losses.push(format!("{name} {counter}={value}"));
        }
    }
    losses
}

/// Packets that no processor's queue had room for, on the whole machine since it started.
fn of_processors() -> Vec<String> {
    let table = std::fs::read_to_string("/proc/net/softnet_stat").unwrap_or_default();
    let dropped = table.lines().enumerate().filter_map(|(cpu, line)| {
        let dropped = u64::from_str_radix(line.split_whitespace().nth(1)?, 16).ok()?;
        (dropped > 0).then(|| format!("processor {cpu} dropped={dropped}"))
    });
    dropped.collect()
}
