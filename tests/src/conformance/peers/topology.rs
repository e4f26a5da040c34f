//! Which endpoints are chosen by the hints of their slices: a list of endpoints like
//! `10.50.0.2 zone-1 node-b`.

use super::{POD, node};
use crate::conformance::deviations::TOPOLOGY_AUTO;
use serde_json::{Value, json};

pub(super) fn translate(case: &Value) -> Value {
    let setup = &case["setup"];
    let text = |name: &str| setup[name].as_str().unwrap_or_default();
    let listed = setup["endpoints_with_hints"].as_array();
    let endpoints: Vec<Value> = listed
        .into_iter()
        .flatten()
        .filter_map(|endpoint| {
            let mut words = endpoint.as_str()?.split(' ');
            let address = words.next()?;
            let mut hints = json!({});
            for word in words {
                if word.starts_with("zone-") {
                    hints["forZones"] = json!([{"name": word}]);
                } else if word.starts_with("node-") {
                    hints["forNodes"] = json!([{"name": word}]);
                }
            }
            Some(json!({"addresses": [address], "hints": hints, "conditions": {"ready": true}}))
        })
        .collect();
    let backends = case["steps"][0]["expected"]["backends"].as_array();
    let expected: Vec<String> = backends
        .into_iter()
        .flatten()
        .filter_map(|address| Some(format!("{}:80", address.as_str()?)))
        .collect();
    let service = json!({"metadata": {"namespace": "ns", "name": "web"},
        "spec": {"clusterIP": "172.30.0.41", "ports": [{"name": "p", "protocol": "TCP", "port": 80}]}});
    let slice = json!({"metadata": {"namespace": "ns", "name": "web-1",
            "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4", "endpoints": endpoints,
        "ports": [{"name": "p", "protocol": "TCP", "port": 80}]});
    json!({"title": case["name"], "family": "IPv4",
        "node": node(text("node"), &["192.0.2.10"], Some(text("zone"))),
        "services": [service], "endpointSlices": [slice],
        "flows": [{"name": "a pod of the node", "protocol": "TCP", "sourceIP": POD[0],
            "destIP": "172.30.0.41", "destPort": 80, "expect": {"endpoints": expected},
            "deviation": TOPOLOGY_AUTO.name}]})
}
