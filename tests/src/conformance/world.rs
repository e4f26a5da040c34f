//! A node in memory: the model's state, the plan, and tables that hold what the plan wrote.

use super::Outcome;
use crate::host_path::{DEVICE, tables_of};
use ipnet::IpNet;
use lb_agent::model::desired::{Family, ObjectName};
use lb_agent::model::frontend::local_addresses;
use lb_agent::model::node::NodeFacts;
use lb_agent::model::{NodePortAddresses, Options, PodDetection, State};
use lb_agent::plan::{Limits, Plan, Planner, memory};
use lb_agent::source::{Change, Kind, Object};
use lb_common::addr::Addr;
use lb_common::flow::HostBuckets;
use lb_common::host::{HostTables, PacketWorld};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const LIMITS: Limits = Limits {
    services: 1 << 10,
    backends: 1 << 12,
    slots: 1 << 14,
    frontends: 1 << 12,
    ranges: 1 << 12,
};

/// The node of a case.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Node {
    pub(super) name: String,
    #[serde(rename = "primaryIPs")]
    pub(super) primary_ips: BTreeMap<String, IpAddr>,
    #[serde(rename = "localIPs")]
    pub(super) local_ips: Vec<IpAddr>,
    pub(super) labels: BTreeMap<String, String>,
    #[serde(rename = "serviceCIDRs")]
    pub(super) service_cidrs: Vec<IpNet>,
    #[serde(rename = "nodePortAddresses")]
    pub(super) served_on: Vec<String>,
    pub(super) localhost_node_ports: bool,
    pub(super) masquerade_all: bool,
    pub(super) detect_local: DetectLocal,
    pub(super) feature_gates: BTreeMap<String, bool>,
}

/// kube-proxy's local detector.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct DetectLocal {
    mode: String,
    #[serde(rename = "clusterCIDRs")]
    cluster_cidrs: Vec<IpNet>,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Vec<IpNet>,
    bridge_interface: Option<String>,
    interface_name_prefix: Option<String>,
}

impl Node {
    /// The operator's choices, in nftables mode, whose answers the cases expect.
    pub(super) fn options(&self) -> Result<Options, Outcome> {
        const EXTERNAL_IPS: &str = "AllowServiceExternalIPs";
        let mut gates = self.feature_gates.keys();
        if let Some(gate) = gates.find(|gate| *gate != EXTERNAL_IPS) {
            return Err(Outcome::Skipped(format!(
                "the feature gate {gate} is not known here"
            )));
        }
        let pods = match self.detect_local.mode.as_str() {
            "" | "ClusterCIDR" => {
                PodDetection::ClusterCidr(self.detect_local.cluster_cidrs.clone())
            }
            "NodeCIDR" => PodDetection::NodeCidr,
            "BridgeInterface" => {
                PodDetection::Bridge(named(self.detect_local.bridge_interface.as_ref())?)
            }
            "InterfaceNamePrefix" => {
                let prefix = self.detect_local.interface_name_prefix.as_ref();
                PodDetection::InterfacePrefix(named(prefix)?)
            }
            mode => {
                return Err(Outcome::Failed(format!(
                    "detectLocalMode {mode} is not known"
                )));
            }
        };
        Ok(Options {
            pods,
            node_port_addresses: node_port_addresses(&self.served_on)?,
            // nftables mode never serves node ports on loopback (section 5.1).
            localhost_node_ports: false,
            masquerade_all: self.masquerade_all,
            service_cidrs: self.service_cidrs.clone(),
            external_ips: self.feature_gates.get(EXTERNAL_IPS) != Some(&false),
            ..Options::default()
        })
    }

    /// Where addresses of pods lie, for the local detector.
    pub(super) fn pod_ranges(&self) -> &[IpNet] {
        match self.detect_local.mode.as_str() {
            "NodeCIDR" => &self.detect_local.pod_cidrs,
            _ => &self.detect_local.cluster_cidrs,
        }
    }

    pub(super) fn object(&self) -> Value {
        let addresses: Vec<Value> = self
            .primary_ips
            .values()
            .map(|address| json!({"type": "InternalIP", "address": address}))
            .collect();
        json!({
            "metadata": {"name": self.name, "labels": self.labels},
            "spec": {"podCIDRs": self.detect_local.pod_cidrs},
            "status": {"addresses": addresses},
        })
    }
}

/// The name that a mode of the local detector needs.
fn named(name: Option<&String>) -> Result<String, Outcome> {
    let missing = || Outcome::Failed("the local detector needs a name".to_owned());
    name.cloned().ok_or_else(missing)
}

/// `nodePortAddresses` as kube-proxy takes it.
pub(super) fn node_port_addresses(texts: &[String]) -> Result<NodePortAddresses, Outcome> {
    if texts.is_empty() {
        return Ok(NodePortAddresses::All);
    }
    if texts == ["primary"] {
        return Ok(NodePortAddresses::Primary);
    }
    let ranges: Result<Vec<IpNet>, _> = texts.iter().map(|text| text.parse()).collect();
    ranges
        .map(NodePortAddresses::Ranges)
        .map_err(|error| Outcome::Failed(format!("nodePortAddresses cannot be read: {error}")))
}

/// A family as cases write it.
pub(super) fn family(text: &str) -> Result<Family, Outcome> {
    match text {
        "IPv4" => Ok(Family::V4),
        "IPv6" => Ok(Family::V6),
        _ => Err(Outcome::Failed(format!("{text} is no IP family"))),
    }
}

/// A node whose pods have the addresses of this range, like those of all other nodes.
pub(super) fn node_pods(range: &str) -> Node {
    Node {
        detect_local: DetectLocal {
            cluster_cidrs: range.parse().into_iter().collect(),
            ..DetectLocal::default()
        },
        ..Node::default()
    }
}

/// `namespace/name`.
pub(super) fn object_name(text: &str) -> ObjectName {
    let (namespace, name) = text.split_once('/').unwrap_or(("", text));
    ObjectName {
        namespace: namespace.into(),
        name: name.into(),
    }
}

/// One node with what it knows and what its tables hold.
pub(super) struct World {
    pub(super) state: State,
    pub(super) packets: PacketWorld,
    planner: Planner,
    /// For people; no packet asks for them.
    names: memory::Names,
    local_ips: Vec<IpAddr>,
}

impl World {
    /// A node that has heard everything there is to hear: nothing but itself yet.
    pub(super) fn new(node: &Node) -> Result<Self, Outcome> {
        // Table sizes, SNAT ports and hash keys are not the model's.
        let mut config = HostTables::of_node().config;
        let options = node.options()?;
        let mut state = State::new(options, NodeFacts::named(&node.name));
        for kind in Kind::ALL {
            state.apply(Change::Restart(kind));
            if kind == Kind::Node {
                state.apply(change(Kind::Node, &node.object())?);
            }
            state.apply(Change::Complete(kind));
        }
        state.options().configure(state.node(), &mut config);
        let mut local_ips = node.local_ips.clone();
        // Every node has these; cases leave them out.
        local_ips.push(Ipv4Addr::LOCALHOST.into());
        local_ips.push(Ipv6Addr::LOCALHOST.into());
        let mut tables = tables_of(&config);
        memory::allocate(&mut tables, &LIMITS);
        let mut world = Self {
            state,
            planner: Planner::new(LIMITS, config.hash_keys),
            names: memory::Names::new(),
            packets: PacketWorld::new(tables, 0x5eed),
            local_ips,
        };
        world.write_local_addresses();
        Ok(world)
    }

    fn write_local_addresses(&mut self) {
        let local = local_addresses(self.state.options(), self.state.node(), &self.local_ips);
        self.packets.tables.local = local
            .into_iter()
            .map(|(address, flags)| (Addr::from(address), flags))
            .collect::<HashMap<_, _>>();
    }

    /// The node's labels change; everything else of it stays.
    pub(super) fn relabel(
        &mut self,
        node: &mut Node,
        labels: BTreeMap<String, String>,
    ) -> Result<(), Outcome> {
        node.labels = labels;
        self.apply(change(Kind::Node, &node.object())?);
        Ok(())
    }

    /// Objects exist and look like this.
    pub(super) fn upsert(&mut self, kind: Kind, objects: &[Value]) -> Result<(), Outcome> {
        for object in objects {
            self.apply(change(kind, object)?);
        }
        Ok(())
    }

    /// Objects are gone, named `namespace/name`.
    pub(super) fn delete(&mut self, kind: Kind, names: &[String]) {
        for name in names {
            self.apply(Change::Delete(kind, object_name(name)));
        }
    }

    /// Takes a change and writes what it changes, as the agent does: the touched services only.
    pub(super) fn apply(&mut self, change: Change) -> bool {
        let dirty = self.state.apply(change);
        let changed: Vec<_> = dirty
            .iter()
            .map(|name| (name, self.state.desired(name)))
            .collect();
        let plan = self.planner.update(
            changed
                .iter()
                .map(|(name, desired)| (*name, desired.as_ref())),
        );
        self.write(&plan);
        !dirty.is_empty()
    }

    /// From now on packets come in by a device of this name; `None`: by some other.
    pub(super) fn arrives_by(&mut self, name: Option<&str>) {
        let pods = &self.state.options().pods;
        let is_pods = name.is_some_and(|name| pods.is_device(name));
        let devices = is_pods.then_some(DEVICE);
        self.packets.tables.pod_devices = devices.into_iter().collect();
    }

    /// Every conversation so far is over.
    pub(super) fn forget_flows(&mut self) {
        let buckets = self.packets.tables.config.flow_mask as usize + 1;
        self.packets.buckets = HostBuckets::new(buckets);
    }

    fn write(&mut self, plan: &Plan) {
        for op in &plan.ops {
            memory::write(&mut self.packets.tables, &mut self.names, op);
        }
        if let Some(fence) = plan.fence {
            // No program runs between two steps of a case.
            let graced = self.planner.graced(fence);
            self.write(&graced);
        }
    }
}

/// An object as the API would deliver it.
pub(super) fn change(kind: Kind, object: &Value) -> Result<Change, Outcome> {
    Ok(Change::Apply(match kind {
        Kind::Service => Object::Service(Box::new(super::read("a Service", object)?)),
        Kind::EndpointSlice => {
            Object::EndpointSlice(Box::new(super::read("an EndpointSlice", object)?))
        }
        Kind::Node => Object::Node(Box::new(super::read("the node", object)?)),
        Kind::ServiceCidr => Object::ServiceCidr(Box::new(super::read("a ServiceCIDR", object)?)),
        Kind::Pod => Object::Pod(Box::new(super::read("a pod", object)?)),
        Kind::Namespace => Object::Namespace(Box::new(super::read("a namespace", object)?)),
    }))
}
