//! cgroup v2: where it is mounted, and child cgroups that take their processes with them.

use crate::janitor;
use anyhow::{Context, Result, anyhow};
use std::fs;
use std::path::{Path, PathBuf};

/// The mount point of the cgroup v2 hierarchy's root: `/sys/fs/cgroup` on most machines,
/// `/sys/fs/cgroup/unified` on hybrid ones.
pub fn mount_point() -> Result<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").context("cannot read mountinfo")?;
    find_mount(&text).ok_or_else(|| {
        anyhow!("no cgroup v2 is mounted: `mount -t cgroup2 none /sys/fs/cgroup` provides it")
    })
}

/// The first cgroup2 mount whose root is the hierarchy's own root (proc(5), mountinfo).
fn find_mount(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut fields = left.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        (right.starts_with("cgroup2 ") && root == "/").then(|| PathBuf::from(point))
    })
}

/// A child cgroup. On drop its processes (and those of its children) are killed and it is removed.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Makes `name` below the root of the hierarchy.
    pub fn create(name: &str) -> Result<Self> {
        janitor::start()?;
        Self::at(mount_point()?.join(name))
    }

    /// Makes `name` below this one.
    pub fn child(&self, name: &str) -> Result<Self> {
        Self::at(self.path.join(name))
    }

    fn at(path: PathBuf) -> Result<Self> {
        fs::create_dir(&path).with_context(|| format!("cannot make cgroup {}", path.display()))?;
        Ok(Self { path })
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file that a process writes `0` to in order to move itself here.
    pub fn procs(&self) -> PathBuf {
        self.path.join("cgroup.procs")
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

/// Kills what runs in the cgroup at `path` and removes it with its children. Gone already is fine.
pub fn remove(path: &Path) {
    let Ok(entries) = fs::read_dir(path) else {
        return;
    };
    for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
        remove(&entry.path());
    }
    // A killed process leaves its cgroup asynchronously; there is no event before the directory
    // can be removed, so this asks again for at most five seconds.
    for _ in 0..500 {
        for pid in fs::read_to_string(path.join("cgroup.procs"))
            .unwrap_or_default()
            .lines()
        {
            if let Ok(pid) = pid.parse::<i32>().map(nix::unistd::Pid::from_raw) {
                let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
                let _ = nix::sys::wait::waitpid(pid, Some(nix::sys::wait::WaitPidFlag::WNOHANG));
            }
        }
        match fs::remove_dir(path) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::find_mount;
    use std::path::Path;

    #[test]
    fn the_unified_mount_of_a_hybrid_machine_is_found() {
        let text = "25 1 0:22 / /sys/fs/cgroup ro - tmpfs none rw\n\
                    26 25 0:23 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        assert_eq!(
            find_mount(text).as_deref(),
            Some(Path::new("/sys/fs/cgroup/unified"))
        );
    }

    #[test]
    fn a_bind_mount_of_a_container_s_own_cgroup_is_not_the_root() {
        let text = "26 25 0:23 /kubepods/pod1 /sys/fs/cgroup rw shared:4 - cgroup2 cgroup rw\n";
        assert_eq!(find_mount(text), None);
    }
}
