//! Which cgroups are those of pods: kubelet writes a pod's UID into the name of its cgroup, so
//! nobody needs to be asked.

use crate::model::PodUid;
use lb_common::table::POD_CGROUP_DEPTH;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A pod's cgroup appears a moment after the pod, and its first container a moment later.
const PAUSE: Duration = Duration::from_millis(100);
/// After a change, cgroups are looked for this long at every [`PAUSE`]; later at every [`REST`].
const HURRY: Duration = Duration::from_secs(60);
const REST: Duration = Duration::from_secs(5);

/// Finds the cgroups of pods below a root, and remembers them.
#[derive(Debug)]
pub(crate) struct PodCgroups {
    root: PathBuf,
    /// `None` until somebody knows.
    wanted: Option<BTreeSet<PodUid>>,
    found: BTreeMap<PodUid, (PathBuf, u64)>,
    hurry: Instant,
    next: Instant,
}

impl PodCgroups {
    pub(crate) fn below(root: &Path) -> Self {
        Self {
            root: root.to_path_buf(),
            wanted: None,
            found: BTreeMap::new(),
            hurry: Instant::now(),
            next: Instant::now(),
        }
    }

    /// Takes the pods that are wanted from now on; true if they are others, and the first time.
    pub(crate) fn want(&mut self, wanted: BTreeSet<PodUid>) -> bool {
        if self.wanted.as_ref() == Some(&wanted) {
            return false;
        }
        self.wanted = Some(wanted);
        self.hurry = Instant::now() + HURRY;
        true
    }

    /// When it is time to look again; `None` if there is nothing to look for.
    pub(crate) fn due(&self) -> Option<Instant> {
        let any = self.wanted.as_ref().is_some_and(|all| !all.is_empty());
        any.then_some(self.next)
    }

    /// Looks, and returns the inodes of the cgroups of the pods that are wanted.
    pub(crate) fn look(&mut self) -> BTreeSet<u64> {
        let now = Instant::now();
        let is_there = |(path, inode): &(PathBuf, u64)| {
            fs::metadata(path).is_ok_and(|metadata| metadata.ino() == *inode)
        };
        let wanted = self.wanted.clone().unwrap_or_default();
        self.found
            .retain(|uid, place| wanted.contains(uid) && is_there(place));
        if self.found.len() < wanted.len() {
            walk(&self.root, &wanted, POD_CGROUP_DEPTH, &mut self.found);
        }
        let all_found = self.found.len() == wanted.len();
        let pause = if all_found || now >= self.hurry {
            REST
        } else {
            PAUSE
        };
        self.next = now + pause;
        self.found.values().map(|(_, inode)| *inode).collect()
    }
}

fn walk(
    directory: &Path,
    wanted: &BTreeSet<PodUid>,
    depth: u8,
    found: &mut BTreeMap<PodUid, (PathBuf, u64)>,
) {
    // A directory that goes away meanwhile holds no pod that stays.
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    for entry in entries.flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let uid = uid_in(&entry.file_name().to_string_lossy());
        if let Some(uid) = uid.filter(|uid| wanted.contains(uid)) {
            found.insert(uid, (entry.path(), entry.ino()));
        } else if depth > 1 && found.len() < wanted.len() {
            walk(&entry.path(), wanted, depth - 1, found);
        }
    }
}

/// The UID in the name of a pod's cgroup: `pod<UID>`, or, as systemd has it,
/// `kubepods-burstable-pod<UID>.slice` with `_` for `-`. Names of other cgroups may yield something
/// that is no UID.
fn uid_in(name: &str) -> Option<PodUid> {
    let stem = name.strip_suffix(".slice").unwrap_or(name);
    let (_, uid) = stem.rsplit_once("pod")?;
    Some(uid.replace('_', "-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0b1c2d3e-0000-4000-8000-00000000000a";

    #[test]
    fn the_names_that_kubelet_gives_are_known() {
        for name in [
            "pod0b1c2d3e-0000-4000-8000-00000000000a",
            "kubepods-besteffort-pod0b1c2d3e_0000_4000_8000_00000000000a.slice",
            "kubepods-pod0b1c2d3e_0000_4000_8000_00000000000a.slice",
            "kubelet-kubepods-burstable-pod0b1c2d3e_0000_4000_8000_00000000000a.slice",
        ] {
            assert_eq!(uid_in(name).as_deref(), Some(UID), "{name}");
        }
        for name in [
            "kubepods.slice",
            "0b1c2d3e-0000-4000-8000-00000000000a",
            "pod0b1c2d3e",
        ] {
            assert_ne!(uid_in(name).as_deref(), Some(UID), "{name}");
        }
    }

    #[test]
    fn cgroups_are_found_at_any_depth_and_followed() {
        let root = tempfile::tempdir().unwrap();
        let burstable = root.path().join("kubelet.slice/kubepods/burstable");
        let pod = burstable.join(format!("pod{UID}"));
        fs::create_dir_all(&burstable).unwrap();
        let mut pods = PodCgroups::below(root.path());
        assert!(pods.look().is_empty() && pods.due().is_none());
        assert!(pods.want([UID.to_owned()].into()));
        assert!(!pods.want([UID.to_owned()].into()), "nothing new");
        assert!(pods.look().is_empty());
        fs::create_dir_all(pod.join("container")).unwrap();
        let inode = |path: &Path| fs::metadata(path).unwrap().ino();
        assert_eq!(pods.look(), [inode(&pod)].into());
        assert_eq!(pods.look(), [inode(&pod)].into());
        fs::remove_dir_all(&pod).unwrap();
        assert!(pods.look().is_empty());
        fs::create_dir_all(&pod).unwrap();
        assert_eq!(pods.look(), [inode(&pod)].into());
        assert!(pods.want(BTreeSet::new()));
        assert!(pods.look().is_empty() && pods.due().is_none());
    }

    #[test]
    fn what_an_earlier_run_left_is_taken_back_though_nobody_is_wanted() {
        let root = tempfile::tempdir().unwrap();
        let mut pods = PodCgroups::below(root.path());
        assert!(pods.want(BTreeSet::new()), "the first time");
        assert!(!pods.want(BTreeSet::new()));
    }

    #[test]
    fn cgroups_are_looked_for_often_until_they_are_there() {
        let root = tempfile::tempdir().unwrap();
        let mut pods = PodCgroups::below(root.path());
        pods.want([UID.to_owned()].into());
        pods.look();
        let rest = Instant::now() + REST;
        assert!(pods.due().is_some_and(|due| due < rest));
        fs::create_dir_all(root.path().join(format!("pod{UID}"))).unwrap();
        let before = Instant::now();
        pods.look();
        assert!(pods.due().is_some_and(|due| due >= before + REST));
    }
}
