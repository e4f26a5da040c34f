//! The flows of case files on a real kernel: real sockets, a real agent that watches an API server,
//! namespaces with the addresses that a case names. Cases are read and judged by
//! [`super::traffic`]; here is only what they are tried on.

mod client;
mod responder;
mod site;
mod verdict;
mod wiring;

use super::traffic::{self, Case, try_on};
use super::{Outcome, Report, Section, content_of, id_of, peers, read};
use anyhow::{Context, Result};
use serde_json::Value;
use site::Site;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Which sockets the agent balances.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mode {
    /// Every socket.
    All,
    /// None: everything goes through the packet path.
    Off,
}

impl Mode {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::All, Self::Off];

    /// As `--socket-load-balancing` takes it.
    const fn name(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Off => "off",
        }
    }
}

/// The sections whose cases have flows to replay.
const SECTIONS: [&str; 2] = ["cases", "hookCases"];

/// Replays the flows of every case of the files whose id `wanted` likes, in these modes. A case
/// counts once a mode.
///
/// # Errors
/// A file that cannot be read, or is no case file at all.
pub fn replay_files<'a>(
    files: impl Iterator<Item = &'a Path>,
    modes: &[Mode],
    wanted: impl Fn(&str) -> bool,
) -> Result<Report> {
    let mut report = Report::default();
    for file in files {
        let content = content_of(file)?;
        let content = peers::translated(&content, &mut report).unwrap_or(content);
        let sections = content
            .as_object()
            .with_context(|| format!("{} is not a case file", file.display()))?;
        let mut cases = Vec::new();
        for name in SECTIONS {
            let section = Section::of(name).context("a section of flows is known")?;
            let listed = sections.get(name).and_then(Value::as_array);
            for (index, case) in listed.into_iter().flatten().enumerate() {
                let id = id_of(name, index, case);
                if !wanted(&id) {
                    continue;
                }
                match section
                    .unknown(case)
                    .map_or_else(|| read("the case", case), Err)
                {
                    Ok(read) => cases.push((id, case["node"].clone(), read)),
                    Err(outcome) => report.add(&id, outcome),
                }
            }
        }
        let groups = groups(cases);
        let jobs = groups
            .iter()
            .flat_map(|group| modes.iter().map(move |mode| (group.as_slice(), *mode)));
        for (id, outcome) in side_by_side(&jobs.collect::<Vec<_>>()) {
            report.add(&id, outcome);
        }
    }
    Ok(report)
}

/// Replays groups beside each other: each has namespaces of its own, and most of the time is spent
/// waiting.
fn side_by_side(jobs: &[(&[Named], Mode)]) -> Vec<(String, Outcome)> {
    const WORKERS: usize = 4;
    let next = AtomicUsize::new(0);
    let work = || {
        let mut outcomes = Vec::new();
        while let Some((group, mode)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            outcomes.extend(replay(group, *mode));
        }
        outcomes
    };
    let mut outcomes: Vec<_> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(work)).collect();
        let joined = workers.into_iter().map(|worker| match worker.join() {
            Ok(outcomes) => outcomes,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        joined.flatten().collect()
    });
    outcomes.sort_by(|(one, _), (other, _)| one.cmp(other));
    outcomes
}

/// A case with its id.
type Named = (String, Case);

/// Cases of equal nodes together, so that one agent serves them one after the other.
fn groups(cases: Vec<(String, Value, Case)>) -> Vec<Vec<Named>> {
    let mut groups: Vec<(Value, Vec<Named>)> = Vec::new();
    for (id, node, case) in cases {
        match groups.iter_mut().find(|(known, _)| *known == node) {
            Some((_, group)) => group.push((id, case)),
            None => groups.push((node, vec![(id, case)])),
        }
    }
    groups.into_iter().map(|(_, group)| group).collect()
}

fn replay(group: &[Named], mode: Mode) -> Vec<(String, Outcome)> {
    let named = |id: &str| format!("{id}, socket load balancing {}", mode.name());
    let [(_, first), ..] = group else {
        return Vec::new();
    };
    let mut site = match Site::new(&first.node, mode, &ports_of(group)) {
        Ok(site) => site,
        Err(outcome) => {
            let ids = group.iter().map(|(id, _)| named(id));
            return ids.map(|id| (id, outcome.clone())).collect();
        }
    };
    let mut outcomes = Vec::new();
    for (id, case) in group {
        let outcome = site
            .begin(case)
            .and_then(|()| try_on(&mut site, case))
            .unwrap_or_else(|outcome| outcome);
        if let Outcome::Failed(reason) = &outcome {
            eprintln!("FAILED  {}: {reason}", named(id));
        }
        outcomes.push((named(id), outcome));
    }
    outcomes
}

/// Every port that somebody is asked on, or could be sent to; none that the agent itself listens on.
fn ports_of(group: &[Named]) -> BTreeSet<u16> {
    let mut ports = BTreeSet::new();
    let mut own = BTreeSet::new();
    let number = |value: &Value| value.as_u64().and_then(|port| u16::try_from(port).ok());
    for (step, flows) in group.iter().flat_map(|(_, case)| case.steps()) {
        ports.extend(flows.iter().map(|flow: &traffic::Flow| flow.dest_port));
        let slices = step.endpoint_slices.iter();
        let listed = slices
            .filter_map(|slice| slice["ports"].as_array())
            .flatten();
        ports.extend(listed.filter_map(|port| number(&port["port"])));
        let services = step.services.iter();
        own.extend(services.filter_map(|one| number(&one["spec"]["healthCheckNodePort"])));
    }
    &ports - &own
}

/// What went wrong with the machinery itself.
fn broken(error: &anyhow::Error) -> Outcome {
    Outcome::Failed(format!("{error:#}"))
}
