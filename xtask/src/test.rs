//! `cargo xtask test`: everything that proves the project, and one summary at the end.

use crate::go_module::Missing;
use crate::second_try::{self, Tests};
use crate::step::{self, cargo, say};
use crate::vm::{self, Outcome as VmOutcome};
use crate::workspace::{self, Flavour};
use crate::{TestArgs, build, control_plane, dns, setup};
use anyhow::{Context, Result, anyhow, bail};
use std::fmt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

/// How a part ended.
#[derive(Debug)]
enum Outcome {
    Passed,
    /// These tests failed beside others and passed alone.
    PassedAlone(Vec<String>),
    /// Not run, for a reason that is no fault of the project.
    Skipped(String),
    Failed(String),
}

#[derive(Default)]
struct Report(Vec<(&'static str, Outcome, Duration)>);

impl Report {
    /// Runs one part; later parts run whatever became of it.
    fn part(&mut self, name: &'static str, work: impl FnOnce() -> Result<()>) {
        self.outcome(name, || match work() {
            Ok(()) => Outcome::Passed,
            Err(error) => Outcome::Failed(format!("{error:#}")),
        });
    }

    fn outcome(&mut self, name: &'static str, work: impl FnOnce() -> Outcome) {
        say(name);
        let start = Instant::now();
        let outcome = work();
        if let Outcome::Failed(reason) = &outcome {
            eprintln!("{name}: {reason}");
        }
        self.0.push((name, outcome, start.elapsed()));
    }

    fn failed(&self) -> bool {
        self.0
            .iter()
            .any(|(_, outcome, _)| matches!(outcome, Outcome::Failed(_)))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, outcome, took) in &self.0 {
            let (word, reason) = match outcome {
                Outcome::Passed => ("passed", String::new()),
                Outcome::PassedAlone(tests) => (
                    "passed",
                    format!("UNSTEADY, at the second try: {}", tests.join(", ")),
                ),
                Outcome::Skipped(reason) => ("skipped", reason.clone()),
                Outcome::Failed(reason) => (
                    "FAILED",
                    reason.lines().next().unwrap_or_default().to_owned(),
                ),
            };
            writeln!(f, "{word:8} {:>5} s  {name}  {reason}", took.as_secs())?;
        }
        let count = |wanted: fn(&Outcome) -> bool| {
            self.0
                .iter()
                .filter(|(_, outcome, _)| wanted(outcome))
                .count()
        };
        write!(
            f,
            "{} parts passed, {} failed, {} skipped",
            count(|outcome| matches!(outcome, Outcome::Passed | Outcome::PassedAlone(_))),
            count(|outcome| matches!(outcome, Outcome::Failed(_))),
            count(|outcome| matches!(outcome, Outcome::Skipped(_)))
        )
    }
}

fn run_all(args: &TestArgs) -> Report {
    let mut report = Report::default();
    report.part("formatting", formatting);
    if args.host {
        report.part("lints", lints);
        report.part("host tests", || {
            step::run(&mut cargo([
                "test",
                "--quiet",
                "--workspace",
                "--exclude",
                "lb-tests",
            ]))
        });
        report.part("host tests of the labs' own code", || {
            step::run(&mut cargo([
                "test",
                "--quiet",
                "--package",
                "lb-tests",
                "--lib",
                "--bins",
            ]))
        });
        report.part("cases", || step::run(&mut cases_command(&project_cases()?)));
        return report;
    }
    report.part("tools", || {
        setup::test_tools()?;
        control_plane::MODULE.tools();
        dns::tools();
        Ok(())
    });
    // Built while the other parts want one processor, too: it takes minutes, once.
    let programs = std::thread::spawn(|| [control_plane::MODULE.programs(), dns::programs()]);
    report.part("eBPF objects", build::objects);
    report.part("lints", lints);
    report.part("lints of the eBPF crate", ebpf_lints);
    report.part("agent and tests", || {
        let mut everything = workspace_tests();
        step::run(everything.args(["--no-run"]))?;
        let mut apart = workspace_tests();
        step::run(apart.args(named_apart()).args(["--no-run"]))
    });
    report.outcome("host and kernel tests", || {
        kernel_tests(workspace_tests().arg("--no-fail-fast"))
    });
    let [plane, names] = programs.join().unwrap_or_else(|_| {
        let panicked = || Missing::Build(anyhow!("the thread that builds them panicked"));
        [Err(panicked()), Err(panicked())]
    });
    report.outcome("tests on a real control plane", || {
        with_programs(&ON_CONTROL_PLANE, &[(control_plane::VARIABLE, &plane)])
    });
    if args.slow {
        report.outcome("tests that take ten minutes", || slow(&plane));
    }
    report.outcome("CoreDNS and resolvers on a real control plane", || {
        let programs = [(control_plane::VARIABLE, &plane), (dns::VARIABLE, &names)];
        with_programs(&WITH_NAMES, &programs)
    });
    report.part("cases", || {
        let mut cases = Command::new(workspace::target().join("debug/cases"));
        step::run(cases.args(project_cases()?))
    });
    report.outcome("smoke test on other kernels", || {
        match vm::built_smoke(&crate::default_kernels()) {
            Ok(VmOutcome::Passed) => Outcome::Passed,
            Ok(VmOutcome::Skipped(reason)) => Outcome::Skipped(reason),
            Err(error) => Outcome::Failed(format!("{error:#}")),
        }
    });
    report
}

/// Tests that need programs which cargo does not build; a plain `cargo test` leaves them out.
const ON_CONTROL_PLANE: [&str; 5] = [
    "control_plane",
    "control_plane_demo",
    "control_plane_outage",
    "application",
    "upstream_services",
];
/// Those that need name servers and resolvers, too.
const WITH_NAMES: [&str; 1] = ["dns"];

fn named<'a>(tests: &[&'a str]) -> impl Iterator<Item = &'a str> {
    tests.iter().flat_map(|test| ["--test", test])
}

fn named_apart() -> impl Iterator<Item = &'static str> {
    named(&ON_CONTROL_PLANE).chain(named(&WITH_NAMES))
}

/// Tests of the workspace, never of one package: for other packages cargo chooses other features, and
/// would build the agent and half of what it is made of once more. Brings the workspace's programs, too.
fn workspace_tests() -> Command {
    cargo(["test", "--quiet", "--workspace"])
}

/// Runs tests that find programs by variables.
fn with_programs(names: &[&str], programs: &[(&str, &Result<PathBuf, Missing>)]) -> Outcome {
    let mut tests = workspace_tests();
    tests.arg("--no-fail-fast").args(named(names));
    for (variable, programs) in programs {
        match programs {
            Ok(directory) => {
                tests.env(variable, directory);
            }
            Err(missing @ Missing::Tools(_)) => return Outcome::Skipped(missing.to_string()),
            Err(missing @ Missing::Build(_)) => return Outcome::Failed(missing.to_string()),
        }
    }
    kernel_tests(&mut tests)
}

/// Runs tests that take as long as what they are about.
fn slow(plane: &Result<PathBuf, Missing>) -> Outcome {
    let Ok(programs) = plane else {
        return Outcome::Skipped("there is no control plane".to_owned());
    };
    let mut tests = workspace_tests();
    tests
        .args(["--test", "control_plane_outage"])
        .args(["--", "--ignored", "--nocapture"])
        .env(control_plane::VARIABLE, programs)
        .env("LB_AGENT_BIN", workspace::target().join("debug/lb-agent"));
    match step::run(&mut tests) {
        Ok(()) => Outcome::Passed,
        Err(error) => Outcome::Failed(format!("{error:#}")),
    }
}

/// Runs tests that need the agent.
fn kernel_tests(tests: &mut Command) -> Outcome {
    tests.env("LB_AGENT_BIN", workspace::target().join("debug/lb-agent"));
    match second_try::run(tests) {
        Ok(Tests::Passed) => Outcome::Passed,
        Ok(Tests::AtSecondTry(names)) => Outcome::PassedAlone(names),
        Err(error) => Outcome::Failed(format!("{error:#}")),
    }
}

/// Runs every part and prints the summary.
pub(crate) fn run(args: &TestArgs) -> Result<ExitCode> {
    if !args.host && !nix::unistd::geteuid().is_root() {
        bail!(
            "the kernel tests make network namespaces and load eBPF programs, which needs root: \
             run `sudo -E env \"PATH=$PATH\" cargo xtask test`, or `cargo xtask test --host` for \
             the part that needs none"
        );
    }
    setup::host_compiler()?;
    let report = run_all(args);
    println!("\n{report}");
    Ok(if report.failed() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn formatting() -> Result<()> {
    step::run(&mut cargo(["fmt", "--all", "--check"]))?;
    step::run(&mut cargo([
        "fmt",
        "--manifest-path",
        "lb-ebpf/Cargo.toml",
        "--check",
    ]))
}

fn lints() -> Result<()> {
    let mut all = cargo(["clippy", "--quiet", "--workspace", "--all-targets"]);
    step::run(all.args(["--", "-D", "warnings"]))?;
    // Not among all targets for cargo, because it does not run them unasked.
    let mut apart = cargo(["clippy", "--quiet", "--workspace"]);
    step::run(apart.args(named_apart()).args(["--", "-D", "warnings"]))
}

/// The eBPF crate is linted by the clippy of the compiler that builds it, where there is one.
fn ebpf_lints() -> Result<()> {
    let toolchain = setup::ebpf_toolchain()?;
    setup::ebpf_clippy(&toolchain)?;
    let mut command = build::compile(&toolchain, Flavour::Default, "clippy")?;
    step::run(command.args(["--quiet", "--", "-D", "warnings"]))
}

/// The case files that the repository carries.
fn project_cases() -> Result<Vec<PathBuf>> {
    let dir = workspace::root().join("tests/conformance/cases");
    let mut files: Vec<PathBuf> = dir
        .read_dir()
        .with_context(|| format!("cannot read {}", dir.display()))?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "json")
        })
        .collect();
    files.sort();
    Ok(files)
}

fn cases_command(files: &[PathBuf]) -> Command {
    let mut command = cargo([
        "run",
        "--quiet",
        "--package",
        "lb-tests",
        "--bin",
        "cases",
        "--",
    ]);
    command.args(files);
    command
}

/// `cargo xtask cases`: the runner's output and exit code are its own.
pub(crate) fn cases(files: &[PathBuf]) -> Result<ExitCode> {
    run_cases(cases_command(&resolved(files)?))
}

/// `cargo xtask cases --kernel`: the same on the kernel, with an agent that is built before.
pub(crate) fn replay(files: &[PathBuf], only: Option<&str>) -> Result<ExitCode> {
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "replaying cases on the kernel makes network namespaces and loads eBPF programs, which \
             needs root: run `sudo -E env \"PATH=$PATH\" cargo xtask cases --kernel FILE…`, or leave \
             out --kernel for the host"
        );
    }
    setup::host_compiler()?;
    setup::test_tools()?;
    build::objects()?;
    step::run(&mut cargo(["build", "--quiet", "--package", "lb-agent"]))?;
    let mut command = cases_command(&resolved(files)?);
    command.arg("--kernel");
    if let Some(only) = only {
        command.args(["--only", only]);
    }
    command.env("LB_AGENT_BIN", workspace::target().join("debug/lb-agent"));
    run_cases(command)
}

/// The runner starts at the root of the workspace; the names were typed elsewhere.
fn resolved(files: &[PathBuf]) -> Result<Vec<PathBuf>> {
    files
        .iter()
        .map(|file| std::path::absolute(file).context("cannot resolve a case file's name"))
        .collect()
}

fn run_cases(mut command: Command) -> Result<ExitCode> {
    let status = command.status().context("cannot start the case runner")?;
    Ok(u8::try_from(status.code().unwrap_or(1)).map_or(ExitCode::FAILURE, ExitCode::from))
}
