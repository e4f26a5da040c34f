//! System calls the standard library does not offer: what a client written in C may do to a
//! socket.

use std::io::{Error, Result};
use std::mem::{size_of, zeroed};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

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

impl RawAddress {
    fn pointer(&self) -> *const libc::sockaddr {
        (&raw const self.storage).cast()
    }
}

fn check(result: impl Into<i64>) -> Result<i64> {
    match result.into() {
        -1 => Err(Error::last_os_error()),
        value => Ok(value),
    }
}

fn open(family: SocketAddr, kind: i32) -> Result<OwnedFd> {
    let family = if family.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    };
    // SAFETY: plain system call with integers.
    let fd = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, 0) };
    check(fd)?;
    // SAFETY: the descriptor was just opened and has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A TCP socket of the address's family.
pub fn tcp(like: SocketAddr) -> Result<OwnedFd> {
    open(like, libc::SOCK_STREAM)
}

/// Connects a socket of any kind.
pub fn connect(socket: &impl AsFd, to: SocketAddr) -> Result<()> {
    let to = RawAddress::from(to);
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the address outlives the call.
    check(unsafe { libc::connect(fd, to.pointer(), to.length) }).map(drop)
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

/// Waits until the socket can be written to, or failed.
pub fn wait_writable(socket: &impl AsFd) -> Result<()> {
    let mut poll = libc::pollfd {
        fd: socket.as_fd().as_raw_fd(),
        events: libc::POLLOUT,
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

/// Connects by an io_uring of one entry: the kernel connects on behalf of the ring.
pub fn io_uring_connect(socket: &impl AsFd, to: SocketAddr) -> Result<()> {
    const IORING_OP_CONNECT: u8 = 16;
    let to = RawAddress::from(to);
    let ring = Ring::new()?;
    let mut entry = [0_u8; 64];
    entry[0] = IORING_OP_CONNECT;
    entry[4..8].copy_from_slice(&socket.as_fd().as_raw_fd().to_ne_bytes());
    // The address's length goes where other operations have the offset.
    entry[8..16].copy_from_slice(&u64::from(to.length).to_ne_bytes());
    entry[16..24].copy_from_slice(&(to.pointer() as u64).to_ne_bytes());
    match ring.submit_and_wait(&entry)? {
        0 => Ok(()),
        error => Err(Error::from_raw_os_error(-error)),
    }
}

/// Offsets of `struct io_uring_params` (include/uapi/linux/io_uring.h).
const PARAMS: usize = 120;
const SQ_OFFSETS: usize = 40;
const CQ_OFFSETS: usize = 80;
const RING_BYTES: usize = 4096;

struct Ring {
    fd: OwnedFd,
    params: [u8; PARAMS],
    submissions: *mut AtomicU32,
    completions: *mut AtomicI32,
    entries: *mut libc::c_void,
}

impl Ring {
    fn new() -> Result<Self> {
        let mut params = [0_u8; PARAMS];
        // SAFETY: the kernel fills the 120 bytes of io_uring_params.
        let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, params.as_mut_ptr()) };
        let fd = i32::try_from(check(fd)?).unwrap_or(-1);
        // SAFETY: the descriptor was just opened and has no other owner.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let submissions = Self::map(&fd, 0)?;
        let completions = Self::map(&fd, 0x800_0000)?;
        let entries = Self::map(&fd, 0x1000_0000)?;
        Ok(Self {
            fd,
            params,
            submissions,
            completions,
            entries,
        })
    }

    fn map<T>(fd: &OwnedFd, offset: i64) -> Result<*mut T> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let null = std::ptr::null_mut();
        let fd = fd.as_raw_fd();
        // SAFETY: maps one page of the ring at an address of the kernel's choice.
        let page =
            unsafe { libc::mmap(null, RING_BYTES, protection, libc::MAP_SHARED, fd, offset) };
        if page == libc::MAP_FAILED {
            return Err(Error::last_os_error());
        }
        Ok(page.cast())
    }

    fn offset(&self, at: usize) -> usize {
        let bytes = [0, 1, 2, 3].map(|byte| self.params[at + byte]);
        u32::from_ne_bytes(bytes) as usize
    }

    /// Submits the ring's only entry and waits for its completion.
    fn submit_and_wait(&self, entry: &[u8; 64]) -> Result<i32> {
        let tail = self.offset(SQ_OFFSETS + 4);
        let array = self.offset(SQ_OFFSETS + 24);
        let results = self.offset(CQ_OFFSETS + 20);
        // SAFETY: `entries` is a page of 64-byte entries.
        unsafe { self.entries.cast::<[u8; 64]>().write(*entry) };
        // The kernel reads the tail in the system call that follows.
        for (at, value) in [(array, 0), (tail, 1)] {
            let word = self.submissions.wrapping_byte_add(at);
            // SAFETY: the kernel gave these offsets: aligned words inside the page.
            unsafe { &*word }.store(value, Ordering::Release);
        }
        let fd = self.fd.as_raw_fd();
        let null = std::ptr::null::<u8>();
        let get_events = 1;
        // SAFETY: plain system call; the entry's address outlives it.
        check(unsafe { libc::syscall(libc::SYS_io_uring_enter, fd, 1, 1, get_events, null, 0) })?;
        let result = self.completions.wrapping_byte_add(results + 8);
        // SAFETY: the first completion inside the page: {user_data: u64, res: i32, flags: u32}.
        Ok(unsafe { &*result }.load(Ordering::Acquire))
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        for page in [
            self.submissions.cast(),
            self.completions.cast(),
            self.entries,
        ] {
            // SAFETY: mapped by `map`, used by nobody after this.
            unsafe { libc::munmap(page, RING_BYTES) };
        }
    }
}
