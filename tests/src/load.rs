//! Clients that ask at a steady pace whatever comes, and note each request that failed and when:
//! what a person sees of a service while it is changed.
//!
//! What may not live here: which failures are forgivable. Tests say when.

use anyhow::{Context, Result, ensure};
use lb_lab::{Answer, Place, Process, client};
use nix::time::{ClockId, clock_gettime};
use std::fmt;
use std::fs::File;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long requests are awaited: only a failing test waits that long.
const PATIENCE: Duration = Duration::from_secs(120);

/// What is asked for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Transport {
    /// A connection, a question, an answer.
    Tcp,
    /// A datagram each way, each time from a socket and port that nobody had before: one that was
    /// used a moment ago is the same flow for a load balancer, whoever has it now.
    Udp,
    /// A datagram each way, always from the same port.
    UdpFromOnePort,
}

/// A moment of the machine's monotonic clock, the same for every process.
pub type Moment = Duration;

/// Now.
pub fn now() -> Result<Moment> {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).context("cannot read the clock")?;
    Ok(time.into())
}

/// A request that was not answered.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Which client's.
    pub client: String,
    /// When it began and when it was given up.
    pub during: (Moment, Moment),
    /// Whether the client was refused at once rather than left without an answer.
    pub refused: bool,
    /// What the client was told.
    pub message: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let took = self.during.1.saturating_sub(self.during.0);
        let Self {
            client, message, ..
        } = self;
        write!(
            f,
            "{client}, at {:?} for {took:?}: {message}",
            self.during.0
        )
    }
}

/// One client.
#[derive(Debug)]
struct Client {
    name: String,
    process: Process,
    count: File,
}

/// Clients at work.
#[derive(Debug)]
pub struct Load {
    clients: Vec<Client>,
    dir: PathBuf,
    pace: Duration,
}

impl Load {
    /// No client yet; each asks once in `pace`. Files are kept in the new directory `dir`.
    pub fn new(dir: &Path, pace: Duration) -> Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(Self {
            clients: Vec::new(),
            dir: dir.to_owned(),
            pace,
        })
    }

    /// Starts one more client.
    pub fn add(
        &mut self,
        name: &str,
        place: &Place,
        server: SocketAddr,
        transport: Transport,
    ) -> Result<()> {
        let path = self.dir.join(format!("client-{}", self.clients.len()));
        let open = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path);
        let count = open.with_context(|| format!("cannot make {}", path.display()))?;
        let (end, every) = (self.dir.join("stop"), self.pace);
        let shared = count.try_clone()?;
        let process = place.spawn(move || ask(server, transport, every, &shared, &end))?;
        self.clients.push(Client {
            name: name.to_owned(),
            process,
            count,
        });
        Ok(())
    }

    /// How many requests a client has made so far, and how many of them were answered.
    fn counts(client: &Client) -> Result<[u64; 2]> {
        let mut bytes = [[0; 8]; 2];
        // Empty until the first request.
        let length = client.count.read_at(bytes.as_flattened_mut(), 0);
        length.context("cannot read a client's counts")?;
        Ok(bytes.map(u64::from_ne_bytes))
    }

    /// Waits until each client has made `more` requests: what happened before is met by them, and
    /// none that was under way is any longer.
    pub fn await_requests(&self, more: u64) -> Result<()> {
        self.await_more("", more, |[made, _]| made)
    }

    /// Waits until each client whose name begins with `clients` was answered `more` times.
    pub fn await_answers(&self, clients: &str, more: u64) -> Result<()> {
        self.await_more(clients, more, |[_, answered]| answered)
    }

    fn await_more(&self, clients: &str, more: u64, of: fn([u64; 2]) -> u64) -> Result<()> {
        let end = now()? + PATIENCE;
        let meant = |client: &&Client| client.name.starts_with(clients);
        let count = |client: &Client| Self::counts(client).map(of);
        for client in self.clients.iter().filter(meant) {
            // One after the other: who is waited for first gives the others their time.
            let target = count(client)? + more;
            while count(client)? < target {
                ensure!(now()? < end, "{}: not {more} further requests", client.name);
                // Requests are counted, not announced.
                std::thread::sleep(self.pace);
            }
        }
        Ok(())
    }

    /// Ends the clients: how many requests they made, and which failed.
    pub fn finish(self) -> Result<(u64, Vec<Failure>)> {
        let counts = self
            .clients
            .iter()
            .map(|client| Ok(Self::counts(client)?[0]));
        let total = counts.sum::<Result<u64>>()?;
        std::fs::write(self.dir.join("stop"), "").context("cannot stop the clients")?;
        let mut failures = Vec::new();
        for client in self.clients {
            let text = client.process.wait().with_context(|| client.name.clone())?;
            for line in text.lines() {
                failures.push(parse(&client.name, line)?);
            }
        }
        failures.sort_by_key(|failure| failure.during.0);
        ensure!(total > 0, "no client made a request");
        Ok((total, failures))
    }
}

/// Asks until the file `stop` is there; returns a line for each failure.
fn ask(
    server: SocketAddr,
    transport: Transport,
    pace: Duration,
    count: &File,
    stop: &Path,
) -> Result<String> {
    let mut failures = String::new();
    let (mut next, mut made, mut answered) = (now()?, 0_u64, 0_u64);
    let one = bound(server, 0)?;
    while !stop.exists() {
        let began = now()?;
        let outcome = match transport {
            Transport::Tcp => client::tcp(server),
            Transport::Udp => fresh(server, made).and_then(|socket| ask_on(&socket)),
            Transport::UdpFromOnePort => ask_on(&one),
        };
        made += 1;
        answered += u64::from(outcome.is_ok());
        if let Err(error) = outcome {
            let refused = error.chain().any(|cause| {
                let kind = cause
                    .downcast_ref::<std::io::Error>()
                    .map(std::io::Error::kind);
                kind == Some(ErrorKind::ConnectionRefused)
            });
            let (from, to) = (began.as_nanos(), now()?.as_nanos());
            failures.push_str(&format!("{from} {to} {refused} {error:#}\n").replace("\n\n", "\n"));
        }
        let counts = [made, answered].map(u64::to_ne_bytes);
        count
            .write_at(counts.as_flattened(), 0)
            .context("cannot count")?;
        next += pace;
        // A client that was held up goes on at its pace and makes up for nothing.
        let now = now()?;
        next = next.max(now);
        std::thread::sleep(next.saturating_sub(now));
    }
    Ok(failures)
}

/// The ports of [`Transport::Udp`], below those that the system gives.
const PORTS: std::ops::Range<u16> = 1_024..32_000;

/// A socket on the next port.
fn fresh(server: SocketAddr, made: u64) -> Result<UdpSocket> {
    let port = u16::try_from(made % u64::from(PORTS.end - PORTS.start))? + PORTS.start;
    bound(server, port)
}

/// A socket on this port that is connected: nobody tells another one of a refusal.
fn bound(server: SocketAddr, port: u16) -> Result<UdpSocket> {
    let any: IpAddr = if server.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = UdpSocket::bind((any, port)).context("cannot open a UDP socket")?;
    socket.set_read_timeout(Some(client::PATIENCE))?;
    socket
        .connect(server)
        .with_context(|| format!("cannot connect UDP to {server}"))?;
    Ok(socket)
}

/// Asks on a connected socket.
fn ask_on(socket: &UdpSocket) -> Result<Answer> {
    socket.send(&[b'w'; 32]).context("cannot send")?;
    let mut buffer = [0; 1024];
    let length = socket.recv(&mut buffer).context("no answer")?;
    String::from_utf8_lossy(&buffer[..length]).parse()
}

fn parse(client: &str, line: &str) -> Result<Failure> {
    let mut words = line.splitn(4, ' ');
    let mut word = || {
        words
            .next()
            .with_context(|| format!("not a failure: {line:?}"))
    };
    let moment = |text: &str| Ok::<_, anyhow::Error>(Duration::from_nanos(text.parse()?));
    Ok(Failure {
        client: client.to_owned(),
        during: (moment(word()?)?, moment(word()?)?),
        refused: word()?.parse()?,
        message: word()?.to_owned(),
    })
}
