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

fn request(device: &str, command: u32, data: u32) -> Result<()> {
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
    Ok(())
}
