//! Case files of other projects: what of them says what becomes of a connection is put into the
//! words of our own cases, and runs as they do, on the host and on the kernel. Of the rest, each case
//! names the test of ours that proves it, or the deviation.

mod cilium;
mod elsewhere;
mod topology;

use super::deviations::{Deviation, PEER_FEATURES};
use super::{Outcome, Report};
use elsewhere::{ELSEWHERE, Elsewhere};
use serde_json::{Value, json};

pub use elsewhere::tests_elsewhere;

/// The cases of another project's file in our own words; what has none goes into the report. `None`:
/// the file is one of ours.
pub(super) fn translated(content: &Value, report: &mut Report) -> Option<Value> {
    let is_theirs = !content["about"].is_null() || !content["setups"].is_null();
    let cases = content["cases"].as_array().filter(|_| is_theirs)?;
    let mut ours = Vec::new();
    for case in cases {
        let id = case["name"].as_str().filter(|_| case["id"].is_null());
        let id = id
            .or(case["id"].as_str())
            .unwrap_or("a case without a name");
        match translate(id, case) {
            Ok(mut case) => {
                case["id"] = json!(id);
                ours.push(case);
            }
            Err(outcome) => report.add(id, outcome),
        }
    }
    Some(json!({ "cases": ours }))
}

fn translate(id: &str, case: &Value) -> Result<Value, Outcome> {
    if let Some((_, elsewhere)) = ELSEWHERE.iter().find(|(known, _)| *known == id) {
        return Err(match elsewhere {
            Elsewhere::Test(name) => Outcome::Skipped(format!("what it says is the test {name}")),
            Elsewhere::Differs(deviation) => deviation.skips(
                case["title"]
                    .as_str()
                    .or(case["name"].as_str())
                    .unwrap_or(id),
            ),
        });
    }
    if case["category"] == "topology" {
        return Ok(topology::translate(case));
    }
    if case["kind"] == "control-plane" {
        return cilium::translate(case);
    }
    Err(unknown(&PEER_FEATURES, id))
}

fn unknown(deviation: &Deviation, what: &str) -> Outcome {
    deviation.skips(&format!("{what} is not known to this runner"))
}

/// A node whose pods have addresses of these ranges.
fn node(name: &str, local_ips: &[&str], zone: Option<&str>) -> Value {
    let labels = zone.map_or_else(
        || json!({}),
        |zone| json!({"topology.kubernetes.io/zone": zone}),
    );
    json!({"name": name, "localIPs": local_ips, "labels": labels,
        "detectLocal": {"mode": "ClusterCIDR", "clusterCIDRs": ["10.244.0.0/16", "fd00:10:244::/48"]}})
}

/// A client pod of such a node, and a client outside.
const POD: [&str; 2] = ["10.244.99.9", "fd00:10:244:99::9"];
const OUTSIDE: [&str; 2] = ["203.0.113.2", "2600:5200::1"];
