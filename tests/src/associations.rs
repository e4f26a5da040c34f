//! Associations of SCTP between real sockets, for kernels that have them: through every path, whoever
//! computes the checksums.

use crate::stage::{Stage, TARGET_PORT};
use anyhow::{Context, Result, ensure};
use lb_common::host::craft;
use lb_lab::topology::UPLINK;
use lb_lab::{Capture, Offload, Place, Server};
use std::net::{IpAddr, SocketAddr};

/// More than fits into the largest packet that a device is given to cut up.
const LONG: usize = 200_000;
/// Bytes of the Ethernet header.
const ETHERNET: usize = 14;
/// The longest frame that a device without segmentation is given.
const FRAME: usize = ETHERNET + 1500;

/// Who finishes checksums.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Finisher {
    /// The device that a packet leaves the machine by, if any does: packets pass us without one.
    Device,
    /// Each device, from packets that are cut up where they leave.
    DeviceThatSegments,
    /// The sockets: packets pass us with all they need.
    Socket,
    /// Pods leave it to their devices, and nodes' uplinks have it computed before them.
    Uplink,
}

impl Finisher {
    const ALL: [Self; 4] = [
        Self::Device,
        Self::DeviceThatSegments,
        Self::Socket,
        Self::Uplink,
    ];

    /// True if packets are finished when they reach the node.
    fn is_before_us(self) -> bool {
        matches!(self, Self::DeviceThatSegments | Self::Socket)
    }

    fn set(self, stage: &Stage) -> Result<()> {
        stage.offload(match self {
            Self::Device | Self::Uplink => Offload::ON,
            Self::DeviceThatSegments => Offload {
                gso: true,
                ..Offload::OFF
            },
            Self::Socket => Offload::OFF,
        })?;
        if self == Self::Uplink {
            for node in stage.lab.nodes() {
                node.offload(UPLINK, Offload::OFF)?;
            }
        }
        Ok(())
    }
}

/// The SCTP packets that a device has seen.
#[derive(Debug, Default)]
struct Seen {
    /// With a checksum of zero, which is not to be.
    pending: usize,
    /// With the right one.
    finished: usize,
    /// With another.
    wrong: usize,
    /// The longest frame.
    longest: usize,
}

impl Seen {
    fn by(capture: &Capture) -> Result<Self> {
        let mut seen = Self::default();
        for frame in capture.drain()? {
            let packet = frame.get(ETHERNET..).unwrap_or_default();
            let is_sctp = |at: usize| packet.get(at) == Some(&132);
            let transport = match packet.first().map(|byte| byte >> 4) {
                Some(4) if is_sctp(9) => 20,
                Some(6) if is_sctp(6) => 40,
                _ => continue,
            };
            seen.longest = seen.longest.max(frame.len());
            if packet.get(transport + 8..transport + 12) == Some(&[0; 4]) {
                seen.pending += 1;
            } else if craft::flaw(packet).is_none() {
                seen.finished += 1;
            } else {
                seen.wrong += 1;
            }
        }
        Ok(seen)
    }

    /// Every packet is whole: none waits for a device.
    fn is_finished(&self) -> bool {
        self.finished > 0 && self.pending + self.wrong == 0 && self.longest <= FRAME
    }
}

/// A service of the stage that has a port for SCTP: its ClusterIPs, the pod that must answer and
/// the node port.
pub type Served<'a> = ([SocketAddr; 2], &'a str, u16);

/// Asks every one of `services` from a pod, from the node and from outside, and what nobody serves.
/// The node must have a default route.
pub fn every_path(stage: &Stage, services: &[Served<'_>], unserved: [SocketAddr; 2]) -> Result<()> {
    let start = |name: &&str| Server::start_sctp(stage.pod(name).place(), name, TARGET_PORT);
    let _servers = ["a", "c"].iter().map(start).collect::<Result<Vec<_>>>()?;
    let pod = stage.pod("b");
    let addresses = [pod.v4().into(), pod.v6().into()];
    for finisher in Finisher::ALL {
        finisher.set(stage)?;
        // Packets that are yet to be cut up cannot be looked at: their receiver takes the list apart
        // while others read it.
        let capture = finisher
            .is_before_us()
            .then(|| Capture::open(stage.lab.node(0).namespace(), pod.host_device()))
            .transpose()?;
        every_service(stage, services, addresses).with_context(|| format!("{finisher:?}"))?;
        if let Some(capture) = capture {
            let seen = Seen::by(&capture)?;
            ensure!(seen.is_finished(), "{finisher:?}: {seen:?}");
        }
        for (source, server) in addresses.into_iter().zip(unserved) {
            let refused = pod
                .place()
                .ask_sctp(source, server, 0)
                .map_err(|error| format!("{error:#}"));
            ensure!(
                matches!(&refused, Err(text) if text.contains("ECONNREFUSED")),
                "{finisher:?}: {server}, which nobody serves: {refused:?}"
            );
        }
    }
    Ok(())
}

fn every_service(stage: &Stage, services: &[Served<'_>], pod: [IpAddr; 2]) -> Result<()> {
    let node = stage.lab.node_addresses(0);
    let outside = [stage.client.v4().into(), stage.client.v6().into()];
    for (cluster_ips, name, port) in services {
        let from_outside = stage.node_port(0, *port);
        let ways: [(&Place, _, _); 3] = [
            (stage.pod("b").place(), pod, *cluster_ips),
            (stage.lab.node(0).place(), node, *cluster_ips),
            (stage.client.place(), outside, from_outside),
        ];
        for (place, sources, servers) in ways {
            for (source, server) in sources.into_iter().zip(servers) {
                let answer = place
                    .ask_sctp(source, server, LONG)
                    .with_context(|| format!("from {source} to {server}"))?;
                ensure!(answer.name == *name, "{server}: {answer}, not {name}");
            }
        }
    }
    Ok(())
}
