//! Requests to netlink that our libraries have no words for. Plain and synchronous: one request at a
//! time, and its answers until the last.

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, connect, recv, send,
    socket,
};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

const NLM_F_REQUEST: u16 = 1;
/// Answer also if all is well.
pub(super) const NLM_F_ACK: u16 = 4;
/// List everything.
pub(super) const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// A request.
pub(super) struct Message(Vec<u8>);

impl Message {
    /// A request of this kind with its fixed header.
    pub(super) fn new(kind: u16, flags: u16, header: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(128);
        bytes.extend_from_slice(&0_u32.to_ne_bytes());
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
        // Sequence number and port: one request at a time on a connected socket needs neither.
        bytes.extend_from_slice(&[0; 8]);
        bytes.extend_from_slice(header);
        Self(bytes)
    }

    /// Attributes that become the payload of another one.
    pub(super) const fn nested() -> Self {
        Self(Vec::new())
    }

    /// What was gathered so far.
    pub(super) fn payload(&self) -> &[u8] {
        &self.0
    }

    /// Adds an attribute.
    pub(super) fn attribute(&mut self, kind: u16, payload: &[u8]) -> &mut Self {
        let length = u16::try_from(4 + payload.len()).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(payload);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0
    }
}

/// A conversation with the kernel.
pub(super) struct Socket(OwnedFd);

impl Socket {
    /// Opens one with rtnetlink, of the network namespace this thread is in.
    pub(super) fn open() -> io::Result<Self> {
        Self::with(SockProtocol::NetlinkRoute)
    }

    /// Opens one about sockets, likewise.
    pub(super) fn about_sockets() -> io::Result<Self> {
        Self::with(SockProtocol::NetlinkSockDiag)
    }

    fn with(protocol: SockProtocol) -> io::Result<Self> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            protocol,
        )?;
        connect(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        Ok(Self(fd))
    }

    /// Sends a request and waits for its acknowledgement.
    pub(super) fn request(&self, message: Message) -> io::Result<()> {
        self.exchange(message, |_, _| {})
    }

    /// Sends a request and hands the type and the payload of every answer to `each` until the last.
    pub(super) fn exchange(
        &self,
        message: Message,
        mut each: impl FnMut(u16, &[u8]),
    ) -> io::Result<()> {
        send(self.0.as_raw_fd(), &message.finish(), MsgFlags::empty())?;
        let mut buffer = vec![0; 32 * 1024];
        loop {
            let length = recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            let mut rest = &buffer[..length];
            while let Some((kind, payload, after)) = next_message(rest) {
                rest = after;
                match kind {
                    // Both begin with a code; a listing that broke off tells so at its end.
                    NLMSG_DONE | NLMSG_ERROR => {
                        let code = payload.first_chunk().map_or(0, |c| i32::from_ne_bytes(*c));
                        return if code < 0 {
                            Err(io::Error::from_raw_os_error(-code))
                        } else {
                            Ok(())
                        };
                    }
                    other => each(other, payload),
                }
            }
        }
    }
}

/// Splits the first message off: its type, its payload and what follows.
fn next_message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    let kind = u16::from_ne_bytes([*bytes.get(4)?, *bytes.get(5)?]);
    let payload = bytes.get(16..length)?;
    let next = length.next_multiple_of(4).min(bytes.len());
    Some((kind, payload, &bytes[next..]))
}
