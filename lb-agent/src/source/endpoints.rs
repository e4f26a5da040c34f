//! Endpoints objects as EndpointSlices: the same answer for the directory and for old clusters.
//! Pure; which service has no slices of its own is for the caller to know.

use crate::model::desired::Family;
use k8s_openapi::api::core::v1::{EndpointAddress, EndpointSubset, Endpoints};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::net::IpAddr;

/// The label that ties a slice to its Service (KEP-752).
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// An address in the API's "sloppy" reading: leading zeros are decimal (`SERVICE-SEMANTICS` 2).
pub fn parse_address(text: &str) -> Option<IpAddr> {
    if let Ok(address) = text.parse() {
        return Some(address);
    }
    let octets: Vec<u8> = text.split('.').map(octet).collect::<Option<_>>()?;
    <[u8; 4]>::try_from(octets).ok().map(IpAddr::from)
}

fn octet(text: &str) -> Option<u8> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let value = text.trim_start_matches('0');
    match (digits, value) {
        (false, _) => None,
        (true, "") => Some(0),
        (true, value) => value.parse().ok(),
    }
}

/// The name of a slice this agent makes up. `~` cannot stand in a name of the API, so it never
/// collides with a slice that somebody wrote.
pub fn slice_name(service: &str, origin: &str, family: Family, number: usize) -> String {
    let family = match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    };
    format!("{service}~{origin}-{family}-{number}")
}

/// The frame of a made-up slice for the service of this name.
pub fn empty_slice(namespace: &str, service: &str, name: String, family: Family) -> EndpointSlice {
    EndpointSlice {
        address_type: family.name().to_owned(),
        metadata: ObjectMeta {
            name: Some(name),
            namespace: Some(namespace.to_owned()),
            labels: Some([(SERVICE_NAME_LABEL.to_owned(), service.to_owned())].into()),
            ..ObjectMeta::default()
        },
        ..EndpointSlice::default()
    }
}

/// The slices of an Endpoints object: one for each subset and family that has addresses.
pub fn slices_of(endpoints: &Endpoints) -> Vec<EndpointSlice> {
    let mut slices = Vec::new();
    for subset in endpoints.subsets.iter().flatten() {
        for family in [Family::V4, Family::V6] {
            let members = members(subset, family);
            if members.is_empty() {
                continue;
            }
            let service = endpoints.metadata.name.as_deref().unwrap_or_default();
            let namespace = endpoints.metadata.namespace.as_deref().unwrap_or("default");
            let name = slice_name(service, "endpoints", family, slices.len());
            let mut slice = empty_slice(namespace, service, name, family);
            slice.endpoints = Some(members);
            slice.ports = Some(ports(subset));
            slice.metadata.annotations = trigger_time(endpoints);
            slices.push(slice);
        }
    }
    slices
}

/// The annotation the programming latency is measured from (`SERVICE-SEMANTICS` 14).
fn trigger_time(endpoints: &Endpoints) -> Option<std::collections::BTreeMap<String, String>> {
    const KEY: &str = "endpoints.kubernetes.io/last-change-trigger-time";
    let value = endpoints.metadata.annotations.as_ref()?.get(KEY)?;
    Some([(KEY.to_owned(), value.clone())].into())
}

fn members(subset: &EndpointSubset, family: Family) -> Vec<Endpoint> {
    let ready = subset
        .addresses
        .iter()
        .flatten()
        .map(|address| (address, true));
    let unready = subset
        .not_ready_addresses
        .iter()
        .flatten()
        .map(|address| (address, false));
    ready
        .chain(unready)
        .filter(|(address, _)| of_family(&address.ip, family))
        .map(|(address, ready)| member(address, ready))
        .collect()
}

/// An address nobody can read goes with IPv4, so that the model names and refuses it once.
fn of_family(address: &str, family: Family) -> bool {
    parse_address(address).map_or(Family::V4, Family::of) == family
}

fn member(address: &EndpointAddress, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            serving: Some(ready),
            terminating: Some(false),
        }),
        node_name: address.node_name.clone(),
        ..Endpoint::default()
    }
}

/// A port without a name has the empty name: in a slice, no name at all would mean no port.
fn ports(subset: &EndpointSubset) -> Vec<EndpointPort> {
    let port = |port: &k8s_openapi::api::core::v1::EndpointPort| EndpointPort {
        app_protocol: port.app_protocol.clone(),
        name: Some(port.name.clone().unwrap_or_default()),
        port: Some(port.port),
        protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
    };
    subset.ports.iter().flatten().map(port).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoints_object_becomes_one_slice_for_each_subset_and_family() {
        let endpoints: Endpoints = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "web", "namespace": "shop"},
            "subsets": [{
                "addresses": [{"ip": "10.0.0.1", "nodeName": "a"}, {"ip": "fd00::1"}],
                "notReadyAddresses": [{"ip": "10.0.0.2"}],
                "ports": [{"port": 8080}],
            }],
        }))
        .unwrap();
        let slices = slices_of(&endpoints);
        let shape = |slice: &EndpointSlice| {
            let endpoints = slice.endpoints.as_ref().unwrap();
            (slice.address_type.clone(), endpoints.len())
        };
        let shapes: Vec<_> = slices.iter().map(shape).collect();
        assert_eq!(shapes, [("IPv4".to_owned(), 2), ("IPv6".to_owned(), 1)]);
        let first = slices[0].endpoints.as_ref().unwrap();
        assert_eq!(first[0].node_name.as_deref(), Some("a"));
        assert_eq!(first[1].conditions.as_ref().unwrap().ready, Some(false));
        let port = &slices[0].ports.as_ref().unwrap()[0];
        assert_eq!((port.name.as_deref(), port.port), (Some(""), Some(8080)));
        assert_eq!(port.protocol.as_deref(), Some("TCP"));
        let labels = slices[0].metadata.labels.as_ref().unwrap();
        assert_eq!(labels[SERVICE_NAME_LABEL], "web");
    }

    #[test]
    fn leading_zeros_in_an_address_are_decimal() {
        assert_eq!(
            parse_address("010.0.0.1"),
            Some(IpAddr::from([10, 0, 0, 1]))
        );
        assert_eq!(parse_address("10.0.0.256"), None);
        assert_eq!(parse_address("10.0.0"), None);
    }
}
