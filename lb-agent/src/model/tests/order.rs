//! The order of changes does not matter: only the final objects do.

use super::*;
use proptest::prelude::*;

/// Objects over few names and addresses, so that they get into each other's way.
fn change() -> impl Strategy<Value = Value> {
    let name = prop::sample::select(vec!["a", "b", "c"]);
    let address = prop::sample::select(vec![
        "10.96.0.1",
        "10.96.0.2",
        "10.96.0.3",
        "192.0.2.1",
        "127.0.0.1",
        "fd00::1",
        "nonsense",
    ]);
    let addresses = prop::collection::vec(address, 0..3);
    let port = prop::sample::select(vec![80, 81]);
    (
        name.clone(),
        name,
        addresses,
        port,
        any::<[bool; 4]>(),
        0..3,
    )
        .prop_map(
            |(name, other, addresses, port, [slice, local, ready, terminating], year)| {
                if slice {
                    let endpoint = |address: &&str| {
                        json!({"addresses": [address],
                        "nodeName": if local { "here" } else { "there" },
                        "conditions": {"ready": ready && !terminating, "terminating": terminating}})
                    };
                    let endpoints: Vec<Value> = addresses.iter().map(endpoint).collect();
                    json!({"metadata": {"namespace": "ns", "name": name,
                        "labels": {"kubernetes.io/service-name": other}},
                    "addressType": "IPv4",
                    "ports": [{"name": "http", "port": port}],
                    "endpoints": endpoints})
                } else {
                    let cluster_ip = if terminating {
                        "10.96.0.1".to_owned()
                    } else {
                        format!("10.96.0.{port}")
                    };
                    json!({"metadata": {"namespace": "ns", "name": name,
                        "creationTimestamp": format!("202{year}-01-01T00:00:00Z")},
                    "spec": {"clusterIP": cluster_ip, "externalIPs": addresses,
                        "type": "NodePort",
                        "externalTrafficPolicy": if local { "Local" } else { "Cluster" },
                        "ports": [{"name": "http", "port": port,
                            "nodePort": if ready { 30080 } else { 0 }}]}})
                }
            },
        )
}

fn is_slice(object: &Value) -> bool {
    object["addressType"].is_string()
}

fn applied(object: &Value) -> Change {
    if is_slice(object) {
        slice_object(object.clone())
    } else {
        service_object(object.clone())
    }
}

fn deletion(object: &Value) -> Change {
    let kind = if is_slice(object) {
        Kind::EndpointSlice
    } else {
        Kind::Service
    };
    let name = object["metadata"]["name"].as_str().expect("a name");
    Change::Delete(kind, named(name))
}

proptest! {
    #[test]
    fn any_history_ends_like_a_fresh_state_with_the_final_objects(
        history in prop::collection::vec((change(), any::<bool>(), any::<bool>()), 1..24)
    ) {
        let mut state = state();
        let mut last: std::collections::BTreeMap<(bool, String), Value> = std::collections::BTreeMap::new();
        let mut published = state.desired_all();
        for (object, delete, twice) in &history {
            let key = (is_slice(object), object["metadata"]["name"].to_string());
            let mut changes = vec![applied(object)];
            last.insert(key.clone(), object.clone());
            if *twice {
                changes.push(applied(object));
            }
            if *delete {
                changes.push(deletion(object));
                last.remove(&key);
            }
            for change in changes {
                // What an incremental reader would hold.
                for name in state.apply(change) {
                    match state.desired(&name) {
                        Some(desired) => published.insert(name, desired),
                        None => published.remove(&name),
                    };
                }
                prop_assert_eq!(&published, &state.desired_all(), "dirty names everything touched");
            }
        }
        let mut fresh = super::state();
        for object in last.values().rev() {
            fresh.apply(applied(object));
        }
        prop_assert_eq!(state.desired_all(), fresh.desired_all());
        prop_assert_eq!(state.refusals(), fresh.refusals());
        let mut held = std::collections::BTreeSet::new();
        for (name, desired) in state.desired_all() {
            for frontend in desired.frontends {
                prop_assert!(
                    held.insert((frontend.address, frontend.port, name.protocol)),
                    "nothing is served twice"
                );
            }
        }
    }
}
