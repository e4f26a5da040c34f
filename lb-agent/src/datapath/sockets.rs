//! Closing the sockets of endpoints that were removed, in the host's network namespace and, where
//! the operator wants it, in those of pods.

use super::netlink::Socket;
use super::sock_diag::{self, Connected};
use super::sys;
use crate::plan::sockets::{Seen, must_close};
use lb_common::addr::{BackendId, Endpoint};
use nix::sched::{CloneFlags, setns};
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use zerocopy::IntoBytes;

/// What became of the sockets of one kind of namespace.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Closed {
    /// Closed.
    pub closed: u64,
    /// Gone, or connected anew, before they were closed.
    pub ended: u64,
    /// Left open, because the kernel cannot close them (`CONFIG_INET_DIAG_DESTROY`).
    pub unsupported: u64,
    /// Left open for another reason.
    pub failed: u64,
}

impl std::ops::AddAssign for Closed {
    fn add_assign(&mut self, more: Self) {
        self.closed += more.closed;
        self.ended += more.ended;
        self.unsupported += more.unsupported;
        self.failed += more.failed;
    }
}

/// What came of one look at the sockets.
#[derive(Debug, Default)]
pub struct Look {
    /// Of the host.
    pub host: Closed,
    /// Of pods, if theirs are closed.
    pub pods: Option<Closed>,
    /// What went wrong, a sentence each.
    pub troubles: Vec<String>,
}

/// Looks for sockets and closes them; made to be used away from the thread that writes.
#[derive(Debug)]
pub struct Closer {
    /// `lb_peers`.
    pub(super) peers: OwnedFd,
    /// Where the pods' network namespaces are, if their sockets are to be closed.
    pub(super) namespaces: Option<PathBuf>,
}

impl Closer {
    /// Closes every socket that is connected to one of these backends because it was translated.
    /// Blocks; runs in a thread of its own, which enters other namespaces and ends there.
    pub fn close(self, gone: HashMap<BackendId, Endpoint>) -> Look {
        let closing = std::thread::spawn(move || self.look(&gone));
        closing.join().unwrap_or_else(|_| Look {
            troubles: vec!["the look for sockets of removed endpoints broke off".to_owned()],
            ..Look::default()
        })
    }

    fn look(&self, gone: &HashMap<BackendId, Endpoint>) -> Look {
        let mut look = Look::default();
        let mut trouble = |object: String, error: io::Error| {
            look.troubles
                .push(format!("the sockets of {object} cannot be listed: {error}"));
        };
        match self.close_here(gone) {
            Ok(closed) => look.host = closed,
            Err(error) => trouble("the host".to_owned(), error),
        }
        let Some(directory) = &self.namespaces else {
            return look;
        };
        let namespaces = match entries(directory) {
            Ok(namespaces) => namespaces,
            Err(error) => {
                trouble(format!("pods in {}", directory.display()), error);
                return look;
            }
        };
        let mut pods = Closed::default();
        for namespace in namespaces {
            match enter(&namespace).and_then(|entered| {
                if entered {
                    self.close_here(gone)
                } else {
                    Ok(Closed::default())
                }
            }) {
                Ok(closed) => pods += closed,
                Err(error) => {
                    trouble(format!("pods ({})", namespace.display()), error);
                    pods.failed += 1;
                }
            }
        }
        look.pods = Some(pods);
        look
    }

    /// In the namespace this thread is in. What is listed is closed afterwards: a listing under way
    /// does not like its list to change.
    fn close_here(&self, gone: &HashMap<BackendId, Endpoint>) -> io::Result<Closed> {
        let netlink = Socket::about_sockets()?;
        let ends: HashSet<&Endpoint> = gone.values().collect();
        let mut sockets: Vec<Connected> = Vec::new();
        let mut broken = None;
        sock_diag::list(&netlink, |socket| {
            if !ends.contains(&socket.peer) {
                return;
            }
            match self.sent_to(socket.cookie) {
                Ok(sent_to) => {
                    let seen = Seen {
                        peer: socket.peer,
                        sent_to,
                    };
                    if must_close(&seen, gone) {
                        sockets.push(socket);
                    }
                }
                Err(error) => broken = Some(error),
            }
        })?;
        if let Some(error) = broken {
            return Err(error);
        }
        let mut closed = Closed::default();
        for socket in &sockets {
            match sock_diag::destroy(&netlink, socket) {
                Ok(()) => closed.closed += 1,
                Err(error) => match error.raw_os_error() {
                    Some(libc::ENOENT | libc::ESTALE) => closed.ended += 1,
                    Some(libc::EOPNOTSUPP) => closed.unsupported += 1,
                    _ => closed.failed += 1,
                },
            }
        }
        Ok(closed)
    }

    /// Where our programs sent a connected UDP socket.
    fn sent_to(&self, cookie: u64) -> io::Result<Option<BackendId>> {
        let mut backend = BackendId(0);
        let found = sys::map_lookup(
            self.peers.as_fd(),
            cookie.as_bytes(),
            backend.as_mut_bytes(),
        )?;
        Ok(found.then_some(backend))
    }
}

/// The namespaces that are kept by name, as `ip netns` and container runtimes do it.
fn entries(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(directory)?;
    entries.map(|entry| Ok(entry?.path())).collect()
}

/// Moves this thread; false if the namespace went away meanwhile, or never was one: runtimes make
/// the file first and mount the namespace over it then.
fn enter(namespace: &Path) -> io::Result<bool> {
    let file = match File::open(namespace) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        file => file?,
    };
    match setns(&file, CloneFlags::CLONE_NEWNET) {
        Err(nix::errno::Errno::EINVAL) => Ok(false),
        other => Ok(other.map(|()| true)?),
    }
}
