//! The Kubernetes API as the source: the real agent against an API server that does what real ones
//! do on their good and bad days, with real traffic beside.

use anyhow::{Result, ensure};
use lb_tests::cluster::{Cluster, service, slice};
use lb_tests::site::socket;
use serde_json::json;
use std::time::Duration;

#[test]
fn lists_watch_events_and_bookmarks_become_traffic_with_and_without_streaming_lists() -> Result<()>
{
    for streaming in [true, false] {
        let mut cluster = Cluster::new()?;
        if !streaming {
            cluster.api.without_streaming_lists();
        }
        cluster.web("web", 1, &["a"])?;
        cluster.start("")?;
        ensure!(cluster.site.ask(socket(1))? == "a");
        cluster.slice("web", &["b"])?;
        cluster.site.await_answer(socket(1), "b")?;
        cluster.web("later", 2, &["a"])?;
        cluster.site.await_answer(socket(2), "a")?;
        for (resource, kind) in [
            ("services", "Service"),
            ("endpointslices", "EndpointSlice"),
            ("nodes", "Node"),
        ] {
            cluster.api.bookmark(resource, kind);
        }
        cluster.api.delete("services", "lab/web");
        cluster.site.await_silence(socket(1))?;
        // Closed watches go on where they were: no second listing.
        let lists = |cluster: &Cluster| {
            let streamed = cluster.api.count("services", &["sendInitialEvents"]);
            streamed
                + cluster
                    .api
                    .requests()
                    .iter()
                    .filter(|r| !r.contains("watch="))
                    .count()
        };
        let before = lists(&cluster);
        cluster.api.close_watches();
        cluster.web("again", 3, &["b"])?;
        cluster.site.await_answer(socket(3), "b")?;
        ensure!(lists(&cluster) == before, "{:#?}", cluster.api.requests());
        let asked = cluster.api.requests();
        let expected = |request: &String| {
            let own = request.starts_with("/api/v1/nodes?")
                && request.contains("fieldSelector=metadata.name=node0");
            own || request.starts_with("/api/v1/services?")
                || request.starts_with("/apis/discovery.k8s.io/v1/endpointslices?")
                // This server is too old to have them, which is no trouble.
                || request.starts_with("/apis/networking.k8s.io/v1/servicecidrs?")
        };
        ensure!(asked.iter().all(expected), "it asks for more: {asked:#?}");
        let problems = cluster.site.metric("lb_source_problems", &[])?;
        ensure!(problems.is_none(), "{problems:?}");
    }
    Ok(())
}

#[test]
fn endpoints_are_read_instead_of_slices_by_choice() -> Result<()> {
    let mut cluster = Cluster::new()?;
    cluster.service("web", 1)?;
    cluster.slice("web", &["b"])?;
    let endpoints = |pod: &str| {
        json!({"kind": "Endpoints", "apiVersion": "v1",
            "metadata": {"name": "web", "namespace": "lab"},
            "subsets": [{"addresses": [{"ip": cluster.site.pod(pod).v4().to_string()}],
                "ports": [{"name": "tcp", "port": 8080, "protocol": "TCP"}]}]})
    };
    let (first, second) = (endpoints("a"), endpoints("b"));
    cluster.api.put(&first)?;
    cluster.start("--endpoints-api endpoints")?;
    ensure!(cluster.site.ask(socket(1))? == "a");
    ensure!(cluster.api.count("endpointslices", &[]) == 0);
    cluster.api.put(&second)?;
    cluster.site.await_answer(socket(1), "b")
}

#[test]
fn a_slow_api_server_holds_nothing_up_for_good() -> Result<()> {
    let mut cluster = Cluster::new()?;
    cluster.web("web", 1, &["a"])?;
    cluster.api.delay(Duration::from_millis(700));
    cluster.start("")?;
    ensure!(cluster.site.ask(socket(1))? == "a");
    cluster.api.close_watches();
    cluster.slice("web", &["b"])?;
    cluster.site.await_answer(socket(1), "b")
}

#[test]
fn an_expired_watch_is_listed_anew_and_what_was_missed_takes_effect() -> Result<()> {
    let mut cluster = Cluster::new()?;
    cluster.web("web", 1, &["a"])?;
    cluster.web("gone", 2, &["a"])?;
    cluster.start("")?;
    let clients = cluster.site.steady(socket(1))?;
    for round in 0..3 {
        // Nobody is told of this.
        cluster.api.lose("services");
        cluster.service("web", 1)?;
        cluster.api.compact();
        cluster.site.await_silence(socket(2))?;
        cluster.service("gone", 2)?;
        cluster.site.await_answer(socket(2), "a")?;
        let problems = cluster.site.metric("lb_source_problems", &[])?;
        ensure!(
            problems.is_none(),
            "round {round}: 410 is no trouble: {problems:?}"
        );
    }
    ensure!(clients.finish()? > 0);
    Ok(())
}

#[test]
fn duplicate_and_late_events_change_nothing_they_should_not() -> Result<()> {
    let mut cluster = Cluster::new()?;
    cluster.web("web", 1, &["a"])?;
    cluster.web("other", 2, &["b"])?;
    cluster.start("")?;
    let clients = cluster.site.steady(socket(1))?;
    let web = slice("web", [cluster.site.pod("a").v4().to_string()].into_iter());
    for _ in 0..5 {
        for kind in ["ADDED", "MODIFIED"] {
            let send = |resource: &str, object: &serde_json::Value| {
                let mut object = object.clone();
                object["metadata"]["resourceVersion"] = json!("5");
                cluster
                    .api
                    .send(resource, json!({"type": kind, "object": object}));
            };
            send("endpointslices", &web);
            send("services", &service("web", 1));
        }
        // The deletion of what was never seen, and of what is gone already.
        let unknown = json!({"type": "DELETED", "object": service("never-seen", 9)});
        cluster.api.send("services", unknown);
        for pod in ["a", "b"] {
            cluster.slice("other", &[pod])?;
            cluster.site.await_answer(socket(2), pod)?;
        }
    }
    cluster.api.delete("services", "lab/other");
    let again = json!({"type": "DELETED", "object": service("other", 2)});
    cluster.api.send("services", again);
    cluster.site.await_silence(socket(2))?;
    cluster.web("other", 2, &["a"])?;
    cluster.site.await_answer(socket(2), "a")?;
    ensure!(clients.finish()? > 0);
    Ok(())
}

#[test]
fn the_api_servers_address_is_independent_of_the_service_network() -> Result<()> {
    let mut cluster = Cluster::new()?;
    cluster.web("web", 1, &["a"])?;
    // What the cluster says of its own address leads nowhere: the agent must not depend on it.
    let mut kubernetes = service("kubernetes", 7);
    kubernetes["metadata"]["namespace"] = json!("default");
    cluster.api.put(&kubernetes)?;
    let mut options = cluster.options("")?;
    let url = cluster.url();
    let broken = cluster.site.lab().dir().join("broken-kubeconfig");
    let text = std::fs::read_to_string(&options.extra[1])?;
    std::fs::write(&broken, text.replace(&url, "http://10.96.1.7:443"))?;
    options.extra = vec![
        "--kubeconfig".to_owned(),
        broken.display().to_string(),
        "--apiserver".to_owned(),
        format!("http://10.77.0.250:1,{url}"),
    ];
    cluster.site.start_with(&options)?;
    ensure!(cluster.site.ask(socket(1))? == "a");
    cluster.api.down();
    cluster.up()?;
    cluster.slice("web", &["b"])?;
    cluster.site.await_answer(socket(1), "b")
}
