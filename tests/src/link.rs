//! A line between the agent and its API server that can be cut and slowed down. It carries bytes:
//! what is said stays between the two, encrypted as it is.
//!
//! What may not live here: anything about Kubernetes.

use anyhow::{Context, Result};
use lb_lab::Place;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How often a held line is looked at.
const POLL: Duration = Duration::from_millis(20);

#[derive(Debug, Default)]
struct State {
    cut: bool,
    held: bool,
    delay: Duration,
    connections: Vec<TcpStream>,
    accepted: usize,
}

/// The line: who connects to its one end is connected to the server at the other.
#[derive(Debug)]
pub struct Link {
    state: Arc<Mutex<State>>,
    listener: TcpListener,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Link {
    /// A whole line from `near` to `far`, both in `place`.
    pub fn new(place: &Place, near: SocketAddr, far: SocketAddr) -> Result<Self> {
        let listener = place
            .enter(|| TcpListener::bind(near))?
            .with_context(|| format!("cannot listen on {near}"))?;
        let state = Arc::<Mutex<State>>::default();
        let (ours, shared) = (listener.try_clone()?, Arc::clone(&state));
        let namespace = place.namespace().open()?;
        std::thread::spawn(move || {
            if nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).is_err() {
                return;
            }
            // An error is the listener's end.
            while let Ok((stream, _)) = ours.accept() {
                // Connections that fail are the far end's matter, as on any line.
                let _ = connect(&shared, stream, far);
            }
        });
        Ok(Self { state, listener })
    }

    /// Breaks every connection and every later one, until [`Self::mend`].
    pub fn cut(&self) {
        let mut state = lock(&self.state);
        state.cut = true;
        for stream in state.connections.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Carries bytes again.
    pub fn mend(&self) {
        lock(&self.state).cut = false;
    }

    /// Connections stay, and new ones are accepted, but nothing is carried until [`Self::release`]:
    /// neither end is told.
    pub fn hold(&self) {
        lock(&self.state).held = true;
    }

    /// Carries again, what was said meanwhile first.
    pub fn release(&self) {
        lock(&self.state).held = false;
    }

    /// Every piece of an answer takes this long.
    pub fn delay(&self, delay: Duration) {
        lock(&self.state).delay = delay;
    }

    /// How many connections were carried so far.
    pub fn accepted(&self) -> usize {
        lock(&self.state).accepted
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // Wakes the thread that accepts; there is nothing to do about a failure.
        let fd = self.listener.as_raw_fd();
        let _ = nix::sys::socket::shutdown(fd, nix::sys::socket::Shutdown::Both);
        self.cut();
        self.release();
    }
}

fn connect(shared: &Arc<Mutex<State>>, near: TcpStream, far: SocketAddr) -> Result<()> {
    if lock(shared).cut {
        // Copies of the descriptor live on in forked processes: closing ours would not be seen.
        return Ok(near.shutdown(Shutdown::Both)?);
    }
    let Ok(far) = TcpStream::connect(far) else {
        return Ok(near.shutdown(Shutdown::Both)?);
    };
    let mut state = lock(shared);
    state.accepted += 1;
    state
        .connections
        .extend([near.try_clone()?, far.try_clone()?]);
    if state.cut {
        drop(state);
        far.shutdown(Shutdown::Both)?;
        return Ok(near.shutdown(Shutdown::Both)?);
    }
    let (questions, answers) = ((near.try_clone()?, far.try_clone()?), (far, near));
    for ((from, to), is_answer) in [(questions, false), (answers, true)] {
        let state = Arc::clone(shared);
        std::thread::spawn(move || carry(from, to, is_answer, &state));
    }
    Ok(())
}

/// Carries bytes one way until either end is closed, then closes both.
fn carry(mut from: TcpStream, mut to: TcpStream, is_answer: bool, state: &Mutex<State>) {
    let mut buffer = vec![0; 65_536];
    while let Ok(length) = from.read(&mut buffer) {
        while lock(state).held {
            std::thread::sleep(POLL);
        }
        if is_answer {
            let delay = lock(state).delay;
            std::thread::sleep(delay);
        }
        if length == 0 || to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
