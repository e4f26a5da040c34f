//! Is everything still attached as it was left? Others may detach a link, put their own program
//! behind it, or remove a filter; the programs themselves would never notice.

use super::attach::{Attached, SOCKET_HOOKS, tc_program};
use super::clsact;
use super::directory::{Direction, Directory};
use super::load::Programs;
use super::sys;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

/// The socket hooks; says what is wrong with the first that is not as it should be.
pub(super) fn sockets(directory: &Directory, programs: &Programs) -> Result<(), String> {
    for (name, hook, _) in SOCKET_HOOKS {
        let Some(program) = programs.get(name) else {
            continue;
        };
        let on_cgroup = |link: BorrowedFd<'_>| Ok(sys::link_cgroup(link)? != 0);
        link(&directory.cgroup_links().join(hook), program, on_cgroup)
            .map_err(|wrong| format!("the socket hook {hook} {wrong}"))?;
    }
    Ok(())
}

/// The packet path on every device that carries it.
pub(super) fn devices(
    directory: &Directory,
    programs: &Programs,
    attached: &Attached,
) -> Result<(), String> {
    match lost(directory, programs, attached).into_iter().next() {
        None => Ok(()),
        Some((_, wrong)) => Err(wrong),
    }
}

/// The devices on which the packet path is not as it should be, and what is wrong with each.
pub(super) fn lost(
    directory: &Directory,
    programs: &Programs,
    attached: &Attached,
) -> Vec<(u32, String)> {
    let mut lost = Vec::new();
    for (device, carried) in attached.carried() {
        for direction in Direction::BOTH {
            let Some(program) = programs.get(tc_program(direction, carried.link)) else {
                continue;
            };
            let checked = if carried.tcx {
                let pin = directory.tcx_link(device, direction);
                link(&pin, program, |link| Ok(sys::link_device(link)? == device))
            } else {
                match clsact::is_attached(device, direction) {
                    Ok(true) => Ok(()),
                    Ok(false) => Err("has lost its filter".to_owned()),
                    Err(error) => Err(format!("cannot be looked at: {error}")),
                }
            };
            let Err(wrong) = checked else { continue };
            // A device that just went away is no fault; netlink will say so.
            if let Some(name) = name_of(device) {
                let direction = direction.name();
                lost.push((
                    device,
                    format!("the packet path at {direction} of {name} {wrong}"),
                ));
            }
        }
    }
    lost
}

/// One pinned link: there, attached, and with our program behind it.
fn link(
    pin: &Path,
    program: BorrowedFd<'_>,
    attached: impl Fn(BorrowedFd<'_>) -> io::Result<bool>,
) -> Result<(), String> {
    let look = || {
        let link = sys::object_get(pin)?;
        let ours = sys::link_info(link.as_fd())?.prog_id == sys::program_id(program)?;
        Ok((attached(link.as_fd())?, ours))
    };
    match look() {
        Ok((true, true)) => Ok(()),
        Ok((false, _)) => Err("was detached by somebody else".to_owned()),
        Ok((true, false)) => Err("runs a program that is not this agent's".to_owned()),
        Err(error) => {
            let error: io::Error = error;
            Err(format!("cannot be looked at ({}): {error}", pin.display()))
        }
    }
}

fn name_of(device: u32) -> Option<String> {
    let name = nix::net::if_::if_indextoname(device).ok()?;
    Some(name.to_string_lossy().into_owned())
}
