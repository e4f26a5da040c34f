//! The directory on a bpffs: where things are pinned, and who may.

use super::error::StartError;
use lb_common::table::LAYOUT_VERSION;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::MsFlags;
use nix::sys::statfs::{FsType, statfs};
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// `BPF_FS_MAGIC` of `linux/magic.h`.
const BPF_FS: FsType = FsType(0xcafe_4a11);
/// Where a bpffs is expected, and mounted by us if it is missing.
const DEFAULT_MOUNT: &str = "/sys/fs/bpf";

/// Where a layout keeps its links; the same in all of them.
pub(super) const LINKS: &str = "links";

/// Which way a program looks at a device.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Direction {
    Ingress,
    Egress,
}

impl Direction {
    pub(super) const BOTH: [Self; 2] = [Self::Ingress, Self::Egress];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

/// The paths of one agent.
#[derive(Clone, Debug)]
pub(super) struct Directory {
    root: PathBuf,
}

impl Directory {
    pub(super) fn new(root: &Path) -> Self {
        Self {
            root: root.to_path_buf(),
        }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn version(&self) -> PathBuf {
        self.root.join(format!("v{LAYOUT_VERSION}"))
    }

    /// The directories of every layout, ours or not.
    pub(super) fn versions(&self) -> io::Result<Vec<PathBuf>> {
        let mut versions = Vec::new();
        for entry in std::fs::read_dir(&self.root)? {
            let entry = entry?;
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix('v'));
            if number.is_some_and(|number| number.parse::<u32>().is_ok()) {
                versions.push(entry.path());
            }
        }
        Ok(versions)
    }

    pub(super) fn maps(&self) -> PathBuf {
        self.version().join("maps")
    }

    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.maps().join(name)
    }

    pub(super) fn links(&self) -> PathBuf {
        self.version().join(LINKS)
    }

    pub(super) fn cgroup_links(&self) -> PathBuf {
        self.links().join("cgroup")
    }

    pub(super) fn tcx_links(&self) -> PathBuf {
        self.links().join("tcx")
    }

    pub(super) fn tcx_link(&self, device: u32, direction: Direction) -> PathBuf {
        self.tcx_links()
            .join(format!("{device}-{}", direction.name()))
    }

    /// Creates the directory, on a bpffs, which is mounted if it is the default one.
    pub(super) fn prepare_root(&self) -> Result<(), StartError> {
        let existing = self
            .root
            .ancestors()
            .find(|path| path.exists())
            .unwrap_or(Path::new("/"));
        if !is_bpffs(existing) {
            if !self.root.starts_with(DEFAULT_MOUNT) {
                return Err(StartError::NotBpffs {
                    directory: self.root.clone(),
                });
            }
            mount_default()?;
        }
        create(&self.root)
    }

    /// Creates what the directory is to hold.
    pub(super) fn prepare(&self) -> Result<(), StartError> {
        [self.maps(), self.cgroup_links(), self.tcx_links()]
            .iter()
            .try_for_each(|path| create(path))
    }

    /// Takes the directory for this process alone, waiting up to `patience` for whoever has it.
    pub(super) fn lock(&self, patience: Duration) -> Result<Lock, StartError> {
        let deadline = Instant::now() + patience;
        loop {
            let taken = self.try_lock().map_err(|source| StartError::Step {
                attempt: "lock the directory",
                object: self.root.display().to_string(),
                source,
            })?;
            if let Some(lock) = taken {
                return Ok(lock);
            }
            if Instant::now() >= deadline {
                return Err(StartError::Held {
                    directory: self.root.clone(),
                });
            }
            // flock has no wait with a limit; whoever leaves is noticed within this time.
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Takes the directory if nobody has it. bpffs has no regular files: the lock is on the
    /// directory itself.
    pub(super) fn try_lock(&self) -> io::Result<Option<Lock>> {
        let file = File::open(&self.root)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            // A cleanup may have removed the directory while its lock was waited for.
            Ok(lock) if same_file(&lock, &self.root) => Ok(Some(Lock { _held: lock })),
            Ok(_) | Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, errno)) => Err(errno.into()),
        }
    }
}

/// Held while this process may write. The kernel lets go of it when the process ends, however.
#[derive(Debug)]
pub(super) struct Lock {
    _held: Flock<File>,
}

fn create(path: &Path) -> Result<(), StartError> {
    std::fs::create_dir_all(path).map_err(|source| StartError::Step {
        attempt: "create the directory",
        object: path.display().to_string(),
        source,
    })
}

fn same_file(file: &File, path: &Path) -> bool {
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(held), Ok(there)) => held.ino() == there.ino() && held.dev() == there.dev(),
        _ => false,
    }
}

/// True if an agent could pin things here: on a bpffs, or where one would be mounted.
pub fn is_usable(path: &Path) -> bool {
    let existing = path.ancestors().find(|path| path.exists());
    path.starts_with(DEFAULT_MOUNT) || existing.is_some_and(is_bpffs)
}

/// True if `path` lies on a bpffs.
pub(super) fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|info| info.filesystem_type() == BPF_FS)
}

fn mount_default() -> Result<(), StartError> {
    tracing::info!(path = DEFAULT_MOUNT, "mounting a BPF file system");
    nix::mount::mount(
        Some("bpf"),
        DEFAULT_MOUNT,
        Some("bpf"),
        MsFlags::empty(),
        None::<&str>,
    )
    .map_err(|errno| StartError::Step {
        attempt: "mount a BPF file system on",
        object: DEFAULT_MOUNT.to_owned(),
        source: errno.into(),
    })
}
