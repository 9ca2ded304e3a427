//! Pools, advertisements and namespaces as files have them.

use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::{Metadata, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::resources::{
    API_VERSION, GROUP, IpAddressPool, L2Advertisement, Read, Unreadable, read, unsupported_kind,
};
use crate::problem::quoted;
use crate::source::{DEFAULT_NAMESPACE, Kind, ObjectId};

/// What a document is.
#[derive(Clone, Debug, PartialEq)]
pub enum Document {
    /// A pool.
    Pool(Box<Read<IpAddressPool>>),
    /// An advertisement.
    Advertisement(Box<Read<L2Advertisement>>),
    /// A namespace, for its labels.
    Namespace(Box<Namespace>),
}

impl Document {
    /// Which kind it is.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Pool(_) => Kind::IpAddressPool,
            Self::Advertisement(_) => Kind::L2Advertisement,
            Self::Namespace(_) => Kind::Namespace,
        }
    }

    /// What identifies it.
    pub fn id(&self) -> ObjectId {
        let metadata = match self {
            Self::Pool(read) => &read.object.metadata,
            Self::Advertisement(read) => &read.object.metadata,
            Self::Namespace(namespace) => &namespace.metadata,
        };
        ObjectId::of(self.kind(), metadata)
    }
}

/// Reads a document; `None` if it is of another kind. A kind of MetalLB's that has no effect is refused,
/// as is another version: it was written to have one.
pub fn read_document(value: &Value) -> Option<Result<Document, Unreadable>> {
    Some(match (text(value, "/apiVersion"), text(value, "/kind")) {
        (Namespace::API_VERSION, Namespace::KIND) => {
            named(value).map(|read| Document::Namespace(Box::new(read.object)))
        }
        (API_VERSION, IpAddressPool::KIND) => {
            namespaced(value).map(|read| Document::Pool(Box::new(read)))
        }
        (API_VERSION, L2Advertisement::KIND) => {
            namespaced(value).map(|read| Document::Advertisement(Box::new(read)))
        }
        (version, kind) if version.split('/').next() == Some(GROUP) => {
            let (field, message) = match (kind, unsupported_kind(kind)) {
                (IpAddressPool::KIND | L2Advertisement::KIND, _) => {
                    let version = quoted(version);
                    ("apiVersion", format!("{version} is not supported, {API_VERSION} is"))
                }
                (_, Some(why)) => ("kind", format!("unsupported: {why}")),
                (_, None) => ("kind", "unsupported: it has no effect".to_owned()),
            };
            Err(Unreadable { field: field.to_owned(), message })
        }
        _ => return None,
    })
}

/// The text at a place; empty if there is none.
fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn named<T>(value: &Value) -> Result<Read<T>, Unreadable>
where
    T: DeserializeOwned + Serialize + Metadata<Ty = ObjectMeta>,
{
    let read = read::<T>(value)?;
    if read.object.metadata().name.as_deref().is_none_or(str::is_empty) {
        let message = "the object has no name".to_owned();
        return Err(Unreadable { field: "metadata.name".to_owned(), message });
    }
    Ok(read)
}

fn namespaced<T>(value: &Value) -> Result<Read<T>, Unreadable>
where
    T: DeserializeOwned + Serialize + Metadata<Ty = ObjectMeta>,
{
    let mut read = named::<T>(value)?;
    let namespace = &mut read.object.metadata_mut().namespace;
    if namespace.as_deref().is_none_or(str::is_empty) {
        *namespace = Some(DEFAULT_NAMESPACE.to_owned());
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(yaml: &str) -> Option<Result<Document, Unreadable>> {
        read_document(&serde_saphyr::from_str(yaml).unwrap())
    }

    fn read(yaml: &str) -> Document {
        document(yaml).unwrap().unwrap()
    }

    #[test]
    fn what_a_team_has_for_metallb_is_read_as_it_is() {
        let document = read(
            "apiVersion: metallb.io/v1beta1\nkind: IPAddressPool\n\
             metadata:\n  name: first-pool\n  namespace: metallb-system\n\
             spec:\n  addresses:\n  - 192.168.10.0/24\n  - 192.168.9.1-192.168.9.5\n  \
             avoidBuggyIPs: true\n  serviceAllocation:\n    priority: 50\n    namespaces: [a]\n",
        );
        assert_eq!(document.id().to_string(), "IPAddressPool metallb-system/first-pool");
        let Document::Pool(read) = document else { panic!("{document:?}") };
        assert_eq!(read.object.spec.addresses, ["192.168.10.0/24", "192.168.9.1-192.168.9.5"]);
        assert_eq!(read.object.spec.avoid_buggy_ips, Some(true));
        assert_eq!(read.object.spec.service_allocation.unwrap().priority, Some(50));
        assert_eq!(read.unsupported, Vec::<String>::new());
    }

    #[test]
    fn advertisements_and_namespaces_are_read() {
        let document =
            read("{apiVersion: metallb.io/v1beta1, kind: L2Advertisement, metadata: {name: l2}}");
        assert_eq!(document.id().to_string(), "L2Advertisement default/l2");
        let document =
            read("{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {a: b}}}");
        let Document::Namespace(namespace) = document else { panic!("{document:?}") };
        assert_eq!(namespace.metadata.labels.unwrap()["a"], "b");
    }

    #[test]
    fn what_is_of_no_use_names_the_field() {
        for (yaml, expected) in [
            (
                "{apiVersion: metallb.io/v1beta2, kind: BGPPeer, metadata: {name: p, namespace: ns}}",
                "kind: unsupported: addresses are not announced by BGP",
            ),
            (
                "{apiVersion: metallb.io/v1beta1, kind: Thing, metadata: {name: p}}",
                "kind: unsupported: it has no effect",
            ),
            (
                "{apiVersion: metallb.io/v1beta2, kind: IPAddressPool, metadata: {name: p}}",
                "apiVersion: \"metallb.io/v1beta2\" is not supported, metallb.io/v1beta1 is",
            ),
            (
                "{apiVersion: metallb.io/v1beta1, kind: IPAddressPool, metadata: {}}",
                "metadata.name: the object has no name",
            ),
            (
                "{apiVersion: metallb.io/v1beta1, kind: IPAddressPool, metadata: {name: p}, \
                 spec: {addresses: 7}}",
                "spec.addresses: invalid type: integer `7`, expected a sequence",
            ),
        ] {
            let error = document(yaml).unwrap().unwrap_err();
            assert_eq!(error.to_string(), expected, "{yaml}");
        }
    }

    #[test]
    fn everything_else_is_left_to_others() {
        for yaml in [
            "{apiVersion: v1, kind: Service, metadata: {name: a}}",
            "{apiVersion: metallb.io.example.com/v1, kind: IPAddressPool}",
            "{}",
            "[]",
        ] {
            assert_eq!(document(yaml), None, "{yaml}");
        }
    }
}
