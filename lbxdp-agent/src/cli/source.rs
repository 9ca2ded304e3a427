//! Where `run` has its Services from: a directory or a cluster.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Args};

use crate::source::Options;
use crate::source::kube::{self, AccessOptions};

/// Where the last input is kept.
const DEFAULT_STATE_DIR: &str = "/var/lib/lbxdp";

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("cluster").args(["kubeconfig", "api_servers"]).multiple(true))]
pub struct SourceArgs {
    /// Directory of Service, EndpointSlice and Node manifests, watched, instead of a cluster.
    #[arg(long, env = "LBXDP_MANIFESTS", value_name = "DIR", conflicts_with = "cluster")]
    manifests: Option<PathBuf>,
    /// Watch the cluster of this file. Without it, and with --api-server, that of the pod which
    /// the agent runs in.
    #[arg(long, env = "LBXDP_KUBECONFIG", value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Address of an API server, such as https://192.0.2.1:6443 (repeatable: the next one is asked
    /// when one does not answer). Never the ClusterIP, which works only once the agent does. The
    /// certificate has to be for kubernetes.default.svc.
    #[arg(
        id = "api_servers",
        long = "api-server",
        env = "LBXDP_API_SERVERS",
        value_name = "URL",
        value_delimiter = ','
    )]
    servers: Vec<String>,
    /// Directory of the pod's token and the cluster's CA.
    #[arg(long, env = "LBXDP_SERVICE_ACCOUNT", value_name = "DIR", conflicts_with = "kubeconfig",
          default_value = kube::SERVICE_ACCOUNT_DIR)]
    service_account: PathBuf,
    /// When the API's list suddenly lacks more than half of the objects of a kind, go on serving
    /// them for this many seconds.
    #[arg(long, env = "LBXDP_BULK_REMOVAL_HOLD", value_name = "SECONDS", default_value_t = 30)]
    bulk_removal_hold: u64,
    #[command(flatten)]
    state: StateArgs,
}

#[derive(Debug, Args)]
pub struct StateArgs {
    /// Directory for what the API said last: for a start while it does not answer.
    #[arg(long, env = "LBXDP_STATE_DIR", value_name = "DIR", default_value = DEFAULT_STATE_DIR)]
    pub state_dir: PathBuf,
}

impl SourceArgs {
    /// What is missing, if nothing says where Services are. (The parser would name one flag only.)
    pub fn missing(&self) -> Option<&'static str> {
        let Self { manifests, kubeconfig, servers, .. } = self;
        let is_said = manifests.is_some() || kubeconfig.is_some() || !servers.is_empty();
        (!is_said).then_some(
            "nothing says where Services are: give --manifests DIR, --kubeconfig FILE or, in a pod, \
             --api-server URL (the address that pods are told is a ClusterIP, which nobody serves \
             before this agent does)",
        )
    }

    /// The one of the two that was asked for.
    pub fn options(self) -> Options {
        let Self { manifests, kubeconfig, servers, service_account, bulk_removal_hold, state } =
            self;
        match manifests {
            Some(dir) => Options::Manifests(dir),
            None => Options::Kube(kube::Options {
                access: AccessOptions {
                    kubeconfig,
                    service_account: Some(service_account),
                    servers,
                },
                state_dir: state.state_dir,
                bulk_removal_hold: Duration::from_secs(bulk_removal_hold),
            }),
        }
    }
}
