//! `lb-agent check`: what on this machine will keep Services from working, and what to do about it.
//!
//! Looking ([`look`]) and judging ([`findings`]) are apart: a judgement is a pure function of what
//! was seen. Nothing is changed, no program is started: netlink and `/proc` only.

pub mod expression;
pub mod facts;
pub mod findings;
pub mod look;
mod netfilter;
pub mod nftables;
mod routing;
#[cfg(test)]
mod tests;

use serde::Serialize;

/// How bad it is.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Something will not work.
    Problem,
    /// Something may not work: it depends on what this machine is used for.
    Warning,
}

/// One thing that was found.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What it is about, a word or two that stay the same: `kube-proxy`, `reverse-path-filter`, …
    pub topic: &'static str,
    /// What was seen and what it does, a sentence.
    pub what: String,
    /// What to do about it, a sentence.
    pub todo: String,
}

impl Finding {
    fn problem(topic: &'static str, what: impl Into<String>, todo: impl Into<String>) -> Self {
        Self {
            severity: Severity::Problem,
            topic,
            what: what.into(),
            todo: todo.into(),
        }
    }

    fn warning(topic: &'static str, what: impl Into<String>, todo: impl Into<String>) -> Self {
        Self {
            severity: Severity::Warning,
            ..Self::problem(topic, what, todo)
        }
    }
}

/// `a and b are devices`, `a is a device`.
fn listed(names: &[&str], one: &str, many: &str) -> String {
    match names {
        [name] => format!("{name} {one}"),
        [first @ .., last] => format!("{} and {last} {many}", first.join(", ")),
        [] => String::new(),
    }
}
