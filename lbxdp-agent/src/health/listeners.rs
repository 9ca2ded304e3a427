//! The sockets of health checks.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::response::Response;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::checks::{self, Check};
use super::{Health, answer};
use crate::model::{Desired, Problem};
use crate::reconcile::backoff;

/// By when a client has sent a request. Load balancers send it at once.
const REQUEST_WITHIN: Duration = Duration::from_secs(10);
/// Connections of one listener at a time: load balancers need a few, and what anybody may reach
/// must not take all descriptors.
const MOST_CONNECTIONS: usize = 256;
/// A port that is in use is tried again after this long at the most: when kube-proxy goes, which has
/// the same ports, load balancers ask again within seconds.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// The wait after a connection could not be accepted, for want of descriptors above all.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Every listener of a health check.
#[derive(Debug)]
pub struct Listeners {
    health: Arc<Health>,
    running: BTreeMap<SocketAddr, Listener>,
    failures: u32,
}

/// One listener. With it go its connections.
#[derive(Debug)]
struct Listener {
    check: watch::Sender<Check>,
    _task: JoinSet<()>,
}

impl Listeners {
    /// None yet.
    pub const fn new(health: Arc<Health>) -> Self {
        Self { health, running: BTreeMap::new(), failures: 0 }
    }

    /// Closes what is not wanted any more, opens what is. Returns what could not be opened, and when
    /// to try again.
    pub fn follow(&mut self, desired: &Desired) -> (Vec<Problem>, Option<Duration>) {
        let (wanted, mut problems) = checks::wanted(desired);
        self.running.retain(|addr, listener| match wanted.get(addr) {
            Some(check) => listener.check.borrow().is_of(check),
            None => false,
        });
        let mut failed = false;
        for (addr, check) in wanted {
            if let Some(listener) = self.running.get(&addr) {
                listener.check.send_replace(check);
                continue;
            }
            match listen(addr, check.clone(), Arc::clone(&self.health)) {
                Ok(listener) => {
                    self.running.insert(addr, listener);
                }
                Err(error) => {
                    failed = true;
                    let message = format!("cannot listen on {addr}: {error}");
                    problems.push(check.problem(message));
                }
            }
        }
        self.failures = if failed { self.failures.saturating_add(1) } else { 0 };
        (problems, failed.then(|| backoff(self.failures).min(LONGEST_WAIT)))
    }
}

impl Check {
    fn is_of(&self, other: &Self) -> bool {
        (&self.namespace, &self.name) == (&other.namespace, &other.name)
    }
}

fn listen(addr: SocketAddr, check: Check, health: Arc<Health>) -> io::Result<Listener> {
    let listener = std::net::TcpListener::bind(addr)?;
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let (check, state) = watch::channel(check);
    let mut task = JoinSet::new();
    task.spawn(serve(listener, state, health));
    Ok(Listener { check, _task: task })
}

/// Serves until it is dropped; so are the connections then.
async fn serve(listener: TcpListener, check: watch::Receiver<Check>, health: Arc<Health>) {
    // Any path and any method.
    let router = Router::new().fallback(say).with_state((check, health));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        if connections.len() >= MOST_CONNECTIONS {
            connections.join_next().await;
        }
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(_) => {
                tokio::time::sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        let service = TowerToHyperService::new(router.clone());
        connections.spawn(async move {
            let mut http = http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(REQUEST_WITHIN);
            // The client went away, or sent no HTTP: its own business.
            let _ = http.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

type Asked = (watch::Receiver<Check>, Arc<Health>);

async fn say(State((check, health)): State<Asked>) -> Response {
    answer::check(&check.borrow(), health.is_live())
}
