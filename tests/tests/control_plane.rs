//! The real agent against a real control plane: what people do to Services, what controllers make of
//! it, and the good and bad days of an API server, with real traffic beside.
//!
//! What only a server that lies can show (late and doubled events, empty lists, objects that no API
//! server would store) is in `kube_api.rs` and `kube_trouble.rs`.

use anyhow::{Context, Result, ensure};
use lb_lab::client;
use lb_tests::control_plane::{RealCluster, named, pod_name, service, sockets};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::time::Duration;

/// Both families of Service `number` are answered by `pod`, over TCP.
fn await_pod(cluster: &RealCluster, number: u8, pod: &str) -> Result<()> {
    let mut sockets = sockets(number).into_iter();
    sockets.try_for_each(|socket| cluster.site.await_answer(socket, pod))
}

fn await_silence(cluster: &RealCluster, number: u8) -> Result<()> {
    let mut sockets = sockets(number).into_iter();
    sockets.try_for_each(|socket| cluster.site.await_silence(socket))
}

/// Waits until the agent serves `dual` Services of two ports and families, `single` of one, and
/// `default/kubernetes`.
fn await_services(cluster: &RealCluster, dual: u32, single: u32) -> Result<()> {
    let ports = f64::from(4 * dual + single + 1);
    cluster.site.await_metric("lb_services", &[], Some(ports))
}

#[test]
fn what_people_do_to_services_and_pods_becomes_traffic() -> Result<()> {
    let mut cluster = RealCluster::new(&["a", "b"])?;
    cluster.web("web", 1, &["a"])?;
    cluster.start("")?;
    await_pod(&cluster, 1, "a")?;
    let udp = cluster.site.client().place().ask_udp(sockets(1)[0], 100)?;
    ensure!(udp.name == "a", "{udp}");
    // A second pod comes, the first goes unready, ready, and away.
    cluster.run("b", "web")?;
    cluster.site.await_answer(sockets(1)[0], "b")?;
    cluster.set_ready("a", false)?;
    await_only(&cluster, sockets(1)[0], "b")?;
    cluster.set_ready("a", true)?;
    cluster.site.await_answer(sockets(1)[0], "a")?;
    cluster.remove("a")?;
    await_only(&cluster, sockets(1)[0], "b")?;
    // Another selector, and the one before.
    let mut other = service("web", 1);
    other["spec"]["selector"] = json!({"app": "nobody"});
    cluster.api.apply(&other)?;
    await_silence(&cluster, 1)?;
    cluster.api.apply(&service("web", 1))?;
    await_pod(&cluster, 1, "b")?;
    // Another port.
    let mut moved = service("web", 1);
    moved["spec"]["ports"][0]["port"] = json!(81);
    cluster.api.apply(&moved)?;
    let [v4, _] = sockets(1);
    cluster.site.await_answer((v4.ip(), 81).into(), "b")?;
    cluster.site.await_silence(v4)?;
    // The garbage collector takes its slices, and a namesake begins anew.
    cluster.api.delete(&service("web", 1), None)?;
    cluster.site.await_silence((v4.ip(), 81).into())?;
    await_no_slices(&cluster, "web")?;
    cluster.web("web", 2, &["a"])?;
    await_pod(&cluster, 2, "a")?;
    // A namespace that goes takes everything, pods first: the kubelet's part is to end them.
    let namespace = json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "lab"}});
    cluster.api.delete(&namespace, None)?;
    cluster.remove("a")?;
    cluster.remove("b")?;
    await_silence(&cluster, 2)?;
    await_services(&cluster, 0, 0)?;
    cluster.site.await_metric("lb_source_problems", &[], None)
}

/// Waits until nobody but `pod` answers.
fn await_only(cluster: &RealCluster, server: SocketAddr, pod: &str) -> Result<()> {
    cluster
        .site
        .until(&format!("only {pod} answers at {server}"), || {
            let shown = cluster.site.client().place().call(|| {
                let names = (0..12).map(|_| Ok(client::tcp(server)?.name));
                Ok(names.collect::<Result<Vec<String>>>()?.join(" "))
            })?;
            Ok((!shown.split(' ').all(|name| name == pod)).then_some(shown))
        })
}

/// The slices of a Service.
fn slices(cluster: &RealCluster, name: &str) -> Result<Vec<Value>> {
    let like = named("discovery.k8s.io/v1", "EndpointSlice", name);
    let mut slices = cluster.api.list(&like)?;
    slices.retain(|slice| slice["metadata"]["labels"]["kubernetes.io/service-name"] == name);
    Ok(slices)
}

fn await_no_slices(cluster: &RealCluster, name: &str) -> Result<()> {
    let what = format!("no slice of {name} is left");
    cluster.site.until(&what, || {
        Ok(slices(cluster, name)?.first().map(Value::to_string))
    })
}

fn await_slice_with_endpoints(cluster: &RealCluster, name: &str) -> Result<()> {
    cluster.site.until(&format!("{name} has endpoints"), || {
        let slices = slices(cluster, name)?;
        let has = |slice: &Value| slice["endpoints"].get(0).is_some();
        Ok((!slices.iter().any(has)).then(|| format!("{slices:?}")))
    })
}

#[test]
fn a_service_becomes_every_other_type_and_what_it_was_again() -> Result<()> {
    const NODE_PORT: u16 = 30_111;
    let mut cluster = RealCluster::new(&["a"])?;
    let [cluster_ip, _] = sockets(1);
    let node_port = SocketAddr::from((cluster.site.lab().node_addresses(0)[0], NODE_PORT));
    let ingress: SocketAddr = "198.51.100.1:80".parse()?;
    cluster.web("web", 1, &["a"])?;
    cluster.start("")?;
    for round in 0..2 {
        await_pod(&cluster, 1, "a").with_context(|| format!("round {round}"))?;
        cluster.site.await_silence(node_port)?;
        let mut object = service("web", 1);
        object["spec"]["type"] = json!("NodePort");
        object["spec"]["ports"][0]["nodePort"] = json!(NODE_PORT);
        cluster.api.apply(&object)?;
        cluster.site.await_answer(node_port, "a")?;
        object["spec"]["type"] = json!("LoadBalancer");
        cluster.api.apply(&object)?;
        // What a cloud's controller would do.
        let address = json!([{"ip": ingress.ip()}]);
        cluster
            .api
            .status(&object, &json!({"loadBalancer": {"ingress": address}}))?;
        for server in [ingress, node_port, cluster_ip] {
            cluster.site.await_answer(server, "a")?;
        }
        let mut external = named("v1", "Service", "web");
        external["spec"] = json!({"type": "ExternalName", "externalName": "web.example.net"});
        cluster.api.apply(&external)?;
        for server in [ingress, node_port, cluster_ip] {
            cluster.site.await_silence(server)?;
        }
        cluster.api.apply(&service("web", 1))?;
    }
    await_pod(&cluster, 1, "a")?;
    for server in [ingress, node_port] {
        cluster.site.await_silence(server)?;
    }
    Ok(())
}

#[test]
fn endpoints_written_by_hand_are_served_through_their_mirror() -> Result<()> {
    let mut cluster = RealCluster::new(&["a", "b"])?;
    let mut object = service("web", 1);
    let spec = object["spec"].as_object_mut().context("a spec")?;
    spec.remove("selector");
    cluster.api.apply(&object)?;
    let endpoints = |pod: &str| {
        let mut object = named("v1", "Endpoints", "web");
        let pod = cluster.site.pod(pod);
        object["subsets"] = json!([{"addresses": [{"ip": pod.v4()}, {"ip": pod.v6()}],
            "ports": [{"name": "tcp", "port": 8080, "protocol": "TCP"}]}]);
        object
    };
    let (first, second) = (endpoints("a"), endpoints("b"));
    cluster.api.apply(&first)?;
    cluster.start("")?;
    await_pod(&cluster, 1, "a")?;
    cluster.api.apply(&second)?;
    await_pod(&cluster, 1, "b")?;
    cluster.api.delete(&second, None)?;
    await_silence(&cluster, 1)
}

#[test]
fn ten_thousand_services_are_listed_and_served() -> Result<()> {
    const SERVICES: u32 = 10_000;
    let mut cluster = RealCluster::new(&["a"])?;
    cluster.web("web", 1, &["a"])?;
    let many: Vec<Value> = (0..SERVICES)
        .map(|number| {
            let mut object = named("v1", "Service", &format!("many-{number}"));
            object["metadata"]["namespace"] = json!("many");
            object["spec"] = json!({"ports": [{"port": 80, "protocol": "TCP"}]});
            object
        })
        .collect();
    let namespace = json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "many"}});
    cluster.api.apply(&namespace)?;
    await_slice_with_endpoints(&cluster, "web")?;
    // They would look at each of them, for nothing.
    cluster.plane.stop_controllers();
    cluster.api.create_all(&many)?;
    cluster.start("")?;
    await_services(&cluster, 1, SERVICES)?;
    await_pod(&cluster, 1, "a")?;
    // The last of them gets endpoints, which is seen through all others.
    let last = many.last().context("no services")?;
    let last = cluster.api.get(last)?.context("the last one is gone")?;
    let address = last["spec"]["clusterIP"].as_str().context("no ClusterIP")?;
    let mut slice = named("discovery.k8s.io/v1", "EndpointSlice", "last");
    slice["metadata"]["namespace"] = json!("many");
    slice["metadata"]["labels"] = json!({"kubernetes.io/service-name": last["metadata"]["name"]});
    slice["addressType"] = json!("IPv4");
    slice["ports"] = json!([{"name": "", "port": 8080, "protocol": "TCP"}]);
    slice["endpoints"] = json!([{"addresses": [cluster.site.pod("a").v4()]}]);
    cluster.api.apply(&slice)?;
    cluster
        .site
        .await_answer(format!("{address}:80").parse()?, "a")?;
    // Another list of all of them, and one fewer.
    cluster.site.stop()?;
    cluster.api.delete(&many[0], None)?;
    cluster.start("")?;
    await_services(&cluster, 1, SERVICES - 1)
}

#[test]
fn a_broken_watch_goes_on_where_it_was_and_misses_nothing() -> Result<()> {
    let mut cluster = RealCluster::new(&["a", "b"])?;
    cluster.web("web", 1, &["a"])?;
    cluster.web("gone", 2, &["b"])?;
    cluster.start("")?;
    await_pod(&cluster, 1, "a")?;
    let clients = cluster.site.steady(sockets(1)[0])?;
    for round in 0..3 {
        let before = cluster.link.accepted();
        cluster.link.cut();
        if round > 0 {
            // Nobody can tell the agent of this while the line is cut.
            cluster.api.delete(&service("gone", 2), None)?;
            cluster.web("new", 3, &[])?;
            cluster.run("b", "new")?;
        }
        cluster.link.mend();
        if round > 0 {
            await_pod(&cluster, 3, "b")?;
            await_silence(&cluster, 2)?;
            cluster.api.delete(&service("new", 3), None)?;
            cluster.web("gone", 2, &["b"])?;
        }
        await_pod(&cluster, 2, "b")?;
        cluster.site.until("the agent connects again", || {
            Ok((cluster.link.accepted() == before).then(|| "not yet".to_owned()))
        })?;
    }
    ensure!(clients.finish()? > 0);
    cluster.site.await_metric("lb_source_problems", &[], None)
}

#[test]
fn history_that_etcd_has_forgotten_is_listed_anew() -> Result<()> {
    let mut cluster = RealCluster::new(&["a", "b"])?;
    cluster.web("web", 1, &["a"])?;
    cluster.web("gone", 2, &["b"])?;
    cluster.start("")?;
    await_pod(&cluster, 1, "a")?;
    let clients = cluster.site.steady(sockets(1)[0])?;
    for _ in 0..2 {
        cluster.link.cut();
        cluster.api.delete(&service("gone", 2), None)?;
        cluster.web("new", 3, &[])?;
        cluster.run("b", "new")?;
        cluster.plane.compact()?;
        // A new server's memory begins where history does.
        cluster.plane.stop_api();
        cluster.plane.start_api()?;
        cluster.link.mend();
        await_pod(&cluster, 3, "b")?;
        await_silence(&cluster, 2)?;
        cluster.api.delete(&service("new", 3), None)?;
        cluster.web("gone", 2, &["b"])?;
        await_pod(&cluster, 2, "b")?;
    }
    ensure!(clients.finish()? > 0);
    cluster.site.await_metric("lb_source_problems", &[], None)
}

#[test]
fn nobody_feels_that_the_api_server_restarts_or_is_away() -> Result<()> {
    let mut cluster = RealCluster::new(&["a", "b"])?;
    cluster.web("web", 1, &["a"])?;
    cluster.start("")?;
    await_pod(&cluster, 1, "a")?;
    let clients = cluster.site.steady(sockets(1)[0])?;
    // A restart.
    cluster.plane.stop_api();
    cluster.plane.start_api()?;
    cluster.web("later", 2, &["b"])?;
    await_pod(&cluster, 2, "b")?;
    // An outage that is noticed, through which an agent is started, too.
    cluster.plane.stop_api();
    let unreachable = ["problem=\"unreachable\""];
    cluster.site.until("the outage is said", || {
        let value = cluster.site.metric("lb_source_problems", &unreachable)?;
        Ok(value.is_none().then(|| "not yet".to_owned()))
    })?;
    ensure!(cluster.site.ask(sockets(2)[1])? == "b");
    cluster.site.is_alive()?;
    let options = {
        // The token of the agent that runs: nobody gives a new one now.
        let dir = cluster.plane.admin().with_file_name("lb-agent.kubeconfig");
        lb_lab::AgentOptions {
            manifests: None,
            extra: vec!["--kubeconfig".to_owned(), dir.display().to_string()],
            environment: Vec::new(),
        }
    };
    cluster.site.stop()?;
    cluster.site.launch_with(&options)?;
    cluster
        .site
        .await_log(&["cannot watch services at the API server", "stays"])?;
    ensure!(cluster.site.ask(sockets(2)[0])? == "b");
    cluster.plane.start_api()?;
    cluster.site.await_health()?;
    cluster.remove("b")?;
    await_silence(&cluster, 2)?;
    ensure!(clients.finish()? > 0);
    cluster.site.await_metric("lb_source_problems", &[], None)
}

#[test]
fn the_rights_of_deploy_suffice_and_one_that_is_denied_stops_no_other() -> Result<()> {
    let mut cluster = RealCluster::new(&["a", "b"])?;
    cluster.web("web", 1, &["a"])?;
    cluster.start("")?;
    await_pod(&cluster, 1, "a")?;
    let problems = cluster.site.metric("lb_source_problems", &[])?;
    ensure!(problems.is_none(), "{problems:?}");
    // Without services: what is known of them stays, endpoints go on.
    let role = |resources: &str| {
        format!(
            "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\n\
             metadata: {{name: lb-agent}}\nrules:\n\
             - {{apiGroups: [\"\"], resources: {resources}, verbs: [get, list, watch]}}\n\
             - {{apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [get, list, \
             watch]}}\n\
             - {{apiGroups: [networking.k8s.io], resources: [servicecidrs], verbs: [get, list, \
             watch]}}\n"
        )
    };
    cluster.plane.apply(&role("[endpoints, nodes]"))?;
    // Rights are asked for when a watch begins.
    cluster.link.cut();
    cluster.link.mend();
    let line = cluster
        .site
        .await_log(&["does not allow this agent to", "services", "RBAC"])?;
    ensure!(line.contains("what is known of services stays"), "{line}");
    cluster.web("unseen", 2, &[])?;
    cluster.run("b", "web")?;
    cluster.site.await_answer(sockets(1)[0], "b")?;
    cluster.remove("a")?;
    await_only(&cluster, sockets(1)[0], "b")?;
    cluster.site.is_alive()?;
    cluster
        .site
        .await_metric("lb_source_problems", &["problem=\"forbidden\""], Some(1.0))?;
    cluster.plane.apply(&role("[services, endpoints, nodes]"))?;
    cluster.run("a", "unseen")?;
    await_pod(&cluster, 2, "a")?;
    cluster.site.await_metric("lb_source_problems", &[], None)
}

#[test]
fn a_slow_line_to_the_api_server_delays_and_loses_nothing() -> Result<()> {
    let mut cluster = RealCluster::new(&["a", "b"])?;
    cluster.web("web", 1, &["a"])?;
    cluster.link.delay(Duration::from_millis(600));
    cluster.start("")?;
    await_pod(&cluster, 1, "a")?;
    cluster.run("b", "web")?;
    cluster.site.await_answer(sockets(1)[0], "b")?;
    cluster.remove("a")?;
    await_only(&cluster, sockets(1)[0], "b")
}

#[test]
fn objects_that_change_while_the_agent_starts_end_as_they_are() -> Result<()> {
    let mut cluster = RealCluster::new(&["a", "b"])?;
    cluster.web("stays", 1, &["a"])?;
    for number in 10..40 {
        cluster
            .api
            .apply(&service(&format!("more-{number}"), number))?;
    }
    let options = cluster.options("")?;
    cluster.site.launch_with(&options)?;
    for number in 10..40 {
        let name = format!("more-{number}");
        match number % 3 {
            0 => cluster.api.delete(&service(&name, number), None)?,
            1 => {
                let mut object = service(&name, number);
                object["spec"]["ports"][0]["port"] = json!(81);
                cluster.api.apply(&object)?;
            }
            _ => {
                let mut object = service(&name, number);
                object["spec"]["selector"] = json!({"app": "late"});
                cluster.api.apply(&object)?;
            }
        }
    }
    cluster.run("b", "late")?;
    cluster.site.await_health()?;
    await_services(&cluster, 21, 0)?;
    await_pod(&cluster, 1, "a")?;
    for number in 10..40 {
        if number % 3 == 2 {
            await_pod(&cluster, number, "b")?;
        } else {
            await_silence(&cluster, number)?;
        }
    }
    cluster.api.delete(&pod_name("b"), Some(0))?;
    await_silence(&cluster, 11)
}

#[test]
fn the_kubernetes_service_works_is_emptied_and_works_again() -> Result<()> {
    // Nobody but the test writes where the API server is.
    let mut cluster = RealCluster::with(&["a"], &["--endpoint-reconciler-type=none"])?;
    let kubernetes: SocketAddr = "10.96.0.1:443".parse()?;
    let address = cluster.address();
    let slice = |endpoints: Value| {
        json!({"kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1",
            "metadata": {"name": "kubernetes", "namespace": "default",
                "labels": {"kubernetes.io/service-name": "kubernetes"}},
            "addressType": "IPv4",
            "ports": [{"name": "https", "protocol": "TCP", "port": address.port()}],
            "endpoints": endpoints})
    };
    let full = slice(json!([{"addresses": [address.ip()], "conditions": {"ready": true}}]));
    cluster.web("web", 1, &["a"])?;
    cluster.api.apply(&full)?;
    cluster.start("")?;
    let reaches = || {
        let outcome = cluster.site.client().place().call(move || {
            Ok(
                match std::net::TcpStream::connect_timeout(&kubernetes, Duration::from_secs(1)) {
                    Ok(_) => "reached".to_owned(),
                    Err(error) => error.kind().to_string(),
                },
            )
        });
        outcome.unwrap_or_else(|error| format!("{error:#}"))
    };
    let await_outcome = |expected: &str| {
        cluster.site.until(&format!("10.96.0.1: {expected}"), || {
            let outcome = reaches();
            Ok((outcome != expected).then_some(outcome))
        })
    };
    for _ in 0..2 {
        await_outcome("reached")?;
        cluster.api.apply(&slice(json!([])))?;
        await_outcome("connection refused")?;
        // The agent's own way to the API server is another.
        cluster.set_ready("a", false)?;
        await_silence(&cluster, 1)?;
        cluster.set_ready("a", true)?;
        await_pod(&cluster, 1, "a")?;
        cluster.api.apply(&full)?;
    }
    await_outcome("reached")
}
