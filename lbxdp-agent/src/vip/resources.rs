//! MetalLB's own custom resources, so that what a team has written for it is read as it is.
//!
//! Source: the schemas of `metallb.io/v1beta1`. `read` is the only way in: it names what is written and
//! not known, which a decoder would pass over in silence.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::{ListableResource, Metadata, NamespaceResourceScope, Resource};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::source::locate::faulty_field;
use crate::source::unknown::unknown_fields;

/// Group of everything here.
pub const GROUP: &str = "metallb.io";
/// Group and version of everything here.
pub const API_VERSION: &str = "metallb.io/v1beta1";

/// Addresses that may be given to Services.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IpAddressPool {
    /// Name, namespace, labels.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What is wanted.
    #[serde(default)]
    pub spec: IpAddressPoolSpec,
    /// What is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<IpAddressPoolStatus>,
}

/// What an [`IpAddressPool`] wants.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct IpAddressPoolSpec {
    /// `a/b` or `a-b` each.
    pub addresses: Vec<String>,
    /// Whether Services that do not ask for it get addresses of it. Yes, if absent.
    pub auto_assign: Option<bool>,
    /// Whether IPv4 addresses that end in 0 or 255 are left out. No, if absent.
    #[serde(rename = "avoidBuggyIPs")]
    pub avoid_buggy_ips: Option<bool>,
    /// Which Services may have addresses of it. All, if absent.
    pub service_allocation: Option<ServiceAllocation>,
}

/// Which Services may have addresses of a pool. Several lists must agree; a list that is absent or
/// empty admits everybody.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceAllocation {
    /// Pools with a lower number come first, 0 and absent last.
    pub priority: Option<i32>,
    /// Those in one of these namespaces,
    pub namespaces: Option<Vec<String>>,
    /// or in one that one of these selects.
    pub namespace_selectors: Option<Vec<LabelSelector>>,
    /// Those that one of these selects.
    pub service_selectors: Option<Vec<LabelSelector>>,
}

/// What an [`IpAddressPool`] has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpAddressPoolStatus {
    /// IPv4 addresses that Services have.
    #[serde(rename = "assignedIPv4", default)]
    pub assigned_ipv4: i64,
    /// IPv6 addresses that Services have.
    #[serde(rename = "assignedIPv6", default)]
    pub assigned_ipv6: i64,
    /// IPv4 addresses that Services may still get.
    #[serde(rename = "availableIPv4", default)]
    pub available_ipv4: i64,
    /// IPv6 addresses that Services may still get, [`i64::MAX`] if they are more.
    #[serde(rename = "availableIPv6", default)]
    pub available_ipv6: i64,
}

/// Which addresses are announced on the local network, and where.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct L2Advertisement {
    /// Name, namespace.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What is wanted.
    #[serde(default)]
    pub spec: L2AdvertisementSpec,
}

/// What an [`L2Advertisement`] wants. Whatever is absent or empty restricts nothing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct L2AdvertisementSpec {
    /// Addresses of these pools,
    pub ip_address_pools: Option<Vec<String>>,
    /// or of those that one of these selects.
    pub ip_address_pool_selectors: Option<Vec<LabelSelector>>,
    /// From nodes that one of these selects.
    pub node_selectors: Option<Vec<LabelSelector>>,
    /// By the devices of these names.
    pub interfaces: Option<Vec<String>>,
    /// Of Services that one of these selects.
    pub service_selectors: Option<Vec<LabelSelector>>,
    /// From these nodes rather than from others.
    pub preferred_node_selectors: Option<Vec<PreferredNodeSelector>>,
}

/// Nodes that are liked better.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PreferredNodeSelector {
    /// By how much, 1 to 100. Those of all that select a node are added up.
    pub weight: i32,
    /// Which.
    pub preference: LabelSelector,
}

macro_rules! kind {
    ($type:ty, $kind:literal, $plural:literal) => {
        impl Resource for $type {
            const API_VERSION: &'static str = API_VERSION;
            const GROUP: &'static str = GROUP;
            const KIND: &'static str = $kind;
            const VERSION: &'static str = "v1beta1";
            const URL_PATH_SEGMENT: &'static str = $plural;
            type Scope = NamespaceResourceScope;
        }

        impl ListableResource for $type {
            const LIST_KIND: &'static str = concat!($kind, "List");
        }

        impl Metadata for $type {
            type Ty = ObjectMeta;

            fn metadata(&self) -> &ObjectMeta {
                &self.metadata
            }

            fn metadata_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }
    };
}

kind!(IpAddressPool, "IPAddressPool", "ipaddresspools");
kind!(L2Advertisement, "L2Advertisement", "l2advertisements");

/// An object and what of it is not understood.
#[derive(Clone, Debug, PartialEq)]
pub struct Read<T> {
    /// The object.
    pub object: T,
    /// Fields that are written and that nothing here knows. They have no effect.
    pub unsupported: Vec<String>,
}

/// Why an object cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct Unreadable {
    /// Path of the field.
    pub field: String,
    /// What is wrong with it.
    pub message: String,
}

/// Reads an object of one of the kinds here. Names the field that makes it unreadable.
pub fn read<T: DeserializeOwned + Serialize>(value: &Value) -> Result<Read<T>, Unreadable> {
    let object = T::deserialize(value).map_err(|error| Unreadable {
        field: faulty_field::<T>(value),
        message: error.to_string(),
    })?;
    let read = serde_json::to_value(&object).unwrap_or_default();
    let mut unsupported = unknown_fields(value, &read);
    // What says the kind was looked at before, and a status wants nothing.
    unsupported.retain(|field| {
        let root = field.split('.').next().unwrap_or_default();
        !matches!(root, "apiVersion" | "kind" | "status")
    });
    Ok(Read { object, unsupported })
}

/// Kinds of MetalLB's that have no effect, and what they are for: whoever moves over is told.
pub fn unsupported_kind(kind: &str) -> Option<&'static str> {
    Some(match kind {
        "BGPAdvertisement" | "BGPPeer" | "BFDProfile" | "Community" => {
            "addresses are not announced by BGP"
        }
        "AddressPool" => "write an IPAddressPool and an L2Advertisement instead",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pool_with_every_field_is_read_and_written_alike() {
        let pool = json!({
            "metadata": {"name": "a", "namespace": "metallb-system", "labels": {"x": "y"}},
            "spec": {
                "addresses": ["192.0.2.0/24", "2001:db8::1-2001:db8::9"],
                "autoAssign": false,
                "avoidBuggyIPs": true,
                "serviceAllocation": {
                    "priority": 7,
                    "namespaces": ["shop"],
                    "namespaceSelectors": [{"matchLabels": {"team": "a"}}],
                    "serviceSelectors": [
                        {"matchExpressions": [{"key": "k", "operator": "In", "values": ["v"]}]},
                    ],
                },
            },
            "status": {
                "assignedIPv4": 1, "assignedIPv6": 2, "availableIPv4": 3, "availableIPv6": 4,
            },
        });
        let Read { object, unsupported } = read::<IpAddressPool>(&pool).unwrap();
        assert_eq!(unsupported, Vec::<String>::new());
        assert_eq!(serde_json::to_value(&object).unwrap(), pool);
        assert_eq!(object.spec.avoid_buggy_ips, Some(true));
    }

    #[test]
    fn an_advertisement_with_every_field_is_read_and_written_alike() {
        let selectors = json!([{"matchLabels": {"a": "b"}}]);
        let advertisement = json!({
            "metadata": {"name": "a", "namespace": "metallb-system"},
            "spec": {
                "ipAddressPools": ["a"],
                "ipAddressPoolSelectors": selectors,
                "nodeSelectors": selectors,
                "interfaces": ["eth0"],
                "serviceSelectors": selectors,
                "preferredNodeSelectors": [{"weight": 9, "preference": {"matchLabels": {}}}],
            },
        });
        let Read { object, unsupported } = read::<L2Advertisement>(&advertisement).unwrap();
        assert_eq!(unsupported, Vec::<String>::new());
        assert_eq!(serde_json::to_value(&object).unwrap(), advertisement);
        let bare = json!({"metadata": {"name": "a"}});
        assert_eq!(read::<L2Advertisement>(&bare).unwrap().object.spec, Default::default());
    }

    #[test]
    fn what_is_not_known_is_named_and_the_rest_is_used() {
        let pool = json!({
            "apiVersion": API_VERSION, "kind": "IPAddressPool",
            "metadata": {"name": "a", "managedFields": [{"manager": "kubectl"}]},
            "spec": {
                "addresses": ["192.0.2.0/24"], "protocol": "layer2", "autoAssing": false,
                "serviceAllocation": {"namespaceSelector": {}},
            },
            "status": {"later": 1},
        });
        let Read { object, unsupported } = read::<IpAddressPool>(&pool).unwrap();
        let expected =
            ["spec.autoAssing", "spec.protocol", "spec.serviceAllocation.namespaceSelector"];
        assert_eq!(unsupported, expected);
        assert_eq!(object.spec.addresses, ["192.0.2.0/24"]);
    }

    #[test]
    fn what_cannot_be_read_names_its_field() {
        for (spec, field, part) in [
            (json!({"addresses": "192.0.2.0/24"}), "spec.addresses", "invalid type"),
            (json!({"addresses": [7]}), "spec.addresses[0]", "invalid type"),
            (json!({"addresses": [], "autoAssign": "no"}), "spec.autoAssign", "invalid type"),
            (json!(7), "spec", "invalid type"),
        ] {
            let pool = json!({"metadata": {"name": "a"}, "spec": spec});
            let error = read::<IpAddressPool>(&pool).unwrap_err();
            assert!(error.message.contains(part), "{pool}: {error}");
            assert_eq!(error.field, field, "{pool}");
        }
    }

    #[test]
    fn kinds_that_have_no_effect_are_known() {
        assert!(unsupported_kind("BGPPeer").is_some());
        assert_eq!(unsupported_kind("IPAddressPool"), None);
    }
    /// An object that has every field of a schema.
    fn example(schema: &Value) -> Value {
        match schema["type"].as_str().unwrap() {
            "object" => {
                let none = serde_json::Map::new();
                let fields = schema["properties"].as_object().unwrap_or(&none).iter();
                let mut fields: serde_json::Map<_, _> =
                    fields.map(|(name, schema)| (name.clone(), example(schema))).collect();
                if let Some(values) = schema.get("additionalProperties") {
                    fields.insert("any".to_owned(), example(values));
                }
                fields.into()
            }
            "array" => json!([example(&schema["items"])]),
            "string" => json!("x"),
            "boolean" => json!(true),
            "integer" => json!(1),
            other => panic!("{other}"),
        }
    }

    /// The definitions that the chart brings and the types here have the same fields.
    #[test]
    fn definitions_and_types_agree() {
        fn check<T: DeserializeOwned + Serialize + Default + ListableResource>(definition: &str) {
            let definition: Value = serde_saphyr::from_str(definition).unwrap();
            let names = &definition["spec"]["names"];
            let expected = json!({
                "kind": T::KIND, "listKind": T::LIST_KIND, "plural": T::URL_PATH_SEGMENT,
                "singular": T::KIND.to_lowercase(),
            });
            assert_eq!(names, &expected);
            assert_eq!(definition["spec"]["group"], T::GROUP);
            let version = &definition["spec"]["versions"][0];
            assert_eq!(version["name"], T::VERSION);
            let spec = example(&version["schema"]["openAPIV3Schema"]["properties"]["spec"]);
            let object = json!({"metadata": {}, "spec": spec});
            let Read { object, unsupported } = read::<T>(&object).unwrap();
            assert_eq!(unsupported, Vec::<String>::new());
            assert_eq!(serde_json::to_value(object).unwrap()["spec"], spec);
            // What the types have and the example lacks would be null there.
            let bare = serde_json::to_value(T::default()).unwrap();
            let fields =
                |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
            assert_eq!(fields(&bare["spec"]), fields(&spec));
        }
        check::<IpAddressPool>(include_str!("../../../deploy/helm/lbxdp/crds/ipaddresspools.yaml"));
        check::<L2Advertisement>(include_str!(
            "../../../deploy/helm/lbxdp/crds/l2advertisements.yaml"
        ));
    }
}
