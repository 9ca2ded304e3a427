//! The text of one file → objects, and what is wrong with the rest.

use std::collections::BTreeSet;

use k8s_openapi::ListableResource;
use k8s_openapi::Metadata;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::Resource;
use k8s_openapi::api::core::v1::{Namespace, Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::documents;
use super::files::{Format, MAX_FILE_BYTES};
use super::locate::faulty_field;
use super::unknown::unknown_fields;
use super::{DEFAULT_NAMESPACE, Kind, Object, ObjectId};
use crate::problem::quoted;
use crate::vip::manifest::{Document, read_document};
use crate::vip::resources::{IpAddressPool, L2Advertisement, Unreadable};

/// What a file holds.
#[derive(Debug, Default)]
pub(super) struct Contents {
    /// The objects that are in order, each once.
    pub objects: Vec<Entry>,
    /// What is not.
    pub faults: Vec<Fault>,
}

/// An object of a file.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Entry {
    /// One that says what is served.
    Served(Object),
    /// One that addresses are given by.
    Giving(Document),
}

impl Entry {
    /// What identifies it.
    pub fn id(&self) -> ObjectId {
        match self {
            Self::Served(object) => object.id(),
            Self::Giving(document) => document.id(),
        }
    }
}

/// Something in a file that gives no object.
#[derive(Debug)]
pub(super) struct Fault {
    /// `Kind namespace/name`, or where in the file.
    pub object: String,
    /// Path of the field.
    pub field: String,
    /// What is wrong, without the consequence.
    pub message: String,
    /// What the file may have meant to hold here.
    pub lost: Lost,
}

/// What a fault may hide. Decides which earlier objects outlive it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Lost {
    /// Nothing that is used.
    Nothing,
    /// A second version of an object that the file has already.
    Repetition,
    /// This object.
    Object(ObjectId),
    /// Anything: nobody knows what was written there.
    Anything,
}

/// Reads one file.
pub(super) fn parse(text: &str, format: Format) -> Contents {
    let mut reader = Reader::default();
    match format {
        Format::Yaml => reader.yaml(text),
        Format::Json => reader.json(text),
    }
    reader.contents
}

#[derive(Default)]
struct Reader {
    contents: Contents,
    seen: BTreeSet<ObjectId>,
}

impl Reader {
    fn yaml(&mut self, text: &str) {
        for documents::Document { number, first_line, text } in documents::split(text) {
            let place = format!("document {number} (line {first_line})");
            match serde_saphyr::from_str_with_options(text, yaml_options()) {
                Ok(value) => self.value(&place, value, None),
                Err(error) => {
                    let rendered = error.render_with_options(serde_saphyr::render_options! {
                        snippets: serde_saphyr::SnippetMode::Off,
                        line_offset: first_line as u64 - 1,
                    });
                    self.lost(&place, format!("not valid YAML: {rendered}"));
                }
            }
        }
    }

    fn json(&mut self, text: &str) {
        let mut values = serde_json::Deserializer::from_str(text).into_iter();
        let (mut number, mut line, mut start) = (1, 1, 0);
        while let Some(value) = values.next() {
            // The value begins after the white space that follows its predecessor.
            let rest = &text[start..];
            line += count_lines(&rest[..rest.len() - rest.trim_start().len()]);
            let place = format!("document {number} (line {line})");
            match value {
                Ok(value) => self.value(&place, value, None),
                Err(error) => self.lost(&place, format!("not valid JSON: {error}")),
            }
            line += count_lines(text[start..values.byte_offset()].trim_start());
            start = values.byte_offset();
            number += 1;
        }
    }

    /// `item_of`: `apiVersion` and `kind` of the items of a typed list, which need not repeat
    /// them.
    fn value(&mut self, place: &str, mut value: Value, item_of: Option<(&str, &str)>) {
        if value.is_null() {
            return;
        }
        if !value.is_object() {
            return self.lost(place, "not a Kubernetes object".to_owned());
        }
        let text = |key: &str| value.get(key).and_then(Value::as_str).filter(|s| !s.is_empty());
        let inherited = item_of.unzip();
        let api_version = text("apiVersion").or(inherited.0);
        let kind = text("kind").or(inherited.1);
        let (Some(api_version), Some(kind)) = (api_version, kind) else {
            let missing = if kind.is_none() { "kind" } else { "apiVersion" };
            return self.lost(place, format!("has no {missing}"));
        };
        match (api_version, kind) {
            ("v1", "List") => self.list(place, &mut value, None),
            ("v1", Service::LIST_KIND) => self.list_of::<Service>(place, &mut value),
            ("v1", Node::LIST_KIND) => self.list_of::<Node>(place, &mut value),
            (EndpointSlice::API_VERSION, EndpointSlice::LIST_KIND) => {
                self.list_of::<EndpointSlice>(place, &mut value);
            }
            ("v1", Namespace::LIST_KIND) => self.list_of::<Namespace>(place, &mut value),
            (IpAddressPool::API_VERSION, IpAddressPool::LIST_KIND) => {
                self.list_of::<IpAddressPool>(place, &mut value);
            }
            (L2Advertisement::API_VERSION, L2Advertisement::LIST_KIND) => {
                self.list_of::<L2Advertisement>(place, &mut value);
            }
            (Service::API_VERSION, Service::KIND) => {
                self.object::<Service>(place, value, Kind::Service, namespaced::<Service>);
            }
            (EndpointSlice::API_VERSION, EndpointSlice::KIND) => {
                let finish = namespaced::<EndpointSlice>;
                self.object::<EndpointSlice>(place, value, Kind::EndpointSlice, finish);
            }
            (Node::API_VERSION, Node::KIND) => {
                self.object::<Node>(place, value, Kind::Node, |node| node.into());
            }
            _ => {
                let (api_version, kind) = (api_version.to_owned(), kind.to_owned());
                // Items of a typed list need not say what they are.
                value["apiVersion"] = api_version.as_str().into();
                value["kind"] = kind.as_str().into();
                match read_document(&value) {
                    Some(read) => self.giving(place, &value, &kind, read),
                    None => self.other(place, &value, &api_version, &kind),
                }
            }
        }
    }

    /// One of the kinds that addresses are given by.
    fn giving(
        &mut self,
        place: &str,
        value: &Value,
        kind: &str,
        read: Result<Document, Unreadable>,
    ) {
        match read {
            Ok(document) if self.seen.insert(document.id()) => {
                self.contents.objects.push(Entry::Giving(document));
            }
            Ok(document) => {
                let message = format!("a second time in the same file, {place}");
                self.fault(&document.id().to_string(), "", message, Lost::Repetition);
            }
            Err(Unreadable { field, message }) => {
                let kinds = [Kind::IpAddressPool, Kind::L2Advertisement, Kind::Namespace];
                let ours = kinds.into_iter().find(|it| it.as_str() == kind);
                let (object, lost) = match ours.map(|kind| id_of(kind, value)) {
                    Some(Some(id)) => (id.to_string(), Lost::Object(id)),
                    Some(None) => (place.to_owned(), Lost::Anything),
                    None => (named(kind, value, place), Lost::Nothing),
                };
                self.fault(&object, &field, message, lost);
            }
        }
    }

    fn list_of<T: Resource>(&mut self, place: &str, list: &mut Value) {
        self.list(place, list, Some((T::API_VERSION, T::KIND)));
    }

    fn list(&mut self, place: &str, list: &mut Value, item_of: Option<(&str, &str)>) {
        match list.get_mut("items").map(Value::take) {
            None | Some(Value::Null) => {}
            Some(Value::Array(items)) => {
                for (index, item) in items.into_iter().enumerate() {
                    self.value(&format!("{place}, items[{index}]"), item, item_of);
                }
            }
            Some(_) => self.fault(place, "items", "not a list".to_owned(), Lost::Anything),
        }
    }

    fn object<T: DeserializeOwned + Serialize>(
        &mut self,
        place: &str,
        value: Value,
        kind: Kind,
        finish: impl FnOnce(T) -> Object,
    ) {
        let Some(id) = id_of(kind, &value) else {
            let message = format!("the {kind} has no name");
            return self.fault(place, "metadata.name", message, Lost::Anything);
        };
        match T::deserialize(&value) {
            Err(error) => {
                let field = faulty_field::<T>(&value);
                self.fault(&id.to_string(), &field, error.to_string(), Lost::Object(id));
            }
            Ok(_) if !self.seen.insert(id.clone()) => {
                let message = format!("a second time in the same file, {place}");
                self.fault(&id.to_string(), "", message, Lost::Repetition);
            }
            Ok(object) => {
                // Nodes come from clusters, which may be newer; nobody writes their fields here.
                if kind != Kind::Node
                    && let Ok(read) = serde_json::to_value(&object)
                {
                    for field in unknown_fields(&value, &read) {
                        let message = "unknown field".to_owned();
                        self.fault(&id.to_string(), &field, message, Lost::Nothing);
                    }
                }
                self.contents.objects.push(Entry::Served(finish(object)));
            }
        }
    }

    /// A kind that is not used, or one of ours in a version that is not.
    fn other(&mut self, place: &str, value: &Value, api_version: &str, kind: &str) {
        let ours = [
            (Kind::Service, Service::API_VERSION),
            (Kind::EndpointSlice, EndpointSlice::API_VERSION),
            (Kind::Node, Node::API_VERSION),
        ];
        let group = |version: &str| version.rsplit_once('/').map(|(group, _)| group.to_owned());
        let ours = ours.into_iter().find(|(k, _)| k.to_string() == kind);
        if let Some((kind, expected)) = ours
            && group(expected) == group(api_version)
            && let Some(id) = id_of(kind, value)
        {
            let message = format!("{} is not supported, {expected} is", quoted(api_version));
            return self.fault(&id.to_string(), "apiVersion", message, Lost::Object(id));
        }
        let hint = match kind {
            "Endpoints" => ", write an EndpointSlice instead",
            _ => "",
        };
        let message =
            format!("kind {} of {} is not used here{hint}", quoted(kind), quoted(api_version));
        let object = named(kind, value, place);
        self.fault(&object, "kind", message, Lost::Nothing);
    }

    fn lost(&mut self, place: &str, message: String) {
        self.fault(place, "", message, Lost::Anything);
    }

    fn fault(&mut self, object: &str, field: &str, message: String, lost: Lost) {
        let (object, field) = (object.to_owned(), field.to_owned());
        self.contents.faults.push(Fault { object, field, message, lost });
    }
}

fn count_lines(text: &str) -> usize {
    text.matches('\n').count()
}

/// The id of an object that may be undecodable elsewhere.
fn id_of(kind: Kind, value: &Value) -> Option<ObjectId> {
    let text = |path| value.pointer(path).and_then(Value::as_str);
    let name = text("/metadata/name").filter(|name| !name.is_empty())?;
    Some(ObjectId::new(kind, text("/metadata/namespace"), name))
}

/// An object of a kind that is not used, for people.
fn named(kind: &str, value: &Value, place: &str) -> String {
    let metadata = |key| value.pointer(key).and_then(Value::as_str);
    match (metadata("/metadata/namespace"), metadata("/metadata/name")) {
        (Some(namespace), Some(name)) => format!("{kind} {namespace}/{name}"),
        (None, Some(name)) => format!("{kind} {name}"),
        (_, None) => place.to_owned(),
    }
}

fn namespaced<T>(mut object: T) -> Object
where
    T: Metadata<Scope = NamespaceResourceScope, Ty = ObjectMeta> + Into<Object>,
{
    let namespace = &mut object.metadata_mut().namespace;
    if namespace.as_deref().is_none_or(str::is_empty) {
        *namespace = Some(DEFAULT_NAMESPACE.to_owned());
    }
    object.into()
}

/// As Kubernetes reads YAML, except that `yes` and `on` stay text: they are more often names than
/// truth values. The size of the file bounds what a document can hold, so that a large List is no
/// fault; what references can add to it is bounded.
fn yaml_options() -> serde_saphyr::Options {
    let most = MAX_FILE_BYTES as usize;
    serde_saphyr::options! {
        strict_booleans: true,
        with_snippet: false,
        emit_comments: false,
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: 100_000 },
        budget: serde_saphyr::budget! {
            max_events: most,
            max_nodes: most,
            max_buffered_comment_events: most,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(contents: &Contents) -> Vec<String> {
        contents.objects.iter().map(|object| object.id().to_string()).collect()
    }

    /// Object, field and message of every fault.
    fn faults(contents: &Contents) -> Vec<(&str, &str, &str)> {
        let mut parts = Vec::new();
        for Fault { object, field, message, lost: _ } in &contents.faults {
            parts.push((object.as_str(), field.as_str(), message.as_str()));
        }
        parts
    }

    fn yaml(text: &str) -> Contents {
        parse(text, Format::Yaml)
    }

    #[test]
    fn documents_and_lists_give_objects() {
        let contents = yaml(
            "apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: x}\n---\n\
             apiVersion: v1\nkind: List\nitems:\n\
             - {apiVersion: v1, kind: Node, metadata: {name: n}}\n\
             - {apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: s}}\n---\n\
             apiVersion: v1\nkind: ServiceList\nitems: [{metadata: {name: b}}]\n---\n\
             apiVersion: discovery.k8s.io/v1\nkind: EndpointSliceList\n\
             items: [{metadata: {name: t, namespace: x}}]\n---\n\
             apiVersion: v1\nkind: NodeList\nitems: [{metadata: {name: m}}]\n---\n\
             apiVersion: v1\nkind: List\n",
        );
        assert_eq!(faults(&contents), []);
        assert_eq!(
            ids(&contents),
            [
                "Service x/a",
                "Node n",
                "EndpointSlice default/s",
                "Service default/b",
                "EndpointSlice x/t",
                "Node m",
            ],
        );
        let Entry::Served(Object::Service(service)) = &contents.objects[3] else { panic!() };
        assert_eq!(service.metadata.namespace.as_deref(), Some("default"));
    }

    #[test]
    fn pools_and_namespaces_are_read_and_what_is_wrong_with_them_is_named() {
        let contents = yaml(
            "apiVersion: metallb.io/v1beta1\nkind: IPAddressPool\nmetadata: {name: a, namespace: x}\n\
             spec: {addresses: [192.0.2.0/30]}\n---\n\
             apiVersion: metallb.io/v1beta1\nkind: L2AdvertisementList\n\
             items: [{metadata: {name: l2}}]\n---\n\
             apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n",
        );
        assert_eq!(faults(&contents), []);
        let expected = ["IPAddressPool x/a", "L2Advertisement default/l2", "Namespace shop"];
        assert_eq!(ids(&contents), expected);
        for (text, object, field, lost) in [
            (
                "{apiVersion: metallb.io/v1beta1, kind: IPAddressPool, metadata: {name: a}, spec: 7}",
                "IPAddressPool default/a",
                "spec",
                Lost::Object(ObjectId::new(Kind::IpAddressPool, None, "a")),
            ),
            (
                "{apiVersion: metallb.io/v1beta1, kind: IPAddressPool}",
                "document 1 (line 1)",
                "metadata.name",
                Lost::Anything,
            ),
            (
                "{apiVersion: metallb.io/v1beta2, kind: BGPPeer, metadata: {name: p}}",
                "BGPPeer p",
                "kind",
                Lost::Nothing,
            ),
        ] {
            let contents = yaml(text);
            let [fault] = &contents.faults[..] else { panic!("{text}: {contents:?}") };
            assert_eq!((fault.object.as_str(), fault.field.as_str()), (object, field), "{text}");
            assert_eq!(fault.lost, lost, "{text}");
        }
    }

    #[test]
    fn json_files_may_hold_several_values() {
        let contents = parse(
            "{\"apiVersion\":\"v1\",\"kind\":\"Node\",\"metadata\":{\"name\":\"n\"}}\n\n{\"x\":",
            Format::Json,
        );
        assert_eq!(ids(&contents), ["Node n"]);
        let [("document 2 (line 3)", "", message)] = faults(&contents)[..] else {
            panic!("{contents:?}")
        };
        assert!(message.starts_with("not valid JSON: EOF"), "{message}");
    }

    #[test]
    fn a_broken_document_leaves_the_others_and_names_its_line() {
        let contents = yaml(
            "apiVersion: v1\nkind: Node\nmetadata: {name: n}\n---\na: [\nb: 2\n---\n\
             apiVersion: v1\nkind: Node\nmetadata: {name: m}\n",
        );
        assert_eq!(ids(&contents), ["Node n", "Node m"]);
        let [("document 2 (line 5)", "", message)] = faults(&contents)[..] else {
            panic!("{contents:?}")
        };
        assert!(message.starts_with("not valid YAML: "), "{message}");
        assert!(message.contains("line 5"), "{message}");
        assert!(!message.contains('\n'), "{message}");
    }

    #[test]
    fn a_wrong_type_names_object_and_field() {
        let contents = yaml(
            "apiVersion: v1\nkind: Service\nmetadata: {name: a}\n\
             spec: {ports: [{port: 80}, {port: web}]}\n",
        );
        assert_eq!(contents.objects, []);
        let [("Service default/a", "spec.ports[1].port", message)] = faults(&contents)[..] else {
            panic!("{contents:?}")
        };
        assert!(message.contains("invalid type"), "{message}");
        let id = ObjectId::new(Kind::Service, None, "a");
        assert_eq!(contents.faults[0].lost, Lost::Object(id));
    }

    #[test]
    fn what_is_not_used_is_named() {
        let nothing = "is not used here";
        for (text, object, field, part, lost) in [
            (
                "{apiVersion: apps/v1, kind: Deployment, metadata: {name: d, namespace: x}}",
                "Deployment x/d",
                "kind",
                nothing,
                Lost::Nothing,
            ),
            (
                "{apiVersion: v1, kind: Endpoints, metadata: {name: d}}",
                "Endpoints d",
                "kind",
                "EndpointSlice instead",
                Lost::Nothing,
            ),
            (
                "{apiVersion: serving.knative.dev/v1, kind: Service, metadata: {name: d}}",
                "Service d",
                "kind",
                nothing,
                Lost::Nothing,
            ),
            (
                "{apiVersion: discovery.k8s.io/v1beta1, kind: EndpointSlice, metadata: {name: d}}",
                "EndpointSlice default/d",
                "apiVersion",
                "discovery.k8s.io/v1 is",
                Lost::Object(ObjectId::new(Kind::EndpointSlice, None, "d")),
            ),
            ("{kind: Service}", "document 1 (line 1)", "", "no apiVersion", Lost::Anything),
            ("{apiVersion: v1}", "document 1 (line 1)", "", "no kind", Lost::Anything),
            ("[]", "document 1 (line 1)", "", "not a Kubernetes object", Lost::Anything),
            (
                "{apiVersion: v1, kind: List, items: 3}",
                "document 1 (line 1)",
                "items",
                "not a list",
                Lost::Anything,
            ),
            (
                "{apiVersion: v1, kind: List, items: [{apiVersion: v1, kind: Service}]}",
                "document 1 (line 1), items[0]",
                "metadata.name",
                "no name",
                Lost::Anything,
            ),
        ] {
            let contents = yaml(text);
            let [fault] = &contents.faults[..] else { panic!("{text}: {contents:?}") };
            assert_eq!((fault.object.as_str(), fault.field.as_str()), (object, field), "{text}");
            assert!(fault.message.contains(part), "{text}: {}", fault.message);
            assert_eq!(fault.lost, lost, "{text}");
        }
    }

    #[test]
    fn a_misspelt_field_is_named_and_the_object_is_used() {
        let contents = yaml("{apiVersion: v1, kind: Service, metadata: {name: a}, specs: {}}");
        assert_eq!(ids(&contents), ["Service default/a"]);
        assert_eq!(faults(&contents), [("Service default/a", "specs", "unknown field")]);
        assert_eq!(contents.faults[0].lost, Lost::Nothing);
    }

    #[test]
    fn the_first_of_two_equal_objects_in_a_file_counts() {
        let node = "apiVersion: v1\nkind: Node\nmetadata: {name: n}\n";
        let contents = yaml(&format!("{node}---\n{node}"));
        assert_eq!(ids(&contents), ["Node n"]);
        assert_eq!(contents.faults[0].lost, Lost::Repetition);
        assert!(contents.faults[0].message.contains("document 2 (line 5)"));
    }

    #[test]
    fn words_that_old_yaml_took_for_truth_values_stay_names() {
        let contents = yaml("apiVersion: v1\nkind: Node\nmetadata: {name: no}\n");
        assert_eq!(ids(&contents), ["Node no"]);
    }

    #[test]
    fn a_reference_bomb_is_refused() {
        let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..12 {
            let refs = vec![format!("*a{}", level - 1); 10].join(", ");
            text.push_str(&format!("a{level}: &a{level} [{refs}]\n"));
        }
        let contents = yaml(&text);
        assert_eq!(contents.faults.len(), 1);
        assert!(contents.faults[0].message.starts_with("not valid YAML"));
    }

    #[test]
    fn a_long_list_and_long_comments_are_no_fault() {
        let comments = "# words\n".repeat(2_000);
        let items = "x, ".repeat(300_000);
        let node = "apiVersion: v1\nkind: Node\nmetadata: {name: n}\n";
        let contents = yaml(&format!("{comments}{node}{comments}x: [{items}]\n"));
        assert_eq!(faults(&contents), []);
        assert_eq!(contents.objects.len(), 1);
    }
}
