//! Selectors against Pods → EndpointSlices, as the endpointslice controller writes them. Pure.

use super::defaults::{is_external_name, is_headless};
use crate::model::desired::{Family, ObjectName};
use crate::source::endpoints::{empty_slice, parse_address, slice_name};
use k8s_openapi::api::core::v1::{Container, Pod, Service, ServicePort};
use k8s_openapi::api::discovery::v1::{
    Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForNode, ForZone,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Endpoints in one slice, the controller's default.
const SLICE_SIZE: usize = 100;

/// What a Pod is to a Service.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct PodFacts {
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// `status.podIPs`.
    addresses: Vec<IpAddr>,
    /// The Ready condition.
    ready: bool,
    /// Marked for deletion.
    terminating: bool,
    /// Phase Succeeded or Failed: no endpoint any more.
    finished: bool,
    /// `spec.nodeName`.
    node: Option<String>,
    /// Named container ports: (name, protocol, number).
    ports: Vec<(String, String, i32)>,
}

impl PodFacts {
    /// Reads a Pod.
    pub fn of(pod: &Pod) -> Self {
        let status = pod.status.as_ref();
        let spec = pod.spec.as_ref();
        let many = status.and_then(|status| status.pod_ips.as_ref());
        let mut addresses: Vec<IpAddr> = many
            .into_iter()
            .flatten()
            .filter_map(|ip| parse_address(&ip.ip))
            .collect();
        if addresses.is_empty() {
            let one = status.and_then(|status| status.pod_ip.as_deref());
            addresses.extend(one.and_then(parse_address));
        }
        let conditions = status.and_then(|status| status.conditions.as_ref());
        let is_ready = |condition: &k8s_openapi::api::core::v1::PodCondition| {
            condition.type_ == "Ready" && condition.status == "True"
        };
        let phase = status.and_then(|status| status.phase.as_deref());
        Self {
            labels: pod.metadata.labels.clone().unwrap_or_default(),
            addresses,
            ready: conditions.into_iter().flatten().any(is_ready),
            terminating: pod.metadata.deletion_timestamp.is_some(),
            finished: matches!(phase, Some("Succeeded" | "Failed")),
            node: spec.and_then(|spec| spec.node_name.clone()),
            ports: spec.map(container_ports).unwrap_or_default(),
        }
    }

    fn address(&self, family: Family) -> Option<IpAddr> {
        self.addresses
            .iter()
            .copied()
            .find(|address| Family::of(*address) == family)
    }
}

/// Named ports of containers and of restartable init containers (sidecars).
fn container_ports(spec: &k8s_openapi::api::core::v1::PodSpec) -> Vec<(String, String, i32)> {
    let sidecar = |container: &&Container| container.restart_policy.as_deref() == Some("Always");
    let sidecars = spec.init_containers.iter().flatten().filter(sidecar);
    let containers = spec.containers.iter().chain(sidecars);
    containers
        .flat_map(|container| container.ports.iter().flatten())
        .filter_map(|port| {
            let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
            Some((port.name.clone()?, protocol, port.container_port))
        })
        .collect()
}

/// The selector of a Service that gets slices from it.
pub fn selector(service: &Service) -> Option<&BTreeMap<String, String>> {
    let spec = service.spec.as_ref()?;
    let selector = spec
        .selector
        .as_ref()
        .filter(|selector| !selector.is_empty())?;
    (!is_headless(spec) && !is_external_name(spec)).then_some(selector)
}

/// Whether labels satisfy a selector.
pub fn matches(selector: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    selector
        .iter()
        .all(|(key, value)| labels.get(key) == Some(value))
}

/// The slices of a completed Service over the Pods its selector matches.
pub fn slices<'a>(
    service: &Service,
    pods: &(impl Iterator<Item = &'a PodFacts> + Clone),
    zones: &BTreeMap<String, String>,
) -> Vec<EndpointSlice> {
    let families: BTreeSet<Family> = service
        .spec
        .iter()
        .flat_map(|spec| spec.ip_families.iter().flatten())
        .map(|family| {
            if family == "IPv4" {
                Family::V4
            } else {
                Family::V6
            }
        })
        .collect();
    families
        .into_iter()
        .flat_map(|family| of_family(service, family, pods.clone(), zones))
        .collect()
}

fn of_family<'a>(
    service: &Service,
    family: Family,
    pods: impl Iterator<Item = &'a PodFacts>,
    zones: &BTreeMap<String, String>,
) -> Vec<EndpointSlice> {
    // Pods that resolve a named port to different numbers go to different slices.
    let mut groups: BTreeMap<Vec<PortNumber>, Vec<Endpoint>> = BTreeMap::new();
    for pod in pods.filter(|pod| !pod.finished) {
        let Some(address) = pod.address(family) else {
            continue;
        };
        let ports = resolve(service, pod);
        if !ports.is_empty() {
            groups
                .entry(ports)
                .or_default()
                .push(endpoint(service, pod, address, zones));
        }
    }
    let name = ObjectName::of(&service.metadata);
    let mut slices = Vec::new();
    for (ports, endpoints) in groups {
        for chunk in endpoints.chunks(SLICE_SIZE) {
            let slice_name = slice_name(&name.name, "selector", family, slices.len());
            let mut slice = empty_slice(&name.namespace, &name.name, slice_name, family);
            debug_assert_eq!(slice.address_type, family.name());
            slice.endpoints = Some(chunk.to_vec());
            slice.ports = Some(
                ports
                    .iter()
                    .map(|port| endpoint_port(service, *port))
                    .collect(),
            );
            slices.push(slice);
        }
    }
    slices
}

/// (index of the service port, number on the Pod).
type PortNumber = (usize, i32);

fn service_ports(service: &Service) -> &[ServicePort] {
    service
        .spec
        .as_ref()
        .and_then(|spec| spec.ports.as_deref())
        .unwrap_or_default()
}

fn resolve(service: &Service, pod: &PodFacts) -> Vec<PortNumber> {
    let number = |port: &ServicePort| match &port.target_port {
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(name)) => {
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let named = |known: &&(String, String, i32)| known.0 == *name && known.1 == protocol;
            pod.ports.iter().find(named).map(|known| known.2)
        }
        None => Some(port.port),
    };
    let ports = service_ports(service).iter().enumerate();
    ports
        .filter_map(|(index, port)| Some((index, number(port)?)))
        .collect()
}

fn endpoint_port(service: &Service, (index, number): PortNumber) -> EndpointPort {
    let port = &service_ports(service)[index];
    EndpointPort {
        app_protocol: port.app_protocol.clone(),
        name: Some(port.name.clone().unwrap_or_default()),
        port: Some(number),
        protocol: port.protocol.clone(),
    }
}

fn endpoint(
    service: &Service,
    pod: &PodFacts,
    address: IpAddr,
    zones: &BTreeMap<String, String>,
) -> Endpoint {
    let spec = service.spec.as_ref();
    let publish = spec.and_then(|spec| spec.publish_not_ready_addresses) == Some(true);
    let zone = pod.node.as_ref().and_then(|node| zones.get(node)).cloned();
    Endpoint {
        addresses: vec![address.to_string()],
        conditions: Some(EndpointConditions {
            // `publishNotReadyAddresses` covers terminating Pods as well.
            ready: Some(publish || (pod.ready && !pod.terminating)),
            serving: Some(publish || pod.ready),
            terminating: Some(pod.terminating),
        }),
        hints: hints(
            spec.and_then(|spec| spec.traffic_distribution.as_deref()),
            pod,
            zone.as_ref(),
        ),
        node_name: pod.node.clone(),
        zone,
        ..Endpoint::default()
    }
}

/// `trafficDistribution` acts through hints alone (KEP-4444, KEP-3015).
fn hints(
    distribution: Option<&str>,
    pod: &PodFacts,
    zone: Option<&String>,
) -> Option<EndpointHints> {
    let by_node = distribution == Some("PreferSameNode");
    if !by_node && !matches!(distribution, Some("PreferClose" | "PreferSameZone")) {
        return None;
    }
    let node = pod.node.clone().filter(|_| by_node);
    let for_nodes = node.map(|name| vec![ForNode { name }]);
    let for_zones = zone.map(|name| vec![ForZone { name: name.clone() }]);
    (for_nodes.is_some() || for_zones.is_some()).then_some(EndpointHints {
        for_nodes,
        for_zones,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str, patch: &serde_json::Value) -> PodFacts {
        let mut object = json!({
            "metadata": {"name": name, "labels": {"app": "web"}},
            "spec": {"nodeName": "n1", "containers": [
                {"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}]},
            "status": {"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}],
                "conditions": [{"type": "Ready", "status": "True"}]},
        });
        for (pointer, value) in patch.as_object().unwrap() {
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            object.pointer_mut(parent).unwrap()[key] = value.clone();
        }
        PodFacts::of(&serde_json::from_value(object).unwrap())
    }

    fn service(spec: &serde_json::Value) -> Service {
        let metadata = json!({"name": "web", "namespace": "default"});
        let mut service =
            serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap();
        super::super::defaults::apply(&mut service);
        service
    }

    fn web() -> Service {
        service(&json!({"ipFamilies": ["IPv4"], "selector": {"app": "web"},
            "ports": [{"port": 80, "targetPort": "http"}]}))
    }

    fn conditions(service: &Service, pod: &PodFacts) -> Option<(bool, bool, bool)> {
        let slices = slices(service, &std::iter::once(pod), &BTreeMap::new());
        let conditions = slices.first()?.endpoints.as_ref()?[0].conditions.clone()?;
        Some((
            conditions.ready?,
            conditions.serving?,
            conditions.terminating?,
        ))
    }

    #[test]
    fn readiness_comes_from_the_pods_conditions() {
        let no = json!([{"type": "Ready", "status": "False"}]);
        let deleted = json!("2026-01-01T00:00:00Z");
        assert_eq!(
            conditions(&web(), &pod("a", &json!({}))),
            Some((true, true, false))
        );
        let unready = pod("a", &json!({"/status/conditions": no}));
        assert_eq!(conditions(&web(), &unready), Some((false, false, false)));
        let leaving = pod("a", &json!({"/metadata/deletionTimestamp": deleted}));
        assert_eq!(conditions(&web(), &leaving), Some((false, true, true)));
        let done = pod("a", &json!({"/status/phase": "Succeeded"}));
        assert_eq!(conditions(&web(), &done), None);
        let mut publish = web();
        publish.spec.as_mut().unwrap().publish_not_ready_addresses = Some(true);
        assert_eq!(conditions(&publish, &unready), Some((true, true, false)));
    }

    #[test]
    fn a_named_target_port_is_looked_up_in_each_pod() {
        let other = json!([{"name": "c", "ports": [{"name": "http", "containerPort": 9090}]}]);
        let without = json!([{"name": "c"}]);
        let pods = [
            pod("a", &json!({})),
            pod("b", &json!({"/spec/containers": other})),
            pod("c", &json!({"/spec/containers": without})),
        ];
        let slices = slices(&web(), &pods.iter(), &BTreeMap::new());
        let ports: Vec<_> = slices
            .iter()
            .map(|slice| slice.ports.as_ref().unwrap()[0].port.unwrap())
            .collect();
        assert_eq!(ports, [8080, 9090], "a Pod without the port is no endpoint");
    }

    #[test]
    fn each_family_of_the_service_gets_its_slice() {
        let spec = json!({"ipFamilyPolicy": "PreferDualStack", "ipFamilies": ["IPv4", "IPv6"],
            "selector": {"app": "web"}, "ports": [{"port": 80}]});
        let slices = slices(
            &service(&spec),
            &std::iter::once(&pod("a", &json!({}))),
            &BTreeMap::new(),
        );
        let addresses: Vec<_> = slices
            .iter()
            .map(|slice| slice.endpoints.as_ref().unwrap()[0].addresses[0].as_str())
            .collect();
        assert_eq!(addresses, ["10.0.0.1", "fd00::1"]);
        assert_eq!(slices[1].address_type, "IPv6");
    }

    #[test]
    fn more_than_a_hundred_pods_take_several_slices() {
        let pods: Vec<_> = (0..101).map(|n| pod(&n.to_string(), &json!({}))).collect();
        assert_eq!(slices(&web(), &pods.iter(), &BTreeMap::new()).len(), 2);
    }

    #[test]
    fn traffic_distribution_becomes_hints() {
        let mut near = web();
        near.spec.as_mut().unwrap().traffic_distribution = Some("PreferSameNode".to_owned());
        let zones = BTreeMap::from([("n1".to_owned(), "z".to_owned())]);
        let slices = slices(&near, &std::iter::once(&pod("a", &json!({}))), &zones);
        let endpoint = &slices[0].endpoints.as_ref().unwrap()[0];
        let hints = endpoint.hints.as_ref().unwrap();
        assert_eq!(hints.for_nodes.as_ref().unwrap()[0].name, "n1");
        assert_eq!(hints.for_zones.as_ref().unwrap()[0].name, "z");
    }
}
