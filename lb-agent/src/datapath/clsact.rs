//! The packet path before TCX (6.6), and by option anywhere: filters on a clsact qdisc.
//!
//! Filters belong to the device, not to us: they outlive the agent by themselves and are known by
//! a fixed priority and handle. Adding one twice would add a second, so ours is replaced if it is
//! there. Spoken over a netlink socket of our own: aya's way needs names and forgets links.

use super::directory::Direction;
use super::netlink::{Message, NLM_F_ACK, NLM_F_DUMP, Socket};
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Behind filters that people put first (1), before those that put themselves last. One of several,
/// as a priority that somebody else uses for another kind of filter is closed to us.
const PRIORITIES: RangeInclusive<u32> = 0x6c62..=0x6c65;
/// Any value will do; this one is easy to find in `tc filter show`.
const HANDLE: u32 = 0x6c62;

// From `linux/rtnetlink.h` and `linux/pkt_sched.h`.
const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const RTM_GETTFILTER: u16 = 46;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
/// The program's return value is the verdict.
const TCA_BPF_FLAG_ACT_DIRECT: u32 = 1;
const TC_H_CLSACT: u32 = 0xffff_fff1;
const CLSACT_HANDLE: u32 = 0xffff_0000;
const ETH_P_ALL: u16 = 3;

const fn parent(direction: Direction) -> u32 {
    match direction {
        Direction::Ingress => 0xffff_fff2,
        Direction::Egress => 0xffff_fff3,
    }
}

/// A request about a device's traffic control: a `struct tcmsg`.
fn message(kind: u16, flags: u16, device: u32, handle: u32, parent: u32, info: u32) -> Message {
    let mut header = [0; 20];
    for (place, word) in header[4..]
        .chunks_exact_mut(4)
        .zip([device, handle, parent, info])
    {
        place.copy_from_slice(&word.to_ne_bytes());
    }
    Message::new(kind, flags, &header)
}

fn filter_info(priority: u32) -> u32 {
    (priority << 16) | u32::from(ETH_P_ALL.to_be())
}

/// Puts a program on a device, in place of an older one of ours.
pub(super) fn attach(device: u32, direction: Direction, program: BorrowedFd<'_>) -> io::Result<()> {
    let netlink = Socket::open()?;
    let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
    let mut qdisc = message(RTM_NEWQDISC, flags, device, CLSACT_HANDLE, TC_H_CLSACT, 0);
    qdisc.attribute(TCA_KIND, b"clsact\0");
    match netlink.request(qdisc) {
        Err(error) if error.raw_os_error() != Some(libc::EEXIST) => return Err(error),
        _ => {}
    }
    let mut options = Message::nested();
    let name = format!("lb_{}\0", direction.name());
    options
        .attribute(TCA_BPF_FD, &program.as_raw_fd().to_ne_bytes())
        .attribute(TCA_BPF_NAME, name.as_bytes())
        .attribute(TCA_BPF_FLAGS, &TCA_BPF_FLAG_ACT_DIRECT.to_ne_bytes());
    let mut attached = Err(io::Error::from_raw_os_error(libc::EINVAL));
    for priority in PRIORITIES {
        if attached.is_ok() {
            // One of ours that found the better priority taken must not stay beside this one.
            remove(&netlink, device, direction, priority)?;
            continue;
        }
        let mut filter = message(
            RTM_NEWTFILTER,
            NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE,
            device,
            HANDLE,
            parent(direction),
            filter_info(priority),
        );
        filter
            .attribute(TCA_KIND, b"bpf\0")
            .attribute(TCA_OPTIONS, options.payload());
        attached = match netlink.request(filter) {
            Err(error) if error.raw_os_error() != Some(libc::EINVAL) => return Err(error),
            other => other,
        };
    }
    attached
}

/// Removes our filter of one priority. True if there was one.
fn remove(netlink: &Socket, device: u32, direction: Direction, priority: u32) -> io::Result<bool> {
    let mut filter = message(
        RTM_DELTFILTER,
        NLM_F_ACK,
        device,
        HANDLE,
        parent(direction),
        filter_info(priority),
    );
    filter.attribute(TCA_KIND, b"bpf\0");
    match netlink.request(filter) {
        Ok(()) => Ok(true),
        // No such filter, one of another kind, no such qdisc, no such device.
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::ENOENT | libc::EINVAL | libc::ENODEV)
            ) =>
        {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Whether a device has our filter.
pub(super) fn is_attached(device: u32, direction: Direction) -> io::Result<bool> {
    let netlink = Socket::open()?;
    for priority in PRIORITIES {
        let mut filter = message(
            RTM_GETTFILTER,
            NLM_F_ACK,
            device,
            HANDLE,
            parent(direction),
            filter_info(priority),
        );
        filter.attribute(TCA_KIND, b"bpf\0");
        match netlink.request(filter) {
            Ok(()) => return Ok(true),
            // No such filter, one of another kind, no such qdisc.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

/// Takes our filters off a device, and the qdisc if nobody else has a filter there. True if there
/// was anything of ours.
pub(super) fn detach(device: u32) -> io::Result<bool> {
    let netlink = Socket::open()?;
    let mut found = false;
    for direction in Direction::BOTH {
        for priority in PRIORITIES {
            found |= remove(&netlink, device, direction, priority)?;
        }
    }
    if found && !has_filters(&netlink, device)? {
        let mut qdisc = message(
            RTM_DELQDISC,
            NLM_F_ACK,
            device,
            CLSACT_HANDLE,
            TC_H_CLSACT,
            0,
        );
        qdisc.attribute(TCA_KIND, b"clsact\0");
        netlink.request(qdisc)?;
    }
    Ok(found)
}

fn has_filters(netlink: &Socket, device: u32) -> io::Result<bool> {
    let mut found = false;
    for direction in Direction::BOTH {
        let dump = message(RTM_GETTFILTER, NLM_F_DUMP, device, 0, parent(direction), 0);
        netlink.exchange(dump, |kind, _| found |= kind == RTM_NEWTFILTER)?;
    }
    Ok(found)
}
