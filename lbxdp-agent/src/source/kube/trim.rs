//! What is kept of an object: what the index reads. The rest is most of it, changes often without
//! meaning anything here (a node's heartbeat), and every node would hold it in memory.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use k8s_openapi::api::core::v1::{Node, NodeStatus, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use kube::Error;
use tokio::sync::mpsc;

use super::Message;
use super::status::Status;
use super::watch::{Listener, Unheard, Watched};
use crate::source::{Kind, Object, ObjectId};

/// When the endpoints of a slice changed, as its controller saw it (RFC 3339, nanoseconds).
const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// An object as it is kept, and what is of interest only when it arrives. A slice whose time alone
/// differs is not another slice.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Arrived {
    /// What is kept.
    pub(super) object: Object,
    /// When that happened which the object changed for.
    pub(super) triggered: Option<SystemTime>,
}

impl Arrived {
    pub(super) fn id(&self) -> ObjectId {
        self.object.id()
    }
}

impl<T: Into<Object>> From<T> for Arrived {
    fn from(object: T) -> Self {
        Self { object: object.into(), triggered: None }
    }
}

/// Objects of which not everything is kept.
pub(super) trait Trim: Watched {
    /// Leaves out what nobody here reads.
    fn trimmed(self) -> Arrived;
}

/// The source, as the one who listens.
pub(super) struct Ears {
    /// Where it hears.
    pub(super) messages: mpsc::Sender<Message>,
    /// Where errors are noted.
    pub(super) status: Arc<Status>,
}

impl Ears {
    async fn tell(&self, message: Message) -> Result<(), Unheard> {
        self.messages.send(message).await.map_err(|_| Unheard)
    }
}

impl<K: Trim> Listener<K> for Ears {
    type Kept = Arrived;

    fn keep(&self, object: K) -> Arrived {
        object.trimmed()
    }

    async fn listed(&self, all: BTreeMap<ObjectId, Arrived>) -> Result<(), Unheard> {
        self.tell(Message::Listed(K::KIND, all)).await
    }

    async fn applied(&self, _: ObjectId, object: Arrived) -> Result<(), Unheard> {
        self.tell(Message::Applied(object)).await
    }

    async fn deleted(&self, id: ObjectId) -> Result<(), Unheard> {
        self.tell(Message::Deleted(id)).await
    }

    fn failed(&self, _: &Error, text: String) -> bool {
        let watch = self.status.watch(K::KIND);
        let is_new = watch.error().as_ref() != Some(&text);
        watch.set_error(Some(text));
        is_new
    }
}

impl Watched for Service {
    const KIND: Kind = Kind::Service;
}

impl Trim for Service {
    fn trimmed(mut self) -> Arrived {
        self.metadata = metadata(self.metadata);
        if let Some(status) = &mut self.status {
            status.conditions = None;
        }
        self.into()
    }
}

impl Watched for EndpointSlice {
    const KIND: Kind = Kind::EndpointSlice;
}

impl Trim for EndpointSlice {
    fn trimmed(mut self) -> Arrived {
        let triggered = trigger_time(&self.metadata);
        self.metadata = metadata(self.metadata);
        for endpoint in self.endpoints.iter_mut().flatten() {
            endpoint.target_ref = None;
            endpoint.hostname = None;
            endpoint.deprecated_topology = None;
        }
        Arrived { object: self.into(), triggered }
    }
}

impl Watched for Node {
    const KIND: Kind = Kind::Node;
}

impl Trim for Node {
    fn trimmed(mut self) -> Arrived {
        self.metadata = metadata(self.metadata);
        self.status = self
            .status
            .map(|status| NodeStatus { addresses: status.addresses, ..NodeStatus::default() });
        self.into()
    }
}

fn metadata(all: ObjectMeta) -> ObjectMeta {
    ObjectMeta {
        name: all.name,
        namespace: all.namespace,
        // Events name the object by it.
        uid: all.uid,
        labels: all.labels,
        creation_timestamp: all.creation_timestamp,
        ..ObjectMeta::default()
    }
}

/// Anybody may write anything there: what cannot be read is no time.
fn trigger_time(metadata: &ObjectMeta) -> Option<SystemTime> {
    let text = metadata.annotations.as_ref()?.get(TRIGGER_TIME)?;
    text.parse::<Timestamp>().ok().map(SystemTime::from)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    fn slice(time: &str) -> EndpointSlice {
        let mut slice = EndpointSlice::default();
        let annotations = [(TRIGGER_TIME.to_owned(), time.to_owned())];
        slice.metadata.annotations = Some(annotations.into());
        slice.metadata.uid = Some("b9".to_owned());
        slice
    }

    #[test]
    fn the_time_of_a_change_is_kept_apart_from_the_slice() {
        let [early, late] =
            ["2026-01-02T03:04:05Z", "2026-01-02T03:04:06.5Z"].map(|time| slice(time).trimmed());
        assert_eq!(early.triggered, Some(UNIX_EPOCH + Duration::from_secs(1_767_323_045)));
        let later = late.triggered.unwrap().duration_since(early.triggered.unwrap());
        assert_eq!(later.unwrap(), Duration::from_millis(1_500));
        assert_eq!(early.object, late.object);
        let Object::EndpointSlice(kept) = early.object else { panic!("another kind") };
        assert_eq!(kept.metadata.annotations, None);
        assert_eq!(kept.metadata.uid.as_deref(), Some("b9"));
    }

    #[test]
    fn what_is_no_time_is_none() {
        for text in ["", "yesterday", "2026-01-02", "9999999999-01-02T03:04:05Z"] {
            assert_eq!(slice(text).trimmed().triggered, None, "{text}");
        }
        assert_eq!(EndpointSlice::default().trimmed().triggered, None);
    }
}
