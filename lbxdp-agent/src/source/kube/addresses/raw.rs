//! MetalLB's resources as they are written, so that fields which nobody here knows are seen.

use std::marker::PhantomData;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::{ListableResource, Metadata, NamespaceResourceScope, Resource};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::source::Kind;
use crate::source::kube::watch::Watched;
use crate::vip::resources::{IpAddressPool, L2Advertisement};

/// An object of the kind `T`.
#[derive(Clone, Debug)]
pub(super) struct Raw<T> {
    /// All of it.
    pub value: Value,
    metadata: ObjectMeta,
    kind: PhantomData<T>,
}

impl<'de, T> Deserialize<'de> for Raw<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let metadata = value.get("metadata").unwrap_or(&Value::Null);
        let metadata = ObjectMeta::deserialize(metadata).map_err(D::Error::custom)?;
        Ok(Self { value, metadata, kind: PhantomData })
    }
}

impl<T: Resource<Scope = NamespaceResourceScope>> Resource for Raw<T> {
    const API_VERSION: &'static str = T::API_VERSION;
    const GROUP: &'static str = T::GROUP;
    const KIND: &'static str = T::KIND;
    const VERSION: &'static str = T::VERSION;
    const URL_PATH_SEGMENT: &'static str = T::URL_PATH_SEGMENT;
    type Scope = NamespaceResourceScope;
}

impl<T: ListableResource<Scope = NamespaceResourceScope>> ListableResource for Raw<T> {
    const LIST_KIND: &'static str = T::LIST_KIND;
}

impl<T: Resource<Scope = NamespaceResourceScope>> Metadata for Raw<T> {
    type Ty = ObjectMeta;

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn metadata_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

impl Watched for Raw<IpAddressPool> {
    const KIND: Kind = Kind::IpAddressPool;
}

impl Watched for Raw<L2Advertisement> {
    const KIND: Kind = Kind::L2Advertisement;
}
