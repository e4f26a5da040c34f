//! The namespaces of a case: the node with its agent, the pods of this node, and everything beyond
//! the node's uplink (pods of other nodes, clients outside). Pods and what lies beyond are one
//! namespace each that answers for every address it is asked for, so that another case needs
//! another route and no other namespace.

use super::wiring::{LINKS, give_addresses, wire};
use super::{Mode, broken, responder};
use crate::api_server::ApiServer;
use crate::conformance::Outcome;
use crate::conformance::traffic::{Case, Step};
use crate::conformance::world::Node as NodeOfCase;
use anyhow::{Context, Result, bail, ensure};
use ipnet::IpNet;
use lb_agent::datapath::Reader;
use lb_agent::model::{NodePortAddresses, Options, PodDetection};
use lb_lab::{
    Agent, AgentOptions, Cgroup, Lab, Namespace, Node, Place, PodNetwork, PodSubnet, Process,
};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

/// The namespace of the services that tell when the agent is through.
const MARKERS: &str = "replay";
/// The range of node ports, unless the agent is told otherwise.
const NODE_PORTS: RangeInclusive<u16> = 30_000..=32_767;
/// How long the agent may take to serve a change: only a failing case waits that long.
const PATIENCE: Duration = Duration::from_secs(60);
/// One node and its surroundings. Fields drop in order: processes before namespaces.
pub(super) struct Site {
    pub(super) agent: Option<Agent>,
    reader: Option<Reader>,
    _responders: Vec<Process>,
    api: ApiServer,
    pods: Place,
    beyond: Place,
    node: Node,
    lab: Lab,
    _cgroup: Cgroup,
    pub(super) mode: Mode,
    facts: NodeOfCase,
    options: Options,
    /// Addresses that the node routes to its pods.
    pub(super) routed: BTreeSet<IpAddr>,
    /// Objects as the API server has them, by resource.
    objects: BTreeSet<(&'static str, String)>,
    syncs: u32,
}

impl Site {
    /// Builds the namespaces of a case's node and starts its agent.
    pub(super) fn new(
        facts: &NodeOfCase,
        mode: Mode,
        ports: &BTreeSet<u16>,
    ) -> Result<Self, Outcome> {
        let options = facts.options()?;
        if options.pods.is_by_device() {
            let sentence = "the node's devices have names of their own in a replay";
            return Err(Outcome::Skipped(sentence.to_owned()));
        }
        Self::build(facts, options, mode, ports).map_err(|error| broken(&error))
    }

    fn build(
        facts: &NodeOfCase,
        options: Options,
        mode: Mode,
        ports: &BTreeSet<u16>,
    ) -> Result<Self> {
        lb_lab::require_root();
        let lab = Lab::new(&[])?;
        let prefix = lab.name().to_owned();
        let cgroup = Cgroup::create(&format!("{prefix}r"))?;
        // Pods are wired below: all of them behind one device.
        let nowhere = PodSubnet {
            v4: [198, 18, 9],
            v6: "fd00:198:9:0".to_owned(),
        };
        let node = Node::create(&prefix, &facts.name, PodNetwork::Routed, nowhere, &cgroup)?;
        let mut places = Vec::new();
        for (link, cgroup) in LINKS.iter().zip([node.cgroup_root(), &cgroup]) {
            let namespace = Namespace::create(&format!("{prefix}-{}", link.number))?;
            wire(&node, &namespace, link)?;
            places.push(Place::new(namespace, Some(cgroup.child(link.device)?)));
        }
        let (Some(beyond), Some(pods)) = (places.pop(), places.pop()) else {
            bail!("there are two links");
        };
        give_addresses(&node, &facts.local_ips)?;
        // A UDP socket of the node on a node port would be answered instead of the service.
        let off_range = ports
            .iter()
            .copied()
            .filter(|port| !NODE_PORTS.contains(port));
        let off_range: BTreeSet<u16> = off_range.collect();
        let responders = vec![
            responder::start(node.place(), "node", &off_range)?,
            responder::start(&pods, "pods", ports)?,
            responder::start(&beyond, "beyond", ports)?,
        ];
        let mut api = ApiServer::new(SocketAddr::from(([127, 0, 0, 1], 6443)));
        api.up(node.place())?;
        let cidrs: Vec<String> = options.service_cidrs.iter().map(IpNet::to_string).collect();
        if !cidrs.is_empty() {
            api.put(
                &json!({"kind": "ServiceCIDR", "apiVersion": "networking.k8s.io/v1",
                "metadata": {"name": "kubernetes"}, "spec": {"cidrs": cidrs}}),
            )?;
        }
        let mut site = Self {
            agent: None,
            reader: None,
            _responders: responders,
            api,
            pods,
            beyond,
            node,
            lab,
            _cgroup: cgroup,
            mode,
            facts: facts.clone(),
            options,
            routed: BTreeSet::new(),
            objects: BTreeSet::new(),
            syncs: 0,
        };
        site.start_agent()?;
        Ok(site)
    }

    fn start_agent(&mut self) -> Result<()> {
        if let Some(agent) = self.agent.take() {
            agent.stop()?;
        }
        let mut object = self.facts.object();
        object["kind"] = json!("Node");
        self.api.put(&object)?;
        let kubeconfig = self.api.kubeconfig(self.lab.dir())?;
        let options = AgentOptions {
            manifests: None,
            extra: vec!["--kubeconfig".to_owned(), kubeconfig.display().to_string()],
            environment: Vec::new(),
        }
        .with(&self.flags());
        let agent = Agent::start(&self.lab, &self.node, &options)?;
        self.reader = Some(Reader::open(agent.bpffs())?);
        self.agent = Some(agent);
        Ok(())
    }

    /// The operator's choices as flags.
    fn flags(&self) -> String {
        let listed = |ranges: &[IpNet]| {
            let ranges: Vec<String> = ranges.iter().map(IpNet::to_string).collect();
            ranges.join(",")
        };
        let options = &self.options;
        let mut flags = format!(
            "--socket-load-balancing {} --masquerade-all={} --external-ips {} \
             --localhost-nodeports {} --max-flows 4096",
            self.mode.name(),
            options.masquerade_all,
            options.external_ips,
            options.localhost_node_ports
        );
        match &options.pods {
            PodDetection::ClusterCidr(ranges) if ranges.is_empty() => {}
            PodDetection::ClusterCidr(ranges) => {
                let _ = write!(flags, " --cluster-cidr {}", listed(ranges));
            }
            _ => flags += " --detect-local-mode NodeCIDR",
        }
        match &options.node_port_addresses {
            NodePortAddresses::All => {}
            NodePortAddresses::Primary => flags += " --nodeport-addresses primary",
            NodePortAddresses::Ranges(ranges) => {
                let _ = write!(flags, " --nodeport-addresses {}", listed(ranges));
            }
        }
        flags
    }

    /// Forgets the case before and lays the routes of this one.
    pub(super) fn begin(&mut self, case: &Case) -> Result<(), Outcome> {
        let all = std::mem::take(&mut self.objects);
        let begun = (|| -> Result<()> {
            if !all.is_empty() {
                for (resource, key) in &all {
                    self.api.delete(resource, key);
                }
                self.sync()?;
            }
            self.route(case)
        })();
        begun.map_err(|error| broken(&error))
    }

    /// Routes the addresses of this node's pods to them: where flows come from, and endpoints that
    /// are said to be here.
    fn route(&mut self, case: &Case) -> Result<()> {
        let mut here = BTreeSet::new();
        for (step, flows) in case.steps() {
            let sources = flows.iter().map(|flow| flow.source);
            here.extend(sources.filter(|source| self.is_pod(*source)));
            let slices = step.endpoint_slices.iter();
            let endpoints = slices
                .filter_map(|slice| slice["endpoints"].as_array())
                .flatten();
            let local = endpoints.filter(|endpoint| endpoint["nodeName"] == *self.facts.name);
            let addresses = local.filter_map(|endpoint| endpoint["addresses"][0].as_str());
            here.extend(addresses.filter_map(|text| text.parse::<IpAddr>().ok()));
        }
        here.retain(|address| !self.is_own(*address));
        let mut lines = String::new();
        let gateways = LINKS[0].addresses(2);
        for gone in self.routed.difference(&here) {
            let _ = writeln!(lines, "route del {gone}");
        }
        for new in here.difference(&self.routed) {
            let gateway = gateways[usize::from(new.is_ipv6())];
            let _ = writeln!(
                lines,
                "route add {new} via {gateway} dev {} onlink",
                LINKS[0].device
            );
        }
        if !lines.is_empty() {
            self.node.namespace().ip_batch(&lines)?;
        }
        self.routed = here;
        Ok(())
    }

    fn is_pod(&self, address: IpAddr) -> bool {
        let mut ranges = self.facts.pod_ranges().iter();
        ranges.any(|range| range.contains(&address))
    }

    /// True for the node's own addresses.
    pub(super) fn is_own(&self, address: IpAddr) -> bool {
        address.is_loopback() || self.facts.local_ips.contains(&address)
    }

    /// Where a client with this address is.
    pub(super) fn place_of(&self, address: IpAddr) -> &Place {
        if self.is_own(address) {
            self.node.place()
        } else if self.routed.contains(&address) {
            &self.pods
        } else {
            &self.beyond
        }
    }

    /// Waits until the agent serves everything that the API server has told it. The watches of
    /// Services and of EndpointSlices are in order each, so a service that was told last is served
    /// last; and what one pass removes is gone before the next one begins.
    fn sync(&mut self) -> Result<()> {
        for _ in 0..2 {
            let (old, new) = (self.syncs, self.syncs + 1);
            self.syncs = new;
            let name = |number| format!("sync{number}");
            for resource in ["endpointslices", "services"] {
                self.api
                    .delete(resource, &format!("{MARKERS}/{}", name(old)));
            }
            self.api.put(&marker_slice(&name(new)))?;
            self.api.put(&marker(&name(new), new % 250 + 1))?;
            let end = Instant::now() + PATIENCE;
            loop {
                let services = self.reader()?.services()?;
                let is_shown = |marker: &str| {
                    let mut shown = services.iter().map(|one| &one.name.service);
                    shown.any(|name| &*name.namespace == MARKERS && &*name.name == marker)
                };
                let served = services
                    .iter()
                    .any(|one| *one.name.service.name == *name(new) && !one.endpoints.is_empty());
                if served && !is_shown(&name(old)) {
                    break;
                }
                ensure!(
                    Instant::now() < end,
                    "the agent does not serve what changed; its log:\n{}",
                    self.agent.as_ref().map(Agent::log).unwrap_or_default()
                );
                // The tables tell nobody that they were written.
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        Ok(())
    }

    pub(super) fn change(&mut self, step: &Step<'_>) -> Result<()> {
        for (resource, names) in [
            ("services", step.delete_services),
            ("endpointslices", step.delete_endpoint_slices),
        ] {
            for name in names {
                self.api.delete(resource, name);
                self.objects.remove(&(resource, name.clone()));
            }
        }
        for (resource, kind, objects) in [
            ("services", "Service", step.services),
            ("endpointslices", "EndpointSlice", step.endpoint_slices),
        ] {
            for object in objects {
                let mut object = object.clone();
                object["kind"] = json!(kind);
                let field = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
                let key = format!("{}/{}", field("namespace"), field("name"));
                self.api.put(&object)?;
                self.objects.insert((resource, key));
            }
        }
        if let Some(labels) = step.labels {
            self.facts.labels.clone_from(labels);
            self.start_agent()?;
        }
        self.sync()
    }

    pub(super) fn reader(&self) -> Result<&Reader> {
        self.reader.as_ref().context("no agent runs")
    }
}

fn marker(name: &str, number: u32) -> Value {
    let address = format!("198.18.8.{number}");
    json!({"kind": "Service", "apiVersion": "v1",
        "metadata": {"name": name, "namespace": MARKERS},
        "spec": {"clusterIP": address, "clusterIPs": [address],
            "ports": [{"name": "p", "protocol": "TCP", "port": 9}]}})
}

fn marker_slice(name: &str) -> Value {
    json!({"kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1",
        "metadata": {"name": name, "namespace": MARKERS,
            "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv4", "ports": [{"name": "p", "protocol": "TCP", "port": 9}],
        "endpoints": [{"addresses": ["198.18.9.1"], "conditions": {"ready": true}}]})
}
