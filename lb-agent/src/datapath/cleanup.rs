//! Leaving no trace.

use super::clsact;
use super::directory::{Directory, LINKS, is_bpffs};
use super::error::CleanupError;
use std::io;
use std::path::{Path, PathBuf};

/// Removes every trace of an agent that used `directory`: links, clsact filters, programs, tables,
/// the directory. Returns what was removed, one line each; nothing to remove is fine.
pub fn cleanup(directory: &Path) -> Result<Vec<String>, CleanupError> {
    let directory = Directory::new(directory);
    let mut removed = Vec::new();
    let lock = if directory.root().is_dir() && is_bpffs(directory.root()) {
        let lock = directory
            .try_lock()
            .map_err(step("lock", directory.root()))?;
        if lock.is_none() {
            return Err(CleanupError::Held {
                directory: directory.root().to_path_buf(),
            });
        }
        lock
    } else {
        None
    };
    // Links first: no program of ours may run over tables that are half gone. Then filters, which
    // are of this network namespace and not in the directory.
    if lock.is_some() {
        remove_below(&directory.links(), &mut removed)?;
    }
    remove_filters(&mut removed)?;
    if lock.is_some() {
        remove_versions(&directory, &mut removed)?;
    }
    drop(lock);
    Ok(removed)
}

/// Removes what agents of other layouts have left in the directory, links first: what they served
/// is served by ours. Returns the directories that are gone.
pub(super) fn remove_other_layouts(directory: &Directory) -> Result<Vec<PathBuf>, CleanupError> {
    let mut versions = (directory.versions()).map_err(step("list", directory.root()))?;
    versions.retain(|version| *version != directory.version());
    for version in &versions {
        let mut removed = Vec::new();
        remove_below(&version.join(LINKS), &mut removed)?;
        remove_below(version, &mut removed)?;
    }
    Ok(versions)
}

fn remove_filters(removed: &mut Vec<String>) -> Result<(), CleanupError> {
    let devices = nix::net::if_::if_nameindex().map_err(|errno| CleanupError::Step {
        attempt: "list",
        object: "the network devices".to_owned(),
        source: errno.into(),
    })?;
    for device in &devices {
        let name = device.name().to_string_lossy();
        let found = clsact::detach(device.index()).map_err(|source| CleanupError::Step {
            attempt: "remove the tc filters of",
            object: name.to_string(),
            source,
        })?;
        if found {
            removed.push(format!("tc filters of {name}"));
        }
    }
    Ok(())
}

/// Every layout version in the directory, then the directory itself, unless it is a mount point or
/// somebody keeps things of their own in it.
fn remove_versions(directory: &Directory, removed: &mut Vec<String>) -> Result<(), CleanupError> {
    let versions = (directory.versions()).map_err(step("list", directory.root()))?;
    for version in versions {
        remove_below(&version, removed)?;
    }
    match std::fs::remove_dir(directory.root()) {
        Ok(()) => removed.push(directory.root().display().to_string()),
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::EBUSY | libc::ENOTEMPTY | libc::ENOENT | libc::EPERM)
            ) => {}
        Err(source) => return Err(step("remove", directory.root())(source)),
    }
    Ok(())
}

/// Removes everything below a directory, and it.
fn remove_below(path: &Path, removed: &mut Vec<String>) -> Result<(), CleanupError> {
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(step("list", path)(source)),
    };
    for entry in entries {
        let entry = entry.map_err(step("list", path))?;
        let child = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_below(&child, removed)?;
        } else {
            std::fs::remove_file(&child).map_err(step("remove", &child))?;
            removed.push(child.display().to_string());
        }
    }
    std::fs::remove_dir(path).map_err(step("remove", path))
}

fn step(attempt: &'static str, object: &Path) -> impl Fn(io::Error) -> CleanupError {
    let object = object.display().to_string();
    move |source| CleanupError::Step {
        attempt,
        object: object.clone(),
        source,
    }
}
