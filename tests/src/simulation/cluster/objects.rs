//! The cluster's objects, as the API server tells them.

use super::{Cluster, Health, PORTS, Pod, cluster_ip, external_ip, pod_ip};
use serde_json::{Value, json};
use std::net::IpAddr;

impl Cluster {
    pub(super) fn tell_service(&mut self, number: u8) {
        let name = format!("s{number}");
        let object = self.services.get(&number).map(|service| {
            let families = service.families.iter().zip([false, true]);
            let ips: Vec<IpAddr> = families
                .filter(|(has, _)| **has)
                .map(|(_, v6)| cluster_ip(service.cluster_ip, v6))
                .collect();
            let has_node_port = service.ports.values().any(Option::is_some);
            let ports: Vec<Value> = (service.ports.iter())
                .map(|(index, node_port)| {
                    let port = PORTS[*index];
                    let mut object = json!({"name": port.name, "protocol": port.protocol,
                                            "port": port.number, "targetPort": port.target});
                    if let Some(node_port) = node_port {
                        object["nodePort"] = json!(node_port);
                    }
                    object
                })
                .collect();
            let mut spec = json!({
                "type": if has_node_port { "NodePort" } else { "ClusterIP" },
                "clusterIP": ips[0],
                "clusterIPs": ips,
                "ipFamilies": ips.iter().map(|ip| if ip.is_ipv4() { "IPv4" } else { "IPv6" })
                    .collect::<Vec<_>>(),
                "ports": ports,
                "internalTrafficPolicy": if service.internal_local { "Local" } else { "Cluster" },
                "externalTrafficPolicy": if service.external_local { "Local" } else { "Cluster" },
                "publishNotReadyAddresses": service.unready_too,
            });
            if let Some(ip) = service.external_ip {
                spec["externalIPs"] = json!([external_ip(ip)]);
            }
            if let Some(seconds) = service.affinity {
                spec["sessionAffinity"] = json!("ClientIP");
                spec["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": seconds}});
            }
            json!({"metadata": metadata(&name), "spec": spec})
        });
        self.service_log.put(&name, object);
    }

    /// Every slice of a service: two of each family.
    pub(super) fn tell_pods(&mut self, number: u8) {
        let service = self.services.get(&number);
        for v6 in [false, true] {
            for slice in 0..2 {
                let name = format!("s{number}-{}-{slice}", if v6 { "v6" } else { "v4" });
                let object = service.and_then(|service| {
                    let named = |pod: &Pod| pod.slice == slice || pod.twice;
                    let pods = self.pods.get(&number).into_iter().flatten();
                    let endpoints: Vec<Value> = pods
                        .filter(|(_, pod)| named(pod))
                        .map(|(address, pod)| {
                            json!({
                                "addresses": [pod_ip(*address, v6)],
                                "conditions": {
                                    "ready": pod.health == Health::Ready
                                        || (pod.health == Health::Unready && service.unready_too),
                                    "serving": matches!(pod.health, Health::Ready | Health::Leaving),
                                    "terminating": matches!(pod.health, Health::Leaving | Health::Left),
                                },
                                "nodeName": pod.node,
                            })
                        })
                        .collect();
                    let ports: Vec<Value> = (service.ports.keys())
                        .map(|index| {
                            let port = PORTS[*index];
                            json!({"name": port.name, "protocol": port.protocol,
                                   "port": port.target})
                        })
                        .collect();
                    let mut metadata = metadata(&name);
                    metadata["labels"] =
                        json!({"kubernetes.io/service-name": format!("s{number}")});
                    (service.families[usize::from(v6)] && !endpoints.is_empty()).then(|| {
                        json!({
                            "metadata": metadata,
                            "addressType": if v6 { "IPv6" } else { "IPv4" },
                            "ports": ports,
                            "endpoints": endpoints,
                        })
                    })
                });
                self.slice_log.put(&name, object);
            }
        }
    }
}

pub(super) fn metadata(name: &str) -> Value {
    json!({"namespace": "sim", "name": name})
}
