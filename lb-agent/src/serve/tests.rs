//! The metrics page from tables that a test fills, and the listeners over real sockets.

use super::*;
use crate::app::{Refusal, Snapshot, Updates};
use crate::datapath::{Closed, Fill, ReadError};
use crate::serve::catalog::{ALL, Metric};
use crate::serve::testing::{empty_service, web_service};
use crate::source::kube::requests::Requests;
use lb_common::verdict::Reason;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

#[derive(Debug)]
struct Tables(Option<Reading>);

impl TableView for Tables {
    fn read(&self) -> Result<Reading, ReadError> {
        self.0.clone().ok_or_else(|| ReadError::Absent {
            directory: PathBuf::from("/nowhere"),
        })
    }
}

fn reading() -> Reading {
    Reading {
        services: vec![web_service(), empty_service()],
        reasons: vec![(Reason::NotOurs, 5), (Reason::FlowTableFull, 6)],
        fill: vec![Fill {
            table: "lb_flows",
            used: 10,
            capacity: 100,
        }],
    }
}

fn served_once() -> Updates {
    let mut updates = Updates::default();
    updates.served(std::time::SystemTime::UNIX_EPOCH);
    updates
}

fn snapshot() -> Snapshot {
    let mut snapshot = Snapshot {
        attached: true,
        node_eligible: true,
        updates: [served_once(); 2],
        synced: true,
        last_sync: Some(UNIX_EPOCH + Duration::from_secs(1_000_000_000)),
        refusals: vec![Refusal {
            object: "default/bad".to_owned(),
            reason: "loopback_endpoint".to_owned(),
            message: "a sentence".to_owned(),
        }],
        probe: Some(Ok(())),
        closed_pod_sockets: Some(Closed {
            closed: 3,
            ..Closed::default()
        }),
        ..Snapshot::default()
    };
    for work in &mut snapshot.work {
        work.syncs.observe(Duration::from_millis(1));
        work.programming.observe(Duration::from_millis(4));
        work.queued = Some(UNIX_EPOCH + Duration::from_secs(999_999_999));
    }
    snapshot
}

struct Fixture {
    served: Served<Tables>,
    snapshot: watch::Sender<Snapshot>,
    // Kept so that the page can still read it.
    _problems: watch::Sender<BTreeMap<&'static str, u64>>,
}

fn requests() -> Arc<Requests> {
    let requests = Requests::default();
    requests.note(
        Some(200),
        "GET",
        "api:6443",
        Some(Duration::from_millis(20)),
    );
    requests.note(None, "GET", "api:6443", None);
    Arc::new(requests)
}

fn fixture(tables: Option<Reading>, said: Snapshot) -> Fixture {
    let (snapshot, snapshot_seen) = watch::channel(said);
    let (problems, source_problems) = watch::channel(BTreeMap::from([("unparsable", 1)]));
    let served = Served::new(NodeMetrics {
        tables: Tables(tables),
        snapshot: snapshot_seen,
        source_problems,
        late: crate::serve::health::LATE,
        configuration: serde_json::json!({"kubeproxy.config.k8s.io": {}}),
        healthz: Answers::default(),
        livez: Answers::default(),
        ping: Answers::default(),
        flags: BTreeMap::from([("node".to_owned(), "here".to_owned())]),
        requests: requests(),
    });
    Fixture {
        served,
        snapshot,
        _problems: problems,
    }
}

#[test]
fn every_metric_of_the_reference_is_served_and_no_other() {
    let page = fixture(Some(reading()), snapshot()).served.page().unwrap();
    let served: BTreeSet<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .filter_map(|line| line.split(' ').next())
        .collect();
    let documented: BTreeSet<&str> = ALL.iter().map(|metric: &&Metric| metric.name).collect();
    assert_eq!(served, documented);
}

#[test]
fn services_are_counted_by_path() {
    let page = fixture(Some(reading()), snapshot()).served.page().unwrap();
    let web = r#"namespace="default",name="web",port="http",protocol="TCP",ip_family="IPv4""#;
    for line in [
        format!(r#"lb_service_connections_total{{{web},path="socket"}} 30"#),
        format!(r#"lb_service_connections_total{{{web},path="tc"}} 12"#),
        format!(r#"lb_service_active_connections{{{web},path="socket"}} 3"#),
        format!(r#"lb_service_active_connections{{{web},path="tc"}} 4"#),
        format!(r#"lb_service_rejects_total{{{web},path="socket"}} 1"#),
        format!(r#"lb_service_packets_total{{{web},path="tc",direction="in"}} 100"#),
        format!(r#"lb_service_bytes_total{{{web},path="tc",direction="out"}} 4500"#),
        format!(r#"lb_service_endpoints{{{web},state="draining"}} 1"#),
        r#"lb_reasons_total{reason="flow_table_full"} 6"#.to_owned(),
        r#"lb_table_entries{table="lb_flows"} 10"#.to_owned(),
        r#"lb_refused_objects{reason="loopback_endpoint"} 1"#.to_owned(),
        r#"lb_source_problems{problem="unparsable"} 1"#.to_owned(),
        r#"rest_client_requests_total{code="<error>",method="GET",host="api:6443"} 1"#.to_owned(),
        r#"rest_client_request_duration_seconds_bucket{le="0.025",verb="GET",host="api:6443"} 1"#.to_owned(),
        r#"kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family="IPv4"} 1"#.to_owned(),
        r#"kubeproxy_sync_proxy_rules_duration_seconds_bucket{le="0.001",ip_family="IPv4"} 1"#.to_owned(),
        r#"kubeproxy_network_programming_duration_seconds_bucket{le="0.25",ip_family="IPv6"} 1"#.to_owned(),
        r#"kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family="IPv4"} 0.0"#.to_owned(),
        r#"kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family="IPv4",traffic_policy="internal"} 0"#.to_owned(),
    ] {
        assert!(
            page.lines().any(|found| found == line),
            "{line}\nnot in:\n{page}"
        );
    }
    assert!(page.ends_with("# EOF\n"));
}

#[test]
fn what_a_path_does_not_count_is_absent_not_zero() {
    let page = fixture(Some(reading()), snapshot()).served.page().unwrap();
    for line in page.lines().filter(|line| line.starts_with("lb_service_")) {
        let packet_path_only = ["lb_service_packets", "lb_service_bytes", "lb_service_drops"];
        if packet_path_only.iter().any(|name| line.starts_with(name)) {
            assert!(!line.contains(r#"path="socket""#), "{line}");
        }
    }
    assert!(!page.contains("not_ours"), "not counted by the programs");

    let unreadable = fixture(None, Snapshot::default()).served.page().unwrap();
    assert!(unreadable.contains("lb_tables_readable 0\n"));
    for name in ["lb_service_", "lb_reasons", "lb_table_entries"] {
        assert!(!unreadable.contains(name), "{name}");
    }
    assert!(
        !unreadable.contains("lb_datapath_probe 0"),
        "never probed is not failed"
    );
}

/// One HTTP request; the whole answer.
async fn ask(address: std::net::SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn the_metrics_address_answers_metrics_liveness_and_the_mode() {
    let fixture = fixture(Some(reading()), snapshot());
    let shutdown = CancellationToken::new();
    let any = "127.0.0.1:0".parse().unwrap();
    let address = serve_metrics(any, fixture.served, shutdown.clone())
        .await
        .unwrap();
    let page = ask(address, "/metrics").await;
    assert!(page.starts_with("HTTP/1.1 200 OK"), "{page}");
    assert!(
        page.contains("content-type: application/openmetrics-text"),
        "{page}"
    );
    assert!(ask(address, "/healthz").await.ends_with("\r\n\r\nok"));
    assert!(ask(address, "/proxyMode").await.ends_with("\r\n\r\nebpf"));
    let slis = ask(address, "/metrics/slis").await;
    for line in [
        r#"kubernetes_healthcheck{name="ping",type="healthz"} 1"#,
        r#"kubernetes_healthchecks_total{name="ping",type="healthz",status="success"} 1"#,
        r#"kubernetes_healthchecks_total{name="service-path",type="livez",status="error"} 0"#,
    ] {
        assert!(slis.lines().any(|found| found == line), "{slis}");
    }
    assert!(
        !slis.contains(r#"kubernetes_healthcheck{name="service-path""#),
        "{slis}"
    );
    assert!(ask(address, "/flagz").await.ends_with("only.\nnode=here\n"));
    let status = ask(address, "/statusz").await;
    assert!(status.starts_with("HTTP/1.1 200 OK"), "{status}");
    assert!(status.contains("\nlb-agent statusz\n"), "{status}");
    // Everything that it names is there.
    for path in crate::serve::zpages::PATHS {
        let page = ask(address, path).await;
        assert!(page.starts_with("HTTP/1.1 200 OK"), "{path}: {page}");
    }
    assert!(ask(address, "/debug").await.starts_with("HTTP/1.1 404"));
    shutdown.cancel();
}

#[tokio::test]
async fn a_metrics_port_that_is_taken_is_a_clear_error() {
    let holder = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = holder.local_addr().unwrap();
    let served = fixture(None, Snapshot::default()).served;
    let error = serve_metrics(address, served, CancellationToken::new())
        .await
        .unwrap_err();
    let error = format!("{:#}", anyhow::Error::from(error));
    assert!(
        error.contains(&format!("cannot serve metrics on {address}")),
        "{error}"
    );
    assert!(error.contains("--metrics-bind-address"), "{error}");
    assert!(error.contains("in use"), "{error}");
}

#[tokio::test]
async fn health_follows_the_snapshot_and_is_counted() {
    let Fixture {
        served,
        snapshot: said,
        _problems,
    } = fixture(None, Snapshot::default());
    let shutdown = CancellationToken::new();
    let (bound, address) = oneshot::channel();
    let any = "127.0.0.1:0".parse().unwrap();
    let server = tokio::spawn(serve_health(
        any,
        served.clone(),
        false,
        shutdown.clone(),
        |address| {
            let _ = bound.send(address);
        },
    ));
    let address = address.await.unwrap();

    let before = ask(address, "/healthz").await;
    assert!(before.starts_with("HTTP/1.1 503"), "{before}");
    assert!(before.contains(r#""healthy":false"#), "{before}");
    said.send(snapshot()).unwrap();
    let after = ask(address, "/healthz").await;
    assert!(after.starts_with("HTTP/1.1 200"), "{after}");
    assert!(after.contains(r#""lastUpdated":"#), "{after}");
    assert!(ask(address, "/livez").await.starts_with("HTTP/1.1 200"));
    assert!(ask(address, "/metrics").await.starts_with("HTTP/1.1 404"));

    let page = served.page().unwrap();
    assert!(
        page.contains(r#"kubeproxy_proxy_healthz_total{code="200"} 1"#),
        "{page}"
    );
    assert!(
        page.contains(r#"kubeproxy_proxy_healthz_total{code="503"} 1"#),
        "{page}"
    );
    assert!(
        page.contains(r#"kubeproxy_proxy_livez_total{code="200"} 1"#),
        "{page}"
    );
    shutdown.cancel();
    server.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_health_address_that_is_taken_is_tried_again() {
    let holder = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = holder.local_addr().unwrap();
    let served = fixture(None, snapshot()).served;
    let shutdown = CancellationToken::new();
    let (bound, heard) = oneshot::channel();
    let listener = tokio::spawn(serve_health(
        address,
        served,
        false,
        shutdown.clone(),
        |address| {
            let _ = bound.send(address);
        },
    ));
    // The clock is paused: it moves on to the next attempt as soon as everybody waits.
    tokio::time::sleep(Duration::from_secs(12)).await;
    drop(holder);
    assert_eq!(heard.await.unwrap(), address);
    shutdown.cancel();
    listener.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_taken_health_address_ends_the_insistent() {
    let Fixture { served, .. } = fixture(None, Snapshot::default());
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = other.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let ended = serve_health(address, served, true, shutdown, |_| {}).await;
    let error = ended.unwrap_err().to_string();
    assert!(error.contains("--healthz-bind-address"), "{error}");
}
