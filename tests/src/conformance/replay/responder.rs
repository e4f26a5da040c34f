//! Servers that say which address was asked, whichever it was: their namespace takes every packet
//! that arrives for its own.

use crate::raw;
use anyhow::{Context, Result};
use lb_lab::process::Ready;
use lb_lab::{Answer, Place, Process};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg,
};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, IoSlice, IoSliceMut, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// Starts servers of both families on all of these ports, TCP and UDP.
pub(super) fn start(place: &Place, name: &str, ports: &BTreeSet<u16>) -> Result<Process> {
    Process::start(place, |ready| serve(name, ports, ready))
        .with_context(|| format!("cannot start the servers of {name}"))
}

/// Lets a socket use addresses that its namespace does not have.
pub(super) fn make_transparent(socket: &impl AsFd, v4: bool) -> std::io::Result<()> {
    if v4 {
        raw::set_option(socket, libc::SOL_IP, libc::IP_TRANSPARENT, 1)
    } else {
        raw::set_option(socket, libc::SOL_IPV6, libc::IPV6_TRANSPARENT, 1)
    }
}

fn serve(name: &str, ports: &BTreeSet<u16>, ready: Ready) -> Result<String> {
    let mut streams = Vec::new();
    let mut datagrams = Vec::new();
    for port in ports {
        for any in [
            IpAddr::from(Ipv4Addr::UNSPECIFIED),
            Ipv6Addr::UNSPECIFIED.into(),
        ] {
            let at = SocketAddr::new(any, *port);
            let asked = || format!("cannot listen on {at}");
            streams.push(listener(at).with_context(asked)?);
            datagrams.push((any.is_ipv4(), datagram_socket(at).with_context(asked)?));
        }
    }
    ready.tell()?;
    std::thread::scope(|scope| {
        for listener in &streams {
            scope.spawn(move || {
                for stream in listener.incoming().flatten() {
                    let name = name.to_owned();
                    std::thread::spawn(move || answer_stream(name, &stream));
                }
            });
        }
        for (v4, socket) in &datagrams {
            scope.spawn(move || while answer_datagram(name, socket, *v4).is_ok() {});
        }
    });
    Ok(String::new())
}

fn listener(at: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = raw::tcp(at)?;
    prepare(&socket, at)?;
    nix::sys::socket::listen(&socket, nix::sys::socket::Backlog::new(512)?)?;
    Ok(TcpListener::from(socket))
}

fn datagram_socket(at: SocketAddr) -> std::io::Result<UdpSocket> {
    let socket = raw::udp(at)?;
    if at.is_ipv4() {
        raw::set_option(&socket, libc::SOL_IP, libc::IP_PKTINFO, 1)?;
    } else {
        raw::set_option(&socket, libc::SOL_IPV6, libc::IPV6_RECVPKTINFO, 1)?;
    }
    prepare(&socket, at)?;
    Ok(UdpSocket::from(socket))
}

fn prepare(socket: &OwnedFd, at: SocketAddr) -> std::io::Result<()> {
    if at.is_ipv6() {
        raw::set_option(socket, libc::SOL_IPV6, libc::IPV6_V6ONLY, 1)?;
    }
    raw::set_option(socket, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    make_transparent(socket, at.is_ipv4())?;
    raw::bind(socket, at)
}

/// Answers the first line and ends the connection.
fn answer_stream(name: String, stream: &TcpStream) -> Option<()> {
    let answer = Answer {
        name,
        peer: stream.peer_addr().ok()?,
        local: stream.local_addr().ok()?,
    };
    BufReader::new(stream).read_line(&mut String::new()).ok()?;
    let mut writer = stream;
    writer.write_all(format!("{answer}\n").as_bytes()).ok()
}

/// Answers one datagram from the address it was sent to.
fn answer_datagram(name: &str, socket: &UdpSocket, v4: bool) -> nix::Result<()> {
    let mut buffer = [0; 2048];
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let mut space = nix::cmsg_space!(libc::in_pktinfo, libc::in6_pktinfo);
    let fd = socket.as_raw_fd();
    let got = match recvmsg::<SockaddrStorage>(fd, &mut parts, Some(&mut space), MsgFlags::empty())
    {
        Ok(got) => got,
        // An ICMP error about an earlier answer.
        Err(nix::Error::ECONNREFUSED | nix::Error::EHOSTUNREACH) => return Ok(()),
        Err(error) => return Err(error),
    };
    let asked = got.cmsgs()?.find_map(|message| match message {
        ControlMessageOwned::Ipv4PacketInfo(info) => Some(IpAddr::V4(Ipv4Addr::from(
            info.ipi_addr.s_addr.to_ne_bytes(),
        ))),
        ControlMessageOwned::Ipv6PacketInfo(info) => {
            Some(IpAddr::V6(Ipv6Addr::from(info.ipi6_addr.s6_addr)))
        }
        _ => None,
    });
    let (Some(asked), Some(from)) = (asked, got.address) else {
        return Ok(());
    };
    let peer = match (from.as_sockaddr_in(), from.as_sockaddr_in6()) {
        (Some(peer), _) => SocketAddr::from(std::net::SocketAddrV4::from(*peer)),
        (_, Some(peer)) => SocketAddr::from(std::net::SocketAddrV6::from(*peer)),
        _ => return Ok(()),
    };
    let port = socket.local_addr().map_or(0, |local| local.port());
    let text = Answer {
        name: name.to_owned(),
        peer,
        local: SocketAddr::new(asked, port),
    }
    .to_string();
    let v4_source = match asked {
        IpAddr::V4(asked) => u32::from_ne_bytes(asked.octets()),
        IpAddr::V6(_) => 0,
    };
    let v4_info = libc::in_pktinfo {
        ipi_ifindex: 0,
        ipi_spec_dst: libc::in_addr { s_addr: v4_source },
        ipi_addr: libc::in_addr { s_addr: 0 },
    };
    let v6_source = match asked {
        IpAddr::V4(_) => [0; 16],
        IpAddr::V6(asked) => asked.octets(),
    };
    let v6_info = libc::in6_pktinfo {
        ipi6_addr: libc::in6_addr { s6_addr: v6_source },
        ipi6_ifindex: 0,
    };
    let control = if v4 {
        ControlMessage::Ipv4PacketInfo(&v4_info)
    } else {
        ControlMessage::Ipv6PacketInfo(&v6_info)
    };
    let parts = [IoSlice::new(text.as_bytes())];
    // Who does not get it will say so.
    let _ = sendmsg(fd, &parts, &[control], MsgFlags::empty(), Some(&from));
    Ok(())
}
