//! Services as tests read them: what a reader of live tables would return.

use crate::datapath::{EndpointView, FrontendView, ServiceView};
use crate::model::desired::{Family, FrontendAddress, ObjectName, ServicePortName};
use lb_common::addr::{BackendId, Protocol, ServiceId};
use lb_common::table::{BackendState, EmptyAction, FrontendKind, ServiceCounters};

fn name(name: &str, port: &str, protocol: Protocol, family: Family) -> ServicePortName {
    ServicePortName {
        service: ObjectName {
            namespace: "default".into(),
            name: name.into(),
        },
        port: port.to_owned(),
        protocol,
        family,
    }
}

fn endpoint(address: &str, id: u32) -> EndpointView {
    EndpointView {
        address: address.parse().unwrap(),
        id: BackendId(id),
        state: BackendState::Active,
        cluster: true,
        local: true,
        on_this_node: true,
        active_socket: 3,
        opened_socket: 30,
        active_tc: 2,
    }
}

/// A service with two frontends, two endpoints, affinity and a Local policy nobody serves.
pub(crate) fn web_service() -> ServiceView {
    ServiceView {
        id: ServiceId(3),
        name: name("web", "http", Protocol::TCP, Family::V4),
        frontends: vec![
            FrontendView {
                address: FrontendAddress::Exact("10.96.0.10".parse().unwrap()),
                port: 80,
                kind: FrontendKind::ClusterIp,
            },
            FrontendView {
                address: FrontendAddress::NodePort(Family::V4),
                port: 30080,
                kind: FrontendKind::NodePort,
            },
        ],
        endpoints: vec![
            endpoint("10.244.0.2:8080", 11),
            EndpointView {
                state: BackendState::Draining,
                local: false,
                on_this_node: false,
                active_socket: 0,
                opened_socket: 0,
                ..endpoint("10.244.1.2:8080", 12)
            },
        ],
        internal_local: false,
        external_local: true,
        affinity_seconds: 10800,
        algorithm: 0,
        cluster_empty: None,
        local_empty: Some(EmptyAction::Drop),
        counters: ServiceCounters {
            socket_opened: 30,
            socket_closed: 27,
            socket_rejected: 1,
            tc_opened: 12,
            tc_rejected: 1,
            tc_dropped: 1,
            packets_in: 100,
            bytes_in: 5000,
            packets_out: 90,
            bytes_out: 4500,
        },
    }
}

/// A service without endpoints.
pub(crate) fn empty_service() -> ServiceView {
    ServiceView {
        id: ServiceId(4),
        name: name("empty", "", Protocol::UDP, Family::V6),
        frontends: vec![FrontendView {
            address: FrontendAddress::Exact("fd00:96::1".parse().unwrap()),
            port: 53,
            kind: FrontendKind::ClusterIp,
        }],
        endpoints: Vec::new(),
        internal_local: false,
        external_local: false,
        affinity_seconds: 0,
        algorithm: 0,
        cluster_empty: Some(EmptyAction::Reject),
        local_empty: Some(EmptyAction::Reject),
        counters: ServiceCounters::default(),
    }
}
