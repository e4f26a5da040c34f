//! An API server that is away, fails, or denies: what is known stays, what is wrong is said, and
//! nothing is believed before it is complete.

use anyhow::{Result, ensure};
use lb_lab::agent::http_get;
use lb_tests::cluster::{Cluster, service};
use lb_tests::site::socket;
use serde_json::json;
use std::time::{Duration, Instant};

fn health(cluster: &Cluster) -> Result<(u16, String)> {
    http_get(cluster.site.lab().node(0), 10256, "/healthz")
}

#[test]
fn with_the_api_server_away_at_the_start_nothing_is_deleted_and_health_waits_for_all() -> Result<()>
{
    let mut cluster = Cluster::new()?;
    cluster.web("web", 1, &["a"])?;
    cluster.web("gone", 2, &["a"])?;
    cluster.start("")?;
    let clients = cluster.site.steady(socket(1))?;
    cluster.site.stop()?;
    cluster.api.down();
    let options = cluster.options("")?;
    cluster.site.launch_with(&options)?;
    cluster
        .site
        .await_log(&["cannot watch services at the API server", "stays"])?;
    cluster.site.until("health says why", || {
        Ok(match health(&cluster) {
            Ok((503, body)) if body.contains("the first sync is not complete") => None,
            other => Some(format!("{other:?}")),
        })
    })?;
    // It comes back without one of the three kinds, and with a service less.
    cluster.api.delete("services", "lab/gone");
    cluster
        .api
        .answer("endpointslices", Some((500, "etcd is slow")));
    cluster.up()?;
    cluster
        .site
        .await_log(&["answers 500 to", "endpointslices", "etcd is slow"])?;
    let (status, body) = health(&cluster)?;
    ensure!(status == 503, "{status} {body}");
    for number in [1, 2] {
        ensure!(cluster.site.ask(socket(number))? == "a", "10.96.1.{number}");
    }
    cluster.api.answer("endpointslices", None);
    cluster.site.await_health()?;
    cluster.site.await_silence(socket(2))?;
    ensure!(clients.finish()? > 0);
    cluster.site.await_metric("lb_source_problems", &[], None)
}

#[test]
fn an_outage_of_the_api_server_is_not_felt_and_what_changed_meanwhile_takes_effect() -> Result<()> {
    let mut cluster = Cluster::new()?;
    cluster.web("web", 1, &["a"])?;
    cluster.web("gone", 2, &["a"])?;
    cluster.start("")?;
    let clients = cluster.site.steady(socket(1))?;
    for round in 0..2 {
        cluster.api.down();
        let unreachable = ["problem=\"unreachable\""];
        cluster.site.until("the outage is said", || {
            let value = cluster.site.metric("lb_source_problems", &unreachable)?;
            Ok(value.is_none().then(|| "not yet".to_owned()))
        })?;
        // Long enough for several attempts; connections go on all the time.
        let end = Instant::now() + Duration::from_secs(3);
        while Instant::now() < end {
            ensure!(cluster.site.ask(socket(2))? == "a");
        }
        ensure!(
            health(&cluster)?.0 == 200,
            "an outage is no fault of the node"
        );
        cluster.api.delete("services", "lab/gone");
        cluster.web("new", 3, &["b"])?;
        if round == 1 {
            cluster.api.compact();
        }
        cluster.up()?;
        cluster.site.await_answer(socket(3), "b")?;
        cluster.site.await_silence(socket(2))?;
        cluster.site.await_metric("lb_source_problems", &[], None)?;
        cluster.web("gone", 2, &["a"])?;
        cluster.site.await_answer(socket(2), "a")?;
        cluster.api.delete("services", "lab/new");
        cluster.site.await_silence(socket(3))?;
    }
    ensure!(clients.finish()? > 0);
    Ok(())
}

#[test]
fn an_empty_list_after_an_outage_is_believed_as_kube_proxy_does_once_it_is_complete() -> Result<()>
{
    let mut cluster = Cluster::new()?;
    cluster.api.without_streaming_lists();
    cluster.web("web", 1, &["a"])?;
    cluster.start("")?;
    cluster.api.down();
    cluster.api.lose("services");
    cluster.api.compact();
    cluster.api.answer("services", Some((503, "starting")));
    cluster.up()?;
    cluster
        .site
        .await_log(&["answers 503 to", "services", "starting"])?;
    ensure!(
        cluster.site.ask(socket(1))? == "a",
        "an error is no empty list"
    );
    cluster.api.answer("services", None);
    cluster.site.await_silence(socket(1))?;
    cluster.web("web", 1, &["b"])?;
    cluster.site.await_answer(socket(1), "b")
}

#[test]
fn a_denied_resource_is_named_with_the_verb_and_stops_no_other() -> Result<()> {
    let mut cluster = Cluster::new()?;
    cluster.web("web", 1, &["a"])?;
    let said = "services is forbidden: User \"lb\" cannot watch resource \"services\"";
    cluster.start("")?;
    cluster.api.answer("services", Some((403, said)));
    cluster.api.compact();
    let line = cluster.site.await_log(&[
        "WARN",
        "does not allow this agent to watch services",
        said,
        "RBAC",
    ])?;
    ensure!(line.contains("what is known of services stays"), "{line}");
    cluster
        .site
        .await_metric("lb_source_problems", &["problem=\"forbidden\""], Some(1.0))?;
    cluster.site.until("status names it", || {
        let status = cluster.site.tool("status")?;
        Ok((!status.contains("does not allow this agent to watch services")).then_some(status))
    })?;
    // Endpoints go on; the service known so far is served with them.
    cluster.slice("web", &["b"])?;
    cluster.site.await_answer(socket(1), "b")?;
    ensure!(health(&cluster)?.0 == 200);
    cluster.api.answer("services", None);
    cluster.web("new", 2, &["a"])?;
    cluster.site.await_answer(socket(2), "a")?;
    cluster.site.await_metric("lb_source_problems", &[], None)
}

#[test]
fn an_object_that_does_not_decode_stops_no_other_and_is_named() -> Result<()> {
    for streaming in [true, false] {
        let mut cluster = Cluster::new()?;
        if !streaming {
            cluster.api.without_streaming_lists();
        }
        cluster.web("a-web", 1, &["a"])?;
        cluster.web("z-web", 3, &["b"])?;
        cluster.slice("mad", &["a"])?;
        let mut mad = service("mad", 2);
        mad["spec"]["ports"] = json!("eighty");
        cluster.api.put(&mad)?;
        cluster.start("")?;
        let named = ["Service lab/mad cannot be decoded", "\"eighty\""];
        cluster.site.await_log(&named)?;
        let undecodable = ["problem=\"undecodable\""];
        cluster
            .site
            .await_metric("lb_source_problems", &undecodable, Some(1.0))?;
        ensure!(cluster.site.ask(socket(1))? == "a" && cluster.site.ask(socket(3))? == "b");
        // It mends, breaks again as an event and in a new listing, and keeps its last good state.
        cluster.service("mad", 2)?;
        cluster.site.await_answer(socket(2), "a")?;
        cluster
            .site
            .await_metric("lb_source_problems", &undecodable, None)?;
        let clients = cluster.site.steady(socket(2))?;
        cluster.api.put(&mad)?;
        cluster
            .site
            .await_metric("lb_source_problems", &undecodable, Some(1.0))?;
        cluster.api.compact();
        cluster.web("later", 4, &["b"])?;
        cluster.site.await_answer(socket(4), "b")?;
        ensure!(clients.finish()? > 0);
        cluster.api.delete("services", "lab/mad");
        cluster.site.await_silence(socket(2))?;
        cluster
            .site
            .await_metric("lb_source_problems", &undecodable, None)?;
    }
    Ok(())
}
