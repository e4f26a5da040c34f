//! Puts the eBPF objects into the agent's binary: a node needs no file beside it.
//!
//! An object that was not built is embedded as nothing, so that host checks compile anywhere;
//! `lb-agent run` then says so.

use std::path::{Path, PathBuf};
use std::{env, fs};

/// Environment variable, path below `target/`, name in `OUT_DIR`.
const OBJECTS: [(&str, &str, &str); 2] = [
    (
        "LB_EBPF_OBJECT",
        "ebpf/bpfel-unknown-none/release/lb-ebpf",
        "lb-ebpf",
    ),
    (
        "LB_EBPF_OBJECT_LEGACY",
        "ebpf-legacy/bpfel-unknown-none/release/lb-ebpf",
        "lb-ebpf-legacy",
    ),
];

fn main() {
    let out = PathBuf::from(variable("OUT_DIR"));
    let package = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    let workspace = package.parent().unwrap_or(&package).to_path_buf();
    println!("cargo::rerun-if-env-changed=CARGO_TARGET_DIR");
    // As `cargo xtask build` places them.
    let target = env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| workspace.join("target"), |dir| workspace.join(dir));
    for (name, built, embedded) in OBJECTS {
        println!("cargo::rerun-if-env-changed={name}");
        let source = match env::var_os(name) {
            Some(path) => PathBuf::from(path),
            None => target.join(built),
        };
        watch(&source, &workspace);
        let object = fs::read(&source).unwrap_or_default();
        let copy = out.join(embedded);
        if let Err(error) = fs::write(&copy, object) {
            panic!("cannot write {}: {error}", copy.display());
        }
    }
}

/// Cargo runs this script on every build while a watched path is missing; the nearest directory
/// that exists stands in for it, and changes when the object is built.
fn watch(source: &Path, workspace: &Path) {
    let existing = source
        .ancestors()
        .find(|path| path.exists())
        .unwrap_or(workspace);
    // The whole target directory changes with every build: watch the crate's sources instead until
    // the object is there.
    let watched = if existing == source {
        source.to_path_buf()
    } else if existing.ends_with("target") || !existing.starts_with(workspace) {
        workspace.join("lb-ebpf/src")
    } else {
        existing.to_path_buf()
    };
    println!("cargo::rerun-if-changed={}", watched.display());
}

fn variable(name: &str) -> String {
    match env::var(name) {
        Ok(value) => value,
        Err(error) => panic!("cargo sets {name} for build scripts: {error}"),
    }
}
