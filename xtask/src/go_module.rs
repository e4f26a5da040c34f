//! Builds a Go module of the tests once, one program with several names, and keeps it outside the
//! tree.

use crate::step::{self, say};
use crate::{go, workspace};
use anyhow::{Context, Result, bail};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fmt, fs};

/// Why there are no programs.
#[derive(Debug)]
pub(crate) enum Missing {
    /// What builds them cannot be had here: no fault of the project.
    Tools(anyhow::Error),
    /// They do not build.
    Build(anyhow::Error),
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tools(error) => write!(f, "what builds the programs cannot be had: {error:#}"),
            Self::Build(error) => write!(f, "the programs do not build: {error:#}"),
        }
    }
}

impl std::error::Error for Missing {}

/// A module of the tests.
#[derive(Debug)]
pub(crate) struct Module {
    /// Its directory below the root of the project, and the name of its program.
    pub(crate) name: &'static str,
    /// The names that the program is called by.
    pub(crate) programs: &'static [&'static str],
    /// What they are and what building them costs.
    pub(crate) title: &'static str,
}

impl Module {
    fn source(&self) -> PathBuf {
        workspace::root().join("tests").join(self.name)
    }

    /// Where its programs are, once they are built.
    fn directory(&self) -> Result<PathBuf> {
        Ok(workspace::cache()?.join(key(&self.source())?))
    }

    /// Brings what builds the programs, unless they are there: later than this nothing is
    /// installed. What cannot be had is said by [`Self::programs`].
    pub(crate) fn tools(&self) {
        if !self.directory().is_ok_and(|dir| dir.is_dir()) {
            drop(go::find());
        }
    }

    /// The directory with the programs, built unless it is there.
    pub(crate) fn programs(&self) -> Result<PathBuf, Missing> {
        let dir = self.directory().map_err(Missing::Build)?;
        if dir.is_dir() {
            return Ok(dir);
        }
        let go = go::find().map_err(Missing::Tools)?;
        say(&format!("{}: {}", self.name, self.title));
        download(&go, &self.source()).map_err(Missing::Tools)?;
        self.build(&go, &dir).map_err(Missing::Build)?;
        say(&format!("{}: built {}", self.name, dir.display()));
        Ok(dir)
    }

    /// Builds beside `dir` and moves it there: who finds it finds all of it.
    fn build(&self, go: &Path, dir: &Path) -> Result<()> {
        let fresh = dir.with_extension(std::process::id().to_string());
        fs::create_dir_all(&fresh).with_context(|| format!("cannot make {}", fresh.display()))?;
        // Nobody debugs it: without symbols it links faster and is half as large.
        let words = [
            "build",
            "-trimpath",
            "-ldflags=-s -w",
            "-gcflags=all=-dwarf=false",
        ];
        let mut compile = command(go, &self.source(), &words);
        compile.arg("-o").arg(fresh.join(self.name)).arg(".");
        step::timed(self.name, &mut compile)?;
        for name in self.programs.iter().filter(|name| **name != self.name) {
            symlink(self.name, fresh.join(name)).with_context(|| format!("cannot link {name}"))?;
        }
        match fs::rename(&fresh, dir) {
            Ok(()) => Ok(()),
            // Somebody else was faster; theirs is the same.
            Err(_) if dir.is_dir() => fs::remove_dir_all(&fresh)
                .with_context(|| format!("cannot remove {}", fresh.display())),
            Err(error) => bail!(
                "cannot move {} to {}: {error}",
                fresh.display(),
                dir.display()
            ),
        }
    }
}

/// Another content of the module is another program.
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
