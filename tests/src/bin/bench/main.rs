//! `cargo xtask bench`: what a packet costs on the packet path.
//!
//! Prints a table for people on standard error and the figures as JSON on standard output. The
//! method and the figures of a run are in `docs/performance.md`.

mod report;
mod tc;

use anyhow::{Result, ensure};

fn main() -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "the benchmark loads eBPF programs: run it as root (`sudo -E cargo xtask bench`)"
    );
    let report = report::Report {
        kernel: nix::sys::utsname::uname()?
            .release()
            .to_string_lossy()
            .into_owned(),
        sections: vec![tc::measure(11)?],
    };
    eprint!("{}", report.table());
    println!("{}", serde_json::to_string_pretty(&report)?);
    Ok(())
}
