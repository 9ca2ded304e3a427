//! `/livez`, `/readyz`, `/healthz` and `/metrics`. Liveness depends on nothing but whether this
//! process gets its work done, never on a source; readiness depends on the dataplane; health is
//! liveness and whether the node is to get new connections.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use tokio::net::TcpListener;

use crate::health::{Health, answer};
use crate::metrics;

/// Listens on `addr` and answers in the background.
pub async fn spawn(addr: SocketAddr, health: Arc<Health>) -> anyhow::Result<()> {
    let listener = TcpListener::bind(addr).await.with_context(|| format!("--listen {addr}"))?;
    let router = Router::new()
        .route("/livez", any(live))
        .route("/readyz", get(ready))
        .route("/healthz", any(healthy))
        .route("/metrics", get(scrape))
        .with_state(health);
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "health and metrics");
        }
    });
    Ok(())
}

async fn live(State(health): State<Arc<Health>>) -> Response {
    let is_live = health.is_live();
    health.livez.count(is_live);
    answer::about_self(is_live, None, health.behind_seconds())
}

async fn healthy(State(health): State<Arc<Health>>) -> Response {
    let (is_live, is_eligible) = (health.is_live(), health.is_node_eligible());
    health.healthz.count(is_live && is_eligible);
    answer::about_self(is_live, Some(is_eligible), health.behind_seconds())
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
