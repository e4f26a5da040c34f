//! Figures and the goals they are held against.

use crate::machine::Machine;
use serde::Serialize;
use std::fmt::Write as _;

/// What a case cost in every round, ns a packet, smallest first.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Figure {
    /// The case.
    pub(crate) name: String,
    /// The quickest round.
    pub(crate) minimum: f64,
    /// The first quartile of the rounds.
    pub(crate) lower_quartile: f64,
    /// What counts: see [`Section::third`].
    pub(crate) net: f64,
}

impl Figure {
    /// From the rounds' figures and the generator's own cost.
    pub(crate) fn new(name: &str, mut rounds: Vec<f64>, generator: f64) -> Self {
        rounds.sort_by(f64::total_cmp);
        let minimum = rounds.first().copied().unwrap_or(f64::NAN);
        let lower_quartile = rounds.get(rounds.len() / 4).copied().unwrap_or(f64::NAN);
        Self {
            name: name.to_owned(),
            minimum,
            lower_quartile,
            net: minimum - generator,
        }
    }
}

/// A figure held against its goal.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Goal {
    /// What is wanted.
    pub(crate) name: String,
    /// What was measured.
    pub(crate) value: f64,
    /// The most it may be.
    pub(crate) limit: f64,
    /// `ns` or `×`.
    pub(crate) unit: &'static str,
    /// `value` is at most `limit`.
    pub(crate) reached: bool,
}

impl Goal {
    /// A value and its limit.
    pub(crate) fn new(name: &str, value: f64, limit: f64, unit: &'static str) -> Self {
        Self {
            name: name.to_owned(),
            value,
            limit,
            unit,
            reached: value <= limit,
        }
    }
}

/// One part of a run.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Section {
    /// What `--only` calls it.
    pub(crate) name: &'static str,
    /// What its figures are.
    pub(crate) unit: &'static str,
    /// What [`Figure::net`] is.
    pub(crate) third: &'static str,
    /// All cases.
    pub(crate) figures: Vec<Figure>,
    /// All goals.
    pub(crate) goals: Vec<Goal>,
}

impl Section {
    /// Nothing yet.
    pub(crate) const fn new(name: &'static str, unit: &'static str, third: &'static str) -> Self {
        Self {
            name,
            unit,
            third,
            figures: Vec::new(),
            goals: Vec::new(),
        }
    }

    /// The figure of a case.
    pub(crate) fn net(&self, name: &str) -> f64 {
        self.figures
            .iter()
            .find(|figure| figure.name == name)
            .map_or(f64::NAN, |figure| figure.net)
    }
}

/// A part that could not be measured.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Failure {
    /// What `--only` calls it.
    pub(crate) name: String,
    /// Why.
    pub(crate) error: String,
}

/// Everything a run has found.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    /// What it was measured on.
    pub(crate) machine: Machine,
    /// Few rounds.
    pub(crate) quick: bool,
    /// The parts that were measured.
    pub(crate) sections: Vec<Section>,
    /// The others.
    pub(crate) failed: Vec<Failure>,
}

impl Report {
    /// For people.
    pub(crate) fn table(&self) -> String {
        let mut text = format!("kernel {}\n", self.machine.kernel);
        for section in &self.sections {
            // Writing to a string does not fail.
            let (unit, third) = (section.unit, section.third);
            let _ = writeln!(text, "\n{unit}: minimum, lower quartile, {third}");
            for figure in &section.figures {
                let _ = writeln!(
                    text,
                    "{:64} {:9.1} {:9.1} {:9.2}",
                    figure.name, figure.minimum, figure.lower_quartile, figure.net
                );
            }
        }
        text.push('\n');
        for goal in self.sections.iter().flat_map(|section| &section.goals) {
            let verdict = if goal.reached { "reached" } else { "MISSED" };
            let (name, value, limit, unit) = (&goal.name, goal.value, goal.limit, goal.unit);
            let _ = writeln!(
                text,
                "{name:68} {value:7.2} {unit} of at most {limit:6.2}: {verdict}"
            );
        }
        for Failure { name, error } in &self.failed {
            let _ = writeln!(text, "{name}: FAILED: {error}");
        }
        text
    }
}
