//! Ends of SCTP made by hand over raw sockets, which every kernel has: few have sockets of SCTP. A
//! server answers what it is sent with as much, says whether the checksum was right, and keeps no
//! state; a client checks what comes back.
//!
//! A kernel that has SCTP, too, would end with an ABORT what it knows nothing of: [`silence_kernel`].

use crate::raw;
use anyhow::{Context, Result, bail, ensure};
use lb_common::host::craft;
use lb_common::wire::Sctp;
use lb_lab::client::PATIENCE;
use lb_lab::{Answer, Place, Process};
use std::fmt;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

/// Length of the headers that [`craft::sctp`] writes.
const HEADERS: usize = size_of::<Sctp>();
/// A chunk of data (RFC 9260 section 3.3.1).
pub const DATA: u8 = 0;

/// What a checksum is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Checksum {
    /// That of the packet.
    Right,
    /// Zero: a device is yet to compute it, or there is none.
    Absent,
    /// Another one.
    Wrong,
}

/// What has arrived.
#[derive(Debug)]
pub struct Arrived {
    /// Whom from.
    pub from: SocketAddr,
    /// The port it is for.
    pub to: u16,
    /// The verification tag.
    pub tag: u32,
    /// The type of its first chunk.
    pub chunk: u8,
    /// The checksum.
    pub checksum: Checksum,
    /// What follows the headers.
    pub payload: Vec<u8>,
}

impl fmt::Display for Arrived {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            from,
            tag,
            chunk,
            checksum,
            ..
        } = self;
        write!(
            f,
            "chunk {chunk} from {from}, tag {tag}, checksum {checksum:?}"
        )
    }
}

/// A raw socket for SCTP, and the end it plays.
#[derive(Debug)]
pub struct End {
    socket: UdpSocket,
    v4: bool,
    port: u16,
}

impl End {
    /// An end at this address and port, which nobody else is kept from.
    pub fn open(at: SocketAddr) -> Result<Self> {
        let fd = raw::raw_socket(at, libc::IPPROTO_SCTP).context("cannot open a raw socket")?;
        let address = SocketAddr::from((at.ip(), 0));
        raw::bind(&fd, address).with_context(|| format!("cannot bind to {}", at.ip()))?;
        Ok(Self {
            socket: fd.into(),
            v4: at.is_ipv4(),
            port: at.port(),
        })
    }

    /// Sends a packet of one chunk, with a checksum or with zero in its place.
    pub fn send(
        &self,
        to: SocketAddr,
        chunk: u8,
        payload: &[u8],
        checksum: Checksum,
    ) -> Result<()> {
        let from = SocketAddr::from((self.socket.local_addr()?.ip(), self.port));
        let mut packet = craft::sctp(&from.into(), &to.into(), chunk, payload);
        // The kernel writes the IP header, and takes no port for a raw socket.
        let packet = &mut packet[if self.v4 { 20 } else { 40 }..];
        match checksum {
            Checksum::Right => {}
            Checksum::Absent => packet[8..12].fill(0),
            Checksum::Wrong => packet[8] ^= 1,
        }
        self.socket
            .send_to(packet, (to.ip(), 0))
            .with_context(|| format!("cannot send {} bytes to {to}", packet.len()))?;
        Ok(())
    }

    /// The next packet for this end's port; none if nothing comes in time.
    pub fn receive(&self, patience: Duration) -> Result<Option<Arrived>> {
        let end = Instant::now() + patience;
        let mut buffer = vec![0; 65_536];
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.socket.set_read_timeout(Some(left))?;
            let (length, peer) = match self.socket.recv_from(&mut buffer) {
                Ok(got) => got,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error).context("cannot receive"),
            };
            // IPv4 raw sockets see the IP header, IPv6 ones do not.
            let skip = if self.v4 {
                usize::from(buffer[0] & 15) * 4
            } else {
                0
            };
            let arrived = parse(peer.ip(), &buffer[skip..length]);
            if let Some(arrived) = arrived.filter(|arrived| arrived.to == self.port) {
                return Ok(Some(arrived));
            }
        }
    }

    /// The answer of [`serve`]'s server to `size` bytes; an answer that was late for an earlier
    /// packet is not taken for it.
    pub fn answer(
        &self,
        server: SocketAddr,
        chunk: u8,
        size: usize,
        patience: Duration,
    ) -> Result<Option<Arrived>> {
        let end = Instant::now() + patience;
        while let Some(arrived) = self.receive(end.saturating_duration_since(Instant::now()))? {
            let fits = Some(arrived.chunk) == answer_to(chunk) && arrived.payload.len() >= size;
            if fits && arrived.from == server {
                return Ok(Some(arrived));
            }
        }
        Ok(None)
    }

    /// Sends a packet until [`serve`]'s server answers it, from where it was asked and with as much.
    pub fn ask(&self, server: SocketAddr, chunk: u8, payload: &[u8]) -> Result<Arrived> {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            self.send(server, chunk, payload, Checksum::Right)?;
            if let Some(answer) = self.answer(server, chunk, payload.len(), PATIENCE / 5)? {
                return Ok(answer);
            }
        }
        bail!("no answer from {server} to chunk {chunk}")
    }
}

/// What [`serve`]'s server answers a chunk with.
const fn answer_to(chunk: u8) -> Option<u8> {
    match chunk {
        Sctp::INIT => Some(Sctp::INIT_ACK),
        DATA => Some(DATA),
        _ => None,
    }
}

/// Judges a packet from its SCTP header on.
fn parse(from: IpAddr, packet: &[u8]) -> Option<Arrived> {
    let (headers, payload) = packet.split_at_checked(HEADERS).unwrap_or((packet, &[]));
    let word = |at: usize| headers.get(at..at + 4)?.first_chunk::<4>();
    let [a, b, c, d] = *word(0)?;
    let checksum = match *word(8)? {
        [0, 0, 0, 0] => Checksum::Absent,
        found => {
            let mut bytes = packet.to_vec();
            bytes[8..12].fill(0);
            if craft::crc32c(&bytes).to_le_bytes() == found {
                Checksum::Right
            } else {
                Checksum::Wrong
            }
        }
    };
    Some(Arrived {
        from: (from, u16::from_be_bytes([a, b])).into(),
        to: u16::from_be_bytes([c, d]),
        tag: u32::from_be_bytes(*word(4)?),
        chunk: word(12)?[0],
        checksum,
        payload: payload.to_vec(),
    })
}

/// Keeps a kernel that has SCTP from answering for the ends made here.
pub fn silence_kernel(place: &Place) -> Result<()> {
    place.namespace().nft(
        "table inet silence {
            chain output {
                type filter hook output priority 0;
                meta l4proto sctp @th,96,8 6 drop
            }
        }",
    )
}

/// Starts a server called `name` on `port` of every address of the place, whose kernel should be
/// silenced.
pub fn serve(place: &Place, name: &str, port: u16) -> Result<Process> {
    Process::start(place, |ready| {
        let any: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        let ends = [
            End::open((any[0], port).into())?,
            End::open((any[1], port).into())?,
        ];
        ready.tell()?;
        std::thread::scope(|scope| {
            for end in &ends {
                scope.spawn(move || answer_all(end, name));
            }
        });
        Ok(String::new())
    })
}

/// Answers an INIT with INIT ACK, data with as much data; packets that ask for nothing are left.
fn answer_all(end: &End, name: &str) -> Result<()> {
    loop {
        let Some(asked) = end.receive(Duration::from_secs(3600))? else {
            continue;
        };
        let Some(chunk) = answer_to(asked.chunk) else {
            continue;
        };
        let answer = Answer {
            name: name.to_owned(),
            peer: asked.from,
            local: (end.socket.local_addr()?.ip(), asked.to).into(),
        };
        let text = format!("{answer} checksum={:?}", asked.checksum);
        let text = format!("{text:0$}", asked.payload.len());
        end.send(asked.from, chunk, text.as_bytes(), Checksum::Right)?;
    }
}

/// Opens an association from `source` and exchanges data of these sizes over it.
pub fn converse(source: SocketAddr, server: SocketAddr, sizes: &[usize]) -> Result<String> {
    let end = End::open(source)?;
    let mut said = talk(&end, server, Sctp::INIT, 0)?;
    for size in sizes {
        let answer = talk(&end, server, DATA, *size)?;
        ensure!(
            answer == said,
            "first {said:?}, with {size} bytes {answer:?}"
        );
        said = answer;
    }
    Ok(said)
}

/// One packet and its answer, whose checksums both must be right on arrival.
pub fn talk(end: &End, server: SocketAddr, chunk: u8, size: usize) -> Result<String> {
    let answer = end
        .ask(server, chunk, &vec![b'w'; size])
        .with_context(|| format!("{size} bytes"))?;
    let text = String::from_utf8_lossy(&answer.payload);
    let text = text.trim_end().to_owned();
    ensure!(
        answer.checksum == Checksum::Right
            && text.ends_with(" checksum=Right")
            && answer.payload.len() >= size,
        "{size} bytes: {answer}, {} bytes: {text:?}",
        answer.payload.len()
    );
    Ok(text)
}
