//! Objects as they are kept: as JSON, which is a tenth of what they take in memory otherwise, and
//! compressed, which is less than half of that.

use std::sync::Arc;

use lz4_flex::block::{compress_prepend_size, decompress_size_prepended};

use crate::source::{Kind, Object};

/// An object. Equal ones are packed alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Packed(Arc<[u8]>);

impl Packed {
    pub(super) fn new(object: &Object) -> Self {
        Self(compress_prepend_size(&object.to_json()).into())
    }

    /// The object's JSON.
    pub(super) fn json(&self) -> Vec<u8> {
        // What this program packed it unpacks.
        decompress_size_prepended(&self.0).unwrap_or_default()
    }

    /// The object, which is of this kind.
    pub(super) fn object(&self, kind: Kind) -> Option<Object> {
        Object::from_json(kind, &self.json()).ok()
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

    use super::*;

    #[test]
    fn an_object_comes_back_from_less_than_half_of_its_size() {
        let endpoint = |number: u8| Endpoint {
            addresses: vec![format!("10.1.2.{number}")],
            node_name: Some(format!("node-{number}")),
            ..Endpoint::default()
        };
        let mut slice = EndpointSlice::default();
        slice.metadata.name = Some("web-x7k2p".to_owned());
        slice.endpoints = Some((0..20).map(endpoint).collect());
        let object = Object::from(slice);
        let packed = Packed::new(&object);
        assert_eq!(packed, Packed::new(&object.clone()));
        assert_eq!(packed.object(Kind::EndpointSlice), Some(object.clone()));
        assert_eq!(packed.json(), object.to_json());
        assert!(packed.0.len() * 2 < object.to_json().len(), "{}", packed.0.len());
    }
}
