//! A directory of manifests as the source: what a person writes there is what clients get. The
//! agent is the real one, the clients and servers are real.

use anyhow::{Context, Result, ensure};
use lb_tests::site::{Site, at, pod_manifest, service, slice, socket};
use std::fs;
use std::net::SocketAddr;

#[test]
fn creating_editing_and_deleting_a_file_changes_the_traffic_at_once() -> Result<()> {
    let mut site = Site::new(&["a", "b"])?;
    site.start("")?;
    for round in 0..3 {
        site.write("web.yaml", site.web("web", 1, &["a"]))?;
        site.await_answer(socket(1), "a")
            .with_context(|| format!("created in round {round}"))?;
        // Written in place, as editors that keep the inode do.
        fs::write(
            site.directory().join("web.yaml"),
            site.web("web", 1, &["b"]),
        )?;
        site.await_answer(socket(1), "b")?;
        fs::rename(
            site.directory().join("web.yaml"),
            site.directory().join("shop.yml"),
        )?;
        site.await_answer(socket(1), "b")?;
        fs::remove_file(site.directory().join("shop.yml"))?;
        site.await_silence(socket(1))?;
        ensure!(site.shown("web")?.is_none(), "the deleted Service is shown");
    }
    Ok(())
}

#[test]
fn cluster_ips_and_node_ports_are_assigned_stay_over_restarts_and_are_shown() -> Result<()> {
    let flags = "--service-cluster-ip-range 10.97.3.0/24 --service-node-port-range 31000-31019";
    let mut site = Site::new(&["a"])?;
    let address = site.pod("a").v4().to_string();
    let names = ["one", "two", "three"];
    for name in names {
        let text = format!(
            "{}---\n{}",
            service(name, "  type: NodePort\n"),
            slice(name, &[&address])
        );
        site.write(&format!("{name}.yaml"), text)?;
    }
    site.start(flags)?;
    let assigned = |site: &Site| -> Result<Vec<(String, u16)>> {
        let of = |name| {
            let shown = site.shown(name)?;
            let (address, port) = shown.with_context(|| {
                format!(
                    "{name} is not shown\n{}\n{}",
                    site.log_tail(),
                    site.tool("services").unwrap_or_default()
                )
            })?;
            Ok((address, port.context("it has no node port")?))
        };
        names.into_iter().map(of).collect()
    };
    let first = assigned(&site)?;
    for (address, port) in &first {
        ensure!(
            address.starts_with("10.97.3."),
            "{address} is not of the range"
        );
        ensure!((31000..=31019).contains(port), "{port} is not of the range");
        site.await_answer(SocketAddr::new(address.parse()?, 80), "a")?;
        let node = site.lab().node_addresses(0)[0];
        site.await_answer(SocketAddr::new(node, *port), "a")?;
        for format in ["table", "wide"] {
            let text = site.tool(&format!("services -o {format}"))?;
            for shown in [format!("{address}:80"), format!("*:{port}")] {
                ensure!(text.contains(&shown), "no {shown} in -o {format}:\n{text}");
            }
        }
    }
    for round in 0..2 {
        site.stop()?;
        // Others come first by name, and files move.
        let earlier = service(&format!("a{round}"), "  type: NodePort\n");
        site.write(&format!("0{round}.yaml"), earlier)?;
        let file = |number: i32| site.directory().join(format!("moved{number}.yaml"));
        let from = if round == 0 {
            site.directory().join("two.yaml")
        } else {
            file(0)
        };
        fs::rename(from, file(round))?;
        site.start(flags)?;
        ensure!(
            assigned(&site)? == first,
            "round {round}: {:?} became {:?}",
            first,
            assigned(&site)?
        );
    }
    Ok(())
}

#[test]
fn an_out_of_range_or_duplicate_node_port_is_refused_in_kubectls_words() -> Result<()> {
    let mut site = Site::new(&["a"])?;
    let port = |name: &str, number: u16, port: u32| {
        let text = site.web(name, u8::try_from(number).unwrap_or(0), &["a"]);
        text.replace("spec:\n", "spec:\n  type: NodePort\n")
            .replace("port: 80,", &format!("port: 80, nodePort: {port},"))
    };
    let text = [
        port("first", 1, 30080),
        port("second", 2, 30080),
        port("third", 3, 40000),
        port("fourth", 4, 30081),
    ];
    site.write("all.yaml", text.join("---\n"))?;
    site.start("")?;
    for (name, sentence) in [
        ("second", "30080: provided port is already allocated"),
        (
            "third",
            "40000: provided port is not in the valid range. The range of valid ports is \
             30000-32767",
        ),
    ] {
        let words = format!(
            "The Service \"{name}\" is invalid: spec.ports[0].nodePort: Invalid value: {sentence}"
        );
        site.await_log(&[&words, "all.yaml"])?;
        site.until("status says so", || {
            let status = site.tool("status")?;
            Ok((!status.contains(&words)).then_some(status))
        })?;
        ensure!(site.shown(name)?.is_none(), "{name} is served");
    }
    site.await_metric("lb_source_problems", &["problem=\"refused\""], Some(2.0))?;
    let node = site.lab().node_addresses(0)[0];
    for (number, port) in [(1, 30080), (4, 30081)] {
        ensure!(site.ask(socket(number))? == "a", "{number} is not served");
        ensure!(
            site.ask((node, port).into())? == "a",
            "{port} is not served"
        );
    }
    // The port comes free: the one that waited has it now.
    site.write("all.yaml", text[1..].join("---\n"))?;
    site.await_answer(socket(2), "a")?;
    site.await_metric("lb_source_problems", &["problem=\"refused\""], Some(1.0))?;
    Ok(())
}

#[test]
fn selectors_match_pods_and_a_pod_that_is_not_ready_leaves() -> Result<()> {
    let mut site = Site::new(&["a", "b", "c"])?;
    let spec = format!("{}  selector: {{app: web}}\n", at(1));
    let named = service("web", &spec).replace("targetPort: 8080", "targetPort: web");
    site.write("web.yaml", &named)?;
    let directory = site.directory();
    let put = |site: &Site, name: &str, app: &str, ready: bool| {
        let text = pod_manifest(site.pod(name), app, ready);
        site.write(&format!("pod-{name}.yaml"), text)
    };
    put(&site, "a", "web", true)?;
    put(&site, "b", "web", false)?;
    put(&site, "c", "other", true)?;
    site.start("")?;
    let endpoints = |site: &Site| -> Result<Vec<String>> {
        let services = site.services()?;
        let list = services.first().and_then(|one| one["endpoints"].as_array());
        let address = |one: &serde_json::Value| one["address"].as_str().map(str::to_owned);
        Ok(list.into_iter().flatten().filter_map(address).collect())
    };
    let expect = |site: &Site, pods: &[&str]| {
        let wanted: Vec<String> = pods.iter().map(|p| site.pod(p).v4().to_string()).collect();
        site.until(&format!("{pods:?} serve"), || {
            let now = endpoints(site)?;
            Ok((now != wanted).then(|| format!("{now:?}")))
        })
    };
    expect(&site, &["a"])?;
    ensure!(site.ask(socket(1))? == "a");
    put(&site, "b", "web", true)?;
    expect(&site, &["a", "b"])?;
    put(&site, "a", "web", false)?;
    expect(&site, &["b"])?;
    for _ in 0..10 {
        ensure!(
            site.ask(socket(1))? == "b",
            "a pod that is not ready serves"
        );
    }
    put(&site, "c", "web", true)?;
    expect(&site, &["b", "c"])?;
    fs::remove_file(directory.join("pod-b.yaml"))?;
    expect(&site, &["c"])?;
    put(&site, "c", "web", false)?;
    expect(&site, &[])?;
    site.await_silence(socket(1))?;
    // As the endpoints controller does for `publishNotReadyAddresses`.
    let publish = format!("{spec}  publishNotReadyAddresses: true\n");
    site.write("web.yaml", service("web", &publish))?;
    expect(&site, &["a", "c"])
}

#[test]
fn endpoints_objects_serve_only_where_the_service_has_no_slice() -> Result<()> {
    let mut site = Site::new(&["a", "b"])?;
    let (a, b) = (site.pod("a").v4(), site.pod("b").v4().to_string());
    site.write("web.yaml", service("web", &at(1)))?;
    site.write(
        "endpoints.yaml",
        format!(
            "apiVersion: v1\nkind: Endpoints\nmetadata: {{name: web, namespace: lab}}\nsubsets:\n\
             - addresses: [{{ip: {a}}}]\n  ports: [{{name: tcp, port: 8080, protocol: TCP}}]\n"
        ),
    )?;
    site.start("")?;
    site.await_answer(socket(1), "a")?;
    site.write("slice.yaml", slice("web", &[&b]))?;
    site.await_answer(socket(1), "b")?;
    for _ in 0..20 {
        ensure!(
            site.ask(socket(1))? == "b",
            "the Endpoints object serves, too"
        );
    }
    fs::remove_file(site.directory().join("slice.yaml"))?;
    site.await_answer(socket(1), "a")
}

#[test]
fn other_kinds_are_ignored_with_one_line_each() -> Result<()> {
    let mut site = Site::new(&["a"])?;
    let other = |kind: &str, name: &str| {
        format!("apiVersion: apps/v1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {{x: [1]}}\n")
    };
    let text = [
        other("Deployment", "one"),
        site.web("web", 1, &["a"]),
        other("Deployment", "two"),
        other("StatefulSet", "three"),
    ];
    site.write("all.yaml", text.join("---\n"))?;
    site.start("")?;
    ensure!(site.ask(socket(1))? == "a");
    // Touched, not changed: nothing is said again.
    for _ in 0..3 {
        site.write("all.yaml", text.join("---\n"))?;
        site.write("more.yaml", site.web("more", 2, &["a"]))?;
        site.await_answer(socket(2), "a")?;
        fs::remove_file(site.directory().join("more.yaml"))?;
        site.await_silence(socket(2))?;
    }
    for kind in ["apps/v1 Deployment", "apps/v1 StatefulSet"] {
        let lines = site.log_count(&["all.yaml", kind, "ignored"])?;
        ensure!(lines == 1, "{kind}: {lines} lines\n{}", site.log_tail());
    }
    let status = site.tool("status")?;
    ensure!(!status.contains("Troubles"), "it is no trouble:\n{status}");
    Ok(())
}

#[test]
fn yaml_and_json_with_several_documents_comments_crlf_and_a_byte_order_mark_are_read() -> Result<()>
{
    let mut site = Site::new(&["a"])?;
    let plain = |name: &str, number: u8| site.web(name, number, &["a"]);
    let json = |name: &str, number: u8| -> String {
        let a = site.pod("a").v4();
        format!(
            r#"{{"apiVersion": "v1", "kind": "Service", "metadata": {{"name": "{name}", "namespace": "lab"}},
 "spec": {{"clusterIP": "10.96.1.{number}", "ports": [{{"name": "tcp", "port": 80}}]}}}}
{{"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
 "metadata": {{"name": "{name}-4", "namespace": "lab", "labels": {{"kubernetes.io/service-name": "{name}"}}}},
 "ports": [{{"name": "tcp", "port": 8080}}], "endpoints": [{{"addresses": ["{a}"]}}]}}"#
        )
    };
    let commented = format!(
        "# a comment\n---\n---\n# only a comment\n---\n{}...\n---\n",
        plain("comments", 2).replace("spec:\n", "spec: # here\n  # and here\n")
    );
    let listed = json("list", 6).replace("}\n{", "},\n{");
    let list = format!(r#"{{"apiVersion": "v1", "kind": "List", "items": [{listed}]}}"#);
    for (file, text) in [
        ("plain.yaml", plain("plain", 1)),
        ("comments.yml", commented),
        ("crlf.yaml", plain("crlf", 3).replace('\n', "\r\n")),
        ("bom.yaml", format!("\u{feff}{}", plain("bom", 4))),
        ("json.json", json("json", 5)),
        ("list.json", list.clone()),
        (
            "LIST.YAML",
            list.replace("list", "upper").replace(".1.6", ".1.7"),
        ),
        (
            "crlf.json",
            format!("\u{feff}{}", json("both", 8).replace('\n', "\r\n")),
        ),
        ("README.md", plain("not-a-manifest", 9)),
        (".hidden.yaml", plain("hidden", 10)),
    ] {
        site.write(file, text)?;
    }
    fs::create_dir(site.directory().join("below"))?;
    fs::write(site.directory().join("below/deep.yaml"), plain("deep", 11))?;
    site.start("")?;
    for number in 1..=8 {
        site.await_answer(socket(number), "a")
            .with_context(|| format!("10.96.1.{number}"))?;
    }
    let text = site.tool("services")?;
    for name in ["not-a-manifest", "hidden", "deep"] {
        ensure!(!text.contains(name), "{name} is read:\n{text}");
    }
    Ok(())
}
