//! The model at scale: 10,000 services with 10 endpoints each. Alone in its process, since it looks
//! at the process's memory.

use lb_agent::model::node::NodeFacts;
use lb_agent::model::{Options, State};
use lb_agent::source::{Change, Kind, Object};
use serde_json::{Value, json};
use std::time::Instant;

const SERVICES: u32 = 10_000;
const ENDPOINTS: u32 = 10;

fn service(index: u32) -> Change {
    let object = json!({
        "metadata": {"namespace": "shop", "name": format!("service-{index}"),
            "annotations": {"kept": "x".repeat(2000)}},
        "spec": {
            "type": "NodePort",
            "clusterIP": format!("10.96.{}.{}", index >> 8, index & 255),
            "selector": {"app": "web"},
            "ports": [{"name": "http", "port": 80, "nodePort": 20_000 + index}],
        },
    });
    Change::Apply(Object::Service(Box::new(read(object))))
}

fn slice(index: u32, ready: bool) -> Change {
    let endpoint = |one: u32| {
        let number = index * ENDPOINTS + one;
        json!({
            "addresses": [format!("10.{}.{}.{}", 128 + (number >> 16), (number >> 8) & 255, number & 255)],
            "nodeName": format!("node-{}", number % 500),
            "conditions": {"ready": ready || one != 0},
            "targetRef": {"kind": "Pod", "name": format!("pod-{number}")},
        })
    };
    let object = json!({
        "metadata": {"namespace": "shop", "name": format!("service-{index}-abcde"),
            "labels": {"kubernetes.io/service-name": format!("service-{index}")}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": (0..ENDPOINTS).map(endpoint).collect::<Vec<Value>>(),
    });
    Change::Apply(Object::EndpointSlice(Box::new(read(object))))
}

fn read<T: serde::de::DeserializeOwned>(object: Value) -> T {
    serde_json::from_value(object).expect("an object of its kind")
}

/// Resident memory of this process in bytes.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("procfs");
    let pages = statm
        .split_ascii_whitespace()
        .nth(1)
        .expect("a second field");
    pages.parse::<usize>().expect("a number") * 4096
}

#[test]
fn ten_thousand_services_fit_into_little_memory_and_one_change_touches_one_service() {
    let mut state = State::new(Options::default(), NodeFacts::named("node-7"));
    let before = resident();
    for kind in Kind::ALL {
        state.apply(Change::Restart(kind));
        for index in 0..SERVICES {
            match kind {
                Kind::Service => drop(state.apply(service(index))),
                Kind::EndpointSlice => drop(state.apply(slice(index, true))),
                Kind::Node | Kind::ServiceCidr | Kind::Pod | Kind::Namespace => {}
            }
        }
        state.apply(Change::Complete(kind));
    }
    let known = resident().saturating_sub(before);
    let began = Instant::now();
    let desired = state.desired_all();
    let all = began.elapsed();
    let with_desired = resident().saturating_sub(before);
    assert_eq!(desired.len(), SERVICES as usize);
    let endpoints: usize = desired.values().map(|one| one.endpoints.len()).sum();
    assert_eq!(endpoints, (SERVICES * ENDPOINTS) as usize);

    let change = slice(4711, false);
    let began = Instant::now();
    let dirty = state.apply(change);
    let refusals = state.refusals().len();
    let changed = dirty.iter().filter_map(|name| state.desired(name)).count();
    println!(
        "known: {} KiB, with everything desired: {} KiB, all desired in {all:?}, one change in {:?}",
        known / 1024,
        with_desired / 1024,
        began.elapsed()
    );
    assert_eq!((dirty.len(), changed, refusals), (1, 1, 0));
    assert!(known < 32 << 20, "the known objects take {known} bytes");
}
