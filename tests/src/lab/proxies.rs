//! Who serves Services: lbxdp from its chart, or the proxy that Kubernetes comes with.

use std::fs;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Lab;
use super::control_plane::url;
use super::node::Node;
use super::wires::POD_RANGES;
use crate::chart::{CHART, Helm, NAMESPACE, feed};
use crate::cluster::{CLUSTER_IPS_V4, CLUSTER_IPS_V6};
use crate::kube::flags::flags;
use crate::process::run;
use crate::{cgroup, go};

const ROLLOUT: &str = "--timeout=180s";
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// Who serves Services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Proxy {
    /// lbxdp, as the DaemonSet that its chart makes.
    Lbxdp,
    /// kube-proxy in nftables mode, as a process of each node.
    KubeProxy,
    /// Nobody.
    None,
}

/// What the chart is told here; a test may say more.
pub fn chart_values() -> Value {
    let possible = fs::read_to_string("/sys/devices/system/cpu/possible").unwrap_or_default();
    let last = possible.trim().rsplit(['-', ',']).next().and_then(|last| last.parse::<u32>().ok());
    json!({
        "apiServers": [url()],
        "image": { "tag": env!("CARGO_PKG_VERSION"), "pullPolicy": "Never" },
        "serviceCidrs": [CLUSTER_IPS_V4, CLUSTER_IPS_V6],
        "paths": { "cgroup": cgroup::root() },
        "nodeCpus": last.map_or(64, |last| last + 1),
    })
}

impl Lab {
    /// Installs lbxdp with the chart, or makes what is installed what is said here. `values` are
    /// added to [`chart_values`]. Returns before anything runs: [`Self::wait_lbxdp`].
    #[track_caller]
    pub fn install_lbxdp(&self, values: &Value) {
        let mut all = chart_values();
        merge(&mut all, values);
        let mut helm = self.helm();
        helm.args(["upgrade", "--install", "lbxdp", CHART, "--namespace", NAMESPACE]);
        helm.args(["--values", "-"]);
        if let Err(error) = feed(&mut helm, &all) {
            panic!("{error:#}");
        }
    }

    /// Waits until every node has an agent of the newest kind that is ready; panics with the agents'
    /// own words.
    #[track_caller]
    pub fn wait_lbxdp(&self) {
        let mut rollout = self.kubectl_command();
        rollout.args(["rollout", "status", "daemonset/lbxdp", "-n", NAMESPACE, ROLLOUT]);
        if rollout.output().is_ok_and(|output| output.status.success()) {
            return;
        }
        let agents = "app.kubernetes.io/name=lbxdp";
        let pods = self.kubectl(&["get", "pods", "-n", NAMESPACE, "-l", agents, "-o", "wide"]);
        let logs = self.kubectl(&["logs", "-n", NAMESPACE, "-l", agents, "--prefix", "--tail=20"]);
        panic!("lbxdp is not ready on every node\n{pods}\n{logs}");
    }

    /// Replaces every agent, one after the other, and waits until all are ready.
    #[track_caller]
    pub fn restart_lbxdp(&self) {
        self.kubectl(&["rollout", "restart", "daemonset/lbxdp", "-n", NAMESPACE]);
        self.wait_lbxdp();
    }

    /// Removes lbxdp with the chart, and waits until no agent is left. What it told the kernels stays.
    #[track_caller]
    pub fn uninstall_lbxdp(&self) {
        let mut helm = self.helm();
        helm.args(["uninstall", "lbxdp", "--namespace", NAMESPACE]);
        run(helm.args(["--wait", "--cascade", "foreground"]));
    }

    #[track_caller]
    fn helm(&self) -> std::process::Command {
        let helm = Helm::get().unwrap_or_else(|error| panic!("{error:#}"));
        let mut command = self.control_plane.host.command(helm.program());
        command.current_dir(go::workspace()).stdin(std::process::Stdio::null());
        for name in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
            command.env(name, self.place.join("helm"));
        }
        command
    }

    /// Starts kube-proxy on every node where it does not run.
    #[track_caller]
    pub fn start_kube_proxy(&self) {
        self.nodes.iter().for_each(Node::start_kube_proxy);
    }
}

impl Node {
    /// Starts kube-proxy, if it does not run.
    #[track_caller]
    pub fn start_kube_proxy(&self) {
        let config = self.host.dir().join("kube-proxy.json");
        fs::write(&config, self.kube_proxy_config()).expect("kube-proxy's configuration");
        let config = config.display().to_string();
        let mut command = self.host.detached("kube-proxy");
        self.kube_proxy().start(command.args(flags(&[("config", &config)])));
    }

    /// kube-proxy's process.
    pub fn kube_proxy(&self) -> super::Daemon {
        self.host.daemon("kube-proxy")
    }

    /// Ends kube-proxy. What it told the kernel stays.
    pub fn stop_kube_proxy(&self) {
        self.kube_proxy().stop(STOP_WITHIN);
    }

    /// Removes what kube-proxy told the kernel.
    #[track_caller]
    pub fn clean_up_kube_proxy(&self) {
        let config = self.host.dir().join("kube-proxy.json").display().to_string();
        run(self.host.command("kube-proxy").args(["--cleanup", "--config", &config]));
    }

    fn kube_proxy_config(&self) -> String {
        json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "nftables",
            "clientConnection": { "kubeconfig": self.place().kubeconfig("kube-proxy") },
            "clusterCIDR": POD_RANGES,
            "hostnameOverride": self.name(),
            // The machine's table of connections stays as it is.
            "conntrack": { "maxPerCore": 0, "min": 0 },
        })
        .to_string()
    }
}

/// Puts the fields of `more` into `values`.
fn merge(values: &mut Value, more: &Value) {
    match (values, more) {
        (Value::Object(values), Value::Object(more)) => {
            for (key, value) in more {
                merge(values.entry(key).or_insert(Value::Null), value);
            }
        }
        (value, more) => *value = more.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_of_a_test_goes_before_the_labs() {
        let mut values = json!({ "a": { "b": 1, "c": 2 } });
        merge(&mut values, &json!({ "a": { "b": 3 }, "d": [] }));
        assert_eq!(values, json!({ "a": { "b": 3, "c": 2 }, "d": [] }));
    }
}
