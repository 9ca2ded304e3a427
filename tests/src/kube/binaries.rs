//! The programs of a cluster, built from the Go modules under `tests/kube`.

use anyhow::Result;

use crate::chart::HELM;
use crate::go::Program;

/// What Kubernetes' programs call themselves; the module's version.
const VERSION: &str = "-X k8s.io/component-base/version.gitVersion=v1.36.3";
const KUBERNETES: &str = "tests/kube/kubernetes";
const CONTAINERD: &str = "tests/kube/containerd";

const fn kubernetes(name: &'static str, package: &'static str) -> Program {
    Program { variables: VERSION, ..Program::new(name, KUBERNETES, package) }
}

/// etcd.
pub const ETCD: Program = Program::new("etcd", "tests/kube/etcd", "go.etcd.io/etcd/server/v3");
/// Makes the key that signs service accounts' tokens.
pub const SERVICE_ACCOUNT_KEY: Program =
    Program::new("service-account-key", KUBERNETES, "./service-account-key");
/// The API server.
pub const API_SERVER: Program =
    kubernetes("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver");
/// The controllers: EndpointSlices, Deployments, DaemonSets, nodes' health.
pub const CONTROLLER_MANAGER: Program =
    kubernetes("kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager");
/// The scheduler.
pub const SCHEDULER: Program = kubernetes("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler");
/// A node's agent.
pub const KUBELET: Program = kubernetes("kubelet", "k8s.io/kubernetes/cmd/kubelet");
/// The service proxy that Kubernetes comes with.
pub const KUBE_PROXY: Program = kubernetes("kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy");
/// The command line client.
pub const KUBECTL: Program = kubernetes("kubectl", "k8s.io/kubernetes/cmd/kubectl");
/// The container runtime.
pub const CONTAINERD_DAEMON: Program =
    Program::new("containerd", CONTAINERD, "github.com/containerd/containerd/v2/cmd/containerd");
/// Its process beside each pod.
pub const CONTAINERD_SHIM: Program = Program::new(
    "containerd-shim-runc-v2",
    CONTAINERD,
    "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
);
/// Its command line client.
pub const CTR: Program =
    Program::new("ctr", CONTAINERD, "github.com/containerd/containerd/v2/cmd/ctr");
/// What starts containers. Enters namespaces in C, and filters system calls with libseccomp.
pub const RUNC: Program = Program {
    tags: "seccomp",
    cgo: true,
    ..Program::new("runc", "tests/kube/runc", "github.com/opencontainers/runc")
};
/// The cluster's name server.
pub const COREDNS: Program =
    Program::new("coredns", "tests/kube/coredns", "github.com/coredns/coredns");

/// What an API needs.
pub const CONTROL_PLANE: [Program; 3] = [ETCD, SERVICE_ACCOUNT_KEY, API_SERVER];
/// What a cluster with nodes needs beside it.
pub const LAB: [Program; 10] = [
    CONTROLLER_MANAGER,
    SCHEDULER,
    KUBELET,
    KUBE_PROXY,
    KUBECTL,
    CONTAINERD_DAEMON,
    CONTAINERD_SHIM,
    CTR,
    RUNC,
    COREDNS,
];

/// Builds what is missing and says how far it is: the first time takes minutes.
pub fn build_all() -> Result<()> {
    let all = CONTROL_PLANE.iter().chain(&LAB).chain([&HELM]);
    all.map(Program::find).try_for_each(|found| found.map(drop))
}
