//! Attempts that are expected to fail, or to succeed only after a moment.

use anyhow::{Context, Result};
use lb_lab::{Place, client};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// Silence is told from a refusal or an answer, which come at once, by nothing coming for a while; that
/// the packets were dropped on purpose the counters tell.
pub const SILENCE: Duration = Duration::from_millis(500);

/// How a TCP and a UDP attempt ended.
pub fn attempts(from: &Place, server: SocketAddr) -> Result<[String; 2]> {
    Ok([from.call(|| Ok(tcp(server)))?, from.call(|| udp(server))?])
}

/// How a TCP and a UDP attempt of each ended, all made at the same time: silence takes as long as it takes.
pub fn attempts_together(askers: &[(&Place, SocketAddr)]) -> Result<Vec<[String; 2]>> {
    let mut running = Vec::new();
    for (from, server) in askers {
        running.push([
            from.spawn(|| Ok(tcp(*server)))?,
            from.spawn(|| udp(*server))?,
        ]);
    }
    let ended = running
        .into_iter()
        .map(|[tcp, udp]| Ok([tcp.wait()?, udp.wait()?]));
    ended.collect()
}

fn tcp(server: SocketAddr) -> String {
    let outcome = TcpStream::connect_timeout(&server, SILENCE).map(drop);
    format!("{:?}", outcome.map_err(|error| error.kind()))
}

fn udp(server: SocketAddr) -> Result<String> {
    let socket = client::udp_socket(server)?;
    socket.set_read_timeout(Some(SILENCE))?;
    let outcome = socket
        .connect(server)
        .and_then(|()| socket.send(b"who\n"))
        .and_then(|_| socket.recv(&mut [0; 64]))
        .map(drop);
    Ok(format!("{:?}", outcome.map_err(|error| error.kind())))
}

/// Repeats `attempt` until it succeeds: netlink events are followed, not awaited.
pub fn soon(what: &str, mut attempt: impl FnMut() -> Result<()>) -> Result<()> {
    // Only a failing test waits that long.
    let end = Instant::now() + client::PATIENCE * 6;
    loop {
        match attempt() {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() > end => return Err(error).context(what.to_owned()),
            Err(_) => {}
        }
    }
}
