//! etcd and API servers in a namespace.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::json;

use super::api::Api;
use super::binaries::{API_SERVER, ETCD, SERVICE_ACCOUNT_KEY};
use super::flags::{Credential, api_server_flags, ca, etcd_flags, flags, write_credentials};
use crate::chart::NAMESPACE;
use crate::go::Program;
use crate::netns::Netns;
use crate::process::Process;
use crate::scratch::Scratch;

/// Token of somebody who may do everything.
const ADMIN_TOKEN: &str = "admin";
/// Of the first API server; the next one has the next one.
const FIRST_PORT: u16 = 6443;
/// A machine may be busy with other tests.
const READY_WITHIN: Duration = Duration::from_secs(120);
const STEP: Duration = Duration::from_secs(5);

/// etcd and one or more API servers. Dropping it ends them.
#[derive(Debug)]
pub struct ControlPlane {
    /// The API servers.
    pub servers: Vec<ApiServer>,
    _etcd: Process,
    netns: PathBuf,
    address: Ipv4Addr,
    scratch: Scratch,
}

/// An API server.
#[derive(Debug)]
pub struct ApiServer {
    process: Option<Process>,
    words: Vec<String>,
    netns: PathBuf,
    log: PathBuf,
    pub(super) ca: PathBuf,
    api: Api,
    /// `https://` and its address.
    pub url: String,
    /// Where it listens.
    pub port: u16,
}

impl ControlPlane {
    /// Starts etcd and so many API servers in a namespace that has this address, and waits until
    /// they are ready.
    #[track_caller]
    pub fn start(netns: &Netns, address: Ipv4Addr, servers: u16) -> Self {
        let scratch = Scratch::new("control-plane");
        let path = |program: &Program| match program.find() {
            Ok(path) => path,
            Err(error) => panic!("{error:#}"),
        };
        let mut etcd = netns.command(path(&ETCD));
        etcd.args(etcd_flags(&scratch.join("etcd")));
        let etcd = Process::spawn(&mut etcd, &scratch.join("etcd.log"));

        let users = [Credential { token: ADMIN_TOKEN, user: "admin", group: "system:masters" }];
        write_credentials(scratch.path(), &path(&SERVICE_ACCOUNT_KEY), &users);
        let policy = json!({
            "apiVersion": "audit.k8s.io/v1", "kind": "Policy",
            "rules": [
                { "level": "Metadata", "userGroups": ["system:serviceaccounts"] },
                { "level": "None" },
            ],
        });
        fs::write(scratch.join("audit-policy.yaml"), policy.to_string()).expect("audit policy");
        // Dropping what was started ends it, should one of the next steps fail.
        let mut plane = Self {
            servers: Vec::new(),
            _etcd: etcd,
            netns: netns.path().to_owned(),
            address,
            scratch,
        };
        for n in 0..servers {
            let server = plane.server(&path(&API_SERVER), FIRST_PORT + n);
            plane.servers.push(server);
            // One after the other: the first makes the certificate that all use.
            plane.servers[usize::from(n)].start();
            plane.servers[usize::from(n)].wait_ready();
        }
        plane
    }

    fn server(&self, binary: &Path, port: u16) -> ApiServer {
        let file = |name: &str| self.scratch.join(name).display().to_string();
        let mut words = vec![binary.display().to_string()];
        words.extend(api_server_flags(self.scratch.path(), self.address, port));
        words.extend(flags(&[
            ("authorization-mode", "RBAC"),
            // There is nobody at whom it could point.
            ("endpoint-reconciler-type", "none"),
            ("audit-policy-file", &file("audit-policy.yaml")),
            ("audit-log-path", &file(&format!("audit-{port}.log"))),
            ("audit-log-mode", "blocking"),
        ]));
        let url = format!("https://{}:{port}", self.address);
        let ca = self.ca();
        let api = Api::new(&self.netns, kubeconfig(&url, Some(&ca), Some(ADMIN_TOKEN)));
        let log = self.scratch.join(&format!("kube-apiserver-{port}.log"));
        ApiServer { process: None, words, netns: self.netns.clone(), log, ca, api, url, port }
    }

    /// The certificates that a client has to trust.
    pub fn ca(&self) -> PathBuf {
        ca(self.scratch.path())
    }

    /// The API at the first server, as an administrator.
    pub fn api(&self) -> &Api {
        &self.servers[0].api
    }

    /// A kubeconfig with everything for this token.
    #[track_caller]
    pub fn kubeconfig(&self, url: &str, token: &str) -> PathBuf {
        let path = self.scratch.join(&format!("kubeconfig-{}", url.replace(['/', ':'], "-")));
        fs::write(&path, kubeconfig(url, Some(&self.ca()), Some(token))).expect("a kubeconfig");
        path
    }

    /// A kubeconfig of an administrator for the first server.
    #[track_caller]
    pub fn admin_kubeconfig(&self) -> PathBuf {
        self.kubeconfig(&self.servers[0].url, ADMIN_TOKEN)
    }

    /// A service account's directory as the kubelet would make it, with this token.
    #[track_caller]
    pub fn service_account(&self, token: &str) -> PathBuf {
        let dir = self.scratch.join("service-account");
        fs::create_dir_all(&dir).expect("a directory");
        fs::copy(self.ca(), dir.join("ca.crt")).expect("copy the certificates");
        fs::write(dir.join("namespace"), NAMESPACE).expect("write the namespace");
        // As the kubelet does it: nobody ever reads half a token.
        fs::write(dir.join("token.new"), token).expect("write a token");
        fs::rename(dir.join("token.new"), dir.join("token")).expect("replace the token");
        dir
    }

    /// What service accounts asked for, over all servers: verb and resource, `watch services`.
    pub fn audited(&self) -> std::collections::BTreeSet<String> {
        let mut asked = std::collections::BTreeSet::new();
        for ApiServer { port, .. } in &self.servers {
            let path = self.scratch.join(&format!("audit-{port}.log"));
            for line in fs::read_to_string(path).unwrap_or_default().lines() {
                let Ok(event) = serde_json::from_str::<serde_json::Value>(line) else { continue };
                let text = |pointer| event.pointer(pointer).and_then(serde_json::Value::as_str);
                let what = text("/objectRef/resource").or_else(|| text("/requestURI"));
                let verb = text("/verb").unwrap_or_default();
                asked.insert(format!("{verb} {}", what.unwrap_or_default()));
            }
        }
        asked
    }
}

impl ApiServer {
    /// Starts it. [`Self::wait_ready`] waits for it.
    #[track_caller]
    pub fn start(&mut self) {
        let mut command = crate::process::command("nsenter");
        command.arg(format!("--net={}", self.netns.display())).args(&self.words);
        self.process = Some(Process::spawn(&mut command, &self.log));
    }

    /// Waits until it says so itself.
    #[track_caller]
    pub fn wait_ready(&mut self) {
        let Self { process, api, ca, .. } = self;
        let process = process.as_mut().expect("the API server is running");
        process.wait_ready(READY_WITHIN, |_| {
            // Made at the first start. The key is written after the certificate.
            ca.with_extension("key").exists()
                && api.request("GET", "/readyz", None, STEP).is_ok()
                // Ready, but the namespace of most objects is made a moment later.
                && api.request("GET", "/api/v1/namespaces/default", None, STEP).is_ok()
        });
    }

    /// SIGKILL.
    #[track_caller]
    pub fn kill(&mut self) {
        self.process.take().expect("the API server is running").kill9();
    }

    /// SIGSTOP or SIGCONT, for instance.
    #[track_caller]
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        self.process.as_ref().expect("the API server is running").signal(signal);
    }

    /// This server's API, as an administrator.
    pub fn api(&self) -> &Api {
        &self.api
    }
}

/// How long something took.
pub fn timed<T>(what: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    let value = what();
    (value, start.elapsed())
}

/// The text of a kubeconfig.
pub fn kubeconfig(url: &str, ca: Option<&Path>, token: Option<&str>) -> String {
    let mut cluster = json!({ "server": url });
    if let Some(ca) = ca {
        cluster["certificate-authority"] = json!(ca);
    }
    let user = token.map_or(json!({}), |token| json!({ "token": token }));
    // JSON is YAML.
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "tests",
        "contexts": [{ "name": "tests", "context": { "cluster": "tests", "user": "tests" } }],
        "clusters": [{ "name": "tests", "cluster": cluster }],
        "users": [{ "name": "tests", "user": user }],
    })
    .to_string()
}
