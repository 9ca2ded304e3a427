//! Where the API servers are and how to prove who asks.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use http::Uri;
use kube::Config;
use kube::config::{AuthInfo, KubeConfigOptions, Kubeconfig};

/// Where the kubelet puts a pod's token and the cluster's CA.
pub const SERVICE_ACCOUNT_DIR: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// The name in every API server's certificate, whatever its address.
const SERVER_NAME: &str = "kubernetes.default.svc";

/// How to reach the API.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Everything from this file, or a pod's service account if `None`.
    pub kubeconfig: Option<PathBuf>,
    /// Directory of the service account; [`SERVICE_ACCOUNT_DIR`] if `None`.
    pub service_account: Option<PathBuf>,
    /// Addresses of API servers, in order of preference, instead of the file's.
    pub servers: Vec<String>,
}

/// What [`Options`] come to.
#[derive(Clone, Debug)]
pub(super) struct Access {
    /// One per API server, in order of preference; never empty.
    pub servers: Vec<Config>,
    /// Read for each request: it is replaced long before it expires.
    pub token_file: Option<PathBuf>,
    /// Where the agent's own objects are.
    pub namespace: String,
}

impl Access {
    /// Reads what there is to read. `cluster_ip` is the address that pods are told
    /// (`KUBERNETES_SERVICE_HOST`).
    pub(super) async fn find(options: &Options, cluster_ip: Option<&str>) -> anyhow::Result<Self> {
        let Options { kubeconfig, service_account, servers } = options;
        let mut access = match kubeconfig {
            Some(path) => Self::from_kubeconfig(path).await?,
            None => {
                let dir = service_account.as_deref().unwrap_or(Path::new(SERVICE_ACCOUNT_DIR));
                ensure!(
                    !servers.is_empty(),
                    "--api-server is missing: the address that pods are told is a ClusterIP, which \
                     nobody serves before this agent does; give an API server's own address, such \
                     as --api-server https://192.0.2.1:6443"
                );
                Self::from_service_account(dir)?
            }
        };
        if !servers.is_empty() {
            let found = access.servers[0].clone();
            let with_address = |text: &String| {
                let mut config = found.clone();
                config.cluster_url =
                    address(text, cluster_ip).with_context(|| format!("--api-server {text}"))?;
                // The certificate need not have the address.
                config.tls_server_name.get_or_insert_with(|| SERVER_NAME.to_owned());
                Ok(config)
            };
            access.servers =
                servers.iter().map(with_address).collect::<anyhow::Result<Vec<_>>>()?;
        }
        Ok(access)
    }

    async fn from_kubeconfig(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        let kubeconfig =
            Kubeconfig::read_from(path).with_context(|| format!("--kubeconfig {shown}"))?;
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
            .await
            .with_context(|| format!("--kubeconfig {shown}"))?;
        // Taken out: the library would look at it once a minute.
        let token_file = config.auth_info.token_file.take().map(PathBuf::from);
        if token_file.is_some() {
            // A file goes before a token written beside it, as with kubectl.
            config.auth_info.token = None;
        }
        let namespace = config.default_namespace.clone();
        Ok(Self { servers: vec![config], token_file, namespace })
    }

    fn from_service_account(dir: &Path) -> anyhow::Result<Self> {
        let (token_file, ca) = (dir.join("token"), dir.join("ca.crt"));
        let namespace = dir.join("namespace");
        for path in [&token_file, &ca, &namespace] {
            std::fs::metadata(path).with_context(|| {
                format!(
                    "{}: not in a pod with a service account; elsewhere give --kubeconfig, or \
                     --manifests for a directory instead of a cluster",
                    path.display()
                )
            })?;
        }
        let mut config = Config::new(Uri::from_static("https://kubernetes.default.svc"));
        // Followed by the library: a CA may be replaced while the agent runs. Certificates that it
        // starts with have to be there all the same, or it takes those of the system.
        config.root_cert = Some(Vec::new());
        config.root_cert_file = Some(ca);
        config.auth_info = AuthInfo::default();
        let namespace = std::fs::read_to_string(&namespace)
            .with_context(|| namespace.display().to_string())?
            .trim()
            .to_owned();
        Ok(Self { servers: vec![config], token_file: Some(token_file), namespace })
    }
}

fn address(text: &str, cluster_ip: Option<&str>) -> anyhow::Result<Uri> {
    let uri: Uri = text.parse().context("not a URL")?;
    let Some(host) = uri.host() else { bail!("not a URL such as https://192.0.2.1:6443") };
    match uri.scheme_str() {
        Some("https") => {}
        // A token must not cross a network in the clear.
        Some("http") if matches!(host, "127.0.0.1" | "localhost" | "[::1]") => {}
        Some("http") => bail!("http is for addresses on this host only"),
        _ => bail!("not a URL such as https://192.0.2.1:6443"),
    }
    let host = host.trim_start_matches('[').trim_end_matches(']');
    ensure!(
        cluster_ip != Some(host),
        "this is the API server's ClusterIP, which nobody serves before this agent does: give an \
         API server's own address"
    );
    Ok(uri)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(options: &Options, cluster_ip: Option<&str>) -> anyhow::Result<Access> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(Access::find(options, cluster_ip))
    }

    fn service_account() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("token"), "secret\n").unwrap();
        std::fs::write(dir.path().join("ca.crt"), "").unwrap();
        std::fs::write(dir.path().join("namespace"), "lb\n").unwrap();
        dir
    }

    fn in_pod(dir: &Path, servers: &[&str]) -> Options {
        let servers = servers.iter().map(|text| (*text).to_owned()).collect();
        Options { kubeconfig: None, service_account: Some(dir.to_owned()), servers }
    }

    #[test]
    fn a_pod_needs_the_address_of_an_api_server() {
        let dir = service_account();
        let error = find(&in_pod(dir.path(), &[]), Some("10.96.0.1")).unwrap_err().to_string();
        assert!(error.contains("--api-server is missing"), "{error}");
        assert!(error.contains("ClusterIP"), "{error}");

        for (url, expected) in [
            ("https://10.96.0.1:443", "the API server's ClusterIP"),
            ("192.0.2.1:6443", "not a URL"),
            ("http://192.0.2.1:8080", "this host only"),
        ] {
            let error = find(&in_pod(dir.path(), &[url]), Some("10.96.0.1")).unwrap_err();
            let error = format!("{error:#}");
            assert!(error.contains(expected) && error.contains(url), "{error}");
        }
    }

    #[test]
    fn every_address_is_asked_for_the_name_in_the_certificate() {
        let dir = service_account();
        let urls = ["https://192.0.2.1:6443", "https://[2001:db8::1]:6443"];
        let access = find(&in_pod(dir.path(), &urls), None).unwrap();
        assert_eq!(access.token_file, Some(dir.path().join("token")));
        assert_eq!(access.namespace, "lb");
        let names = access.servers.iter().map(|server| server.tls_server_name.as_deref());
        assert_eq!(names.collect::<Vec<_>>(), [Some(SERVER_NAME); 2]);
        let found = access.servers.iter().map(|server| server.cluster_url.to_string());
        assert_eq!(found.collect::<Vec<_>>(), urls.map(|url| format!("{url}/")));
    }

    #[test]
    fn without_a_service_account_the_message_names_the_other_ways() {
        let dir = tempfile::tempdir().unwrap();
        let options = in_pod(dir.path(), &["https://192.0.2.1:6443"]);
        let error = find(&options, None).unwrap_err().to_string();
        assert!(error.contains("--kubeconfig") && error.contains("token"), "{error}");
    }

    #[test]
    fn a_kubeconfig_has_everything_and_addresses_may_be_given_instead_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        let text = "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
            contexts: [{name: c, context: {cluster: k, user: u}}]\n\
            clusters: [{name: k, cluster: {server: 'https://192.0.2.9:6443'}}]\n\
            users: [{name: u, user: {tokenFile: /run/token}}]\n";
        std::fs::write(&path, text).unwrap();
        let mut options = Options { kubeconfig: Some(path), ..Options::default() };
        let access = find(&options, None).unwrap();
        assert_eq!(access.servers[0].cluster_url, "https://192.0.2.9:6443/");
        assert_eq!(access.servers[0].tls_server_name, None);
        assert_eq!(access.token_file, Some("/run/token".into()));

        options.servers = vec!["https://192.0.2.1:6443".to_owned()];
        let access = find(&options, None).unwrap();
        assert_eq!(access.servers[0].cluster_url, "https://192.0.2.1:6443/");
        assert_eq!(access.servers[0].tls_server_name.as_deref(), Some(SERVER_NAME));
    }
}
