//! Lists one kind and follows its changes, for ever.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt::Debug;
use std::pin::pin;
use std::time::Duration;

use futures_util::stream::{BoxStream, Stream, StreamExt as _};
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::core::Status as ApiStatus;
use kube::core::watch::BookmarkMeta;
use kube::{Api, Error, Resource};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep, timeout};

use super::backoff::{Backoff, Failure};
use crate::source::{Kind, ObjectId};

/// Annotation of the bookmark that ends a streaming list (KEP-3157).
const LIST_ENDS: &str = "k8s.io/initial-events-end";
/// The server ends a watch after so many seconds; it is continued at once.
const WATCH_SECONDS: u32 = 285;
/// The server sends a bookmark every minute, with some jitter: a watch that is silent for longer
/// goes nowhere. (A connection that is dead is found out sooner, unless a proxy keeps it alive.)
const SILENCE: Duration = Duration::from_secs(150);
/// Objects on a page of a list, where lists do not stream.
const PAGE: u32 = 500;
/// A watch that lasted this long worked.
const LASTED: Duration = Duration::from_secs(1);
/// Codes by which a server refuses a streaming list.
const NO_STREAMING: [u16; 2] = [400, 422];
const GONE: u16 = 410;

type Events<K> = BoxStream<'static, Result<WatchEvent<K>, Error>>;

/// Why a list or a watch ended.
#[derive(Debug)]
enum End {
    /// The server closed it, as it does every few minutes.
    Closed,
    /// What changed since cannot be had any more: list again.
    Gone,
    /// Something went wrong.
    Failed(Error),
    /// Nobody listens to the messages any more.
    Unheard,
}

impl From<Error> for End {
    fn from(error: Error) -> Self {
        match error {
            Error::Api(status) => Self::of(status),
            error => Self::Failed(error),
        }
    }
}

impl From<Unheard> for End {
    fn from(_: Unheard) -> Self {
        Self::Unheard
    }
}

impl End {
    fn of(status: Box<ApiStatus>) -> Self {
        if status.code == GONE { Self::Gone } else { Self::Failed(Error::Api(status)) }
    }
}

/// Objects that can be watched.
pub(super) trait Watched:
    Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static
{
    /// Which kind it is.
    const KIND: Kind;
}

/// Nobody listens any more.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unheard;

/// Who is told what the objects of a kind are.
pub(super) trait Listener<K>: Send + Sync + 'static {
    /// What is kept of an object.
    type Kept: Send;

    /// Leaves out what nobody here reads.
    fn keep(&self, object: K) -> Self::Kept;
    /// Every object of the kind.
    fn listed(
        &self,
        all: BTreeMap<ObjectId, Self::Kept>,
    ) -> impl Future<Output = Result<(), Unheard>> + Send;
    /// An object is new or differs.
    fn applied(
        &self,
        id: ObjectId,
        object: Self::Kept,
    ) -> impl Future<Output = Result<(), Unheard>> + Send;
    /// An object is gone.
    fn deleted(&self, id: ObjectId) -> impl Future<Output = Result<(), Unheard>> + Send;
    /// The kind cannot be watched for now. Whether that is something new.
    fn failed(&self, error: &Error, text: String) -> bool;
}

/// Follows one kind until the listener wants to hear no more.
pub(super) struct Follower<K, L> {
    api: Api<K>,
    params: WatchParams,
    listener: L,
    /// Where to go on; the kind is listed first if `None`.
    version: Option<String>,
}

impl<K: Watched, L: Listener<K>> Follower<K, L> {
    /// Of the objects that these parameters select.
    pub(super) fn new(api: Api<K>, params: WatchParams, listener: L) -> Self {
        Self { api, params: params.timeout(WATCH_SECONDS), listener, version: None }
    }

    /// Does it.
    pub(super) async fn run(mut self) {
        let mut backoff = Backoff::default();
        let mut was_gone = false;
        loop {
            let start = Instant::now();
            let Err(end) = self.once().await;
            if start.elapsed() >= LASTED {
                backoff.reset();
                was_gone = false;
            }
            let failure = match end {
                End::Unheard => return,
                End::Closed if start.elapsed() >= LASTED => continue,
                // One that ends at once, again and again, must not keep both sides busy.
                End::Closed => Failure::Refusal { after: None },
                End::Gone => {
                    tracing::info!(kind = %K::KIND, "the watch is too far behind: listing again");
                    self.version = None;
                    if !std::mem::replace(&mut was_gone, true) {
                        continue;
                    }
                    Failure::Refusal { after: None }
                }
                End::Failed(error) => self.failed(&error),
            };
            sleep(backoff.after(failure)).await;
        }
    }

    /// Says what is wrong when it is something new.
    fn failed(&self, error: &Error) -> Failure {
        let text = describe(error);
        if self.listener.failed(error, text.clone()) {
            tracing::warn!(kind = %K::KIND, "watching: {text}");
        }
        failure(error)
    }

    /// One list, if need be, and one watch.
    async fn once(&mut self) -> Result<Infallible, End> {
        if self.version.is_none() {
            match self.stream_list().await? {
                Some(mut stream) => return self.follow(&mut stream).await,
                None => self.page_list().await?,
            }
        }
        let version = self.version.clone().unwrap_or_default();
        let stream = self.api.watch(&self.params, &version).await?;
        self.follow(&mut pin!(stream)).await
    }

    /// A list that is the beginning of a watch, which is returned; `None` if the server has no such
    /// lists. An empty version asks for the newest state.
    async fn stream_list(&mut self) -> Result<Option<Events<K>>, End> {
        let params = self.params.clone().initial_events();
        let mut stream: Events<K> = match self.api.watch(&params, "").await {
            Ok(stream) => stream.boxed(),
            Err(Error::Api(status)) if NO_STREAMING.contains(&status.code) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let mut objects = BTreeMap::new();
        loop {
            match self.next(&mut stream).await? {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                    objects.insert(id(&object), self.listener.keep(object));
                }
                WatchEvent::Deleted(object) => {
                    objects.remove(&id(&object));
                }
                WatchEvent::Bookmark(bookmark) => {
                    let BookmarkMeta { resource_version, annotations } = bookmark.metadata;
                    if !annotations.contains_key(LIST_ENDS) {
                        // A server from before 1.27 takes no notice of the wish.
                        return Ok(None);
                    }
                    self.version = Some(resource_version);
                    self.listener.listed(objects).await?;
                    return Ok(Some(stream));
                }
                WatchEvent::Error(status) => return Err(End::of(status)),
            }
        }
    }

    /// A list in pages, for servers without streaming ones.
    async fn page_list(&mut self) -> Result<(), End> {
        let WatchParams { label_selector, field_selector, .. } = self.params.clone();
        let mut params =
            ListParams { label_selector, field_selector, limit: Some(PAGE), ..Default::default() };
        let mut objects = BTreeMap::new();
        loop {
            let page = self.api.list(&params).await?;
            for object in page.items {
                objects.insert(id(&object), self.listener.keep(object));
            }
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params.continue_token = Some(token),
                None => {
                    self.version = page.metadata.resource_version;
                    break;
                }
            }
        }
        Ok(self.listener.listed(objects).await?)
    }

    async fn follow<S>(&mut self, stream: &mut S) -> Result<Infallible, End>
    where
        S: Stream<Item = Result<WatchEvent<K>, Error>> + Unpin,
    {
        loop {
            let event = self.next(stream).await?;
            let version = match &event {
                WatchEvent::Added(object)
                | WatchEvent::Modified(object)
                | WatchEvent::Deleted(object) => object.meta().resource_version.clone(),
                WatchEvent::Bookmark(bookmark) => Some(bookmark.metadata.resource_version.clone()),
                WatchEvent::Error(_) => None,
            };
            match event {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                    let id = id(&object);
                    self.listener.applied(id, self.listener.keep(object)).await?;
                }
                WatchEvent::Deleted(object) => {
                    self.listener.deleted(id(&object)).await?;
                }
                WatchEvent::Bookmark(_) => {}
                WatchEvent::Error(status) => return Err(End::of(status)),
            }
            if version.is_some() {
                self.version = version;
            }
        }
    }

    /// The next event that can be read.
    async fn next<S>(&self, stream: &mut S) -> Result<WatchEvent<K>, End>
    where
        S: Stream<Item = Result<WatchEvent<K>, Error>> + Unpin,
    {
        loop {
            let Ok(event) = timeout(SILENCE, stream.next()).await else {
                tracing::info!(kind = %K::KIND, "the watch is silent: starting it again");
                return Err(End::Closed);
            };
            match event {
                Some(Ok(event)) => return Ok(event),
                // One object that is not what its kind should be must not stop the others.
                Some(Err(Error::SerdeError(error))) => {
                    tracing::error!(kind = %K::KIND, "an object that cannot be read: {error}");
                }
                Some(Err(error)) => return Err(error.into()),
                None => return Err(End::Closed),
            }
        }
    }
}

fn id<K: Watched>(object: &K) -> ObjectId {
    ObjectId::of(K::KIND, object.meta())
}

/// Whether somebody has answered.
pub(super) fn failure(error: &Error) -> Failure {
    match error {
        Error::Api(status) => {
            let seconds = status.details.as_ref().map_or(0, |d| d.retry_after_seconds);
            let after = (seconds > 0).then(|| Duration::from_secs(seconds.into()));
            Failure::Refusal { after }
        }
        _ => Failure::Silence,
    }
}

/// An error and its causes, on one line.
pub(super) fn describe(error: &Error) -> String {
    if let Error::Api(status) = error {
        return format!("{} ({})", status.message, status.code);
    }
    let mut text = String::new();
    let mut next: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = next {
        let part = error.to_string();
        // Some libraries repeat their cause, some don't.
        if !text.contains(&part) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&part);
        }
        next = error.source();
    }
    text
}
