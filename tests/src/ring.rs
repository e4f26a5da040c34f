//! io_uring without a library: one operation at a time, which the kernel carries out on behalf of
//! the ring.

use crate::raw::{RawAddress, check};
use std::io::{Error, Result};
use std::mem::zeroed;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

/// Numbers of operations (include/uapi/linux/io_uring.h).
const SENDMSG: u8 = 9;
const RECVMSG: u8 = 10;
const CONNECT: u8 = 16;

/// `connect`.
pub fn connect(socket: &impl AsFd, to: SocketAddr) -> Result<()> {
    let to = RawAddress::from(to);
    let mut entry = entry(CONNECT, socket, to.pointer() as u64);
    // The address's length goes where other operations have the offset.
    entry[8..16].copy_from_slice(&u64::from(to.length()).to_ne_bytes());
    Ring::new()?.perform(&entry).map(drop)
}

/// `sendmsg` with an address.
pub fn send_to(socket: &impl AsFd, data: &[u8], to: SocketAddr) -> Result<usize> {
    let mut to = RawAddress::from(to);
    let mut part = libc::iovec {
        iov_base: data.as_ptr().cast_mut().cast(),
        iov_len: data.len(),
    };
    let message = message(&mut to, &mut part);
    let mut entry = entry(SENDMSG, socket, (&raw const message) as u64);
    entry[24..28].copy_from_slice(&1_u32.to_ne_bytes());
    Ring::new()?.perform(&entry)
}

/// `recvmsg`: the datagram and whom it came from.
pub fn receive_from(socket: &impl AsFd) -> Result<(Vec<u8>, SocketAddr)> {
    let mut data = vec![0_u8; 2048];
    let mut from = RawAddress::room();
    let mut part = libc::iovec {
        iov_base: data.as_mut_ptr().cast(),
        iov_len: data.len(),
    };
    let mut message = message(&mut from, &mut part);
    let mut entry = entry(RECVMSG, socket, (&raw mut message) as u64);
    entry[24..28].copy_from_slice(&1_u32.to_ne_bytes());
    let length = Ring::new()?.perform(&entry)?;
    data.truncate(length);
    Ok((data, from.address()))
}

fn entry(operation: u8, socket: &impl AsFd, address: u64) -> [u8; 64] {
    let mut entry = [0_u8; 64];
    entry[0] = operation;
    entry[4..8].copy_from_slice(&socket.as_fd().as_raw_fd().to_ne_bytes());
    entry[16..24].copy_from_slice(&address.to_ne_bytes());
    entry
}

fn message(name: &mut RawAddress, part: &mut libc::iovec) -> libc::msghdr {
    // SAFETY: all zeros is a valid message without anything.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_name = name.pointer_mut().cast();
    message.msg_namelen = name.length();
    message.msg_iov = part;
    message.msg_iovlen = 1;
    message
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

    /// Carries out `entry`, whatever it points to must outlive the call.
    fn perform(&self, entry: &[u8; 64]) -> Result<usize> {
        let result = self.submit_and_wait(entry)?;
        usize::try_from(result).map_err(|_| Error::from_raw_os_error(-result))
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
