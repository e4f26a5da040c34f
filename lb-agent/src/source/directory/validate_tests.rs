use super::*;

fn sentence(spec: &serde_json::Value) -> Option<String> {
    let object = serde_json::json!({"metadata": {"name": "x", "namespace": "n"}, "spec": spec});
    let mut service: Service = serde_json::from_value(object).unwrap();
    crate::source::directory::defaults::apply(&mut service);
    validate(&service).sentence("x")
}

#[test]
fn what_the_api_server_refuses_is_refused_with_its_sentence() {
    let one = |port: serde_json::Value| serde_json::json!({"ports": [port]});
    let cases = [
        (serde_json::json!({}), "spec.ports: Required value"),
        (
            one(serde_json::json!({"port": 0, "targetPort": 1})),
            "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
        ),
        (
            one(serde_json::json!({"port": 1, "protocol": "HTTP"})),
            "spec.ports[0].protocol: Unsupported value: \"HTTP\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
        ),
        (
            one(serde_json::json!({"port": 1, "targetPort": 70_000})),
            "spec.ports[0].targetPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
        ),
        (
            one(serde_json::json!({"port": 1, "nodePort": 30_000})),
            "spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'",
        ),
        (
            serde_json::json!({"ports": [{"port": 1, "name": "a"}, {"port": 2, "name": "a"}]}),
            "spec.ports[1].name: Duplicate value: \"a\"",
        ),
        (
            serde_json::json!({"ports": [{"port": 1, "name": "a"}, {"port": 1, "name": "b"}]}),
            "spec.ports[1]: Duplicate value: {\"protocol\":\"TCP\",\"port\":1}",
        ),
        (
            serde_json::json!({"type": "Cluster", "ports": [{"port": 1}]}),
            "spec.type: Unsupported value: \"Cluster\": supported values: \"ClusterIP\", \"ExternalName\", \"LoadBalancer\", \"NodePort\"",
        ),
        (
            serde_json::json!({"clusterIP": "10.96.0.300", "ports": [{"port": 1}]}),
            "spec.clusterIPs[0]: Invalid value: \"10.96.0.300\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        ),
        (
            serde_json::json!({"ipFamilies": ["IPv4", "IPv6"], "ports": [{"port": 1}]}),
            "spec.ipFamilyPolicy: Invalid value: \"SingleStack\": must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified",
        ),
        (
            serde_json::json!({"sessionAffinity": "ClientIP", "ports": [{"port": 1}],
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 86_401}}}),
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds: Invalid value: 86401: must be greater than 0 and less than 86400",
        ),
    ];
    for (spec, expected) in cases {
        let expected = format!("The Service \"x\" is invalid: {expected}");
        assert_eq!(sentence(&spec), Some(expected), "{spec}");
    }
}

#[test]
fn several_complaints_stand_in_one_sentence() {
    let spec = serde_json::json!({"ports": [{"port": 1}, {"port": 2}]});
    let said = sentence(&spec).unwrap();
    assert!(
        said.contains("* spec.ports[0].name: Required value"),
        "{said}"
    );
    assert!(
        said.contains("* spec.ports[1].name: Required value"),
        "{said}"
    );
}

#[test]
fn good_services_pass() {
    let ports = serde_json::json!([{"port": 80, "targetPort": "http"}]);
    for spec in [
        serde_json::json!({"ports": ports}),
        serde_json::json!({"clusterIP": "None"}),
        serde_json::json!({"type": "ExternalName", "externalName": "example.org"}),
        serde_json::json!({"type": "NodePort", "ports": [{"port": 1, "nodePort": 30_000}]}),
        serde_json::json!({"ports": ports, "externalIPs": ["192.0.2.1"], "externalTrafficPolicy": "Local"}),
    ] {
        assert_eq!(sentence(&spec), None, "{spec}");
    }
}

#[test]
fn service_names_are_dns_1035_labels() {
    for (name, good) in [
        ("web", true),
        ("a-1", true),
        ("1a", false),
        ("Web", false),
        ("a-", false),
    ] {
        assert_eq!(is_label(name, true), good, "{name}");
    }
}
