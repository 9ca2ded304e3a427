//! What is followed while the lease is held, and what of it is kept.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Mutex;

use k8s_openapi::api::core::v1::{Namespace, Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::WatchParams;
use kube::{Api, Client, Error};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::inputs::{Heard, Item, Written};
use super::raw::Raw;
use crate::layer2::NodeFacts;
use crate::source::kube::watch::{Follower, Listener, Unheard, Watched};
use crate::source::{Kind, ObjectId};
use crate::vip::resources::{IpAddressPool, L2Advertisement, read};
use crate::vip::{OLD_POOL_ANNOTATION, POOL_ANNOTATION, is_load_balancer};

/// The Service of the webhook that MetalLB's controller itself answers: a ready endpoint is a
/// controller that runs. Charts and manifests name it alike since 0.14;
const WEBHOOK: &str = "metallb-webhook-service";
/// before that, manifests named it so,
const OLD_WEBHOOK: &str = "webhook-service";
/// in this namespace.
const METALLB: &str = "metallb-system";
const SERVICE_NAME: &str = "kubernetes.io/service-name";
const NOT_FOUND: u16 = 404;

/// Follows everything, until the set of tasks is dropped.
pub(super) fn follow(client: &Client, sender: &mpsc::Sender<Heard>) -> JoinSet<()> {
    let mut tasks = follow_announcing(client, sender);
    let all = WatchParams::default();
    spawn::<Service>(&mut tasks, client, sender, all.clone());
    spawn::<Namespace>(&mut tasks, client, sender, all.clone());
    spawn::<ServiceCIDR>(&mut tasks, client, sender, all);
    tasks
}

/// Follows what announcing addresses goes by.
pub(super) fn follow_announcing(client: &Client, sender: &mpsc::Sender<Heard>) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    let all = WatchParams::default();
    let webhook = all.clone().labels(&format!("{SERVICE_NAME} in ({WEBHOOK},{OLD_WEBHOOK})"));
    spawn::<EndpointSlice>(&mut tasks, client, sender, webhook);
    spawn::<Node>(&mut tasks, client, sender, all.clone());
    spawn::<Raw<IpAddressPool>>(&mut tasks, client, sender, all.clone());
    spawn::<Raw<L2Advertisement>>(&mut tasks, client, sender, all);
    tasks
}

fn spawn<K: Kept>(
    tasks: &mut JoinSet<()>,
    client: &Client,
    sender: &mpsc::Sender<Heard>,
    params: WatchParams,
) {
    let ears = Ears { sender: sender.clone(), error: Mutex::new(None) };
    tasks.spawn(Follower::new(Api::<K>::all(client.clone()), params, ears).run());
}

/// Objects of which something is kept.
trait Kept: Watched {
    fn kept(self) -> Item;
}

struct Ears {
    sender: mpsc::Sender<Heard>,
    /// The last one, to say it once.
    error: Mutex<Option<String>>,
}

impl Ears {
    async fn tell(&self, heard: Heard) -> Result<(), Unheard> {
        self.sender.send(heard).await.map_err(|_| Unheard)
    }
}

impl<K: Kept> Listener<K> for Ears {
    type Kept = Item;

    fn keep(&self, object: K) -> Item {
        object.kept()
    }

    async fn listed(&self, all: BTreeMap<ObjectId, Item>) -> Result<(), Unheard> {
        self.tell(Heard::Listed(K::KIND, all)).await
    }

    async fn applied(&self, id: ObjectId, object: Item) -> Result<(), Unheard> {
        self.tell(Heard::Applied(id, object)).await
    }

    async fn deleted(&self, id: ObjectId) -> Result<(), Unheard> {
        self.tell(Heard::Deleted(id)).await
    }

    fn failed(&self, error: &Error, text: String) -> bool {
        if matches!(error, Error::Api(status) if status.code == NOT_FOUND) {
            // A full channel has more to say than that, and it is said again.
            let _ = self.sender.try_send(Heard::Absent(K::KIND));
        }
        let mut last = self.error.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        last.replace(text.clone()) != Some(text)
    }
}

impl Kept for Service {
    fn kept(mut self) -> Item {
        let annotations = self.metadata.annotations.as_ref();
        let was_ours = annotations.is_some_and(|annotations| {
            [POOL_ANNOTATION, OLD_POOL_ANNOTATION].iter().any(|it| annotations.contains_key(*it))
        });
        if !is_load_balancer(&self) && !was_ours {
            return Item::Nothing;
        }
        self.metadata.managed_fields = None;
        Item::Service(self.into())
    }
}

impl Watched for Namespace {
    const KIND: Kind = Kind::Namespace;
}

impl Kept for Namespace {
    fn kept(self) -> Item {
        Item::Labels(self.metadata.labels.unwrap_or_default())
    }
}

impl Kept for Node {
    fn kept(self) -> Item {
        let facts = NodeFacts::read(&self);
        let addresses = self.status.and_then(|status| status.addresses).unwrap_or_default();
        let addresses = addresses.iter().filter_map(|it| it.address.parse::<IpAddr>().ok());
        Item::Node(addresses.collect(), Box::new(facts))
    }
}

impl Watched for ServiceCIDR {
    const KIND: Kind = Kind::ServiceCidr;
}

impl Kept for ServiceCIDR {
    fn kept(self) -> Item {
        let ranges = self.spec.and_then(|spec| spec.cidrs).unwrap_or_default();
        Item::Ranges(ranges.iter().filter_map(|range| range.parse().ok()).collect())
    }
}

impl Kept for EndpointSlice {
    fn kept(self) -> Item {
        let ObjectMeta { namespace, labels, .. } = &self.metadata;
        let service = labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME));
        let is_elsewhere = namespace.as_deref() != Some(METALLB);
        if service.is_some_and(|name| name == OLD_WEBHOOK) && is_elsewhere {
            return Item::Nothing;
        }
        let is_ready = self.endpoints.iter().flatten().any(|endpoint| {
            let conditions = endpoint.conditions.as_ref();
            conditions.and_then(|conditions| conditions.ready).unwrap_or(true)
        });
        Item::MetalLb(is_ready)
    }
}

impl Kept for Raw<IpAddressPool> {
    fn kept(self) -> Item {
        Item::Pool(Box::new(written(&self.value)))
    }
}

impl Kept for Raw<L2Advertisement> {
    fn kept(self) -> Item {
        Item::Advertisement(Box::new(written(&self.value)))
    }
}

fn written<T: DeserializeOwned + Serialize>(value: &Value) -> Written<T> {
    let (read, error) = match read(value) {
        Ok(read) => (Some(read), None),
        Err(error) => (None, Some(error)),
    };
    let uid = value.pointer("/metadata/uid").and_then(Value::as_str).unwrap_or_default();
    let status = value.get("status").cloned().unwrap_or_default();
    Written { uid: uid.to_owned(), status, read, error }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn kept<K: Kept>(object: Value) -> Item {
        serde_json::from_value::<K>(object).unwrap().kept()
    }

    #[test]
    fn services_of_other_types_are_nothing_unless_they_had_an_address_of_ours() {
        let service = |kind: &str, annotations: Value| {
            let item = kept::<Service>(json!({
                "metadata": {"name": "a", "annotations": annotations}, "spec": {"type": kind},
            }));
            matches!(item, Item::Service(_))
        };
        assert!(service("LoadBalancer", json!({})));
        assert!(!service("ClusterIP", json!({"a": "b"})));
        assert!(service("ClusterIP", json!({POOL_ANNOTATION: "b"})));
        assert!(service("NodePort", json!({OLD_POOL_ANNOTATION: "b"})));
    }

    #[test]
    fn a_ready_endpoint_of_its_webhook_is_a_controller_of_metallb() {
        let slice = |namespace: &str, service: &str, ready: Value| {
            kept::<EndpointSlice>(json!({
                "metadata": {"name": "a", "namespace": namespace, "labels": {SERVICE_NAME: service}},
                "addressType": "IPv4",
                "endpoints": [{"addresses": ["10.1.0.1"], "conditions": {"ready": ready}}],
            }))
        };
        assert!(matches!(slice("lb", WEBHOOK, json!(true)), Item::MetalLb(true)));
        assert!(matches!(slice("lb", WEBHOOK, Value::Null), Item::MetalLb(true)));
        assert!(matches!(slice("lb", WEBHOOK, json!(false)), Item::MetalLb(false)));
        assert!(matches!(slice("lb", OLD_WEBHOOK, json!(true)), Item::Nothing));
        assert!(matches!(slice(METALLB, OLD_WEBHOOK, json!(true)), Item::MetalLb(true)));
    }

    #[test]
    fn a_pool_keeps_what_is_not_known() {
        let item = kept::<Raw<IpAddressPool>>(json!({
            "metadata": {"name": "a", "namespace": "lb", "uid": "u"},
            "spec": {"addresses": ["192.0.2.0/30"], "later": 1},
            "status": {"assignedIPv4": 1},
        }));
        let Item::Pool(pool) = item else { panic!("{item:?}") };
        assert_eq!((pool.uid.as_str(), &pool.status), ("u", &json!({"assignedIPv4": 1})));
        assert_eq!(pool.read.unwrap().unsupported, ["spec.later"]);
    }
}
