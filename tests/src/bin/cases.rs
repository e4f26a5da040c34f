//! Runs case files: `cases FILE…`. Exit code 1: a case failed; 2: a file could not be run.

use anyhow::{Result, ensure};
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
    let files: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    ensure!(
        !files.is_empty(),
        "name the case files to run, for example tests/conformance/cases/kube-proxy.json"
    );
    let report = lb_tests::conformance::run_files(files.iter().map(PathBuf::as_path))?;
    println!("{report}");
    Ok(if report.failed().is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
