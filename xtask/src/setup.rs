//! Installs what is missing: says what and why before it does it, and uses package names only.

use crate::step::{run, say};
use crate::toolchain::{self, LINKER_LLVMS, LINKER_VERSION, Toolchain};
use anyhow::{Context, Result, anyhow, bail};
use nix::unistd::geteuid;
use std::path::Path;
use std::process::Command;

/// A Debian package and why it is needed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Package {
    name: String,
    reason: &'static str,
}

fn package(name: impl Into<String>, reason: &'static str) -> Package {
    Package {
        name: name.into(),
        reason,
    }
}

/// What the tools of a lab and of the demo need.
pub(crate) fn lab_tools() -> Result<()> {
    let mut missing = Vec::new();
    if !(have("ip") && have("tc")) {
        missing.push(package(
            "iproute2",
            "makes the namespaces that stand for pods and nodes",
        ));
    }
    if !have("curl") {
        missing.push(package("curl", "runs the commands that the demo prints"));
    }
    install(&missing)
}

/// What only the tests need.
pub(crate) fn test_tools() -> Result<()> {
    lab_tools()?;
    let mut missing = Vec::new();
    if !have("nft") {
        missing.push(package(
            "nftables",
            "lays out the firewall rules that tests run beside",
        ));
    }
    if !have("bpftool") {
        missing.push(package(
            "bpftool",
            "looks for programs that a cleanup has left behind",
        ));
    }
    install(&missing)
}

/// What unpacks other kernels.
pub(crate) fn vm_tools() -> Result<()> {
    if have("xz") {
        return Ok(());
    }
    install(&[package("xz-utils", "unpacks the modules of other kernels")])
}

/// What unpacks a Go.
pub(crate) fn unzip() -> Result<()> {
    install(&[package("unzip", "unpacks the Go that is fetched")])
}

/// What compiling the agent needs besides cargo.
pub(crate) fn host_compiler() -> Result<()> {
    if have("cc") {
        return Ok(());
    }
    install(&[
        package(
            "gcc",
            "links Rust programs and compiles the assembly of the TLS library",
        ),
        package("libc6-dev", "holds what gcc links against"),
    ])
}

/// A compiler and a linker for the eBPF object, installed where they are missing.
pub(crate) fn ebpf_toolchain() -> Result<Toolchain> {
    host_compiler()?;
    if let Some(found) = toolchain::choose(&toolchain::compilers(), &toolchain::linkers()) {
        return Ok(found);
    }
    if toolchain::compilers()
        .iter()
        .all(|compiler| linker_package(compiler.versions.llvm).is_none())
    {
        install_compiler()?;
    }
    let compilers = toolchain::compilers();
    let (compiler, llvm) = compilers
        .iter()
        .find_map(|compiler| Some((compiler, linker_package(compiler.versions.llvm)?)))
        .ok_or_else(|| anyhow!("{}", no_compiler()))?;
    install_linker(llvm)?;
    toolchain::choose(std::slice::from_ref(compiler), &toolchain::linkers()).ok_or_else(|| {
        anyhow!(
            "bpf-linker was installed with LLVM {llvm}, and still no linker fits rustc's LLVM {}",
            compiler.versions.llvm
        )
    })
}

fn no_compiler() -> String {
    "no rustc with library sources can be had for the eBPF object: run `rustup toolchain install \
     nightly --component rust-src` (with an LLVM for which this machine has llvm-NN-dev), or name \
     a prebuilt object in LB_EBPF_OBJECT"
        .to_owned()
}

fn install_compiler() -> Result<()> {
    refresh()?;
    if candidate("rustc-web").is_none() {
        bail!("{}", no_compiler());
    }
    install(&[
        package(
            "rustc-web",
            "compiles the eBPF object (needs its library sources beside it)",
        ),
        package("cargo-web", "drives that compiler"),
        package(
            "rust-web-src",
            "the library sources: `core` is compiled for BPF with the object",
        ),
    ])
}

/// The lowest LLVM from `llvm` on whose development package is installed or can be.
fn linker_package(llvm: u32) -> Option<u32> {
    LINKER_LLVMS
        .filter(|version| *version >= llvm)
        .find(|version| {
            Path::new(&llvm_prefix(*version)).is_dir()
                || candidate(&llvm_package(*version)).is_some()
        })
}

fn llvm_prefix(llvm: u32) -> String {
    format!("/usr/lib/llvm-{llvm}")
}

fn llvm_package(llvm: u32) -> String {
    format!("llvm-{llvm}-dev")
}

fn install_linker(llvm: u32) -> Result<()> {
    if !Path::new(&llvm_prefix(llvm))
        .join("include/llvm-c")
        .is_dir()
    {
        install(&[
            package(llvm_package(llvm), "bpf-linker is built against it"),
            package("libzstd-dev", "LLVM's libraries link against it"),
            package("zlib1g-dev", "LLVM's libraries link against it"),
        ])?;
    }
    let root = toolchain::own_linker_root(llvm);
    say(&format!(
        "installing with cargo into {}: bpf-linker {LINKER_VERSION} (links the eBPF object; LLVM \
         {llvm} to fit the compiler)",
        root.display()
    ));
    let mut cargo = Command::new(crate::workspace::cargo());
    cargo
        .args([
            "install",
            "bpf-linker",
            "--locked",
            "--version",
            LINKER_VERSION,
        ])
        .args([
            "--no-default-features",
            "--features",
            &format!("llvm-{llvm}"),
            "--root",
        ])
        .arg(&root)
        .env("LLVM_PREFIX", llvm_prefix(llvm));
    run(&mut cargo)
}

/// The clippy of the distribution's compiler; rustup's toolchains bring their own.
pub(crate) fn ebpf_clippy(toolchain: &Toolchain) -> Result<()> {
    let beside = toolchain.compiler.cargo.with_file_name("cargo-clippy");
    if beside.is_file() {
        return Ok(());
    }
    install(&[package(
        "rust-web-clippy",
        "lints the eBPF crate with the compiler that builds it",
    )])
}

/// Installs packages with apt, after a list of them with their reasons.
fn install(packages: &[Package]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = packages
        .iter()
        .map(|package| package.name.as_str())
        .collect();
    if !have("apt-get") {
        bail!(
            "missing: {}: install what carries them here, there is no apt-get",
            names.join(", ")
        );
    }
    if !geteuid().is_root() {
        bail!(
            "missing: run `sudo apt-get install {}` and repeat",
            names.join(" ")
        );
    }
    say("installing with apt:");
    for Package { name, reason } in packages {
        eprintln!("      {name:16} {reason}");
    }
    refresh()?;
    let mut apt = Command::new("apt-get");
    apt.args(["install", "-y", "-q", "--no-install-recommends"])
        .args(&names);
    run(apt.env("DEBIAN_FRONTEND", "noninteractive")).context("cannot install packages")
}

/// Brings the package lists up to date, once a process.
fn refresh() -> Result<()> {
    static DONE: std::sync::Once = std::sync::Once::new();
    if DONE.is_completed() || !have("apt-get") || !geteuid().is_root() {
        return Ok(());
    }
    run(Command::new("apt-get").args(["update", "-q"])).context("cannot update package lists")?;
    DONE.call_once(|| {});
    Ok(())
}

/// The version apt would install.
fn candidate(package: &str) -> Option<String> {
    candidate_in(&toolchain::stdout("apt-cache", &["policy", package])?)
}

fn candidate_in(policy: &str) -> Option<String> {
    let version = policy
        .lines()
        .find_map(|line| line.trim().strip_prefix("Candidate: "))?;
    (version != "(none)").then(|| version.to_owned())
}

/// Whether `program` can be run.
pub(crate) fn have(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(Into::into))
        .any(|dir| dir.join(program).is_file())
}

#[cfg(test)]
mod tests {
    use super::candidate_in;

    #[test]
    fn a_package_without_a_candidate_is_not_to_be_had() {
        assert_eq!(
            candidate_in("x:\n  Installed: (none)\n  Candidate: (none)\n"),
            None
        );
        let policy = "rustc-web:\n  Installed: (none)\n  Candidate: 1.96.0+dfsg1-1~deb12u2\n";
        assert_eq!(
            candidate_in(policy).as_deref(),
            Some("1.96.0+dfsg1-1~deb12u2")
        );
        assert_eq!(candidate_in(""), None);
    }
}
