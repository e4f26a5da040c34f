//! The generated part of `docs/performance.md`: one block for each part of the benchmark, between
//! markers; what stands outside them is written by people.

use crate::report::{Goal, Report, Section};
use anyhow::{Context, Result};
use std::fmt::Write as _;
use std::path::Path;

/// Puts the sections of a report in the place of their earlier ones.
pub(crate) fn write(report: &Report) -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/performance.md");
    let mut text = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read {}", path.display()))?;
    for section in &report.sections {
        let (begin, end) = (marker(section, "begin"), marker(section, "end"));
        let (before, rest) = text
            .split_once(&begin)
            .with_context(|| format!("{} has no line {begin}", path.display()))?;
        let (_, after) = rest
            .split_once(&end)
            .with_context(|| format!("{} has no line {end}", path.display()))?;
        text = format!("{before}{begin}\n{}{end}{after}", block(report, section));
    }
    std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    eprintln!("wrote {}", path.display());
    Ok(())
}

fn marker(section: &Section, what: &str) -> String {
    format!(
        "<!-- {what} {}: written by `cargo xtask bench` -->",
        section.name
    )
}

fn block(report: &Report, section: &Section) -> String {
    let machine = &report.machine;
    // Writing to a string does not fail.
    let mut text = format!(
        "\nLinux {}, {} × {}, {} MiB; load {} when the run began{}.\n\n| goal | measured | at most | |\n\
         |---|---:|---:|---|\n",
        machine.kernel,
        machine.processors,
        machine.processor,
        machine.memory,
        machine.load,
        if report.quick { "; a quick run" } else { "" },
    );
    for goal in &section.goals {
        let Goal {
            name,
            value,
            limit,
            unit,
            ..
        } = goal;
        let verdict = if goal.reached {
            "reached".to_owned()
        } else {
            format!("**missed** by {:.2} {unit}", value - limit)
        };
        let _ = writeln!(
            text,
            "| {name} | {value:.2} {unit} | {limit:.2} {unit} | {verdict} |"
        );
    }
    let _ = write!(
        text,
        "\n| {} | minimum | lower quartile | {} |\n|---|---:|---:|---:|\n",
        section.unit, section.third
    );
    for figure in &section.figures {
        let _ = writeln!(
            text,
            "| {} | {:.1} | {:.1} | {:.2} |",
            figure.name, figure.minimum, figure.lower_quartile, figure.net
        );
    }
    text.push('\n');
    text
}
