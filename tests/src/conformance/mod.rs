//! Case files: what kube-proxy answers, and whether the model, the plan and the core answer the
//! same. Objects go through the whole control flow (model → plan → tables in memory), packets
//! through the core on the host. No rule of load balancing may live here.

mod affinity;
mod answer;
mod endpoints;
mod node;
mod outcome;
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

/// The sections of a case file.
const SECTIONS: [(&str, Runner); 14] = [
    ("cases", traffic::run),
    ("hookCases", traffic::run),
    ("endpointSelectionCases", endpoints::selection),
    ("serviceMapCases", services::run),
    ("endpointMapCases", endpoints::map),
    ("endpointSliceEventCases", endpoints::event),
    ("localReadyCases", endpoints::local_ready),
    ("triggerTimeCases", tracking::trigger_times),
    ("conntrackCases", tracking::conntrack),
    ("nodePortAddressCases", node::addresses),
    ("loopbackCases", node::loopback),
    ("healthServerCases", tracking::health_server),
    ("affinityCases", affinity::run),
    ("lifetimeCases", tracking::lifetime),
];

/// What a case file says about itself.
const DESCRIPTION: [&str; 5] = ["title", "source", "howVerified", "schema", "notes"];

/// Runs every case of the files.
///
/// # Errors
/// A file that cannot be read, or is no case file at all.
pub fn run_files<'a>(files: impl Iterator<Item = &'a Path>) -> Result<Report> {
    let mut report = Report::default();
    for file in files {
        let text = fs::read_to_string(file)
            .with_context(|| format!("cannot read the case file {}", file.display()))?;
        let content: Value = serde_json::from_str(&text)
            .with_context(|| format!("the case file {} is not JSON", file.display()))?;
        run_content(&content, &mut report)
            .with_context(|| format!("{} is not a case file", file.display()))?;
    }
    Ok(report)
}

/// Runs every case of one file's content.
///
/// # Errors
/// Content that has no section of cases at all.
pub fn run_content(content: &Value, report: &mut Report) -> Result<()> {
    let sections = content
        .as_object()
        .context("the top level is not an object of sections")?;
    for (name, cases) in sections {
        if DESCRIPTION.contains(&name.as_str()) {
            continue;
        }
        let runner = SECTIONS.iter().find(|(section, _)| section == name);
        let (Some((_, runner)), Some(cases)) = (runner, cases.as_array()) else {
            report.skip_section(name, cases);
            continue;
        };
        for (index, case) in cases.iter().enumerate() {
            let id = case["id"]
                .as_str()
                .map_or_else(|| format!("{name}[{index}]"), ToOwned::to_owned);
            report.add(&id, guarded(*runner, case));
        }
    }
    Ok(())
}

/// A case may ask for something the runner's author did not think of: that case fails, the others
/// still run.
fn guarded(runner: Runner, case: &Value) -> Outcome {
    std::panic::catch_unwind(|| runner(case))
        .unwrap_or_else(|_| Outcome::Failed("the runner panicked on it, see above".to_owned()))
}

/// Reads a part of a case. What cannot be read or is not known fails or skips the case, with a
/// sentence.
fn read<T: DeserializeOwned>(what: &str, value: &Value) -> Result<T, Outcome> {
    serde_json::from_value(value.clone()).map_err(|error| {
        let text = error.to_string();
        if text.starts_with("unknown field") {
            Outcome::Skipped(format!(
                "{what} has a field this runner does not know: {text}"
            ))
        } else {
            Outcome::Failed(format!("{what} cannot be read: {text}"))
        }
    })
}
