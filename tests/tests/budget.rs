//! A budget of instructions for each program: what the verifier walks and what the kernel keeps
//! after it, against the figures in `tests/budget.json`. More than 10 % above them fails.
//!
//! `LB_WRITE_BUDGET=1` writes the file anew, for a change that is worth its price.

use anyhow::{Context, Result, ensure};
use aya::programs::{Program, ProgramInfo};
use lb_tests::kernel::KernelObject;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// What one program costs.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
struct Cost {
    /// Instructions the verifier walked: bounds the time to load, and the kernel limits it.
    verified: u32,
    /// Instructions of the program in the kernel, with its functions and inlined helpers.
    kept: u32,
}

/// The file. The verifier's walk depends on the kernel, so its series stands beside it.
#[derive(Debug, Deserialize, Serialize)]
struct Budget {
    kernel: String,
    programs: BTreeMap<String, Cost>,
}

/// The first two numbers of the running kernel's release.
fn series() -> Result<String> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let numbers: Vec<&str> = release.split(['.', '-']).take(2).collect();
    Ok(numbers.join("."))
}

/// Loads every program of the object. `None`: of a kind that the agent does not use.
fn load(program: &mut Program) -> Result<Option<ProgramInfo>> {
    match program {
        Program::SchedClassifier(program) => program.load()?,
        Program::CgroupSockAddr(program) => program.load()?,
        Program::CgroupSock(program) => program.load()?,
        Program::SockOps(program) => program.load()?,
        _ => return Ok(None),
    }
    Ok(Some(program.info()?))
}

fn measure() -> Result<BTreeMap<String, Cost>> {
    /// Size of an instruction.
    const INSTRUCTION: u32 = 8;
    let mut object = KernelObject::load()?;
    let mut costs = BTreeMap::new();
    for (name, program) in object.ebpf().programs_mut() {
        let Some(info) = load(program).with_context(|| format!("load {name}"))? else {
            continue;
        };
        let cost = Cost {
            verified: info
                .verified_instruction_count()
                .context("the kernel does not count what it verifies (5.16)")?,
            kept: info
                .size_translated()
                .context("the kernel does not tell the size")?
                / INSTRUCTION,
        };
        costs.insert(name.to_owned(), cost);
    }
    Ok(costs)
}

#[test]
fn no_program_costs_ten_percent_more_than_its_budget() -> Result<()> {
    lb_lab::require_root();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("budget.json");
    if std::env::var_os("LB_WRITE_BUDGET").is_some() {
        let budget = Budget {
            kernel: series()?,
            programs: measure()?,
        };
        let text = serde_json::to_string_pretty(&budget)? + "\n";
        return std::fs::write(&path, text).with_context(|| format!("write {}", path.display()));
    }
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read {}", path.display()))?;
    let budget: Budget = serde_json::from_str(&text)?;
    if budget.kernel != series()? {
        eprintln!(
            "skipped: the budget is for kernel {}, verifiers differ",
            budget.kernel
        );
        return Ok(());
    }
    let costs = measure()?;
    let mut over = Vec::new();
    for (name, cost) in &costs {
        println!("{name}: {} verified, {} kept", cost.verified, cost.kept);
        match budget.programs.get(name) {
            None => over.push(format!("{name} has no budget")),
            Some(allowed) => {
                for (what, cost, allowed) in [
                    ("verified", cost.verified, allowed.verified),
                    ("kept", cost.kept, allowed.kept),
                ] {
                    if u64::from(cost) * 10 > u64::from(allowed) * 11 {
                        over.push(format!("{name}: {cost} {what}, the budget is {allowed}"));
                    }
                }
            }
        }
    }
    ensure!(
        over.is_empty(),
        "over budget (LB_WRITE_BUDGET=1 writes a new one):\n{}",
        over.join("\n")
    );
    Ok(())
}
