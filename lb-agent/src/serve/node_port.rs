//! The health check node ports of services with external traffic policy Local: a load balancer
//! outside asks there which nodes have endpoints of their own (`SERVICE-SEMANTICS` 11).
//!
//! What is due and what it answers is said by the model; here it is listened for.

use crate::app::Snapshot;
use crate::model::desired::{Family, ObjectName};
use crate::model::report::{HealthCheck, HealthChecks};
use crate::serve::health::{Health, Question};
use crate::source::kube::event::{About, Notice};
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use socket2::{Domain, Protocol, Socket, Type};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// How long to wait before an address that could not be bound is tried again.
const RETRY: Duration = Duration::from_secs(5);
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;
/// How many endpoints a weighted load balancer counts this node for.
const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// What a health check node port answers.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// The Service.
    pub service: Name,
    /// How many of its endpoints are ready on this node.
    pub local_endpoints: usize,
    /// Whether the agent is healthy.
    pub service_proxy_healthy: bool,
}

/// A Service in an [`Answer`].
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Name {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
}

impl Answer {
    /// For a service of which this is known (`None`: nothing any more).
    pub fn of(service: &ObjectName, check: Option<&HealthCheck>, healthy: bool) -> Self {
        Self {
            service: Name {
                namespace: service.namespace.to_string(),
                name: service.name.to_string(),
            },
            local_endpoints: check.map_or(0, |check| check.local_ready),
            service_proxy_healthy: healthy,
        }
    }

    /// The HTTP status that says the same.
    pub const fn status(&self) -> u16 {
        if self.local_endpoints > 0 && self.service_proxy_healthy {
            200
        } else {
            503
        }
    }
}

/// Where which service is listened for, on a node with these addresses (unspecified: all of the
/// family). A port that two services ask for is the first one's by name.
pub fn listeners(
    checks: &HealthChecks,
    addresses: &[IpAddr],
) -> BTreeMap<SocketAddr, (ObjectName, Family)> {
    let mut found = BTreeMap::new();
    for (key, check) in checks {
        let of_family = addresses.iter().filter(|ip| Family::of(**ip) == key.1);
        for address in of_family {
            let at = SocketAddr::new(*address, check.port);
            found.entry(at).or_insert_with(|| key.clone());
        }
    }
    found
}

/// Serves the health check node ports, following the snapshot, until `shutdown`.
pub async fn serve_node_ports(
    mut snapshots: watch::Receiver<Snapshot>,
    late: Duration,
    notices: mpsc::Sender<Notice>,
    shutdown: CancellationToken,
) {
    let mut running: BTreeMap<SocketAddr, (ObjectName, Family, CancellationToken)> =
        BTreeMap::new();
    let mut failed: BTreeSet<SocketAddr> = BTreeSet::new();
    loop {
        let (checks, addresses) = {
            let snapshot = snapshots.borrow_and_update();
            (
                snapshot.health_checks.clone(),
                snapshot.health_addresses.clone(),
            )
        };
        let wanted = listeners(&checks, &addresses);
        running.retain(|at, (name, family, stop)| {
            let kept = wanted
                .get(at)
                .is_some_and(|key| (&key.0, key.1) == (&*name, *family));
            if !kept {
                stop.cancel();
            }
            kept
        });
        failed.retain(|at| wanted.contains_key(at));
        for (at, (name, family)) in wanted {
            if running.contains_key(&at) {
                continue;
            }
            match bind(at) {
                Ok(listener) => {
                    failed.remove(&at);
                    let stop = shutdown.child_token();
                    let asked = Asked {
                        service: name.clone(),
                        family,
                        snapshots: snapshots.clone(),
                        late,
                    };
                    tokio::spawn(serve(listener, asked, stop.clone()));
                    running.insert(at, (name, family, stop));
                }
                Err(error) => {
                    if failed.insert(at) {
                        tracing::warn!(
                            service = %name, address = %at, %error,
                            "cannot serve the health check node port: another process may be \
                             using it; trying again every 5 s"
                        );
                        // Nobody to tell, or too much: the log has it.
                        let _ = notices.try_send(failed_to_start(name, at, &error));
                    }
                }
            }
        }
        tokio::select! {
            changed = snapshots.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(RETRY), if !failed.is_empty() => {}
            () = shutdown.cancelled() => return,
        }
    }
}

/// kube-proxy's Event for a port that is somebody else's.
fn failed_to_start(service: ObjectName, at: SocketAddr, error: &io::Error) -> Notice {
    Notice {
        note: format!("cannot start the health check of {service} on {at}: {error}"),
        about: About::Service(service),
        warning: true,
        reason: "FailedToStartServiceHealthcheck",
        action: "Listen",
    }
}

/// IPv4 and IPv6 apart, also on the unspecified address: each family has its own endpoints.
fn bind(at: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(at), Type::STREAM, Some(Protocol::TCP))?;
    if at.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&at.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// One listener's service.
#[derive(Clone)]
struct Asked {
    service: ObjectName,
    family: Family,
    snapshots: watch::Receiver<Snapshot>,
    late: Duration,
}

async fn serve(listener: TcpListener, asked: Asked, stop: CancellationToken) {
    // Any path, any method.
    let router = Router::new().fallback(answer).with_state(asked);
    let end = async move { stop.cancelled().await };
    let ended = axum::serve(listener, router)
        .with_graceful_shutdown(end)
        .await;
    if let Err(error) = ended {
        tracing::error!(%error, "a health check node port stopped");
    }
}

async fn answer(State(asked): State<Asked>) -> Response {
    let answer = {
        let snapshot = asked.snapshots.borrow();
        let check = snapshot
            .health_checks
            .get(&(asked.service.clone(), asked.family));
        let health = Health::of(Question::Livez, &snapshot, SystemTime::now(), asked.late);
        Answer::of(&asked.service, check, health.healthy)
    };
    let status = StatusCode::from_u16(answer.status()).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
    let headers = [
        (
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        ),
        (
            header::X_CONTENT_TYPE_OPTIONS,
            HeaderValue::from_static("nosniff"),
        ),
        (WEIGHT, HeaderValue::from(answer.local_endpoints)),
    ];
    match serde_json::to_string(&answer) {
        Ok(body) => (status, headers, body).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::sync::Arc;

    fn key(name: &str, family: Family) -> (ObjectName, Family) {
        let object = ObjectName {
            namespace: "ns".into(),
            name: name.into(),
        };
        (object, family)
    }

    fn checks(all: &[(&str, Family, u16, usize)]) -> HealthChecks {
        let one = |(name, family, port, local_ready): &(&str, Family, u16, usize)| {
            let check = HealthCheck {
                port: *port,
                local_ready: *local_ready,
            };
            (key(name, *family), check)
        };
        all.iter().map(one).collect::<BTreeMap<_, _>>()
    }

    #[test]
    fn every_service_is_listened_for_in_its_families_and_a_port_belongs_to_one() {
        let checks = checks(&[
            ("a", Family::V4, 1000, 1),
            ("a", Family::V6, 1000, 1),
            ("b", Family::V4, 1000, 1),
            ("c", Family::V4, 1001, 0),
        ]);
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let everywhere = listeners(
            &checks,
            &["0.0.0.0".parse().unwrap(), "::".parse().unwrap()],
        );
        assert_eq!(
            everywhere,
            BTreeMap::from([
                (at("0.0.0.0:1000"), key("a", Family::V4)),
                (at("[::]:1000"), key("a", Family::V6)),
                (at("0.0.0.0:1001"), key("c", Family::V4)),
            ])
        );
        let chosen = listeners(&checks, &["192.0.2.1".parse().unwrap()]);
        let places: Vec<SocketAddr> = chosen.into_keys().collect();
        assert_eq!(places, [at("192.0.2.1:1000"), at("192.0.2.1:1001")]);
    }

    async fn ask(at: SocketAddr) -> Option<String> {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = tokio::net::TcpStream::connect(at).await.ok()?;
        let question = b"POST /any/path HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        stream.write_all(question).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        Some(answer)
    }

    #[tokio::test]
    async fn the_answer_follows_endpoints_health_and_the_port() {
        let free = || {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            listener.local_addr().unwrap()
        };
        let (first, second) = (free(), free());
        let healthy = |port, local_ready| Snapshot {
            synced: true,
            attached: true,
            node_eligible: false,
            probe: Some(Ok(())),
            health_checks: Arc::new(checks(&[("web", Family::V4, port, local_ready)])),
            health_addresses: vec!["127.0.0.1".parse().unwrap()],
            ..Snapshot::default()
        };
        let (said, heard) = watch::channel(healthy(first.port(), 2));
        let shutdown = CancellationToken::new();
        let (notices, _) = mpsc::channel(1);
        let late = Duration::from_secs(60);
        let server = tokio::spawn(serve_node_ports(heard, late, notices, shutdown.clone()));
        let until = async |at: SocketAddr, open: bool| loop {
            let answer = ask(at).await;
            if answer.is_some() == open {
                return answer.unwrap_or_default();
            }
            tokio::task::yield_now().await;
        };
        let answer = until(first, true).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        for part in [
            "content-type: application/json",
            "x-content-type-options: nosniff",
            "x-load-balancing-endpoint-weight: 2",
            r#"{"service":{"namespace":"ns","name":"web"},"localEndpoints":2,"serviceProxyHealthy":true}"#,
        ] {
            assert!(answer.contains(part), "{part} in {answer}");
        }
        said.send(healthy(first.port(), 0)).unwrap();
        assert!(until(first, true).await.starts_with("HTTP/1.1 503"));
        let unhealthy = Snapshot {
            probe: None,
            ..healthy(first.port(), 2)
        };
        said.send(unhealthy).unwrap();
        let answer = until(first, true).await;
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        assert!(
            answer.contains(r#""serviceProxyHealthy":false"#),
            "{answer}"
        );
        said.send(healthy(second.port(), 3)).unwrap();
        assert!(until(second, true).await.starts_with("HTTP/1.1 200"));
        until(first, false).await;
        shutdown.cancel();
        server.await.unwrap();
    }

    #[tokio::test]
    async fn a_port_of_somebody_else_is_an_event_and_is_taken_when_it_is_free() {
        let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let at = other.local_addr().unwrap();
        let snapshot = |local_ready| Snapshot {
            synced: true,
            attached: true,
            probe: Some(Ok(())),
            health_checks: Arc::new(checks(&[("web", Family::V4, at.port(), local_ready)])),
            health_addresses: vec!["127.0.0.1".parse().unwrap()],
            ..Snapshot::default()
        };
        let (said, heard) = watch::channel(snapshot(1));
        let (notices, mut events) = mpsc::channel(8);
        let shutdown = CancellationToken::new();
        let late = Duration::from_secs(60);
        let server = tokio::spawn(serve_node_ports(heard, late, notices, shutdown.clone()));
        let event = events.recv().await.unwrap();
        assert_eq!(event.reason, "FailedToStartServiceHealthcheck");
        assert_eq!(event.about, About::Service(key("web", Family::V4).0));
        // Every sync tries again, and says nothing new.
        drop(other);
        said.send(snapshot(2)).unwrap();
        let answer = loop {
            match ask(at).await {
                Some(answer) if !answer.is_empty() => break answer,
                _ => tokio::task::yield_now().await,
            }
        };
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(events.try_recv().is_err());
        shutdown.cancel();
        server.await.unwrap();
    }
}
