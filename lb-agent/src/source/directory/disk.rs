//! The directory on disk → edits. Knows when a file is whole; knows nothing of what is in it.
//!
//! inotify says what happened; a slow look at everything makes up for what it cannot say (targets
//! of symlinks, network file systems). A file that somebody has open for writing is not read, and
//! one that vanishes has a moment to come back, as editors and `mv` make it.

use super::claims::Edit;
use super::file::{self, Stamp, is_manifest, lies_still};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a vanished file may come back, and how long a file must lie still when only the look
/// at everything found it changed.
const SETTLE: Duration = Duration::from_millis(250);
/// How long the files of a directory that was gone itself may come back: whoever makes it anew fills
/// it next.
const REFILL: Duration = Duration::from_secs(10);
/// How long after its last write an open file is waited for.
const WRITING: Duration = Duration::from_secs(10);
/// The look at everything.
const POLL: Duration = Duration::from_secs(2);

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
    /// Files that are not there, and when they are given up.
    vanished: BTreeMap<PathBuf, Instant>,
    pending: BTreeSet<PathBuf>,
    moved: BTreeMap<u32, PathBuf>,
    renamed: BTreeMap<PathBuf, PathBuf>,
    watched: Option<((u64, u64), WatchDescriptor)>,
    parent_watched: bool,
    /// The directory itself was gone since the last look.
    lost: bool,
    next_look: Instant,
    started: Instant,
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
            lost: false,
            next_look: Instant::now(),
            started: Instant::now(),
            listed: false,
        }
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// When [`Self::collect`] has something to do even without an event.
    pub fn deadline(&self) -> Instant {
        if !self.listed {
            return self.next_look;
        }
        if !self.pending.is_empty() {
            return Instant::now();
        }
        let settle = self.vanished.values().min().copied();
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
            let mut still = self.look()?;
            if !self.listed {
                // A file that is being written belongs to the first listing, too.
                still &= self.writing.is_empty() || now >= self.started + WRITING;
            }
            // A large directory is looked at more rarely: at most one part in two hundred of a CPU.
            let pause = POLL.max(now.elapsed() * 200);
            self.next_look = now + if still { pause } else { SETTLE };
            if still && !self.listed {
                self.listed = true;
                // Whoever still writes has had the time.
                self.pending
                    .extend(std::mem::take(&mut self.writing).into_keys());
            }
        }
        if !self.listed {
            // Nothing is taken yet: what is read alone would pass for the whole listing.
            return Ok(BTreeMap::new());
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
        if let Err(error) = self.expire(&mut edits)
            && edits.is_empty()
        {
            return Err(error);
        }
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

    /// A file read under its new name is gone under the old one in the same breath. A rename of
    /// which only half is known yet is finished when the rest is.
    fn finish_renames(&mut self, edits: &mut BTreeMap<PathBuf, Edit>) {
        let (pending, vanished) = (&self.pending, &self.vanished);
        self.moved
            .retain(|_, old| pending.contains(old) || vanished.contains_key(old));
        for (old, new) in std::mem::take(&mut self.renamed) {
            let read = matches!(edits.get(&new), Some(Edit::Content(_)));
            if read && fs::symlink_metadata(&old).is_err() {
                self.vanished.remove(&old);
                self.seen.remove(&old);
                edits.insert(old, Edit::Gone);
            } else if self.pending.contains(&new) || self.writing.contains_key(&new) {
                self.renamed.insert(old, new);
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
        if here && event.mask.contains(AddWatchFlags::IN_IGNORED) {
            // The directory is gone; another with the same inode may take its place.
            (self.watched, self.lost) = (None, true);
        }
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
        let entries = fs::read_dir(&self.directory).inspect_err(|_| self.lost = true)?;
        for entry in entries {
            let path = entry?.path();
            if !is_manifest(&path) {
                continue;
            }
            let Ok(meta) = fs::metadata(&path) else {
                // A symbolic link that leads nowhere; the first listing must name it.
                let wait = if self.listed { SETTLE } else { Duration::ZERO };
                self.vanished
                    .entry(path)
                    .or_insert_with(|| Instant::now() + wait);
                continue;
            };
            if self.seen.get(&path) != Some(&Stamp::of(&meta)) && !self.writing.contains_key(&path)
            {
                if lies_still(&meta, SETTLE) {
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
        let now = Instant::now();
        // Those that went with the directory itself have longer than the rest to come back.
        let wait = if std::mem::take(&mut self.lost) {
            self.vanished
                .values_mut()
                .for_each(|until| *until = now + REFILL);
            REFILL
        } else {
            SETTLE
        };
        for path in missing {
            self.vanished.entry(path).or_insert(now + wait);
        }
        Ok(still)
    }

    /// Reads one file if it changed.
    fn read(&mut self, path: &Path) -> Option<Edit> {
        match file::read(path, self.seen.get(path)) {
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
                        .or_insert_with(|| Instant::now() + SETTLE);
                }
                None
            }
            Err(error) => {
                self.vanished.remove(path);
                // Tried again at each look: what hinders may pass without a trace on the file.
                self.seen.insert(path.to_owned(), Stamp::UNREAD);
                Some(Edit::Unreadable(error.to_string()))
            }
        }
    }

    /// Gives up files that did not come back. A name that leads nowhere is not a deleted file:
    /// half of a symlink swap looks like that.
    fn expire(&mut self, edits: &mut BTreeMap<PathBuf, Edit>) -> io::Result<()> {
        let now = Instant::now();
        let expired: Vec<_> = self
            .vanished
            .iter()
            .filter(|(_, until)| now >= **until)
            .map(|(path, _)| path.clone())
            .collect();
        if expired.is_empty() {
            return Ok(());
        }
        // A directory that is gone itself says nothing about its files.
        if let Err(error) = fs::read_dir(&self.directory) {
            self.lost = true;
            let wait = |until: &mut Instant| *until = now + REFILL;
            self.vanished.values_mut().for_each(wait);
            return Err(error);
        }
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
                    self.vanished.insert(path.clone(), now + POLL);
                    Edit::Unreadable("the symbolic link leads nowhere".to_owned())
                }
                Err(_) => Edit::Gone,
            };
            edits.insert(path, edit);
        }
        Ok(())
    }
}
