//! Where we differ from what a case expects, and why. One table: the runner prints it,
//! `docs/deviations.md` shows it, and no case is skipped for a reason that is not in it.

use super::Outcome;
use std::fmt::Write as _;

/// A difference that is wanted, or not yet mended.
#[derive(Debug, Eq, PartialEq)]
pub struct Deviation {
    /// The name skipped cases give.
    pub name: &'static str,
    /// What a client or an operator sees.
    pub what: &'static str,
    /// Why it is so, and what to do where it matters.
    pub reason: &'static str,
}

/// A connection that is balanced at the socket keeps its source address.
pub const SOCKET_SOURCE: Deviation = Deviation {
    name: "socket-source",
    what: "A pod's connection that is balanced at the socket reaches the endpoint with the pod's own \
           address where kube-proxy masquerades it: to an external address or a node port, to itself, \
           and with `masqueradeAll`.",
    reason: "A socket hook rewrites the destination before a packet exists and cannot choose the \
             source. `socketLoadBalancing: off` (or `hostOnly`) leaves pods to the packet path, which \
             is exact.",
};

/// UDP flows of a service without endpoints.
pub const UDP_LAST_ENDPOINT: Deviation = Deviation {
    name: "udp-last-endpoint",
    what: "An open UDP flow to a service that has lost every endpoint is refused with its next \
           datagram; kube-proxy 1.36 lets it go on to the endpoint that is gone.",
    reason: "Later releases of kube-proxy do the same; a new client is refused, too.",
};

/// Updates that change nothing.
pub const IDLE_UPDATE: Deviation = Deviation {
    name: "idle-update",
    what: "An update of an EndpointSlice that changes nothing that is read causes no sync; kube-proxy \
           queues one for every difference in the object.",
    reason: "What is served is the same; only the counter of seen changes can tell.",
};

/// SCTP.
pub const SCTP: Deviation = Deviation {
    name: "sctp",
    what: "SCTP ports of Services are not balanced.",
    reason: "Not yet served; the log and a metric say so for each Service that has one.",
};

/// Pods told by device.
pub const INTERFACE_DETECTION: Deviation = Deviation {
    name: "interface-detection",
    what: "`detectLocalMode: BridgeInterface` and `InterfaceNamePrefix` are not served.",
    reason: "Pods are told by their addresses: `ClusterCIDR` says which.",
};

/// Packets made on the node.
pub const NODE_PACKETS: Deviation = Deviation {
    name: "node-packets",
    what: "Packets of the node's own processes that no socket hook treats are not balanced: with \
           `socketLoadBalancing: off` none are, and a connection that is to be dropped goes on to \
           the network.",
    reason: "They pass no device's ingress. Not yet served; `hostOnly` and `all` balance them at the \
             socket.",
};

/// All of them.
pub const ALL: [&Deviation; 6] = [
    &SOCKET_SOURCE,
    &UDP_LAST_ENDPOINT,
    &IDLE_UPDATE,
    &SCTP,
    &INTERFACE_DETECTION,
    &NODE_PACKETS,
];

impl Deviation {
    /// The sentence of a case that meets it.
    pub(super) fn met(&self, detail: &str) -> String {
        format!("deviation {}: {detail}", self.name)
    }

    /// A case that is skipped because of it.
    pub(super) fn skips(&self, detail: &str) -> Outcome {
        Outcome::Skipped(self.met(detail))
    }
}

/// The table as Markdown, one row a deviation.
pub fn table() -> String {
    let mut text = "| deviation | what differs | why, and what to do |\n|---|---|---|\n".to_owned();
    for deviation in ALL {
        let Deviation { name, what, reason } = deviation;
        let _ = writeln!(text, "| {name} | {what} | {reason} |");
    }
    text
}
