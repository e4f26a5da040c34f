//! The known objects, and what each change touches.

use super::address;
use super::claim::Claims;
use super::desired::{Family, ObjectName, ServicePortName};
use super::endpoint::{self, Interner, Slice};
use super::holders::Holders;
use super::node::NodeFacts;
use super::opt_out::{OptOut, PodUid};
use super::options::Options;
use super::refusal::Refusal;
use super::service::{self, Service};
use super::trigger::{TriggerTimes, trigger_time};
use crate::source::{Change, Kind, Object};
use ipnet::IpNet;
use k8s_openapi::jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

/// The services one change touches: only these need a new [`State::desired`].
pub type Dirty = BTreeSet<ServicePortName>;

/// Everything known, in compact form, with the indexes that make one change cost no more than the
/// services it touches.
///
/// Before [`is_complete`](Self::is_complete) nothing may be taken for gone; a listing that is begun
/// again later does not make the state incomplete, the objects known so far stay until its end.
#[derive(Debug)]
pub struct State {
    pub(super) options: Options,
    pub(super) node: NodeFacts,
    pub(super) services: BTreeMap<Arc<ObjectName>, Service>,
    /// Those of them with a health check port.
    pub(super) health_checked: BTreeSet<Arc<ObjectName>>,
    pub(super) slices: HashMap<Arc<ObjectName>, Slice>,
    /// The slices of each service, in the order of their names.
    pub(super) slices_of: HashMap<Arc<ObjectName>, BTreeSet<Arc<ObjectName>>>,
    pub(super) claims: Claims,
    pub(super) cluster_ips: Holders,
    pub(super) external_addresses: Holders,
    /// How many endpoints of all slices have an address.
    pub(super) endpoint_addresses: HashMap<IpAddr, u32>,
    /// ClusterIPs that are also an external address of some service, or an endpoint's. Normally
    /// empty; kept so that nobody has to look for them.
    pub(super) suspicious: BTreeSet<IpAddr>,
    /// This node's own addresses: a ClusterIP among them is somebody else's to answer.
    pub(super) host_addresses: BTreeSet<IpAddr>,
    pub(super) refused: BTreeMap<(Kind, Arc<ObjectName>), Box<[Refusal]>>,
    /// The ranges of ClusterIPs the operator typed; those of objects come on top.
    typed_cidrs: Vec<IpNet>,
    service_cidrs: BTreeMap<Arc<ObjectName>, Vec<IpNet>>,
    opt_out: OptOut,
    triggers: TriggerTimes,
    interner: Interner,
    /// Names seen in a listing that is under way.
    listings: HashMap<Kind, HashSet<ObjectName>>,
    complete: HashSet<Kind>,
}

impl State {
    /// Knows nothing yet but the operator's choices and the node's name.
    pub fn new(options: Options, mut node: NodeFacts) -> Self {
        node.prefer(options.node_ip);
        Self {
            typed_cidrs: options.service_cidrs.clone(),
            service_cidrs: BTreeMap::new(),
            options,
            node,
            services: BTreeMap::new(),
            health_checked: BTreeSet::new(),
            slices: HashMap::new(),
            slices_of: HashMap::new(),
            claims: Claims::default(),
            cluster_ips: Holders::default(),
            external_addresses: Holders::default(),
            endpoint_addresses: HashMap::new(),
            suspicious: BTreeSet::new(),
            host_addresses: BTreeSet::new(),
            refused: BTreeMap::new(),
            opt_out: OptOut::default(),
            triggers: TriggerTimes::default(),
            interner: Interner::default(),
            listings: HashMap::new(),
            complete: HashSet::new(),
        }
    }

    /// True once every kind has been listed completely: from then on what is not known is gone.
    pub fn is_complete(&self) -> bool {
        Kind::ALL.iter().all(|kind| self.complete.contains(kind))
    }

    /// This node as known so far.
    pub fn node(&self) -> &NodeFacts {
        &self.node
    }

    /// The operator's choices.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The Services known, served or to be served.
    pub fn services(&self) -> impl Iterator<Item = (&ObjectName, &Service)> {
        self.services
            .iter()
            .map(|(name, service)| (name.as_ref(), service))
    }

    /// Takes one step of a source. Returns the service ports whose [`desired`](Self::desired) may
    /// be another now, those that no longer exist included.
    pub fn apply(&mut self, change: Change) -> Dirty {
        match change {
            Change::Restart(kind) => {
                self.listings.insert(kind, HashSet::new());
                Dirty::new()
            }
            Change::Apply(object) => self.apply_object(&object),
            Change::Keep(kind, name) => {
                if let Some(listed) = self.listings.get_mut(&kind) {
                    listed.insert(name);
                }
                Dirty::new()
            }
            Change::Delete(kind, name) => {
                if let Some(listed) = self.listings.get_mut(&kind) {
                    listed.remove(&name);
                }
                self.remove(kind, &name)
            }
            Change::Complete(kind) => self.complete_listing(kind),
        }
    }

    /// The pods of this node that are not balanced at the socket; `None` if nothing has changed since
    /// the last call, where none may be, and until pods and namespaces have been listed completely.
    pub fn take_opted_out(&mut self) -> Option<BTreeSet<PodUid>> {
        let known = [Kind::Pod, Kind::Namespace]
            .iter()
            .all(|kind| self.complete.contains(kind));
        if !known || self.options.opt_out.is_none() {
            return None;
        }
        self.opt_out.news()
    }

    /// Takes this node's addresses, as its devices have them. Returns the service ports whose
    /// [`desired`](Self::desired) may be another now.
    pub fn set_host_addresses(&mut self, addresses: BTreeSet<IpAddr>) -> Dirty {
        let mut dirty = Dirty::new();
        for address in addresses.symmetric_difference(&self.host_addresses) {
            for name in self.cluster_ips.get(address) {
                if let Some(service) = self.services.get(name) {
                    add_names(&mut dirty, name, service, Some(Family::of(*address)));
                }
            }
        }
        self.host_addresses = addresses;
        dirty
    }

    /// When the changes happened that were applied since the last call, as the slices' annotations
    /// tell; moments up to `start` are left out.
    pub fn take_trigger_times(
        &mut self,
        start: Timestamp,
    ) -> BTreeMap<(ObjectName, Family), Vec<Timestamp>> {
        self.triggers.take(start)
    }

    fn apply_object(&mut self, object: &Object) -> Dirty {
        let (kind, name) = match object {
            Object::Service(service) => (Kind::Service, ObjectName::of(&service.metadata)),
            Object::EndpointSlice(slice) => (Kind::EndpointSlice, ObjectName::of(&slice.metadata)),
            Object::Node(node) => (Kind::Node, ObjectName::of(&node.metadata)),
            Object::ServiceCidr(range) => (Kind::ServiceCidr, ObjectName::of(&range.metadata)),
            Object::Pod(pod) => (Kind::Pod, ObjectName::of(&pod.metadata)),
            Object::Namespace(namespace) => (Kind::Namespace, ObjectName::of(&namespace.metadata)),
        };
        if let Some(listed) = self.listings.get_mut(&kind) {
            listed.insert(name.clone());
        }
        match object {
            Object::Service(object) => {
                let converted = service::convert(&name, object, &self.options);
                let name = Arc::new(name);
                self.note_refusals(Kind::Service, &name, converted.refusals);
                self.put_service(&name, converted.service)
            }
            Object::EndpointSlice(object) => {
                let node = &self.node.name;
                let converted = endpoint::convert(&name, object, node, &mut self.interner);
                let name = Arc::new(name);
                self.note_refusals(Kind::EndpointSlice, &name, converted.refusals);
                self.put_slice(&name, converted.slice, trigger_time(object))
            }
            Object::Pod(_) | Object::Namespace(_) => {
                if let Some(label) = &self.options.opt_out {
                    self.opt_out.put(label, object);
                }
                Dirty::new()
            }
            Object::Node(object) => self.put_node(NodeFacts::from_object(object)),
            Object::ServiceCidr(object) => {
                let spec = object.spec.as_ref();
                let cidrs = spec
                    .and_then(|spec| spec.cidrs.as_deref())
                    .unwrap_or_default();
                let cidrs = cidrs.iter().filter_map(|text| address::parse_prefix(text));
                self.put_service_cidrs(&Arc::new(name), Some(cidrs.collect()))
            }
        }
    }

    fn complete_listing(&mut self, kind: Kind) -> Dirty {
        let listed = self.listings.remove(&kind).unwrap_or_default();
        let known: Vec<Arc<ObjectName>> = match kind {
            Kind::Service => self.services.keys().cloned().collect(),
            Kind::EndpointSlice => self.slices.keys().cloned().collect(),
            Kind::Node => Vec::new(),
            Kind::ServiceCidr => self.service_cidrs.keys().cloned().collect(),
            Kind::Pod | Kind::Namespace => self.opt_out.names(kind),
        };
        let refused = self.refused.keys();
        let refused = refused.filter(|(of, _)| *of == kind).map(|(_, name)| name);
        let gone: BTreeSet<Arc<ObjectName>> = known
            .iter()
            .chain(refused)
            .filter(|name| !listed.contains(name.as_ref()))
            .cloned()
            .collect();
        let mut dirty = Dirty::new();
        for name in gone {
            dirty.append(&mut self.remove(kind, &name));
        }
        self.interner.shrink();
        self.complete.insert(kind);
        dirty
    }

    fn remove(&mut self, kind: Kind, name: &ObjectName) -> Dirty {
        let name = Arc::new(name.clone());
        self.note_refusals(kind, &name, Vec::new());
        match kind {
            Kind::Service => self.put_service(&name, None),
            Kind::EndpointSlice => self.put_slice(&name, None, None),
            // A deleted Node object changes nothing on the machine (section 13).
            Kind::Node => Dirty::new(),
            Kind::ServiceCidr => self.put_service_cidrs(&name, None),
            Kind::Pod | Kind::Namespace => {
                self.opt_out.remove(kind, &name);
                Dirty::new()
            }
        }
    }

    fn note_refusals(&mut self, kind: Kind, name: &Arc<ObjectName>, refusals: Vec<Refusal>) {
        let key = (kind, Arc::clone(name));
        if refusals.is_empty() {
            self.refused.remove(&key);
        } else {
            self.refused.insert(key, refusals.into());
        }
    }

    /// No service depends on the ranges: they are an option like those that were typed.
    fn put_service_cidrs(&mut self, name: &Arc<ObjectName>, cidrs: Option<Vec<IpNet>>) -> Dirty {
        match cidrs {
            Some(cidrs) => self.service_cidrs.insert(Arc::clone(name), cidrs),
            None => self.service_cidrs.remove(name),
        };
        let mut all = self.typed_cidrs.clone();
        for cidr in self.service_cidrs.values().flatten() {
            if !all.contains(cidr) {
                all.push(*cidr);
            }
        }
        self.options.service_cidrs = all;
        Dirty::new()
    }

    fn put_node(&mut self, mut facts: NodeFacts) -> Dirty {
        facts.prefer(self.options.node_ip);
        if facts.name != self.node.name {
            return Dirty::new();
        }
        let same_zone = facts.zone == self.node.zone;
        // Source ranges that hold the node let it use the service's addresses as a source.
        let same_addresses = facts.addresses == self.node.addresses;
        self.node = facts;
        let mut dirty = Dirty::new();
        for (name, service) in &self.services {
            if same_zone && (same_addresses || service.source_ranges.is_empty()) {
                continue;
            }
            add_names(&mut dirty, name, service, None);
        }
        dirty
    }

    fn put_service(&mut self, name: &Arc<ObjectName>, new: Option<Service>) -> Dirty {
        if self.services.get(name) == new.as_ref() {
            return Dirty::new();
        }
        let mut touched = BTreeSet::from([Arc::clone(name)]);
        let mut dirty = Dirty::new();
        if let Some(old) = self.services.remove(name) {
            add_names(&mut dirty, name, &old, None);
            self.unindex_service(name, &old, &mut touched);
        }
        self.health_checked.remove(name);
        if let Some(new) = new {
            self.index_service(name, &new, &mut touched);
            if new.health_check_node_port != 0 {
                self.health_checked.insert(Arc::clone(name));
            }
            self.services.insert(Arc::clone(name), new);
        }
        for name in touched {
            if let Some(service) = self.services.get(&name) {
                add_names(&mut dirty, &name, service, None);
            }
        }
        dirty
    }

    fn put_slice(
        &mut self,
        name: &Arc<ObjectName>,
        new: Option<Slice>,
        at: Option<Timestamp>,
    ) -> Dirty {
        if self.slices.get(name) == new.as_ref() {
            return Dirty::new();
        }
        let mut dirty = Dirty::new();
        // The old owner is dirty too, also when the slice moved to another service.
        if let Some(old) = self.slices.remove(name) {
            self.add_slice_names(&mut dirty, &old);
            self.unindex_slice(name, &old);
            if new.as_ref().is_none_or(|new| new.service != old.service) {
                self.triggers.removed(&old.service, old.family);
            }
        }
        if let Some(new) = new {
            self.add_slice_names(&mut dirty, &new);
            self.triggers.changed(&new.service, new.family, at);
            self.index_slice(name, &new);
            self.slices.insert(Arc::clone(name), new);
        }
        dirty
    }

    fn add_slice_names(&self, dirty: &mut Dirty, slice: &Slice) {
        if let Some((name, service)) = self.services.get_key_value(&slice.service) {
            add_names(dirty, name, service, Some(slice.family));
        }
    }
}

/// The service ports of a service, of one family or of all.
pub(super) fn add_names(
    names: &mut Dirty,
    name: &ObjectName,
    service: &Service,
    family: Option<Family>,
) {
    for of in service
        .families()
        .filter(|of| family.is_none_or(|f| f == *of))
    {
        names.extend(service.ports.iter().map(|port| ServicePortName {
            service: name.clone(),
            port: port.name.to_string(),
            protocol: port.protocol,
            family: of,
        }));
    }
}
