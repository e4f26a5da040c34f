//! A UDP conversation over a raw socket: no socket hook sees it.

use crate::raw::{self, RawAddress, check};
use anyhow::{Context, Result, bail};
use lb_common::addr::Endpoint;
use lb_common::host::craft;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

/// Asks the server over a raw socket from `source`, and returns what it said. The answer must come
/// from the address and port that were asked.
pub fn ask(source: IpAddr, server: SocketAddr, patience: Duration) -> Result<String> {
    // Holds the port, so that nobody else is given it and the stack does not call it unreachable.
    let holder = UdpSocket::bind((source, 0))?;
    let port = holder.local_addr()?.port();
    let socket = raw::raw_socket(server, libc::IPPROTO_UDP).context("cannot open a raw socket")?;
    let (from, to) = (
        Endpoint::from(SocketAddr::from((source, port))),
        Endpoint::from(server),
    );
    let packet = craft::udp(&from, &to, b"who\n");
    // The kernel writes the IP header, and takes no port for a raw socket.
    let header = if server.is_ipv4() { 20 } else { 40 };
    let peer = RawAddress::from(SocketAddr::from((server.ip(), 0)));
    let datagram = &packet[header..];
    // SAFETY: pointers and lengths belong together.
    check(unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            datagram.as_ptr().cast(),
            datagram.len(),
            0,
            peer.pointer(),
            peer.length(),
        ) as i64
    })
    .context("cannot send over a raw socket")?;
    let socket = UdpSocket::from(socket);
    socket.set_read_timeout(Some(patience))?;
    let (end, mut buffer) = (Instant::now() + patience, [0; 2048]);
    while Instant::now() < end {
        let (length, peer) = socket.recv_from(&mut buffer).context("no answer")?;
        // IPv4 raw sockets see the IP header, IPv6 ones do not.
        let skip = if server.is_ipv4() { 20 } else { 0 };
        let Some([a, b, c, d, _, _, _, _, said @ ..]) = buffer[..length].get(skip..) else {
            continue;
        };
        let ports = [u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d])];
        if ports == [server.port(), port] && peer.ip() == server.ip() {
            return Ok(String::from_utf8_lossy(said).into_owned());
        }
    }
    bail!("no answer from {server}")
}
