//! The kernel's list of UDP sockets, and how one of them is closed: `sock_diag(7)`,
//! linux/inet_diag.h. Words only; whom to close is not said here.

use super::netlink::{Message, NLM_F_ACK, NLM_F_DUMP, Socket};
use lb_common::addr::{Addr, Endpoint, Port, Protocol};
use std::io;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// Kernel 4.5 with `CONFIG_INET_DIAG_DESTROY`; needs `CAP_NET_ADMIN`.
const SOCK_DESTROY: u16 = 21;

/// `inet_diag_req_v2.idiag_states`: sockets with a peer.
const CONNECTED: u32 = 1 << 1;

/// Where `struct inet_diag_sockid` begins in `inet_diag_msg` and, with a length of 48 bytes, how it
/// is laid out: ports, source, destination, device, cookie.
const ID: std::ops::Range<usize> = 4..52;
/// `AF_INET` and `AF_INET6`, which lists IPv4-mapped ones.
const FAMILIES: [u8; 2] = [2, 10];

/// A connected socket, by the name that the kernel knows it by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Connected {
    family: u8,
    /// `inet_diag_sockid`; with the cookie in it no other socket is meant, whatever has happened since.
    id: [u8; 48],
    /// The address it is connected to.
    pub(super) peer: Endpoint,
    /// The socket's cookie, as programs know it.
    pub(super) cookie: u64,
}

/// Hands every connected UDP socket of this thread's network namespace to `each`.
pub(super) fn list(netlink: &Socket, mut each: impl FnMut(Connected)) -> io::Result<()> {
    for family in FAMILIES {
        let header = request(family, CONNECTED, &[0; 48]);
        let dump = Message::new(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, &header);
        netlink.exchange(dump, |_, payload| {
            if let Some(socket) = parse(payload) {
                each(socket);
            }
        })?;
    }
    Ok(())
}

/// Closes a socket under its program: waiting and receiving fail with `ECONNABORTED`, sending with
/// `EDESTADDRREQ`. `NotFound` if it has ended or has another peer by now.
pub(super) fn destroy(netlink: &Socket, socket: &Connected) -> io::Result<()> {
    let header = request(socket.family, CONNECTED, &socket.id);
    netlink.request(Message::new(SOCK_DESTROY, NLM_F_ACK, &header))
}

/// `struct inet_diag_req_v2`.
fn request(family: u8, states: u32, id: &[u8; 48]) -> Vec<u8> {
    let mut header = vec![family, Protocol::UDP.0, 0, 0];
    header.extend_from_slice(&states.to_ne_bytes());
    header.extend_from_slice(id);
    header
}

/// Reads an `inet_diag_msg`; its attributes tell nothing that is asked here.
fn parse(message: &[u8]) -> Option<Connected> {
    let family = *message.first()?;
    let id: [u8; 48] = message.get(ID)?.try_into().ok()?;
    let destination: [u8; 16] = id.get(20..36)?.try_into().ok()?;
    let addr = if family == FAMILIES[0] {
        let [a, b, c, d, ..] = destination;
        Addr::from(std::net::IpAddr::from([a, b, c, d]))
    } else {
        let [a, b, c, d]: [[u8; 4]; 4] = zerocopy::transmute!(destination);
        Addr::from_v6_words([a, b, c, d].map(u32::from_ne_bytes))
    };
    let peer = Endpoint {
        addr,
        port: Port(u16::from_ne_bytes([id[2], id[3]])),
    };
    let half = |at: usize| -> Option<u64> {
        let bytes = id.get(at..at + 4)?.try_into().ok()?;
        Some(u32::from_ne_bytes(bytes).into())
    };
    Some(Connected {
        family,
        id,
        peer,
        cookie: half(40)? | half(44)? << 32,
    })
}
