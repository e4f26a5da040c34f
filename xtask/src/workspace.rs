//! Where things are in the workspace.

use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

/// The root of the workspace.
pub(crate) fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_owned()
}

/// The target directory (the default one: `CARGO_TARGET_DIR` moves it).
pub(crate) fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// The two eBPF objects: one for today's kernels, one for those before 5.12.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Flavour {
    /// Instruction set v3, compare-and-swap on map memory.
    Default,
    /// Instruction set v2, no atomics with a result.
    Legacy,
}

impl Flavour {
    pub(crate) const ALL: [Self; 2] = [Self::Default, Self::Legacy];

    /// Its cargo target directory.
    pub(crate) fn target(self) -> PathBuf {
        target().join(match self {
            Self::Default => "ebpf",
            Self::Legacy => "ebpf-legacy",
        })
    }

    /// Where the object is after a build.
    pub(crate) fn object(self) -> PathBuf {
        self.target().join("bpfel-unknown-none/release/lb-ebpf")
    }

    /// The variable that names a prebuilt object.
    pub(crate) fn variable(self) -> &'static str {
        match self {
            Self::Default => "LB_EBPF_OBJECT",
            Self::Legacy => "LB_EBPF_OBJECT_LEGACY",
        }
    }

    /// What a person is told it is.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Default => "eBPF object",
            Self::Legacy => "eBPF object for kernels before 5.12",
        }
    }
}

/// The cargo that runs us.
pub(crate) fn cargo() -> PathBuf {
    std::env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from)
}

/// Where what is not of this checkout is kept.
pub(crate) fn cache() -> Result<PathBuf> {
    let base = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))
        .context("neither XDG_CACHE_HOME nor HOME is set: there is no place for a cache")?;
    Ok(base.join("lb-control-plane"))
}
