//! Behaviours of the socket path, on the host.
//!
//! The stage: the tables of a node, and sockets of its pods (namespace 7) and of itself (1).

mod clients;
mod connections;
mod datagrams;

use super::SocketVerdict;
use crate::addr::{Addr, BackendId, Endpoint, Port, Protocol, ServiceId};
use crate::host::{HostEnv, HostSocket, HostTables};
use crate::table::FrontendKind;
use crate::verdict::Reason;
use core::net::IpAddr;

const TCP: Protocol = Protocol::TCP;
const UDP: Protocol = Protocol::UDP;
/// Cookies of namespaces.
const HOST: u64 = 1;
const POD: u64 = 7;

fn addr(text: &str) -> Addr {
    text.parse::<IpAddr>().unwrap().into()
}

fn end(text: &str, port: u16) -> Endpoint {
    Endpoint {
        addr: addr(text),
        port: Port::new(port),
    }
}

/// Address number `last` of a network: 1 backends, 8 services; both families.
fn family(network: u8, last: u8, port: u16) -> [Endpoint; 2] {
    [
        end(&format!("10.0.{network}.{last}"), port),
        end(&format!("fd00:{network}::{last}"), port),
    ]
}

/// A service on port 80 of address `number` of both families, TCP and UDP, with as many backends.
struct Served {
    asked: Endpoint,
    service: ServiceId,
    backends: Vec<(BackendId, Endpoint)>,
}

struct World {
    tables: HostTables,
    env: HostEnv,
}

impl World {
    fn new() -> Self {
        Self {
            tables: HostTables::of_node(),
            env: HostEnv::new(3),
        }
    }

    /// A service port with `count` backends 10.0.1.N:8080.
    fn serve(&mut self, asked: Endpoint, protocol: Protocol, count: u8) -> Served {
        let service = self.tables.add_service(0, 0);
        let like = usize::from(!asked.addr.is_v4());
        let backends = (1..=count).map(|last| {
            let end = family(1, last, 8080)[like];
            (self.tables.add_backend(service, &end, protocol, true), end)
        });
        let backends = backends.collect();
        self.tables
            .add_frontend(service, &asked, protocol, FrontendKind::ClusterIp);
        Served {
            asked,
            service,
            backends,
        }
    }

    fn socket(&self, namespace: u64) -> HostSocket<'_> {
        HostSocket::new(&self.tables, &self.env, namespace)
    }

    fn reason(&self, reason: Reason) -> u64 {
        self.tables.reasons.borrow()[reason as usize]
    }

    /// Connections begun, ended and refused.
    fn counts(&self, service: ServiceId) -> (u64, u64, u64) {
        let counters = self.tables.counters.borrow();
        let counters = counters.get(&service).copied().unwrap_or_default();
        (
            counters.socket_opened,
            counters.socket_closed,
            counters.socket_rejected,
        )
    }

    /// Those begun and ended of a backend.
    fn backend_counts(&self, backend: BackendId) -> (u64, u64) {
        let counters = self.tables.backend_counters.borrow();
        let counters = counters.get(&backend).copied().unwrap_or_default();
        (counters.socket_opened, counters.socket_closed)
    }

    /// Moves the clock.
    fn pass(&self, ticks: u32) {
        let now = &self.env.now;
        now.set(crate::addr::Tick(now.get().0 + ticks));
    }
}

/// Where a verdict sends to.
fn sent(verdict: SocketVerdict) -> Endpoint {
    match verdict {
        SocketVerdict::Translate(to) => to,
        other => panic!("not translated: {other:?}"),
    }
}
