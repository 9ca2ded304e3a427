//! Requests to one of several API servers.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use http::header::AUTHORIZATION;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper_rustls::{FixedServerNameResolver, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::client::{Body, ConfigExt as _};
use kube::{Client, Config};
use tower::timeout::Timeout;
use tower::{BoxError, ServiceBuilder, ServiceExt as _, service_fn};

use super::access::Access;
use super::status::{Open, Status};
use crate::source::Kind;

/// TCP and TLS together. Another server is tried after that.
const CONNECT: Duration = Duration::from_secs(3);
/// From a request to the first word of an answer.
const ANSWER: Duration = Duration::from_secs(30);
/// A connection that is silent for this long is asked whether it lives (an HTTP/2 ping; where there
/// is no HTTP/2, TCP's keep-alive), and ended when nothing comes for as long again.
const PING: Duration = Duration::from_secs(5);
/// How much a server may send ahead of what was read: lists are megabytes.
const WINDOW: u32 = 4 << 20;

/// The API servers, in order of preference. The one that answered last is asked first.
#[derive(Debug)]
pub(super) struct Servers {
    clients: Vec<DebugClient>,
    token: Option<TokenFile>,
    status: Arc<Status>,
}

/// [`Client`] without its insides.
struct DebugClient(Client);

impl std::fmt::Debug for DebugClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Client")
    }
}

impl Servers {
    /// Connects to nobody yet. Must be called in a runtime.
    pub(super) fn new(access: &Access, status: Arc<Status>) -> anyhow::Result<Arc<Self>> {
        let connect = |config: &Config| {
            let client = client(config).with_context(|| config.cluster_url.to_string())?;
            Ok(DebugClient(client))
        };
        let clients = access.servers.iter().map(connect).collect::<anyhow::Result<_>>()?;
        let token = access.token_file.as_deref().map(TokenFile::new).transpose()?;
        Ok(Arc::new(Self { clients, token, status }))
    }

    /// A client for requests that are no watches.
    pub(super) fn client(self: &Arc<Self>) -> Client {
        let servers = Arc::clone(self);
        let send = move |request: Request<Body>| {
            let servers = Arc::clone(&servers);
            async move { servers.send(request).await }
        };
        Client::new(service_fn(send), "default")
    }

    /// A client whose watches count as those of this kind.
    pub(super) fn watching(self: &Arc<Self>, kind: Kind) -> Client {
        let servers = Arc::clone(self);
        let send = move |request: Request<Body>| {
            let servers = Arc::clone(&servers);
            let is_watch = request.uri().query().is_some_and(|query| query.contains("watch=true"));
            async move {
                let response = servers.send(request).await?;
                // It counts as connected for as long as its body is read.
                let is_open = is_watch && response.status() == StatusCode::OK;
                let open = is_open.then(|| Open::new(Arc::clone(&servers.status), kind));
                let note = move |frame| {
                    if let Some(open) = &open {
                        open.received();
                    }
                    frame
                };
                Ok::<_, BoxError>(response.map(|body| body.map_frame(note)))
            }
        };
        Client::new(service_fn(send), "default")
    }

    /// Asks one server after the other until one gives an answer that is about the request and
    /// not about the server.
    async fn send(&self, mut request: Request<Body>) -> Result<Response<Body>, BoxError> {
        if let Some(token) = &self.token {
            request.headers_mut().insert(AUTHORIZATION, token.header()?);
        }
        let (head, body) = request.into_parts();
        let first = self.status.current();
        let count = self.clients.len();
        let mut outcome = Err("no API server".into());
        for server in (first..first + count).map(|server| server % count) {
            let body = body.try_clone().ok_or("a body that cannot be sent twice")?;
            let request = Request::from_parts(head.clone(), body);
            outcome = match tokio::time::timeout(ANSWER, self.clients[server].0.send(request)).await
            {
                Ok(Ok(response)) if is_about_the_server(response.status()) && count > 1 => {
                    Ok(response)
                }
                Ok(Ok(response)) => {
                    self.status.set_current(server);
                    return Ok(response);
                }
                Ok(Err(error)) => Err(error.into()),
                Err(_) => Err(format!("no answer within {ANSWER:?}").into()),
            };
            tracing::debug!(server = self.status.server(server), "asking another API server");
        }
        // Who answers first next time, if nobody did this time.
        self.status.set_current((first + 1) % count);
        outcome
    }
}

/// Whether another server may have a better answer.
fn is_about_the_server(status: StatusCode) -> bool {
    status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS
}

/// The library's own builder asks once a minute for the token, speaks HTTP/1 only, and finds out
/// about a dead connection after five minutes.
fn client(config: &Config) -> anyhow::Result<Client> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT));
    tcp.set_keepalive(Some(PING));
    tcp.set_keepalive_interval(Some(PING / 2));
    tcp.set_keepalive_retries(Some(2));
    let tls = config.rustls_client_config()?;
    let mut https = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http();
    if let Some(name) = &config.tls_server_name {
        let name = name.clone().try_into().with_context(|| format!("TLS server name {name}"))?;
        https = https.with_server_name_resolver(FixedServerNameResolver::new(name));
    }
    let connector = https.enable_all_versions().wrap_connector(tcp);
    let connector = Timeout::new(connector, CONNECT).map_future(Box::pin);
    let http = hyper_util::client::legacy::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .http2_keep_alive_interval(PING)
        .http2_keep_alive_timeout(PING)
        // Of two connections made at the same moment one is not kept for others, and hyper takes
        // its only stream for none.
        .http2_keep_alive_while_idle(true)
        .http2_initial_stream_window_size(WINDOW)
        .http2_initial_connection_window_size(2 * WINDOW)
        .build::<_, Body>(connector);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(http);
    Ok(Client::new(service, "default"))
}

/// A token in a file that is replaced now and then.
#[derive(Debug)]
struct TokenFile {
    path: PathBuf,
    /// Used while the file cannot be read.
    last: Mutex<HeaderValue>,
}

impl TokenFile {
    fn new(path: &Path) -> anyhow::Result<Self> {
        let last = Mutex::new(read_token(path)?);
        Ok(Self { path: path.to_owned(), last })
    }

    /// Reads it each time: requests are rare and the file is small.
    fn header(&self) -> Result<HeaderValue, BoxError> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match read_token(&self.path) {
            Ok(token) => *last = token,
            Err(error) => tracing::warn!("{error:#}: the last token stays in use"),
        }
        Ok(last.clone())
    }
}

fn read_token(path: &Path) -> anyhow::Result<HeaderValue> {
    let shown = path.display();
    let token = std::fs::read_to_string(path).with_context(|| format!("token file {shown}"))?;
    let token = token.trim();
    anyhow::ensure!(!token.is_empty(), "token file {shown}: empty");
    let mut header = HeaderValue::try_from(format!("Bearer {token}"))
        .with_context(|| format!("token file {shown}"))?;
    header.set_sensitive(true);
    Ok(header)
}
