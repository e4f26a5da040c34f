//! Pods and namespaces that opt out of socket balancing: a sidecar that redirects connections sees
//! the address of the service.

use anyhow::{Context, Result, ensure};
use lb_lab::{Cgroup, Place, Pod, Process, client};
use lb_tests::cluster::Cluster;
use lb_tests::raw;
use lb_tests::site::socket;
use serde_json::{Value, json};
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::time::Instant;

/// Where the sidecar listens, by IPv4 and by IPv6.
const SIDECAR: [u16; 2] = [15_001, 15_002];
const LABEL: &str = "mesh.example/redirect";
const UID: &str = "0b1c2d3e-0000-4000-8000-00000000000a";
/// The cgroups of a pod and one of its containers, as kubelet makes them through systemd and itself.
const SYSTEMD: [&str; 4] = [
    "kubepods.slice",
    "kubepods-burstable.slice",
    "kubepods-burstable-pod0b1c2d3e_0000_4000_8000_00000000000a.slice",
    "cri-containerd-5eed.scope",
];
const CGROUPFS: [&str; 4] = [
    "kubepods",
    "burstable",
    "pod0b1c2d3e-0000-4000-8000-00000000000a",
    "5eed",
];

/// A pod of the cluster with a sidecar that tells every client whom it wanted to talk to.
struct Meshed {
    cluster: Cluster,
    // Dropped before its pod.
    _sidecars: [Process; 2],
    containers: Vec<Cgroup>,
    pod: Pod,
}

impl Meshed {
    /// A service with one endpoint, and the pod.
    fn new(flags: &str) -> Result<Self> {
        let mut cluster = Cluster::new()?;
        cluster.web("web", 1, &["a"])?;
        web6(&cluster)?;
        // The server knows the resources it has held: a pod of another node, and the namespace.
        cluster.api.put(&json!({"kind": "Pod", "apiVersion": "v1",
            "metadata": {"namespace": "lab", "name": "elsewhere", "uid": "elsewhere"},
            "spec": {"nodeName": "another", "containers": [{"name": "c"}]}}))?;
        cluster
            .api
            .put(&json!({"kind": "Namespace", "apiVersion": "v1",
            "metadata": {"name": "lab"}}))?;
        let pod = cluster.site.lab().node(0).add_pod("meshed")?;
        // What istio-init writes, without the exceptions for the sidecar's own connections.
        let [port4, port6] = SIDECAR;
        for (family, loopback, port) in [("ip", "127.0.0.0/8", port4), ("ip6", "::1/128", port6)] {
            pod.namespace().nft(&format!(
                "table {family} nat {{
                    chain OUTPUT {{
                        type nat hook output priority -100; policy accept;
                        meta l4proto tcp jump ISTIO_OUTPUT
                    }}
                    chain ISTIO_OUTPUT {{
                        {family} daddr {loopback} return
                        meta l4proto tcp redirect to :{port}
                    }}
                }}\n",
            ))?;
        }
        let sidecars = [
            sidecar(&pod, (Ipv4Addr::UNSPECIFIED, port4).into())?,
            sidecar(&pod, (Ipv6Addr::UNSPECIFIED, port6).into())?,
        ];
        cluster.start(&format!("--cluster-cidr 10.244.0.0/16 {flags}"))?;
        Ok(Self {
            cluster,
            _sidecars: sidecars,
            containers: Vec::new(),
            pod,
        })
    }

    /// Kubelet makes these cgroups for the pod; its processes are in the last one.
    fn make_cgroups(&mut self, names: [&str; 4]) -> Result<()> {
        let mut parent = self.pod.place().cgroup().context("the pod's cgroup")?;
        for name in names {
            let child = parent.child(name)?;
            self.containers.push(child);
            parent = &self.containers[self.containers.len() - 1];
        }
        Ok(())
    }

    /// Kubelet takes them away again.
    fn remove_cgroups(&mut self) {
        while self.containers.pop().is_some() {}
    }

    fn put_pod(&self, labels: &Value) -> Result<()> {
        self.cluster
            .api
            .put(&json!({"kind": "Pod", "apiVersion": "v1",
            "metadata": {"namespace": "lab", "name": "meshed", "uid": UID, "labels": labels},
            "spec": {"nodeName": "node0", "containers": [{"name": "c"}]}}))
    }

    fn put_namespace(&self, labels: &Value) -> Result<()> {
        self.cluster
            .api
            .put(&json!({"kind": "Namespace", "apiVersion": "v1",
            "metadata": {"name": "lab", "labels": labels}}))
    }

    /// Asks the service, by IPv4 and IPv6, until the sidecar says that it was asked.
    fn await_services(&self) -> Result<()> {
        self.await_destination(socket(1), socket(1))?;
        self.await_destination(socket6(), socket6())
    }

    /// Asks the service until the sidecar says that the endpoint was asked.
    fn await_endpoints(&self) -> Result<()> {
        let pod = self.cluster.site.pod("a");
        self.await_destination(socket(1), (pod.v4(), 8080).into())?;
        self.await_destination(socket6(), (pod.v6(), 8080).into())
    }

    fn await_destination(&self, asked: SocketAddr, wanted: SocketAddr) -> Result<()> {
        let container = self.containers.last().map(Cgroup::procs);
        let end = Instant::now() + 6 * client::PATIENCE;
        loop {
            let seen = redirected(self.pod.place(), container.as_ref(), asked)?;
            if seen == wanted {
                return Ok(());
            }
            ensure!(
                Instant::now() < end,
                "SO_ORIGINAL_DST is {seen}, expected {wanted}\n{}",
                self.cluster.site.log_tail()
            );
        }
    }
}

/// The same service by IPv6.
fn socket6() -> SocketAddr {
    (Ipv6Addr::new(0xfd00, 10, 96, 1, 0, 0, 0, 1), 80).into()
}

fn web6(cluster: &Cluster) -> Result<()> {
    let address = socket6().ip().to_string();
    cluster.api.put(
        &json!({"kind": "Service", "apiVersion": "v1", "metadata": {"name": "six", "namespace": "lab"},
        "spec": {"type": "ClusterIP", "clusterIP": address, "clusterIPs": [address],
            "ipFamilies": ["IPv6"],
            "ports": [{"name": "tcp", "protocol": "TCP", "port": 80, "targetPort": 8080}]}}),
    )?;
    let pod = cluster.site.pod("a").v6().to_string();
    cluster.api.put(
        &json!({"kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1",
        "metadata": {"name": "six-6", "namespace": "lab",
            "labels": {"kubernetes.io/service-name": "six"}},
        "addressType": "IPv6", "ports": [{"name": "tcp", "protocol": "TCP", "port": 8080}],
        "endpoints": [{"addresses": [pod], "conditions": {"ready": true}, "nodeName": "node0"}]}),
    )
}

fn sidecar(pod: &Pod, address: SocketAddr) -> Result<Process> {
    Process::start(pod.place(), move |ready| {
        let listener = TcpListener::bind(address)?;
        ready.tell()?;
        loop {
            let (mut stream, _) = listener.accept()?;
            let wanted = raw::original_destination(&stream, address.is_ipv6())?;
            stream.write_all(wanted.to_string().as_bytes())?;
        }
    })
}

/// Whom the sidecar takes a connection of its pod to be for.
fn redirected(from: &Place, container: Option<&PathBuf>, server: SocketAddr) -> Result<SocketAddr> {
    let text = from.call(|| {
        if let Some(procs) = container {
            fs::write(procs, "0").context("cannot enter the container's cgroup")?;
        }
        let mut stream = TcpStream::connect_timeout(&server, client::PATIENCE)?;
        stream.set_read_timeout(Some(client::PATIENCE))?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    })?;
    text.parse().context("the sidecar's answer")
}

#[test]
fn a_sidecar_sees_the_service_address_once_its_pod_opts_out() -> Result<()> {
    let mut meshed = Meshed::new(&format!("--socket-opt-out-label {LABEL}=on"))?;
    meshed.make_cgroups(SYSTEMD)?;
    meshed.put_namespace(&json!({}))?;
    meshed.put_pod(&json!({}))?;
    meshed.await_endpoints()?;
    meshed.put_pod(&json!({LABEL: "on"}))?;
    meshed.await_services()?;
    // Who is not opted out is balanced at the socket still, and the service works for both.
    let site = &meshed.cluster.site;
    ensure!(site.ask(socket(1))? == "a" && site.ask(socket6())? == "a");
    meshed.put_pod(&json!({LABEL: "off"}))?;
    meshed.await_endpoints()
}

#[test]
fn a_sidecar_sees_the_service_address_once_its_namespace_opts_out() -> Result<()> {
    let mut meshed = Meshed::new(&format!("--socket-opt-out-label {LABEL}=on"))?;
    meshed.put_pod(&json!({}))?;
    meshed.put_namespace(&json!({LABEL: "on"}))?;
    meshed.await_endpoints()?;
    // The pod's cgroup comes after its object, and may be made anew.
    meshed.make_cgroups(CGROUPFS)?;
    meshed.await_services()?;
    meshed.remove_cgroups();
    meshed.await_endpoints()?;
    meshed.make_cgroups(SYSTEMD)?;
    meshed.await_services()?;
    meshed.put_namespace(&json!({}))?;
    meshed.await_endpoints()
}

#[test]
fn an_agent_that_starts_again_forgets_whom_it_no_longer_finds_labelled() -> Result<()> {
    let flags = format!("--socket-opt-out-label {LABEL}=on --cluster-cidr 10.244.0.0/16");
    let mut meshed = Meshed::new(&format!("--socket-opt-out-label {LABEL}=on"))?;
    meshed.make_cgroups(CGROUPFS)?;
    meshed.put_namespace(&json!({}))?;
    meshed.put_pod(&json!({LABEL: "on"}))?;
    meshed.await_services()?;
    meshed.cluster.site.stop()?;
    meshed.await_services()?;
    meshed.put_pod(&json!({}))?;
    meshed.cluster.start(&flags)?;
    meshed.await_endpoints()
}

#[test]
fn pods_are_not_asked_for_without_the_option() -> Result<()> {
    let mut meshed = Meshed::new("")?;
    meshed.make_cgroups(CGROUPFS)?;
    meshed.put_pod(&json!({LABEL: "on"}))?;
    meshed.await_endpoints()?;
    for resource in ["pods", "namespaces"] {
        ensure!(
            meshed.cluster.api.count(resource, &[]) == 0,
            "{resource} are watched"
        );
    }
    Ok(())
}
