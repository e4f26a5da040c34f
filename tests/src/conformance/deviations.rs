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

/// SCTP with sockets.
pub const SCTP: Deviation = Deviation {
    name: "sctp-sockets",
    what: "None in what is served: SCTP flows of the cases are not replayed with sockets.",
    reason: "Few kernels have sockets of it. The host core answers these flows, the kernel's programs \
             are compared with it packet by packet, and associations are opened in virtual machines.",
};

/// Fragments of SCTP.
pub const SCTP_FRAGMENTS: Deviation = Deviation {
    name: "sctp-fragments",
    what: "An SCTP packet in fragments is dropped, and counted as `rewrite_failed`, where a port is to \
           be replaced; kube-proxy's kernel puts it together first.",
    reason: "Its CRC depends on the whole packet's length, which a fragment does not say. Ends of SCTP \
             cut their messages to the path's MTU themselves; with `targetPort` equal to `port`, and \
             no masquerading, fragments pass.",
};

/// How SCTP is refused.
pub const SCTP_REFUSAL: Deviation = Deviation {
    name: "sctp-refusal",
    what: "An SCTP association that nobody serves is refused by an ABORT; kube-proxy's nftables mode \
           answers with ICMP.",
    reason: "The client learns the same, and at once: ends of SCTP need not believe ICMP, and an ABORT \
             passes firewalls that ICMP does not.",
};

/// Sockets of a Service that is deleted.
pub const DELETED_SERVICE: Deviation = Deviation {
    name: "deleted-service",
    what: "Deleting a Service closes the node's UDP sockets that are connected to its endpoints by it; \
           kube-proxy leaves such flows alone.",
    reason: "To the socket its peer is the endpoint itself, which may be anybody's tomorrow; the error \
             makes the program ask again.",
};

/// Several addresses of one endpoint.
pub const FIRST_ADDRESS: Deviation = Deviation {
    name: "first-address",
    what: "Of an endpoint with several addresses only the first is used; Cilium uses all of them.",
    reason: "kube-proxy and the API's documentation: `addresses` are of one endpoint, which may be \
             reached by any of them.",
};

/// Other projects' own.
pub const PEER_FEATURES: Deviation = Deviation {
    name: "peer-features",
    what: "What the Service API has no words for: frontends on any port or on a prefix, health checks \
           of the balancer's own, routing by source or by QUIC connection id, hostPort, annotations \
           of one project, health ports on load balancer addresses, backends of the other family.",
    reason: "Features of one project, no behaviour of kube-proxy.",
};

/// Algorithms and ways to forward of a later version.
pub const MAGLEV_DSR: Deviation = Deviation {
    name: "maglev-dsr-xdp",
    what: "Maglev and weighted tables, direct server return, and forwarding in XDP.",
    reason: "Not yet served; backends are chosen at random, and replies come back through the node.",
};

/// The internal policy and addresses that are not the ClusterIP.
pub const VIP_INTERNAL_POLICY: Deviation = Deviation {
    name: "vip-internal-policy",
    what: "`internalTrafficPolicy` decides about the ClusterIP only; Cilium applies it to pods that ask \
           a load balancer address, too.",
    reason: "As kube-proxy does.",
};

/// Hints.
pub const TOPOLOGY_AUTO: Deviation = Deviation {
    name: "topology-hints",
    what: "Hints of nodes count before hints of zones, and either only if every ready endpoint has \
           them; Calico mixes them endpoint by endpoint.",
    reason: "As kube-proxy does.",
};

/// Errors that a router makes.
pub const KERNEL_ERRORS: Deviation = Deviation {
    name: "kernel-errors",
    what: "“Fragmentation needed”, “time exceeded”, and the refusal of a port where the pod does not \
           listen, are made by the kernels on the way: they come from the node's or the pod's \
           address, translated where they quote a translated packet.",
    reason: "The packet crosses the kernel's own forwarding, as with kube-proxy.",
};

/// Connections to an endpoint that is gone.
pub const NO_RESET: Deviation = Deviation {
    name: "no-reset",
    what: "An established connection whose endpoint is gone is not reset by us; Calico sends a reset.",
    reason: "kube-proxy leaves TCP alone as well: the endpoint may still be finishing its work.",
};

/// Echo requests.
pub const PING: Deviation = Deviation {
    name: "ping",
    what: "A ping to a ClusterIP is left alone; kube-proxy's nftables mode refuses it.",
    reason: "Refusals are for TCP and UDP; as in its iptables mode, a ping goes the way of any packet.",
};

/// The label of headless services.
pub const HEADLESS_LABEL: Deviation = Deviation {
    name: "headless-label",
    what: "The label `service.kubernetes.io/headless` counts on EndpointSlices, where the controller \
           copies it to; Cilium looks at the Service itself.",
    reason: "As kube-proxy does.",
};

/// Refusals of odd packets.
pub const ODD_REFUSALS: Deviation = Deviation {
    name: "odd-refusals",
    what: "A fragment, or a packet with IP options or extension headers, that is to be refused is \
           dropped without an answer.",
    reason: "The answer is built from the packet itself, and no client opens connections so: netfilter \
             would answer.",
};

/// The Service of the API server.
pub const KUBERNETES_SERVICE: Deviation = Deviation {
    name: "kubernetes-service",
    what: "`default/kubernetes` without endpoints is refused like any other service; Calico keeps its \
           last one.",
    reason: "As kube-proxy does. The agent itself reaches the API server without Services.",
};

/// Datagrams for sockets of the node.
pub const UDP_HOST_SOCKET: Deviation = Deviation {
    name: "udp-host-socket",
    what: "A UDP socket of a process of the node that is bound to a node port gets the datagrams that \
           arrive there; with kube-proxy the node port does.",
    reason: "A datagram has no mark of a new connection, and the socket may be waiting for an answer. \
             The node port range is no place for other sockets.",
};

/// All of them.
pub const ALL: [&Deviation; 19] = [
    &SOCKET_SOURCE,
    &UDP_LAST_ENDPOINT,
    &IDLE_UPDATE,
    &SCTP,
    &SCTP_FRAGMENTS,
    &SCTP_REFUSAL,
    &DELETED_SERVICE,
    &UDP_HOST_SOCKET,
    &FIRST_ADDRESS,
    &PEER_FEATURES,
    &MAGLEV_DSR,
    &VIP_INTERNAL_POLICY,
    &TOPOLOGY_AUTO,
    &KERNEL_ERRORS,
    &NO_RESET,
    &PING,
    &HEADLESS_LABEL,
    &ODD_REFUSALS,
    &KUBERNETES_SERVICE,
];

impl Deviation {
    /// The deviation of this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        ALL.into_iter().find(|one| one.name == name)
    }

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
