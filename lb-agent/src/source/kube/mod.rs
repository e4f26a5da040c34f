//! The Kubernetes API as the source: the watches, each with its own clock, one stream of changes.

pub mod client;
pub mod event;
pub mod guard;
pub mod reading;
pub mod requests;
pub mod trouble;
mod watch;

use crate::model::desired::ObjectName;
use crate::source::endpoints::slices_of;
use crate::source::{Change, Kind, Object, Report};
use client::Servers;
use k8s_openapi::api::core::v1::{Endpoints, Namespace, Node, Pod, PodStatus, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use reading::Watched;
use std::collections::{BTreeMap, BTreeSet};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use watch::Watch;

/// The API server of a cluster.
#[derive(Clone)]
pub struct KubeSource {
    /// Where it is and how to speak to it.
    pub servers: Servers,
    /// Name of this node: only its own Node object is watched.
    pub node: String,
    /// Read Endpoints instead of EndpointSlices, for clusters without those.
    pub use_endpoints: bool,
    /// Watch this node's pods and all namespaces, too, for their labels.
    pub watch_labels: bool,
}

impl KubeSource {
    /// Runs until shutdown or until nobody listens. Each resource is tried for ever on its own; a
    /// denied or failing one deletes nothing and holds up no other.
    pub async fn run(
        self,
        changes: mpsc::Sender<Change>,
        reports: mpsc::Sender<Report>,
        shutdown: CancellationToken,
    ) {
        let watch = Watch {
            servers: self.servers,
            changes,
            reports,
        };
        let services = watch.follow(Services);
        let pods = async {
            if self.watch_labels {
                let node = self.node.clone();
                tokio::join!(watch.follow(OwnPods { node }), watch.follow(Namespaces));
            }
        };
        let node = watch.follow(OwnNode {
            name: self.node.clone(),
        });
        let ranges = watch.follow(ServiceRanges);
        let endpoints = async {
            if self.use_endpoints {
                watch.follow(OldEndpoints::default()).await;
            } else {
                watch.follow(Slices).await;
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => {}
            ((), (), (), (), ()) = async { tokio::join!(services, node, endpoints, ranges, pods) } => {}
        }
    }
}

/// Services, as kube-proxy asks for them (`SERVICE-SEMANTICS` 1).
#[derive(Debug)]
pub struct Services;

impl Watched for Services {
    type Resource = Service;
    const KIND: Kind = Kind::Service;
    const NAME: &'static str = "services";
    const LABELS: Option<&'static str> = Some("!service.kubernetes.io/service-proxy-name");

    fn fields(&self) -> Option<String> {
        Some("spec.clusterIP!=None".to_owned())
    }

    fn applied(&mut self, mut service: Service) -> Vec<Change> {
        service.metadata.managed_fields = None;
        vec![Change::Apply(Object::Service(Box::new(service)))]
    }
}

/// EndpointSlices of Services that are not headless.
#[derive(Debug)]
pub struct Slices;

impl Watched for Slices {
    type Resource = EndpointSlice;
    const KIND: Kind = Kind::EndpointSlice;
    const NAME: &'static str = "endpointslices.discovery.k8s.io";
    const LABELS: Option<&'static str> = Some("!service.kubernetes.io/headless");

    fn applied(&mut self, mut slice: EndpointSlice) -> Vec<Change> {
        slice.metadata.managed_fields = None;
        vec![Change::Apply(Object::EndpointSlice(Box::new(slice)))]
    }
}

/// Endpoints, told as slices.
#[derive(Debug, Default)]
pub struct OldEndpoints {
    told: BTreeMap<ObjectName, BTreeSet<ObjectName>>,
    /// What was told before the listing that is under way.
    before: BTreeMap<ObjectName, BTreeSet<ObjectName>>,
}

impl Watched for OldEndpoints {
    type Resource = Endpoints;
    const KIND: Kind = Kind::EndpointSlice;
    const NAME: &'static str = "endpoints";
    const LABELS: Option<&'static str> = Some("!service.kubernetes.io/headless");

    fn restarted(&mut self) {
        self.before.append(&mut self.told);
    }

    fn completed(&mut self) {
        self.before.clear();
    }

    fn applied(&mut self, endpoints: Endpoints) -> Vec<Change> {
        let name = ObjectName::of(&endpoints.metadata);
        let slices = slices_of(&endpoints);
        let names: BTreeSet<_> = slices
            .iter()
            .map(|slice| ObjectName::of(&slice.metadata))
            .collect();
        let before = self.told.insert(name, names.clone()).unwrap_or_default();
        let applied = slices.into_iter().map(Box::new).map(Object::EndpointSlice);
        let mut changes: Vec<_> = applied.map(Change::Apply).collect();
        let stale = before.difference(&names).cloned();
        changes.extend(stale.map(|name| Change::Delete(Kind::EndpointSlice, name)));
        changes
    }

    fn undecodable(&mut self, name: ObjectName) -> Vec<Change> {
        if let Some(slices) = self.before.remove(&name) {
            self.told.insert(name.clone(), slices);
        }
        let known = self.told.get(&name).into_iter().flatten();
        known
            .map(|slice| Change::Keep(Kind::EndpointSlice, slice.clone()))
            .collect()
    }

    fn deleted(&mut self, name: ObjectName) -> Vec<Change> {
        let gone = self.told.remove(&name).unwrap_or_default();
        gone.into_iter()
            .map(|name| Change::Delete(Kind::EndpointSlice, name))
            .collect()
    }
}

/// This node.
#[derive(Debug)]
pub struct OwnNode {
    /// Its name.
    pub name: String,
}

impl Watched for OwnNode {
    type Resource = Node;
    const KIND: Kind = Kind::Node;
    const NAME: &'static str = "nodes";

    fn fields(&self) -> Option<String> {
        Some(format!("metadata.name={}", self.name))
    }

    fn applied(&mut self, mut node: Node) -> Vec<Change> {
        node.metadata.managed_fields = None;
        if let Some(status) = &mut node.status {
            status.images = None;
        }
        vec![Change::Apply(Object::Node(Box::new(node)))]
    }
}

/// The pods of this node.
struct OwnPods {
    node: String,
}

impl Watched for OwnPods {
    type Resource = Pod;
    const KIND: Kind = Kind::Pod;
    const NAME: &'static str = "pods";

    fn fields(&self) -> Option<String> {
        Some(format!("spec.nodeName={}", self.node))
    }

    fn applied(&mut self, mut pod: Pod) -> Vec<Change> {
        pod.metadata.managed_fields = None;
        pod.spec = None;
        pod.status = pod.status.map(|status| PodStatus {
            phase: status.phase,
            ..PodStatus::default()
        });
        vec![Change::Apply(Object::Pod(Box::new(pod)))]
    }
}

/// Every namespace.
struct Namespaces;

impl Watched for Namespaces {
    type Resource = Namespace;
    const KIND: Kind = Kind::Namespace;
    const NAME: &'static str = "namespaces";

    fn applied(&mut self, mut namespace: Namespace) -> Vec<Change> {
        namespace.metadata.managed_fields = None;
        vec![Change::Apply(Object::Namespace(Box::new(namespace)))]
    }
}

/// The ranges ClusterIPs come from (Kubernetes 1.33).
#[derive(Debug)]
pub struct ServiceRanges;

impl Watched for ServiceRanges {
    type Resource = ServiceCIDR;
    const KIND: Kind = Kind::ServiceCidr;
    const NAME: &'static str = "servicecidrs.networking.k8s.io";
    const OPTIONAL: bool = true;

    fn applied(&mut self, mut range: ServiceCIDR) -> Vec<Change> {
        range.metadata.managed_fields = None;
        vec![Change::Apply(Object::ServiceCidr(Box::new(range)))]
    }
}

#[cfg(test)]
mod test_server;
#[cfg(test)]
mod tests;
