//! The outcome of cases, and how it is told.

use super::deviations;
use serde_json::Value;
use std::fmt;

/// What became of one case.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// Everything it expects is so.
    Passed,
    /// Something is otherwise.
    Failed(String),
    /// It was not, or not wholly, checked.
    Skipped(String),
}

/// The outcomes of a run.
#[derive(Debug, Default)]
pub struct Report {
    passed: usize,
    failed: Vec<(String, String)>,
    skipped: Vec<(String, String)>,
}

impl Report {
    pub(super) fn add(&mut self, id: &str, outcome: Outcome) {
        match outcome {
            Outcome::Passed => self.passed += 1,
            Outcome::Failed(reason) => self.failed.push((id.to_owned(), reason)),
            Outcome::Skipped(reason) => self.skipped.push((id.to_owned(), reason)),
        }
    }

    /// A section nobody knows: each of its cases is skipped.
    pub(super) fn skip_section(&mut self, name: &str, cases: &Value) {
        let reason = format!("the section {name} is not known to this runner");
        let count = cases.as_array().map_or(1, Vec::len);
        for index in 0..count {
            let id = cases[index]["id"]
                .as_str()
                .map_or_else(|| format!("{name}[{index}]"), ToOwned::to_owned);
            self.skipped.push((id, reason.clone()));
        }
    }

    /// Number of cases that passed.
    pub fn passed(&self) -> usize {
        self.passed
    }

    /// Id and reason of each case that failed.
    pub fn failed(&self) -> &[(String, String)] {
        &self.failed
    }

    /// Id and reason of each case that was skipped.
    pub fn skipped(&self) -> &[(String, String)] {
        &self.skipped
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (id, reason) in &self.skipped {
            writeln!(f, "skipped {id}: {reason}")?;
        }
        for (id, reason) in &self.failed {
            writeln!(f, "FAILED  {id}: {reason}")?;
        }
        writeln!(f, "\n{}", deviations::table())?;
        write!(
            f,
            "{} passed, {} failed, {} skipped",
            self.passed,
            self.failed.len(),
            self.skipped.len()
        )
    }
}
