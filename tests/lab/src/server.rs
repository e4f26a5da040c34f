//! A server that says who it is and whom it saw: TCP (lines or HTTP) and UDP, or SCTP where the kernel
//! has it; IPv4 and IPv6.

use crate::client::Answer;
use crate::place::Place;
use crate::process::{Process, Ready};
use anyhow::{Context, Result};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, bind,
    listen, setsockopt, socket, sockopt,
};
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread::Scope;

/// A running server; it ends when this is dropped.
#[derive(Debug)]
pub struct Server {
    process: Process,
}

impl Server {
    /// Starts a server called `name` on `port`, TCP and UDP, all local addresses of both families,
    /// and returns once it accepts.
    pub fn start(place: &Place, name: &str, port: u16) -> Result<Self> {
        let process = Process::start(place, |ready| serve(name, port, ready))
            .with_context(|| format!("cannot start server {name} on port {port}"))?;
        Ok(Self { process })
    }

    /// The same over SCTP, one association a socket, which talks lines as a TCP connection does.
    pub fn start_sctp(place: &Place, name: &str, port: u16) -> Result<Self> {
        let process = Process::start(place, |ready| {
            let listeners = listeners(Some(SockProtocol::Sctp), port)?;
            ready.tell()?;
            std::thread::scope(|scope| answer_streams(scope, name, &listeners));
            Ok(String::new())
        })
        .with_context(|| format!("cannot start server {name} on SCTP port {port}"))?;
        Ok(Self { process })
    }

    /// Its process id.
    pub fn id(&self) -> Option<u32> {
        self.process.id()
    }
}

fn serve(name: &str, port: u16, ready: Ready) -> Result<String> {
    let listeners = listeners(None, port)?;
    let datagrams = sockets(SockType::Datagram, None, port)?.map(UdpSocket::from);
    ready.tell()?;
    std::thread::scope(|scope| {
        answer_streams(scope, name, &listeners);
        for socket in &datagrams {
            scope.spawn(move || answer_datagrams(name, socket));
        }
    });
    Ok(String::new())
}

/// Listeners of TCP, or of another protocol that has streams: those of the standard library say no
/// more to the kernel than what is meant for any.
fn listeners(protocol: Option<SockProtocol>, port: u16) -> Result<[TcpListener; 2]> {
    Ok(sockets(SockType::Stream, protocol, port)?.map(TcpListener::from))
}

fn answer_streams<'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: &'scope str,
    listeners: &'scope [TcpListener],
) {
    for listener in listeners {
        scope.spawn(move || {
            for stream in listener.incoming().flatten() {
                let name = name.to_owned();
                std::thread::spawn(move || answer_stream(&name, &stream));
            }
        });
    }
}

/// One IPv4 and one IPv6-only socket, bound and (streams) listening.
fn sockets(kind: SockType, protocol: Option<SockProtocol>, port: u16) -> Result<[OwnedFd; 2]> {
    let open = |family| -> Result<OwnedFd> {
        let fd = socket(family, kind, SockFlag::SOCK_CLOEXEC, protocol)
            .with_context(|| format!("cannot open a socket of {protocol:?}"))?;
        if kind == SockType::Stream {
            setsockopt(&fd, sockopt::ReuseAddr, &true).context("cannot set SO_REUSEADDR")?;
        }
        Ok(fd)
    };
    let v4 = open(AddressFamily::Inet)?;
    let any = SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port));
    bind(v4.as_raw_fd(), &any).with_context(|| format!("cannot bind 0.0.0.0:{port}"))?;
    let v6 = open(AddressFamily::Inet6)?;
    setsockopt(&v6, sockopt::Ipv6V6Only, &true).context("cannot set IPV6_V6ONLY")?;
    let any = SockaddrIn6::from(SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0));
    bind(v6.as_raw_fd(), &any).with_context(|| format!("cannot bind [::]:{port}"))?;
    if kind == SockType::Stream {
        listen(&v4, Backlog::new(1024)?).context("cannot listen")?;
        listen(&v6, Backlog::new(1024)?).context("cannot listen")?;
    }
    Ok([v4, v6])
}

/// Answers each line; an HTTP request gets one response and the connection's end.
fn answer_stream(name: &str, stream: &TcpStream) -> Option<()> {
    let answer = Answer {
        name: name.to_owned(),
        peer: stream.peer_addr().ok()?,
        local: stream.local_addr().ok()?,
    };
    let mut lines = BufReader::new(stream);
    let mut writer = stream;
    let mut line = String::new();
    loop {
        line.clear();
        if lines.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if line.starts_with("GET ") {
            while lines.read_line(&mut line).ok()? > 2 {}
            let body = format!("{answer}\n");
            let length = body.len();
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n\
                 Connection: close\r\n\r\n"
            );
            writer.write_all(format!("{head}{body}").as_bytes()).ok()?;
            return Some(());
        }
        writer.write_all(format!("{answer}\n").as_bytes()).ok()?;
    }
}

/// Answers each datagram with one of the same size (or the answer's, if that is longer): a large
/// question makes fragments both ways.
fn answer_datagrams(name: &str, socket: &UdpSocket) {
    let mut buffer = vec![0; 65_536];
    while let Ok(local) = socket.local_addr() {
        // An ICMP error of an earlier answer shows up here; the next datagram matters.
        let Ok((length, peer)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        let answer = Answer {
            name: name.to_owned(),
            peer,
            local,
        };
        let text = format!("{answer}\n{:1$}", "", length);
        let size = length.max(answer.to_string().len() + 1);
        let _ = socket.send_to(&text.as_bytes()[..size.min(text.len())], peer);
    }
}
