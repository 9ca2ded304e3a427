//! What etcd and API servers are told, and the files that they read.

use std::fmt::Write as _;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use crate::cluster::{CLUSTER_IPS_V4, CLUSTER_IPS_V6};
use crate::process::{command, run};

const ETCD_CLIENTS: &str = "http://127.0.0.1:2379";
const ETCD_PEERS: &str = "http://127.0.0.1:2380";

/// Somebody whom the API server knows by a token.
#[derive(Clone, Copy, Debug)]
pub struct Credential<'a> {
    /// What they show.
    pub token: &'a str,
    /// Their name.
    pub user: &'a str,
    /// Their group.
    pub group: &'a str,
}

/// `--name=value` of each.
pub fn flags(flags: &[(&str, &str)]) -> Vec<String> {
    flags.iter().map(|(name, value)| format!("--{name}={value}")).collect()
}

/// For an etcd of its own, on the loopback address.
pub fn etcd_flags(data: &Path) -> Vec<String> {
    flags(&[
        // Nothing outlives the machine.
        ("unsafe-no-fsync", "true"),
        ("log-level", "warn"),
        ("data-dir", &data.display().to_string()),
        ("listen-client-urls", ETCD_CLIENTS),
        ("advertise-client-urls", ETCD_CLIENTS),
        ("listen-peer-urls", ETCD_PEERS),
    ])
}

/// Makes the key of service accounts' tokens and the list of credentials in the directory of API
/// servers.
#[track_caller]
pub fn write_credentials(dir: &Path, key_maker: &Path, credentials: &[Credential<'_>]) {
    let pem = run(&mut command(key_maker));
    fs::write(dir.join("service-account.key"), pem).expect("write a key");
    let mut lines = String::new();
    for (id, Credential { token, user, group }) in credentials.iter().enumerate() {
        let _ = writeln!(lines, "{token},{user},{id},{group}");
    }
    fs::write(dir.join("tokens.csv"), lines).expect("write tokens");
}

/// For an API server with this directory, after [`write_credentials`].
pub fn api_server_flags(dir: &Path, address: Ipv4Addr, port: u16) -> Vec<String> {
    let file = |name: &str| dir.join(name).display().to_string();
    flags(&[
        ("etcd-servers", ETCD_CLIENTS),
        ("bind-address", "0.0.0.0"),
        ("advertise-address", &address.to_string()),
        ("secure-port", &port.to_string()),
        ("cert-dir", &file("certificates")),
        ("service-account-issuer", "https://kubernetes.default.svc"),
        ("service-account-key-file", &file("service-account.key")),
        ("service-account-signing-key-file", &file("service-account.key")),
        ("token-auth-file", &file("tokens.csv")),
        ("service-cluster-ip-range", &format!("{CLUSTER_IPS_V4},{CLUSTER_IPS_V6}")),
    ])
}

/// The certificates that a client of API servers with this directory has to trust: made by the
/// first of them when it starts.
pub fn ca(dir: &Path) -> PathBuf {
    dir.join("certificates").join("apiserver.crt")
}
