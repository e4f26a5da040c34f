//! Which compiler and which linker build the eBPF object on this machine: a rustc with its library
//! sources, and a bpf-linker whose LLVM is at least as new as that rustc's. A linker with an older
//! LLVM fails with "Invalid record", which tells nobody anything.

use crate::workspace;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the workspace's `rust-version` and aya's crates ask for.
const MINIMUM: (u32, u32) = (1, 89);
/// LLVM versions that bpf-linker 0.13.0 has features for.
pub(crate) const LINKER_LLVMS: std::ops::RangeInclusive<u32> = 21..=23;
/// The linker's release; changing it may change what the verifier sees.
pub(crate) const LINKER_VERSION: &str = "0.13.0";

/// A rustc that has its library sources beside it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Compiler {
    pub(crate) rustc: PathBuf,
    pub(crate) cargo: PathBuf,
    pub(crate) versions: Versions,
}

/// What `rustc -vV` says of itself.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Versions {
    pub(crate) release: String,
    pub(crate) llvm: u32,
}

impl Versions {
    /// Reads the output of `rustc -vV`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let field = |key| text.lines().find_map(|line| line.strip_prefix(key));
        let release = field("release: ")?.to_owned();
        let llvm = field("LLVM version: ")?.split('.').next()?.parse().ok()?;
        Some(Self { release, llvm })
    }

    fn new_enough(&self) -> bool {
        let mut parts = self
            .release
            .split('.')
            .map_while(|part| part.parse::<u32>().ok());
        matches!((parts.next(), parts.next()), (Some(major), Some(minor)) if (major, minor) >= MINIMUM)
    }
}

/// A bpf-linker and the LLVM it was built with.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Linker {
    pub(crate) path: PathBuf,
    pub(crate) llvm: u32,
}

/// A pair that fits.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Toolchain {
    pub(crate) compiler: Compiler,
    pub(crate) linker: Linker,
}

impl Toolchain {
    /// The one line that says which pair is used.
    pub(crate) fn describe(&self) -> String {
        let Self { compiler, linker } = self;
        format!(
            "eBPF toolchain: rustc {} with LLVM {} ({}), bpf-linker {LINKER_VERSION} with LLVM {} ({})",
            compiler.versions.release,
            compiler.versions.llvm,
            compiler.rustc.display(),
            linker.llvm,
            linker.path.display()
        )
    }
}

/// The compilers of this machine that can build `core` for BPF, the preferred first: rustup's
/// nightly, the distribution's, rustup's default.
pub(crate) fn compilers() -> Vec<Compiler> {
    let mut found = Vec::new();
    if stdout("rustup", &["toolchain", "list"]).is_some_and(|list| list.contains("nightly")) {
        found.extend(sysroot_of("rustup", &["run", "nightly", "rustc"]).and_then(|root| at(&root)));
    }
    found.extend(at(Path::new("/usr")));
    found.extend(sysroot_of("rustc", &[]).and_then(|root| at(&root)));
    found.dedup();
    found
}

fn sysroot_of(program: &str, words: &[&str]) -> Option<PathBuf> {
    let words = [words, &["--print", "sysroot"]].concat();
    stdout(program, &words).map(|text| PathBuf::from(text.trim()))
}

/// The compiler of `sysroot`, if it is new enough and its library sources are there.
fn at(sysroot: &Path) -> Option<Compiler> {
    let (rustc, cargo) = (sysroot.join("bin/rustc"), sysroot.join("bin/cargo"));
    let sources = sysroot.join("lib/rustlib/src/rust/library/core");
    if !(sources.is_dir() && cargo.is_file()) {
        return None;
    }
    let versions = Versions::parse(&stdout(rustc.as_os_str(), &["-vV"])?)?;
    versions.new_enough().then_some(Compiler {
        rustc,
        cargo,
        versions,
    })
}

/// Where `cargo xtask` puts a linker of its own, so that nobody else's is replaced.
pub(crate) fn own_linker_root(llvm: u32) -> PathBuf {
    workspace::target().join(format!("tools/bpf-linker-{LINKER_VERSION}-llvm-{llvm}"))
}

/// The linkers of this machine of the release we use.
pub(crate) fn linkers() -> Vec<Linker> {
    let own = LINKER_LLVMS.map(|llvm| own_linker_root(llvm).join("bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")));
    own.chain(std::env::split_paths(&path).collect::<Vec<_>>())
        .chain(home.map(|home| home.join("bin")))
        .filter_map(|dir| linker_at(dir.join("bpf-linker")))
        .collect()
}

fn linker_at(path: PathBuf) -> Option<Linker> {
    if !path.is_file() || !stdout(path.as_os_str(), &["--version"])?.contains(LINKER_VERSION) {
        return None;
    }
    // A linker with LLVM linked in statically does not say which: ours are dynamic.
    let llvm = llvm_library(&stdout("ldd", &[path.to_str()?])?)?;
    Some(Linker { path, llvm })
}

/// The LLVM major that `ldd` shows: `libLLVM.so.22.1 => …` or `libLLVM-19.so.1 => …`.
fn llvm_library(ldd: &str) -> Option<u32> {
    let line = ldd
        .lines()
        .find_map(|line| line.trim().strip_prefix("libLLVM"))?;
    let digits = line.trim_start_matches(['-', '.', 's', 'o']);
    digits
        .split(|c: char| !c.is_ascii_digit())
        .next()?
        .parse()
        .ok()
}

/// The first compiler for which some linker fits, with that linker.
pub(crate) fn choose(compilers: &[Compiler], linkers: &[Linker]) -> Option<Toolchain> {
    compilers.iter().find_map(|compiler| {
        let fits = |linker: &&Linker| linker.llvm >= compiler.versions.llvm;
        let linker = linkers
            .iter()
            .filter(fits)
            .min_by_key(|linker| linker.llvm)?;
        Some(Toolchain {
            compiler: compiler.clone(),
            linker: linker.clone(),
        })
    })
}

/// What `program` prints, or nothing where it is missing or fails. cargo hands its own environment
/// down; another toolchain must not see it.
pub(crate) fn stdout(program: impl AsRef<std::ffi::OsStr>, words: &[&str]) -> Option<String> {
    let mut command = Command::new(program);
    clean(command.args(words));
    let out = command.output().ok()?;
    out.status
        .success()
        .then(|| String::from_utf8_lossy(&out.stdout).into_owned())
}

/// Removes what `cargo run` set for us.
pub(crate) fn clean(command: &mut Command) -> &mut Command {
    for name in [
        "RUSTUP_TOOLCHAIN",
        "LD_LIBRARY_PATH",
        "RUSTFLAGS",
        "RUSTC",
        "CARGO",
    ] {
        command.env_remove(name);
    }
    command
}

/// The target of this machine's own compiler, as `x86_64-unknown-linux-gnu`.
pub(crate) fn host() -> Option<String> {
    let text = stdout("rustc", &["-vV"])?;
    let line = text.lines().find_map(|line| line.strip_prefix("host: "))?;
    Some(line.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEBIAN: &str = "rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)\n\
                          binary: rustc\nrelease: 1.96.0\nLLVM version: 22.1.8\n";

    fn compiler(release: &str, llvm: u32) -> Compiler {
        Compiler {
            rustc: "/usr/bin/rustc".into(),
            cargo: "/usr/bin/cargo".into(),
            versions: Versions {
                release: release.into(),
                llvm,
            },
        }
    }

    fn linker(llvm: u32) -> Linker {
        Linker {
            path: format!("/l{llvm}").into(),
            llvm,
        }
    }

    #[test]
    fn a_compiler_s_release_and_llvm_are_read_from_its_verbose_version() {
        let versions = Versions::parse(DEBIAN).unwrap();
        assert_eq!(
            versions,
            Versions {
                release: "1.96.0".into(),
                llvm: 22
            }
        );
        assert!(versions.new_enough());
    }

    #[test]
    fn a_nightly_is_judged_by_its_numbers_and_an_old_release_is_refused() {
        let new = Versions {
            release: "1.97.0-nightly".into(),
            llvm: 22,
        };
        let old = Versions {
            release: "1.85.0".into(),
            llvm: 19,
        };
        assert!(new.new_enough() && !old.new_enough());
    }

    #[test]
    fn a_linker_with_an_older_llvm_than_the_compiler_is_never_chosen() {
        assert_eq!(choose(&[compiler("1.99.0", 23)], &[linker(22)]), None);
    }

    #[test]
    fn the_first_compiler_with_a_fitting_linker_wins_and_the_nearest_linker_with_it() {
        let compilers = [compiler("1.99.0-nightly", 23), compiler("1.96.0", 22)];
        let chosen = choose(&compilers, &[linker(21), linker(22)]).unwrap();
        assert_eq!(
            (chosen.compiler.versions.llvm, chosen.linker.llvm),
            (22, 22)
        );
        let chosen = choose(&compilers, &[linker(22), linker(23)]).unwrap();
        assert_eq!(
            (chosen.compiler.versions.llvm, chosen.linker.llvm),
            (23, 23)
        );
    }

    #[test]
    fn the_linker_s_llvm_is_read_from_its_shared_libraries() {
        let new = "\tlinux-vdso.so.1\n\tlibLLVM.so.22.1 => /usr/lib/llvm-22/lib/libLLVM.so.22.1\n";
        assert_eq!(llvm_library(new), Some(22));
        assert_eq!(llvm_library("\tlibLLVM-19.so.1 => /x\n"), Some(19));
        assert_eq!(llvm_library("\tstatically linked\n"), None);
    }
}
