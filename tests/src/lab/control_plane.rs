//! etcd, the API server, controllers and scheduler on a host of their own.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::host::Host;
use super::place::node_name;
use super::wires::{self, CONTROL_PLANE_V4, CONTROL_PLANE_V6, POD_RANGES};
use super::{Place, daemon::Daemon};
use crate::kube::api::Api;
use crate::kube::binaries::SERVICE_ACCOUNT_KEY;
use crate::kube::control_plane::kubeconfig;
use crate::kube::flags::{Credential, api_server_flags, ca, etcd_flags, flags, write_credentials};
use crate::netns::Netns;

const PORT: u16 = 6443;
/// Of the second API server.
const SECOND_PORT: u16 = 6444;
/// A machine may be busy with other tests.
const READY_WITHIN: Duration = Duration::from_secs(120);
const STEP: Duration = Duration::from_secs(5);
/// Somebody who may do everything.
const ADMIN: &str = "admin";

/// Where nodes and agents reach the API server.
pub fn url() -> String {
    url_with(PORT)
}

fn url_with(port: u16) -> String {
    format!("https://{CONTROL_PLANE_V4}:{port}")
}

impl Place {
    /// A kubeconfig: `admin`'s, a node's or `kube-proxy`'s.
    pub fn kubeconfig(&self, user: &str) -> PathBuf {
        self.join("kubeconfigs").join(user)
    }
}

/// The control plane.
#[derive(Debug)]
pub struct ControlPlane {
    /// The host that it is on.
    pub host: Host,
    /// The API, as an administrator.
    pub api: Api,
    place: Place,
}

impl ControlPlane {
    /// Makes the host, on the switch.
    #[track_caller]
    pub fn make(place: &Place, switch: &Netns) -> Self {
        let host = Host::make(place, "control-plane");
        wires::connect(place, switch, &host, CONTROL_PLANE_V4, CONTROL_PLANE_V6);
        Self::get(place)
    }

    /// The one that is there.
    #[track_caller]
    pub fn get(place: &Place) -> Self {
        let host = Host::get(place, "control-plane", false);
        let text = kubeconfig(&url(), Some(&ca(&host.dir())), Some(ADMIN));
        let api = Api::new(host.netns.path(), text);
        Self { host, api, place: place.clone() }
    }

    /// Starts everything that does not run, and waits until the API server is ready.
    #[track_caller]
    pub fn start(&self) {
        let dir = self.place.make("control-plane");
        if !dir.join("tokens.csv").exists() {
            self.write_credentials(&dir);
        }
        let mut etcd = self.host.detached("etcd");
        self.host.daemon("etcd").start(etcd.args(etcd_flags(&dir.join("etcd"))));
        self.start_api_server();
        for name in ["kube-controller-manager", "kube-scheduler"] {
            let config = self.place.kubeconfig(ADMIN).display().to_string();
            let mut command = self.host.detached(name);
            command.args(flags(&[("kubeconfig", &config), ("leader-elect", "false")]));
            if name == "kube-controller-manager" {
                command.args(flags(&[
                    (
                        "service-account-private-key-file",
                        &dir.join("service-account.key").display().to_string(),
                    ),
                    // For the ConfigMap kube-root-ca.crt, without which no pod starts.
                    ("root-ca-file", &ca(&dir).display().to_string()),
                    ("use-service-account-credentials", "true"),
                    ("cluster-cidr", POD_RANGES),
                    // Nodes know the ranges of their pods themselves.
                    ("allocate-node-cidrs", "false"),
                ]));
            }
            self.host.daemon(name).start(&mut command);
        }
    }

    #[track_caller]
    fn write_credentials(&self, dir: &Path) {
        let names: Vec<_> = (0..self.place.nodes).map(node_name).collect();
        let users: Vec<_> = names.iter().map(|name| format!("system:node:{name}")).collect();
        let mut all = vec![Credential { token: ADMIN, user: ADMIN, group: "system:masters" }];
        all.push(Credential { token: "kube-proxy", user: "system:kube-proxy", group: "proxies" });
        for (name, user) in names.iter().zip(&users) {
            all.push(Credential { token: name, user, group: "system:nodes" });
        }
        let key_maker = SERVICE_ACCOUNT_KEY.find().unwrap_or_else(|error| panic!("{error:#}"));
        write_credentials(dir, &key_maker, &all);
        self.place.make("kubeconfigs");
        for Credential { token, .. } in all {
            let text = kubeconfig(&url(), Some(&ca(dir)), Some(token));
            fs::write(self.place.kubeconfig(token), text).expect("a kubeconfig");
        }
    }

    /// The API server's process.
    pub fn api_server(&self) -> Daemon {
        self.host.daemon("kube-apiserver")
    }

    /// Starts the API server if it does not run, and waits until it is ready.
    #[track_caller]
    pub fn start_api_server(&self) {
        self.start_one(&self.api_server(), &self.api, PORT, "lease");
    }

    /// Starts another API server on the same etcd, which nobody uses but who asks for it here; the
    /// first one has been started before.
    #[track_caller]
    pub fn second_api_server(&self) -> SecondApiServer {
        let text = kubeconfig(&url_with(SECOND_PORT), Some(&self.ca()), Some(ADMIN));
        let api = Api::new(self.host.netns.path(), text);
        let daemon = self.host.daemon("kube-apiserver-2");
        self.start_one(&daemon, &api, SECOND_PORT, "none");
        SecondApiServer { api, daemon }
    }

    /// `reconciler` is who writes the endpoints of the Service `kubernetes`.
    #[track_caller]
    fn start_one(&self, daemon: &Daemon, api: &Api, port: u16, reconciler: &str) {
        let dir = self.host.dir();
        let mut command = self.host.detached("kube-apiserver");
        command.args(api_server_flags(&dir, CONTROL_PLANE_V4, port));
        command.args(flags(&[
            ("authorization-mode", "Node,RBAC"),
            ("kubelet-preferred-address-types", "InternalIP"),
            ("allow-privileged", "true"),
            ("endpoint-reconciler-type", reconciler),
        ]));
        daemon.start(&mut command);
        // The key is written after the certificate, both at the first start.
        let key = ca(&dir).with_extension("key");
        let answers = |path| api.request("GET", path, None, STEP).is_ok();
        daemon.wait_ready(READY_WITHIN, || {
            key.exists() && answers("/readyz") && answers("/api/v1/namespaces/default")
        });
    }

    /// The API server's certificates.
    pub fn ca(&self) -> PathBuf {
        ca(&self.host.dir())
    }

    /// Ends the API server at once. Everything else goes on.
    pub fn kill_api_server(&self) {
        self.api_server().kill();
    }
}

/// An API server beside the first one. Ends with this handle.
#[derive(Debug)]
pub struct SecondApiServer {
    /// What it serves, as an administrator.
    pub api: Api,
    daemon: Daemon,
}

impl Drop for SecondApiServer {
    fn drop(&mut self) {
        self.daemon.kill();
    }
}
