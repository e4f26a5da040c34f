use super::test_server::{Answer, mock, serve};
use super::*;
use crate::source::Problem;
use ::kube::Client;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::Instant;

mod outage;

/// Simulated time: the clock stands still while anything can run.
const PATIENCE: Duration = Duration::from_secs(1800);

struct Running {
    changes: mpsc::Receiver<Change>,
    reports: mpsc::Receiver<Report>,
}

fn start(clients: Vec<Client>, use_endpoints: bool) -> Running {
    let named = |(number, client)| (format!("https://server-{number}"), client);
    let source = KubeSource {
        servers: Servers::new(clients.into_iter().enumerate().map(named).collect()),
        node: "here".to_owned(),
        use_endpoints,
        watch_labels: false,
    };
    let (change_sender, changes) = mpsc::channel(64);
    let (report_sender, reports) = mpsc::channel(64);
    tokio::spawn(source.run(change_sender, report_sender, CancellationToken::new()));
    Running { changes, reports }
}

impl Running {
    /// The next change of a kind, as words.
    async fn next(&mut self, wanted: Kind) -> String {
        loop {
            let change = tokio::time::timeout(PATIENCE, self.changes.recv()).await;
            let (kind, told) = match change.expect("a change in time").expect("a running source") {
                Change::Restart(kind) => (kind, "restart".to_owned()),
                Change::Complete(kind) => (kind, "complete".to_owned()),
                Change::Keep(kind, name) => (kind, format!("keep {name}")),
                Change::Delete(kind, name) => (kind, format!("delete {name}")),
                Change::Apply(Object::Service(object)) => (
                    Kind::Service,
                    format!("apply {}", ObjectName::of(&object.metadata)),
                ),
                Change::Apply(Object::EndpointSlice(object)) => (
                    Kind::EndpointSlice,
                    format!("apply {}", ObjectName::of(&object.metadata)),
                ),
                Change::Apply(Object::ServiceCidr(object)) => (
                    Kind::ServiceCidr,
                    format!("apply {}", object.metadata.name.unwrap()),
                ),
                Change::Apply(Object::Pod(object)) => (
                    Kind::Pod,
                    format!("apply {}", object.metadata.name.unwrap()),
                ),
                Change::Apply(Object::Namespace(object)) => (
                    Kind::Namespace,
                    format!("apply {}", object.metadata.name.unwrap()),
                ),
                Change::Apply(Object::Node(object)) => (
                    Kind::Node,
                    format!("apply {}", object.metadata.name.unwrap()),
                ),
            };
            if kind == wanted {
                return told;
            }
        }
    }

    async fn said(&mut self) -> (Problem, String) {
        let report = tokio::time::timeout(PATIENCE, self.reports.recv()).await;
        match report.expect("a report in time").expect("a running source") {
            Report::Refused(refusal) => (refusal.problem, refusal.sentence),
            Report::Resolved { object, .. } => panic!("{object} resolved"),
        }
    }
}

fn service(name: &str) -> Value {
    json!({"kind": "Service", "apiVersion": "v1",
        "metadata": {"name": name, "namespace": "n", "resourceVersion": "7"}})
}

fn added(object: &Value) -> Value {
    json!({"type": "ADDED", "object": object})
}

/// What ends the first part of a streaming list (KEP-3157).
fn end_of_list(kind: &str, version: &str) -> Value {
    json!({"type": "BOOKMARK", "object": {"kind": kind, "apiVersion": version, "metadata": {
        "resourceVersion": "9", "annotations": {"k8s.io/initial-events-end": "true"}}}})
}

fn is_services(query: &str) -> bool {
    query.starts_with("/api/v1/services?")
}

#[tokio::test(start_paused = true)]
async fn services_are_listed_by_a_stream_with_kube_proxys_selectors() {
    let (client, requests) = mock();
    serve(requests, |query| {
        if !is_services(query) || !query.contains("sendInitialEvents=true") {
            return Answer::Hang;
        }
        assert!(
            query.contains("labelSelector=!service.kubernetes.io/service-proxy-name"),
            "{query}"
        );
        assert!(
            query.contains("fieldSelector=spec.clusterIP!=None"),
            "{query}"
        );
        assert!(query.contains("timeoutSeconds=240"), "{query}");
        Answer::Events(vec![added(&service("a")), end_of_list("Service", "v1")])
    });
    let mut running = start(vec![client], false);
    assert_eq!(running.next(Kind::Service).await, "restart");
    assert_eq!(running.next(Kind::Service).await, "apply n/a");
    assert_eq!(running.next(Kind::Service).await, "complete");
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_breaks_goes_on_where_it_was_without_a_new_listing() {
    let (client, requests) = mock();
    let mut watches = 0;
    serve(requests, move |query| {
        if !is_services(query) {
            return Answer::Hang;
        }
        watches += 1;
        match watches {
            1 => Answer::Events(vec![end_of_list("Service", "v1")]),
            2 => {
                assert!(query.contains("resourceVersion=9"), "{query}");
                Answer::Refuse
            }
            3 => {
                assert!(query.contains("resourceVersion=9"), "{query}");
                let deleted = json!({"type": "DELETED", "object": service("b")});
                Answer::Events(vec![added(&service("b")), deleted])
            }
            _ => Answer::Hang,
        }
    });
    let mut running = start(vec![client], false);
    for expected in ["restart", "complete", "apply n/b", "delete n/b"] {
        assert_eq!(running.next(Kind::Service).await, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn an_expired_watch_lists_anew() {
    let (client, requests) = mock();
    let mut lists = 0;
    serve(requests, move |query| {
        if !is_services(query) || (lists == 2 && !query.contains("sendInitialEvents")) {
            return Answer::Hang;
        }
        if !query.contains("sendInitialEvents") {
            let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure",
                "code": 410, "reason": "Expired", "message": "too old resource version"});
            return Answer::Events(vec![json!({"type": "ERROR", "object": status})]);
        }
        lists += 1;
        let name = if lists == 1 { "before" } else { "after" };
        Answer::Events(vec![added(&service(name)), end_of_list("Service", "v1")])
    });
    let mut running = start(vec![client], false);
    for expected in [
        "restart",
        "apply n/before",
        "complete",
        "restart",
        "apply n/after",
        "complete",
    ] {
        assert_eq!(running.next(Kind::Service).await, expected);
    }
    assert!(running.reports.try_recv().is_err(), "expiry is no trouble");
}

#[tokio::test(start_paused = true)]
async fn a_server_without_streaming_lists_is_listed_in_pages_even_when_empty() {
    let (client, requests) = mock();
    serve(requests, |query| {
        if !is_services(query) {
            return Answer::Hang;
        }
        if query.contains("sendInitialEvents") {
            return Answer::Status(422, "sendInitialEvents is forbidden for watch");
        }
        if query.contains("watch=true") {
            return Answer::Hang;
        }
        assert!(query.contains("limit=500"), "{query}");
        Answer::Object(json!({"kind": "ServiceList", "apiVersion": "v1",
            "metadata": {"resourceVersion": "5"}, "items": []}))
    });
    let mut running = start(vec![client], false);
    // The rejected attempt may have begun a listing; a completed one follows.
    let mut told = running.next(Kind::Service).await;
    while told == "restart" {
        told = running.next(Kind::Service).await;
    }
    assert_eq!(told, "complete");
    assert!(
        running.reports.try_recv().is_err(),
        "an older server is no trouble"
    );
}

#[tokio::test(start_paused = true)]
async fn a_denied_resource_is_named_deletes_nothing_and_holds_up_no_other() {
    let (client, requests) = mock();
    serve(requests, |query| {
        if is_services(query) {
            return Answer::Status(
                403,
                "services is forbidden: User \"lb\" cannot list resource",
            );
        }
        if query.starts_with("/apis/discovery.k8s.io") && query.contains("sendInitialEvents") {
            return Answer::Events(vec![end_of_list("EndpointSlice", "discovery.k8s.io/v1")]);
        }
        Answer::Hang
    });
    let mut running = start(vec![client], false);
    let (problem, sentence) = running.said().await;
    assert_eq!(problem, Problem::Forbidden);
    assert!(
        sentence.contains("does not allow this agent to watch services"),
        "{sentence}"
    );
    assert!(
        sentence.contains("what is known of services stays"),
        "{sentence}"
    );
    assert_eq!(running.next(Kind::EndpointSlice).await, "restart");
    assert_eq!(running.next(Kind::EndpointSlice).await, "complete");
    assert!(running.reports.try_recv().is_err(), "said once");
}

#[tokio::test(start_paused = true)]
async fn another_address_takes_over_when_one_cannot_be_reached() {
    let (dead, refused) = mock();
    let (alive, requests) = mock();
    serve(refused, |_| Answer::Refuse);
    serve(requests, |query| {
        if is_services(query) && query.contains("sendInitialEvents") {
            return Answer::Events(vec![end_of_list("Service", "v1")]);
        }
        Answer::Hang
    });
    let mut running = start(vec![dead, alive], false);
    let (problem, sentence) = running.said().await;
    assert_eq!(problem, Problem::Unreachable);
    assert!(
        sentence.contains("at the API server https://server-0: "),
        "{sentence}"
    );
    assert!(sentence.contains("connection refused"), "{sentence}");
    let mut told = running.next(Kind::Service).await;
    while told == "restart" {
        told = running.next(Kind::Service).await;
    }
    assert_eq!(told, "complete");
}

#[tokio::test(start_paused = true)]
async fn waits_grow_while_lists_fail() {
    let (client, requests) = mock();
    let (sender, mut times) = mpsc::unbounded_channel();
    serve(requests, move |query| {
        if !is_services(query) {
            return Answer::Hang;
        }
        if query.contains("sendInitialEvents") {
            return Answer::Status(400, "unknown parameter");
        }
        sender.send(Instant::now()).unwrap();
        Answer::Status(500, "etcd is away")
    });
    let mut running = start(vec![client], false);
    tokio::spawn(async move { while running.changes.recv().await.is_some() {} });
    let mut last = times.recv().await.unwrap();
    let mut waits = Vec::new();
    for _ in 0..7 {
        let at = times.recv().await.unwrap();
        waits.push((at - last).as_secs_f64());
        last = at;
    }
    assert!(waits[0] < 1.3 && waits[6] > 14.0, "{waits:?}");
}

#[tokio::test(start_paused = true)]
async fn endpoints_of_old_clusters_are_told_as_slices() {
    let (client, requests) = mock();
    let endpoints = |ip: &str, kind: &str| {
        json!({"type": kind, "object": {"kind": "Endpoints", "apiVersion": "v1",
            "metadata": {"name": "web", "namespace": "n", "resourceVersion": "8"},
            "subsets": [{"addresses": [{"ip": ip}], "ports": [{"port": 80}]}]}})
    };
    let mut watches = 0;
    serve(requests, move |query| {
        if !query.starts_with("/api/v1/endpoints?") {
            return Answer::Hang;
        }
        assert!(
            query.contains("labelSelector=!service.kubernetes.io/headless"),
            "{query}"
        );
        watches += 1;
        match watches {
            1 => Answer::Events(vec![
                endpoints("10.0.0.1", "ADDED"),
                end_of_list("Endpoints", "v1"),
            ]),
            2 => Answer::Events(vec![
                endpoints("fd00::1", "MODIFIED"),
                endpoints("fd00::1", "DELETED"),
            ]),
            _ => Answer::Hang,
        }
    });
    let mut running = start(vec![client], true);
    for expected in [
        "restart",
        "apply n/web~endpoints-ipv4-0",
        "complete",
        "apply n/web~endpoints-ipv6-0",
        "delete n/web~endpoints-ipv4-0",
        "delete n/web~endpoints-ipv6-0",
    ] {
        assert_eq!(running.next(Kind::EndpointSlice).await, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn only_the_own_node_is_watched() {
    let (client, requests) = mock();
    serve(requests, |query| {
        if !query.starts_with("/api/v1/nodes?") || !query.contains("sendInitialEvents") {
            return Answer::Hang;
        }
        assert!(
            query.contains("fieldSelector=metadata.name=here"),
            "{query}"
        );
        let node = json!({"kind": "Node", "apiVersion": "v1",
            "metadata": {"name": "here", "resourceVersion": "7"}});
        Answer::Events(vec![added(&node), end_of_list("Node", "v1")])
    });
    let mut running = start(vec![client], false);
    for expected in ["restart", "apply here", "complete"] {
        assert_eq!(running.next(Kind::Node).await, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn an_object_that_does_not_decode_stays_as_it_was_and_stops_no_other() {
    let (client, requests) = mock();
    let mut bad = service("bad");
    bad["spec"] = json!({"ports": "80"});
    let mut watches = 0;
    serve(requests, move |query| {
        if !is_services(query) {
            return Answer::Hang;
        }
        watches += 1;
        match watches {
            1 => Answer::Events(vec![
                added(&service("a")),
                added(&bad),
                added(&service("c")),
                end_of_list("Service", "v1"),
                json!({"type": "MODIFIED", "object": service("bad")}),
            ]),
            _ => Answer::Hang,
        }
    });
    let mut running = start(vec![client], false);
    for expected in [
        "restart",
        "apply n/a",
        "keep n/bad",
        "apply n/c",
        "complete",
        "apply n/bad",
    ] {
        assert_eq!(running.next(Kind::Service).await, expected);
    }
    let (problem, sentence) = running.said().await;
    assert_eq!(problem, Problem::Undecodable);
    assert!(
        sentence.starts_with("Service n/bad cannot be decoded: invalid type: string \"80\""),
        "{sentence}"
    );
    let report = running.reports.recv().await.unwrap();
    let object = "Service n/bad".to_owned();
    assert_eq!(report, Report::Resolved { object, file: None });
}

#[tokio::test(start_paused = true)]
async fn service_cidrs_are_followed_and_no_trouble_where_there_are_none() {
    let (client, requests) = mock();
    let mut asked = 0;
    serve(requests, move |query| {
        if !query.starts_with("/apis/networking.k8s.io/v1/servicecidrs?") {
            return Answer::Hang;
        }
        asked += 1;
        // An API server from before 1.33, which is upgraded meanwhile.
        if asked < 3 {
            return Answer::Status(404, "the server could not find the requested resource");
        }
        let range = json!({"kind": "ServiceCIDR", "apiVersion": "networking.k8s.io/v1",
            "metadata": {"name": "kubernetes", "resourceVersion": "7"},
            "spec": {"cidrs": ["10.96.0.0/16"]}});
        Answer::Events(vec![
            added(&range),
            end_of_list("ServiceCIDR", "networking.k8s.io/v1"),
        ])
    });
    let mut running = start(vec![client], false);
    let mut said = running.next(Kind::ServiceCidr).await;
    while said == "restart" {
        said = running.next(Kind::ServiceCidr).await;
    }
    assert_eq!(said, "apply kubernetes");
    assert_eq!(running.next(Kind::ServiceCidr).await, "complete");
    assert!(running.reports.try_recv().is_err(), "nothing is wrong");
}
