//! Bad objects are refused with a reason, and hurt nothing else.

use super::*;
use lb_common::table::FrontendKind;
use std::sync::Arc;

fn reasons(state: &State) -> Vec<(Arc<str>, &'static str)> {
    state
        .refusals()
        .iter()
        .map(|refusal| (refusal.object.name.clone(), refusal.reason.name()))
        .collect()
}

#[test]
fn an_endpoint_on_a_forbidden_address_is_refused_and_its_neighbour_serves() {
    for (address, reason) in [
        ("127.0.0.1", "loopback"),
        ("169.254.169.254", "link_local"),
        ("224.0.0.9", "multicast"),
        ("0.0.0.0", "unspecified"),
        ("nonsense", "unparsable"),
        ("fd00::1", "other_family"),
        ("10.96.0.1", "endpoint_on_service_address"),
        ("10.96.0.2", "endpoint_on_service_address"),
    ] {
        let mut state = state();
        state.apply(slice(
            "s",
            "web",
            json!([ready(address, "here"), ready("10.0.0.1", "here")]),
        ));
        state.apply(service("web", json!({"clusterIP": "10.96.0.1"})));
        state.apply(service("other", json!({"clusterIP": "10.96.0.2"})));
        assert_eq!(reasons(&state), [("s".into(), reason)], "{address}");
        assert_eq!(
            sets(&state, "web").0,
            ["10.0.0.1:8080"].map(String::from),
            "{address}"
        );
        state.apply(slice("s", "web", json!([ready("10.0.0.1", "here")])));
        assert!(
            reasons(&state).is_empty(),
            "{address}: cleared when it is fixed"
        );
    }
}

#[test]
fn an_endpoint_on_a_forbidden_ipv6_address_is_refused() {
    for (address, reason) in [
        ("::1", "loopback"),
        ("fe80::1", "link_local"),
        ("ff02::1", "multicast"),
        ("::", "unspecified"),
        ("::ffff:10.0.0.1", "other_family"),
    ] {
        let mut state = state();
        state.apply(slice_object(json!({
            "metadata": {"namespace": "ns", "name": "s",
                "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv6",
            "ports": [{"name": "http", "port": 80}],
            "endpoints": [ready(address, "here")],
        })));
        assert_eq!(reasons(&state), [("s".into(), reason)], "{address}");
    }
}

#[test]
fn an_external_address_that_would_take_foreign_traffic_is_refused() {
    for (address, reason) in [
        ("127.0.0.1", "loopback"),
        ("169.254.169.254", "link_local"),
        ("224.0.0.9", "multicast"),
        ("0.0.0.0", "unspecified"),
        ("nonsense", "unparsable"),
        ("10.96.0.2", "cluster_ip_of_another_service"),
    ] {
        for field in ["externalIPs", "ingress"] {
            let mut state = state();
            let mut object = json!({"metadata": {"namespace": "ns", "name": "web"},
                "spec": {"clusterIP": "10.96.0.1"}});
            if field == "ingress" {
                object["status"] = json!({"loadBalancer": {"ingress": [{"ip": address}]}});
            } else {
                object["spec"]["externalIPs"] = json!([address]);
            }
            state.apply(service_object(object));
            let dirty = state.apply(service("other", json!({"clusterIP": "10.96.0.2"})));
            assert_eq!(
                dirty.contains(&http("web")),
                address == "10.96.0.2",
                "{address}: the ClusterIP that appeared decides"
            );
            assert_eq!(
                reasons(&state),
                [("web".into(), reason)],
                "{field} {address}"
            );
            assert_eq!(
                frontends(&state, "web"),
                ["ClusterIp 10.96.0.1:80"],
                "{field} {address}"
            );
            assert_eq!(
                frontends(&state, "other"),
                ["ClusterIp 10.96.0.2:80"],
                "{field} {address}"
            );
            state.apply(service("web", json!({"clusterIP": "10.96.0.1"})));
            assert!(reasons(&state).is_empty(), "cleared when it is fixed");
        }
    }
}

#[test]
fn a_foreign_cluster_ip_is_refused_on_every_port() {
    let mut state = state();
    state.apply(service("victim", json!({"clusterIP": "10.96.0.2"})));
    state.apply(service(
        "web",
        json!({"clusterIP": "10.96.0.1", "externalIPs": ["10.96.0.2"],
            "ports": [{"name": "http", "port": 81}]}),
    ));
    assert_eq!(frontends(&state, "web"), ["ClusterIp 10.96.0.1:81"]);
    let dirty = state.apply(Change::Delete(Kind::Service, named("victim")));
    assert_eq!(dirty, [http("victim"), http("web")].into());
    assert_eq!(frontends(&state, "web").len(), 2);
}

#[test]
fn external_addresses_outside_the_allowed_ranges_are_refused() {
    let mut state = state_with(Options {
        external_ranges: Some(vec!["192.0.2.0/24".parse().expect("a test prefix")]),
        ..Options::default()
    });
    state.apply(service(
        "web",
        json!({"clusterIP": "10.96.0.1", "externalIPs": ["192.0.2.1", "198.51.100.1"]}),
    ));
    assert_eq!(reasons(&state), [("web".into(), "outside_allowed_ranges")]);
    assert_eq!(
        frontends(&state, "web"),
        ["ClusterIp 10.96.0.1:80", "ExternalIp 192.0.2.1:80"]
    );
}

#[test]
fn a_node_address_may_be_an_external_address() {
    let mut state = state();
    let node = json!({"metadata": {"name": "here"},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.168.0.1"}]}});
    state.apply(Change::Apply(Object::Node(Box::new(
        serde_json::from_value(node).expect("a Node"),
    ))));
    state.apply(service(
        "web",
        json!({"clusterIP": "10.96.0.1", "externalIPs": ["192.168.0.1"]}),
    ));
    assert!(reasons(&state).is_empty());
    assert_eq!(frontends(&state, "web").len(), 2);
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "callers write json!(…) in place"
)]
fn aged(name: &str, created: &str, spec: Value) -> Change {
    service_object(json!({
        "metadata": {"namespace": "ns", "name": name, "creationTimestamp": created},
        "spec": spec,
    }))
}

#[test]
fn of_two_services_on_one_address_the_older_keeps_it_whatever_the_order() {
    // What is contended for, and the spec that asks for it, given a ClusterIP of its own.
    type Case = (&'static str, fn(&str) -> Value);
    let cases: [Case; 3] = [
        ("clusterIP", |_| json!({"clusterIP": "10.96.0.9"})),
        (
            "externalIPs",
            |ip| json!({"clusterIP": ip, "externalIPs": ["192.0.2.1"]}),
        ),
        ("nodePort", |ip| {
            json!({"clusterIP": ip, "type": "NodePort",
            "ports": [{"name": "http", "port": 80, "nodePort": 30080}]})
        }),
    ];
    for (what, spec) in cases {
        let older = || aged("zz-older", "2020-01-01T00:00:00Z", spec("10.96.0.1"));
        let newer = || aged("aa-newer", "2021-01-01T00:00:00Z", spec("10.96.0.2"));
        let alone = {
            let mut state = state();
            state.apply(older());
            frontends(&state, "zz-older")
        };
        for changes in [vec![older(), newer()], vec![newer(), older()]] {
            let mut state = state();
            let dirty: Vec<_> = changes.into_iter().map(|c| state.apply(c)).collect();
            assert!(
                dirty[1].contains(&http("zz-older")) && dirty[1].contains(&http("aa-newer")),
                "{what}: both sides of a conflict are dirty"
            );
            assert_eq!(frontends(&state, "zz-older"), alone, "{what}");
            assert_eq!(
                frontends(&state, "aa-newer").len(),
                alone.len() - 1,
                "{what}"
            );
            assert_eq!(
                reasons(&state),
                [("aa-newer".into(), "held_by_another_service")],
                "{what}"
            );
            let dirty = state.apply(Change::Delete(Kind::Service, named("zz-older")));
            assert!(
                dirty.contains(&http("aa-newer")),
                "{what}: the heir is dirty"
            );
            assert_eq!(frontends(&state, "aa-newer").len(), alone.len(), "{what}");
            assert!(reasons(&state).is_empty(), "{what}");
        }
    }
}

#[test]
fn a_cluster_ip_is_not_lost_to_an_older_external_ip() {
    let mut state = state();
    state.apply(aged(
        "thief",
        "2020-01-01T00:00:00Z",
        json!({"clusterIP": "10.96.0.1", "externalIPs": ["10.96.0.2"]}),
    ));
    state.apply(aged(
        "owner",
        "2021-01-01T00:00:00Z",
        json!({"clusterIP": "10.96.0.2"}),
    ));
    assert_eq!(frontends(&state, "owner"), ["ClusterIp 10.96.0.2:80"]);
    assert_eq!(frontends(&state, "thief"), ["ClusterIp 10.96.0.1:80"]);
    assert_eq!(
        reasons(&state),
        [("thief".into(), "cluster_ip_of_another_service")]
    );
}

#[test]
fn ports_that_cannot_be_served_are_refused_and_the_others_stay() {
    let mut state = state();
    state.apply(service(
        "web",
        json!({"clusterIP": "10.96.0.1", "ports": [
            {"name": "http", "port": 80},
            {"name": "big", "port": 70000},
            {"name": "odd", "port": 81, "protocol": "DCCP"},
        ]}),
    ));
    assert_eq!(
        reasons(&state),
        [
            ("web".into(), "port_out_of_range"),
            ("web".into(), "unknown_protocol")
        ]
    );
    assert_eq!(state.names().len(), 1);
}

#[test]
fn a_cluster_ip_on_a_device_of_this_node_is_not_served_and_its_node_port_is() {
    let mut state = state();
    state.apply(slice("s", "web", json!([ready("10.0.0.1", "here")])));
    let spec = json!({"type": "NodePort", "clusterIP": "10.96.0.1",
        "ports": [{"name": "http", "port": 80, "nodePort": 30080}]});
    state.apply(service("web", spec));
    let kinds = |state: &State| {
        let all = state.desired_all();
        let kinds = all
            .values()
            .flat_map(|one| one.frontends.iter().map(|one| one.kind));
        kinds.collect::<Vec<_>>()
    };
    assert_eq!(kinds(&state).len(), 2);
    let dirty = state.set_host_addresses(["10.96.0.1".parse().unwrap()].into());
    assert_eq!(dirty.len(), 1);
    assert_eq!(kinds(&state), [FrontendKind::NodePort]);
    assert_eq!(reasons(&state), [("web".into(), "address_of_this_node")]);
    // External addresses on a node's device are served, as kube-proxy does.
    assert_eq!(
        state
            .set_host_addresses(["192.168.0.1".parse().unwrap()].into())
            .len(),
        1
    );
    assert_eq!(kinds(&state).len(), 2);
    assert!(reasons(&state).is_empty());
}
