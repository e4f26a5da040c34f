//! What the API server fills in before it validates a Service. Pure.

use k8s_openapi::api::core::v1::{ClientIPConfig, Service, ServiceSpec, SessionAffinityConfig};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// `sessionAffinityConfig.clientIP.timeoutSeconds` where nothing is said: three hours.
const AFFINITY_SECONDS: i32 = 10_800;

/// Whether a Service type is reached through node ports.
pub fn has_node_ports(spec: &ServiceSpec) -> bool {
    matches!(spec.type_.as_deref(), Some("NodePort" | "LoadBalancer"))
}

/// Whether the Service is headless (`clusterIP: None`).
pub fn is_headless(spec: &ServiceSpec) -> bool {
    spec.cluster_ip.as_deref() == Some("None")
}

/// Whether the Service is an alias in DNS only.
pub fn is_external_name(spec: &ServiceSpec) -> bool {
    spec.type_.as_deref() == Some("ExternalName")
}

/// Whether a health check node port is due.
pub fn needs_health_port(spec: &ServiceSpec) -> bool {
    spec.type_.as_deref() == Some("LoadBalancer")
        && spec.external_traffic_policy.as_deref() == Some("Local")
}

/// Fills in defaults; nothing that was said is changed.
pub fn apply(service: &mut Service) {
    let spec = service.spec.get_or_insert_default();
    fill(&mut spec.type_, "ClusterIP");
    fill(&mut spec.session_affinity, "None");
    if spec.session_affinity.as_deref() == Some("ClientIP") {
        let config = spec
            .session_affinity_config
            .get_or_insert_with(SessionAffinityConfig::default);
        let client = config.client_ip.get_or_insert_with(ClientIPConfig::default);
        client.timeout_seconds.get_or_insert(AFFINITY_SECONDS);
    }
    for port in spec.ports.iter_mut().flatten() {
        fill(&mut port.protocol, "TCP");
        let unset = match &port.target_port {
            None => true,
            Some(IntOrString::Int(number)) => *number == 0,
            Some(IntOrString::String(name)) => name.is_empty(),
        };
        if unset {
            port.target_port = Some(IntOrString::Int(port.port));
        }
        port.node_port = port.node_port.filter(|number| *number != 0);
    }
    if is_external_name(spec) {
        return;
    }
    fill(&mut spec.internal_traffic_policy, "Cluster");
    let external_ips = spec
        .external_ips
        .as_ref()
        .is_some_and(|list| !list.is_empty());
    if has_node_ports(spec) || external_ips {
        fill(&mut spec.external_traffic_policy, "Cluster");
    }
    if spec.type_.as_deref() == Some("LoadBalancer") {
        spec.allocate_load_balancer_node_ports.get_or_insert(true);
    }
    cluster_ips(spec);
}

/// `clusterIP` and `clusterIPs` say the same; an old manifest has only the first.
fn cluster_ips(spec: &mut ServiceSpec) {
    spec.cluster_ip = spec.cluster_ip.take().filter(|address| !address.is_empty());
    spec.cluster_ips = spec.cluster_ips.take().filter(|list| !list.is_empty());
    match (&spec.cluster_ip, &spec.cluster_ips) {
        (Some(address), None) => spec.cluster_ips = Some(vec![address.clone()]),
        (None, Some(list)) => spec.cluster_ip = list.first().cloned(),
        _ => {}
    }
}

fn fill(field: &mut Option<String>, value: &str) {
    if field.as_deref().is_none_or(str::is_empty) {
        *field = Some(value.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn defaulted(spec: serde_json::Value) -> ServiceSpec {
        let mut service = Service {
            spec: Some(serde_json::from_value(spec).unwrap()),
            ..Service::default()
        };
        apply(&mut service);
        service.spec.unwrap()
    }

    #[test]
    fn a_service_gets_the_api_servers_defaults() {
        let spec = defaulted(serde_json::json!({"ports": [{"port": 80}]}));
        assert_eq!(spec.type_.as_deref(), Some("ClusterIP"));
        assert_eq!(spec.session_affinity.as_deref(), Some("None"));
        assert_eq!(spec.internal_traffic_policy.as_deref(), Some("Cluster"));
        assert_eq!(spec.external_traffic_policy, None);
        let port = &spec.ports.unwrap()[0];
        assert_eq!(port.protocol.as_deref(), Some("TCP"));
        assert_eq!(port.target_port, Some(IntOrString::Int(80)));
    }

    #[test]
    fn client_affinity_lasts_three_hours_unless_told() {
        let spec = defaulted(serde_json::json!({"sessionAffinity": "ClientIP"}));
        let client = spec.session_affinity_config.unwrap().client_ip.unwrap();
        assert_eq!(client.timeout_seconds, Some(10_800));
    }

    #[test]
    fn cluster_ip_and_cluster_ips_are_made_to_agree() {
        let spec = defaulted(serde_json::json!({"clusterIP": "10.96.0.9"}));
        assert_eq!(spec.cluster_ips, Some(vec!["10.96.0.9".to_owned()]));
        let spec = defaulted(serde_json::json!({"clusterIPs": ["10.96.0.9"]}));
        assert_eq!(spec.cluster_ip.as_deref(), Some("10.96.0.9"));
    }
}
