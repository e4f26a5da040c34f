//! The two listeners. Nothing else of the agent listens.

use crate::app::Snapshot;
use crate::serve::collector::{Answers, NodeMetrics, TableView};
use crate::serve::health::{Health, Question};
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::registry::Registry;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long to wait before the health address is tried again (kube-proxy's interval).
const HEALTH_RETRY: Duration = Duration::from_secs(5);

/// How long a predecessor may take from giving up the lock to giving up its listeners.
const HANDOVER: Duration = Duration::from_secs(2);

/// What both listeners answer from.
#[derive(Debug)]
pub struct Served<T> {
    metrics: Arc<NodeMetrics<T>>,
    registry: Arc<Registry>,
}

impl<T> Clone for Served<T> {
    fn clone(&self) -> Self {
        Self {
            metrics: Arc::clone(&self.metrics),
            registry: Arc::clone(&self.registry),
        }
    }
}

impl<T: TableView> Served<T> {
    /// Serves these metrics.
    pub fn new(metrics: NodeMetrics<T>) -> Self {
        let metrics = Arc::new(metrics);
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Arc::clone(&metrics)));
        Self {
            metrics,
            registry: Arc::new(registry),
        }
    }

    /// The metrics page.
    pub fn page(&self) -> Result<String, std::fmt::Error> {
        let mut page = String::new();
        prometheus_client::encoding::text::encode(&mut page, &self.registry)?;
        Ok(page)
    }

    fn health(&self, question: Question) -> Response {
        let snapshot: &watch::Receiver<Snapshot> = &self.metrics.snapshot;
        let health = Health::of(
            question,
            &snapshot.borrow(),
            SystemTime::now(),
            self.metrics.late,
        );
        let answers: &Answers = match question {
            Question::Healthz => &self.metrics.healthz,
            Question::Livez => &self.metrics.livez,
        };
        answers.count(health.status());
        let status =
            StatusCode::from_u16(health.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let headers = [
            (header::CONTENT_TYPE, "application/json"),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        ];
        match serde_json::to_string(&health) {
            Ok(body) => (status, headers, body).into_response(),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
        }
    }
}

/// An address cannot be used.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot serve {what} on {address}: another process may be using the port; choose another with \
     {option}"
)]
pub struct BindError {
    what: &'static str,
    option: &'static str,
    address: SocketAddr,
    source: io::Error,
}

/// Serves `/metrics`, `/healthz` (the process lives), `/proxyMode` and `/configz` until `shutdown`. The address
/// is bound before this returns.
pub async fn serve_metrics<T: TableView>(
    address: SocketAddr,
    served: Served<T>,
    shutdown: CancellationToken,
) -> Result<SocketAddr, BindError> {
    let refused = |source| BindError {
        what: "metrics",
        option: "--metrics-bind-address",
        address,
        source,
    };
    let listener = bind(address).await.map_err(refused)?;
    let bound = listener.local_addr().map_err(refused)?;
    let router = Router::new()
        .route("/metrics", get(metrics::<T>))
        .route("/healthz", get(|| async { "ok" }))
        .route("/proxyMode", get(|| async { "ebpf" }))
        .route("/configz", get(configz::<T>))
        .with_state(served);
    tokio::spawn(run(listener, router, shutdown));
    Ok(bound)
}

/// Serves `/healthz` and `/livez` until `shutdown`. An address that cannot be bound is tried again
/// every five seconds: traffic does not depend on it; an `insistent` caller gets the error instead
/// (kube-proxy's `bindAddressHardFail`). `bound` is called with the address once it is.
pub async fn serve_health<T: TableView>(
    address: SocketAddr,
    served: Served<T>,
    insistent: bool,
    shutdown: CancellationToken,
    bound: impl FnOnce(SocketAddr),
) -> Result<(), BindError> {
    let router = Router::new()
        .route(
            "/healthz",
            get(|State(served): State<Served<T>>| async move { served.health(Question::Healthz) }),
        )
        .route(
            "/livez",
            get(|State(served): State<Served<T>>| async move { served.health(Question::Livez) }),
        )
        .with_state(served);
    loop {
        match bind(address).await {
            Ok(listener) => {
                bound(listener.local_addr().unwrap_or(address));
                run(listener, router, shutdown).await;
                return Ok(());
            }
            Err(source) if insistent => {
                let (what, option) = ("health", "--healthz-bind-address");
                return Err(BindError {
                    what,
                    option,
                    address,
                    source,
                });
            }
            Err(error) => tracing::error!(
                %address, %error,
                "cannot serve health: another process may be using the port; trying again every 5 s"
            ),
        }
        tokio::select! {
            () = tokio::time::sleep(HEALTH_RETRY) => {}
            () = shutdown.cancelled() => return Ok(()),
        }
    }
}

/// Binds, and waits a moment for an address in use: an agent that ends gives up the lock, which its
/// successor waits for, before its listeners.
async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let end = Instant::now() + HANDOVER;
    loop {
        match TcpListener::bind(address).await {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < end => {
                tokio::time::sleep(HANDOVER / 40).await;
            }
            result => return result,
        }
    }
}

async fn run(listener: TcpListener, router: Router, shutdown: CancellationToken) {
    let end = async move { shutdown.cancelled().await };
    if let Err(error) = axum::serve(listener, router)
        .with_graceful_shutdown(end)
        .await
    {
        tracing::error!(%error, "a listener stopped");
    }
}

/// The configuration in force.
async fn configz<T: TableView>(State(served): State<Served<T>>) -> Response {
    let json = [(header::CONTENT_TYPE, "application/json")];
    (json, served.metrics.configuration.to_string()).into_response()
}

/// Reading the tables takes system calls in proportion to their size: not on an async worker.
async fn metrics<T: TableView>(State(served): State<Served<T>>) -> Response {
    const CONTENT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    match tokio::task::spawn_blocking(move || served.page()).await {
        Ok(Ok(page)) => ([(header::CONTENT_TYPE, CONTENT)], page).into_response(),
        Ok(Err(error)) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
