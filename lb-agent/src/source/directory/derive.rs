//! From the objects that files claim to the objects the model reads: Services with addresses and
//! ports, slices from selectors and Endpoints, this node. Incremental and pure: an edit costs what
//! it touches, not what there is.

use super::allocate::Allocator;
use super::claims::Claims;
use super::object::{Json, ObjectKey, ObjectKind, read};
use super::select::{PodFacts, matches, selector, slices};
use crate::model::desired::ObjectName;
use crate::source::endpoints::{SERVICE_NAME_LABEL, slices_of};
use crate::source::{Kind, SourceRefusal};
use k8s_openapi::api::core::v1::{Endpoints, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// An object of the change stream.
pub type OutputKey = (Kind, ObjectName);

/// Objects by label.
pub(super) type LabelIndex = BTreeMap<Label, BTreeSet<ObjectName>>;

/// Namespace, label, value.
pub(super) type Label = (Arc<str>, String, String);

/// The derived objects and what is needed to derive them again.
#[derive(Debug)]
pub struct Derived {
    node: String,
    pub(super) allocator: Allocator,
    pub(super) outputs: BTreeMap<OutputKey, Json>,
    pods: BTreeMap<ObjectName, PodFacts>,
    pods_by_label: LabelIndex,
    pub(super) services_by_label: LabelIndex,
    slice_owner: BTreeMap<ObjectName, ObjectName>,
    /// How many slices files claim for a Service.
    slices_of_service: BTreeMap<ObjectName, usize>,
    generated: BTreeMap<(Origin, ObjectName), BTreeSet<ObjectName>>,
    zones: BTreeMap<String, String>,
    pub(super) problems: BTreeMap<ObjectKey, Vec<SourceRefusal>>,
    /// Services that others keep from their values, tried again whenever a Service changes.
    pub(super) waiting: BTreeSet<ObjectName>,
}

/// What a made-up slice was made from.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Origin {
    Selector,
    Endpoints,
}

/// What one edit leaves to do and to say.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Objects that changed, appeared or went.
    pub changed: BTreeSet<OutputKey>,
    /// Troubles of objects before and after.
    pub problems: Vec<(Vec<SourceRefusal>, Vec<SourceRefusal>)>,
    pub(super) selectors: BTreeSet<ObjectName>,
    endpoints: BTreeSet<ObjectName>,
}

impl Derived {
    /// Nothing yet, for this node.
    pub fn new(node: String, allocator: Allocator) -> Self {
        Self {
            node,
            allocator,
            outputs: BTreeMap::new(),
            pods: BTreeMap::new(),
            pods_by_label: BTreeMap::new(),
            services_by_label: BTreeMap::new(),
            slice_owner: BTreeMap::new(),
            slices_of_service: BTreeMap::new(),
            generated: BTreeMap::new(),
            zones: BTreeMap::new(),
            problems: BTreeMap::new(),
            waiting: BTreeSet::new(),
        }
    }

    /// Who holds which addresses and ports.
    pub const fn allocator(&self) -> &Allocator {
        &self.allocator
    }

    /// The objects as they should be seen.
    pub const fn outputs(&self) -> &BTreeMap<OutputKey, Json> {
        &self.outputs
    }

    /// Gives back what is held by Services that no file claims.
    pub fn release_unclaimed(&mut self, claims: &Claims) {
        let claimed = |name: &ObjectName| {
            let key = ObjectKey {
                kind: ObjectKind::Service,
                name: name.clone(),
            };
            claims.winner(&key).is_some()
        };
        let names: Vec<_> = self
            .allocator
            .held()
            .keys()
            .filter(|name| !claimed(name))
            .cloned()
            .collect();
        for name in names {
            self.allocator.release(&name);
        }
    }

    /// Derives what the touched objects lead to.
    pub fn update(&mut self, touched: &BTreeSet<ObjectKey>, claims: &Claims) -> Outcome {
        let mut outcome = Outcome::default();
        let mut services = BTreeSet::new();
        let mut before = BTreeMap::new();
        for key in touched {
            before.insert(key.clone(), self.problems.remove(key).unwrap_or_default());
            let losers = claims.losers(key);
            if !losers.is_empty() {
                self.problems.insert(key.clone(), losers);
            }
            let json = claims.winner(key).map(|(_, json)| json.clone());
            match key.kind {
                ObjectKind::Service => drop(services.insert(key.name.clone())),
                ObjectKind::Pod => self.pod(&key.name, json, &mut outcome),
                ObjectKind::Node => self.node(&key.name, json, &mut outcome),
                ObjectKind::EndpointSlice => self.slice(&key.name, json, &mut outcome),
                ObjectKind::Endpoints => drop(outcome.endpoints.insert(key.name.clone())),
            }
        }
        if !services.is_empty() {
            self.services(services, claims, &mut before, &mut outcome);
        }
        for name in std::mem::take(&mut outcome.selectors) {
            self.select(&name, &mut outcome);
        }
        for name in std::mem::take(&mut outcome.endpoints) {
            self.mirror(&name, claims, &mut outcome);
        }
        for (key, before) in before {
            let after = self.problems.get(&key).cloned().unwrap_or_default();
            outcome.problems.push((before, after));
        }
        outcome
    }

    pub(super) fn output(&mut self, key: OutputKey, json: Option<Json>, outcome: &mut Outcome) {
        let same = self.outputs.get(&key) == json.as_ref();
        match json {
            Some(json) => drop(self.outputs.insert(key.clone(), json)),
            None => drop(self.outputs.remove(&key)),
        }
        if !same {
            outcome.changed.insert(key);
        }
    }

    fn pod(&mut self, name: &ObjectName, json: Option<Json>, outcome: &mut Outcome) {
        let facts = json
            .and_then(|json| read::<Pod>(&json))
            .map(|pod| PodFacts::of(&pod));
        let before = self.pods.remove(name);
        if before == facts {
            self.pods.extend(facts.map(|facts| (name.clone(), facts)));
            return;
        }
        for (facts, add) in [(&before, false), (&facts, true)] {
            for (label, value) in facts.iter().flat_map(|facts| &facts.labels) {
                let key = (name.namespace.clone(), label.clone(), value.clone());
                if let Some(services) = self.services_by_label.get(&key) {
                    outcome.selectors.extend(services.iter().cloned());
                }
                index(&mut self.pods_by_label, key, name, add);
            }
        }
        self.pods.extend(facts.map(|facts| (name.clone(), facts)));
    }

    fn node(&mut self, name: &ObjectName, json: Option<Json>, outcome: &mut Outcome) {
        let node = json.as_ref().and_then(|json| read::<Node>(json));
        let labels = node.and_then(|node| node.metadata.labels);
        let zone = labels.and_then(|mut labels| labels.remove("topology.kubernetes.io/zone"));
        let before = self.zones.remove(&*name.name);
        if before != zone {
            let services = self.services_by_label.values().flatten();
            outcome.selectors.extend(services.cloned());
        }
        self.zones
            .extend(zone.map(|zone| (name.name.to_string(), zone)));
        if *name.name == self.node {
            self.output((Kind::Node, name.clone()), json, outcome);
        }
    }

    fn slice(&mut self, name: &ObjectName, json: Option<Json>, outcome: &mut Outcome) {
        let slice = json.as_ref().and_then(|json| read::<EndpointSlice>(json));
        let label = slice.and_then(|slice| slice.metadata.labels?.remove(SERVICE_NAME_LABEL));
        let owner = label.map(|service| ObjectName {
            namespace: name.namespace.clone(),
            name: service.into(),
        });
        if let Some(before) = self.slice_owner.remove(name) {
            if let Some(slices) = self.slices_of_service.get_mut(&before) {
                *slices -= 1;
                if *slices == 0 {
                    self.slices_of_service.remove(&before);
                }
            }
            outcome.endpoints.insert(before);
        }
        if let Some(owner) = owner {
            *self.slices_of_service.entry(owner.clone()).or_default() += 1;
            self.slice_owner.insert(name.clone(), owner.clone());
            outcome.endpoints.insert(owner);
        }
        self.output((Kind::EndpointSlice, name.clone()), json, outcome);
    }

    /// Makes the slices of a Service's selector.
    fn select(&mut self, name: &ObjectName, outcome: &mut Outcome) {
        let output = self.outputs.get(&(Kind::Service, name.clone()));
        let service = output.and_then(|json| read::<Service>(json));
        let made = service.map_or_else(Vec::new, |service| {
            let Some(selector) = selector(&service) else {
                return Vec::new();
            };
            // The rarest of the selector's labels leads to the fewest Pods.
            let candidates = selector
                .iter()
                .map(|(label, value)| {
                    let key = (name.namespace.clone(), label.clone(), value.clone());
                    self.pods_by_label.get(&key)
                })
                .min_by_key(|pods| pods.map_or(0, BTreeSet::len))
                .flatten();
            let pods = candidates
                .into_iter()
                .flatten()
                .filter_map(|pod| self.pods.get(pod))
                .filter(|pod| matches(selector, &pod.labels));
            slices(&service, &pods, &self.zones)
        });
        self.generate(Origin::Selector, name, made, outcome);
        outcome.endpoints.insert(name.clone());
    }

    /// Endpoints count only where the Service has no slice.
    fn mirror(&mut self, name: &ObjectName, claims: &Claims, outcome: &mut Outcome) {
        let has_slice = self.slices_of_service.contains_key(name)
            || self
                .generated
                .contains_key(&(Origin::Selector, name.clone()));
        let key = ObjectKey {
            kind: ObjectKind::Endpoints,
            name: name.clone(),
        };
        let endpoints = claims.winner(&key).filter(|_| !has_slice);
        let endpoints = endpoints.and_then(|(_, json)| read::<Endpoints>(json));
        let made = endpoints
            .map(|endpoints| slices_of(&endpoints))
            .unwrap_or_default();
        self.generate(Origin::Endpoints, name, made, outcome);
    }

    fn generate(
        &mut self,
        origin: Origin,
        service: &ObjectName,
        made: Vec<EndpointSlice>,
        outcome: &mut Outcome,
    ) {
        let mut names = BTreeSet::new();
        for slice in made {
            let name = ObjectName::of(&slice.metadata);
            let json = serde_json::to_vec(&slice).ok().map(Json::from);
            self.output((Kind::EndpointSlice, name.clone()), json, outcome);
            names.insert(name);
        }
        let key = (origin, service.clone());
        for stale in self
            .generated
            .remove(&key)
            .unwrap_or_default()
            .difference(&names)
        {
            self.output((Kind::EndpointSlice, stale.clone()), None, outcome);
        }
        if !names.is_empty() {
            self.generated.insert(key, names);
        }
    }
}

/// Adds an object to an index by label, or removes it.
pub(super) fn index(index: &mut LabelIndex, key: Label, name: &ObjectName, add: bool) {
    if add {
        index.entry(key).or_default().insert(name.clone());
    } else if let Some(names) = index.get_mut(&key) {
        names.remove(name);
        if names.is_empty() {
            index.remove(&key);
        }
    }
}
