//! Builds the control plane of the tests (`tests/control-plane`) once and keeps it outside the tree.

use crate::step::{self, say};
use crate::{go, workspace};
use anyhow::{Context, Result, bail};
use lb_lab::control_plane::PROGRAMS;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The one program that all of [`PROGRAMS`] are names of.
const PROGRAM: &str = "control-plane";

/// Why there is no control plane.
#[derive(Debug)]
pub(crate) enum Missing {
    /// Go, or the modules, cannot be had here: no fault of the project.
    Tools(anyhow::Error),
    /// It does not build.
    Build(anyhow::Error),
}

impl From<Missing> for anyhow::Error {
    fn from(missing: Missing) -> Self {
        match missing {
            Missing::Tools(error) => error.context("the tools of the control plane cannot be had"),
            Missing::Build(error) => error.context("the control plane does not build"),
        }
    }
}

fn module() -> PathBuf {
    workspace::root().join("tests/control-plane")
}

fn directory(module: &Path) -> Result<PathBuf> {
    Ok(cache()?.join(key(module)?))
}

/// Brings what builds the programs, unless they are there: later than this nothing is installed.
/// What cannot be had is said by [`programs`].
pub(crate) fn tools() {
    if !directory(&module()).is_ok_and(|dir| dir.is_dir()) {
        drop(go::find());
    }
}

/// The directory with the programs, built unless it is there.
pub(crate) fn programs() -> Result<PathBuf, Missing> {
    let module = module();
    let dir = directory(&module).map_err(Missing::Build)?;
    if dir.is_dir() {
        return Ok(dir);
    }
    let go = go::find().map_err(Missing::Tools)?;
    say("control plane: etcd, kube-apiserver, kubectl and controllers (Go, a few minutes, once)");
    download(&go, &module).map_err(Missing::Tools)?;
    build(&go, &module, &dir).map_err(Missing::Build)?;
    say(&format!("control plane: built {}", dir.display()));
    Ok(dir)
}

/// Where what is not of this checkout is kept.
pub(crate) fn cache() -> Result<PathBuf> {
    let base = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))
        .context("neither XDG_CACHE_HOME nor HOME is set: there is no place for a cache")?;
    Ok(base.join("lb-control-plane"))
}

/// Another content of the module is another control plane.
fn key(module: &Path) -> Result<String> {
    let mut files: Vec<PathBuf> = fs::read_dir(module)
        .with_context(|| format!("cannot read {}", module.display()))?
        .flatten()
        .map(|entry| entry.path())
        .collect();
    files.sort();
    let mut hasher = DefaultHasher::new();
    for file in files {
        file.file_name().hash(&mut hasher);
        fs::read(&file)
            .with_context(|| format!("cannot read {}", file.display()))?
            .hash(&mut hasher);
    }
    Ok(format!("{:016x}", hasher.finish()))
}

fn command(go: &Path, module: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(go);
    command
        .args(words)
        .current_dir(module)
        .env("CGO_ENABLED", "0")
        // The compiler is the one that was found, whatever the module asks for.
        .env("GOTOOLCHAIN", "local")
        // Memory for time: a third less of it.
        .env("GOGC", "400");
    command
}

fn download(go: &Path, module: &Path) -> Result<()> {
    step::run(&mut command(go, module, &["mod", "download"]))
}

/// Builds beside `dir` and moves it there: who finds it finds all of it.
fn build(go: &Path, module: &Path, dir: &Path) -> Result<()> {
    let fresh = dir.with_extension(std::process::id().to_string());
    fs::create_dir_all(&fresh).with_context(|| format!("cannot make {}", fresh.display()))?;
    // Nobody debugs it: without symbols it links faster and is half as large.
    let words = [
        "build",
        "-trimpath",
        "-ldflags=-s -w",
        "-gcflags=all=-dwarf=false",
    ];
    let mut compile = command(go, module, &words);
    compile.arg("-o").arg(fresh.join(PROGRAM)).arg(".");
    step::timed("control plane", &mut compile)?;
    for name in PROGRAMS {
        symlink(PROGRAM, fresh.join(name)).with_context(|| format!("cannot link {name}"))?;
    }
    match fs::rename(&fresh, dir) {
        Ok(()) => Ok(()),
        // Somebody else was faster; theirs is the same.
        Err(_) if dir.is_dir() => {
            fs::remove_dir_all(&fresh).with_context(|| format!("cannot remove {}", fresh.display()))
        }
        Err(error) => bail!(
            "cannot move {} to {}: {error}",
            fresh.display(),
            dir.display()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::key;
    use crate::workspace;

    #[test]
    fn the_cache_follows_the_content_of_the_module() {
        let module = workspace::root().join("tests/control-plane");
        let copy = std::env::temp_dir().join(format!("lb-key-{}", std::process::id()));
        std::fs::create_dir_all(&copy).unwrap();
        for file in ["go.mod", "go.sum", "main.go", "controllers.go"] {
            std::fs::copy(module.join(file), copy.join(file)).unwrap();
        }
        let same = key(&copy).unwrap();
        std::fs::write(copy.join("main.go"), "package main\n").unwrap();
        let other = key(&copy).unwrap();
        std::fs::remove_dir_all(&copy).unwrap();
        assert_eq!(same, key(&module).unwrap());
        assert_ne!(same, other);
    }
}
