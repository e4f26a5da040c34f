//! A [`Site`] whose agent reads from an API server, which is elsewhere on the wire.
//!
//! What may not live here: expectations.

use crate::api_server::ApiServer;
use crate::site::Site;
use anyhow::Result;
use lb_lab::AgentOptions;
use lb_lab::topology::OutsideClient;
use serde_json::{Value, json};
use std::net::SocketAddr;

/// The port the API server listens on.
const PORT: u16 = 6443;

/// The site and the server. Fields drop in order: the agent first.
#[derive(Debug)]
pub struct Cluster {
    /// The node.
    pub site: Site,
    /// The API server.
    pub api: ApiServer,
    machine: OutsideClient,
}

impl Cluster {
    /// Pods `a` and `b`, the API server up and knowing the node. No agent yet.
    pub fn new() -> Result<Self> {
        let site = Site::new(&["a", "b"])?;
        let machine = site.lab().add_client()?;
        let api = ApiServer::new(SocketAddr::from((machine.v4(), PORT)));
        let mut cluster = Self { site, api, machine };
        cluster.up()?;
        for name in ["node0", "another"] {
            cluster
                .api
                .put(&json!({"kind": "Node", "apiVersion": "v1", "metadata": {"name": name}}))?;
        }
        Ok(cluster)
    }

    /// The API server begins to answer.
    pub fn up(&mut self) -> Result<()> {
        self.api.up(self.machine.place())
    }

    /// The API server's URL.
    pub fn url(&self) -> String {
        format!("http://{}:{PORT}", self.machine.v4())
    }

    /// What the agent is started with.
    pub fn options(&self, flags: &str) -> Result<AgentOptions> {
        let kubeconfig = self.api.kubeconfig(self.site.lab().dir())?;
        Ok(AgentOptions {
            manifests: None,
            extra: vec!["--kubeconfig".to_owned(), kubeconfig.display().to_string()],
            environment: Vec::new(),
        }
        .with(flags))
    }

    /// Starts the agent and waits for its health.
    pub fn start(&mut self, flags: &str) -> Result<()> {
        let options = self.options(flags)?;
        self.site.start_with(&options)
    }

    /// Creates or updates the Service at 10.96.1.N.
    pub fn service(&self, name: &str, number: u8) -> Result<()> {
        self.api.put(&service(name, number))
    }

    /// Creates or updates its slice.
    pub fn slice(&self, name: &str, pods: &[&str]) -> Result<()> {
        self.api.put(&slice(
            name,
            pods.iter().map(|pod| self.site.pod(pod).v4().to_string()),
        ))
    }

    /// Both.
    pub fn web(&self, name: &str, number: u8, pods: &[&str]) -> Result<()> {
        self.service(name, number)?;
        self.slice(name, pods)
    }
}

/// A Service at 10.96.1.N.
pub fn service(name: &str, number: u8) -> Value {
    let address = format!("10.96.1.{number}");
    json!({"kind": "Service", "apiVersion": "v1", "metadata": {"name": name, "namespace": "lab"},
        "spec": {"type": "ClusterIP", "clusterIP": address, "clusterIPs": [address],
            "ipFamilies": ["IPv4"],
            "ports": [{"name": "tcp", "protocol": "TCP", "port": 80, "targetPort": 8080}]}})
}

/// An IPv4 slice of a Service.
pub fn slice(service: &str, addresses: impl Iterator<Item = String>) -> Value {
    let endpoint = |address: String| json!({"addresses": [address], "conditions": {"ready": true}, "nodeName": "node0"});
    let endpoints: Vec<Value> = addresses.map(endpoint).collect();
    json!({"kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1",
        "metadata": {"name": format!("{service}-4"), "namespace": "lab",
            "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4", "ports": [{"name": "tcp", "protocol": "TCP", "port": 8080}],
        "endpoints": endpoints})
}
