//! `lb-agent services`: what `ipvsadm -Ln` gave, from the live tables.

use crate::cli::columns::Columns;
use crate::cli::values::Output;
use crate::datapath::{EndpointView, FrontendView, ServiceView};
use crate::model::desired::FrontendAddress;
use crate::serve::protocol_name;
use lb_common::table::{BackendState, EmptyAction, FrontendKind};
use serde::Serialize;
use std::net::SocketAddr;

/// The whole output, ending with a line break.
pub fn render(services: &[ServiceView], output: Output) -> String {
    match output {
        Output::Table => table(services, false),
        Output::Wide => table(services, true),
        Output::Json => json(services),
    }
}

fn table(services: &[ServiceView], wide: bool) -> String {
    if services.is_empty() {
        return "No service is served.\n".to_owned();
    }
    let mut header = vec![
        "SERVICE", "PROTO", "KIND", "ADDRESS", "STATE", "ACTIVE", "OPENED",
    ];
    if wide {
        header.extend([
            "ID",
            "SETS",
            "ACTIVE-TC",
            "PACKETS",
            "BYTES",
            "REJECTED",
            "DROPPED",
        ]);
    }
    let mut columns = Columns::new(header);
    for service in services {
        for (index, frontend) in service.frontends.iter().enumerate() {
            columns.row(frontend_row(service, frontend, index == 0, wide));
        }
        for endpoint in &service.endpoints {
            columns.row(endpoint_row(endpoint, wide));
        }
        for note in empty_sets(service) {
            columns.row(vec![String::new(), String::new(), "->".to_owned(), note]);
        }
    }
    columns.to_string()
}

/// The first frontend's line carries what is the service's own.
fn frontend_row(
    service: &ServiceView,
    frontend: &FrontendView,
    first: bool,
    wide: bool,
) -> Vec<String> {
    let counters = &service.counters;
    let own = |text: String| if first { text } else { String::new() };
    let active_tc: u64 = service.endpoints.iter().map(|e| e.active_tc).sum();
    let active_socket = counters
        .socket_opened
        .saturating_sub(counters.socket_closed);
    let mut row = vec![
        own(service.name.to_string()),
        protocol_name(service.name.protocol).into_owned(),
        kind_name(frontend.kind).to_owned(),
        frontend_address(frontend),
        own(policies(service)),
        own((active_socket + active_tc).to_string()),
        own((counters.socket_opened + counters.tc_opened).to_string()),
    ];
    if wide {
        row.extend([
            own(service.id.0.to_string()),
            String::new(),
            own(active_tc.to_string()),
            own(format!("{}/{}", counters.packets_in, counters.packets_out)),
            own(format!("{}/{}", counters.bytes_in, counters.bytes_out)),
            own((counters.socket_rejected + counters.tc_rejected).to_string()),
            own(counters.tc_dropped.to_string()),
        ]);
    }
    row
}

/// An endpoint's `OPENED` is the socket path's: the packet path counts by service.
fn endpoint_row(endpoint: &EndpointView, wide: bool) -> Vec<String> {
    let mut row = vec![
        String::new(),
        String::new(),
        "->".to_owned(),
        endpoint.address.to_string(),
        state_name(endpoint.state).to_owned(),
        (endpoint.active_socket + endpoint.active_tc).to_string(),
        endpoint.opened_socket.to_string(),
    ];
    if wide {
        let sets: Vec<&str> = [
            (endpoint.cluster, "cluster"),
            (endpoint.local, "local"),
            (endpoint.on_this_node, "here"),
        ]
        .into_iter()
        .filter_map(|(member, name)| member.then_some(name))
        .collect();
        row.extend([
            endpoint.id.0.to_string(),
            sets.join(","),
            endpoint.active_tc.to_string(),
        ]);
    }
    row
}

/// What differs from the plain case: policies and affinity.
fn policies(service: &ServiceView) -> String {
    let mut words = Vec::new();
    if service.internal_local {
        words.push("internal=Local".to_owned());
    }
    if service.external_local {
        words.push("external=Local".to_owned());
    }
    if service.affinity_seconds != 0 {
        words.push(format!("affinity={}s", service.affinity_seconds));
    }
    words.join(",")
}

/// What clients of an empty set get.
fn empty_sets(service: &ServiceView) -> Vec<String> {
    let uses_local = service.internal_local || service.external_local;
    let sentence = |set: &str, action| match action {
        EmptyAction::Reject => format!("no endpoint{set}: refused"),
        EmptyAction::Drop => format!("no endpoint{set}: dropped"),
    };
    let cluster = service.cluster_empty.map(|action| sentence("", action));
    let local = service
        .local_empty
        .filter(|_| uses_local)
        .map(|action| sentence(" on this node", action));
    cluster.into_iter().chain(local).collect()
}

fn frontend_address(frontend: &FrontendView) -> String {
    match frontend.address {
        FrontendAddress::Exact(ip) => SocketAddr::new(ip, frontend.port).to_string(),
        FrontendAddress::NodePort(_) => format!("*:{}", frontend.port),
    }
}

const fn kind_name(kind: FrontendKind) -> &'static str {
    match kind {
        FrontendKind::ClusterIp => "ClusterIP",
        FrontendKind::ExternalIp => "ExternalIP",
        FrontendKind::LoadBalancer => "LoadBalancer",
        FrontendKind::NodePort => "NodePort",
    }
}

const fn state_name(state: BackendState) -> &'static str {
    match state {
        BackendState::Free => "free",
        BackendState::Active => "active",
        BackendState::Draining => "draining",
        BackendState::Gone => "gone",
    }
}

/// The JSON document. Field names are stable: people script against them.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ServiceJson<'a> {
    namespace: &'a str,
    name: &'a str,
    port: &'a str,
    protocol: String,
    ip_family: &'static str,
    id: u32,
    internal_traffic_policy: &'static str,
    external_traffic_policy: &'static str,
    session_affinity_seconds: u32,
    frontends: Vec<FrontendJson>,
    endpoints: Vec<EndpointJson>,
    connections: ConnectionsJson,
}

#[derive(Serialize)]
struct FrontendJson {
    kind: &'static str,
    /// `*` for a node port.
    address: String,
    port: u16,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EndpointJson {
    address: String,
    port: u16,
    id: u32,
    state: &'static str,
    cluster: bool,
    local: bool,
    on_this_node: bool,
    active_socket: u64,
    active_tc: u64,
    opened_socket: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ConnectionsJson {
    socket_opened: u64,
    socket_active: u64,
    socket_rejected: u64,
    tc_opened: u64,
    tc_active: u64,
    tc_rejected: u64,
    tc_dropped: u64,
    packets_in: u64,
    bytes_in: u64,
    packets_out: u64,
    bytes_out: u64,
}

fn json(services: &[ServiceView]) -> String {
    let document: Vec<ServiceJson<'_>> = services.iter().map(service_json).collect();
    let mut text = serde_json::to_string_pretty(&serde_json::json!({ "services": document }))
        .unwrap_or_else(|error| format!("{{\"error\": \"{error}\"}}"));
    text.push('\n');
    text
}

const fn policy_name(local: bool) -> &'static str {
    if local { "Local" } else { "Cluster" }
}

fn service_json(service: &ServiceView) -> ServiceJson<'_> {
    let counters = &service.counters;
    ServiceJson {
        namespace: &service.name.service.namespace,
        name: &service.name.service.name,
        port: &service.name.port,
        protocol: protocol_name(service.name.protocol).into_owned(),
        ip_family: service.name.family.name(),
        id: service.id.0,
        internal_traffic_policy: policy_name(service.internal_local),
        external_traffic_policy: policy_name(service.external_local),
        session_affinity_seconds: service.affinity_seconds,
        frontends: service.frontends.iter().map(frontend_json).collect(),
        endpoints: service.endpoints.iter().map(endpoint_json).collect(),
        connections: ConnectionsJson {
            socket_opened: counters.socket_opened,
            socket_active: counters
                .socket_opened
                .saturating_sub(counters.socket_closed),
            socket_rejected: counters.socket_rejected,
            tc_opened: counters.tc_opened,
            tc_active: service.endpoints.iter().map(|e| e.active_tc).sum(),
            tc_rejected: counters.tc_rejected,
            tc_dropped: counters.tc_dropped,
            packets_in: counters.packets_in,
            bytes_in: counters.bytes_in,
            packets_out: counters.packets_out,
            bytes_out: counters.bytes_out,
        },
    }
}

fn frontend_json(frontend: &FrontendView) -> FrontendJson {
    FrontendJson {
        kind: kind_name(frontend.kind),
        address: match frontend.address {
            FrontendAddress::Exact(ip) => ip.to_string(),
            FrontendAddress::NodePort(_) => "*".to_owned(),
        },
        port: frontend.port,
    }
}

fn endpoint_json(endpoint: &EndpointView) -> EndpointJson {
    EndpointJson {
        address: endpoint.address.ip().to_string(),
        port: endpoint.address.port(),
        id: endpoint.id.0,
        state: state_name(endpoint.state),
        cluster: endpoint.cluster,
        local: endpoint.local,
        on_this_node: endpoint.on_this_node,
        active_socket: endpoint.active_socket,
        active_tc: endpoint.active_tc,
        opened_socket: endpoint.opened_socket,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::testing::{empty_service, web_service};

    #[test]
    fn the_table_lists_every_frontend_with_its_endpoints() {
        assert_eq!(
            render(&[web_service(), empty_service()], Output::Table),
            "\
SERVICE           PROTO  KIND       ADDRESS          STATE                           ACTIVE  OPENED
default/web:http  TCP    ClusterIP  10.96.0.10:80    external=Local,affinity=10800s  7       42
                  TCP    NodePort   *:30080
                         ->         10.244.0.2:8080  active                          5       30
                         ->         10.244.1.2:8080  draining                        2       0
                         ->         no endpoint on this node: dropped
default/empty     UDP    ClusterIP  [fd00:96::1]:53                                  0       0
                         ->         no endpoint: refused
"
        );
    }

    #[test]
    fn the_wide_table_adds_ids_sets_and_counters() {
        let text = render(&[web_service()], Output::Wide);
        let lines: Vec<&str> = text.lines().collect();
        let words = |line: &str| {
            line.split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        assert_eq!(
            words(lines[1])[6..],
            ["42", "3", "4", "100/90", "5000/4500", "2", "1"]
        );
        assert_eq!(
            words(lines[3]),
            [
                "->",
                "10.244.0.2:8080",
                "active",
                "5",
                "30",
                "11",
                "cluster,local,here",
                "2"
            ]
        );
    }

    #[test]
    fn json_has_stable_names() {
        let value: serde_json::Value =
            serde_json::from_str(&render(&[web_service()], Output::Json)).unwrap();
        let service = &value["services"][0];
        assert_eq!(service["namespace"], "default");
        assert_eq!(service["ipFamily"], "IPv4");
        assert_eq!(service["externalTrafficPolicy"], "Local");
        assert_eq!(service["frontends"][0]["address"], "10.96.0.10");
        assert_eq!(service["frontends"][1]["address"], "*");
        assert_eq!(service["frontends"][1]["port"], 30080);
        assert_eq!(service["endpoints"][0]["onThisNode"], true);
        assert_eq!(service["connections"]["socketActive"], 3);
    }

    #[test]
    fn no_service_is_said_in_a_sentence() {
        assert_eq!(render(&[], Output::Table), "No service is served.\n");
        assert_eq!(render(&[], Output::Json), "{\n  \"services\": []\n}\n");
    }
}
