//! What Kubernetes' end-to-end suite asks under `Services`, `EndpointSlice` and `ServiceCIDR` that begins
//! with objects: written to a real API server, made into slices by the real controllers, and seen in
//! real traffic. `docs/upstream-e2e.md` says which of its tests these stand for.

use anyhow::{Context, Result, ensure};
use lb_lab::Server;
use lb_tests::attempt::attempts;
use lb_tests::control_plane::{RealCluster, named, pod_name, service, sockets};
use serde_json::{Value, json};
use std::net::SocketAddr;

/// A second port on pods.
const OTHER_PORT: u16 = 9090;

/// Both families of Service `number` are answered by `pod`, asked in a pod and on the host.
fn is_up(cluster: &RealCluster, number: u8, pod: &str) -> Result<()> {
    for socket in sockets(number) {
        cluster.site.await_answer(socket, pod)?;
        let host = cluster.site.lab().node(0).place();
        let answer = host.ask_tcp(socket).context("the host")?;
        ensure!(answer.name == pod, "the host is answered by {answer}");
    }
    Ok(())
}

/// Nobody answers Service `number`, in a pod or on the host.
fn is_down(cluster: &RealCluster, number: u8) -> Result<()> {
    for socket in sockets(number) {
        cluster.site.await_silence(socket)?;
        let [tcp, _] = attempts(cluster.site.lab().node(0).place(), socket)?;
        ensure!(tcp.starts_with("Err"), "the host is answered");
    }
    Ok(())
}

/// A Service with these labels, for the pods of `web`.
fn labelled(name: &str, number: u8, labels: &Value) -> Value {
    let mut object = service(name, number);
    object["spec"]["selector"] = json!({"app": "web"});
    object["metadata"]["labels"] = labels.clone();
    object
}

/// A Service without selector and its slice of pod `a`, which has these labels, too.
fn by_hand(cluster: &RealCluster, name: &str, number: u8, labels: &Value) -> [Value; 2] {
    let mut object = service(name, number);
    object["spec"]["selector"].take();
    object["spec"]["ipFamilies"] = json!(["IPv4"]);
    object["spec"]["ipFamilyPolicy"] = json!("SingleStack");
    object["spec"]["clusterIPs"] = json!([object["spec"]["clusterIP"]]);
    let mut slice = named("discovery.k8s.io/v1", "EndpointSlice", name);
    slice["metadata"]["labels"] = labels.clone();
    slice["metadata"]["labels"]["kubernetes.io/service-name"] = json!(name);
    slice["addressType"] = json!("IPv4");
    slice["ports"] = json!([{"name": "tcp", "protocol": "TCP", "port": 8080}]);
    slice["endpoints"] = json!([{"addresses": [cluster.site.pod("a").v4()]}]);
    [object, slice]
}

fn labels(cluster: &RealCluster) -> Result<()> {
    cluster.run("a", "web")?;
    let none = json!({});
    let foreign = json!({"service.kubernetes.io/service-proxy-name": "foo-bar"});
    let headless = json!({"service.kubernetes.io/headless": ""});
    cluster.api.apply(&labelled("foreign", 1, &foreign))?;
    for object in by_hand(cluster, "headless", 2, &headless) {
        cluster.api.apply(&object)?;
    }
    cluster.api.apply(&labelled("toggled", 3, &none))?;
    for object in by_hand(cluster, "by-hand", 4, &none) {
        cluster.api.apply(&object)?;
    }
    let [plain, _] = sockets(4);
    is_up(cluster, 3, "a")?;
    cluster.site.await_answer(plain, "a")?;
    cluster.api.apply(&labelled("toggled", 3, &foreign))?;
    let [_, slice] = by_hand(cluster, "by-hand", 4, &headless);
    cluster.api.apply(&slice)?;
    is_down(cluster, 3).context("given to another proxy")?;
    is_down(cluster, 4).context("its slice became nobody's")?;
    cluster.api.apply(&labelled("toggled", 3, &none))?;
    let [_, slice] = by_hand(cluster, "by-hand", 4, &none);
    cluster.api.apply(&slice)?;
    is_up(cluster, 3, "a").context("given back")?;
    cluster
        .site
        .await_answer(plain, "a")
        .context("given back")?;
    is_down(cluster, 1).context("another proxy's to the end")?;
    is_down(cluster, 2).context("nobody's to the end")
}

fn publishing(publish: bool) -> Value {
    let mut object = service("published", 5);
    object["spec"]["publishNotReadyAddresses"] = json!(publish);
    object
}

fn published(cluster: &RealCluster) -> Result<()> {
    cluster.api.apply(&publishing(true))?;
    cluster.run("b", "published")?;
    cluster.set_ready("b", false)?;
    is_up(cluster, 5, "b").context("not ready")?;
    cluster.api.apply(&publishing(false))?;
    is_down(cluster, 5).context("not ready, not published")?;
    // The kubelet lets it work on for a while.
    cluster.api.delete(&pod_name("b"), Some(100))?;
    cluster.api.apply(&publishing(true))?;
    is_up(cluster, 5, "b").context("terminating and not ready")?;
    cluster.api.apply(&publishing(false))?;
    is_down(cluster, 5).context("terminating and not ready, not published")?;
    // A pod that was evicted is no endpoint, published or not: refused, not dropped.
    cluster.api.apply(&publishing(true))?;
    is_up(cluster, 5, "b")?;
    cluster.api.status(
        &pod_name("b"),
        &json!({"phase": "Failed", "reason": "Evicted"}),
    )?;
    is_down(cluster, 5).context("evicted")?;
    for socket in sockets(5) {
        let outcome = attempts(cluster.site.client().place(), socket)?;
        ensure!(
            outcome == ["Err(ConnectionRefused)", "Err(ConnectionRefused)"],
            "{socket}: {outcome:?}"
        );
    }
    Ok(())
}

/// A pod of `app` whose port called `web` is this one.
fn run_with_port(cluster: &RealCluster, pod: &str, app: &str, port: u16) -> Result<()> {
    cluster.run(pod, app)?;
    let mut object = cluster.api.get(&pod_name(pod))?.context("no pod")?;
    let status = object["status"].take();
    cluster.api.delete(&pod_name(pod), Some(0))?;
    let mut fresh = pod_name(pod);
    fresh["metadata"]["labels"] = json!({"app": app});
    fresh["spec"] = json!({
        "nodeName": "node0",
        "containers": [{"name": "web", "image": "lab",
            "ports": [{"name": "web", "containerPort": port, "protocol": "TCP"}]}],
    });
    cluster.api.apply(&fresh)?;
    cluster.api.status(&fresh, &status).map(drop)
}

fn ports(cluster: &RealCluster) -> Result<()> {
    let other = Server::start(cluster.site.pod("d").place(), "d-other", OTHER_PORT)?;
    // One name, two numbers: the controller makes a slice for each.
    let mut by_name = service("by-name", 6);
    by_name["spec"]["ports"] =
        json!([{"name": "tcp", "protocol": "TCP", "port": 80, "targetPort": "web"}]);
    cluster.api.apply(&by_name)?;
    cluster.run("c", "by-name")?;
    run_with_port(cluster, "d", "by-name", OTHER_PORT)?;
    // Slices that nobody's controller made: two addresses, each with a port of its own.
    let mut by_hand = service("slices", 7);
    by_hand["spec"]["selector"].take();
    cluster.api.apply(&by_hand)?;
    for (pod, port) in [("c", 8080), ("d", OTHER_PORT)] {
        let pod = cluster.site.pod(pod);
        for (family, address) in [
            ("IPv4", pod.v4().to_string()),
            ("IPv6", pod.v6().to_string()),
        ] {
            let name = format!("slices-{}-{}", pod.name(), family.to_lowercase());
            let mut slice = named("discovery.k8s.io/v1", "EndpointSlice", &name);
            slice["metadata"]["labels"] = json!({"kubernetes.io/service-name": "slices"});
            slice["addressType"] = json!(family);
            slice["ports"] = json!([{"name": "tcp", "protocol": "TCP", "port": port}]);
            slice["endpoints"] = json!([{"addresses": [address]}]);
            cluster.api.apply(&slice)?;
        }
    }
    for number in [6, 7] {
        for name in ["c", "d-other"] {
            for socket in sockets(number) {
                cluster.site.await_answer(socket, name)?;
            }
        }
    }
    // A port for both protocols, for one, for the other.
    let both = service("both", 8);
    let only = |index: usize| {
        let mut object = both.clone();
        object["spec"]["ports"] = json!([both["spec"]["ports"][index]]);
        object
    };
    cluster.api.apply(&both)?;
    cluster.run("e", "both")?;
    let place = cluster.site.client().place();
    let meets = |wanted: [&str; 2]| -> Result<()> {
        for socket in sockets(8) {
            cluster.site.until(&format!("{wanted:?}"), || {
                let got = attempts(place, socket)?;
                Ok((got != wanted).then(|| format!("{got:?}")))
            })?;
        }
        Ok(())
    };
    let refused = "Err(ConnectionRefused)";
    meets(["Ok(())", "Ok(())"])?;
    cluster.api.apply(&only(0))?;
    meets(["Ok(())", refused]).context("TCP alone")?;
    cluster.api.apply(&only(1))?;
    meets([refused, "Ok(())"]).context("UDP alone")?;
    drop(other);
    Ok(())
}

fn addresses(cluster: &RealCluster) -> Result<()> {
    let mut external = service("external", 9);
    external["spec"]["externalIPs"] = json!(["203.0.113.250", "2001:db8::cb00:71fa"]);
    cluster.api.apply(&external)?;
    cluster.run("f", "external")?;
    for socket in ["203.0.113.250:80", "[2001:db8::cb00:71fa]:80"] {
        cluster.site.await_answer(socket.parse()?, "f")?;
    }
    // A range that the cluster gets later, and a Service in it.
    let range = json!({"kind": "ServiceCIDR", "apiVersion": "networking.k8s.io/v1",
        "metadata": {"name": "more"}, "spec": {"cidrs": ["10.196.196.0/24"]}});
    cluster.api.apply(&range)?;
    // What kube-controller-manager says of it.
    let ready = json!({"conditions": [{"type": "Ready", "status": "True", "reason": "",
        "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
    cluster.api.status(&range, &ready)?;
    let free: SocketAddr = "10.196.196.77:80".parse()?;
    cluster.site.until("free addresses of it are dropped", || {
        let got = attempts(cluster.site.client().place(), free)?;
        Ok((got[0] != "Err(TimedOut)").then(|| format!("{got:?}")))
    })?;
    let mut later = named("v1", "Service", "later");
    later["spec"] = json!({"selector": {"app": "external"}, "clusterIP": "10.196.196.196",
        "ports": [{"port": 80, "targetPort": 8080}]});
    cluster
        .site
        .until("the range is given addresses from", || {
            Ok(cluster
                .api
                .apply(&later)
                .err()
                .map(|error| format!("{error:#}")))
        })?;
    cluster
        .site
        .await_answer("10.196.196.196:80".parse()?, "f")?;
    // Gone, and made anew for another pod under the name and address that were.
    cluster.api.delete(&external, None)?;
    is_down(cluster, 9)?;
    cluster.remove("f")?;
    cluster.run("g", "external")?;
    cluster.api.apply(&service("external", 9))?;
    is_up(cluster, 9, "g")
}

#[test]
fn labels_published_pods_ports_and_addresses_are_served_as_the_objects_say() -> Result<()> {
    let mut cluster = RealCluster::new(&["a", "b", "c", "d", "e", "f", "g"])?;
    cluster.start("")?;
    labels(&cluster).context("labels")?;
    published(&cluster).context("published pods")?;
    ports(&cluster).context("ports")?;
    addresses(&cluster).context("addresses")
}
