//! What may happen between an agent and the API: connections that are cut, delayed or silent, and
//! answers that the real API server gives on its bad days only.
//!
//! To one that reads requests ([`Proxy::http`]) the agent speaks HTTP/1.1 in the clear, and it
//! speaks HTTPS to the API server. One that does not ([`Proxy::tunnel`]) carries bytes.

use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::Request;
use http_body_util::BodyExt as _;
use kube::Client;
use kube::client::Body;
use nix::sched::{CloneFlags, setns};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::api::config;
use super::control_plane::{ApiServer, ControlPlane, kubeconfig};
use crate::netns::Netns;

/// What the proxy does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// Nothing.
    None,
    /// Connections are closed, new ones at once.
    Cut,
    /// Nothing is sent any more, and nothing is closed, not even afterwards.
    Silence,
    /// Each answer, and each piece of it, waits for so long. For requests, as all below.
    Delay(Duration),
    /// So many of a hundred requests get this status instead of an answer.
    Status {
        /// Code.
        code: u16,
        /// Of a hundred.
        percent: u32,
    },
    /// A watch that goes on somewhere is told in its stream that what it wants is gone.
    GoneInStream,
    /// A list that is a watch is refused, as by servers that have none.
    NoStreaming,
}

/// An API server, as the proxy reaches it.
#[derive(Clone, Copy, Debug)]
pub struct Upstream<'a> {
    /// Address and port, as `https://ADDRESS:PORT`.
    pub url: &'a str,
    /// Certificates to trust.
    pub ca: &'a Path,
}

impl<'a> Upstream<'a> {
    /// The first API server of a control plane.
    pub fn first(plane: &'a ControlPlane) -> Self {
        let ApiServer { url, ca, .. } = &plane.servers[0];
        Self { url, ca }
    }
}

/// The proxy. Ends with the process.
#[derive(Debug)]
pub struct Proxy {
    /// Its address.
    pub url: String,
    fault: watch::Sender<Fault>,
    cuts: watch::Sender<u32>,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    /// Reads requests for an API server, in its namespace.
    #[track_caller]
    pub fn http(netns: &Netns, upstream: Upstream<'_>, port: u16) -> Self {
        let text = kubeconfig(upstream.url, Some(upstream.ca), None);
        Self::start(netns, upstream, port, Some(text))
    }

    /// Carries bytes to an API server, in its namespace.
    #[track_caller]
    pub fn tunnel(netns: &Netns, upstream: Upstream<'_>, port: u16) -> Self {
        Self::start(netns, upstream, port, None)
    }

    #[track_caller]
    fn start(netns: &Netns, upstream: Upstream<'_>, port: u16, http: Option<String>) -> Self {
        let (host, server_port) = upstream.url.rsplit_once(':').expect("a port");
        let server_port = server_port.parse().expect("a port");
        let host = if http.is_some() { host.replace("https", "http") } else { host.to_owned() };
        let (fault, faults) = watch::channel(Fault::None);
        let (cuts, cut) = watch::channel(0);
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (started, wait) = std::sync::mpsc::channel();
        let seen_by = Arc::clone(&seen);
        let server = Server { upstream: http, server_port, faults, cut, seen: seen_by };
        let netns = netns.path().to_owned();
        std::thread::spawn(move || server.serve(&netns, port, &started));
        wait.recv().expect("the proxy listens");
        Self { url: format!("{host}:{port}"), fault, cuts, seen }
    }

    /// From now on.
    pub fn set(&self, fault: Fault) {
        self.fault.send_replace(fault);
        if fault == Fault::Cut {
            self.cut();
        }
    }

    /// Closes every connection there is.
    pub fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Every request so far, as `path?query status`.
    pub fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[derive(Clone)]
struct Server {
    upstream: Option<String>,
    server_port: u16,
    faults: watch::Receiver<Fault>,
    cut: watch::Receiver<u32>,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn serve(self, netns: &Path, port: u16, started: &std::sync::mpsc::Sender<()>) {
        let file = File::open(netns).expect("the namespace");
        setns(file, CloneFlags::CLONE_NEWNET).expect("enter the namespace");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async {
            let listener = TcpListener::bind(("0.0.0.0", port)).await.expect("listen");
            let client = match &self.upstream {
                Some(upstream) => Some(Client::try_from(config(upstream).await).expect("a client")),
                None => None,
            };
            started.send(()).expect("somebody waits");
            let mut count = 0;
            loop {
                let Ok((stream, _)) = listener.accept().await else { return };
                if *self.faults.borrow() == Fault::Cut {
                    continue;
                }
                count += 1;
                let (server, client, mut cut) = (self.clone(), client.clone(), self.cut.clone());
                cut.mark_unchanged();
                tokio::spawn(async move {
                    let carried = async {
                        match client {
                            Some(client) => server.carry(stream, &client, count).await,
                            None => server.tunnel(stream).await,
                        }
                    };
                    tokio::select! {
                        _ = carried => {}
                        _ = cut.changed() => {}
                    }
                });
            }
        });
    }

    async fn tunnel(&self, mut stream: TcpStream) -> Option<()> {
        let mut server = TcpStream::connect(("127.0.0.1", self.server_port)).await.ok()?;
        let mut faults = self.faults.clone();
        let silence = async { faults.wait_for(|fault| *fault == Fault::Silence).await.is_ok() };
        tokio::select! {
            _ = copy_bidirectional(&mut stream, &mut server) => return Some(()),
            _ = silence => {}
        }
        // Both connections stay open and nobody reads them.
        std::future::pending().await
    }

    /// One request and its answer. Connections are not used twice.
    async fn carry(&self, mut stream: TcpStream, client: &Client, count: u32) -> Option<()> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.ok()?);
        }
        let head = String::from_utf8(head).ok()?;
        let path = head.split(' ').nth(1)?;
        let fault = *self.faults.borrow();
        let note = |status: &str| {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.push(format!("{path} {status}"));
        };
        // Spread over the requests rather than left to chance.
        let hit = |percent: u32| (count * percent) % 100 < percent;
        match fault {
            Fault::Status { code, percent } if hit(percent) => {
                note(&code.to_string());
                return answer(&mut stream, code, &failure(code)).await;
            }
            Fault::NoStreaming if path.contains("sendInitialEvents") => {
                note("422");
                return answer(&mut stream, 422, &failure(422)).await;
            }
            Fault::GoneInStream if path.contains("watch=true") && !path.contains("Initial") => {
                note("gone in stream");
                let event = format!("{{\"type\":\"ERROR\",\"object\":{}}}\n", failure(410));
                return answer(&mut stream, 200, &event).await;
            }
            _ => {}
        }
        let mut request = Request::builder().uri(path);
        for line in head.lines().skip(1) {
            let Some((name, value)) = line.split_once(": ") else { continue };
            if name.eq_ignore_ascii_case("authorization") || name.eq_ignore_ascii_case("accept") {
                request = request.header(name, value);
            }
        }
        let response = client.send(request.body(Body::empty()).ok()?).await.ok()?;
        self.wait().await;
        note(response.status().as_str());
        let status = response.status();
        let head = format!(
            "HTTP/1.1 {} {}\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n",
            status.as_u16(),
            status.canonical_reason().unwrap_or_default()
        );
        stream.write_all(head.as_bytes()).await.ok()?;
        let mut body = response.into_body();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.ok()?.into_data() else { continue };
            self.wait().await;
            stream.write_all(&data).await.ok()?;
        }
        Some(())
    }

    /// Before something is sent.
    async fn wait(&self) {
        let fault = *self.faults.borrow();
        match fault {
            Fault::Delay(delay) => tokio::time::sleep(delay).await,
            Fault::Silence => std::future::pending().await,
            _ => {}
        }
    }
}

async fn answer(stream: &mut TcpStream, code: u16, body: &str) -> Option<()> {
    let head = format!(
        "HTTP/1.1 {code} Made\r\ncontent-type: application/json\r\nconnection: close\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.ok()
}

/// A Status object.
fn failure(code: u16) -> String {
    json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure",
        "message": "made by a test", "code": code,
    })
    .to_string()
}
