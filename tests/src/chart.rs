//! The Helm chart, rendered by the Helm that `deploy/tools/helm` pins.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::go::{Program, workspace};
use crate::process::{command, words};

/// Directory of the chart in the workspace.
pub const CHART: &str = "deploy/helm/lbxdp";
/// The manifest for those who do not use Helm, in the workspace.
pub const FLAT: &str = "deploy/manifests/lbxdp.yaml";
/// The same of the definitions, which a cluster may have already.
pub const FLAT_DEFINITIONS: &str = "deploy/manifests/crds.yaml";
/// Where the chart is rendered to, and the flat manifest belongs.
pub const NAMESPACE: &str = "kube-system";

/// Helm, as a program.
pub const HELM: Program = Program::new("helm", "deploy/tools/helm", "helm.sh/helm/v4/cmd/helm");

/// Helm.
#[derive(Clone, Debug)]
pub struct Helm {
    program: PathBuf,
}

impl Helm {
    /// Builds it, unless that was done before.
    pub fn get() -> Result<Self> {
        Ok(Self { program: HELM.find()? })
    }

    /// Its path.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Every object of the chart with `values`, as text.
    pub fn template(&self, values: &Value) -> Result<String> {
        let mut template = command(&self.program);
        template.args(["template", "lbxdp", CHART, "--namespace", NAMESPACE, "--values", "-"]);
        feed(&mut template, values)
    }

    /// Every object of the chart with `values`.
    pub fn objects(&self, values: &Value) -> Result<Vec<Value>> {
        objects(&self.template(values)?)
    }

    /// What `helm lint` has to say with `values`; anything worse than advice is an error.
    pub fn lint(&self, values: &Value) -> Result<String> {
        let mut lint = command(&self.program);
        lint.args(["lint", "--strict", CHART, "--namespace", NAMESPACE, "--values", "-"]);
        feed(&mut lint, values)
    }
}

/// Runs `helm` with `values` as its standard input; what it prints, or why it refuses.
pub(crate) fn feed(helm: &mut Command, values: &Value) -> Result<String> {
    helm.current_dir(workspace());
    helm.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = helm.spawn().with_context(|| words(helm))?;
    let mut stdin = child.stdin.take().context("helm's input")?;
    stdin.write_all(values.to_string().as_bytes()).context("helm's input")?;
    drop(stdin);
    let output = child.wait_with_output().with_context(|| words(helm))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("{}: {}\n{stdout}", words(helm), String::from_utf8_lossy(&output.stderr));
    }
    Ok(stdout)
}

/// The documents of a YAML text that say something.
pub fn objects(yaml: &str) -> Result<Vec<Value>> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(yaml).context("YAML")?;
    Ok(documents.into_iter().filter(|document| !document.is_null()).collect())
}

/// The definitions of resources that the chart brings, in one text. Helm installs them where there are
/// none, and leaves alone what is there.
pub fn flat_definitions() -> Result<String> {
    const HEAD: &str = "\
# MetalLB's resources that lbxdp reads and writes, for clusters that have no MetalLB. With `kubectl create`, which
# leaves alone what is there. Put together from deploy/helm/lbxdp/crds by `cargo xtask chart`.
";
    let dir = workspace().join(CHART).join("crds");
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(&dir).with_context(|| dir.display().to_string())? {
        paths.push(entry?.path());
    }
    paths.sort();
    let mut all = HEAD.to_owned();
    for path in paths {
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        all = format!("{all}---\n{text}");
    }
    Ok(all)
}

/// The same as objects.
pub fn definitions() -> Result<Vec<Value>> {
    objects(&flat_definitions()?)
}

/// The least that must be said.
pub fn least_values() -> Value {
    json!({ "apiServers": ["https://192.0.2.10:6443"] })
}

/// Values that make the chart render everything it can.
pub fn all_values() -> Value {
    let mut values = json!({
        "apiServers": ["https://192.0.2.10:6443", "https://[2001:db8::10]:6443"],
        "image": {
            "repository": "registry.example/lbxdp",
            "tag": "1.2.3",
            "digest": format!("sha256:{}", "0123456789abcdef".repeat(4)),
            "pullPolicy": "Always",
        },
        "imagePullSecrets": [{ "name": "registry" }],
        "devices": ["eth0", "eth1.100"],
        "podDevices": ["cali*"],
        "serviceCidrs": ["10.96.0.0/12", "fd00:96::/112"],
        "adoptClassless": true,
        "poolNamespaces": ["lb"],
        "layer2": { "enabled": false },
        "nodePortAddresses": ["primary", "192.0.2.0/24", "2001:db8::/64"],
        "allowExternalIPs": ["198.51.100.0/24"],
        "sourceRangesAllFrontends": true,
        "handOver": true,
        "snatPorts": "61000-62000",
        "xdpMode": "off",
        "tcMode": "clsact",
        "bulkRemovalHoldSeconds": 60,
        "log": "debug",
        "listen": { "address": "::", "port": 10471 },
        "members": { "port": 10472, "existingSecret": "members", "keepDeadNodes": true },
        "paths": { "bpffs": "/sys/fs/bpf", "cgroup": "/sys/fs/cgroup/unified", "state": "/srv/lbxdp" },
        "nodeCpus": 8,
        "resources": { "requests": { "cpu": "1" }, "limits": { "memory": "2Gi" } },
        "priorityClassName": "system-cluster-critical",
        "tolerations": [{ "key": "node", "operator": "Exists", "effect": "NoSchedule" }],
        "nodeSelector": { "lbxdp": "yes" },
        "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{ "matchExpressions": [
                { "key": "kubernetes.io/arch", "operator": "In", "values": ["amd64", "arm64"] }
            ] }]
        } } },
        "updateStrategy": { "type": "RollingUpdate", "rollingUpdate": { "maxUnavailable": "10%" } },
        "terminationGracePeriodSeconds": 3,
        "podAnnotations": { "example.com/a": "b" },
        "podLabels": { "example.com/c": "d" },
        "restartOnConfigChange": false,
        "metrics": {
            "podMonitor": { "enabled": true, "interval": "15s", "labels": { "release": "mon" } },
            "rules": { "enabled": true, "labels": { "release": "mon" } },
            "dashboard": {
                "enabled": true,
                "labels": { "grafana_dashboard": "1" },
                "annotations": { "grafana_folder": "Network" },
            },
        },
    });
    // The macro takes only so many at once.
    values["flows"] = json!(1_048_576);
    values["frontends"] = json!(131_072);
    values
}

/// The flat manifest as the chart gives it. The ConfigMap comes first, because it is what a cluster
/// must change.
pub fn flat(helm: &Helm) -> Result<String> {
    const HEAD: &str = "\
# lbxdp on every node. Rendered from deploy/helm/lbxdp by `cargo xtask chart`: change the chart.
# A cluster must say one thing itself, here in the ConfigMap: LBXDP_API_SERVERS. The other settings
# may be given there too; docs/install.md lists them, and says how to make the key of the agents.
";
    let rendered = helm.template(&json!({
        "apiServers": ["https://REPLACE-ME:6443"],
        // Who edits the manifest computes no digest of it.
        "restartOnConfigChange": false,
        // A key that everybody can read in a manifest would be none.
        "members": { "port": 10470, "existingSecret": "lbxdp-members" },
    }))?;
    let (mut first, mut rest) = (Vec::new(), Vec::new());
    for document in rendered.split("---\n") {
        let lines = document.lines().filter(|line| !line.starts_with("# Source: "));
        let text = lines.collect::<Vec<_>>().join("\n");
        let text = text.trim();
        if text.contains("\nkind: ConfigMap\n") {
            first.push(text.to_owned());
        } else if !text.is_empty() {
            rest.push(text.to_owned());
        }
    }
    if first.len() != 1 {
        bail!("{} ConfigMaps instead of one", first.len());
    }
    first.append(&mut rest);
    Ok(format!("{HEAD}{}\n", first.join("\n---\n")))
}
