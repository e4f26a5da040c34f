//! A machine of one's own: a network, mounts and a cgroup hierarchy that no other test sees, so that
//! what takes a whole machine for itself (the demo) can be tested beside others. What may not live
//! here: expectations.

use anyhow::{Context, Result};
use aya::maps::loaded_maps;
use aya::programs::{loaded_links, loaded_programs};
use lb_lab::{Cgroup, Namespace, Place, cgroup, command, janitor};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

/// The machine. It goes, with every process in it, when this is dropped.
#[derive(Debug)]
pub struct Island(Place);

impl Island {
    /// Makes one with nothing but loopback.
    ///
    /// # Errors
    /// Where its namespace or cgroup cannot be made.
    pub fn new() -> Result<Self> {
        lb_lab::require_root();
        let name = janitor::unique_name();
        let namespace = Namespace::create(&format!("{name}-island"))?;
        Ok(Self(Place::new(namespace, Some(Cgroup::create(&name)?))))
    }

    /// Runs `work` as a process on it.
    ///
    /// # Errors
    /// What `work` says, or why it could not be run.
    pub fn run(&self, work: impl FnOnce() -> Result<()>) -> Result<()> {
        let inside = || {
            settle()?;
            work().map(|()| String::new())
        };
        self.0.call(inside).map(drop)
    }
}

/// Gives the calling process its own view: `/run` is empty, and the cgroup it is in is the root of
/// the hierarchy that it sees.
fn settle() -> Result<()> {
    let hierarchy = cgroup::mount_point()?;
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWCGROUP)
        .context("cannot make mount and cgroup namespaces")?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .context("cannot make the mounts private")?;
    // A copy of another test's bpffs would keep its pins alive.
    for point in mount_points()?.iter().rev() {
        if Path::new(point).starts_with("/run") && point != "/run" {
            // What is gone with a mount above it was to be gone.
            let _ = umount2(point.as_str(), MntFlags::MNT_DETACH);
        }
    }
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), none)
        .context("cannot mount an empty /run")?;
    // A file system is not mounted over itself.
    umount2(&hierarchy, MntFlags::MNT_DETACH).context("cannot unmount the cgroup hierarchy")?;
    mount(
        Some("cgroup2"),
        &hierarchy,
        Some("cgroup2"),
        MsFlags::empty(),
        none,
    )
    .context("cannot mount the cgroup hierarchy")
}

/// Where something is mounted, in the order of mounting (proc(5), mountinfo).
fn mount_points() -> Result<Vec<String>> {
    let text = fs::read_to_string("/proc/self/mountinfo").context("cannot read mountinfo")?;
    let points = text.lines().filter_map(|line| line.split(' ').nth(4));
    Ok(points.map(str::to_owned).collect())
}

/// What a machine shows of itself: two of them are equal if nothing was left behind.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Traces(Vec<(&'static str, BTreeSet<String>)>);

impl Traces {
    /// Of the machine the calling process is on.
    ///
    /// # Errors
    /// Where something cannot be listed.
    pub fn take() -> Result<Self> {
        let ip = |words: &str| -> Result<BTreeSet<String>> {
            let text = command::output(Command::new("ip").args(words.split(' ')))?;
            Ok(text.lines().map(str::to_owned).collect())
        };
        let hierarchy = cgroup::mount_point()?;
        // `ip netns add` makes it a mount for good, empty when the last namespace is gone.
        let mut mounts = mount_points()?;
        mounts.retain(|point| point != "/run/netns");
        Ok(Self(vec![
            ("devices", ip("-oneline link")?),
            ("addresses", ip("-oneline address")?),
            ("routes", ip("route show table all")?),
            ("routes, IPv6", ip("-6 route show table all")?),
            ("neighbours", ip("neighbour show nud permanent")?),
            ("namespaces", names(Path::new("/run/netns"), |_| true)),
            ("states", names(Path::new("/run/lb-lab"), |_| true)),
            ("cgroups", names(&hierarchy, Path::is_dir)),
            ("processes", processes(&hierarchy)?),
            ("mounts", mounts.into_iter().collect()),
            ("settings", settings()?),
        ]))
    }

    /// What is here and was not in `before`, or the other way round, in words.
    pub fn differences(&self, before: &Self) -> Vec<String> {
        let pairs = self.0.iter().zip(&before.0);
        pairs
            .flat_map(|((name, now), (_, then))| {
                now.symmetric_difference(then)
                    .map(move |item| format!("{name}: {item}"))
            })
            .collect()
    }
}

fn names(dir: &Path, wanted: impl Fn(&Path) -> bool) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter(|entry| wanted(&entry.path()))
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// The processes of the root cgroup as `pid name`.
fn processes(hierarchy: &Path) -> Result<BTreeSet<String>> {
    let pids = fs::read_to_string(hierarchy.join("cgroup.procs"))?;
    Ok(pids
        .lines()
        .filter_map(|pid| Some(format!("{pid} {}", name_of(pid.parse().ok()?)?)))
        .collect())
}

/// The name of a process; none if it has ended.
fn name_of(pid: i32) -> Option<String> {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(name.trim().to_owned())
}

/// The processes called `name` on the machine the caller is on.
///
/// # Errors
/// Where the hierarchy cannot be read.
pub fn called(name: &str) -> Result<Vec<i32>> {
    let all = processes(&cgroup::mount_point()?)?;
    let pids = all.iter().filter_map(|process| {
        let (pid, found) = process.split_once(' ')?;
        (found == name).then_some(pid)?.parse().ok()
    });
    Ok(pids.collect())
}

fn settings() -> Result<BTreeSet<String>> {
    ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"]
        .iter()
        .map(|key| {
            let value = fs::read_to_string(format!("/proc/sys/{key}"))?;
            Ok(format!("{key} = {}", value.trim()))
        })
        .collect()
}

/// Numbers of things in the kernel that are seen from everywhere, whatever the namespace. Numbers
/// are given once only.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// Programs.
    pub programs: BTreeSet<u32>,
    /// Maps.
    pub maps: BTreeSet<u32>,
    /// Links.
    pub links: BTreeSet<u32>,
}

impl Loaded {
    /// What belongs to process `pid`: the maps it has open, the programs that use them, all maps of
    /// those, and their links.
    ///
    /// # Errors
    /// Where the kernel does not say.
    pub fn by(pid: i32) -> Result<Self> {
        let mut loaded = Self {
            maps: open_maps(pid)?,
            ..Self::default()
        };
        for program in loaded_programs() {
            // One that ended meanwhile was another test's.
            let Ok(program) = program else { continue };
            let Ok(Some(maps)) = program.map_ids() else {
                continue;
            };
            if maps.iter().any(|map| loaded.maps.contains(map)) {
                loaded.programs.insert(program.id());
                loaded.maps.extend(maps);
            }
        }
        for link in loaded_links().flatten() {
            if loaded.programs.contains(&link.program_id()) {
                loaded.links.insert(link.id());
            }
        }
        Ok(loaded)
    }

    /// Those that still exist, in words.
    pub fn left(&self) -> Vec<String> {
        let programs = loaded_programs().flatten().map(|program| program.id());
        let programs = programs.filter(|id| self.programs.contains(id));
        let maps = loaded_maps().flatten().map(|map| map.id());
        let maps = maps.filter(|id| self.maps.contains(id));
        let links = loaded_links().flatten().map(|link| link.id());
        let links = links.filter(|id| self.links.contains(id));
        programs
            .map(|id| format!("program {id}"))
            .chain(maps.map(|id| format!("map {id}")))
            .chain(links.map(|id| format!("link {id}")))
            .collect()
    }
}

/// The maps that a process has descriptors of.
fn open_maps(pid: i32) -> Result<BTreeSet<u32>> {
    let dir = format!("/proc/{pid}/fdinfo");
    let entries = fs::read_dir(&dir).with_context(|| format!("cannot read {dir}"))?;
    let texts = entries
        .flatten()
        .filter_map(|entry| fs::read_to_string(entry.path()).ok());
    let number = |text: String| {
        text.lines()
            .find_map(|line| line.strip_prefix("map_id:")?.trim().parse().ok())
    };
    Ok(texts.filter_map(number).collect())
}
