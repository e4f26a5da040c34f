//! One manifest file on disk: which names are manifests, what tells one content from another, and
//! reading it without ever waiting. Knows nothing of the directory around it.

use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

/// The largest file that is read: five times a directory of 10,000 services in one file.
const LARGEST: u64 = 64 << 20;

/// What tells one content of a file from another.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Stamp {
    file: (u64, u64),
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// Of a file that could not be read: no content has it.
    pub(super) const UNREAD: Self = Self {
        file: (0, 0),
        size: 0,
        modified: (0, 0),
        changed: (0, 0),
    };

    pub(super) fn of(meta: &Metadata) -> Self {
        Self {
            file: (meta.dev(), meta.ino()),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

/// Files that are read: by extension, and not hidden (editors' and tools' own files).
pub(super) fn is_manifest(path: &Path) -> bool {
    let hidden = |name: &OsStr| name.as_encoded_bytes().starts_with(b".");
    let extension = path
        .extension()
        .and_then(OsStr::to_str)
        .map(str::to_ascii_lowercase);
    path.file_name().is_some_and(|name| !hidden(name))
        && matches!(extension.as_deref(), Some("yaml" | "yml" | "json"))
}

/// Whether nobody has written to it for this long.
pub(super) fn lies_still(meta: &Metadata, settle: Duration) -> bool {
    let age = meta
        .modified()
        .ok()
        .and_then(|at| SystemTime::now().duration_since(at).ok());
    age.is_none_or(|age| age >= settle)
}

/// The whole content and its stamp; `None` if the stamp is the one `seen`.
pub(super) fn read(path: &Path, seen: Option<&Stamp>) -> io::Result<Option<(Stamp, Vec<u8>)>> {
    // Asked before it is opened: opening a FIFO waits for a writer, a device may do anything.
    check(&fs::metadata(path)?)?;
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)?;
    // Another may stand in its place by now.
    let meta = file.metadata()?;
    check(&meta)?;
    let stamp = Stamp::of(&meta);
    if seen == Some(&stamp) {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LARGEST {
        return Err(too_large());
    }
    Ok(Some((stamp, bytes)))
}

fn check(meta: &Metadata) -> io::Result<()> {
    let kind = meta.file_type();
    if kind.is_file() {
        return if meta.len() > LARGEST {
            Err(too_large())
        } else {
            Ok(())
        };
    }
    let what = if kind.is_dir() {
        "a directory"
    } else if kind.is_fifo() {
        "a FIFO"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "a device"
    };
    Err(io::Error::other(format!("it is {what}, not a file")))
}

fn too_large() -> io::Error {
    let limit = LARGEST >> 20;
    io::Error::other(format!("it is larger than {limit} MiB; split it"))
}
