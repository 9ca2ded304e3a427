//! `/livez`, `/readyz`, `/healthz` and `/metrics`. Liveness depends on nothing but this process;
//! readiness depends on the dataplane.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;

use crate::metrics;
use crate::source::kube;

/// What the agent says of itself.
#[derive(Debug)]
pub struct Health {
    pin_path: PathBuf,
    /// The connection to the API, if there is to be one. Readiness does not depend on it.
    kube: Option<Arc<kube::Status>>,
    /// What the first input waits for.
    waiting: Mutex<Option<String>>,
    programmed: AtomicBool,
    attached: AtomicBool,
    warnings: AtomicUsize,
    errors: AtomicUsize,
}

impl Health {
    /// An agent that has done nothing yet.
    pub fn new(pin_path: &Path, kube: Option<Arc<kube::Status>>) -> Self {
        Self {
            pin_path: pin_path.to_owned(),
            kube,
            waiting: Mutex::new(None),
            programmed: AtomicBool::new(false),
            attached: AtomicBool::new(false),
            warnings: AtomicUsize::new(0),
            errors: AtomicUsize::new(0),
        }
    }

    /// What the first input waits for; `None` when it has come.
    pub fn waiting(&self, reason: Option<String>) {
        *self.waiting.lock().unwrap_or_else(PoisonError::into_inner) = reason;
    }

    /// The connection to the API, if there is to be one.
    pub fn kube(&self) -> Option<&kube::Status> {
        self.kube.as_deref()
    }

    /// Whether the maps are what they should be.
    pub fn programmed(&self, is_done: bool) {
        self.programmed.store(is_done, Ordering::Relaxed);
    }

    /// Whether some device is served.
    pub fn attached(&self, is_done: bool) {
        self.attached.store(is_done, Ordering::Relaxed);
    }

    /// How many problems the input has.
    pub fn problems(&self, warnings: usize, errors: usize) {
        self.warnings.store(warnings, Ordering::Relaxed);
        self.errors.store(errors, Ordering::Relaxed);
    }

    /// Warnings and errors.
    pub fn problem_counts(&self) -> (usize, usize) {
        (self.warnings.load(Ordering::Relaxed), self.errors.load(Ordering::Relaxed))
    }

    /// Directory of pins.
    pub fn pin_path(&self) -> &Path {
        &self.pin_path
    }

    /// What readiness waits for, if anything.
    fn missing(&self) -> Option<String> {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(reason) = waiting {
            Some(format!("{reason}\n"))
        } else if !self.programmed.load(Ordering::Relaxed) {
            Some("the maps are not what they should be\n".to_owned())
        } else if !self.attached.load(Ordering::Relaxed) {
            Some("no device is served\n".to_owned())
        } else {
            None
        }
    }
}

/// Listens on `addr` and answers in the background.
pub async fn spawn(addr: SocketAddr, health: Arc<Health>) -> anyhow::Result<()> {
    let listener = TcpListener::bind(addr).await.with_context(|| format!("--listen {addr}"))?;
    let router = Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/healthz", get(ready))
        .route("/metrics", get(scrape))
        .with_state(health);
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "health and metrics");
        }
    });
    Ok(())
}

async fn ready(State(health): State<Arc<Health>>) -> impl IntoResponse {
    match health.missing() {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(missing) => (StatusCode::SERVICE_UNAVAILABLE, missing),
    }
}

async fn scrape(State(health): State<Arc<Health>>) -> impl IntoResponse {
    // Reading maps is a matter of system calls.
    let text = tokio::task::spawn_blocking(move || metrics::text(&health)).await;
    match text.map_err(anyhow::Error::from).flatten() {
        Ok(text) => {
            let content = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, content)], text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}\n")).into_response(),
    }
}
