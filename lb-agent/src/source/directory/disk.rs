//! The directory on disk → edits. Knows when a file is whole; knows nothing of what is in it.
//!
//! inotify says what happened; a slow look at everything makes up for what it cannot say (targets
//! of symlinks, network file systems). A file that somebody has open for writing is not read, and
//! one that vanishes has a moment to come back, as editors and `mv` make it.

use super::claims::Edit;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

/// How long a vanished file may come back, and how long a file must lie still when only the look
/// at everything found it changed.
const SETTLE: Duration = Duration::from_millis(250);
/// How long after its last write an open file is waited for.
const WRITING: Duration = Duration::from_secs(10);
/// The look at everything.
const POLL: Duration = Duration::from_secs(2);

/// What tells one content of a file from another.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Stamp {
    file: (u64, u64),
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(meta: &Metadata) -> Self {
        Self {
            file: (meta.dev(), meta.ino()),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

fn lies_still(meta: &Metadata) -> bool {
    let age = meta
        .modified()
        .ok()
        .and_then(|at| SystemTime::now().duration_since(at).ok());
    age.is_none_or(|age| age >= SETTLE)
}

/// inotify's descriptor, for tokio.
#[derive(Debug)]
pub struct Events(Inotify);

impl AsRawFd for Events {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Events {
    /// A descriptor of its own; an error if the kernel's limit of instances is reached.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Inotify::init(
            InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK,
        )?))
    }
}

/// The directory as last seen.
#[derive(Debug)]
pub struct Disk {
    directory: PathBuf,
    seen: BTreeMap<PathBuf, Stamp>,
    writing: BTreeMap<PathBuf, Instant>,
    vanished: BTreeMap<PathBuf, Instant>,
    pending: BTreeSet<PathBuf>,
    moved: BTreeMap<u32, PathBuf>,
    renamed: BTreeMap<PathBuf, PathBuf>,
    watched: Option<((u64, u64), WatchDescriptor)>,
    parent_watched: bool,
    next_look: Instant,
    listed: bool,
}

impl Disk {
    /// This directory, not looked at yet.
    pub fn new(directory: PathBuf) -> Self {
        Self {
            directory,
            seen: BTreeMap::new(),
            writing: BTreeMap::new(),
            vanished: BTreeMap::new(),
            pending: BTreeSet::new(),
            moved: BTreeMap::new(),
            renamed: BTreeMap::new(),
            watched: None,
            parent_watched: false,
            next_look: Instant::now(),
            listed: false,
        }
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// When [`Self::collect`] has something to do even without an event.
    pub fn deadline(&self) -> Instant {
        if !self.pending.is_empty() {
            return Instant::now();
        }
        let settle = self.vanished.values().map(|since| *since + SETTLE).min();
        let writing = self.writing.values().map(|since| *since + WRITING).min();
        [settle, writing]
            .into_iter()
            .flatten()
            .fold(self.next_look, Instant::min)
    }

    /// Reads what changed. An error means the directory itself cannot be read: nothing is known
    /// to be gone then.
    pub fn collect(&mut self, events: Option<&Events>) -> io::Result<BTreeMap<PathBuf, Edit>> {
        self.drain(events);
        let now = Instant::now();
        if now >= self.next_look {
            self.next_look = now + SETTLE;
            self.watch(events);
            let still = self.look()?;
            // A large directory is looked at more rarely: at most one part in two hundred of a CPU.
            let pause = POLL.max(now.elapsed() * 200);
            self.next_look = now + if still { pause } else { SETTLE };
            if !still && !self.listed {
                return Ok(BTreeMap::new());
            }
            self.listed = true;
        }
        self.writing.retain(|path, since| {
            let wait = now < *since + WRITING;
            if !wait {
                self.pending.insert(path.clone());
            }
            wait
        });
        let mut edits = BTreeMap::new();
        for path in std::mem::take(&mut self.pending) {
            edits.extend(self.read(&path).map(|edit| (path, edit)));
        }
        self.expire(now, &mut edits)?;
        // What somebody began to write while it was read is read again when they are done.
        self.drain(events);
        for path in self.writing.keys().chain(&self.pending) {
            if edits.remove(path).is_some() {
                self.seen.remove(path);
            }
        }
        self.finish_renames(&mut edits);
        Ok(edits)
    }

    /// A file read under its new name is gone under the old one in the same breath.
    fn finish_renames(&mut self, edits: &mut BTreeMap<PathBuf, Edit>) {
        self.moved.clear();
        for (old, new) in std::mem::take(&mut self.renamed) {
            let read = matches!(edits.get(&new), Some(Edit::Content(_)));
            if read && fs::symlink_metadata(&old).is_err() {
                self.vanished.remove(&old);
                self.seen.remove(&old);
                edits.insert(old, Edit::Gone);
            }
        }
    }

    /// Whether a first complete look has been taken.
    pub const fn is_listed(&self) -> bool {
        self.listed
    }

    /// Watches the directory (again, if another stands in its place) and the name it has.
    fn watch(&mut self, events: Option<&Events>) {
        let Some(Events(inotify)) = events else {
            return;
        };
        let Ok(meta) = fs::metadata(&self.directory) else {
            return;
        };
        let identity = (meta.dev(), meta.ino());
        if self.watched.is_some_and(|(watched, _)| watched == identity) {
            return;
        }
        if let Some((_, old)) = self.watched.take() {
            // Fails if the old directory is gone: then the kernel has removed the watch.
            let _ = inotify.rm_watch(old);
        }
        let flags = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_ONLYDIR;
        self.watched = inotify
            .add_watch(&self.directory, flags)
            .ok()
            .map(|descriptor| (identity, descriptor));
        if let (false, Some(parent)) = (self.parent_watched, self.directory.parent()) {
            let parent = if parent.as_os_str().is_empty() {
                Path::new(".")
            } else {
                parent
            };
            let flags =
                AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVE | AddWatchFlags::IN_ONLYDIR;
            self.parent_watched = inotify.add_watch(parent, flags).is_ok();
        }
    }

    fn drain(&mut self, events: Option<&Events>) {
        let Some(Events(inotify)) = events else {
            return;
        };
        while let Ok(batch) = inotify.read_events() {
            for event in batch {
                self.event(&event);
            }
        }
    }

    fn event(&mut self, event: &InotifyEvent) {
        let here = self
            .watched
            .is_some_and(|(_, descriptor)| descriptor == event.wd);
        let name = event.name.as_deref();
        let Some(name) = name.filter(|_| here) else {
            // The parent, or an overflow. Of the parent only our own name matters.
            if name.is_none() || name == self.directory.file_name() {
                self.next_look = Instant::now();
            }
            return;
        };
        if !is_manifest(Path::new(name)) {
            // `..data` of a ConfigMap volume: everything may have changed.
            if event
                .mask
                .intersects(AddWatchFlags::IN_MOVE | AddWatchFlags::IN_CREATE)
            {
                self.next_look = Instant::now();
            }
            return;
        }
        let path = self.directory.join(name);
        if event.mask.contains(AddWatchFlags::IN_MOVED_FROM) {
            self.moved.insert(event.cookie, path.clone());
        } else if let Some(old) = self
            .moved
            .remove(&event.cookie)
            .filter(|_| event.cookie != 0)
        {
            self.renamed.insert(old, path.clone());
        }
        let created = event.mask.contains(AddWatchFlags::IN_CREATE)
            && fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_file() && meta.len() == 0);
        if created || event.mask.contains(AddWatchFlags::IN_MODIFY) {
            self.pending.remove(&path);
            self.writing.insert(path, Instant::now());
        } else if event.mask.contains(AddWatchFlags::IN_ATTRIB) && self.writing.contains_key(&path)
        {
            // A chmod while it is being written.
        } else {
            self.writing.remove(&path);
            self.pending.insert(path);
        }
    }

    /// Looks at every file. False if one of them is being written right now.
    fn look(&mut self) -> io::Result<bool> {
        let mut present = BTreeSet::new();
        let mut still = true;
        for entry in fs::read_dir(&self.directory)? {
            let path = entry?.path();
            if !is_manifest(&path) {
                continue;
            }
            let Ok(meta) = fs::metadata(&path) else {
                continue;
            };
            if !meta.is_file() {
                continue;
            }
            if self.seen.get(&path) != Some(&Stamp::of(&meta)) && !self.writing.contains_key(&path)
            {
                if lies_still(&meta) {
                    self.pending.insert(path.clone());
                } else {
                    still = false;
                }
            }
            present.insert(path);
        }
        let missing: Vec<_> = self
            .seen
            .keys()
            .filter(|path| !present.contains(*path))
            .cloned()
            .collect();
        for path in missing {
            self.vanished.entry(path).or_insert_with(Instant::now);
        }
        Ok(still)
    }

    /// Reads one file if it changed.
    fn read(&mut self, path: &Path) -> Option<Edit> {
        let result = fs::File::open(path).and_then(|mut file| {
            let stamp = Stamp::of(&file.metadata()?);
            if self.seen.get(path) == Some(&stamp) {
                return Ok(None);
            }
            let mut bytes = Vec::new();
            io::Read::read_to_end(&mut file, &mut bytes)?;
            Ok(Some((stamp, bytes)))
        });
        match result {
            Ok(None) => {
                self.vanished.remove(path);
                None
            }
            Ok(Some((stamp, bytes))) => {
                self.vanished.remove(path);
                self.seen.insert(path.to_owned(), stamp);
                Some(Edit::Content(bytes))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if self.seen.contains_key(path) {
                    self.vanished
                        .entry(path.to_owned())
                        .or_insert_with(Instant::now);
                }
                None
            }
            Err(error) => {
                let stamp = fs::metadata(path).map(|meta| Stamp::of(&meta));
                self.seen
                    .extend(stamp.map(|stamp| (path.to_owned(), stamp)));
                Some(Edit::Unreadable(error.to_string()))
            }
        }
    }

    /// Gives up files that did not come back. A name that leads nowhere is not a deleted file:
    /// half of a symlink swap looks like that.
    fn expire(&mut self, now: Instant, edits: &mut BTreeMap<PathBuf, Edit>) -> io::Result<()> {
        let due = |since: &Instant| now >= *since + SETTLE;
        let expired: Vec<_> = self
            .vanished
            .iter()
            .filter(|(_, since)| due(since))
            .map(|(path, _)| path.clone())
            .collect();
        if expired.is_empty() {
            return Ok(());
        }
        // A directory that is gone itself says nothing about its files.
        fs::read_dir(&self.directory)?;
        for path in expired {
            self.vanished.remove(&path);
            self.seen.remove(&path);
            let edit = match fs::symlink_metadata(&path) {
                Ok(_) if fs::metadata(&path).is_ok() => {
                    self.pending.insert(path.clone());
                    self.next_look = now;
                    continue;
                }
                Ok(_) => {
                    self.vanished.insert(path.clone(), now);
                    Edit::Unreadable("the symbolic link leads nowhere".to_owned())
                }
                Err(_) => Edit::Gone,
            };
            edits.insert(path, edit);
        }
        Ok(())
    }
}

/// Files that are read: by extension, and not hidden (editors' and tools' own files).
fn is_manifest(path: &Path) -> bool {
    let hidden = |name: &OsStr| name.as_encoded_bytes().starts_with(b".");
    let extension = path
        .extension()
        .and_then(OsStr::to_str)
        .map(str::to_ascii_lowercase);
    path.file_name().is_some_and(|name| !hidden(name))
        && matches!(extension.as_deref(), Some("yaml" | "yml" | "json"))
}
