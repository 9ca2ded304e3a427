//! Objects at the API, as a test writes them: one request at a time, panics for what must work.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::Request;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};

const TIMEOUT: Duration = Duration::from_secs(30);
/// Server-side apply: creates or changes, and takes what it is not told away again.
const APPLY: &str = "application/apply-patch+yaml";
const MERGE: &str = "application/merge-patch+json";
/// Requests at the same time when there are many.
const AT_ONCE: usize = 32;

/// The API as one client sees it, from within a namespace.
#[derive(Clone, Debug)]
pub struct Api {
    netns: PathBuf,
    kubeconfig: String,
}

/// Where an object is, or its collection if it has no name.
fn path_of(object: &Value) -> String {
    let text = |pointer| object.pointer(pointer).and_then(Value::as_str);
    let version = text("/apiVersion").expect("an apiVersion");
    let kind = text("/kind").expect("a kind");
    let group = if version.contains('/') { format!("/apis/{version}") } else { "/api/v1".into() };
    let namespace = match kind {
        "Node"
        | "Namespace"
        | "ClusterRole"
        | "ClusterRoleBinding"
        | "CustomResourceDefinition" => String::new(),
        _ => format!("/namespaces/{}", text("/metadata/namespace").unwrap_or("default")),
    };
    let plural = format!("{}s", kind.to_lowercase());
    let name = text("/metadata/name").expect("a name");
    format!("{group}{namespace}/{plural}/{name}")
}

impl Api {
    /// With a kubeconfig's text.
    pub fn new(netns: &Path, kubeconfig: String) -> Self {
        Self { netns: netns.to_owned(), kubeconfig }
    }

    /// Runs something with a client, in the namespace.
    pub fn with<T: Send>(&self, f: impl AsyncFnOnce(Client) -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                let file = File::open(&self.netns).expect("the namespace");
                setns(file, CloneFlags::CLONE_NEWNET).expect("enter the namespace");
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime.expect("a runtime").block_on(async {
                    let config = config(&self.kubeconfig).await;
                    f(Client::try_from(config).expect("a client")).await
                })
            });
            match inside.join() {
                Ok(value) => value,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// One request: the answer, or what went wrong.
    pub fn request(
        &self,
        method: &str,
        path: &str,
        body: Option<(&str, &Value)>,
        timeout: Duration,
    ) -> Result<String, String> {
        self.with(async |client| {
            let answer = tokio::time::timeout(timeout, send(&client, method, path, body)).await;
            answer.map_err(|_| format!("{method} {path}: no answer within {timeout:?}"))?
        })
    }

    /// The object or list at a path; none if it is not there, or nobody answers.
    pub fn get(&self, path: &str) -> Option<Value> {
        serde_json::from_str(&self.request("GET", path, None, TIMEOUT).ok()?).ok()
    }

    /// Creates objects or makes them what is said here, their status included.
    #[track_caller]
    pub fn apply(&self, objects: &[Value]) {
        let result = self.with(async |client| {
            for objects in objects.chunks(AT_ONCE) {
                let applied = objects.iter().map(|object| apply(&client, object));
                futures_util::future::try_join_all(applied).await?;
            }
            Ok::<(), String>(())
        });
        if let Err(error) = result {
            panic!("{error}");
        }
    }

    /// Deletes objects.
    #[track_caller]
    pub fn delete(&self, objects: &[Value]) {
        for object in objects {
            if let Err(error) = self.request("DELETE", &path_of(object), None, TIMEOUT) {
                panic!("{error}");
            }
        }
    }

    /// Changes parts of an object, as a merge patch.
    #[track_caller]
    pub fn patch(&self, object: &Value, patch: &Value) {
        let body = Some((MERGE, patch));
        if let Err(error) = self.request("PATCH", &path_of(object), body, TIMEOUT) {
            panic!("{error}");
        }
    }

    /// A token for a service account.
    #[track_caller]
    pub fn token(&self, namespace: &str, name: &str) -> String {
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token");
        let request = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest" });
        let body = Some(("application/json", &request));
        let answer = match self.request("POST", &path, body, TIMEOUT) {
            Ok(answer) => answer,
            Err(error) => panic!("{error}"),
        };
        let answer: Value = serde_json::from_str(&answer).expect("JSON");
        answer.pointer("/status/token").and_then(Value::as_str).expect("a token").to_owned()
    }
}

/// The configuration of a client.
pub(super) async fn config(kubeconfig: &str) -> Config {
    let kubeconfig = Kubeconfig::from_yaml(kubeconfig).expect("a kubeconfig");
    let options = KubeConfigOptions::default();
    Config::from_custom_kubeconfig(kubeconfig, &options).await.expect("a configuration")
}

async fn apply(client: &Client, object: &Value) -> Result<(), String> {
    let path = path_of(object);
    let query = "fieldManager=tests&force=true";
    let mut main = object.clone();
    let status = main.as_object_mut().and_then(|object| object.remove("status"));
    send(client, "PATCH", &format!("{path}?{query}"), Some((APPLY, &main))).await?;
    if let Some(status) = status {
        // Not applied: a node's two addresses of one type are refused there as duplicates.
        let body = json!({ "status": status });
        send(client, "PATCH", &format!("{path}/status"), Some((MERGE, &body))).await?;
    }
    Ok(())
}

async fn send(
    client: &Client,
    method: &str,
    path: &str,
    body: Option<(&str, &Value)>,
) -> Result<String, String> {
    let request = Request::builder().method(method).uri(path);
    let request = match body {
        None => request.body(Vec::new()),
        Some((content, value)) => {
            request.header("content-type", content).body(value.to_string().into_bytes())
        }
    };
    let answer = client.request_text(request.map_err(|error| error.to_string())?).await;
    answer.map_err(|error| format!("{method} {path}: {error}"))
}
