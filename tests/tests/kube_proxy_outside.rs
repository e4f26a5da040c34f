//! What kube-proxy shows to dashboards, load balancers and people, shown by the real agent: metrics,
//! health, configuration, Events.

use anyhow::{Context, Result, ensure};
use lb_lab::AgentOptions;
use lb_lab::agent::http_get;
use lb_tests::cluster::{Cluster, service, slice};
use lb_tests::site::{Site, socket};
use serde_json::{Value, json};
use std::fs;
use std::net::{Ipv4Addr, TcpListener};

const V4: &str = "ip_family=\"IPv4\"";
const V6: &str = "ip_family=\"IPv6\"";
const SYNCS: &str = "kubeproxy_sync_proxy_rules_duration_seconds_count";
const SERVICES: &str = "kubeproxy_sync_proxy_rules_service_changes";
const ENDPOINTS: &str = "kubeproxy_sync_proxy_rules_endpoint_changes";

/// The JSON of a page of the agent.
fn page(site: &Site, port: u16, path: &str) -> Result<(u16, Value)> {
    let (status, body) = http_get(site.lab().node(0), port, path)?;
    Ok((status, serde_json::from_str(&body).with_context(|| body)?))
}

#[test]
fn syncs_changes_and_latencies_are_counted_by_family_under_kube_proxy_s_names() -> Result<()> {
    let mut cluster = Cluster::new()?;
    cluster.web("web", 1, &["a"])?;
    cluster.start("")?;
    let site = &cluster.site;
    // Counters are whole numbers.
    let value = |name: &str, labels: &[&str]| -> Result<i64> {
        let found = site.metric(name, labels)?;
        #[expect(clippy::cast_possible_truncation, reason = "seconds and small numbers")]
        found
            .map(|number| number as i64)
            .with_context(|| format!("no {name}"))
    };
    // The first sync is the full one, and counts for both families.
    for family in [V4, V6] {
        ensure!(value(SYNCS, &[family])? >= 1);
        let full = value(
            "kubeproxy_sync_full_proxy_rules_duration_seconds_count",
            &[family],
        )?;
        ensure!(full == 1, "{full} full syncs of {family}");
    }
    let v6 = value(SYNCS, &[V6])?;
    let before = value(&format!("{ENDPOINTS}_total"), &[])?;
    let mut changed = slice("web", std::iter::once(site.pod("b").v4().to_string()));
    // Later than any start of this process.
    changed["metadata"]["annotations"] =
        json!({"endpoints.kubernetes.io/last-change-trigger-time": "2999-01-01T00:00:00Z"});
    cluster.api.put(&changed)?;
    site.await_answer(socket(1), "b")?;
    let latencies = "kubeproxy_network_programming_duration_seconds_count";
    site.await_metric(latencies, &[V4], Some(1.0))?;
    ensure!(value(latencies, &[V6])? == 0, "no slice of IPv6 changed");
    ensure!(value(SYNCS, &[V6])? == v6, "no service of IPv6 changed");
    ensure!(
        value(
            "kubeproxy_sync_partial_proxy_rules_duration_seconds_count",
            &[V4]
        )? >= 1
    );
    ensure!(value(&format!("{ENDPOINTS}_total"), &[])? == before + 1);
    ensure!(value(&format!("{SERVICES}_total"), &[])? >= 1);
    for pending in [SERVICES, ENDPOINTS] {
        site.await_metric(&format!("{pending}_pending"), &[], Some(0.0))?;
    }
    let synced = value("kubeproxy_sync_proxy_rules_last_timestamp_seconds", &[V4])?;
    let queued = value(
        "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
        &[V4],
    )?;
    ensure!(
        synced >= queued && queued > 1_000_000_000,
        "synced {synced}, queued {queued}"
    );
    Ok(())
}

#[test]
fn service_ports_that_a_local_policy_silences_here_are_counted() -> Result<()> {
    let mut cluster = Cluster::new()?;
    let mut local = service("web", 1);
    local["spec"]["internalTrafficPolicy"] = json!("Local");
    cluster.api.put(&local)?;
    let mut elsewhere = slice("web", std::iter::once("10.9.9.9".to_owned()));
    elsewhere["endpoints"][0]["nodeName"] = json!("another");
    cluster.api.put(&elsewhere)?;
    cluster.start("")?;
    let name = "kubeproxy_sync_proxy_rules_no_local_endpoints_total";
    let internal = "traffic_policy=\"internal\"";
    let external = "traffic_policy=\"external\"";
    // Each kind of object is watched by a request that was answered.
    let answered = ["code=\"200\"", "method=\"GET\""];
    let requests = cluster
        .site
        .metric("rest_client_requests_total", &answered)?;
    ensure!(requests >= Some(3.0), "{requests:?}");
    cluster
        .site
        .await_metric(name, &[internal, V4], Some(1.0))?;
    ensure!(cluster.site.metric(name, &[external, V4])? == Some(0.0));
    ensure!(cluster.site.metric(name, &[internal, V6])? == Some(0.0));
    // An endpoint here ends it.
    cluster.slice("web", &["a"])?;
    cluster
        .site
        .await_metric(name, &[internal, V4], Some(0.0))?;
    // Nobody anywhere is another matter.
    cluster.api.put(&slice("web", std::iter::empty()))?;
    cluster.site.await_silence(socket(1))?;
    ensure!(cluster.site.metric(name, &[internal, V4])? == Some(0.0));
    Ok(())
}

#[test]
fn the_pages_beside_metrics_answer_as_kube_proxy_s_do() -> Result<()> {
    let mut site = Site::new(&["a"])?;
    site.write("web.yaml", site.web("web", 1, &["a"]))?;
    let file = site.lab().dir().join("config.conf");
    fs::write(
        &file,
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n\
         mode: nftables\nnftables: {syncPeriod: 45s}\nconntrack: {maxPerCore: 0}\nnodePortAddresses: [10.0.0.0/8]\n",
    )?;
    let words = format!("--config {} --max-flows 8192", file.display());
    site.start_with(&AgentOptions::manifests(&site.directory()).with(&words))?;
    let (status, body) = http_get(site.lab().node(0), 10249, "/healthz")?;
    ensure!((status, body.as_str()) == (200, "ok"), "{status} {body}");
    let (status, mode) = http_get(site.lab().node(0), 10249, "/proxyMode")?;
    ensure!((status, mode.as_str()) == (200, "ebpf"), "{status} {mode}");
    let (status, config) = page(&site, 10249, "/configz")?;
    ensure!(status == 200);
    for (pointer, wanted) in [
        ("/kubeproxy.config.k8s.io/mode", json!("nftables")),
        ("/kubeproxy.config.k8s.io/nftables/syncPeriod", json!("45s")),
        ("/kubeproxy.config.k8s.io/iptables/syncPeriod", json!("30s")),
        (
            "/kubeproxy.config.k8s.io/nodePortAddresses",
            json!(["10.0.0.0/8"]),
        ),
        ("/kubeproxy.config.k8s.io/conntrack/maxPerCore", json!(0)),
        ("/lb-agent/node", json!("node0")),
        ("/lb-agent/maxFlows", json!(8192)),
    ] {
        ensure!(
            config.pointer(pointer) == Some(&wanted),
            "{pointer}: {config:#}"
        );
    }
    let (status, flags) = http_get(site.lab().node(0), 10249, "/flagz")?;
    ensure!(
        status == 200 && flags.contains("\nmax-flows=8192\n"),
        "{flags}"
    );
    let (status, who) = http_get(site.lab().node(0), 10249, "/statusz")?;
    ensure!(status == 200 && who.contains("\nStarted: "), "{who}");
    let (status, slis) = http_get(site.lab().node(0), 10249, "/metrics/slis")?;
    ensure!(status == 200);
    for name in ["ping", "service-path"] {
        let labels = format!("{{name=\"{name}\",type=\"healthz\"}} 1");
        ensure!(
            slis.contains(&format!("kubernetes_healthcheck{labels}\n")),
            "{slis}"
        );
    }
    for (path, eligible) in [("/healthz", Some(true)), ("/livez", None)] {
        let (status, health) = page(&site, 10256, path)?;
        ensure!(status == 200 && health["healthy"] == true, "{health:#}");
        ensure!(health["nodeEligible"].as_bool() == eligible, "{health:#}");
        ensure!(health["lastUpdated"] == health["currentTime"], "{health:#}");
        for family in ["IPv4", "IPv6"] {
            let of_family = &health["status"][family];
            ensure!(of_family["healthy"] == true && of_family["lastUpdated"].is_string());
        }
    }
    ensure!(http_get(site.lab().node(0), 10256, "/metrics")?.0 == 404);
    Ok(())
}

#[test]
fn changes_wait_for_the_least_pause_that_was_asked_for() -> Result<()> {
    let mut site = Site::new(&["a", "b"])?;
    site.write("web.yaml", site.web("web", 1, &["a"]))?;
    let file = site.lab().dir().join("config.conf");
    let write = |periods: &str| -> Result<()> {
        let text = format!(
            "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n\
             conntrack: {{maxPerCore: 0}}\niptables: {{{periods}}}\n"
        );
        Ok(fs::write(&file, text)?)
    };
    // Longer than any test.
    write("minSyncPeriod: 10h, syncPeriod: 20h")?;
    let words = format!("--config {}", file.display());
    let options = AgentOptions::manifests(&site.directory()).with(&words);
    site.start_with(&options)?;
    let syncs = site.metric(SYNCS, &[V4])?;
    site.write("more.yaml", site.web("more", 2, &["b"]))?;
    site.until("the change is seen", || {
        let pending = site.metric(&format!("{SERVICES}_pending"), &[])?;
        Ok((pending != Some(1.0)).then(|| format!("{pending:?} pending")))
    })?;
    ensure!(site.metric(SYNCS, &[V4])? == syncs, "it was served at once");
    site.stop()?;
    write("minSyncPeriod: 100ms")?;
    site.start_with(&options)?;
    site.await_answer(socket(2), "b")?;
    site.write("third.yaml", site.web("third", 3, &["a"]))?;
    site.await_answer(socket(3), "a")?;
    Ok(())
}

/// The Events that were written, with this reason.
fn events(cluster: &Cluster, reason: &str) -> Vec<Value> {
    let created = cluster.api.created().into_iter();
    let events = created.filter(|(path, _)| path.starts_with("/apis/events.k8s.io/v1/"));
    let events = events.map(|(_, event)| event);
    events.filter(|event| event["reason"] == reason).collect()
}

#[test]
fn the_start_and_a_health_check_port_that_is_taken_are_events() -> Result<()> {
    const PORT: u16 = 32_000;
    let mut cluster = Cluster::new()?;
    let node = cluster.site.lab().node(0).place();
    let other = node.enter(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)))??;
    let mut balanced = service("web", 1);
    balanced["spec"]["type"] = json!("LoadBalancer");
    balanced["spec"]["externalTrafficPolicy"] = json!("Local");
    balanced["spec"]["healthCheckNodePort"] = json!(PORT);
    cluster.api.put(&balanced)?;
    cluster.slice("web", &["a"])?;
    cluster.start("")?;
    let failed = "FailedToStartServiceHealthcheck";
    for reason in ["Starting", failed] {
        cluster
            .site
            .until(&format!("there is an Event {reason}"), || {
                let missing = events(&cluster, reason).is_empty();
                Ok(missing.then(|| format!("{:?}", cluster.api.created())))
            })?;
    }
    let start = &events(&cluster, "Starting")[0];
    ensure!(start["regarding"]["kind"] == "Node" && start["regarding"]["name"] == "node0");
    ensure!(start["metadata"]["namespace"] == "default" && start["type"] == "Normal");
    let failed = &events(&cluster, failed)[0];
    ensure!(failed["regarding"]["kind"] == "Service" && failed["regarding"]["name"] == "web");
    ensure!(failed["metadata"]["namespace"] == "lab" && failed["type"] == "Warning");
    // Free again, it is taken, and says how many endpoints are here.
    drop(other);
    cluster.site.until("the health check answers", || {
        let answer = http_get(cluster.site.lab().node(0), PORT, "/");
        Ok(match answer {
            Ok((200, body)) if body.contains(r#""localEndpoints":1"#) => None,
            other => Some(format!("{other:?}")),
        })
    })
}

#[test]
fn without_the_right_to_write_events_everything_else_works() -> Result<()> {
    let mut cluster = Cluster::new()?;
    cluster
        .api
        .answer("events", Some((403, "events is forbidden")));
    cluster.web("web", 1, &["a"])?;
    cluster.start("")?;
    ensure!(cluster.site.ask(socket(1))? == "a");
    cluster.site.await_log(&["takes no Event", "forbidden"])?;
    ensure!(cluster.api.created().is_empty());
    Ok(())
}
