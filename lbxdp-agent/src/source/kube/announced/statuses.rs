//! MetalLB's ServiceL2Status: which node announces a Service, and by which devices. One object for each
//! Service that this node announces, in the agents' namespace.
//!
//! Whoever announces a Service writes its own and removes those of others, which may be dead; whoever
//! lets go removes its own. What a node leaves behind that never comes back goes with its Node.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt as _};
use k8s_openapi::api::core::v1::Node;
use kube::api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use kube::core::GroupVersionKind;
use kube::{Api, Client, Error};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use crate::layer2::Seen;
use crate::source::kube::backoff::{Backoff, Failure};
use crate::source::kube::sleep_until_if;
use crate::source::kube::watch::{describe, failure};
use crate::source::{Kind, ObjectId};
use crate::vip::resources::{API_VERSION, GROUP};

const KIND: &str = "ServiceL2Status";
const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "lbxdp");
/// Of labels.
const LONGEST_VALUE: usize = 63;
/// One request.
const ANSWER: Duration = Duration::from_secs(4);
/// Requests at the same time.
const AT_ONCE: usize = 4;
/// What belongs together comes together.
const SETTLE: Duration = Duration::from_millis(200);
/// While there is no definition of the resource.
const UNKNOWN: Duration = Duration::from_secs(60);
/// Somebody may have removed what was written.
const LIST_EVERY: Duration = Duration::from_secs(600);
const NOT_FOUND: u16 = 404;

/// Services, and the devices by which they are announced.
type Announced = BTreeMap<ObjectId, BTreeSet<String>>;

/// Writes and removes them.
pub(super) struct Statuses {
    api: Api<DynamicObject>,
    nodes: Api<Node>,
    node: String,
    /// `metadata.uid` of its Node.
    uid: Option<String>,
    /// What the API has of this node; `None` if that has to be asked for.
    known: Option<Announced>,
    /// What went wrong, to say it once.
    error: Option<String>,
}

/// One object of the API.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Written {
    name: String,
    node: String,
    service: ObjectId,
    devices: BTreeSet<String>,
}

impl Statuses {
    pub(super) fn new(client: Client, namespace: &str, node: &str) -> Self {
        let kind = ApiResource::from_gvk(&GroupVersionKind::gvk(GROUP, "v1beta1", KIND));
        // What it would guess is another one.
        let kind = ApiResource { plural: "servicel2statuses".to_owned(), ..kind };
        Self {
            api: Api::namespaced_with(client.clone(), namespace, &kind),
            nodes: Api::all(client),
            node: node.to_owned(),
            uid: None,
            known: None,
            error: None,
        }
    }

    /// Follows what is announced, for ever.
    pub(super) async fn run(mut self, mut seen: watch::Receiver<Arc<Seen>>) {
        let mut backoff = Backoff::default();
        let mut due = None;
        let mut list_due = Instant::now() + LIST_EVERY;
        let mut wanted = None;
        loop {
            let wake = due.map_or(list_due, |due: Instant| due.min(list_due));
            tokio::select! {
                changed = seen.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let latest = Arc::clone(&seen.borrow_and_update());
                    let all = announced(&latest);
                    if all.is_some() && all != wanted {
                        wanted = all;
                        due = Some(due.unwrap_or_else(|| Instant::now() + SETTLE));
                    }
                    continue;
                }
                () = sleep_until_if(Some(wake)) => {}
            }
            let Some(wanted) = &wanted else {
                list_due = Instant::now() + LIST_EVERY;
                continue;
            };
            if list_due <= Instant::now() {
                list_due = Instant::now() + LIST_EVERY;
                self.known = None;
            }
            due = match self.follow(wanted).await {
                Ok(()) => {
                    self.error = None;
                    backoff.reset();
                    None
                }
                Err(error) => {
                    // What became of it is not known.
                    self.known = None;
                    Some(Instant::now() + self.failed(&error, &mut backoff))
                }
            };
        }
    }

    /// How long to wait after a failure.
    fn failed(&mut self, error: &Failed, backoff: &mut Backoff) -> Duration {
        let (text, pause) = match error {
            Failed::Unknown => (
                format!("the API has no {KIND}: which node announces what is not written"),
                UNKNOWN,
            ),
            Failed::Api(error) => (describe(error), backoff.after(failure(error))),
            Failed::Silence => {
                (format!("no answer within {ANSWER:?}"), backoff.after(Failure::Silence))
            }
        };
        if self.error.as_ref() != Some(&text) {
            tracing::warn!("{KIND}: {text}");
        }
        self.error = Some(text);
        pause
    }

    /// Makes the API have what is wanted.
    async fn follow(&mut self, wanted: &Announced) -> Result<(), Failed> {
        let is_new = |known: &Announced| wanted.keys().any(|id| !known.contains_key(id));
        if self.known.as_ref().is_none_or(is_new) {
            if self.uid.is_none() {
                let node = asked(self.nodes.get_opt(&self.node)).await?;
                self.uid = node.and_then(|node| node.metadata.uid);
            }
            let all = self.list().await?;
            let (own, others): (Vec<_>, Vec<_>) =
                all.into_iter().partition(|it| it.node == self.node);
            let taken = others.into_iter().filter(|it| wanted.contains_key(&it.service));
            self.remove(taken.map(|it| it.name).collect()).await?;
            // One whose name is not what it would be has to go.
            let (own, odd): (Vec<_>, Vec<_>) =
                own.into_iter().partition(|it| it.name == name(&self.node, &it.service));
            self.remove(odd.into_iter().map(|it| it.name).collect()).await?;
            self.known = Some(own.into_iter().map(|it| (it.service, it.devices)).collect());
        }
        let known = self.known.clone().unwrap_or_default();
        let gone = known.keys().filter(|id| !wanted.contains_key(id));
        self.remove(gone.map(|id| name(&self.node, id)).collect()).await?;
        let new = wanted.iter().filter(|(id, devices)| known.get(id) != Some(devices));
        let new: Vec<_> = new.map(|(id, devices)| (id.clone(), devices.clone())).collect();
        let this = &*self;
        let mut written = stream::iter(new)
            .map(|(id, devices)| async move { this.write(&id, &devices).await })
            .buffer_unordered(AT_ONCE);
        let mut outcome = Ok(());
        while let Some(written) = written.next().await {
            outcome = outcome.and(written);
        }
        drop(written);
        outcome?;
        self.known = Some(wanted.clone());
        Ok(())
    }

    async fn list(&self) -> Result<Vec<Written>, Failed> {
        let selector = format!("{}={}", MANAGED_BY.0, MANAGED_BY.1);
        let params = ListParams::default().labels(&selector);
        let list = asked(self.api.list(&params)).await.map_err(|error| match error {
            Failed::Api(Error::Api(status)) if status.code == NOT_FOUND => Failed::Unknown,
            other => other,
        })?;
        Ok(list.items.iter().map(read).collect())
    }

    async fn write(&self, id: &ObjectId, devices: &BTreeSet<String>) -> Result<(), Failed> {
        let name = name(&self.node, id);
        let params = PatchParams::apply("lbxdp").force();
        let object = Patch::Apply(object(&self.node, self.uid.as_deref(), id));
        asked(self.api.patch(&name, &params, &object)).await?;
        let status = Patch::Merge(status(&self.node, id, devices));
        asked(self.api.patch_status(&name, &PatchParams::default(), &status)).await.map(drop)
    }

    async fn remove(&self, names: Vec<String>) -> Result<(), Failed> {
        let api = &self.api;
        let mut removed = stream::iter(names)
            .map(|name| async move { asked(api.delete(&name, &DeleteParams::default())).await })
            .buffer_unordered(AT_ONCE);
        let mut outcome = Ok(());
        while let Some(removed) = removed.next().await {
            outcome = outcome.and(match removed {
                Err(Failed::Api(Error::Api(status))) if status.code == NOT_FOUND => Ok(()),
                other => other.map(drop),
            });
        }
        outcome
    }
}

/// Why something was not done.
enum Failed {
    /// There is no such resource.
    Unknown,
    Api(Error),
    Silence,
}

async fn asked<T>(request: impl Future<Output = Result<T, Error>>) -> Result<T, Failed> {
    match timeout(ANSWER, request).await {
        Ok(answer) => answer.map_err(Failed::Api),
        Err(_) => Err(Failed::Silence),
    }
}

fn announced(seen: &Seen) -> Option<Announced> {
    let all = seen.announced()?.into_iter();
    let all = all
        .map(|(id, (_, devices))| (id.clone(), devices.into_iter().map(str::to_owned).collect()));
    Some(all.collect())
}

/// What an object has to be called: the same after a restart, so that nothing is there twice.
fn name(node: &str, service: &ObjectId) -> String {
    let digest = Sha256::digest(format!("{node}#{}/{}", service.namespace, service.name));
    format!("l2-{:016x}", u64::from_be_bytes(digest[..8].try_into().unwrap_or_default()))
}

fn object(node: &str, uid: Option<&str>, service: &ObjectId) -> Value {
    let labels = [
        MANAGED_BY,
        ("metallb.io/node", node),
        ("metallb.io/service-name", &service.name),
        ("metallb.io/service-namespace", &service.namespace),
    ];
    let labels: BTreeMap<_, _> =
        labels.into_iter().filter(|(_, value)| value.len() <= LONGEST_VALUE).collect();
    let owner =
        uid.map(|uid| json!({"apiVersion": "v1", "kind": "Node", "name": node, "uid": uid}));
    json!({
        "apiVersion": API_VERSION, "kind": KIND,
        "metadata": {
            "name": name(node, service), "labels": labels,
            "ownerReferences": owner.into_iter().collect::<Vec<_>>(),
        },
    })
}

fn status(node: &str, service: &ObjectId, devices: &BTreeSet<String>) -> Value {
    let interfaces: Vec<_> = devices.iter().map(|name| json!({ "name": name })).collect();
    json!({"status": {
        "node": node,
        "serviceName": service.name, "serviceNamespace": service.namespace,
        "interfaces": interfaces,
    }})
}

fn read(object: &DynamicObject) -> Written {
    let status = &object.data["status"];
    let text = |field: &str| status[field].as_str().unwrap_or_default();
    // One whose status was never written says so in its labels.
    let labels = object.metadata.labels.as_ref();
    let label = |name: &str| labels.and_then(|all| all.get(name)).map_or("", String::as_str);
    let or = |text: &'_ str, label: &'_ str| {
        if text.is_empty() { label.to_owned() } else { text.to_owned() }
    };
    let namespace = or(text("serviceNamespace"), label("metallb.io/service-namespace"));
    let service = or(text("serviceName"), label("metallb.io/service-name"));
    let interfaces = status["interfaces"].as_array().into_iter().flatten();
    Written {
        name: object.metadata.name.clone().unwrap_or_default(),
        node: or(text("node"), label("metallb.io/node")),
        service: ObjectId::new(Kind::Service, Some(&namespace), &service),
        devices: interfaces.filter_map(|it| it["name"].as_str()).map(str::to_owned).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> ObjectId {
        ObjectId::new(Kind::Service, Some("shop"), "web")
    }

    #[test]
    fn what_is_written_is_what_metallb_writes() {
        let object = object("n1", Some("u"), &id());
        let labels = json!({
            "app.kubernetes.io/managed-by": "lbxdp", "metallb.io/node": "n1",
            "metallb.io/service-name": "web", "metallb.io/service-namespace": "shop",
        });
        assert_eq!(object["metadata"]["labels"], labels);
        assert_eq!(object["metadata"]["ownerReferences"][0]["kind"], "Node");
        let devices = ["eth0", "eth1"].map(str::to_owned).into();
        let expected = json!({
            "node": "n1", "serviceName": "web", "serviceNamespace": "shop",
            "interfaces": [{"name": "eth0"}, {"name": "eth1"}],
        });
        assert_eq!(status("n1", &id(), &devices)["status"], expected);
        // A name that fits into no label is in the status.
        let long = "n".repeat(64);
        let labels = &super::object(&long, None, &id())["metadata"]["labels"];
        assert_eq!(labels.get("metallb.io/node"), None);
    }

    #[test]
    fn what_was_written_is_read_with_or_without_its_status() {
        let mut value = object("n1", None, &id());
        let devices: BTreeSet<String> = ["eth0".to_owned()].into();
        let bare: DynamicObject = serde_json::from_value(value.clone()).unwrap();
        let expected = Written {
            name: name("n1", &id()),
            node: "n1".to_owned(),
            service: id(),
            devices: BTreeSet::new(),
        };
        assert_eq!(read(&bare), expected);
        value["status"] = status("n1", &id(), &devices)["status"].clone();
        let whole: DynamicObject = serde_json::from_value(value).unwrap();
        assert_eq!(read(&whole), Written { devices, ..expected });
        assert_ne!(name("n1", &id()), name("n2", &id()));
    }
}
