//! `cargo xtask bench`: what a packet costs on the packet path, what a connection costs end to end,
//! and what the agent needs for many services.
//!
//! Prints a table for people on standard error and the figures as JSON on standard output; a full
//! run also writes them into `docs/performance.md`, which tells the method.

mod connections;
mod document;
mod machine;
mod report;
mod scale;
mod tc;

use anyhow::{Context, Result, bail, ensure};
use lb_tests::endtoend;
use report::{Failure, Report, Section};

const USAGE: &str = "usage: cargo xtask bench -- [--only PART[,PART]] [--quick] [--write]
  parts: tc (ns a packet), connections (CPU time a connection), scale (an agent with 10,000 services)
  --quick   fewer rounds: minutes instead of a quarter of an hour, and coarser figures
  --write   write the measured parts into docs/performance.md (a full run always does)";

const PARTS: [&str; 3] = ["tc", "connections", "scale"];

struct Options {
    parts: Vec<String>,
    quick: bool,
    write: bool,
}

fn main() -> Result<()> {
    let Some(options) = options(std::env::args().skip(1))? else {
        println!("{USAGE}");
        return Ok(());
    };
    ensure!(
        nix::unistd::geteuid().is_root(),
        "the benchmark loads eBPF programs and makes network namespaces: run it as root \
         (`sudo -E env \"PATH=$PATH\" cargo xtask bench`)"
    );
    let mut report = Report {
        machine: machine::describe()?,
        quick: options.quick,
        sections: Vec::new(),
        failed: Vec::new(),
    };
    for part in &options.parts {
        eprintln!("measuring: {part}");
        match measure(part, options.quick) {
            Ok(section) => report.sections.push(section),
            // A quarter of an hour of other parts' figures is not thrown away for it.
            Err(error) => {
                eprintln!("{part} has failed: {error:#}");
                report.failed.push(Failure {
                    name: part.clone(),
                    error: format!("{error:#}"),
                });
            }
        }
    }
    eprint!("{}", report.table());
    println!("{}", serde_json::to_string_pretty(&report)?);
    if options.write {
        document::write(&report)?;
    }
    let failed: Vec<&str> = (report.failed.iter())
        .map(|failure| failure.name.as_str())
        .collect();
    ensure!(
        failed.is_empty(),
        "not measured: {} (see above); the other parts' figures are complete",
        failed.join(", ")
    );
    Ok(())
}

/// What was typed; `None`: help is wanted.
fn options(mut words: impl Iterator<Item = String>) -> Result<Option<Options>> {
    let mut options = Options {
        parts: PARTS.map(str::to_owned).to_vec(),
        quick: false,
        write: false,
    };
    let mut everything = true;
    while let Some(word) = words.next() {
        match word.as_str() {
            "--only" => {
                let parts = words.next().context("--only needs the name of a part")?;
                options.parts = parts.split(',').map(str::to_owned).collect();
                everything = false;
            }
            "--quick" => options.quick = true,
            "--write" => options.write = true,
            "-h" | "--help" => return Ok(None),
            other => bail!("{other}: no such option\n{USAGE}"),
        }
    }
    for part in &options.parts {
        ensure!(
            PARTS.contains(&part.as_str()),
            "{part}: no such part\n{USAGE}"
        );
    }
    options.write |= everything && !options.quick;
    Ok(Some(options))
}

fn measure(part: &str, quick: bool) -> Result<Section> {
    match part {
        "tc" => tc::measure(if quick { 3 } else { 11 }),
        "connections" => connections::measure(if quick {
            endtoend::Effort {
                connections: 1_000,
                rounds: 5,
                services: 10_000,
            }
        } else {
            endtoend::Effort {
                connections: 3_000,
                rounds: 21,
                services: 10_000,
            }
        }),
        _ => scale::measure(&scale::Effort {
            services: 10_000,
            changes: if quick { 50 } else { 300 },
        }),
    }
}
