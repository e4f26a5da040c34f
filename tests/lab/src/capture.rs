//! Packets as a device sees them (AF_PACKET), and packets put on a device by hand.

use crate::Namespace;
use anyhow::{Context, Result, anyhow, bail};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// A capturing (and injecting) socket on one device, open from before it is returned.
#[derive(Debug)]
pub struct Capture {
    socket: OwnedFd,
}

impl Capture {
    /// Opens a capture of all protocols on `device` in `namespace`, both directions.
    pub fn open(namespace: &Namespace, device: &str) -> Result<Self> {
        let index = i32::try_from(namespace.index_of(device)?).context("device index")?;
        let socket = namespace.enter(|| open(index))??;
        Ok(Self { socket })
    }

    /// The next packet (from its Ethernet header on) that `wanted` accepts, or an error after
    /// `patience`.
    pub fn next(&self, patience: Duration, wanted: impl Fn(&[u8]) -> bool) -> Result<Vec<u8>> {
        let end = Instant::now() + patience;
        let mut buffer = vec![0_u8; 65_536];
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("no such packet within {patience:?}");
            }
            let mut poll = libc::pollfd {
                fd: self.socket.as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            };
            let millis = i32::try_from(left.as_millis().max(1)).unwrap_or(i32::MAX);
            // SAFETY: one valid pollfd that outlives the call.
            if unsafe { libc::poll(&raw mut poll, 1, millis) } <= 0 {
                continue;
            }
            if let Some(length) = self.receive(&mut buffer)?
                && wanted(&buffer[..length])
            {
                return Ok(buffer[..length].to_vec());
            }
        }
    }

    /// Everything that arrived so far, without waiting.
    pub fn drain(&self) -> Result<Vec<Vec<u8>>> {
        let mut packets = Vec::new();
        let mut buffer = vec![0_u8; 65_536];
        while let Some(length) = self.receive(&mut buffer)? {
            packets.push(buffer[..length].to_vec());
        }
        Ok(packets)
    }

    /// Sends `frame` (from its Ethernet header on) out of the device.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        // SAFETY: pointer and length describe `frame`, which outlives the call.
        let sent = unsafe {
            libc::send(
                self.socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
            )
        };
        if usize::try_from(sent) != Ok(frame.len()) {
            return Err(anyhow!(io::Error::last_os_error()).context("cannot send the frame"));
        }
        Ok(())
    }

    fn receive(&self, buffer: &mut [u8]) -> Result<Option<usize>> {
        let fd = self.socket.as_raw_fd();
        // SAFETY: pointer and length describe `buffer`, which outlives the call.
        let got = unsafe {
            libc::recv(
                fd,
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                libc::MSG_DONTWAIT,
            )
        };
        match usize::try_from(got) {
            Ok(length) => Ok(Some(length)),
            Err(_) if io::Error::last_os_error().kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(_) => Err(anyhow!(io::Error::last_os_error()).context("cannot read the capture")),
        }
    }
}

fn open(index: i32) -> Result<OwnedFd> {
    let all = u16::try_from(libc::ETH_P_ALL).unwrap_or(3).to_be();
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: socket(2) with constants only.
    let fd = unsafe { libc::socket(libc::AF_PACKET, kind, i32::from(all)) };
    if fd < 0 {
        return Err(anyhow!(io::Error::last_os_error()).context("cannot open a packet socket"));
    }
    // SAFETY: the descriptor was just returned by socket(2) and has no other owner.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: sockaddr_ll is plain integers, for which zero is a value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET).unwrap_or(17);
    address.sll_protocol = all;
    address.sll_ifindex = index;
    let size = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).unwrap_or(20);
    // SAFETY: pointer and size describe `address`, which outlives the call.
    if unsafe { libc::bind(fd, (&raw const address).cast(), size) } < 0 {
        return Err(anyhow!(io::Error::last_os_error()).context("cannot bind the packet socket"));
    }
    Ok(socket)
}
