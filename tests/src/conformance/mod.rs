//! Case files: what kube-proxy answers, and whether the model, the plan and the core answer the
//! same. Objects go through the whole control flow (model → plan → tables in memory), packets
//! through the core on the host. No rule of load balancing may live here.

mod affinity;
mod answer;
pub mod deviations;
mod endpoints;
mod health;
mod lifetime;
mod node;
mod outcome;
pub mod peers;
pub mod replay;
mod services;
mod tracking;
mod traffic;
mod world;

pub use outcome::{Outcome, Report};

use anyhow::{Context, Result};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::fs;
use std::path::Path;

/// Runs one case.
type Runner = fn(&Value) -> Outcome;

/// One section of a case file.
struct Section {
    name: &'static str,
    run: Runner,
    /// The fields its cases may have besides [`DOCUMENTATION`].
    fields: &'static [&'static str],
}

/// Fields of any case that are for people.
const DOCUMENTATION: [&str; 7] = [
    "id",
    "title",
    "origin",
    "derivedFrom",
    "notes",
    "evidence",
    "tracerSkip",
];

const TRAFFIC: &[&str] = &[
    "family",
    "node",
    "services",
    "endpointSlices",
    "flows",
    "expectState",
    "transitions",
];

/// The sections of a case file.
const SECTIONS: [Section; 14] = [
    section("cases", traffic::run, TRAFFIC),
    section("hookCases", traffic::run, TRAFFIC),
    section(
        "endpointSelectionCases",
        endpoints::selection,
        &["nodeName", "nodeLabels", "service", "endpoints", "expect"],
    ),
    section(
        "serviceMapCases",
        services::run,
        &["family", "service", "expect"],
    ),
    section(
        "endpointMapCases",
        endpoints::map,
        &["family", "nodeName", "service", "endpointSlices", "expect"],
    ),
    section(
        "endpointSliceEventCases",
        endpoints::event,
        &[
            "family",
            "nodeName",
            "service",
            "synced",
            "event",
            "expectChanged",
            "expect",
        ],
    ),
    section(
        "localReadyCases",
        endpoints::local_ready,
        &["endpointsByServicePort", "expectLocalReady"],
    ),
    section(
        "triggerTimeCases",
        tracking::trigger_times,
        &["trackerStart", "events", "expect"],
    ),
    section(
        "conntrackCases",
        tracking::conntrack,
        &["services", "endpointSlices", "entries", "expectDeleted"],
    ),
    section(
        "nodePortAddressCases",
        node::addresses,
        &["nodePortAddresses", "interfaceAddresses", "expect"],
    ),
    section(
        "loopbackCases",
        node::loopback,
        &["nodePortAddresses", "expectContainsIPv4Loopback"],
    ),
    section(
        "healthServerCases",
        health::run,
        &[
            "kind",
            "family",
            "nodePortAddresses",
            "healthTimeoutSeconds",
            "steps",
            "responseRules",
            "metrics",
        ],
    ),
    section(
        "affinityCases",
        affinity::run,
        // `byBackend` names what other modes do; the steps are nftables mode's.
        &["services", "readyEndpoints", "steps", "byBackend"],
    ),
    section(
        "lifetimeCases",
        lifetime::run,
        &["frontends", "setup", "event", "expect", "origin2"],
    ),
];

const fn section(name: &'static str, run: Runner, fields: &'static [&'static str]) -> Section {
    Section { name, run, fields }
}

/// What a case file says about itself.
const DESCRIPTION: [&str; 5] = ["title", "source", "howVerified", "schema", "notes"];

/// Runs every case of the files.
///
/// # Errors
/// A file that cannot be read, or is no case file at all.
pub fn run_files<'a>(files: impl Iterator<Item = &'a Path>) -> Result<Report> {
    let mut report = Report::default();
    for file in files {
        run_content(&content_of(file)?, &mut report)
            .with_context(|| format!("{} is not a case file", file.display()))?;
    }
    Ok(report)
}

fn content_of(file: &Path) -> Result<Value> {
    let text = fs::read_to_string(file)
        .with_context(|| format!("cannot read the case file {}", file.display()))?;
    serde_json::from_str(&text)
        .with_context(|| format!("the case file {} is not JSON", file.display()))
}

/// The id of a case, or its place in the section.
fn id_of(section: &str, index: usize, case: &Value) -> String {
    let id = case["id"].as_str();
    id.map_or_else(|| format!("{section}[{index}]"), ToOwned::to_owned)
}

/// Runs every case of one file's content.
///
/// # Errors
/// Content that has no section of cases at all.
pub fn run_content(content: &Value, report: &mut Report) -> Result<()> {
    let translated = peers::translated(content, report);
    let content = translated.as_ref().unwrap_or(content);
    let sections = content
        .as_object()
        .context("the top level is not an object of sections")?;
    for (name, cases) in sections {
        if DESCRIPTION.contains(&name.as_str()) {
            continue;
        }
        let (Some(section), Some(cases)) = (Section::of(name), cases.as_array()) else {
            report.skip_section(name, cases);
            continue;
        };
        for (index, case) in cases.iter().enumerate() {
            report.add(&id_of(name, index, case), section.run(case));
        }
    }
    Ok(())
}

impl Section {
    fn of(name: &str) -> Option<&'static Self> {
        SECTIONS.iter().find(|section| section.name == name)
    }

    /// Why a case cannot be run before anything of it is read, if so.
    fn unknown(&self, case: &Value) -> Option<Outcome> {
        let Some(fields) = case.as_object() else {
            return Some(Outcome::Failed(format!(
                "{case} is no case: an object is expected"
            )));
        };
        // A field nobody reads may change what the case means.
        let known = |field: &&str| DOCUMENTATION.contains(field) || self.fields.contains(field);
        let mut unknown = fields
            .keys()
            .map(String::as_str)
            .filter(|field| !known(field));
        let field = unknown.next()?;
        Some(Outcome::Skipped(format!(
            "the field {field} of a case in {} is not known to this runner",
            self.name
        )))
    }

    fn run(&self, case: &Value) -> Outcome {
        if let Some(outcome) = self.unknown(case) {
            return outcome;
        }
        // A case may ask for something this runner's author did not think of: that case fails, the
        // others still run.
        std::panic::catch_unwind(|| (self.run)(case))
            .unwrap_or_else(|_| Outcome::Failed("the runner panicked on it, see above".to_owned()))
    }
}

/// Reads a part of a case. What cannot be read or is not known fails or skips the case, with a
/// sentence.
fn read<T: DeserializeOwned>(what: &str, value: &Value) -> Result<T, Outcome> {
    serde_json::from_value(value.clone()).map_err(|error| {
        let text = error.to_string();
        if text.starts_with("unknown field") || text.starts_with("unknown variant") {
            Outcome::Skipped(format!(
                "{what} has something this runner does not know: {text}"
            ))
        } else {
            Outcome::Failed(format!("{what} cannot be read: {text}"))
        }
    })
}
