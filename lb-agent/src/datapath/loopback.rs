//! What the loopback device must accept, so that the node can talk to its own node ports.
//!
//! Answers to the node's own clients come back in by the device that the question left by. For
//! questions to the node's own addresses that is the loopback device, and the answer's source is an
//! address of the node, which IPv4 takes for a martian unless told otherwise (`accept_local`, and
//! `route_localnet` for 127.0.0.0/8; see `ip-sysctl`). Nobody but the node itself can send anything
//! to its loopback device, so nothing is opened to others. Set over netlink: files below `/proc/sys`
//! are read-only in containers.

use super::netlink::{Message, NLM_F_ACK, Socket};
use std::io;

// From `linux/rtnetlink.h`, `linux/if_link.h` and `linux/ip.h`.
const RTM_SETLINK: u16 = 19;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_INET_CONF: u16 = 1;
const IPV4_DEVCONF_ACCEPT_LOCAL: u16 = 23;
const IPV4_DEVCONF_ROUTE_LOCALNET: u16 = 26;
#[expect(clippy::cast_possible_truncation, reason = "a constant, 2")]
const AF_INET: u16 = libc::AF_INET as u16;

/// Lets the loopback device `device` accept packets from the node's own addresses.
pub(super) fn accept_own(device: u32) -> io::Result<()> {
    let mut settings = Message::nested();
    settings
        .attribute(IPV4_DEVCONF_ACCEPT_LOCAL, &1_u32.to_ne_bytes())
        .attribute(IPV4_DEVCONF_ROUTE_LOCALNET, &1_u32.to_ne_bytes());
    let mut inet = Message::nested();
    inet.attribute(IFLA_INET_CONF, settings.payload());
    let mut families = Message::nested();
    families.attribute(AF_INET, inet.payload());
    // A `struct ifinfomsg`: family, type, index, flags, mask of flags.
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&device.to_ne_bytes());
    let mut request = Message::new(RTM_SETLINK, NLM_F_ACK, &header);
    request.attribute(IFLA_AF_SPEC, families.payload());
    Socket::open()?.request(request)
}
