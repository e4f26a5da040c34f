//! Control-plane cases: objects come and go, and a table of frontends with the backends that new
//! connections get is what must come of it.

use super::{OUTSIDE, POD, node, unknown};
use crate::conformance::Outcome;
use crate::conformance::deviations::{
    FIRST_ADDRESS, HEADLESS_LABEL, PEER_FEATURES, VIP_INTERNAL_POLICY,
};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

type Key = (String, u64, String);

/// What is known on the way through the steps.
#[derive(Default)]
struct Story {
    /// Frontends so far, with their kind.
    frontends: BTreeMap<Key, String>,
    /// Addresses that are the first of an endpoint, by slice.
    first: BTreeMap<String, BTreeSet<String>>,
    /// A service has the label of headless ones.
    labelled_headless: bool,
}

pub(super) fn translate(case: &Value) -> Result<Value, Outcome> {
    let name = case["config"]["node_name"].as_str().unwrap_or("testnode");
    let mut local_ips = Vec::new();
    let mut story = Story::default();
    let mut transitions = Vec::new();
    for (number, step) in list(&case["steps"]).enumerate() {
        let mut changes = json!({"title": format!("step {number}"), "upsertServices": [],
            "upsertEndpointSlices": [], "deleteServices": [], "deleteEndpointSlices": []});
        for action in list(&step["do"]) {
            match action["op"].as_str().unwrap_or_default() {
                "start_proxy" => {}
                "add_node_address" => {
                    let added = list(&action["addresses"]);
                    local_ips.extend(added.filter_map(|one| one["ip"].as_str()));
                }
                "create" | "update" => {
                    for object in list(&action["objects"]) {
                        story.put(object, &mut changes)?;
                    }
                }
                "delete" => {
                    for reference in list(&action["refs"]) {
                        story.delete(reference, &mut changes)?;
                    }
                }
                other => return Err(unknown(&PEER_FEATURES, other)),
            }
        }
        changes["flows"] = Value::Array(story.flows(&step["expect"]["frontends"], &local_ips));
        transitions.push(changes);
    }
    Ok(
        json!({"title": case["title"], "family": "IPv4", "node": node(name, &local_ips, None),
        "transitions": transitions}),
    )
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn push(list: &mut Value, item: Value) {
    if let Some(list) = list.as_array_mut() {
        list.push(item);
    }
}

fn key_of(object: &Value) -> String {
    let text = |name: &str| object[name].as_str().unwrap_or_default();
    format!("{}/{}", text("namespace"), text("name"))
}

impl Story {
    fn put(&mut self, object: &Value, changes: &mut Value) -> Result<(), Outcome> {
        let annotations = object["metadata"]["annotations"].as_object();
        let mut annotations = annotations.into_iter().flat_map(|all| all.keys());
        if let Some(theirs) = annotations.find(|name| name.starts_with("service.cilium.io/")) {
            return Err(unknown(&PEER_FEATURES, theirs));
        }
        match object["kind"].as_str() {
            Some("Service") => {
                let labels = &object["metadata"]["labels"];
                self.labelled_headless = !labels["service.kubernetes.io/headless"].is_null();
                push(&mut changes["upsertServices"], object.clone());
            }
            Some("EndpointSlice") => {
                let first = list(&object["endpoints"])
                    .filter_map(|endpoint| endpoint["addresses"][0].as_str())
                    .map(ToOwned::to_owned);
                self.first
                    .insert(key_of(&object["metadata"]), first.collect());
                push(&mut changes["upsertEndpointSlices"], object.clone());
            }
            other => return Err(unknown(&PEER_FEATURES, &format!("{other:?}"))),
        }
        Ok(())
    }

    fn delete(&mut self, reference: &Value, changes: &mut Value) -> Result<(), Outcome> {
        let key = key_of(reference);
        match reference["kind"].as_str() {
            Some("Service") => push(&mut changes["deleteServices"], json!(key)),
            Some("EndpointSlice") => {
                self.first.remove(&key);
                push(&mut changes["deleteEndpointSlices"], json!(key));
            }
            other => return Err(unknown(&PEER_FEATURES, &format!("{other:?}"))),
        }
        Ok(())
    }

    /// A flow for each frontend of a complete table, and for each that is no more.
    fn flows(&mut self, table: &Value, local_ips: &[&str]) -> Vec<Value> {
        let Some(rows) = table.as_array() else {
            return Vec::new();
        };
        let mut flows = Vec::new();
        let mut now = BTreeMap::new();
        for row in rows {
            // The entry that stands for every address of the node has none of its own.
            if row["any_node_address"] == true {
                continue;
            }
            let text = |name: &str| row[name].as_str().unwrap_or_default().to_owned();
            let key = (text("ip"), row["port"].as_u64().unwrap_or(0), text("proto"));
            now.insert(key.clone(), text("kind"));
            if row["eligible"].is_array() {
                flows.push(self.flow(row, &key, &text("kind"), rows, local_ips));
            }
        }
        for (key, kind) in &self.frontends {
            // A row of candidates alone may leave frontends out.
            let complete = rows.iter().all(|row| row["eligible"].is_array());
            if complete && !now.contains_key(key) {
                let expected = json!({"endpoints": "none"});
                let deviation = self.labelled_headless.then_some(HEADLESS_LABEL.name);
                flows.push(connection(key, asker(kind, &key.0), &expected, deviation));
            }
        }
        self.frontends.append(&mut now);
        flows
    }

    fn flow(
        &self,
        row: &Value,
        key: &Key,
        kind: &str,
        rows: &[Value],
        local_ips: &[&str],
    ) -> Value {
        let local = row["external_traffic_policy"] == "Local";
        let internal = row["scope"] == "internal";
        let eligible: BTreeSet<&str> = list(&row["eligible"])
            .filter_map(|one| one.as_str()?.rsplit_once('/').map(|(end, _)| end))
            .collect();
        let ends = eligible.iter().filter_map(|end| end.parse().ok());
        let ips: Vec<String> = ends
            .map(|end: std::net::SocketAddr| end.ip().to_string())
            .collect();
        let is_first = |ip: &String| self.first.values().any(|first| first.contains(ip));
        let deviation = if internal {
            Some(VIP_INTERNAL_POLICY.name)
        } else if ips.iter().any(|ip| local_ips.contains(&ip.as_str())) {
            Some(PEER_FEATURES.name)
        } else if !ips.iter().all(is_first) {
            Some(FIRST_ADDRESS.name)
        } else {
            None
        };
        let expected = if eligible.is_empty() {
            let served = |other: &Value| list(&other["eligible"]).next().is_some();
            let silent = local && rows.iter().any(served);
            json!({"endpoints": if silent { "drop" } else { "reject" }})
        } else {
            json!({"endpoints": eligible, "masq": kind != "ClusterIP" && !local && !internal})
        };
        let from = if internal { "ClusterIP" } else { kind };
        connection(key, asker(from, &key.0), &expected, deviation)
    }
}

/// Who asks a frontend of this kind.
fn asker(kind: &str, ip: &str) -> &'static str {
    let clients = if kind == "ClusterIP" { POD } else { OUTSIDE };
    clients[usize::from(ip.contains(':'))]
}

fn connection(
    (ip, port, protocol): &Key,
    from: &str,
    expected: &Value,
    deviation: Option<&str>,
) -> Value {
    json!({"name": format!("{from} to {ip} port {port} {protocol}"), "protocol": protocol,
        "sourceIP": from, "destIP": ip, "destPort": port, "expect": expected,
        "deviation": deviation})
}
