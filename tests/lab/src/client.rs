//! Clients of [`crate::Server`], for use inside [`crate::Place::call`] and wherever else a socket
//! can be opened.

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, connect, setsockopt,
    socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use std::fmt;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::str::FromStr;
use std::time::Duration;

/// How long a client waits for what should come at once: only a failing test waits that long.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// What a server said: its name and the two ends of the connection as it saw them.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Answer {
    /// The server's name.
    pub name: String,
    /// The client's address as the server saw it.
    pub peer: SocketAddr,
    /// The server's own end; its address is unspecified for UDP.
    pub local: SocketAddr,
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "name={} peer={} local={}",
            self.name, self.peer, self.local
        )
    }
}

impl FromStr for Answer {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let line = text.lines().next().unwrap_or_default().trim();
        let field = |key: &str| {
            line.split(' ')
                .find_map(|word| word.strip_prefix(key))
                .ok_or_else(|| anyhow!("no {key} in the answer {line:?}"))
        };
        Ok(Self {
            name: field("name=")?.to_owned(),
            peer: field("peer=")?.parse().context("bad peer in the answer")?,
            local: field("local=")?
                .parse()
                .context("bad local address in the answer")?,
        })
    }
}

/// Connects, asks once, closes.
pub fn tcp(server: SocketAddr) -> Result<Answer> {
    let stream = TcpStream::connect_timeout(&server, PATIENCE)
        .with_context(|| format!("cannot connect to {server}"))?;
    ask(&stream)
}

/// Asks once over an open connection, which stays open.
pub fn ask(mut stream: &TcpStream) -> Result<Answer> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream
        .write_all(b"who\n")
        .context("cannot write to the connection")?;
    let mut line = String::new();
    BufReader::new(stream)
        .read_line(&mut line)
        .context("no answer on the connection")?;
    line.parse()
}

/// Like [`tcp`] with a question of `size` bytes: full segments, more of them than one window holds.
pub fn tcp_long(server: SocketAddr, size: usize) -> Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&server, PATIENCE)
        .with_context(|| format!("cannot connect to {server}"))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let question = vec![b'w'; size];
    stream
        .write_all(&question)
        .with_context(|| format!("cannot send {size} bytes to {server}"))?;
    // The line ends with what a short question is.
    ask(&stream)
}

/// True if this kernel has SCTP sockets.
pub fn has_sctp() -> bool {
    sctp_socket(AddressFamily::Inet).is_ok()
}

fn sctp_socket(family: AddressFamily) -> Result<OwnedFd> {
    let (kind, flags) = (SockType::Stream, SockFlag::SOCK_CLOEXEC);
    socket(family, kind, flags, SockProtocol::Sctp).context("cannot open an SCTP socket")
}

/// Opens an SCTP association from `source` (one address: an unbound end tells its peer of all that
/// the machine has, and a peer behind a load balancer cannot reach them), asks with a question of
/// `size` bytes and once more, closes.
pub fn sctp(source: IpAddr, server: SocketAddr, size: usize) -> Result<Answer> {
    let any = SocketAddr::from((source, 0));
    let fd = if server.is_ipv4() {
        sctp_socket(AddressFamily::Inet)?
    } else {
        sctp_socket(AddressFamily::Inet6)?
    };
    let patience = TimeVal::seconds(i64::try_from(PATIENCE.as_secs())?);
    setsockopt(&fd, sockopt::SendTimeout, &patience)?;
    bind(fd.as_raw_fd(), &SockaddrStorage::from(any))
        .with_context(|| format!("cannot bind SCTP to {source}"))?;
    connect(fd.as_raw_fd(), &SockaddrStorage::from(server))
        .with_context(|| format!("cannot connect SCTP to {server}"))?;
    let mut stream = TcpStream::from(fd);
    for part in vec![b'w'; size].chunks(16_384) {
        stream
            .write_all(part)
            .with_context(|| format!("cannot send {size} bytes to {server}"))?;
    }
    ask(&stream)?;
    ask(&stream)
}

/// A UDP socket bound to the unspecified address of the server's family.
pub fn udp_socket(server: SocketAddr) -> Result<UdpSocket> {
    let any: SocketAddr = if server.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (Ipv6Addr::UNSPECIFIED, 0).into()
    };
    let socket = UdpSocket::bind(any).context("cannot open a UDP socket")?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// Asks, and a second time if no answer comes: datagrams are lost on the best of machines, if only
/// because a neighbour's address is not resolved yet.
fn ask_twice(server: SocketAddr, ask: impl Fn(&UdpSocket) -> Result<Answer>) -> Result<Answer> {
    let socket = udp_socket(server)?;
    socket.set_read_timeout(Some(PATIENCE / 2))?;
    ask(&socket).or_else(|error| {
        let cause = error.root_cause().downcast_ref::<io::Error>();
        if cause.is_some_and(|cause| cause.kind() == io::ErrorKind::WouldBlock) {
            return ask(&socket).context("asked twice");
        }
        Err(error)
    })
}

/// Asks over a connected UDP socket with a datagram of `size` bytes.
pub fn udp_connected(server: SocketAddr, size: usize) -> Result<Answer> {
    ask_twice(server, |socket| {
        socket
            .connect(server)
            .with_context(|| format!("cannot connect UDP to {server}"))?;
        ask_connected(socket, server, size)
    })
}

fn ask_connected(socket: &UdpSocket, server: SocketAddr, size: usize) -> Result<Answer> {
    socket
        .send(&vec![b'w'; size])
        .with_context(|| format!("cannot send to {server}"))?;
    let mut buffer = vec![0; 65_536];
    let length = socket
        .recv(&mut buffer)
        .with_context(|| format!("no answer from {server}"))?;
    check_datagram(&buffer[..length], size)
}

/// Asks over an unconnected UDP socket; the answer must come from the address that was asked.
pub fn udp_unconnected(server: SocketAddr, size: usize) -> Result<Answer> {
    ask_twice(server, |socket| ask_datagram(socket, server, size))
}

/// Like [`udp_unconnected`] on a socket that may already have talked to others.
pub fn ask_datagram(socket: &UdpSocket, server: SocketAddr, size: usize) -> Result<Answer> {
    socket
        .send_to(&vec![b'w'; size], server)
        .with_context(|| format!("cannot send to {server}"))?;
    let mut buffer = vec![0; 65_536];
    let (length, from) = socket
        .recv_from(&mut buffer)
        .with_context(|| format!("no answer from {server}"))?;
    if from != server {
        bail!("asked {server}, answered by {from}");
    }
    check_datagram(&buffer[..length], size)
}

fn check_datagram(answer: &[u8], size: usize) -> Result<Answer> {
    if answer.len() < size {
        bail!(
            "asked with {size} bytes, the answer has only {}",
            answer.len()
        );
    }
    String::from_utf8_lossy(answer).parse()
}

#[cfg(test)]
mod tests {
    use super::Answer;

    #[test]
    fn an_answer_survives_its_text_form() {
        let answer = Answer {
            name: "web-1".to_owned(),
            peer: "[fd00::1]:80".parse().unwrap(),
            local: "10.0.0.1:8080".parse().unwrap(),
        };
        assert_eq!(answer.to_string().parse::<Answer>().unwrap(), answer);
    }
}
