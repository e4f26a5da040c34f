//! Getting the programs onto cgroup and devices, and keeping them there.
//!
//! Links are pinned: they outlive the agent. A start puts its own programs behind the links it
//! finds, atomically; a link whose device is gone (`ENOLINK`) is made anew.

use super::clsact;
use super::directory::{Direction, Directory};
use super::error::StartError;
use super::load::Programs;
use super::loopback;
use super::options::{Devices, TcAttach};
use super::sys::{self, Target};
use crate::net::Device;
use aya_obj::generated::bpf_attach_type;
use std::collections::{BTreeMap, HashSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

/// Socket hooks: program, name of the pin, where it goes.
pub(super) const SOCKET_HOOKS: [(&str, &str, bpf_attach_type); 10] = [
    (
        "lb_connect4",
        "connect4",
        bpf_attach_type::BPF_CGROUP_INET4_CONNECT,
    ),
    (
        "lb_connect6",
        "connect6",
        bpf_attach_type::BPF_CGROUP_INET6_CONNECT,
    ),
    (
        "lb_sendmsg4",
        "sendmsg4",
        bpf_attach_type::BPF_CGROUP_UDP4_SENDMSG,
    ),
    (
        "lb_sendmsg6",
        "sendmsg6",
        bpf_attach_type::BPF_CGROUP_UDP6_SENDMSG,
    ),
    (
        "lb_recvmsg4",
        "recvmsg4",
        bpf_attach_type::BPF_CGROUP_UDP4_RECVMSG,
    ),
    (
        "lb_recvmsg6",
        "recvmsg6",
        bpf_attach_type::BPF_CGROUP_UDP6_RECVMSG,
    ),
    (
        "lb_getpeername4",
        "getpeername4",
        bpf_attach_type::BPF_CGROUP_INET4_GETPEERNAME,
    ),
    (
        "lb_getpeername6",
        "getpeername6",
        bpf_attach_type::BPF_CGROUP_INET6_GETPEERNAME,
    ),
    (
        "lb_sock_release",
        "sock_release",
        bpf_attach_type::BPF_CGROUP_INET_SOCK_RELEASE,
    ),
    (
        "lb_sockops",
        "sockops",
        bpf_attach_type::BPF_CGROUP_SOCK_OPS,
    ),
];

/// What kind of device it is to the packet path: each has programs of its own.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Link {
    /// With Ethernet headers.
    Ethernet,
    /// Packets begin with their IP header.
    Ip,
    /// The loopback device.
    Loopback,
}

impl Link {
    const fn of(device: &Device) -> Self {
        if device.loopback {
            Self::Loopback
        } else if device.ethernet {
            Self::Ethernet
        } else {
            Self::Ip
        }
    }
}

/// The tc program for a device.
pub(super) const fn tc_program(direction: Direction, link: Link) -> &'static str {
    match (direction, link) {
        (Direction::Ingress, Link::Ethernet) => "tc_ingress",
        (Direction::Ingress, Link::Ip) => "tc_ingress_l3",
        (Direction::Ingress, Link::Loopback) => "tc_loopback",
        (Direction::Egress, Link::Ethernet | Link::Loopback) => "tc_egress",
        (Direction::Egress, Link::Ip) => "tc_egress_l3",
    }
}

/// Attaches the socket hooks the object has to the cgroup.
pub(super) fn attach_sockets(
    directory: &Directory,
    programs: &Programs,
    cgroup: BorrowedFd<'_>,
    path: &Path,
) -> Result<(), StartError> {
    for (program, hook, attach_type) in SOCKET_HOOKS {
        let Some(fd) = programs.get(program) else {
            continue;
        };
        let pin = directory.cgroup_links().join(hook);
        attach(&pin, fd, Target::Cgroup(cgroup), attach_type).map_err(|source| {
            StartError::Attach {
                program,
                target: format!("the cgroup {}", path.display()),
                source,
            }
        })?;
    }
    Ok(())
}

/// Removes the socket hooks: with socket balancing off every connection is the packet path's.
pub(super) fn detach_sockets(directory: &Directory) -> io::Result<()> {
    for (_, hook, _) in SOCKET_HOOKS {
        remove_pin(&directory.cgroup_links().join(hook))?;
    }
    Ok(())
}

/// Puts a program behind the link pinned at `pin`, or makes and pins a link.
fn attach(
    pin: &Path,
    program: BorrowedFd<'_>,
    target: Target<'_>,
    attach_type: bpf_attach_type,
) -> io::Result<()> {
    if pin.exists() {
        let link = sys::object_get(pin)?;
        if fits(link.as_fd(), target)? {
            match sys::link_update(link.as_fd(), program) {
                Ok(()) => return Ok(()),
                Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {}
                Err(error) => return Err(error),
            }
        }
        remove_pin(pin)?;
    }
    let link = sys::link_create(program, target, attach_type)?;
    sys::object_pin(link.as_fd(), pin)
}

/// True if a link is on this target. A cgroup given anew has another inode, which is its id.
fn fits(link: BorrowedFd<'_>, target: Target<'_>) -> io::Result<bool> {
    match target {
        Target::Device(index) => Ok(sys::link_device(link)? == index),
        Target::Cgroup(cgroup) => {
            let file = std::fs::File::from(cgroup.try_clone_to_owned()?);
            let inode = std::os::unix::fs::MetadataExt::ino(&file.metadata()?);
            Ok(sys::link_cgroup(link)? == inode)
        }
    }
}

fn remove_pin(pin: &Path) -> io::Result<()> {
    match std::fs::remove_file(pin) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// A device the programs could not be put on.
#[derive(Clone, Debug)]
pub struct DeviceProblem {
    /// The device.
    pub device: String,
    /// What went wrong.
    pub message: String,
}

/// How a device carries the programs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Carried {
    /// Which programs it has.
    pub(super) link: Link,
    /// By TCX links, else by clsact filters.
    pub(super) tcx: bool,
}

/// The devices that carry the packet path.
#[derive(Debug)]
pub(super) struct Attached {
    wanted: Devices,
    mode: TcAttach,
    devices: BTreeMap<u32, Carried>,
}

impl Attached {
    pub(super) fn new(wanted: Devices, mode: TcAttach) -> Self {
        Self {
            wanted,
            mode,
            devices: BTreeMap::new(),
        }
    }

    /// Brings the devices in step: programs onto new ones, pins of dead ones away.
    pub(super) fn update(
        &mut self,
        directory: &Directory,
        programs: &Programs,
        present: &[Device],
    ) -> io::Result<Vec<DeviceProblem>> {
        let mut problems = Vec::new();
        let wanted: Vec<&Device> = present
            .iter()
            .filter(|device| self.wants(&device.name))
            .collect();
        let indexes: HashSet<u32> = wanted.iter().map(|device| device.index).collect();
        for (device, carried) in std::mem::take(&mut self.devices) {
            if indexes.contains(&device) {
                self.devices.insert(device, carried);
            } else if let Some(still) = present.iter().find(|other| other.index == device)
                && !carried.tcx
            {
                // Renamed out of the patterns.
                clsact::detach(still.index)?;
            }
        }
        sweep(directory, &indexes)?;
        for device in wanted {
            let before = self.devices.get(&device.index);
            if before.is_some_and(|carried| carried.link == Link::of(device)) {
                continue;
            }
            match self.attach(directory, programs, device) {
                Ok(tcx) => {
                    tracing::debug!(device = device.name, tcx, "packet path attached");
                    self.devices.insert(
                        device.index,
                        Carried {
                            link: Link::of(device),
                            tcx,
                        },
                    );
                }
                // It went away while we looked; netlink will say so.
                Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {}
                Err(error) => problems.push(DeviceProblem {
                    device: device.name.clone(),
                    message: format!("the packet path cannot be attached: {error}"),
                }),
            }
        }
        Ok(problems)
    }

    /// Takes a device for one that carries nothing, so that the next update attaches to it again.
    pub(super) fn forget(&mut self, device: u32) {
        self.devices.remove(&device);
    }

    /// The devices that carry the packet path.
    pub(super) fn indexes(&self) -> impl Iterator<Item = u32> {
        self.devices.keys().copied()
    }

    /// The same with how they do.
    pub(super) fn carried(&self) -> impl Iterator<Item = (u32, Carried)> {
        self.devices
            .iter()
            .map(|(index, carried)| (*index, *carried))
    }

    fn wants(&self, name: &str) -> bool {
        match &self.wanted {
            Devices::Auto => true,
            Devices::Globs(globs) => globs.iter().any(|glob| matches(glob, name)),
        }
    }

    /// True if the device got TCX links, false for clsact filters.
    fn attach(
        &self,
        directory: &Directory,
        programs: &Programs,
        device: &Device,
    ) -> io::Result<bool> {
        if device.loopback {
            loopback::accept_own(device.index)?;
        }
        if self.mode != TcAttach::Clsact {
            match attach_tcx(directory, programs, device) {
                Ok(()) => {
                    clsact::detach(device.index)?;
                    return Ok(true);
                }
                // Before 6.6 the kernel does not know the attach type.
                Err(error)
                    if self.mode == TcAttach::Auto
                        && error.raw_os_error() == Some(libc::EINVAL) => {}
                Err(error) => return Err(error),
            }
        }
        for direction in Direction::BOTH {
            let name = tc_program(direction, Link::of(device));
            if let Some(program) = programs.get(name) {
                clsact::attach(device.index, direction, program)?;
            }
        }
        for direction in Direction::BOTH {
            remove_pin(&directory.tcx_link(device.index, direction))?;
        }
        Ok(false)
    }
}

fn attach_tcx(directory: &Directory, programs: &Programs, device: &Device) -> io::Result<()> {
    for direction in Direction::BOTH {
        let name = tc_program(direction, Link::of(device));
        let Some(program) = programs.get(name) else {
            continue;
        };
        let attach_type = match direction {
            Direction::Ingress => bpf_attach_type::BPF_TCX_INGRESS,
            Direction::Egress => bpf_attach_type::BPF_TCX_EGRESS,
        };
        attach(
            &directory.tcx_link(device.index, direction),
            program,
            Target::Device(device.index),
            attach_type,
        )?;
    }
    Ok(())
}

/// Removes the pins of links on devices that are gone or not wanted any more.
fn sweep(directory: &Directory, wanted: &HashSet<u32>) -> io::Result<()> {
    for entry in std::fs::read_dir(directory.tcx_links())? {
        let entry = entry?;
        let name = entry.file_name();
        let device = name
            .to_str()
            .and_then(|name| name.split_once('-'))
            .and_then(|(device, _)| device.parse::<u32>().ok());
        if device.is_none_or(|device| !wanted.contains(&device)) {
            remove_pin(&entry.path())?;
        }
    }
    Ok(())
}

/// Shell patterns with `*` and `?`, as everybody expects of device names.
fn matches(glob: &str, name: &str) -> bool {
    let Some((first, rest)) = glob.chars().next().map(|c| (c, &glob[c.len_utf8()..])) else {
        return name.is_empty();
    };
    if first == '*' {
        return (name.char_indices().map(|(at, _)| at).chain([name.len()]))
            .any(|at| matches(rest, &name[at..]));
    }
    let mut characters = name.chars();
    match characters.next() {
        Some(c) if first == '?' || first == c => matches(rest, characters.as_str()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_patterns_match_as_in_a_shell() {
        for (glob, name, expected) in [
            ("eth0", "eth0", true),
            ("eth0", "eth01", false),
            ("eth*", "eth", true),
            ("eth*", "veth0", false),
            ("*", "anything", true),
            ("veth?", "veth1", true),
            ("veth?", "veth12", false),
            ("*th*0", "veth10", true),
        ] {
            assert_eq!(matches(glob, name), expected, "{glob} {name}");
        }
    }
}
