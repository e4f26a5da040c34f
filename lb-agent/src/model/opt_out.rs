//! Which pods of this node are not balanced at the socket: a label of the pod says so, or, where the
//! pod has no such label, one of its namespace.

use super::desired::ObjectName;
use super::options::PodLabel;
use crate::source::{Kind, Object};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A pod's UID, as the API writes it.
pub type PodUid = String;

/// The pods of this node and the namespaces that are labelled.
#[derive(Debug, Default)]
pub(super) struct OptOut {
    pods: BTreeMap<ObjectName, (PodUid, Option<bool>)>,
    namespaces: BTreeSet<ObjectName>,
    /// Nothing has changed since somebody was told.
    told: bool,
}

/// What an object's label says, if it has one of this key.
fn says(metadata: &ObjectMeta, label: &PodLabel) -> Option<bool> {
    let value = metadata.labels.as_ref()?.get(&label.key)?;
    Some(*value == label.value)
}

/// True if a pod's processes have ended for good.
fn is_over(pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    let phase = status.and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// The namespace of a pod as an object of its own.
fn namespace_of(pod: &ObjectName) -> ObjectName {
    ObjectName {
        namespace: "".into(),
        name: pod.namespace.clone(),
    }
}

impl OptOut {
    /// Takes a pod or a namespace; other objects are nobody's business here.
    pub(super) fn put(&mut self, label: &PodLabel, object: &Object) {
        match object {
            Object::Pod(pod) => self.put_pod(label, pod),
            Object::Namespace(namespace) => {
                let name = ObjectName::of(&namespace.metadata);
                let changed = if says(&namespace.metadata, label) == Some(true) {
                    self.namespaces.insert(name)
                } else {
                    self.namespaces.remove(&name)
                };
                self.told &= !changed;
            }
            _ => {}
        }
    }

    fn put_pod(&mut self, label: &PodLabel, pod: &Pod) {
        let name = ObjectName::of(&pod.metadata);
        if is_over(pod) {
            // It has no processes any more, and soon no cgroup to be found.
            self.told &= self.pods.remove(&name).is_none();
            return;
        }
        // kubelet knows a pod of a file by the file's hash; the API has a mirror of it.
        let annotations = pod.metadata.annotations.as_ref();
        let hash = annotations.and_then(|all| all.get("kubernetes.io/config.hash"));
        let uid = hash
            .or(pod.metadata.uid.as_ref())
            .cloned()
            .unwrap_or_default();
        let new = (uid, says(&pod.metadata, label));
        if self.pods.get(&name) != Some(&new) {
            self.pods.insert(name, new);
            self.told = false;
        }
    }

    /// Forgets an object.
    pub(super) fn remove(&mut self, kind: Kind, name: &ObjectName) {
        let known = match kind {
            Kind::Pod => self.pods.remove(name).is_some(),
            Kind::Namespace => self.namespaces.remove(name),
            _ => false,
        };
        self.told &= !known;
    }

    /// The objects of this kind that are remembered.
    pub(super) fn names(&self, kind: Kind) -> Vec<Arc<ObjectName>> {
        let share = |name: &ObjectName| Arc::new(name.clone());
        match kind {
            Kind::Pod => self.pods.keys().map(share).collect(),
            Kind::Namespace => self.namespaces.iter().map(share).collect(),
            _ => Vec::new(),
        }
    }

    /// The pods that are opted out, if they may be others than those of the last call; the first
    /// call tells in any case.
    pub(super) fn news(&mut self) -> Option<BTreeSet<PodUid>> {
        (!std::mem::replace(&mut self.told, true)).then(|| self.uids())
    }

    /// The pods that are opted out.
    fn uids(&self) -> BTreeSet<PodUid> {
        let opted_out = |name: &ObjectName, own: Option<bool>| {
            own.unwrap_or_else(|| self.namespaces.contains(&namespace_of(name)))
        };
        let pods = self.pods.iter();
        pods.filter(|(name, (uid, own))| !uid.is_empty() && opted_out(name, *own))
            .map(|(_, (uid, _))| uid.clone())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn label() -> PodLabel {
        "mesh=on".parse().unwrap()
    }

    fn pod(name: &str, labels: &Value) -> Object {
        let metadata = json!({"namespace": "shop", "name": name, "uid": format!("uid-{name}"), "labels": labels});
        Object::Pod(serde_json::from_value(json!({ "metadata": metadata })).unwrap())
    }

    fn namespace(labels: &Value) -> Object {
        let namespace = json!({"metadata": {"name": "shop", "labels": labels}});
        Object::Namespace(serde_json::from_value(namespace).unwrap())
    }

    fn name(namespace: &str, name: &str) -> ObjectName {
        ObjectName {
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    fn uids(opt_out: &OptOut) -> Vec<PodUid> {
        opt_out.uids().into_iter().collect()
    }

    #[test]
    fn a_pods_own_label_goes_before_that_of_its_namespace() {
        let mut opt_out = OptOut::default();
        opt_out.put(&label(), &pod("plain", &json!({})));
        opt_out.put(&label(), &pod("in", &json!({"mesh": "on"})));
        opt_out.put(&label(), &pod("out", &json!({"mesh": "off"})));
        assert_eq!(uids(&opt_out), ["uid-in"]);
        opt_out.put(&label(), &namespace(&json!({"mesh": "on"})));
        assert_eq!(uids(&opt_out), ["uid-in", "uid-plain"]);
        opt_out.put(&label(), &namespace(&json!({"mesh": "no"})));
        assert_eq!(uids(&opt_out), ["uid-in"]);
        opt_out.put(&label(), &pod("in", &json!({})));
        assert!(opt_out.uids().is_empty());
        opt_out.put(&label(), &namespace(&json!({"mesh": "on"})));
        opt_out.remove(Kind::Pod, &name("shop", "plain"));
        assert_eq!(uids(&opt_out), ["uid-in"]);
        opt_out.remove(Kind::Namespace, &name("", "shop"));
        assert!(opt_out.uids().is_empty());
    }

    #[test]
    fn who_is_opted_out_is_told_once_after_each_change() {
        let mut opt_out = OptOut::default();
        assert_eq!(opt_out.news(), Some(BTreeSet::new()), "the first time");
        let labelled = pod("in", &json!({"mesh": "on"}));
        let all = || Some(BTreeSet::from(["uid-in".to_owned()]));
        opt_out.put(&label(), &labelled);
        assert_eq!(opt_out.news(), all());
        opt_out.put(&label(), &labelled);
        opt_out.put(&label(), &namespace(&json!({"mesh": "no"})));
        opt_out.remove(Kind::Pod, &name("shop", "unknown"));
        assert_eq!(opt_out.news(), None, "nothing of it has changed");
        opt_out.put(&label(), &namespace(&json!({"mesh": "on"})));
        assert_eq!(opt_out.news(), all());
        opt_out.remove(Kind::Namespace, &name("", "shop"));
        assert_eq!(opt_out.news(), all());
        opt_out.remove(Kind::Pod, &name("shop", "in"));
        assert_eq!(opt_out.news(), Some(BTreeSet::new()));
    }

    #[test]
    fn a_pod_that_has_ended_is_nobody_and_one_of_a_file_is_known_by_its_hash() {
        let mut opt_out = OptOut::default();
        let mut job = pod("job", &json!({"mesh": "on"}));
        opt_out.put(&label(), &job);
        assert_eq!(uids(&opt_out), ["uid-job"]);
        if let Object::Pod(pod) = &mut job {
            pod.status = serde_json::from_value(json!({"phase": "Succeeded"})).unwrap();
        }
        opt_out.put(&label(), &job);
        assert!(opt_out.uids().is_empty());
        let mut mirror = pod("mirror", &json!({"mesh": "on"}));
        if let Object::Pod(pod) = &mut mirror {
            let hash = ("kubernetes.io/config.hash".to_owned(), "5eed".to_owned());
            pod.metadata.annotations = Some([hash].into());
        }
        opt_out.put(&label(), &mirror);
        assert_eq!(uids(&opt_out), ["5eed"]);
    }
}
