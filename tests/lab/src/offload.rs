//! Offload settings of a device, as `ethtool -K` sets them: a live packet's checksum is finished or
//! not depending on them, and every rewrite must be right either way.

use crate::Namespace;
use anyhow::{Context, Result, anyhow};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use std::os::fd::AsRawFd;

/// Which offloads a device claims.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Offload {
    /// Transmit checksums (`tx`): packets leave with CHECKSUM_PARTIAL.
    pub tx: bool,
    /// TCP segmentation (`tso`); the kernel clears it with `tx`.
    pub tso: bool,
    /// Generic segmentation (`gso`).
    pub gso: bool,
}

impl Offload {
    /// Everything on, as devices come.
    pub const ON: Self = Self {
        tx: true,
        tso: true,
        gso: true,
    };
    /// Everything off: each packet is finished before it leaves.
    pub const OFF: Self = Self {
        tx: false,
        tso: false,
        gso: false,
    };
}

/// `struct ethtool_value` of <linux/ethtool.h>.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// `struct ifreq` of <linux/if.h> with the one union member used here.
#[repr(C)]
struct Request {
    name: [libc::c_char; libc::IFNAMSIZ],
    value: *mut Value,
    rest: [u8; 16],
}

// <linux/ethtool.h>: ETHTOOL_STXCSUM, ETHTOOL_STSO, ETHTOOL_SGSO.
const SET_TX: u32 = 0x17;
const SET_TSO: u32 = 0x1f;
const SET_GSO: u32 = 0x24;

// <linux/ethtool.h>: ETHTOOL_GFLAGS, ETHTOOL_SFLAGS, and the flag of devices that write VLAN tags.
const FLAGS: u32 = 0x25;
const SET_FLAGS: u32 = 0x26;
const WRITES_TAGS: u32 = 1 << 7;

/// Whether `device` writes VLAN tags itself (`txvlan`): it is given them beside the packet. Else they stand
/// in the packets it is given.
pub fn vlan_tags(namespace: &Namespace, device: &str, beside: bool) -> Result<()> {
    namespace.enter(|| {
        let failed = || format!("cannot switch txvlan of {device} to {beside}");
        let flags = request(device, FLAGS, 0).with_context(failed)?;
        let wanted = if beside {
            flags | WRITES_TAGS
        } else {
            flags & !WRITES_TAGS
        };
        request(device, SET_FLAGS, wanted).with_context(failed)?;
        let now = request(device, FLAGS, 0).with_context(failed)?;
        if now & WRITES_TAGS == wanted & WRITES_TAGS {
            return Ok(());
        }
        Err(anyhow!("the device keeps it as it was")).with_context(failed)
    })?
}

/// Sets the offloads of `device` in `namespace`. (The ioctls rather than the `ethtool` command:
/// one package less to install.)
pub fn set(namespace: &Namespace, device: &str, offload: Offload) -> Result<()> {
    namespace.enter(|| {
        for (name, command, on) in [
            ("tx", SET_TX, offload.tx),
            ("tso", SET_TSO, offload.tso),
            ("gso", SET_GSO, offload.gso),
        ] {
            request(device, command, u32::from(on))
                .with_context(|| format!("cannot switch {name} of {device} to {on}"))?;
        }
        Ok(())
    })?
}

/// Asks with `data`, and returns what is there then.
fn request(device: &str, command: u32, data: u32) -> Result<u32> {
    let fd = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let mut value = Value { command, data };
    let mut request = Request {
        name: [0; libc::IFNAMSIZ],
        value: &raw mut value,
        rest: [0; 16],
    };
    if device.len() >= libc::IFNAMSIZ {
        return Err(anyhow!("device name {device} is too long"));
    }
    for (to, from) in request.name.iter_mut().zip(device.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    // SAFETY: `request` has the layout and at least the size of struct ifreq, its name ends in a
    // zero byte and its pointer is to a live ethtool_value, which is what SIOCETHTOOL reads.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    if result < 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    Ok(value.data)
}
