//! Where Services, EndpointSlices and Nodes come from. A source hands over whole Kubernetes
//! objects and where it has them from; what they mean is the index's business.

mod documents;
mod files;
mod give;
pub mod kube;
pub(crate) mod locate;
pub mod manifests;
mod parse;
pub(crate) mod unknown;
mod watch;
mod write;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::SystemTime;

use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use tokio::sync::watch as channel;

use crate::layer2::{Resources, Seen};
use crate::members::LeaseLink;
use crate::model::Problem;
use crate::vip::Tally;

pub use give::{Giver, Options as GiverOptions};
pub use watch::{Watcher, watch};
pub(crate) use write::write_atomically;

/// Namespace of namespaced objects that name none.
pub const DEFAULT_NAMESPACE: &str = "default";

/// The kinds that objects have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// `v1` Service.
    Service,
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice,
    /// `v1` Node.
    Node,
    /// `v1` Namespace.
    Namespace,
    /// `networking.k8s.io/v1` ServiceCIDR.
    ServiceCidr,
    /// `metallb.io/v1beta1` IPAddressPool.
    IpAddressPool,
    /// `metallb.io/v1beta1` L2Advertisement.
    L2Advertisement,
}

impl Kind {
    /// The kinds that say what is served. A source delivers these; the others are for those who give
    /// addresses to Services.
    pub const SERVED: [Self; 3] = [Self::Service, Self::EndpointSlice, Self::Node];
    const EVERY: [Self; 7] = [
        Self::Service,
        Self::EndpointSlice,
        Self::Node,
        Self::Namespace,
        Self::ServiceCidr,
        Self::IpAddressPool,
        Self::L2Advertisement,
    ];

    /// The name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Node => "Node",
            Self::Namespace => "Namespace",
            Self::ServiceCidr => "ServiceCIDR",
            Self::IpAddressPool => "IPAddressPool",
            Self::L2Advertisement => "L2Advertisement",
        }
    }

    /// Group and version.
    pub const fn api_version(self) -> &'static str {
        match self {
            Self::Service | Self::Node | Self::Namespace => "v1",
            Self::EndpointSlice => "discovery.k8s.io/v1",
            Self::ServiceCidr => "networking.k8s.io/v1",
            Self::IpAddressPool | Self::L2Advertisement => "metallb.io/v1beta1",
        }
    }

    /// Whether its objects belong to namespaces.
    pub const fn is_namespaced(self) -> bool {
        !matches!(self, Self::Node | Self::Namespace | Self::ServiceCidr)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What identifies an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObjectId {
    /// Kind.
    pub kind: Kind,
    /// Namespace, [`DEFAULT_NAMESPACE`] if the object names none; empty for kinds without.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

impl ObjectId {
    /// The id of an object with this metadata.
    pub fn of(kind: Kind, metadata: &ObjectMeta) -> Self {
        let name = metadata.name.as_deref().unwrap_or_default();
        Self::new(kind, metadata.namespace.as_deref(), name)
    }

    /// Fills in the default namespace, and leaves it away for kinds without namespaces.
    pub fn new(kind: Kind, namespace: Option<&str>, name: &str) -> Self {
        let namespace = match kind.is_namespaced() {
            false => "",
            true => namespace.filter(|ns| !ns.is_empty()).unwrap_or(DEFAULT_NAMESPACE),
        };
        Self { kind, namespace: namespace.into(), name: name.into() }
    }
}

impl FromStr for ObjectId {
    type Err = NotAnObject;

    /// The inverse of [`fmt::Display`].
    fn from_str(text: &str) -> Result<Self, NotAnObject> {
        let (kind, name) = text.split_once(' ').ok_or(NotAnObject)?;
        let kind = *Kind::EVERY.iter().find(|it| it.as_str() == kind).ok_or(NotAnObject)?;
        let (namespace, name) = match (kind.is_namespaced(), name.split_once('/')) {
            (false, None) => ("", name),
            (true, Some(parts)) => parts,
            _ => return Err(NotAnObject),
        };
        Ok(Self { kind, namespace: namespace.into(), name: name.into() })
    }
}

/// What a text that does not identify an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a kind with a name")]
pub struct NotAnObject;

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, namespace, name } = self;
        match kind.is_namespaced() {
            false => write!(f, "{kind} {name}"),
            true => write!(f, "{kind} {namespace}/{name}"),
        }
    }
}

/// An object of a kind that is served. Shared, because every snapshot holds all of them.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// A Service.
    Service(Arc<Service>),
    /// An EndpointSlice.
    EndpointSlice(Arc<EndpointSlice>),
    /// A Node.
    Node(Arc<Node>),
}

impl Object {
    /// Its kind.
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Service(_) => Kind::Service,
            Self::EndpointSlice(_) => Kind::EndpointSlice,
            Self::Node(_) => Kind::Node,
        }
    }

    /// What identifies it.
    pub fn id(&self) -> ObjectId {
        ObjectId::of(self.kind(), self.metadata())
    }

    /// Its metadata.
    pub fn metadata(&self) -> &ObjectMeta {
        match self {
            Self::Service(service) => &service.metadata,
            Self::EndpointSlice(slice) => &slice.metadata,
            Self::Node(node) => &node.metadata,
        }
    }
}

impl Object {
    /// The object alone, without what says its kind. The same object gives the same bytes.
    pub(crate) fn to_json(&self) -> Vec<u8> {
        let json = match self {
            Self::Service(service) => serde_json::to_vec(service),
            Self::EndpointSlice(slice) => serde_json::to_vec(slice),
            Self::Node(node) => serde_json::to_vec(node),
        };
        // Keys are strings and numbers are integers: there is nothing that JSON cannot say.
        json.unwrap_or_default()
    }

    /// What [`Self::to_json`] made of an object of this kind.
    pub(crate) fn from_json(kind: Kind, json: &[u8]) -> serde_json::Result<Self> {
        Ok(match kind {
            Kind::Service => Self::Service(serde_json::from_slice(json)?),
            Kind::EndpointSlice => Self::EndpointSlice(serde_json::from_slice(json)?),
            Kind::Node => Self::Node(serde_json::from_slice(json)?),
            other => return Err(serde::de::Error::custom(format_args!("{other}s are not kept"))),
        })
    }
}

impl From<Service> for Object {
    fn from(service: Service) -> Self {
        Self::Service(Arc::new(service))
    }
}

impl From<EndpointSlice> for Object {
    fn from(slice: EndpointSlice) -> Self {
        Self::EndpointSlice(Arc::new(slice))
    }
}

impl From<Node> for Object {
    fn from(node: Node) -> Self {
        Self::Node(Arc::new(node))
    }
}

/// Something and where it comes from.
#[derive(Clone, Debug, PartialEq)]
pub struct Sourced<T> {
    /// File name, or another origin; empty where it has none.
    pub origin: String,
    /// The thing.
    pub object: T,
}

impl<T> Sourced<T> {
    /// Says where `object` comes from.
    pub fn new(origin: impl Into<String>, object: T) -> Self {
        Self { origin: origin.into(), object }
    }
}

/// One difference to what a source had before.
#[derive(Clone, Debug, PartialEq)]
pub enum Delta {
    /// An object is new, or not what it was.
    Apply {
        /// It.
        object: Sourced<Object>,
        /// When that happened which it changed for, if it says so.
        triggered: Option<SystemTime>,
    },
    /// An object is gone.
    Delete(ObjectId),
}

/// What a source tells.
#[derive(Clone, Debug)]
pub enum Change {
    /// Everything it has.
    All(Snapshot),
    /// What differs from before.
    Some {
        /// In the order in which it happened.
        deltas: Vec<Delta>,
        /// All problems there are now.
        problems: Vec<Problem>,
    },
}

/// Where the objects are to come from.
#[derive(Clone, Debug)]
pub enum Options {
    /// From the files of this directory, and addresses from the pools there.
    Manifests(PathBuf, GiverOptions),
    /// From the Kubernetes API.
    Kube(kube::Options),
}

/// Where the objects come from.
#[derive(Debug)]
pub enum Source {
    /// From files. Watched before they are first read, so that nothing falls in between.
    Manifests(Box<(Watcher, manifests::Manifests)>),
    /// From the Kubernetes API.
    Kube(Box<kube::Kube>),
}

impl Source {
    /// Begins. What it has at once, if anything, is the first change.
    pub async fn start(
        options: &Options,
        node_name: &str,
    ) -> anyhow::Result<(Self, Option<Change>)> {
        Ok(match options {
            Options::Manifests(dir, giver) => {
                let watcher = watch(dir);
                let giver = Giver::new(giver.clone());
                let mut manifests = manifests::Manifests::open(dir)?.giving(giver);
                let first = Change::All(manifests.load());
                (Self::Manifests(Box::new((watcher, manifests))), Some(first))
            }
            Options::Kube(options) => {
                (Self::Kube(Box::new(kube::Kube::start(options, node_name).await?)), None)
            }
        })
    }

    /// Waits for a change. Cancelling it loses nothing.
    pub async fn changed(&mut self) -> Change {
        match self {
            Self::Manifests(parts) => {
                let (watcher, manifests) = parts.as_mut();
                loop {
                    watcher.changed().await;
                    if let Some(snapshot) = manifests.refresh() {
                        return Change::All(snapshot);
                    }
                }
            }
            Self::Kube(kube) => kube.changed().await,
        }
    }

    /// Why nothing has come yet.
    pub fn waiting(&self) -> String {
        match self {
            Self::Manifests(_) => "the manifests were not read".to_owned(),
            Self::Kube(kube) => kube.waiting(),
        }
    }

    /// The connection to the API, if there is to be one.
    pub fn kube_status(&self) -> Option<Arc<kube::Status>> {
        match self {
            Self::Manifests(_) => None,
            Self::Kube(kube) => Some(kube.status()),
        }
    }

    /// What there is to see of the addresses that Services are given.
    pub fn tally(&self) -> Arc<Tally> {
        match self {
            Self::Manifests(parts) => parts.1.tally(),
            Self::Kube(kube) => kube.tally(),
        }
    }

    /// From where which addresses are announced; `None` until it is known.
    pub fn resources(&self) -> channel::Receiver<Option<Arc<Resources>>> {
        match self {
            Self::Manifests(parts) => parts.1.resources(),
            Self::Kube(kube) => kube.resources(),
        }
    }

    /// Where problems of objects are told, if anywhere.
    pub fn events(&self) -> Option<kube::Events> {
        match self {
            Self::Manifests(_) => None,
            Self::Kube(kube) => Some(kube.events()),
        }
    }

    /// Where to say what this node announces: the API is told, if there is to be one.
    pub fn announced(&self) -> channel::Sender<Arc<Seen>> {
        match self {
            Self::Manifests(_) => channel::channel(Arc::default()).0,
            Self::Kube(kube) => kube.announced(),
        }
    }

    /// To the leases of nodes, if there is to be an API; the first call only.
    pub fn leases(&mut self) -> Option<LeaseLink> {
        match self {
            Self::Manifests(_) => None,
            Self::Kube(kube) => kube.leases(),
        }
    }

    /// Before the end.
    pub async fn finish(&mut self) {
        if let Self::Kube(kube) = self {
            kube.finish().await;
        }
    }
}

/// Everything a source has at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// The objects, each once, sorted by id.
    pub objects: Vec<Sourced<Object>>,
    /// What could not be read or is not used.
    pub problems: Vec<Problem>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_as_it_is_written() {
        for id in [
            ObjectId::new(Kind::Service, Some("shop"), "web"),
            ObjectId::new(Kind::EndpointSlice, None, "web-1"),
            ObjectId::new(Kind::Node, None, "node-1.example"),
            ObjectId::new(Kind::IpAddressPool, Some("lb"), "first"),
            ObjectId::new(Kind::Namespace, None, "shop"),
        ] {
            assert_eq!(id.to_string().parse(), Ok(id));
        }
        for text in ["", "Service", "Service web", "Node a/b", "Pod a/b", "document 3 of x.yaml"] {
            assert_eq!(text.parse::<ObjectId>(), Err(NotAnObject), "{text}");
        }
    }
}
