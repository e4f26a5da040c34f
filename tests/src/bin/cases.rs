//! Runs case files: `cases [--kernel] [--only WORD] FILE…`. Exit code 1: a case failed; 2: a file
//! could not be run.

use anyhow::{Context, Result, ensure};
use lb_tests::conformance::replay::{Mode, replay_files};
use lb_tests::conformance::run_files;
use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<ExitCode> {
    let mut kernel = false;
    let mut only = String::new();
    let mut files = Vec::new();
    let mut arguments = std::env::args_os().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.to_str() {
            Some("--kernel") => kernel = true,
            Some("--only") => {
                let word = arguments.next().context("--only wants a part of an id")?;
                only = word.to_string_lossy().into_owned();
            }
            _ => files.push(PathBuf::from(argument)),
        }
    }
    ensure!(
        !files.is_empty(),
        "name the case files to run, for example tests/conformance/cases/kube-proxy.json"
    );
    let files = files.iter().map(PathBuf::as_path);
    let report = if kernel {
        replay_files(files, &Mode::BOTH, |id| id.contains(&only))?
    } else {
        ensure!(
            only.is_empty(),
            "--only chooses cases to replay: it wants --kernel"
        );
        run_files(files)?
    };
    println!("{report}");
    Ok(if report.failed().is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
