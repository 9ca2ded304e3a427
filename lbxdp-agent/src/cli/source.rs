//! Where `run` has its Services from: a directory or a cluster.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{ArgGroup, Args};
use ipnet::IpNet;

use crate::source::kube::{self, AccessOptions, AddressOptions};
use crate::source::{GiverOptions, Options};

/// Where the last input is kept.
const DEFAULT_STATE_DIR: &str = "/var/lib/lbxdp";

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("cluster").args(["kubeconfig", "api_servers"]).multiple(true))]
pub struct SourceArgs {
    /// Directory of Service, EndpointSlice and Node manifests, and of pools of addresses, watched,
    /// instead of a cluster.
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
    #[command(flatten)]
    addresses: AddressArgs,
}

#[derive(Debug, Args)]
pub struct AddressArgs {
    /// Give addresses to Services of type LoadBalancer without spec.loadBalancerClass, too, not only
    /// to those of class lbxdp.io/lbxdp. Refused while a controller of MetalLB runs.
    #[arg(long, env = "LBXDP_ADOPT_CLASSLESS")]
    adopt_classless: bool,
    /// Read pools and advertisements in this namespace (repeatable) instead of the agent's own and
    /// metallb-system; manifests in all.
    #[arg(long, env = "LBXDP_POOL_NAMESPACES", value_name = "NAMESPACE", value_delimiter = ',')]
    pool_namespaces: Vec<String>,
}

#[derive(Debug, Args)]
pub struct StateArgs {
    /// Directory for what the API said last: for a start while it does not answer. With --manifests, for
    /// the addresses that Services were given.
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

    /// Where the agent keeps what it knows.
    pub fn state_dir(&self) -> &Path {
        &self.state.state_dir
    }

    /// The one of the two that was asked for.
    pub fn options(self, service_cidrs: &[IpNet]) -> Options {
        let Self {
            manifests,
            kubeconfig,
            servers,
            service_account,
            bulk_removal_hold,
            state,
            addresses: AddressArgs { adopt_classless, pool_namespaces },
        } = self;
        let service_cidrs = service_cidrs.to_vec();
        let state_dir = state.state_dir;
        match manifests {
            Some(dir) => Options::Manifests(
                dir,
                GiverOptions { state_dir, adopt_classless, pool_namespaces, service_cidrs },
            ),
            None => Options::Kube(kube::Options {
                access: AccessOptions {
                    kubeconfig,
                    service_account: Some(service_account),
                    servers,
                },
                state_dir,
                bulk_removal_hold: Duration::from_secs(bulk_removal_hold),
                addresses: AddressOptions { adopt_classless, pool_namespaces, service_cidrs },
            }),
        }
    }
}
