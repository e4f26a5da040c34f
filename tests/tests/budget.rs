//! How many instructions the programs take: a rise of more than a tenth is a decision, not an
//! accident.
//!
//! `lb-ebpf/budget.toml` holds what was agreed. After a change that is worth it:
//! `LB_UPDATE_BUDGET=1 cargo test -p lb-tests --test budget`, and commit the file.

use anyhow::{Context, Result, ensure};
use aya::programs::{Program, ProgramError};
use aya::util::KernelVersion;
use lb_tests::kernel::KernelObject;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

/// Instructions of one program.
#[derive(Clone, Copy, Debug)]
struct Size {
    /// After the kernel's own rewriting, before it is compiled: what runs.
    translated: u32,
    /// Walked by the verifier, which gives up at a million. Another kernel walks other ways.
    verified: Option<u32>,
}

fn file() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../lb-ebpf/budget.toml")
}

fn load(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::SchedClassifier(program) => program.load(),
        Program::CgroupSockAddr(program) => program.load(),
        Program::CgroupSock(program) => program.load(),
        Program::SockOps(program) => program.load(),
        _ => Ok(()),
    }
}

/// Every program of the object as this kernel takes it.
fn measure() -> Result<BTreeMap<String, Size>> {
    let mut object = KernelObject::load()?;
    object
        .ebpf()
        .programs_mut()
        .map(|(name, program)| {
            load(program).with_context(|| format!("the kernel refuses {name}"))?;
            let info = program.info()?;
            let bytes = info
                .size_translated()
                .context("the kernel does not tell the size of programs")?;
            let size = Size {
                translated: bytes / 8,
                verified: info.verified_instruction_count(),
            };
            Ok((name.to_owned(), size))
        })
        .collect()
}

fn kernel() -> Result<String> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut parts = release.trim().split('.');
    let (major, minor) = (parts.next(), parts.next());
    Ok(format!(
        "{}.{}",
        major.unwrap_or_default(),
        minor.unwrap_or_default()
    ))
}

fn write(sizes: &BTreeMap<String, Size>) -> Result<()> {
    let mut text = format!(
        "# Instructions of every program: `tests/tests/budget.rs` fails at a tenth more and says \
         how to\n# change this file. Verified instructions are compared on the same kernel only.\n\
         \n[verified-by]\nkernel = \"{}\"\n\n[translated]\n",
        kernel()?
    );
    for (name, size) in sizes {
        writeln!(text, "{name} = {}", size.translated)?;
    }
    text.push_str("\n[verified]\n");
    for (name, size) in sizes {
        if let Some(verified) = size.verified {
            writeln!(text, "{name} = {verified}")?;
        }
    }
    std::fs::write(file(), text).with_context(|| format!("cannot write {}", file().display()))
}

/// Instructions by section and name.
type Numbers = BTreeMap<(String, String), u32>;

/// The agreed numbers, and the kernel that verified.
fn read() -> Result<(Numbers, String)> {
    let text = std::fs::read_to_string(file())
        .with_context(|| format!("cannot read {}", file().display()))?;
    let (mut section, mut kernel, mut numbers) = (String::new(), String::new(), BTreeMap::new());
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            name.clone_into(&mut section);
        } else if let Some((name, value)) =
            line.split_once(" = ").filter(|_| !line.starts_with('#'))
        {
            if name == "kernel" {
                value.trim_matches('"').clone_into(&mut kernel);
            } else {
                let value = value
                    .parse()
                    .with_context(|| format!("not a number: {line}"))?;
                numbers.insert((section.clone(), name.to_owned()), value);
            }
        }
    }
    Ok((numbers, kernel))
}

/// What is over the budget, or not in it.
fn excess(section: &str, name: &str, is: u32, agreed: Option<&u32>) -> Option<String> {
    match agreed {
        Some(agreed) if u64::from(is) * 10 <= u64::from(*agreed) * 11 => None,
        Some(agreed) => Some(format!(
            "{name} has {is} {section} instructions, {agreed} were agreed (+{} %)",
            u64::from(is) * 100 / u64::from(*agreed).max(1) - 100
        )),
        None => Some(format!("{name} is not in the budget")),
    }
}

#[test]
fn no_program_takes_a_tenth_more_instructions_than_agreed() -> Result<()> {
    lb_lab::require_root();
    let sizes = measure()?;
    ensure!(!sizes.is_empty(), "the object has no programs");
    if std::env::var_os("LB_UPDATE_BUDGET").is_some() {
        return write(&sizes);
    }
    let (agreed, verified_by) = read()?;
    let same_kernel = kernel()? == verified_by;
    let mut over = Vec::new();
    for (name, size) in &sizes {
        let agreed = |section: &str| agreed.get(&(section.to_owned(), name.clone()));
        over.extend(excess(
            "translated",
            name,
            size.translated,
            agreed("translated"),
        ));
        if let Some(verified) = size.verified.filter(|_| same_kernel) {
            over.extend(excess("verified", name, verified, agreed("verified")));
        }
    }
    let running = KernelVersion::current().context("no kernel version")?;
    ensure!(
        over.is_empty(),
        "on kernel {running:?}: {over:#?}\nif that is worth it: LB_UPDATE_BUDGET=1 cargo test -p \
         lb-tests --test budget, and commit {}",
        file().display()
    );
    Ok(())
}

#[test]
fn a_tenth_more_is_let_through_and_anything_above_is_named() {
    assert_eq!(excess("translated", "p", 110, Some(&100)), None);
    let said = excess("translated", "p", 111, Some(&100)).unwrap_or_default();
    assert!(said.contains('p') && said.contains("+11 %"), "{said}");
    assert!(excess("verified", "new", 1, None).is_some());
}
