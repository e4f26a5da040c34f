//! Services on their way through the allocator: in which order, and what a refusal means. Pure.

use super::claims::Claims;
use super::derive::{Derived, Outcome, index};
use super::object::{Json, ObjectKey, ObjectKind, read};
use super::select::selector;
use crate::model::desired::ObjectName;
use crate::source::{Kind, Problem, SourceRefusal};
use k8s_openapi::api::core::v1::Service;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Troubles of objects as they were before this edit.
pub(super) type Before = BTreeMap<ObjectKey, Vec<SourceRefusal>>;

fn key_of(name: &ObjectName) -> ObjectKey {
    ObjectKey {
        kind: ObjectKind::Service,
        name: name.clone(),
    }
}

fn load(claims: &Claims, name: &ObjectName) -> Option<Service> {
    claims
        .winner(&key_of(name))
        .and_then(|(_, json)| read(json))
}

impl Derived {
    /// Assigns the touched Services, those that wait, and those that lose something to them.
    /// Services are read one by one: ten thousand typed ones would be the agent's largest memory.
    pub(super) fn services(
        &mut self,
        touched: BTreeSet<ObjectName>,
        claims: &Claims,
        before: &mut Before,
        outcome: &mut Outcome,
    ) {
        let mut ranked = BTreeSet::new();
        for name in touched.into_iter().chain(std::mem::take(&mut self.waiting)) {
            if let Some(service) = load(claims, &name) {
                self.allocator.unname(&service);
                let path = claims.winner(&key_of(&name)).map(|(path, _)| path);
                ranked.insert((self.allocator.rank(&service), path, name));
            } else {
                self.allocator.release(&name);
                self.accepted(&name, None, outcome);
            }
        }
        let mut queue: VecDeque<_> = ranked.into_iter().map(|(_, _, name)| name).collect();
        while let Some(name) = queue.pop_front() {
            if let Some(service) = load(claims, &name) {
                queue.extend(self.assign(name, service, claims, before, outcome));
            }
        }
    }

    /// Assigns one Service; returns those that must be assigned again.
    fn assign(
        &mut self,
        name: ObjectName,
        mut service: Service,
        claims: &Claims,
        before: &mut Before,
        outcome: &mut Outcome,
    ) -> BTreeSet<ObjectName> {
        let key = key_of(&name);
        if !before.contains_key(&key) {
            before.insert(key.clone(), self.problems.remove(&key).unwrap_or_default());
            self.problems.insert(key.clone(), claims.losers(&key));
        }
        match self.allocator.assign(&mut service) {
            Ok(evicted) => {
                self.accepted(&name, Some(service), outcome);
                evicted
            }
            Err(errors) => {
                let mut sentence = errors.sentence(&name.name).unwrap_or_default();
                if self.outputs.contains_key(&(Kind::Service, name.clone())) {
                    sentence.push_str("; the last accepted version stays");
                }
                let refusal = SourceRefusal {
                    problem: Problem::Refused,
                    object: key.to_string(),
                    file: claims.winner(&key).map(|(path, _)| path.to_path_buf()),
                    sentence,
                };
                self.problems.entry(key).or_default().push(refusal);
                self.waiting.insert(name);
                BTreeSet::new()
            }
        }
    }

    /// A Service is completed (or gone): its output, its place in the index, its slices.
    fn accepted(&mut self, name: &ObjectName, service: Option<Service>, outcome: &mut Outcome) {
        let output = (Kind::Service, name.clone());
        let before = self
            .outputs
            .get(&output)
            .and_then(|json| read::<Service>(json));
        for (service, add) in [(&before, false), (&service, true)] {
            if let Some((label, value)) = service
                .as_ref()
                .and_then(selector)
                .and_then(BTreeMap::first_key_value)
            {
                let key = (name.namespace.clone(), label.clone(), value.clone());
                index(&mut self.services_by_label, key, name, add);
            }
        }
        let json = service.and_then(|service| serde_json::to_vec(&service).ok());
        self.output(output, json.map(Json::from), outcome);
        outcome.selectors.insert(name.clone());
    }
}
