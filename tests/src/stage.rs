//! A small cluster on one machine: two nodes with pods, an outside client, an agent on each node,
//! and a directory of manifests that all agents read.
//!
//! What may not live here: expectations. Tests say what must happen; the stage only sets it up.

use anyhow::{Context, Result};
use lb_agent::datapath::Reader;
use lb_lab::topology::OutsideClient;
use lb_lab::{Agent, AgentOptions, Lab, Offload, Pod, PodNetwork, Server};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

/// Port every server of a stage listens on.
pub const TARGET_PORT: u16 = 8080;
/// Port every service is asked on.
pub const SERVICE_PORT: u16 = 80;
/// What `--cluster-cidr` says: the pod networks of all nodes of a lab.
pub const CLUSTER_CIDRS: &str = "10.244.0.0/16,fd00:244::/32";

/// A service as a test describes it: dual stack, TCP and UDP on [`SERVICE_PORT`].
#[derive(Clone, Debug)]
pub struct ServiceSpec {
    /// Its name.
    pub name: String,
    /// Last number of its ClusterIPs: 10.96.0.N and fd00:10:96::N (hexadecimal digits alike).
    pub number: u8,
    /// Its node port, for TCP and UDP.
    pub node_port: Option<u16>,
    /// Whether it has load balancer addresses: 198.51.100.N and 2001:db8:51::N.
    pub load_balancer: bool,
    /// Whether it is asked over SCTP, too.
    pub sctp: bool,
    /// Further lines of its `spec`, indented by two.
    pub spec: String,
    /// Its endpoints: names of pods of the stage, of nodes (`node0`) that have a server, or of foreign
    /// servers.
    pub endpoints: Vec<String>,
    /// What an endpoint has instead of being ready: fields of the slice's endpoint.
    pub states: BTreeMap<String, String>,
}

impl ServiceSpec {
    /// A ClusterIP service with these pods as endpoints.
    pub fn new(name: &str, number: u8, endpoints: &[&str]) -> Self {
        Self {
            name: name.to_owned(),
            number,
            node_port: None,
            load_balancer: false,
            sctp: false,
            spec: String::new(),
            endpoints: endpoints.iter().map(|name| (*name).to_owned()).collect(),
            states: BTreeMap::new(),
        }
    }

    /// The same with these fields of `endpoint` in place of `conditions: {ready: true}`.
    #[must_use]
    pub fn state(mut self, endpoint: &str, fields: &str) -> Self {
        self.states.insert(endpoint.to_owned(), fields.to_owned());
        self
    }

    /// The same with `endpoint` on its way out, but still serving.
    #[must_use]
    pub fn terminating(self, endpoint: &str) -> Self {
        let conditions = "conditions: {ready: false, serving: true, terminating: true}";
        self.state(endpoint, conditions)
    }

    /// The same with other endpoints, all ready.
    #[must_use]
    pub fn served_by(mut self, endpoints: &[&str]) -> Self {
        self.endpoints = endpoints.iter().map(|name| (*name).to_owned()).collect();
        self.states.clear();
        self
    }

    /// The same with a node port.
    #[must_use]
    pub fn node_port(mut self, port: u16) -> Self {
        self.node_port = Some(port);
        self
    }

    /// The same with a port for SCTP.
    #[must_use]
    pub fn sctp(mut self) -> Self {
        self.sctp = true;
        self
    }

    /// Its protocols.
    fn protocols(&self) -> &'static [&'static str] {
        if self.sctp {
            &["TCP", "UDP", "SCTP"]
        } else {
            &["TCP", "UDP"]
        }
    }

    /// The same with load balancer addresses.
    #[must_use]
    pub fn load_balancer(mut self) -> Self {
        self.load_balancer = true;
        self
    }

    /// Its load balancer sockets, IPv4 first.
    pub fn load_balancer_ips(&self) -> [SocketAddr; 2] {
        load_balancer_ips(self.number).map(|address| (address, SERVICE_PORT).into())
    }

    /// The same with a further line in its `spec`.
    #[must_use]
    pub fn with(mut self, line: &str) -> Self {
        let _ = writeln!(self.spec, "  {line}");
        self
    }

    /// Its ClusterIP sockets, IPv4 first.
    pub fn cluster_ips(&self) -> [SocketAddr; 2] {
        let [v4, v6] = cluster_ips(self.number);
        [(v4, SERVICE_PORT).into(), (v6, SERVICE_PORT).into()]
    }
}

fn cluster_ips(number: u8) -> [IpAddr; 2] {
    let v6 = std::net::Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, number.into());
    [std::net::Ipv4Addr::new(10, 96, 0, number).into(), v6.into()]
}

fn load_balancer_ips(number: u8) -> [IpAddr; 2] {
    let v6 = std::net::Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, number.into());
    [
        std::net::Ipv4Addr::new(198, 51, 100, number).into(),
        v6.into(),
    ]
}

/// The cluster. Fields drop in order: agents and servers before the lab.
#[derive(Debug)]
pub struct Stage {
    /// One agent for each node that has one.
    pub agents: Vec<Agent>,
    servers: Vec<Server>,
    pods: BTreeMap<String, (usize, Pod)>,
    /// Servers that are on no node of the stage, with their addresses.
    foreign: BTreeMap<String, [IpAddr; 2]>,
    /// A client outside the cluster.
    pub client: OutsideClient,
    /// The namespaces.
    pub lab: Lab,
    manifests: PathBuf,
}

impl Stage {
    /// Two nodes with pods `a`, `b` on node 0 and `c` on node 1, each with a server of its name on
    /// [`TARGET_PORT`]. No agent yet.
    pub fn new(network: PodNetwork) -> Result<Self> {
        Self::of(network, 2, &[(0, "a"), (0, "b"), (1, "c")])
    }

    /// Nodes and pods as a test wants them: each pod's node and name. No agent yet.
    pub fn of(network: PodNetwork, nodes: usize, pods: &[(usize, &str)]) -> Result<Self> {
        lb_lab::require_root();
        let lab = Lab::new(&vec![network; nodes])?;
        let client = lab.add_client()?;
        let manifests = lab.dir().join("manifests");
        fs::create_dir_all(&manifests)?;
        let mut stage = Self {
            agents: Vec::new(),
            servers: Vec::new(),
            pods: BTreeMap::new(),
            foreign: BTreeMap::new(),
            client,
            lab,
            manifests,
        };
        for (node, name) in pods {
            stage.add_pod(*node, name)?;
        }
        Ok(stage)
    }

    /// Adds a pod with a server of its name.
    pub fn add_pod(&mut self, node: usize, name: &str) -> Result<()> {
        let pod = self.lab.node(node).add_pod(name)?;
        self.servers
            .push(Server::start(pod.place(), name, TARGET_PORT)?);
        self.pods.insert(name.to_owned(), (node, pod));
        Ok(())
    }

    /// Starts a server of the node itself, called `node0` or the like: what a hostNetwork pod is.
    pub fn add_node_server(&mut self, node: usize) -> Result<()> {
        let place = self.lab.node(node).place();
        let server = Server::start(place, &format!("node{node}"), TARGET_PORT)?;
        self.servers.push(server);
        Ok(())
    }

    /// Lets services have the endpoint `name` on a node that is not of the stage; IPv4 first.
    pub fn add_foreign(&mut self, name: &str, addresses: [IpAddr; 2]) {
        self.foreign.insert(name.to_owned(), addresses);
    }

    /// The pod called `name`.
    pub fn pod(&self, name: &str) -> &Pod {
        &self.pods[name].1
    }

    /// Writes a service and its slices for every agent to see; replaces an earlier one.
    pub fn apply(&self, service: &ServiceSpec) -> Result<()> {
        self.apply_to_port(service, TARGET_PORT)
    }

    /// Like [`Self::apply`], with another port on the pods.
    pub fn apply_to_port(&self, service: &ServiceSpec, target: u16) -> Result<()> {
        let text = self.manifest(service, target);
        let path = self.manifests.join(format!("{}.yaml", service.name));
        let fresh = self.manifests.join(format!(".{}.new", service.name));
        fs::write(&fresh, text).with_context(|| format!("cannot write {}", fresh.display()))?;
        fs::rename(&fresh, &path).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Removes a service.
    pub fn delete(&self, name: &str) -> Result<()> {
        let path = self.manifests.join(format!("{name}.yaml"));
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))
    }

    /// The manifests directory.
    pub fn manifests(&self) -> &std::path::Path {
        &self.manifests
    }

    fn manifest(&self, service: &ServiceSpec, target: u16) -> String {
        let name = &service.name;
        let [v4, v6] = cluster_ips(service.number);
        let kind = if service.load_balancer {
            "LoadBalancer"
        } else if service.node_port.is_some() {
            "NodePort"
        } else {
            "ClusterIP"
        };
        let mut text = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: lab}}\nspec:\n  \
             type: {kind}\n  clusterIP: {v4}\n  clusterIPs: [\"{v4}\", \"{v6}\"]\n  \
             ipFamilies: [IPv4, IPv6]\n  ipFamilyPolicy: RequireDualStack\n{}  ports:\n",
            service.spec
        );
        for protocol in service.protocols() {
            let lower = protocol.to_lowercase();
            let _ = write!(
                text,
                "  - {{name: {lower}, protocol: {protocol}, port: {SERVICE_PORT}"
            );
            if let Some(port) = service.node_port {
                let _ = write!(text, ", nodePort: {port}");
            }
            text.push_str("}\n");
        }
        if service.load_balancer {
            let [v4, v6] = load_balancer_ips(service.number);
            let _ = writeln!(
                text,
                "status:\n  loadBalancer: {{ingress: [{{ip: \"{v4}\"}}, {{ip: \"{v6}\"}}]}}"
            );
        }
        for family in ["IPv4", "IPv6"] {
            let _ = write!(
                text,
                "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  \
                 name: {name}-{}\n  namespace: lab\n  \
                 labels: {{kubernetes.io/service-name: {name}}}\naddressType: {family}\nports:\n",
                family.to_lowercase()
            );
            for protocol in service.protocols() {
                let lower = protocol.to_lowercase();
                let _ = writeln!(
                    text,
                    "- {{name: {lower}, protocol: {protocol}, port: {target}}}"
                );
            }
            text.push_str("endpoints:\n");
            for endpoint in &service.endpoints {
                let (node, [v4, v6]) = self.endpoint(endpoint);
                let address = if family == "IPv4" { v4 } else { v6 };
                let state = service.states.get(endpoint);
                let state = state.map_or("conditions: {ready: true}", String::as_str);
                let _ = writeln!(
                    text,
                    "- {{addresses: [\"{address}\"], nodeName: {node}, {state}}}"
                );
            }
        }
        text
    }

    /// The node and the addresses of an endpoint, IPv4 first.
    fn endpoint(&self, name: &str) -> (String, [IpAddr; 2]) {
        if let Some((node, pod)) = self.pods.get(name) {
            return (format!("node{node}"), [pod.v4().into(), pod.v6().into()]);
        }
        if let Some(addresses) = self.foreign.get(name) {
            return ("another".to_owned(), *addresses);
        }
        let mut nodes = 0..self.lab.nodes().len();
        let node = nodes.find(|node| name == format!("node{node}"));
        let node = node.unwrap_or_else(|| panic!("the stage has no pod or node {name}"));
        (name.to_owned(), self.lab.node_addresses(node))
    }

    /// Starts an agent on every node and waits until each serves everything that was applied.
    pub fn start_agents(&mut self, flags: &str) -> Result<()> {
        for number in 0..self.lab.nodes().len() {
            let agent = self.start_agent(number, flags)?;
            self.agents.push(agent);
        }
        Ok(())
    }

    /// Starts one agent and waits for its health.
    pub fn start_agent(&self, node: usize, flags: &str) -> Result<Agent> {
        let options = AgentOptions::manifests(&self.manifests)
            .with(&format!("--cluster-cidr {CLUSTER_CIDRS}"))
            .with(flags);
        Agent::start(&self.lab, self.lab.node(node), &options)
    }

    /// Routes everything that services of the cluster may be asked at through node `number`, for the
    /// outside client: ClusterIPs and load balancer addresses.
    pub fn route_services(&self, number: usize) -> Result<()> {
        let [v4, v6] = self.lab.node_addresses(number);
        self.client.place().namespace().ip_batch(&format!(
            "route add 10.96.0.0/16 via {v4}\nroute add 198.51.100.0/24 via {v4}\n\
             route add fd00:10:96::/112 via {v6}\nroute add 2001:db8:51::/64 via {v6}\n"
        ))
    }

    /// Gives node `number` a default route, by way of the outside client: without any route the
    /// kernel refuses to send to a ClusterIP before anybody sees the packet.
    pub fn route_default(&self, number: usize) -> Result<()> {
        let (v4, v6) = (self.client.v4(), self.client.v6());
        self.lab.node(number).namespace().ip_batch(&format!(
            "route replace default via {v4}\nroute replace default via {v6}\n"
        ))
    }

    /// How often an agent's node has counted a reason. Read from the table: the page of metrics walks all
    /// flows, too, which takes seconds on an emulated machine.
    pub fn counted(&self, node: usize, reason: &str) -> Result<u64> {
        let reasons = Reader::open(self.agents[node].bpffs())?.reasons()?;
        let found = reasons.iter().find(|(known, _)| known.name() == reason);
        let (_, count) = found.with_context(|| format!("nothing is counted as {reason}"))?;
        Ok(*count)
    }

    /// The node port sockets of node `number`, IPv4 first.
    pub fn node_port(&self, number: usize, port: u16) -> [SocketAddr; 2] {
        self.lab
            .node_addresses(number)
            .map(|address| (address, port).into())
    }

    /// Sets the offloads of every device of pods, nodes and client.
    pub fn offload(&self, setting: Offload) -> Result<()> {
        for (node, pod) in self.pods.values() {
            pod.offload(setting)?;
            self.lab.node(*node).offload(pod.host_device(), setting)?;
        }
        for node in self.lab.nodes() {
            node.offload(lb_lab::topology::UPLINK, setting)?;
        }
        lb_lab::offload::set(
            self.client.place().namespace(),
            lb_lab::topology::UPLINK,
            setting,
        )
    }

    /// Sum of wrong checksums that any stack of the stage has seen.
    pub fn checksum_errors(&self) -> Result<i64> {
        let mut sum = lb_lab::snmp::checksum_errors(self.client.place().namespace())?;
        for node in self.lab.nodes() {
            sum += lb_lab::snmp::checksum_errors(node.namespace())?;
        }
        for (_, pod) in self.pods.values() {
            sum += lb_lab::snmp::checksum_errors(pod.namespace())?;
        }
        Ok(sum)
    }
}
