//! Which cgroup the socket hooks go to. Attached to a container's own cgroup everything looks
//! green and nothing is translated; so the root is proven, or given by option.

use super::error::StartError;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Inode of the root of every kernfs, and so of the root cgroup (since 5.5; other directories get
/// higher ids).
const ROOT_INODE: u64 = 1;

/// Opens the cgroup to attach to: `given`, or the proven root.
pub(super) fn open(given: Option<&Path>) -> Result<(PathBuf, File), StartError> {
    let path = match given {
        Some(path) => path.to_path_buf(),
        None => find_root(
            &std::fs::read_to_string("/proc/self/mountinfo").map_err(|source| {
                StartError::Step {
                    attempt: "read",
                    object: "/proc/self/mountinfo".to_owned(),
                    source,
                }
            })?,
            is_root,
        )?,
    };
    // The directory's own files tell a cgroup v2 directory from any other.
    if !path.join("cgroup.controllers").exists() {
        return Err(StartError::CgroupRoot(format!(
            "{} is not a cgroup v2 directory: give one with --cgroup-root DIR",
            path.display()
        )));
    }
    let file = File::open(&path).map_err(|source| StartError::Step {
        attempt: "open the cgroup",
        object: path.display().to_string(),
        source,
    })?;
    Ok((path, file))
}

/// The cgroup that an agent would attach to, or why it would not.
pub fn root(given: Option<&Path>) -> Result<PathBuf, String> {
    match open(given) {
        Ok((path, _)) => Ok(path),
        Err(error) => Err(error.to_string()),
    }
}

/// The root cgroup alone has no `cgroup.type`, and its inode is the first of its file system. In a
/// cgroup namespace a container's own cgroup is mounted as if it were the root, but has both.
fn is_root(path: &Path) -> bool {
    let first = std::fs::metadata(path).is_ok_and(|meta| meta.ino() == ROOT_INODE);
    first && !path.join("cgroup.type").exists()
}

/// Looks for the mount of the root cgroup in `mountinfo` (proc(5)).
fn find_root(mountinfo: &str, proven: impl Fn(&Path) -> bool) -> Result<PathBuf, StartError> {
    let mounts: Vec<PathBuf> = mountinfo.lines().filter_map(cgroup2_mount).collect();
    if let Some(root) = mounts.iter().find(|mount| proven(mount)) {
        return Ok(root.clone());
    }
    Err(StartError::CgroupRoot(match mounts.first() {
        None => "no cgroup v2 file system is mounted: mount one (`mount -t cgroup2 none \
                 /sys/fs/cgroup`), or name a cgroup with --cgroup-root DIR"
            .to_owned(),
        Some(mount) => format!(
            "the cgroup v2 mount {} is not the root of the hierarchy (this looks like a container's \
             own cgroup): sockets outside of it would not be balanced. Mount the host's root into \
             the container, or name the cgroup to attach to with --cgroup-root DIR",
            mount.display()
        ),
    }))
}

/// The mount point, if this line of mountinfo is a cgroup v2 mount.
fn cgroup2_mount(line: &str) -> Option<PathBuf> {
    let (mount, filesystem) = line.split_once(" - ")?;
    if filesystem.split(' ').next()? != "cgroup2" {
        return None;
    }
    mount.split(' ').nth(4).map(|point| unescape(point).into())
}

/// mountinfo writes space, tab, newline and backslash as three octal digits.
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        out.push_str(before);
        let code = after.get(..3).and_then(|d| u8::from_str_radix(d, 8).ok());
        if let Some(byte) = code {
            out.push(char::from(byte));
            rest = &after[3..];
        } else {
            out.push('\\');
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
31 22 0:27 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755
32 31 0:28 / /sys/fs/cgroup/unified rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate
33 31 0:29 / /sys/fs/cgroup/my\\040mount rw - cgroup2 cgroup2 rw";

    #[test]
    fn the_root_is_found_where_it_is_mounted() {
        let root = find_root(HYBRID, |path| path.ends_with("unified")).unwrap();
        assert_eq!(root, Path::new("/sys/fs/cgroup/unified"));
        let other = find_root(HYBRID, |path| path.ends_with("my mount")).unwrap();
        assert_eq!(other, Path::new("/sys/fs/cgroup/my mount"));
    }

    #[test]
    fn a_cgroup_that_is_not_proven_to_be_the_root_is_refused_by_its_mount() {
        let refusal = find_root(HYBRID, |_| false).unwrap_err().to_string();
        assert!(refusal.contains("/sys/fs/cgroup/unified"), "{refusal}");
        assert!(refusal.contains("--cgroup-root"), "{refusal}");
        let none = find_root("31 22 0:27 / / rw - ext4 /dev/sda rw", |_| true);
        assert!(none.unwrap_err().to_string().contains("no cgroup v2"));
    }
}
