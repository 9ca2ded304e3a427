//! A node: containerd, a kubelet, and what pods are connected by.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;

use super::host::Host;
use super::images;
use super::place::node_name;
use super::wires::{self, node_addresses, pod_ranges};
use super::{Place, cgroups};
use crate::kube::flags::flags;
use crate::netns::Netns;
use crate::process::run;

/// Where Debian has the CNI plugins.
const CNI_PLUGINS: &str = "/usr/lib/cni";
/// A node's own, like everything in /var/lib.
const CNI_CONFIG: &str = "/var/lib/cni/net.d";
const CONTAINERD: &str = "/run/containerd/containerd.sock";
const KUBELET_DIR: &str = "/var/lib/kubelet";
const READY_WITHIN: Duration = Duration::from_secs(60);
/// Addresses of the name servers.
pub const DNS_V4: &str = "10.96.0.10";
/// The same for IPv6.
pub const DNS_V6: &str = "fd00:10:96::a";

/// A node.
#[derive(Debug)]
pub struct Node {
    /// Its namespaces and cgroup.
    pub host: Host,
    /// Its number, from 0.
    pub index: usize,
    place: Place,
}

impl Node {
    /// Makes the host, on the switch.
    #[track_caller]
    pub fn make(place: &Place, switch: &Netns, index: usize) -> Self {
        let host = Host::make_node(place, &node_name(index));
        wires::connect_node(place, switch, &host, index);
        Self { host, index, place: place.clone() }
    }

    /// The one that is there.
    #[track_caller]
    pub fn get(place: &Place, index: usize) -> Self {
        let host = Host::get(place, &node_name(index), true);
        Self { host, index, place: place.clone() }
    }

    /// The lab that it is part of.
    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    /// Its name in the cluster.
    pub fn name(&self) -> &str {
        &self.host.name
    }

    /// Its address of a family.
    pub fn ip(&self, v6: bool) -> std::net::IpAddr {
        let (v4, six) = node_addresses(self.index);
        if v6 { six.into() } else { v4.into() }
    }

    /// A file in the node's /var/lib, seen from outside.
    fn file(&self, name: &str) -> PathBuf {
        let path = self.host.dir().join("lib").join(name);
        fs::create_dir_all(path.parent().expect("in a directory")).expect("a directory");
        path
    }

    /// Starts containerd if it does not run, and waits until it answers.
    #[track_caller]
    pub fn start_containerd(&self) {
        let config = self.file("containerd/config.toml");
        fs::write(&config, containerd_config(&self.place)).expect("containerd's configuration");
        fs::write(self.file("cni/net.d/10-lab.conflist"), cni_config(self.index)).expect("CNI");
        let daemon = self.host.daemon("containerd");
        daemon.start(
            self.host.detached("containerd").args(["--config", "/var/lib/containerd/config.toml"]),
        );
        daemon.wait_ready(READY_WITHIN, || {
            let version = self.host.command("ctr").arg("version").output();
            version.is_ok_and(|output| output.status.success())
        });
    }

    /// Imports an image.
    #[track_caller]
    pub fn import(&self, archive: &Path) {
        let mut ctr = self.host.command("ctr");
        ctr.args(["--namespace", "k8s.io", "images", "import"]).arg(archive);
        run(&mut ctr);
    }

    /// Starts the kubelet, if it does not run.
    #[track_caller]
    pub fn start_kubelet(&self) {
        fs::write(self.file("kubelet/config.json"), self.kubelet_config()).expect("kubelet");
        // No name server: names of the world outside are no part of the lab.
        fs::write(self.file("kubelet/resolv.conf"), "").expect("resolv.conf");
        let (v4, v6) = node_addresses(self.index);
        let kubeconfig = self.place.kubeconfig(self.name()).display().to_string();
        let mut kubelet = self.host.detached("kubelet");
        kubelet.args(flags(&[
            ("config", &format!("{KUBELET_DIR}/config.json")),
            ("kubeconfig", &kubeconfig),
            ("hostname-override", self.name()),
            ("node-ip", &format!("{v4},{v6}")),
            ("root-dir", KUBELET_DIR),
            ("cert-dir", &format!("{KUBELET_DIR}/pki")),
        ]));
        self.kubelet().start(&mut kubelet);
    }

    /// The kubelet's process.
    pub fn kubelet(&self) -> super::Daemon {
        self.host.daemon("kubelet")
    }

    /// Ends everything on the node at once, as a failure of its power does: pods, kubelet, runtime.
    /// Its network goes on: what the kernel was told stays.
    pub fn kill(&self) {
        cgroups::kill(self.host.cgroup());
    }

    /// Takes it from the network, or puts it back.
    #[track_caller]
    pub fn set_link(&self, is_up: bool) {
        let state = if is_up { "up" } else { "down" };
        Netns::kept(&self.place.netns("switch")).ip(&format!("link set {} {state}", self.name()));
    }

    /// Freezes the kubelet, or has it go on.
    pub fn freeze_kubelet(&self, is_frozen: bool) {
        self.kubelet().signal(if is_frozen { Signal::SIGSTOP } else { Signal::SIGCONT });
    }

    fn kubelet_config(&self) -> String {
        json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            // `kubectl exec` and `logs`: whoever reaches the node may.
            "authentication": { "anonymous": { "enabled": true }, "webhook": { "enabled": false } },
            "authorization": { "mode": "AlwaysAllow" },
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": format!("/{}/{}", self.place.name, self.name()),
            "clusterDNS": [DNS_V4, DNS_V6],
            "clusterDomain": "cluster.local",
            "containerRuntimeEndpoint": format!("unix://{CONTAINERD}"),
            "enforceNodeAllocatable": [],
            // The lab's disk is that of the machine.
            "evictionHard": {
                "memory.available": "0%", "nodefs.available": "0%", "nodefs.inodesFree": "0%",
                "imagefs.available": "0%", "imagefs.inodesFree": "0%", "pid.available": "0%",
            },
            "failCgroupV1": false,
            "failSwapOn": false,
            // Imported once, and nowhere to be had again.
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
            "localStorageCapacityIsolation": false,
            "nodeStatusUpdateFrequency": "2s",
            "oomScoreAdj": 0,
            "resolvConf": format!("{KUBELET_DIR}/resolv.conf"),
            "volumePluginDir": format!("{KUBELET_DIR}/plugins"),
        })
        .to_string()
    }
}

fn containerd_config(place: &Place) -> String {
    let runc = place.bin().join("runc");
    format!(
        r#"version = 3
[grpc]
  address = "{CONTAINERD}"
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "{sandbox}"
[plugins."io.containerd.cri.v1.runtime"]
  # A pod with a lower score than ours needs CAP_SYS_RESOURCE, which containers have not.
  restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".cni]
  bin_dirs = ["{CNI_PLUGINS}"]
  conf_dir = "{CNI_CONFIG}"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
  BinaryName = "{runc}"
  SystemdCgroup = false
"#,
        sandbox = images::PAUSE,
        runc = runc.display(),
    )
}

/// A veth pair for each pod, routed without a bridge.
fn cni_config(index: usize) -> String {
    let ranges = pod_ranges(index).map(|subnet| json!([{ "subnet": subnet }]));
    json!({
        "cniVersion": "1.0.0",
        "name": "lab",
        "plugins": [{
            "type": "ptp",
            "mtu": 1500,
            "ipam": {
                "type": "host-local",
                "ranges": ranges,
                "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
            },
        }],
    })
    .to_string()
}
