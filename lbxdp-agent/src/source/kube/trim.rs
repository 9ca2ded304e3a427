//! What is kept of an object: what the index reads. The rest is most of it, changes often without
//! meaning anything here (a node's heartbeat), and every node would hold it in memory.

use k8s_openapi::api::core::v1::{Node, NodeStatus, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::watch::Watched;
use crate::source::{Kind, Object};

impl Watched for Service {
    const KIND: Kind = Kind::Service;

    fn trimmed(mut self) -> Object {
        self.metadata = metadata(self.metadata);
        if let Some(status) = &mut self.status {
            status.conditions = None;
        }
        self.into()
    }
}

impl Watched for EndpointSlice {
    const KIND: Kind = Kind::EndpointSlice;

    fn trimmed(mut self) -> Object {
        self.metadata = metadata(self.metadata);
        for endpoint in self.endpoints.iter_mut().flatten() {
            endpoint.target_ref = None;
            endpoint.hostname = None;
            endpoint.deprecated_topology = None;
        }
        self.into()
    }
}

impl Watched for Node {
    const KIND: Kind = Kind::Node;

    fn trimmed(mut self) -> Object {
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
        labels: all.labels,
        creation_timestamp: all.creation_timestamp,
        ..ObjectMeta::default()
    }
}
