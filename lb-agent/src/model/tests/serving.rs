//! What a well-formed service gets.

use super::super::desired::{DesiredEndpoint, Family, ObjectName, ServicePortName};
use super::super::report::NoLocalEndpoints;
use super::*;
use lb_common::addr::Protocol;
use lb_common::table::EmptyAction;
use std::collections::BTreeSet;

const LB: &str = "198.51.100.7";

#[expect(
    clippy::needless_pass_by_value,
    reason = "callers write json!(…) in place"
)]
fn load_balancer(extra: Value) -> Change {
    let mut spec = json!({"type": "LoadBalancer", "clusterIP": "10.96.0.1",
        "externalIPs": ["192.0.2.1"],
        "ports": [{"name": "http", "port": 80, "nodePort": 30080}]});
    for (key, value) in extra.as_object().expect("an object") {
        spec[key] = value.clone();
    }
    service_object(
        json!({"metadata": {"namespace": "ns", "name": "web"}, "spec": spec,
        "status": {"loadBalancer": {"ingress": [
            {"ip": LB}, {"hostname": "lb.example"}, {"ip": "198.51.100.8", "ipMode": "Proxy"},
        ]}}}),
    )
}

#[test]
fn every_address_of_a_service_port_is_a_frontend() {
    let mut state = state();
    let dirty = state.apply(load_balancer(json!({})));
    assert!(dirty.contains(&http("web")));
    assert_eq!(
        frontends(&state, "web"),
        [
            "ClusterIp 10.96.0.1:80",
            "ExternalIp 192.0.2.1:80",
            "LoadBalancer 198.51.100.7:80",
            "NodePort 30080"
        ]
    );
}

#[test]
fn services_of_somebody_else_are_not_served() {
    for (why, spec, labels) in [
        ("headless", json!({"clusterIP": "None"}), json!({})),
        ("no address yet", json!({"clusterIP": ""}), json!({})),
        (
            "ExternalName",
            json!({"type": "ExternalName", "clusterIP": "10.96.0.1"}),
            json!({}),
        ),
        (
            "another proxy",
            json!({"clusterIP": "10.96.0.1"}),
            json!({"service.kubernetes.io/service-proxy-name": ""}),
        ),
    ] {
        let mut state = state();
        state.apply(service("web", json!({"clusterIP": "10.96.0.1"})));
        let metadata = json!({"namespace": "ns", "name": "web", "labels": labels});
        let dirty = state.apply(service_object(json!({"metadata": metadata, "spec": spec})));
        assert!(
            dirty.contains(&http("web")),
            "{why}: turning into it removes the service"
        );
        assert_eq!(state.desired(&http("web")), None, "{why}");
    }
}

#[test]
fn every_protocol_that_a_service_may_have_is_served() {
    let mut state = state();
    let protocols = [
        ("TCP", Protocol::TCP),
        ("UDP", Protocol::UDP),
        ("SCTP", Protocol::SCTP),
    ];
    let port = |(name, _)| json!({"name": name, "protocol": name, "port": 53});
    let ports: Vec<Value> = protocols.map(port).into();
    state.apply(service(
        "dns",
        json!({"clusterIP": "10.96.0.1", "ports": ports}),
    ));
    let served: BTreeSet<Protocol> = state
        .desired_all()
        .keys()
        .map(|name| name.protocol)
        .collect();
    assert_eq!(served, protocols.map(|(_, protocol)| protocol).into());
    assert!(state.refusals().is_empty());
}

#[test]
fn a_family_without_a_cluster_ip_is_not_served_at_all() {
    let mut state = state();
    state.apply(service(
        "web",
        json!({"clusterIP": "10.96.0.1", "externalIPs": ["2001:db8::1", "192.0.2.1"]}),
    ));
    let v6 = ServicePortName {
        family: Family::V6,
        ..http("web")
    };
    assert_eq!(state.desired(&v6), None);
    assert_eq!(
        frontends(&state, "web"),
        ["ClusterIp 10.96.0.1:80", "ExternalIp 192.0.2.1:80"]
    );
}

#[test]
fn terminating_endpoints_serve_only_while_nobody_is_ready() {
    let mut state = state();
    state.apply(load_balancer(json!({"externalTrafficPolicy": "Local"})));
    state.apply(slice(
        "s",
        "web",
        json!([
            ready("10.0.0.1", "there"),
            terminating("10.0.0.2", "here"),
            terminating("10.0.0.3", "there")
        ]),
    ));
    // The fallbacks of the two sets are independent.
    assert_eq!(
        sets(&state, "web"),
        (vec!["10.0.0.1:8080".into()], vec!["10.0.0.2:8080".into()])
    );
    state.apply(slice(
        "s",
        "web",
        json!([
            terminating("10.0.0.2", "here"),
            terminating("10.0.0.3", "there")
        ]),
    ));
    assert_eq!(
        sets(&state, "web").0,
        ["10.0.0.2:8080", "10.0.0.3:8080"].map(String::from)
    );
    assert!(
        desired(&state, "web")
            .endpoints
            .values()
            .all(|endpoint| endpoint.draining)
    );
}

#[test]
fn an_empty_local_set_is_silent_only_while_somebody_serves_elsewhere() {
    let mut state = state();
    state.apply(load_balancer(json!({"externalTrafficPolicy": "Local"})));
    assert_eq!(desired(&state, "web").local_empty, EmptyAction::Reject);
    assert_eq!(
        state.no_local_endpoints(Family::V4),
        NoLocalEndpoints::default()
    );
    state.apply(slice("s", "web", json!([ready("10.0.0.1", "there")])));
    assert_eq!(desired(&state, "web").local_empty, EmptyAction::Drop);
    assert_eq!(desired(&state, "web").cluster_empty, EmptyAction::Reject);
    assert_eq!(
        state.no_local_endpoints(Family::V4),
        NoLocalEndpoints {
            internal: 0,
            external: 1
        }
    );
}

#[test]
fn zone_hints_count_when_every_ready_endpoint_has_one() {
    let hinted = |address: &str, zone: &str| {
        let mut endpoint = ready(address, "there");
        endpoint["hints"] = json!({"forZones": [{"name": zone}]});
        endpoint
    };
    let mut state = state();
    state.apply(service("web", json!({"clusterIP": "10.96.0.1"})));
    let both = json!([hinted("10.0.0.1", "a"), hinted("10.0.0.2", "b")]);
    state.apply(slice("s", "web", both));
    assert_eq!(sets(&state, "web").0, ["10.0.0.1:8080"].map(String::from));
    let dirty = state.apply(node("b"));
    assert!(
        dirty.contains(&http("web")),
        "a new zone touches every service"
    );
    assert_eq!(sets(&state, "web").0, ["10.0.0.2:8080"].map(String::from));
    let one_bare = json!([hinted("10.0.0.1", "a"), ready("10.0.0.2", "there")]);
    state.apply(slice("s", "web", one_bare));
    assert_eq!(sets(&state, "web").0.len(), 2);
}

#[test]
fn a_slice_that_moves_to_another_service_leaves_the_old_one() {
    let mut state = state();
    state.apply(service("old", json!({"clusterIP": "10.96.0.1"})));
    state.apply(service("new", json!({"clusterIP": "10.96.0.2"})));
    let endpoints = json!([ready("10.0.0.1", "there")]);
    state.apply(slice("s", "old", endpoints.clone()));
    let dirty = state.apply(slice("s", "new", endpoints));
    assert_eq!(dirty, [http("old"), http("new")].into());
    assert!(sets(&state, "old").0.is_empty());
    assert_eq!(sets(&state, "new").0.len(), 1);
}

#[test]
fn a_change_that_changes_nothing_touches_nothing() {
    let mut state = state();
    let web = || service("web", json!({"clusterIP": "10.96.0.1"}));
    state.apply(web());
    assert!(state.apply(web()).is_empty());
    let annotated = json!({"metadata": {"namespace": "ns", "name": "web",
        "annotations": {"a": "b"}}, "spec": {"clusterIP": "10.96.0.1", "selector": {"app": "x"}}});
    assert!(state.apply(service_object(annotated)).is_empty());
    let endpoints = json!([ready("10.0.0.1", "there")]);
    state.apply(slice("s", "web", endpoints.clone()));
    assert!(state.apply(slice("s", "web", endpoints)).is_empty());
}

#[test]
fn only_the_touched_service_is_dirty() {
    let mut state = state();
    state.apply(service("one", json!({"clusterIP": "10.96.0.1"})));
    state.apply(service("two", json!({"clusterIP": "10.96.0.2"})));
    let dirty = state.apply(slice("s", "two", json!([ready("10.0.0.1", "there")])));
    assert_eq!(dirty, [http("two")].into());
}

/// The ranges that guard the load balancer addresses, as text.
fn allowed(state: &State) -> Vec<String> {
    let ranges = desired(state, "web").source_ranges;
    ranges.iter().map(ToString::to_string).collect()
}

#[test]
fn source_ranges_of_the_family_guard_the_load_balancer_addresses() {
    let none: &[&str] = &[];
    for (listed, expected) in [
        (json!([]), none),
        (json!([" 203.0.113.9/24 "]), &["203.0.113.0/24"]),
        (json!(["010.0.0.0/8"]), &["10.0.0.0/8"]),
        // A family without a range of its own is open, and so is one with a /0.
        (json!(["2001:db8::/32"]), none),
        (json!(["nonsense", ""]), none),
        (json!(["10.0.0.0/8", "0.0.0.0/0"]), none),
        (json!(["10.0.0.0/8", "::/0"]), &["10.0.0.0/8"]),
        (json!(["nonsense", "10.0.0.0/8"]), &["10.0.0.0/8"]),
    ] {
        let mut state = state();
        state.apply(load_balancer(json!({"loadBalancerSourceRanges": listed})));
        assert_eq!(allowed(&state), expected, "{listed}");
        assert_eq!(frontends(&state, "web").len(), 4, "{listed}");
    }
}

#[test]
fn where_the_node_itself_is_allowed_packets_from_the_load_balancer_addresses_are_too() {
    let mut state = state();
    state.apply(load_balancer(
        json!({"loadBalancerSourceRanges": ["192.168.0.0/16"]}),
    ));
    assert_eq!(
        allowed(&state),
        ["192.168.0.0/16"],
        "no address of the node is known"
    );
    let with = |address: &str| {
        node_object(
            json!({"metadata": {"name": "here"}, "status": {"addresses": [
                {"type": "InternalIP", "address": address},
                {"type": "ExternalIP", "address": "192.168.9.9"},
            ]}}),
        )
    };
    let dirty = state.apply(with("172.16.0.1"));
    assert!(
        dirty.contains(&http("web")),
        "the node's address matters to it"
    );
    assert_eq!(
        allowed(&state),
        ["192.168.0.0/16"],
        "only the primary one counts"
    );
    state.apply(with("192.168.0.1"));
    assert_eq!(allowed(&state), ["192.168.0.0/16", "198.51.100.7/32"]);
}

#[test]
fn an_address_that_is_external_and_a_load_balancers_is_guarded() {
    let mut state = state();
    state.apply(load_balancer(json!({
        "externalIPs": [LB],
        "loadBalancerSourceRanges": ["203.0.113.0/24"],
    })));
    assert!(frontends(&state, "web").contains(&format!("LoadBalancer {LB}:80")));
}

#[test]
fn a_health_check_port_counts_the_ready_addresses_of_this_node_over_all_ports() {
    let mut state = state();
    let local = |port: u16| {
        load_balancer(json!({
            "externalTrafficPolicy": "Local", "healthCheckNodePort": port,
            "ports": [{"name": "http", "port": 80}, {"name": "also", "port": 81}],
        }))
    };
    let check = |state: &State| {
        let checks = state.health_checks();
        assert!(checks.len() <= 1, "{checks:?}");
        checks
            .get(&(named("web"), Family::V4))
            .map(|check| (check.port, check.local_ready))
    };
    state.apply(local(32000));
    assert_eq!(check(&state), Some((32000, 0)));
    let endpoints = json!([
        ready("10.0.0.1", "here"),
        ready("10.0.0.2", "here"),
        ready("10.0.0.3", "there"),
        terminating("10.0.0.4", "here"),
    ]);
    state.apply(slice("s", "web", endpoints.clone()));
    // The same addresses on another port count once.
    state.apply(slice_object(json!({
        "metadata": {"namespace": "ns", "name": "t",
            "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4", "ports": [{"name": "also", "port": 8081}],
        "endpoints": endpoints,
    })));
    assert_eq!(check(&state), Some((32000, 2)));
    state.apply(local(32001));
    assert_eq!(check(&state), Some((32001, 2)), "another port");
    state.apply(load_balancer(json!({"healthCheckNodePort": 32001})));
    assert_eq!(check(&state), None, "policy Cluster has none");
    state.apply(local(32001));
    state.apply(Change::Delete(Kind::Service, named("web")));
    assert_eq!(check(&state), None, "the service is gone");
}

#[test]
fn a_node_that_is_about_to_be_deleted_is_not_eligible() {
    let mut state = state();
    let mut eligible = |spec: Value, deleted: Option<&str>| {
        let metadata = json!({"name": "here", "deletionTimestamp": deleted});
        state.apply(node_object(json!({"metadata": metadata, "spec": spec})));
        state.node().eligible
    };
    let taint = |key: &str| json!({"taints": [{"key": key, "effect": "PreferNoSchedule"}]});
    assert!(eligible(json!({}), None));
    assert!(eligible(taint("node.kubernetes.io/unschedulable"), None));
    assert!(!eligible(taint("ToBeDeletedByClusterAutoscaler"), None));
    assert!(!eligible(json!({}), Some("2026-01-01T00:00:00Z")));
    assert!(eligible(json!({}), None), "it may be taken back");
}

#[test]
fn udp_conversations_stay_with_an_endpoint_that_serves_though_new_ones_avoid_it() {
    let known = |protocol: &str| {
        let mut state = state();
        state.apply(service(
            "web",
            json!({"clusterIP": "10.96.0.1", "ports": [{"name": "http", "port": 80, "protocol": protocol}]}),
        ));
        let gone = json!({"addresses": ["10.0.0.3"], "nodeName": "there",
            "conditions": {"ready": false, "serving": false, "terminating": true}});
        let endpoints = json!([
            ready("10.0.0.1", "there"),
            terminating("10.0.0.2", "there"),
            gone
        ]);
        state.apply(slice_object(json!({
            "metadata": {"namespace": "ns", "name": "s",
                "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4", "endpoints": endpoints,
            "ports": [{"name": "http", "port": 8080, "protocol": protocol}],
        })));
        let protocol = if protocol == "UDP" {
            Protocol::UDP
        } else {
            Protocol::TCP
        };
        let name = ServicePortName {
            protocol,
            ..http("web")
        };
        let desired = state.desired(&name).expect("a service port");
        let one = |(at, e): (&std::net::SocketAddr, &DesiredEndpoint)| {
            (at.ip().to_string(), e.cluster || e.local, e.draining)
        };
        desired.endpoints.iter().map(one).collect::<Vec<_>>()
    };
    let first = ("10.0.0.1".to_owned(), true, false);
    let second = ("10.0.0.2".to_owned(), false, true);
    assert_eq!(known("TCP"), std::slice::from_ref(&first));
    assert_eq!(known("UDP"), [first, second]);
}

#[test]
fn external_ips_are_served_only_where_the_operator_lets_them() {
    let mut state = state_with(Options {
        external_ips: false,
        ..Options::default()
    });
    state.apply(service(
        "web",
        json!({"clusterIP": "10.96.0.1", "externalIPs": ["192.0.2.1"],
            "externalTrafficPolicy": "Local"}),
    ));
    assert_eq!(frontends(&state, "web"), ["ClusterIp 10.96.0.1:80"]);
    // The list still says that the service is reachable from outside (section 2).
    assert!(desired(&state, "web").external_local);
}

#[test]
fn the_ranges_of_cluster_ips_follow_service_cidr_objects() {
    let mut state = state_with(Options {
        service_cidrs: vec!["10.96.0.0/16".parse().expect("a test prefix")],
        ..Options::default()
    });
    let range = |name: &str, cidrs: Value| {
        let object = json!({"metadata": {"name": name}, "spec": {"cidrs": cidrs}});
        Change::Apply(Object::ServiceCidr(Box::new(
            serde_json::from_value(object).expect("a ServiceCIDR"),
        )))
    };
    let known = |state: &State| -> Vec<String> {
        let cidrs = &state.options().service_cidrs;
        cidrs.iter().map(ToString::to_string).collect()
    };
    state.apply(range("kubernetes", json!(["10.96.0.0/16", "fd00::/112"])));
    state.apply(range("more", json!(["10.99.0.0/16"])));
    assert_eq!(
        known(&state),
        ["10.96.0.0/16", "fd00::/112", "10.99.0.0/16"]
    );
    let mut config = lb_common::host::HostTables::of_node().config;
    state.options().configure(state.node(), &mut config);
    let holds = |text: &str| {
        let address: std::net::IpAddr = text.parse().expect("a test address");
        config.is_in_service_cidr(&address.into())
    };
    assert!(holds("10.96.1.2") && holds("10.99.1.2") && holds("fd00::7"));
    assert!(!holds("10.97.1.2") && !holds("fd00::1:0"));
    let gone = ObjectName {
        namespace: "".into(),
        name: "more".into(),
    };
    state.apply(Change::Delete(Kind::ServiceCidr, gone));
    assert_eq!(known(&state), ["10.96.0.0/16", "fd00::/112"]);
}
