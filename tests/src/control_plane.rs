//! A [`Site`] whose agent reads from a real API server, which is elsewhere on the wire, and what a
//! kubelet would do there: Pod objects with the status of the lab's pods.
//!
//! What may not live here: expectations.

use crate::api_client::ApiClient;
use crate::link::Link;
use crate::site::Site;
use crate::stage::{SERVICE_PORT, TARGET_PORT};
use anyhow::{Context, Result};
use lb_lab::control_plane::{PORT, Programs, Settings};
use lb_lab::{AgentOptions, ControlPlane, Pod};
use serde_json::{Value, json};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// Where the agent asks for the API server: one end of the [`Link`].
const NEAR: u16 = 7443;
/// The namespace of all objects.
pub const NAMESPACE: &str = "lab";
/// The ServiceCIDRs.
const RANGES: &str = "10.96.0.0/16,fd00:10:96::/112";

/// The site and the control plane. Fields drop in order: who writes files before the lab whose they
/// are.
#[derive(Debug)]
pub struct RealCluster {
    /// Writes objects as an administrator.
    pub api: ApiClient,
    /// Between agent and API server.
    pub link: Link,
    /// The control plane.
    pub plane: ControlPlane,
    /// The node.
    pub site: Site,
    address: Ipv4Addr,
}

impl RealCluster {
    /// Pods of these names, no objects for them, and a control plane that knows the nodes and the
    /// agent's rights. No agent yet.
    pub fn new(names: &[&str]) -> Result<Self> {
        Self::with(names, &[])
    }

    /// The same with further flags for the API server.
    pub fn with(names: &[&str], flags: &[&str]) -> Result<Self> {
        let site = Site::new(names)?;
        let machine = site.lab().add_client()?;
        let address = machine.v4();
        // Part of the cluster, unlike other clients on the wire: pods are reached from there.
        let node = site.lab().node_addresses(0)[0];
        let [pods, _] = site.lab().node(0).pod_cidrs();
        let routes = machine.place().namespace();
        routes.ip(&format!("route add {pods} via {node}"))?;
        let settings = Settings {
            address,
            service_ranges: RANGES.to_owned(),
            flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
        };
        let dir = site.lab().dir().join("control-plane");
        let plane = ControlPlane::start(machine.into_place(), &dir, Programs::find()?, settings)?;
        let ends = [NEAR, PORT].map(|port| SocketAddr::from((address, port)));
        let cluster = Self {
            api: ApiClient::new(plane.place(), &plane.admin())?,
            link: Link::new(plane.place(), ends[0], ends[1])?,
            plane,
            site,
            address,
        };
        cluster.settle()?;
        Ok(cluster)
    }

    /// What every cluster has before the first service.
    fn settle(&self) -> Result<()> {
        let namespace = |name: &str| json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": name}});
        self.api.apply(&namespace(NAMESPACE))?;
        for (name, host) in [("node0", 10), ("another", 11)] {
            let mut node = json!({"kind": "Node", "apiVersion": "v1", "metadata": {"name": name}});
            self.api.apply(&node)?;
            let addresses = json!([
                {"type": "InternalIP", "address": format!("10.77.0.{host}")},
                {"type": "InternalIP", "address": format!("fd77::{host:x}")},
            ]);
            node = self.api.status(&node, &json!({"addresses": addresses}))?;
            debug_assert_eq!(node["metadata"]["name"], name);
        }
        self.plane
            .grant(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/kustomize/base"))?;
        // Without it no pod is accepted.
        self.await_object(&json!({"kind": "ServiceAccount", "apiVersion": "v1",
            "metadata": {"name": "default", "namespace": NAMESPACE}}))
    }

    /// Waits until the API server has this object.
    pub fn await_object(&self, object: &Value) -> Result<()> {
        self.site.until(&format!("there is {object}"), || {
            Ok(self
                .api
                .get(object)?
                .is_none()
                .then(|| "not yet".to_owned()))
        })
    }

    /// The API server's address, for the link's far end and for the `kubernetes` service.
    pub fn address(&self) -> SocketAddr {
        (self.address, PORT).into()
    }

    /// The kubeconfig of the agent's service account.
    pub fn kubeconfig(&self) -> Result<PathBuf> {
        let url = format!("https://{}:{NEAR}", self.address);
        let token = self.plane.token("lb-agent")?;
        self.plane.kubeconfig("lb-agent", &url, &token)
    }

    /// What the agent is started with.
    pub fn options(&self, flags: &str) -> Result<AgentOptions> {
        Ok(AgentOptions {
            manifests: None,
            extra: vec![
                "--kubeconfig".to_owned(),
                self.kubeconfig()?.display().to_string(),
            ],
            environment: Vec::new(),
        }
        .with(flags))
    }

    /// Starts the agent and waits for its health.
    pub fn start(&mut self, flags: &str) -> Result<()> {
        let options = self.options(flags)?;
        self.site.start_with(&options)
    }

    /// Runs a pod of the site as one of `app`: its object and its status.
    pub fn run(&self, pod: &str, app: &str) -> Result<()> {
        run(&self.api, self.site.pod(pod), app)
    }

    /// Says whether a pod is ready.
    pub fn set_ready(&self, pod: &str, ready: bool) -> Result<()> {
        self.api
            .status(&pod_name(pod), &conditions(ready))
            .map(drop)
    }

    /// Creates or updates the Service, with these pods running for it.
    pub fn web(&self, name: &str, number: u8, pods: &[&str]) -> Result<()> {
        self.api.apply(&service(name, number))?;
        pods.iter().try_for_each(|pod| self.run(pod, name))
    }

    /// Removes a pod's object as a kubelet does when the containers are gone.
    pub fn remove(&self, pod: &str) -> Result<()> {
        self.api.delete(&pod_name(pod), Some(0))
    }
}

/// Creates the object of a pod that is `app`'s, with the status of one that runs and is ready.
pub fn run(api: &ApiClient, pod: &Pod, app: &str) -> Result<()> {
    let mut object = pod_name(pod.name());
    object["metadata"]["labels"] = json!({"app": app});
    object["spec"] = json!({
        "nodeName": "node0",
        "containers": [{"name": "web", "image": "lab",
            "ports": [{"name": "web", "containerPort": TARGET_PORT, "protocol": "TCP"}]}],
    });
    api.apply(&object)?;
    let addresses: [IpAddr; 2] = [pod.v4().into(), pod.v6().into()];
    let mut status = conditions(true);
    status["phase"] = json!("Running");
    status["podIP"] = json!(addresses[0]);
    status["podIPs"] = addresses
        .map(|address| json!({"ip": address}))
        .into_iter()
        .collect();
    api.status(&object, &status)
        .with_context(|| format!("cannot give pod {} its status", pod.name()))
        .map(drop)
}

/// A Pod without anything but its name.
pub fn pod_name(name: &str) -> Value {
    named("v1", "Pod", name)
}

/// An object of the lab's namespace without anything but its name.
pub fn named(version: &str, kind: &str, name: &str) -> Value {
    json!({"kind": kind, "apiVersion": version, "metadata": {"name": name, "namespace": NAMESPACE}})
}

fn conditions(ready: bool) -> Value {
    let ready = if ready { "True" } else { "False" };
    json!({"conditions": [{"type": "Ready", "status": ready}]})
}

/// The Service `name` for the pods of the app of that name: dual stack, TCP and UDP, at
/// [`sockets`]`(number)`.
pub fn service(name: &str, number: u8) -> Value {
    let addresses = sockets(number).map(|socket| socket.ip());
    let port = |name: &str, protocol: &str| json!({"name": name, "protocol": protocol, "port": SERVICE_PORT, "targetPort": TARGET_PORT});
    let mut object = named("v1", "Service", name);
    object["spec"] = json!({
        "type": "ClusterIP",
        "selector": {"app": name},
        "ipFamilyPolicy": "RequireDualStack",
        "ipFamilies": ["IPv4", "IPv6"],
        "clusterIP": addresses[0],
        "clusterIPs": addresses,
        "ports": [port("tcp", "TCP"), port("udp", "UDP")],
    });
    object
}

/// Where Service number `number` is asked, IPv4 first.
pub fn sockets(number: u8) -> [SocketAddr; 2] {
    let v6 = std::net::Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0x100 + u16::from(number));
    [
        ([10, 96, 1, number], SERVICE_PORT).into(),
        (v6, SERVICE_PORT).into(),
    ]
}
