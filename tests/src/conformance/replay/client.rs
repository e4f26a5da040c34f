//! Clients with any source address: what becomes of new connections.

use super::responder::make_transparent;
use crate::kernel::Raw;
use crate::raw;
use anyhow::{Context, Result, bail};
use aya::maps::{HashMap, Map, MapData};
use lb_common::table::{Affinity, AffinityKey};
use lb_lab::{Answer, Place};
use std::fmt;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

/// How long an answer may take. It comes at once, or nobody gives one.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long silence is listened to where it is expected: that packets were dropped on purpose the
/// counters tell.
const SILENCE: Duration = Duration::from_millis(300);

/// What becomes of one connection.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Fate {
    /// One of ours answered, which says what it saw.
    Answered(Answer),
    /// Somebody else did.
    Foreign,
    /// It was refused.
    Refused,
    /// Nothing came back.
    Silence,
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answered(answer) => answer.fmt(f),
            Self::Foreign => f.write_str("foreign"),
            Self::Refused => f.write_str("refused"),
            Self::Silence => f.write_str("silence"),
        }
    }
}

impl FromStr for Fate {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        Ok(match text {
            "foreign" => Self::Foreign,
            "refused" => Self::Refused,
            "silence" => Self::Silence,
            answer => Self::Answered(answer.parse()?),
        })
    }
}

/// What to do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attempt<'a> {
    /// The client's address.
    pub(super) from: std::net::IpAddr,
    /// Whom it asks.
    pub(super) to: SocketAddr,
    /// Over UDP instead of TCP.
    pub(super) udp: bool,
    /// How often.
    pub(super) draws: u32,
    /// Whether silence is what should come.
    pub(super) expects_silence: bool,
    /// The pinned table of affinity: each draw is another client as far as that is concerned.
    pub(super) affinity: &'a Path,
}

/// Opens connections from a process at `place`.
pub(super) fn attempt(place: &Place, attempt: Attempt<'_>) -> Result<Vec<Fate>> {
    let text = place.call(|| {
        let mut affinity = open_affinity(attempt.affinity)?;
        let mut fates = Vec::new();
        for _ in 0..attempt.draws {
            forget(&mut affinity)?;
            let fate = if attempt.udp {
                datagram(&attempt)
            } else {
                stream(&attempt)
            };
            fates.push(fate?.to_string());
        }
        Ok(fates.join("\n"))
    })?;
    text.lines().map(str::parse).collect()
}

type Remembered = HashMap<MapData, Raw<AffinityKey>, Raw<Affinity>>;

fn open_affinity(path: &Path) -> Result<Remembered> {
    let map = MapData::from_pin(path).with_context(|| format!("cannot open {}", path.display()))?;
    Ok(HashMap::try_from(Map::LruHashMap(map))?)
}

fn forget(affinity: &mut Remembered) -> Result<()> {
    let keys: Vec<_> = affinity.keys().collect::<Result<_, _>>()?;
    for key in keys {
        affinity.remove(&key).context("cannot forget a client")?;
    }
    Ok(())
}

impl Attempt<'_> {
    fn patience(&self) -> Duration {
        if self.expects_silence {
            SILENCE
        } else {
            PATIENCE
        }
    }

    fn socket(&self) -> Result<OwnedFd> {
        let from = SocketAddr::new(self.from, 0);
        let socket = if self.udp {
            raw::udp(from)?
        } else {
            raw::tcp(from)?
        };
        make_transparent(&socket, self.from.is_ipv4())?;
        if !self.udp {
            // Ports are chosen by both ends, or they would run out.
            raw::set_option(&socket, libc::SOL_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)?;
        }
        raw::bind(&socket, from).with_context(|| format!("cannot bind to {from}"))?;
        Ok(socket)
    }
}

/// What an error on the way means.
fn fate_of(error: &std::io::Error) -> Result<Fate> {
    match (error.kind(), error.raw_os_error()) {
        (ErrorKind::ConnectionRefused, _) => Ok(Fate::Refused),
        (ErrorKind::TimedOut | ErrorKind::WouldBlock, _) | (_, Some(libc::EINPROGRESS)) => {
            Ok(Fate::Silence)
        }
        _ => bail!("a connection ended with: {error}"),
    }
}

fn stream(attempt: &Attempt<'_>) -> Result<Fate> {
    let socket = TcpStream::from(attempt.socket()?);
    socket.set_write_timeout(Some(attempt.patience()))?;
    if let Err(error) = raw::connect(&socket, attempt.to) {
        return fate_of(&error);
    }
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut writer = &socket;
    let mut line = String::new();
    // What the agent's own servers understand, too.
    let asked = writer.write_all(b"GET / HTTP/1.0\r\n\r\n");
    match asked.and_then(|()| BufReader::new(&socket).read_line(&mut line)) {
        Ok(_) => Ok(line.parse().map_or(Fate::Foreign, Fate::Answered)),
        Err(error) => fate_of(&error),
    }
}

fn datagram(attempt: &Attempt<'_>) -> Result<Fate> {
    let socket = UdpSocket::from(attempt.socket()?);
    socket.set_read_timeout(Some(attempt.patience()))?;
    let mut buffer = [0; 2048];
    let done = raw::connect(&socket, attempt.to)
        .and_then(|()| socket.send(b"who\n"))
        .and_then(|_| socket.recv(&mut buffer));
    match done {
        Ok(length) => {
            let text = String::from_utf8_lossy(&buffer[..length]);
            Ok(text.parse().map_or(Fate::Foreign, Fate::Answered))
        }
        Err(error) => fate_of(&error),
    }
}
