//! `cargo xtask mutants`: removes conditions of the core, one at a time, in a copy of the tree, and
//! tells which test on the host and which in the kernel notices. Too slow for every commit.

mod list;

use crate::step::{self, cargo, say};
use crate::workspace::{self, Flavour};
use crate::{build, setup};
use anyhow::{Context, Result, bail, ensure};
use list::{ALL, Mutant};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// How long one step may take in seconds: a mutant may never come to an end.
const LIMIT: &str = "900";

/// A copy of the tree, and where it is built.
struct Scratch {
    tree: PathBuf,
    target: PathBuf,
}

/// Who noticed a mutant.
struct Noticed {
    host: Vec<String>,
    kernel: Vec<String>,
}

/// Runs the mutants whose name or file has `only` in it.
pub(crate) fn run(only: Option<&str>) -> Result<ExitCode> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "the kernel tests load eBPF programs, which needs root: run `sudo -E env \"PATH=$PATH\" cargo \
         xtask mutants`"
    );
    setup::host_compiler()?;
    let toolchain = setup::ebpf_toolchain()?;
    let chosen: Vec<&Mutant> = ALL
        .iter()
        .filter(|mutant| {
            only.is_none_or(|word| mutant.name.contains(word) || mutant.file.contains(word))
        })
        .collect();
    let scratch = Scratch::copy()?;
    let binaries = test_binaries(&chosen)?;
    let mut survived = 0;
    for mutant in &chosen {
        let path = scratch.tree.join("lb-common/src").join(mutant.file);
        let whole = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        ensure!(
            whole.matches(mutant.text).count() == 1,
            "mutant “{}”: its text is not there once in {}: bring xtask/src/mutants/list.rs in step",
            mutant.name,
            mutant.file
        );
        fs::write(&path, whole.replacen(mutant.text, mutant.replacement, 1))?;
        let object = build::compile_in(
            &toolchain,
            Flavour::Default,
            "build",
            &scratch.tree,
            &scratch.target.join("ebpf"),
        );
        let noticed = object.and_then(|object| scratch.try_out(mutant, object, &binaries));
        fs::write(&path, whole)?;
        let noticed = noticed?;
        let killed = !noticed.host.is_empty() && !noticed.kernel.is_empty();
        survived += usize::from(!killed);
        let word = if killed { "killed  " } else { "SURVIVED" };
        println!("{word} {}", mutant.name);
        println!("         host: {}", told(&noticed.host));
        println!("         kernel: {}", told(&noticed.kernel));
    }
    println!("{} killed, {survived} survived", chosen.len() - survived);
    Ok(if survived == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The first of these tests, and how many more there are.
fn told(tests: &[String]) -> String {
    match tests {
        [] => "nobody noticed".to_owned(),
        [one] => one.clone(),
        [one, more @ ..] => format!("{one} and {} more", more.len()),
    }
}

impl Scratch {
    /// Copies every tracked file that is not there already as it is.
    fn copy() -> Result<Self> {
        let (root, place) = (workspace::root(), workspace::target().join("mutants"));
        let tree = place.join("tree");
        let mut list = Command::new("git");
        let listed = lb_lab::command::output(list.args(["ls-files", "-z"]).current_dir(&root))?;
        for name in listed.split('\0').filter(|name| !name.is_empty()) {
            let Ok(content) = fs::read(root.join(name)) else {
                continue;
            };
            let copy = tree.join(name);
            if fs::read(&copy).is_ok_and(|there| there == content) {
                continue;
            }
            let dir = copy.parent().unwrap_or(&tree);
            fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
            fs::write(&copy, content)
                .with_context(|| format!("cannot write {}", copy.display()))?;
        }
        Ok(Self {
            tree,
            target: place.join("target"),
        })
    }

    /// Builds what has changed and asks the tests.
    fn try_out(
        &self,
        mutant: &Mutant,
        mut object: Command,
        binaries: &BTreeMap<&str, PathBuf>,
    ) -> Result<Noticed> {
        say(mutant.name);
        let mut host = Command::new("timeout");
        host.args(["--kill-after", "10", LIMIT]);
        host.arg(workspace::cargo())
            .args(["test", "--package", "lb-common", "--lib", "--no-fail-fast"])
            .current_dir(&self.tree)
            .env("CARGO_TARGET_DIR", &self.target);
        let host = failures(&mut host)?;
        step::run(object.arg("--quiet"))
            .with_context(|| format!("the object with mutant “{}”", mutant.name))?;
        let (binary, filter) = mutant.kernel;
        let path = binaries.get(binary).context("the binary was built")?;
        let mut kernel = Command::new("timeout");
        kernel
            .args(["--kill-after", "10", LIMIT])
            .arg(path)
            .arg(filter)
            .current_dir(workspace::root().join("tests"))
            .env(
                Flavour::Default.variable(),
                self.target.join("ebpf/bpfel-unknown-none/release/lb-ebpf"),
            );
        let kernel = failures(&mut kernel)?;
        Ok(Noticed { host, kernel })
    }
}

/// The tests that failed in a run of the test harness.
fn failures(command: &mut Command) -> Result<Vec<String>> {
    let shown = lb_lab::command::show(command);
    let output = command
        .output()
        .with_context(|| format!("cannot start `{shown}`"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let failed = text.lines().filter_map(|line| {
        let name = line.strip_prefix("test ")?.strip_suffix(" ... FAILED")?;
        Some(name.to_owned())
    });
    let failed: Vec<String> = failed.collect();
    if !text.contains("running ") {
        bail!(
            "`{shown}` did not come to run tests: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    ensure!(
        !text.contains("running 0 tests"),
        "`{shown}` has no such test: bring xtask/src/mutants/list.rs in step"
    );
    if failed.is_empty() && output.status.code() == Some(124) {
        return Ok(vec!["the time limit".to_owned()]);
    }
    Ok(failed)
}

/// Builds the kernel tests, from the tree as it is, and tells where each binary lies.
fn test_binaries(mutants: &[&Mutant]) -> Result<BTreeMap<&'static str, PathBuf>> {
    let names: BTreeSet<&'static str> = mutants.iter().map(|mutant| mutant.kernel.0).collect();
    let mut command = cargo(["test", "--no-run", "--package", "lb-tests"]);
    for name in &names {
        command.args(["--test", name]);
    }
    let output = command.output().context("cannot start cargo")?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "the kernel tests do not build: {text}"
    );
    let find = |name: &'static str| {
        let wanted = format!("Executable tests/{name}.rs (");
        let line = text
            .lines()
            .find_map(|line| line.trim().strip_prefix(&*wanted));
        let path = line.and_then(|rest| rest.strip_suffix(')'));
        let path = path.with_context(|| format!("cargo does not tell where {name} lies"))?;
        Ok((name, workspace::root().join(Path::new(path))))
    };
    names.into_iter().map(find).collect()
}

#[cfg(test)]
mod tests {
    use super::{ALL, workspace};
    use std::collections::BTreeSet;
    use std::fs;

    #[test]
    fn every_mutant_names_what_is_there_once_and_tests_that_exist() {
        let root = workspace::root();
        let mut seen = BTreeSet::new();
        for mutant in ALL {
            assert!(seen.insert(mutant.name), "{} is there twice", mutant.name);
            let read = |path: String| fs::read_to_string(root.join(&path)).expect("a source file");
            let source = read(format!("lb-common/src/{}", mutant.file));
            let count = source.matches(mutant.text).count();
            assert_eq!(count, 1, "{} in {}", mutant.name, mutant.file);
            let (binary, filter) = mutant.kernel;
            let tests = read(format!("tests/tests/{binary}.rs"));
            let named = |line: &str| line.starts_with("fn ") && line.contains(filter);
            assert!(
                tests.lines().any(named),
                "{}: {binary} {filter}",
                mutant.name
            );
        }
    }
}
