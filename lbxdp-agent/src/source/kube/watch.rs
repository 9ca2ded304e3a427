//! Lists one kind and follows its changes, for ever.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt::Debug;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{BoxStream, Stream, StreamExt as _};
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::core::Status as ApiStatus;
use kube::core::watch::BookmarkMeta;
use kube::{Api, Error, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use super::backoff::{Backoff, Failure};
use super::status::Status;
use super::trim::Arrived;
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

/// What a watch tells.
#[derive(Debug)]
pub(super) enum Message {
    /// Every object of a kind.
    Listed(Kind, BTreeMap<ObjectId, Arrived>),
    /// An object is new or differs.
    Applied(Arrived),
    /// An object is gone.
    Deleted(ObjectId),
}

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
    /// Leaves out what nobody here reads.
    fn trimmed(self) -> Arrived;
}

/// Follows one kind until the receiver of the messages is dropped.
pub(super) struct Follower<K> {
    api: Api<K>,
    params: WatchParams,
    messages: mpsc::Sender<Message>,
    status: Arc<Status>,
    /// Where to go on; the kind is listed first if `None`.
    version: Option<String>,
}

impl<K: Watched> Follower<K> {
    /// Of the objects that these parameters select.
    pub(super) fn new(
        api: Api<K>,
        params: WatchParams,
        messages: mpsc::Sender<Message>,
        status: Arc<Status>,
    ) -> Self {
        Self { api, params: params.timeout(WATCH_SECONDS), messages, status, version: None }
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
        let watch = self.status.watch(K::KIND);
        if watch.error().as_ref() != Some(&text) {
            tracing::warn!(kind = %K::KIND, "watching: {text}");
        }
        watch.set_error(Some(text));
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
                    let object = object.trimmed();
                    objects.insert(object.id(), object);
                }
                WatchEvent::Deleted(object) => {
                    objects.remove(&ObjectId::of(K::KIND, object.meta()));
                }
                WatchEvent::Bookmark(bookmark) => {
                    let BookmarkMeta { resource_version, annotations } = bookmark.metadata;
                    if !annotations.contains_key(LIST_ENDS) {
                        // A server from before 1.27 takes no notice of the wish.
                        return Ok(None);
                    }
                    self.version = Some(resource_version);
                    self.tell(Message::Listed(K::KIND, objects)).await?;
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
                let object = object.trimmed();
                objects.insert(object.id(), object);
            }
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params.continue_token = Some(token),
                None => {
                    self.version = page.metadata.resource_version;
                    break;
                }
            }
        }
        self.tell(Message::Listed(K::KIND, objects)).await
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
                    self.tell(Message::Applied(object.trimmed())).await?;
                }
                WatchEvent::Deleted(object) => {
                    let id = ObjectId::of(K::KIND, object.meta());
                    self.tell(Message::Deleted(id)).await?;
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

    async fn tell(&self, message: Message) -> Result<(), End> {
        self.messages.send(message).await.map_err(|_| End::Unheard)
    }
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
fn describe(error: &Error) -> String {
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
