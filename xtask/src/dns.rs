//! `CoreDNS` (`tests/coredns`) and the resolvers that ask it: Go's own and the musl C library's. That
//! of this machine's C library is built by cargo, from the same file as musl's.

use crate::go_module::{Missing, Module};
use crate::step::{self, say};
use crate::toolchain::{self, stdout};
use crate::workspace;
use anyhow::{Context, Result, bail};
pub(crate) use lb_lab::dns::VARIABLE;
use lb_lab::dns::{MUSL, PROGRAMS};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

const MODULE: Module = Module {
    name: "coredns",
    programs: &PROGRAMS,
    title: "CoreDNS and Go's resolver (Go, half a minute, once)",
};

/// Brings what builds the programs; what cannot be had is said by [`programs`].
pub(crate) fn tools() {
    MODULE.tools();
    drop(musl());
}

/// The directory with the programs, built unless they are there.
pub(crate) fn programs() -> Result<PathBuf, Missing> {
    let built = MODULE.programs()?;
    let target = musl().map_err(Missing::Tools)?;
    let dir = workspace::target().join("dns");
    gather(&built, &target, &dir).map_err(Missing::Build)?;
    Ok(dir)
}

/// Puts all of them into `dir`. Those that run there go on: each is replaced in one go.
fn gather(built: &Path, target: &str, dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let place = |name: &str, fresh: &Path| {
        fs::rename(fresh, dir.join(name))
            .with_context(|| format!("cannot put {name} into {}", dir.display()))
    };
    let fresh = dir.join(format!("fresh-{}", std::process::id()));
    for name in PROGRAMS {
        symlink(built.join(name), &fresh)
            .with_context(|| format!("cannot link {}", fresh.display()))?;
        place(name, &fresh)?;
    }
    let mut rustc = Command::new("rustc");
    rustc
        .current_dir(workspace::root())
        .args(["--edition", "2024", "--target", target])
        .args(["-C", "opt-level=1", "-C", "strip=symbols", "-o"])
        .arg(&fresh)
        .arg("tests/src/bin/resolve.rs");
    step::run(&mut rustc)?;
    place(MUSL, &fresh)
}

/// The target with musl, its standard library installed unless it is there. rustup's musl is of an
/// age that asks again over TCP (1.2.4); Debian's may not be.
fn musl() -> Result<String> {
    let host = toolchain::host().context("`rustc -vV` does not name this machine's target")?;
    let architecture = host.split('-').next().unwrap_or_default();
    let target = format!("{architecture}-unknown-linux-musl");
    let words = ["--print", "target-libdir", "--target", &target];
    let installed =
        || stdout("rustc", &words).is_some_and(|libraries| Path::new(libraries.trim()).is_dir());
    if !installed() {
        say(&format!(
            "installing with rustup: the standard library for {target} (a resolver of the tests)"
        ));
        let mut rustup = Command::new("rustup");
        step::run(
            rustup
                .current_dir(workspace::root())
                .args(["target", "add", &target]),
        )?;
    }
    if !installed() {
        bail!("rustc has no standard library for {target}: run `rustup target add {target}`");
    }
    Ok(target)
}
