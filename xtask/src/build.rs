//! Builds the eBPF objects and the agent that carries them.

use crate::step::{self, say};
use crate::toolchain::{self, Toolchain};
use crate::workspace::{self, Flavour};
use crate::{elf, setup};
use anyhow::{Context, Result, bail};
use std::ffi::OsString;
use std::fs;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// Builds both objects and `target/release/lb-agent`, and returns the latter's path.
pub(crate) fn everything() -> Result<PathBuf> {
    objects()?;
    let target = toolchain::host().context("`rustc -vV` does not name this machine's target")?;
    // Naming the target keeps the flag from build scripts and macros, which cannot be static.
    step::timed(
        "agent (release)",
        step::cargo(["build", "--release", "--package", "lb-agent"])
            .args(["--target", &target])
            .args([
                "--config",
                "build.rustflags=['-Ctarget-feature=+crt-static']",
            ]),
    )?;
    let built = workspace::target().join(target).join("release/lb-agent");
    let agent = workspace::target().join("release/lb-agent");
    place(&built, &agent)?;
    say(&format!("built {}", agent.display()));
    Ok(agent)
}

/// Copies a program that needs no library beside it; whoever runs the old one keeps it.
fn place(built: &Path, agent: &Path) -> Result<()> {
    let binary = fs::read(built).with_context(|| format!("cannot read {}", built.display()))?;
    if elf::has_interpreter(&binary).with_context(|| format!("in {}", built.display()))? {
        bail!(
            "{} needs shared libraries: a node may have none of them",
            built.display()
        );
    }
    let failed = || format!("cannot make {}", agent.display());
    if let Some(dir) = agent.parent() {
        fs::create_dir_all(dir).with_context(failed)?;
    }
    let fresh = agent.with_extension("new");
    fs::copy(built, &fresh).with_context(failed)?;
    fs::rename(&fresh, agent).with_context(failed)
}

/// The agent to run: a prebuilt one that `LB_AGENT_BIN` names, else what [`everything`] builds.
pub(crate) fn agent() -> Result<PathBuf> {
    let Some(prebuilt) = std::env::var_os("LB_AGENT_BIN") else {
        return everything();
    };
    // Relative to the directory it was typed in, which the agent's own need not be.
    let agent = std::path::absolute(&prebuilt).context("cannot resolve LB_AGENT_BIN")?;
    if !agent.is_file() {
        bail!(
            "LB_AGENT_BIN={} is not a file: unset it, and the agent is built",
            agent.display()
        );
    }
    say(&format!("agent: prebuilt {}", agent.display()));
    Ok(agent)
}

/// Builds both eBPF objects side by side, for most of it is one long link; or takes prebuilt ones.
pub(crate) fn objects() -> Result<()> {
    let mut missing = Vec::new();
    for flavour in Flavour::ALL {
        match std::env::var_os(flavour.variable()) {
            Some(prebuilt) => take(flavour, Path::new(&prebuilt))?,
            None => missing.push(flavour),
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let toolchain = setup::ebpf_toolchain()?;
    say(&toolchain.describe());
    let commands: Vec<(Flavour, Command)> = (missing.iter())
        .map(|flavour| Ok((*flavour, compile(&toolchain, *flavour, "build")?)))
        .collect::<Result<_>>()?;
    std::thread::scope(|scope| {
        let builds: Vec<_> = (commands.into_iter())
            .map(|(flavour, mut command)| {
                scope.spawn(move || {
                    step::timed(flavour.title(), &mut command)?;
                    finish(flavour)
                })
            })
            .collect();
        // Waits for all of them, whatever becomes of the first.
        let ends: Vec<Result<()>> = (builds.into_iter())
            .map(|build| build.join().unwrap_or_else(|panic| resume_unwind(panic)))
            .collect();
        ends.into_iter().collect()
    })
}

/// Builds the objects only where one is missing.
pub(crate) fn objects_unless_there() -> Result<()> {
    if Flavour::ALL
        .iter()
        .all(|flavour| flavour.object().is_file())
    {
        return Ok(());
    }
    objects()
}

/// Takes the prebuilt object `prebuilt`.
fn take(flavour: Flavour, prebuilt: &Path) -> Result<()> {
    let object = flavour.object();
    say(&format!(
        "{}: prebuilt {}",
        flavour.title(),
        prebuilt.display()
    ));
    if let Some(dir) = object.parent() {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    fs::copy(prebuilt, &object).with_context(|| {
        format!(
            "cannot copy {} (named by {})",
            prebuilt.display(),
            flavour.variable()
        )
    })?;
    finish(flavour)
}

/// The cargo command for lb-ebpf with `verb`.
pub(crate) fn compile(toolchain: &Toolchain, flavour: Flavour, verb: &str) -> Result<Command> {
    compile_in(
        toolchain,
        flavour,
        verb,
        &workspace::root(),
        &flavour.target(),
    )
}

/// The same for another copy of the tree, built elsewhere.
pub(crate) fn compile_in(
    toolchain: &Toolchain,
    flavour: Flavour,
    verb: &str,
    root: &Path,
    target: &Path,
) -> Result<Command> {
    let Toolchain { compiler, linker } = toolchain;
    let mut cargo = Command::new(&compiler.cargo);
    toolchain::clean(&mut cargo);
    // Legacy: below v3 LLVM emits no atomics that 5.10 would not know.
    let cpu = match flavour {
        Flavour::Default => "v3",
        Flavour::Legacy => "v2",
    };
    let flags = [
        &format!("-Ctarget-cpu={cpu}"),
        "-Cdebuginfo=2",
        &format!("-Clinker={}", linker.path.display()),
        "-Clink-arg=--btf",
    ];
    let linker_dir = linker
        .path
        .parent()
        .context("the linker has no directory")?;
    let compiler_dir = compiler.cargo.parent().context("cargo has no directory")?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    // The compiler's own cargo-clippy must be found before one of another toolchain beside the
    // linker.
    let path = [compiler_dir, linker_dir]
        .into_iter()
        .map(Path::to_owned)
        .chain(std::env::split_paths(&path));
    cargo
        .args([
            verb,
            "--release",
            "-Zbuild-std=core",
            "--target",
            "bpfel-unknown-none",
        ])
        .arg("--target-dir")
        .arg(target)
        .current_dir(root.join("lb-ebpf"))
        .env("RUSTC", &compiler.rustc)
        // -Zbuild-std on a release compiler: the sources beside it are its own.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .env("PATH", std::env::join_paths(path).context("PATH")?);
    if flavour == Flavour::Legacy {
        cargo.arg("--no-default-features");
    }
    Ok(cargo)
}

/// Checks an object and leaves out its DWARF, which the linker needs to make BTF and the agent would carry in its
/// memory. The compiler's own copy, below `deps`, keeps it.
fn finish(flavour: Flavour) -> Result<()> {
    let path = flavour.object();
    let object = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let inside = || format!("in {}", path.display());
    let symbols = elf::symbols(&object).with_context(inside)?;
    // It would hold a branch the verifier may reach and nobody thought of.
    let panics: Vec<&String> = symbols
        .iter()
        .filter(|name| name.contains("panicking") || name.contains("panic_"))
        .collect();
    if !panics.is_empty() {
        bail!(
            "{} can panic: it has the symbols {panics:?}",
            path.display()
        );
    }
    let small = elf::without_debug(&object).with_context(inside)?;
    if small != object {
        replace(&path, &small)?;
    }
    Ok(())
}

/// Replaces a file at once. It stays as old as it was: cargo puts the compiler's copy here again with every
/// build, and what is made from this file would be made anew.
fn replace(path: &Path, content: &[u8]) -> Result<()> {
    let failed = || format!("cannot replace {}", path.display());
    let age = fs::metadata(path).and_then(|old| old.modified());
    let age = age.with_context(failed)?;
    let fresh = path.with_extension("small");
    fs::write(&fresh, content).with_context(failed)?;
    fs::File::options()
        .write(true)
        .open(&fresh)
        .and_then(|file| file.set_modified(age))
        .with_context(failed)?;
    fs::rename(&fresh, path).with_context(failed)
}

/// Builds for release and runs the benchmark.
pub(crate) fn bench(arguments: &[OsString]) -> Result<ExitCode> {
    lb_privileges("bench")?;
    setup::lab_tools()?;
    let agent = everything()?;
    let mut bench = step::cargo([
        "run",
        "--release",
        "--package",
        "lb-tests",
        "--bin",
        "bench",
    ]);
    bench.arg("--").args(arguments).env("LB_AGENT_BIN", agent);
    step::timed("benchmark", &mut bench)?;
    Ok(ExitCode::SUCCESS)
}

/// Fails with one sentence unless this is root.
pub(crate) fn lb_privileges(verb: &str) -> Result<()> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    bail!(
        "`cargo xtask {verb}` makes network namespaces and loads eBPF programs, which needs root: \
         run `sudo -E env \"PATH=$PATH\" cargo xtask {verb}`"
    )
}
