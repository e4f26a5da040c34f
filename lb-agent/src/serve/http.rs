//! The two listeners. Nothing else of the agent listens.

use crate::app::Snapshot;
use crate::serve::collector::{Answers, NodeMetrics, TableView};
use crate::serve::health::{Health, Question};
use crate::serve::process::ProcessFacts;
use crate::serve::slis::Slis;
use crate::serve::zpages::{self, Page};
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::encoding::text;
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

/// The format of pages with metrics.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What both listeners answer from.
#[derive(Debug)]
pub struct Served<T> {
    metrics: Arc<NodeMetrics<T>>,
    registry: Arc<Registry>,
    slis: Arc<Registry>,
}

impl<T> Clone for Served<T> {
    fn clone(&self) -> Self {
        Self {
            metrics: Arc::clone(&self.metrics),
            registry: Arc::clone(&self.registry),
            slis: Arc::clone(&self.slis),
        }
    }
}

impl<T: TableView> Served<T> {
    /// Serves these metrics.
    pub fn new(metrics: NodeMetrics<T>) -> Self {
        let metrics = Arc::new(metrics);
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Arc::clone(&metrics)));
        let mut slis = Registry::default();
        slis.register_collector(Box::new(Slis(Arc::clone(&metrics))));
        Self {
            metrics,
            registry: Arc::new(registry),
            slis: Arc::new(slis),
        }
    }

    /// The metrics page.
    pub fn page(&self) -> Result<String, std::fmt::Error> {
        encode(&self.registry)
    }

    /// The page of health checks.
    pub fn slis(&self) -> Result<String, std::fmt::Error> {
        encode(&self.slis)
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
            Err(error) => failed(&error),
        }
    }
}

fn encode(registry: &Registry) -> Result<String, std::fmt::Error> {
    let mut page = String::new();
    text::encode(&mut page, registry)?;
    Ok(page)
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

/// Serves `/metrics`, `/metrics/slis`, `/healthz` (the process lives), `/proxyMode`, `/configz`, `/flagz`
/// and `/statusz` until `shutdown`. The address is bound before this returns.
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
        .route("/metrics/slis", get(slis::<T>))
        .route("/healthz", get(ping::<T>))
        .route("/proxyMode", get(|| async { "ebpf" }))
        .route("/configz", get(configz::<T>))
        .route("/flagz", get(flagz::<T>))
        .route("/statusz", get(statusz))
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

/// That there is an answer is all it says.
async fn ping<T: TableView>(State(served): State<Served<T>>) -> &'static str {
    served.metrics.ping.count(200);
    "ok"
}

/// The flags in force.
async fn flagz<T: TableView>(State(served): State<Served<T>>, headers: HeaderMap) -> Response {
    shown(zpages::flagz(accepted(&headers), &served.metrics.flags))
}

/// Who runs here, and since when.
async fn statusz(headers: HeaderMap) -> Response {
    let start = Duration::from_secs_f64(ProcessFacts::read().start_seconds.unwrap_or_default());
    shown(zpages::statusz(
        accepted(&headers),
        start,
        SystemTime::now(),
    ))
}

fn accepted(headers: &HeaderMap) -> &str {
    let accept = headers.get(header::ACCEPT);
    accept.and_then(|value| value.to_str().ok()).unwrap_or("")
}

fn shown(page: Option<Page>) -> Response {
    match page {
        Some(page) => ([(header::CONTENT_TYPE, page.content_type)], page.body).into_response(),
        None => StatusCode::NOT_ACCEPTABLE.into_response(),
    }
}

/// The results of health checks.
async fn slis<T: TableView>(State(served): State<Served<T>>) -> Response {
    encoded(served.slis())
}

/// Reading the tables takes system calls in proportion to their size: not on an async worker.
async fn metrics<T: TableView>(State(served): State<Served<T>>) -> Response {
    match tokio::task::spawn_blocking(move || served.page()).await {
        Ok(page) => encoded(page),
        Err(error) => failed(&error),
    }
}

fn encoded(page: Result<String, std::fmt::Error>) -> Response {
    match page {
        Ok(page) => ([(header::CONTENT_TYPE, OPEN_METRICS)], page).into_response(),
        Err(error) => failed(&error),
    }
}

fn failed(error: &dyn std::error::Error) -> Response {
    (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response()
}
