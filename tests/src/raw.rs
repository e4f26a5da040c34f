//! System calls the standard library does not offer: what a client written in C may do to a
//! socket.

use std::io::{Error, Result};
use std::mem::{size_of, zeroed};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// A socket address as the kernel wants it.
#[derive(Clone, Copy)]
pub struct RawAddress {
    storage: libc::sockaddr_storage,
    length: libc::socklen_t,
}

impl From<SocketAddr> for RawAddress {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "sizes of small structs and families"
    )]
    fn from(address: SocketAddr) -> Self {
        // SAFETY: all zeros is a valid sockaddr_storage.
        let mut storage: libc::sockaddr_storage = unsafe { zeroed() };
        let length = match address {
            SocketAddr::V4(v4) => {
                let raw = libc::sockaddr_in {
                    sin_family: libc::AF_INET as u16,
                    sin_port: v4.port().to_be(),
                    sin_addr: libc::in_addr {
                        s_addr: u32::from_ne_bytes(v4.ip().octets()),
                    },
                    sin_zero: [0; 8],
                };
                // SAFETY: sockaddr_storage is large and aligned enough for any address.
                unsafe { (&raw mut storage).cast::<libc::sockaddr_in>().write(raw) };
                size_of::<libc::sockaddr_in>()
            }
            SocketAddr::V6(v6) => {
                let raw = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as u16,
                    sin6_port: v6.port().to_be(),
                    sin6_flowinfo: 0,
                    sin6_addr: libc::in6_addr {
                        s6_addr: v6.ip().octets(),
                    },
                    sin6_scope_id: 0,
                };
                // SAFETY: as above.
                unsafe { (&raw mut storage).cast::<libc::sockaddr_in6>().write(raw) };
                size_of::<libc::sockaddr_in6>()
            }
        };
        Self {
            storage,
            length: length as libc::socklen_t,
        }
    }
}

/// The size of any address.
#[expect(clippy::cast_possible_truncation, reason = "128 bytes")]
const ROOM: libc::socklen_t = size_of::<libc::sockaddr_storage>() as libc::socklen_t;

impl RawAddress {
    /// Room for an address that the kernel will write.
    pub(crate) fn room() -> Self {
        Self {
            // SAFETY: all zeros is a valid sockaddr_storage.
            storage: unsafe { zeroed() },
            length: ROOM,
        }
    }

    pub(crate) fn pointer(&self) -> *const libc::sockaddr {
        (&raw const self.storage).cast()
    }

    pub(crate) fn pointer_mut(&mut self) -> *mut libc::sockaddr {
        (&raw mut self.storage).cast()
    }

    pub(crate) fn length(&self) -> libc::socklen_t {
        self.length
    }

    /// The address that the kernel wrote.
    pub(crate) fn address(&self) -> SocketAddr {
        if i32::from(self.storage.ss_family) == libc::AF_INET {
            // SAFETY: the family says so, and sockaddr_storage is aligned for any address.
            let raw = unsafe { (&raw const self.storage).cast::<libc::sockaddr_in>().read() };
            let ip = Ipv4Addr::from(raw.sin_addr.s_addr.to_ne_bytes());
            (ip, u16::from_be(raw.sin_port)).into()
        } else {
            // SAFETY: as above.
            let raw = unsafe {
                (&raw const self.storage)
                    .cast::<libc::sockaddr_in6>()
                    .read()
            };
            let ip = Ipv6Addr::from(raw.sin6_addr.s6_addr);
            (ip, u16::from_be(raw.sin6_port)).into()
        }
    }
}

pub(crate) fn check(result: impl Into<i64>) -> Result<i64> {
    match result.into() {
        -1 => Err(Error::last_os_error()),
        value => Ok(value),
    }
}

fn open(like: SocketAddr, kind: i32, protocol: i32) -> Result<OwnedFd> {
    let family = if like.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    };
    // SAFETY: plain system call with integers.
    let fd = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) };
    check(fd)?;
    // SAFETY: the descriptor was just opened and has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A TCP socket of the address's family.
pub fn tcp(like: SocketAddr) -> Result<OwnedFd> {
    open(like, libc::SOCK_STREAM, 0)
}

/// A UDP socket of the address's family, not bound.
pub fn udp(like: SocketAddr) -> Result<OwnedFd> {
    open(like, libc::SOCK_DGRAM, 0)
}

/// A socket for packets of an IP protocol, without the IP header on their way out.
pub fn raw_socket(like: SocketAddr, protocol: i32) -> Result<OwnedFd> {
    open(like, libc::SOCK_RAW, protocol)
}

/// Connects a socket of any kind.
pub fn connect(socket: &impl AsFd, to: SocketAddr) -> Result<()> {
    let to = RawAddress::from(to);
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the address outlives the call.
    check(unsafe { libc::connect(fd, to.pointer(), to.length) }).map(drop)
}

/// Binds a socket of any kind.
pub fn bind(socket: &impl AsFd, to: SocketAddr) -> Result<()> {
    let to = RawAddress::from(to);
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the address outlives the call.
    check(unsafe { libc::bind(fd, to.pointer(), to.length) }).map(drop)
}

/// `getpeername`.
pub fn peer(socket: &impl AsFd) -> Result<SocketAddr> {
    let mut peer = RawAddress::room();
    let mut size = peer.length;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the address has room for `size` bytes.
    check(unsafe { libc::getpeername(fd, peer.pointer_mut(), &raw mut size) })?;
    Ok(peer.address())
}

/// `SO_ORIGINAL_DST`: whom a connection was for before netfilter redirected it.
pub fn original_destination(socket: &impl AsFd, ipv6: bool) -> Result<SocketAddr> {
    use nix::sys::socket::{getsockopt, sockopt};
    if ipv6 {
        let raw = getsockopt(&socket.as_fd(), sockopt::Ip6tOriginalDst)?;
        let address = Ipv6Addr::from(raw.sin6_addr.s6_addr);
        return Ok((address, u16::from_be(raw.sin6_port)).into());
    }
    let raw = getsockopt(&socket.as_fd(), sockopt::OriginalDst)?;
    let address = Ipv4Addr::from(u32::from_be(raw.sin_addr.s_addr));
    Ok((address, u16::from_be(raw.sin_port)).into())
}

/// `connect(AF_UNSPEC)`: takes a socket's peer away.
pub fn disconnect(socket: &impl AsFd) -> Result<()> {
    let mut none = RawAddress::from(SocketAddr::from(([0, 0, 0, 0], 0)));
    #[expect(clippy::cast_possible_truncation, reason = "the family is 0")]
    {
        none.storage.ss_family = libc::AF_UNSPEC as u16;
    }
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the address outlives the call.
    check(unsafe { libc::connect(fd, none.pointer(), none.length) }).map(drop)
}

/// `sendto` with flags.
pub fn send_to(socket: &impl AsFd, data: &[u8], to: SocketAddr, flags: i32) -> Result<usize> {
    let to = RawAddress::from(to);
    let fd = socket.as_fd().as_raw_fd();
    let (pointer, length) = (data.as_ptr().cast(), data.len());
    // SAFETY: data and address outlive the call.
    let sent = unsafe { libc::sendto(fd, pointer, length, flags, to.pointer(), to.length) };
    check(i64::try_from(sent).unwrap_or(-1)).map(|sent| usize::try_from(sent).unwrap_or(0))
}

/// `send` with flags.
pub fn send(socket: &impl AsFd, data: &[u8], flags: i32) -> Result<usize> {
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the data outlives the call.
    let sent = unsafe { libc::send(fd, data.as_ptr().cast(), data.len(), flags) };
    check(i64::try_from(sent).unwrap_or(-1)).map(|sent| usize::try_from(sent).unwrap_or(0))
}

/// `recvfrom` with flags: the datagram and whom it came from.
pub fn receive_from(socket: &impl AsFd, flags: i32) -> Result<(Vec<u8>, SocketAddr)> {
    let mut data = vec![0_u8; 2048];
    let mut from = RawAddress::room();
    let fd = socket.as_fd().as_raw_fd();
    let (pointer, length) = (data.as_mut_ptr().cast(), data.len());
    let (mut size, address) = (from.length, from.pointer_mut());
    // SAFETY: the buffer is `length` bytes long, the address has room for `size`.
    let got = unsafe { libc::recvfrom(fd, pointer, length, flags, address, &raw mut size) };
    let got = check(i64::try_from(got).unwrap_or(-1))?;
    data.truncate(usize::try_from(got).unwrap_or(0));
    Ok((data, from.address()))
}

/// Sets an integer option.
pub fn set_option(socket: &impl AsFd, level: i32, option: i32, value: i32) -> Result<()> {
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the option reads four bytes of `value`.
    let result = unsafe { libc::setsockopt(fd, level, option, (&raw const value).cast(), 4) };
    check(result).map(drop)
}

/// Makes the descriptor non-blocking.
pub fn set_nonblocking(socket: &impl AsFd) -> Result<()> {
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: plain system call with integers.
    check(unsafe { libc::fcntl(fd, libc::F_SETFL, libc::O_NONBLOCK) }).map(drop)
}

/// A copy of descriptor `number` of process `pid` (`pidfd_getfd`, 5.6).
pub fn descriptor_of(pid: u32, number: i32) -> Result<OwnedFd> {
    // SAFETY: plain system call with integers; so the next one.
    let process = check(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    let process = i32::try_from(process).unwrap_or(-1);
    // SAFETY: the descriptor was just opened and has no other owner.
    let process = unsafe { OwnedFd::from_raw_fd(process) };
    // SAFETY: see above.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0) };
    let fd = i32::try_from(check(fd)?).unwrap_or(-1);
    // SAFETY: as above.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Waits until the socket can be written to, or failed.
pub fn wait_writable(socket: &impl AsFd) -> Result<()> {
    wait(socket, libc::POLLOUT)
}

/// Waits until the socket can be read from, or failed.
pub fn wait_readable(socket: &impl AsFd) -> Result<()> {
    wait(socket, libc::POLLIN)
}

fn wait(socket: &impl AsFd, events: i16) -> Result<()> {
    let mut poll = libc::pollfd {
        fd: socket.as_fd().as_raw_fd(),
        events,
        revents: 0,
    };
    // SAFETY: one valid pollfd that outlives the call.
    match check(unsafe { libc::poll(&raw mut poll, 1, 10_000) })? {
        0 => Err(Error::from(std::io::ErrorKind::TimedOut)),
        _ => Ok(()),
    }
}

/// True if the error says that the kernel lacks the system call or forbids it to everybody.
pub fn is_missing(error: &Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOSYS | libc::EPERM | libc::EOPNOTSUPP)
    )
}
