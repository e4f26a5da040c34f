//! Clients that never stop: proof that nothing was interrupted.

use anyhow::{Context, Result, ensure};
use lb_lab::{Place, Process, client};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Between two connections of a client.
const PACE: Duration = Duration::from_millis(5);

/// Clients that connect again and again, each connection with an answer, until [`Steady::end`].
#[derive(Debug)]
pub struct Steady {
    clients: Vec<(String, Process)>,
    stop: PathBuf,
    _dir: tempfile::TempDir,
}

impl Steady {
    /// Starts one client for each of these places and servers.
    pub fn start(clients: &[(&Place, SocketAddr)]) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let stop = dir.path().join("stop");
        let clients = clients
            .iter()
            .map(|(place, server)| {
                let (server, stop) = (*server, stop.clone());
                let process = place.spawn(move || {
                    let mut count = 0_u64;
                    while !stop.exists() {
                        client::tcp(server)
                            .with_context(|| format!("connection {count} to {server}"))?;
                        count += 1;
                        // At full speed two endpoints' SNAT ports would soon all be closed flows'.
                        std::thread::sleep(PACE);
                    }
                    Ok(count.to_string())
                })?;
                Ok((format!("a client of {server}"), process))
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            clients,
            stop,
            _dir: dir,
        })
    }

    /// Ends the clients; an error if a single connection of any of them failed.
    pub fn end(self) -> Result<()> {
        std::fs::write(&self.stop, "")?;
        for (who, process) in self.clients {
            let count: u64 = process.wait().with_context(|| who.clone())?.parse()?;
            ensure!(count > 0, "{who} never connected");
        }
        Ok(())
    }
}
